//! Serving HTTP/1.1 on one accepted stream: the runtime, the guard in front of hyper, an end to idleness, and a drain that
//! lets requests finish. [`http2()`] is the same for HTTP/2.

mod http2;

pub use http2::{ExtendedConnects, http2};

use crate::drain::Draining;
use crate::framing::{Limits, PassThrough, RequestGuard};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::error::Error;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};

/// Tasks that run before the next look at the sockets. Tokio's 61 is fewer than one round of a busy proxy has, which then
/// asks the kernel several times for what it would have been told at once.
const TASKS_PER_LOOK: u32 = 1024;

/// A runtime for one thread of requests: nothing on a request's way changes threads.
///
/// # Errors
/// The system's, for want of file descriptors.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .event_interval(TASKS_PER_LOOK)
        .enable_all()
        .build()
}

/// Serves requests on `stream` until it ends, lies idle for too long, or the drain starts, and then finishes what is
/// under way.
///
/// Idle time is counted in whole [`Limits::idle_time`]s: a connection on which no request began for all of one is closed
/// after the answer that is under way, if there is one. One whose peer took nothing of an answer for all of one is closed
/// in the middle of it. A timer per connection, not per request.
///
/// `handle` is given each request, the refused ones too (see [`crate::framing::refusal`]), and the switch that it must
/// open before it answers 101.
pub async fn http1<S, H, F, B>(stream: S, limits: &Arc<Limits>, mut draining: Draining, handle: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, PassThrough) -> F,
    F: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let writes = Arc::new(Writes::default());
    let stream = Watched {
        io: stream,
        writes: Arc::clone(&writes),
    };
    let (io, pass_through) = RequestGuard::new(stream, Arc::clone(limits));
    let begun = AtomicU64::new(0);
    let service = service_fn(|request| {
        begun.fetch_add(1, Ordering::Relaxed);
        let answer = handle(request, pass_through.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = limits
        .server_builder()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = pin!(connection);
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
                let now = begun.load(Ordering::Relaxed);
                if now == 0 {
                    // hyper waits for a first request even when told to end.
                    return;
                }
                let waiting = writes.waiting();
                if waiting.is_some() && waiting == stalled {
                    // hyper waits for a reader for as long as it takes, and with it all that the answer holds.
                    tracing::debug!("connection given up: its peer takes nothing of an answer");
                    return;
                }
                stalled = waiting;
                if now == seen && !ending {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                seen = now;
                period.as_mut().reset(Instant::now() + limits.idle_time);
            }
        }
    };
    if let Err(error) = result {
        // Peers break off all the time; who wants to see it asks for it.
        tracing::debug!(%error, "connection ended");
    }
}

/// What became of the writes on a connection.
#[derive(Debug, Default)]
struct Writes {
    done: AtomicU64,
    waiting: AtomicBool,
}

impl Writes {
    /// How many were done before the one that the peer lets wait; `None` if none waits.
    fn waiting(&self) -> Option<u64> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        waiting.then(|| self.done.load(Ordering::Relaxed))
    }

    fn note<T>(&self, write: Poll<T>) -> Poll<T> {
        self.waiting.store(write.is_pending(), Ordering::Relaxed);
        if write.is_ready() {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        write
    }
}

/// A stream whose writes are noted.
struct Watched<S> {
    io: S,
    writes: Arc<Writes>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.io).poll_write(cx, buf);
        self.writes.note(write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.writes.note(write)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let write = Pin::new(&mut self.io).poll_flush(cx);
        self.writes.note(write)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let write = Pin::new(&mut self.io).poll_shutdown(cx);
        self.writes.note(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain;
    use bytes::Bytes;
    use http_body_util::Full;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    fn served(draining: Draining) -> (DuplexStream, JoinHandle<()>) {
        let (client, stream) = duplex(4096);
        let limits = Arc::new(Limits::default());
        let task = tokio::spawn(async move {
            let answer = |_, _| async {
                sleep(Duration::from_millis(10)).await;
                Response::new(Full::new(Bytes::from_static(b"ok")))
            };
            http1(stream, &limits, draining, answer).await;
        });
        (client, task)
    }

    async fn exchange(client: &mut DuplexStream) {
        client.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 256];
        let read = client.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed_and_one_in_use_is_not() {
        let (_drain, draining) = drain::channel();
        let (mut client, task) = served(draining.clone());
        for _ in 0..5 {
            exchange(&mut client).await;
            sleep(Limits::default().idle_time.mul_f32(0.9)).await;
        }
        assert!(!task.is_finished());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        task.await.unwrap();

        let (mut never_used, task) = served(draining);
        assert_eq!(never_used.read(&mut [0]).await.unwrap(), 0);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_of_an_answer_is_given_up_and_a_slow_one_is_not() {
        let (_drain, draining) = drain::channel();
        let large = || Response::new(Full::new(Bytes::from(vec![b'a'; 20_000])));
        let serve = |stream| {
            let (limits, draining) = (Arc::new(Limits::default()), draining.clone());
            tokio::spawn(async move { http1(stream, &limits, draining, |_, _| async { large() }).await })
        };
        let (mut slow, stream) = duplex(4096);
        let task = serve(stream);
        slow.write_all(REQUEST).await.unwrap();
        let mut taken = Vec::new();
        loop {
            sleep(Limits::default().idle_time.mul_f32(0.9)).await;
            if slow.read_buf(&mut taken).await.unwrap() == 0 {
                break;
            }
        }
        assert!(taken.starts_with(b"HTTP/1.1 200") && taken.ends_with(&vec![b'a'; 20_000]));
        task.await.unwrap();

        let (mut deaf, stream) = duplex(4096);
        let task = serve(stream);
        deaf.write_all(REQUEST).await.unwrap();
        let given_up = tokio::time::timeout(Limits::default().idle_time.mul_f32(2.1), task).await;
        given_up.expect("still held").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_finishes_the_request_under_way_and_closes() {
        let (drain, draining) = drain::channel();
        let (mut idle, idle_task) = served(draining.clone());
        exchange(&mut idle).await;
        let (mut busy, busy_task) = served(draining);
        busy.write_all(REQUEST).await.unwrap();
        sleep(Duration::from_millis(5)).await;
        assert!(drain.finish(Duration::from_secs(1)).await);
        let mut answer = Vec::new();
        busy.read_to_end(&mut answer).await.unwrap();
        assert!(answer.ends_with(b"ok"));
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
        idle_task.await.unwrap();
        busy_task.await.unwrap();
    }
}
