//! A sandbox that never answers, or whose clients don't read, takes nothing from the sandbox beside it: all requests to that
//! one are answered, on the same worker thread.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::FutureExt;
use futures_util::future::join_all;
use sandgate_tests::{Mesh, PATIENCE, RecordingApp, Step, assert_detail, ok, read_until, send, status, until};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::coop::unconstrained;
use tokio::time::timeout;

/// Requests to the noisy one that are never answered, and as many whose answers nobody reads.
const NOISE: usize = 150;

/// What the noisy app has to do, counted by those who do it.
#[derive(Debug, Default)]
struct Noise {
    /// Requests that ever came.
    asked: AtomicUsize,
    /// Requests that it never answers and whose clients are still there.
    hanging: AtomicUsize,
    /// Endless answers of which nobody takes any more now.
    blocked: AtomicUsize,
}

/// One more in a count for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn in_count(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Noise {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Requests that hang, and answers that nobody reads.
    fn under_way(&self) -> (usize, usize) {
        (self.hanging.load(Ordering::SeqCst), self.blocked.load(Ordering::SeqCst))
    }

    /// Answers for as long as somebody takes it.
    async fn answer_without_end(&self, stream: &mut TcpStream) {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n";
        if stream.write_all(head).await.is_err() {
            return;
        }
        loop {
            match stream.try_write(&[b'x'; 0x4000]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _blocked = Counted::in_count(&self.blocked);
                    let _ = stream.writable().await;
                }
                Err(_) => return,
            }
        }
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                return;
            }
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        if head.starts_with(b"GET /endless ") {
            self.answer_without_end(&mut stream).await;
        } else if head.starts_with(b"GET /page ") {
            let _ = stream.write_all(&ok("hello")).await;
        } else {
            let _hanging = Counted::in_count(&self.hanging);
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    }
}

/// An app that never answers, or never stops; but for `/page`.
async fn noisy() -> (RecordingApp, Arc<Noise>) {
    let noise = Arc::new(Noise::default());
    let served = Arc::clone(&noise);
    let app = RecordingApp::serving(move |stream| {
        let noise = Arc::clone(&served);
        async move { noise.serve(stream).await }
    });
    (app.await, noise)
}

/// A mesh whose sandbox is noisy, and a router that knows a quiet one, too, on the same port of another address.
async fn beside(flags: &[&str]) -> (Mesh, SocketAddr, RecordingApp, Arc<Noise>) {
    let (app, noise) = noisy().await;
    let mesh = Mesh::open(app).await;
    let quiet = TcpListener::bind(("127.0.0.2", mesh.ports.app)).await.unwrap();
    let quiet = RecordingApp::answering_at(quiet, Step::Answer(ok("hello")));
    let flags = [&["--mesh=off", "--sandbox-endpoint=default/beta=127.0.0.2"], flags].concat();
    let router = mesh.run_router(&flags);
    (mesh, router, quiet, noise)
}

/// Sends all the noise, and reads at most the beginning of an answer.
async fn make_noise(mesh: &Mesh, router: SocketAddr) -> Vec<TcpStream> {
    let paths = ["/hang", "/endless"];
    let requests = (0..2 * NOISE).map(|number| mesh.head(&format!("GET {} HTTP/1.1", paths[number % 2]), ""));
    join_all(requests.map(|request| async move {
        let mut stream = TcpStream::connect(router).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }))
    .await
}

/// Sends requests to the quiet one, some at a time over connections of their own and some on one that is kept.
async fn ask_the_quiet_one(mesh: &Mesh, router: SocketAddr) {
    let request = mesh.head("GET /page HTTP/1.1", "").replace("ID: alpha", "ID: beta");
    for _ in 0..10 {
        for answer in join_all((0..20).map(|_| send(router, &request))).await {
            assert_eq!(status(&answer), 200, "{answer}");
        }
    }
    let mut kept = TcpStream::connect(router).await.unwrap();
    let request = request.replace("Connection: close\r\n", "");
    for _ in 0..100 {
        kept.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(status(&read_until(&mut kept, b"hello").await), 200);
    }
}

/// How many of the noise's requests were told 429. Nothing of their answers is taken.
fn refused(noise: &[TcpStream]) -> usize {
    let is_refused = |stream: &&TcpStream| {
        let mut start = [0; 12];
        let _ = stream.peek(&mut start).now_or_never();
        start.ends_with(b" 429")
    };
    noise.iter().filter(is_refused).count()
}

/// All that came to the quiet one was meant for it.
fn assert_only_asked_for_pages(quiet: &RecordingApp) {
    let heads = quiet.heads();
    assert_eq!(heads.len(), 300);
    assert!(heads.iter().all(|head| head.starts_with("GET /page ")), "{heads:?}");
}

#[tokio::test]
async fn hanging_requests_and_answers_that_nobody_reads_keep_nobody_else_waiting() {
    let (mesh, router, quiet, noisy) = beside(&[]).await;
    let _noise = make_noise(&mesh, router).await;
    until("the noise is there, and stuck", || noisy.under_way() == (NOISE, NOISE)).await;
    ask_the_quiet_one(&mesh, router).await;
    assert_only_asked_for_pages(&quiet);
    // It was there all the time: nothing of it was ended to make room, or sent again, and nothing more was taken of the answers.
    assert_eq!(noisy.under_way(), (NOISE, NOISE));
    assert_eq!(noisy.asked(), 2 * NOISE);
}

#[tokio::test]
async fn with_a_limit_per_sandbox_the_noise_is_refused_where_it_begins() {
    const LIMIT: usize = 20;
    let limit = format!("--max-concurrent-requests-per-sandbox={LIMIT}");
    let (mesh, router, quiet, noisy) = beside(&[&limit]).await;
    let streams = make_noise(&mesh, router).await;
    // Whoever is refused is told at once. So many streams are more than one turn of a task may look at.
    let all_refused = until("all others are refused", || refused(&streams) == 2 * NOISE - LIMIT);
    unconstrained(all_refused).await;
    let is_stuck = || noisy.under_way().0 + noisy.under_way().1 == LIMIT;
    until("those within the limit are stuck", is_stuck).await;
    ask_the_quiet_one(&mesh, router).await;
    assert_only_asked_for_pages(&quiet);
    // The limit held, and held off, all the time.
    assert!(is_stuck(), "{noisy:?}");
    let one_more = mesh.head("GET /page HTTP/1.1", "");
    let told = "Too many concurrent requests to sandbox alpha (limit: 20).";
    assert_detail(&send(router, &one_more).await, 429, told, "one more");
    assert_eq!(unconstrained(async { refused(&streams) }).await, 2 * NOISE - LIMIT);
    assert_eq!(noisy.asked(), LIMIT, "the app saw what was refused");
    // What held the places was the noise.
    drop(streams);
    let let_in = async {
        while status(&send(router, &one_more).await) == 429 {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(PATIENCE, let_in).await.is_ok(), "the places never came free");
    assert_eq!(noisy.asked(), LIMIT + 1);
    until("the app is rid of the noise", || noisy.under_way() == (0, 0)).await;
}
