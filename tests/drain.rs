//! What a drain does to those who are in the middle of something: requests and streams finish, nothing new begins, and
//! readiness says so first.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::{Mesh, POD_UID, RecordingApp, TOKEN, ok, read_until, status};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// No drain of these tests takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// An app that answers a request when it is told to, piece by piece: a response's head and body in whatever parts.
struct PacedApp {
    parts: mpsc::UnboundedSender<Vec<u8>>,
    /// Notified when a request's head has arrived.
    asked: Arc<Notify>,
}

async fn paced() -> (RecordingApp, PacedApp) {
    let (parts, queue) = mpsc::unbounded_channel::<Vec<u8>>();
    let (queue, asked) = (Arc::new(Mutex::new(queue)), Arc::new(Notify::new()));
    let heard = Arc::clone(&asked);
    let app = RecordingApp::serving(move |mut stream| {
        let (queue, heard) = (Arc::clone(&queue), Arc::clone(&heard));
        async move {
            while read_head(&mut stream).await {
                heard.notify_one();
                // An empty part ends the answer.
                while let Some(part) = queue.lock().await.recv().await.filter(|part| !part.is_empty()) {
                    stream.write_all(&part).await.unwrap();
                }
            }
        }
    });
    (app.await, PacedApp { parts, asked })
}

async fn read_head(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return false;
        }
    }
    true
}

impl PacedApp {
    fn say(&self, part: impl Into<Vec<u8>>) {
        self.parts.send(part.into()).unwrap();
    }

    fn end(&self) {
        self.say("");
    }
}

/// A router that can be told to drain.
struct Draining {
    http: SocketAddr,
    health: SocketAddr,
    start: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

fn router(mesh: &Mesh, flags: &[&str]) -> Draining {
    let router = mesh.bind_router("default/alpha", POD_UID, flags);
    let (http, health) = (router.http_address(), router.health_address());
    let (start, started) = oneshot::channel();
    let ended = tokio::spawn(async move {
        let started = async {
            let _ = started.await;
        };
        router.run(started).await.unwrap();
    });
    Draining {
        http,
        health,
        start,
        ended,
    }
}

/// Sends a request that keeps its connection.
async fn ask(router: SocketAddr, mesh: &Mesh, fields: &str) -> TcpStream {
    let mut stream = TcpStream::connect(router).await.unwrap();
    let head = mesh
        .head("GET /slow HTTP/1.1", fields)
        .replace("Connection: close\r\n", "");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// What a probe is told.
async fn probe(health: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(health).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned();
    (status(&answer), body)
}

/// Waits until readiness says that the drain has started.
async fn until_unready(health: SocketAddr) {
    let unready = async {
        while probe(health, "/readyz").await != (503, "draining".to_owned()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, unready).await.unwrap();
}

async fn ended(stream: &mut TcpStream) -> bool {
    matches!(timeout(PATIENCE, stream.read(&mut [0])).await.unwrap(), Ok(0) | Err(_))
}

#[tokio::test]
async fn a_draining_router_finishes_requests_and_streams_and_begins_nothing_new() {
    let (app, paced) = paced().await;
    let mesh = Mesh::open(app).await;
    let draining = router(&mesh, &[]);
    assert_eq!(probe(draining.health, "/readyz").await, (200, "ok".to_owned()));

    let mut idle = ask(draining.http, &mesh, "").await;
    paced.say(ok("kept"));
    paced.end();
    read_until(&mut idle, b"kept").await;
    paced.asked.notified().await;
    let mut stream = ask(draining.http, &mesh, "").await;
    paced.asked.notified().await;
    paced.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    read_until(&mut stream, b"one\r\n").await;

    draining.start.send(()).unwrap();
    until_unready(draining.health).await;
    assert_eq!(probe(draining.health, "/healthz").await.0, 200);
    assert!(
        ended(&mut idle).await,
        "an idle connection outlived the start of the drain"
    );
    let begun = TcpStream::connect(draining.http).await;
    assert!(
        begun.is_err() || ended(&mut begun.unwrap()).await,
        "a new connection was served"
    );
    assert!(!draining.ended.is_finished());

    paced.say("3\r\ntwo\r\n");
    read_until(&mut stream, b"two\r\n").await;
    paced.say("0\r\n\r\n");
    paced.end();
    assert_eq!(read_until(&mut stream, b"0\r\n\r\n").await, "0\r\n\r\n");
    assert!(ended(&mut stream).await);
    timeout(PATIENCE, draining.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_router_that_is_no_longer_ready_serves_new_connections_for_a_while() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let draining = router(&mesh, &["--drain-delay=1h", "--shutdown-timeout=2h"]);
    let mut kept = ask(draining.http, &mesh, "").await;
    read_until(&mut kept, b"hello").await;
    draining.start.send(()).unwrap();
    until_unready(draining.health).await;
    let mut begun = ask(draining.http, &mesh, "").await;
    assert_eq!(status(&read_until(&mut begun, b"hello").await), 200);
    let again = mesh.head("GET / HTTP/1.1", "").replace("Connection: close\r\n", "");
    kept.write_all(again.as_bytes()).await.unwrap();
    assert_eq!(status(&read_until(&mut kept, b"hello").await), 200, "a kept connection");
    assert!(!draining.ended.is_finished());
    draining.ended.abort();
}

#[tokio::test]
async fn an_answer_that_had_not_begun_comes_whole_and_the_connection_closes_behind_it() {
    let (app, paced) = paced().await;
    let mesh = Mesh::open(app).await;
    let draining = router(&mesh, &[]);
    let mut idle = ask(draining.http, &mesh, "").await;
    paced.say(ok("kept"));
    paced.end();
    read_until(&mut idle, b"kept").await;
    paced.asked.notified().await;
    let mut stream = ask(draining.http, &mesh, "").await;
    paced.asked.notified().await;
    draining.start.send(()).unwrap();
    // Both connections hear of the drain in the same moment, and the idle one shows when that was.
    assert!(ended(&mut idle).await);
    paced.say(ok("late but whole"));
    paced.end();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.ends_with("\r\n\r\nlate but whole"), "{answer}");
    assert!(
        answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
    timeout(PATIENCE, draining.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_tunnel_works_on_during_the_drain() {
    let (app, paced) = paced().await;
    let mesh = Mesh::open(app).await;
    let draining = router(&mesh, &[]);
    let mut stream = TcpStream::connect(draining.http).await.unwrap();
    let head = mesh
        .head("GET /socket HTTP/1.1", "Upgrade: echo\r\n")
        .replace("Connection: close", "Connection: upgrade");
    stream.write_all(head.as_bytes()).await.unwrap();
    paced.asked.notified().await;
    paced.say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(status(&read_until(&mut stream, b"\r\n\r\n").await), 101);
    draining.start.send(()).unwrap();
    until_unready(draining.health).await;
    paced.say("still here");
    assert_eq!(read_until(&mut stream, b"still here").await, "still here");
    assert!(!draining.ended.is_finished());
    drop(stream);
    paced.end();
    timeout(PATIENCE, draining.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_does_not_wait_longer_than_its_budget() {
    let (app, paced) = paced().await;
    let mesh = Mesh::open(app).await;
    let draining = router(&mesh, &["--shutdown-timeout=200ms"]);
    let _stream = ask(draining.http, &mesh, "").await;
    paced.asked.notified().await;
    draining.start.send(()).unwrap();
    timeout(PATIENCE, draining.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_draining_gate_finishes_what_it_has_and_takes_no_new_connection() {
    let (app, paced) = paced().await;
    let mesh = Mesh::open(app).await;
    let mut stream = ask(mesh.router, &mesh, "").await;
    paced.asked.notified().await;
    mesh.gate_drain.start();
    // The gate's listener goes with the start of the drain.
    let refused = async {
        while TcpStream::connect(("127.0.0.1", mesh.ports.mesh)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
    paced.say(ok("whole"));
    paced.end();
    let answer = read_until(&mut stream, b"whole").await;
    assert_eq!(status(&answer), 200, "{answer}");
    // The router must not use the connection that the gate closed.
    let answer = mesh.send(mesh.head("GET / HTTP/1.1", "")).await;
    assert_eq!(status(&answer), 502, "{answer}");
    assert!(!answer.contains(TOKEN), "{answer}");
}
