//! Serving HTTP/2 on one accepted stream: judging every request, an end to idleness and to streams that nobody reads, and a
//! drain that lets streams finish.

use super::{Watched, Writes};
use crate::drain::Draining;
use crate::framing::{ExtendedConnect, Kept, Limits, PassThrough, answer_extended_connect, judge_http2};
use crate::http2::{Windows, server_builder};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

/// Whether WebSockets may come as extended CONNECTs (RFC 8441).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendedConnects {
    /// They may, and are told so.
    Served,
    /// Such a stream is reset.
    Refused,
}

/// Serves requests on `stream` until it ends, lies idle for too long, or the drain starts, and then finishes the streams that
/// are under way.
///
/// Idle time is counted in whole [`Limits::idle_time`]s, as by [`super::http1`]. A connection is idle while no stream is open.
/// A stream of whose answer the peer took nothing for all of one is reset, and the others go on: whoever is at the other end may
/// speak for many. A connection that takes no bytes at all for as long is closed.
///
/// `handle` is given each request in the form of HTTP/1.1; see [`judge_http2`]. The refused ones, too.
pub async fn http2<S, H, F, B>(
    stream: S,
    limits: &Arc<Limits>,
    (windows, connects): (Windows, ExtendedConnects),
    mut draining: Draining,
    handle: H,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, PassThrough) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let writes = Arc::new(Writes::default());
    let stream = Watched {
        io: stream,
        writes: Arc::clone(&writes),
    };
    let streams = Arc::<Streams>::default();
    let service = service_fn(|request| {
        let switch = PassThrough::of_stream();
        let place = streams.begin(&switch);
        let request = judge_http2(request, limits);
        let connects = request.extensions().get::<ExtendedConnect>().is_some();
        let answer = handle(request, switch);
        async move {
            let mut response = answer.await;
            if connects {
                answer_extended_connect(&mut response);
            }
            Ok::<_, Infallible>(response.map(|body| Streamed { body, place }))
        }
    });
    let mut builder = server_builder(limits, windows, Spawner(Arc::clone(&streams)));
    if connects == ExtendedConnects::Served {
        builder.enable_connect_protocol();
    }
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut period = pin!(sleep(limits.idle_time));
    let (mut seen, mut stalled, mut ending) = (0, None, false);
    let result = loop {
        tokio::select! {
            biased;
            result = &mut connection => break result,
            () = draining.started(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
                period.as_mut().reset(Instant::now() + limits.head_time);
            }
            () = &mut period => {
                let now = streams.begun();
                let open = streams.end_period();
                let waiting = writes.waiting();
                if waiting.is_some() && waiting == stalled {
                    tracing::debug!("connection given up: its peer takes nothing of an answer");
                    return;
                }
                stalled = waiting;
                if open == 0 && now == seen {
                    // Nobody is left to wait for; a peer that was told already has had its time to say goodbye.
                    if ending || now == 0 {
                        return;
                    }
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                seen = now;
                let next = if ending && open == 0 { limits.head_time } else { limits.idle_time };
                period.as_mut().reset(Instant::now() + next);
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

/// The streams of a connection that have not ended.
#[derive(Default)]
struct Streams {
    begun: AtomicU64,
    open: Mutex<Vec<Stream>>,
    /// The one that is to be run next.
    newest: Mutex<Weak<Place>>,
}

/// Runs streams, and leaves with each one's place by what it can be ended. hyper has a stream run as soon as its request was
/// handed to the service.
#[derive(Clone)]
struct Spawner(Arc<Streams>);

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let newest = std::mem::take(&mut *self.0.newest.lock().unwrap_or_else(PoisonError::into_inner));
        let task = tokio::spawn(stream);
        if let Some(place) = newest.upgrade() {
            let _ = place.task.set(task.abort_handle());
        }
    }
}

/// One of them, until its answer is through, and, where that switched protocols, until nobody uses it any more.
struct Stream {
    place: Weak<Place>,
    switch: Kept,
}

impl Stream {
    fn is_open(&self) -> bool {
        self.place.strong_count() > 0 || self.switch.is_kept()
    }
}

/// Counts what was taken of a stream's answer.
#[derive(Default)]
struct Place {
    /// Without it, h2 resets the stream.
    task: OnceLock<AbortHandle>,
    /// 0 while the peer takes everything, or else one more than the periods that it has taken nothing for.
    held: AtomicU64,
}

impl Streams {
    fn begin(&self, switch: &PassThrough) -> Arc<Place> {
        let place = Arc::<Place>::default();
        self.begun.fetch_add(1, Ordering::Relaxed);
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&place);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Now and then, so that the list isn't longer than twice what is open.
        if open.len() == open.capacity() {
            open.retain(Stream::is_open);
        }
        open.push(Stream {
            place: Arc::downgrade(&place),
            switch: switch.kept(),
        });
        place
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Ends the streams of which nothing was taken for all of a period, and returns how many are open.
    fn end_period(&self) -> usize {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|stream| {
            if let Some(place) = stream.place.upgrade()
                && place.end_period() > 2
                && let Some(task) = place.task.get()
            {
                tracing::debug!("stream given up: its peer takes nothing of an answer");
                task.abort();
            }
            stream.is_open()
        });
        open.len()
    }
}

impl Place {
    /// Whether a part of the answer waits for the peer to take the one before it.
    fn hold(&self, holds: bool) {
        self.held.store(u64::from(holds), Ordering::Relaxed);
    }

    fn end_period(&self) -> u64 {
        match self.held.load(Ordering::Relaxed) {
            0 => 0,
            held => {
                self.held.fetch_add(1, Ordering::Relaxed);
                held + 1
            }
        }
    }
}

/// An answer's body, which is asked for its next part when the peer has taken enough of what there was.
struct Streamed<B> {
    body: B,
    place: Arc<Place>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Streamed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.place.hold(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "http2_tests.rs"]
mod tests;
