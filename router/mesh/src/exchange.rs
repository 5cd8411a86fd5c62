//! One request and its answer on one upstream connection. Hides hyper's client: who drives the connection, how an
//! unsent request is told from a half-sent one, and when waiting has lasted too long.

use crate::body::{BodyError, Upload, UploadWatch};
use crate::framing::{ExpectResponse, Limits, ResponseGuard, Violation, violation};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};

/// An HTTP/1.1 connection to an upstream, ready for one request at a time.
#[derive(Debug)]
pub struct Upstream {
    sender: SendRequest<Upload>,
    expect: ExpectResponse,
    driver: AbortHandle,
    /// Bounds the wait for a response head. Kept from request to request: moving a timer that already runs is cheap.
    timer: Pin<Box<Sleep>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection had been closed before a byte of the request was sent; the request is given back.
    #[error("the connection was already closed")]
    NotSent(Box<Request<Upload>>),
    /// No response head in time.
    #[error("no response head in time")]
    TimedOut,
    /// The connection broke before a response head.
    #[error("the connection broke before a response head")]
    Broken(#[source] hyper::Error),
    /// What came is not a response that can be read in one way only.
    #[error("malformed response: {0}")]
    Malformed(String),
    /// The request's own body stopped.
    #[error("the request's body stopped: {0}")]
    Upload(BodyError),
}

impl Upstream {
    /// Starts HTTP/1.1 on a connected stream. The connection is driven by a task of its own.
    ///
    /// # Errors
    /// hyper's, which doesn't occur on a fresh stream.
    pub async fn start<S>(stream: S, limits: &Arc<Limits>) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (io, expect) = ResponseGuard::new(stream, Arc::clone(limits));
        let (sender, connection) = limits.client_builder().handshake(TokioIo::new(io)).await?;
        let driver = tokio::spawn(async move {
            // The request that was under way hears of the error; between requests nobody needs to.
            let _ = connection.with_upgrades().await;
        });
        Ok(Self {
            sender,
            expect,
            driver: driver.abort_handle(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        })
    }

    /// Whether a request can be sent now.
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and waits for its response head, at most `wait` after the request's body last moved.
    ///
    /// The request comes in a box because it passes through several futures, which would each have room for it.
    ///
    /// # Errors
    /// See [`ExchangeError`]. After any of them the connection must not be used again.
    pub async fn send(
        &mut self,
        request: Box<Request<Upload>>,
        wait: Duration,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let (started, watch) = (request.body().started(), request.body().watch());
        let due = || watch.as_ref().map_or(started, |watch| watch.moved()) + wait;
        self.expect.arm();
        self.timer.as_mut().reset(due());
        let mut answer = pin!(self.sender.try_send_request(*request));
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    return answer.map_err(|mut error| match error.take_message() {
                        Some(request) => ExchangeError::NotSent(Box::new(request)),
                        None => explain(error.into_error(), watch.as_deref()),
                    });
                }
                () = &mut self.timer => {
                    let next = due();
                    if next <= Instant::now() {
                        return Err(if watch.as_ref().is_some_and(|watch| watch.awaits_client()) {
                            ExchangeError::Upload(BodyError::Silent)
                        } else {
                            ExchangeError::TimedOut
                        });
                    }
                    self.timer.as_mut().reset(next);
                }
            }
        }
    }
}

impl Drop for Upstream {
    /// What is still under way ends here: hyper would wait for as long as the peer doesn't take the rest of a request, and
    /// hold the request's sender with it. An idle connection is left to hyper, which closes it properly.
    fn drop(&mut self) {
        if !self.sender.is_ready() {
            self.driver.abort();
        }
    }
}

fn explain(error: hyper::Error, watch: Option<&UploadWatch>) -> ExchangeError {
    if let Some(failure) = watch.and_then(UploadWatch::failure) {
        return ExchangeError::Upload(failure);
    }
    match violation(&error) {
        Some(violation) => ExchangeError::Malformed(Violation::detail(violation).to_owned()),
        None if error.is_parse() => ExchangeError::Malformed(error.to_string()),
        None => ExchangeError::Broken(error),
    }
}
