use super::*;
use crate::drain;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
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
async fn a_slow_reader_is_not_given_up() {
    let (_drain, draining) = drain::channel();
    // Far more than both ends' windows and buffers hold.
    let large = || async { Response::new(Pieces(400)) };
    let (mut slow, _task) = served(draining, large).await;
    let mut body = slow.send_request(request()).await.unwrap().into_body();
    let mut taken = 0;
    while let Some(frame) = body.frame().await {
        taken += frame.unwrap().into_data().unwrap().len();
        sleep(IDLE.mul_f32(0.1)).await;
    }
    assert_eq!(taken, 400 * 16 * 1024);
}

/// Behind a proxy, others' streams are on the same connection.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_reset_and_the_others_on_its_connection_go_on() {
    let (_drain, draining) = drain::channel();
    let (near, far) = duplex(64 * 1024);
    let task = tokio::spawn(async move {
        let handle = |request: Request<Incoming>, _| async move {
            let pieces = if request.uri().path() == "/large" { 400 } else { 1 };
            Response::new(Pieces(pieces))
        };
        let front = (Windows::FRONT, ExtendedConnects::Served);
        http2(far, &Arc::default(), front, draining, handle).await;
    });
    let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut client, connection) = client.handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    let large = Request::get("http://a/large").body(Full::<Bytes>::default()).unwrap();
    let mut unread = client.send_request(large).await.unwrap().into_body();
    for _ in 0..8 {
        sleep(IDLE.mul_f32(0.5)).await;
        let answer = client.send_request(request()).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 16 * 1024);
    }
    let reset = loop {
        match unread.frame().await.expect("it looks whole") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let reset = reset.source().and_then(|error| error.downcast_ref::<h2::Error>());
    assert_eq!(reset.and_then(h2::Error::reason), Some(h2::Reason::CANCEL));
    assert!(!task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_at_all_is_given_up() {
    let (_drain, draining) = drain::channel();
    let (mut deaf, far) = duplex(1024);
    let task = tokio::spawn(async move {
        let front = (Windows::FRONT, ExtendedConnects::Served);
        http2(far, &Arc::default(), front, draining, |_, _| async {
            Response::new(Pieces(400))
        })
        .await;
    });
    let get = [0x82, 0x84, 0x86, 0x41, 1, b'a'];
    let head = [&[0, 0, 6, 1, 5, 0, 0, 0, 1], &get[..]].concat();
    let begun = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], &head].concat();
    deaf.write_all(&begun).await.unwrap();
    let given_up = tokio::time::timeout(IDLE.mul_f32(3.1), task).await;
    given_up.expect("still held").unwrap();
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

/// A client that sends whatever frames it is told, on a connection whose settings are agreed on, to a service that neither reads
/// nor answers.
struct Raw {
    stream: DuplexStream,
    task: JoinHandle<()>,
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, _, a, b] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0, a, b, kind, flags, 0, 0, 0, stream], payload].concat()
}

impl Raw {
    async fn start(draining: Draining) -> Self {
        let (mut stream, far) = duplex(1024 * 1024);
        let task = tokio::spawn(async move {
            let front = (Windows::FRONT, ExtendedConnects::Served);
            let handle = |request: Request<Incoming>, _| async move {
                let _unread = request;
                std::future::pending::<Response<Full<Bytes>>>().await
            };
            http2(far, &Arc::default(), front, draining, handle).await;
        });
        let start = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
        stream.write_all(&start).await.unwrap();
        let mut raw = Self { stream, task };
        while raw.next().await.unwrap().0[3] != 4 {}
        raw.send(&frame(4, 1, 0, &[])).await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Opens a stream whose body is to come: a POST to `/` of host `a`.
    async fn open(&mut self, stream: u8) {
        self.send(&frame(1, 4, stream, &[0x83, 0x84, 0x86, 0x41, 1, b'a']))
            .await;
    }

    /// Sends as much of a stream's body as a client may send that is told of no more room.
    async fn fill(&mut self, stream: u8) {
        let piece = frame(0, 0, stream, &[0; 16 * 1024]);
        self.send(&piece.repeat(8)).await;
    }

    /// The next frame's header and payload.
    async fn next(&mut self) -> Option<([u8; 9], Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some((head, payload))
    }

    /// The next reset: its stream, and its reason. The stream is 0 for the connection's end.
    async fn reset(&mut self) -> (u8, u8) {
        loop {
            let (head, payload) = self.next().await.expect("closed without a reason");
            match head[3] {
                3 => return (head[8], payload[3]),
                7 => return (0, payload[7]),
                _ => {}
            }
        }
    }
}

const FLOW_CONTROL_ERROR: u8 = 3;

#[tokio::test(start_paused = true)]
async fn each_stream_has_128_kib_that_nobody_reads_and_takes_no_room_from_the_others() {
    let (_drain, draining) = drain::channel();
    let mut raw = Raw::start(draining).await;
    for stream in (1..198).step_by(2) {
        raw.open(stream).await;
        raw.fill(stream).await;
    }
    raw.send(&frame(0, 0, 197, b"x")).await;
    assert_eq!(raw.reset().await, (197, FLOW_CONTROL_ERROR));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_client_is_asked_each_minute_and_is_gone_when_it_does_not_answer_in_twenty_seconds() {
    let (_drain, draining) = drain::channel();
    let mut raw = Raw::start(draining).await;
    raw.open(1).await;
    let started = Instant::now();
    for minute in 1..=3 {
        let ping = loop {
            let (head, payload) = raw.next().await.unwrap();
            if (head[3], head[4]) == (6, 0) {
                break payload;
            }
        };
        assert_eq!(started.elapsed().as_secs(), 60 * minute);
        if minute < 3 {
            raw.send(&frame(6, 1, 0, &ping)).await;
        }
    }
    raw.task.await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 200);
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
