//! One request and its answer on one upstream connection. Hides hyper's client: who drives the connection, how an
//! unsent request is told from a half-sent one, when waiting has lasted too long, and which version of HTTP it is.

use crate::body::{BodyError, Upload, UploadWatch};
use crate::framing::{ExpectResponse, Limits, ResponseGuard, Violation, judge_http2_answer, violation};
use crate::http2::{self, CountedHeads, HttpVersion};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1::SendRequest, http2::SendRequest as SendRequest2};
use hyper_util::rt::TokioIo;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};

/// How long a connection that is given up in the middle of a stream has to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A connection to an upstream, ready for one request at a time.
#[derive(Debug)]
pub struct Upstream {
    sender: Sender,
    driver: AbortHandle,
    /// Bounds the wait for a response head. Kept from request to request: moving a timer that already runs is cheap.
    timer: Pin<Box<Sleep>>,
}

/// Hands requests to whoever drives the connection.
#[derive(Debug)]
enum Sender {
    Http1 {
        sender: SendRequest<Upload>,
        expect: ExpectResponse,
    },
    Http2(Box<Http2Sender>),
}

#[derive(Debug)]
struct Http2Sender {
    sender: SendRequest2<Upload>,
    limits: Arc<Limits>,
    /// Of the stream that was opened last. Its answer can be over before its request is.
    upload: Option<Arc<UploadWatch>>,
    /// Whether a stream is open, as far as is known here.
    is_busy: bool,
}

impl Http2Sender {
    fn is_idle(&self) -> bool {
        !self.is_busy && self.upload.as_ref().is_none_or(|upload| upload.has_ended())
    }
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
            sender: Sender::Http1 { sender, expect },
            driver: driver.abort_handle(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        })
    }

    /// Starts HTTP/2 on a connected stream, whose other end is known to speak it.
    ///
    /// # Errors
    /// hyper's.
    pub async fn start_http2<S>(stream: S, limits: &Arc<Limits>) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let builder = http2::client_builder(limits);
        let (sender, connection) = builder
            .handshake(TokioIo::new(CountedHeads::new(stream, limits)))
            .await?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        let sender = Http2Sender {
            sender,
            limits: Arc::clone(limits),
            upload: None,
            is_busy: false,
        };
        Ok(Self {
            sender: Sender::Http2(Box::new(sender)),
            driver: driver.abort_handle(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        })
    }

    /// Starts the `version` of HTTP on a connected stream; see [`Upstream::start`] and [`Upstream::start_http2`].
    ///
    /// # Errors
    /// hyper's.
    pub async fn start_in<S>(version: HttpVersion, stream: S, limits: &Arc<Limits>) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match version {
            HttpVersion::Http1 => Self::start(stream, limits).await,
            HttpVersion::Http2 => Box::pin(Self::start_http2(stream, limits)).await,
        }
    }

    /// The version of HTTP that it speaks.
    pub fn version(&self) -> HttpVersion {
        match &self.sender {
            Sender::Http1 { .. } => HttpVersion::Http1,
            Sender::Http2(_) => HttpVersion::Http2,
        }
    }

    /// Whether a request can be sent now.
    pub fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1 { sender, .. } => sender.is_ready(),
            Sender::Http2(http2) => http2.sender.is_ready() && http2.is_idle(),
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1 { sender, .. } => sender.is_closed(),
            Sender::Http2(http2) => http2.sender.is_closed(),
        }
    }

    /// To be told when an answer is through, which only its reader knows.
    pub(crate) fn finish(&mut self) {
        if let Sender::Http2(http2) = &mut self.sender {
            http2.is_busy = false;
        }
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
        let due = Due {
            started: request.body().started(),
            watch: request.body().watch(),
            wait,
        };
        match &mut self.sender {
            Sender::Http1 { sender, expect } => {
                expect.arm();
                within(due, &mut self.timer, sender.try_send_request(*request)).await
            }
            Sender::Http2(http2) => {
                http2.upload.clone_from(&due.watch);
                http2.is_busy = true;
                Box::pin(http2.send(due, &mut self.timer, request)).await
            }
        }
    }
}

impl Http2Sender {
    async fn send(
        &mut self,
        due: Due,
        timer: &mut Pin<Box<Sleep>>,
        mut request: Box<Request<Upload>>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        http2::to_http2(&mut request);
        let response = within(due, timer, self.sender.try_send_request(*request)).await?;
        match judge_http2_answer(&response, &self.limits) {
            Ok(()) => Ok(response),
            Err(violation) => Err(ExchangeError::Malformed(violation.detail().to_owned())),
        }
    }
}

/// Until when an answer is waited for.
struct Due {
    started: Instant,
    watch: Option<Arc<UploadWatch>>,
    wait: Duration,
}

impl Due {
    fn at(&self) -> Instant {
        self.watch.as_ref().map_or(self.started, |watch| watch.moved()) + self.wait
    }
}

async fn within(
    due: Due,
    timer: &mut Pin<Box<Sleep>>,
    answer: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Upload>>>>,
) -> Result<Response<Incoming>, ExchangeError> {
    timer.as_mut().reset(due.at());
    let mut answer = pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => {
                return answer.map_err(|mut error| match error.take_message() {
                    Some(request) => ExchangeError::NotSent(Box::new(request)),
                    None => explain(error.into_error(), due.watch.as_deref()),
                });
            }
            () = &mut *timer => {
                let next = due.at();
                if next <= Instant::now() {
                    return Err(if due.watch.as_ref().is_some_and(|watch| watch.awaits_client()) {
                        ExchangeError::Upload(BodyError::Silent)
                    } else {
                        ExchangeError::TimedOut
                    });
                }
                timer.as_mut().reset(next);
            }
        }
    }
}

impl Drop for Upstream {
    /// What is still under way ends here: hyper would wait for as long as the peer doesn't take the rest of a request, and
    /// hold the request's sender with it. An idle connection is left to hyper, which closes it properly. Over HTTP/2 the peer is
    /// told first that the stream is not wanted any more.
    fn drop(&mut self) {
        if self.is_ready() {
            return;
        }
        let driver = self.driver.clone();
        match (&self.sender, Handle::try_current()) {
            (Sender::Http2(_), Ok(runtime)) => {
                runtime.spawn(async move {
                    tokio::time::sleep(LAST_WORDS).await;
                    driver.abort();
                });
            }
            _ => driver.abort(),
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
