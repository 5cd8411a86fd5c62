//! A sandbox that never answers, or whose clients don't read, takes nothing from the sandbox beside it: all requests to that
//! one are answered, on the same worker thread.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::future::join_all;
use sandgate_tests::{Mesh, PATIENCE, RecordingApp, Step, ok, read_until, send, status, until};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Requests to the noisy one that are never answered, and as many whose answers nobody reads.
const NOISE: usize = 150;

/// An app that never answers, or never stops; and how many requests it has.
async fn noisy() -> (RecordingApp, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let app = RecordingApp::serving(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                    return;
                }
            }
            count.fetch_add(1, Ordering::SeqCst);
            if head.starts_with(b"GET /endless ") {
                let start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let mut written = stream.write_all(start).await;
                let chunk = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat();
                while written.is_ok() {
                    written = stream.write_all(&chunk).await;
                }
            }
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    (app.await, asked)
}

/// A mesh whose sandbox is noisy, and a router that knows a quiet one, too, on the same port of another address.
async fn beside(flags: &[&str]) -> (Mesh, SocketAddr, RecordingApp, Arc<AtomicUsize>) {
    let (app, asked) = noisy().await;
    let mesh = Mesh::open(app).await;
    let quiet = TcpListener::bind(("127.0.0.2", mesh.ports.app)).await.unwrap();
    let quiet = RecordingApp::answering_at(quiet, Step::Answer(ok("hello")));
    let flags = [&["--mesh=off", "--sandbox-endpoint=default/beta=127.0.0.2"], flags].concat();
    let router = mesh.run_router(&flags);
    (mesh, router, quiet, asked)
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

#[tokio::test]
async fn hanging_requests_and_answers_that_nobody_reads_keep_nobody_else_waiting() {
    let (mesh, router, quiet, asked) = beside(&[]).await;
    let noise = make_noise(&mesh, router).await;
    until("the noise is there", || asked.load(Ordering::SeqCst) == 2 * NOISE).await;
    ask_the_quiet_one(&mesh, router).await;
    assert_eq!(quiet.requests().len(), 300);
    // It was there all the time.
    for stream in &noise {
        assert!(stream.peer_addr().is_ok());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2 * NOISE);
}

#[tokio::test]
async fn with_a_limit_per_sandbox_the_noise_is_refused_where_it_begins() {
    const LIMIT: usize = 20;
    let limit = format!("--max-concurrent-requests-per-sandbox={LIMIT}");
    let (mesh, router, quiet, asked) = beside(&[&limit]).await;
    let mut noise = make_noise(&mesh, router).await;
    // Whoever is refused is told at once; whoever isn't hears nothing or more than that.
    let refused = join_all(noise.iter_mut().map(|stream| async move {
        let mut start = [0; 12];
        let heard = timeout(PATIENCE / 2, stream.read_exact(&mut start)).await;
        matches!(heard, Ok(Ok(_))) && start.ends_with(b" 429")
    }));
    let refused = refused.await.into_iter().filter(|refused| *refused).count();
    assert_eq!(refused, 2 * NOISE - LIMIT);
    assert_eq!(asked.load(Ordering::SeqCst), LIMIT);
    ask_the_quiet_one(&mesh, router).await;
    assert_eq!(quiet.requests().len(), 300);
    assert_eq!(asked.load(Ordering::SeqCst), LIMIT, "the app saw what was refused");
}
