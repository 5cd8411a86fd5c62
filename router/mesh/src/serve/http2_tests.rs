use super::*;
use crate::drain;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;
use tokio::io::duplex;
use tokio::task::JoinHandle;

type Client = SendRequest<Full<Bytes>>;

async fn served<F, B>(draining: Draining, answer: impl Fn() -> F + Send + Sync + 'static) -> (Client, JoinHandle<()>)
where
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Unpin + Send + 'static,
{
    let (near, far) = duplex(64 * 1024);
    let task = tokio::spawn(async move {
        let front = (Windows::FRONT, ExtendedConnects::Served);
        http2(far, &Arc::default(), front, draining, |_, _| answer()).await;
    });
    let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (client, connection) = client.handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    (client, task)
}

fn request() -> Request<Full<Bytes>> {
    Request::get("http://a/").body(Full::default()).unwrap()
}

async fn ok() -> Response<Full<Bytes>> {
    sleep(Duration::from_millis(10)).await;
    Response::new(Full::new(Bytes::from_static(b"ok")))
}

async fn exchange(client: &mut Client) {
    let answer = client.send_request(request()).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
}

const IDLE: Duration = Duration::from_secs(180);

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_and_one_in_use_is_not() {
    let (_drain, draining) = drain::channel();
    let (mut client, task) = served(draining.clone(), ok).await;
    for _ in 0..5 {
        exchange(&mut client).await;
        sleep(IDLE.mul_f32(0.9)).await;
    }
    assert!(!task.is_finished());
    task.await.unwrap();
    assert!(client.send_request(request()).await.is_err());

    let (_never_used, task) = served(draining, ok).await;
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_lasts_keeps_its_connection() {
    let (_drain, draining) = drain::channel();
    let slow = || async {
        sleep(IDLE * 5).await;
        ok().await
    };
    let (mut client, task) = served(draining, slow).await;
    exchange(&mut client).await;
    assert!(!task.is_finished());
}

/// After its 200, an extended CONNECT has no answer under way any more.
#[tokio::test(start_paused = true)]
async fn a_stream_that_switched_protocols_keeps_its_connection_until_nobody_uses_it() {
    let (_drain, draining) = drain::channel();
    let (near, far) = duplex(64 * 1024);
    let kept = Arc::new(Mutex::new(None));
    let keeper = Arc::clone(&kept);
    let task = tokio::spawn(async move {
        let front = (Windows::FRONT, ExtendedConnects::Served);
        let handle = |_, switch| {
            *keeper.lock().unwrap() = Some(switch);
            ok()
        };
        http2(far, &Arc::default(), front, draining, handle).await;
    });
    let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut client, connection) = client.handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    exchange(&mut client).await;
    sleep(IDLE * 5).await;
    assert!(!task.is_finished());
    drop(kept.lock().unwrap().take());
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_of_an_answer_is_given_up_and_a_slow_one_is_not() {
    let (_drain, draining) = drain::channel();
    // Far more than both ends' windows and buffers hold.
    let large = || async { Response::new(Pieces(400)) };
    let (mut slow, _task) = served(draining.clone(), large).await;
    let mut body = slow.send_request(request()).await.unwrap().into_body();
    let mut taken = 0;
    while let Some(frame) = body.frame().await {
        taken += frame.unwrap().into_data().unwrap().len();
        sleep(IDLE.mul_f32(0.1)).await;
    }
    assert_eq!(taken, 400 * 16 * 1024);

    let (mut deaf, task) = served(draining, large).await;
    let answer = deaf.send_request(request()).await.unwrap();
    let given_up = tokio::time::timeout(IDLE.mul_f32(3.1), task).await;
    given_up.expect("still held").unwrap();
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn a_drain_finishes_the_stream_under_way_and_closes() {
    let (drain, draining) = drain::channel();
    let (mut idle, idle_task) = served(draining.clone(), ok).await;
    exchange(&mut idle).await;
    let (mut busy, busy_task) = served(draining, ok).await;
    let under_way = tokio::spawn(async move { exchange(&mut busy).await });
    sleep(Duration::from_millis(5)).await;
    assert!(drain.finish(Duration::from_secs(1)).await);
    under_way.await.unwrap();
    idle_task.await.unwrap();
    busy_task.await.unwrap();
}

/// A body in pieces that are all there.
struct Pieces(usize);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.0.checked_sub(1) else {
            return Poll::Ready(None);
        };
        self.0 = left;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'a'; 16 * 1024])))))
    }
}
