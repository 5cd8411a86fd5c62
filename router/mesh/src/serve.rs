//! Serving HTTP/1.1 on one accepted stream: the runtime, the guard in front of hyper, an end to idleness, and a drain that
//! lets requests finish.

use crate::drain::Draining;
use crate::framing::{Limits, PassThrough, RequestGuard};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncWrite};
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
/// after the answer that is under way, if there is one. A timer per connection, not per request.
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
    let (mut seen, mut ending) = (0, false);
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
