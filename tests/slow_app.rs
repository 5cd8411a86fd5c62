//! The app is an attacker that takes its time: with an answer, with a request, with its end. Each wait has a limit, and
//! nobody is waited for who is gone.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_mesh::policy::model::DefaultPolicy;
use sandgate_tests::{
    Mesh, PATIENCE, Ports, RecordingApp, Step, default_policy, exchange_without_end, looks_complete, ok, read_until,
    status,
};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// A mesh whose gate waits half a second for the app.
async fn impatient(app: RecordingApp) -> Mesh {
    let policy = |ports: Ports| default_policy(DefaultPolicy::Authenticated, vec![ports.app]);
    Mesh::start_with(app, policy, |settings| {
        settings.proxy_timeout = Duration::from_millis(500);
    })
    .await
}

/// What happens at an app that reports it.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// The head of a request came.
    Asked(String),
    /// The connection was closed by the other side.
    Left,
}

/// An app that answers each connection's first request with `start` and then with `piece` again and again, with `pause`
/// between, until the other side leaves. Without a piece it says nothing more.
async fn tireless(
    start: &'static [u8],
    piece: &'static [u8],
    pause: Duration,
) -> (RecordingApp, mpsc::UnboundedReceiver<Event>) {
    let (report, events) = mpsc::unbounded_channel();
    let app = RecordingApp::serving(move |mut stream| {
        let report = report.clone();
        async move {
            let head = read_until(&mut stream, b"\r\n\r\n").await;
            report.send(Event::Asked(head)).unwrap();
            let mut written = stream.write_all(start).await;
            while written.is_ok() && !piece.is_empty() {
                sleep(pause).await;
                written = stream.write_all(piece).await;
            }
            while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
            report.send(Event::Left).unwrap();
        }
    });
    (app.await, events)
}

/// The app got exactly this one request, and its connection was closed.
async fn assert_asked_once_and_left(events: &mut mpsc::UnboundedReceiver<Event>, line: &str, context: &str) {
    let mut next = async || timeout(PATIENCE, events.recv()).await.expect(context).unwrap();
    let Event::Asked(head) = next().await else {
        panic!("{context}: not asked")
    };
    assert!(head.starts_with(line), "{context}: {head}");
    assert_eq!(next().await, Event::Left, "{context}");
    assert!(events.try_recv().is_err(), "{context}: asked again");
}

#[tokio::test]
async fn a_head_that_drips_past_the_deadline_is_504_and_its_connection_is_closed() {
    let pause = Duration::from_millis(10);
    for (name, start, piece) in [
        ("nothing", "", ""),
        ("one byte", "H", ""),
        ("half a status line", "HTTP/1.1 200", "0"),
        ("fields", "HTTP/1.1 200 OK\r\n", "X-A: b\r\n"),
        ("a value", "HTTP/1.1 200 OK\r\nX-A: ", "a"),
        (
            "all but the last byte",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r",
            "",
        ),
        (
            "informational answers",
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 103 ",
            "a",
        ),
    ] {
        let (app, mut events) = tireless(start.as_bytes(), piece.as_bytes(), pause).await;
        let mesh = impatient(app).await;
        let response = mesh.send(mesh.head("GET /honest HTTP/1.1", "")).await;
        assert_eq!(status(&response), 504, "{name}: {response}");
        assert!(
            response.contains("Timed out waiting for the backend sandbox: alpha"),
            "{response}"
        );
        assert_asked_once_and_left(&mut events, "GET /honest ", name).await;
    }
    // A caller that will not wait so long is not kept waiting by the gate's own limit, and the app is told no less.
    let (app, mut events) = tireless(b"HTTP/1.1 200 OK\r\nX-A: ", b"a", pause).await;
    let mesh = Mesh::open(app).await;
    let response = mesh
        .send(mesh.head("GET /brief HTTP/1.1", "X-Sandbox-Timeout: 0.5\r\n"))
        .await;
    assert_eq!(status(&response), 504, "{response}");
    assert_asked_once_and_left(&mut events, "GET /brief ", "the caller's limit").await;
}

#[tokio::test]
async fn informational_answers_one_at_a_time_are_502_like_all_at_once() {
    let (app, mut events) = tireless(b"", b"HTTP/1.1 102 Processing\r\n\r\n", Duration::from_millis(5)).await;
    let mesh = Mesh::open(app).await;
    let response = mesh.send(mesh.head("GET / HTTP/1.1", "")).await;
    assert_eq!(status(&response), 502, "{response}");
    assert_asked_once_and_left(&mut events, "GET / ", "one at a time").await;
}

#[tokio::test]
async fn an_app_that_takes_no_byte_of_an_upload_is_504() {
    let app = RecordingApp::serving(|stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    });
    let mesh = impatient(app.await).await;
    let head = mesh.head("POST /up HTTP/1.1", "Content-Length: 1000000000\r\n");
    let stream = TcpStream::connect(mesh.router).await.unwrap();
    let response = exchange_without_end(stream, head, vec![b'a'; 65_536], Duration::ZERO).await;
    assert_eq!(status(&response), 504, "{response}");
}

#[tokio::test]
async fn an_answer_that_falls_silent_breaks_off_and_its_connection_is_closed() {
    for (name, start) in [
        ("a length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        (
            "chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ),
        ("neither", "HTTP/1.1 200 OK\r\n\r\nhalf"),
    ] {
        let (app, mut events) = tireless(start.as_bytes(), b"", Duration::ZERO).await;
        let mesh = impatient(app).await;
        let response = mesh.send(mesh.head("GET /honest HTTP/1.1", "")).await;
        assert!(
            status(&response) == 200 && !looks_complete(&response),
            "{name}: {response}"
        );
        assert_asked_once_and_left(&mut events, "GET /honest ", name).await;
    }
}

#[tokio::test]
async fn an_app_is_left_when_its_client_is_gone() {
    let pause = Duration::from_millis(1);
    for (name, start, piece, awaited) in [
        ("before the answer", "", "", ""),
        (
            "in an answer without end",
            "HTTP/1.1 200 OK\r\n\r\nfirst",
            "more",
            "more",
        ),
        (
            "in chunks without end",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "4\r\nmore\r\n",
            "more",
        ),
        (
            "in a silence",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst",
            "",
            "first",
        ),
    ] {
        let (app, mut events) = tireless(start.as_bytes(), piece.as_bytes(), pause).await;
        let mesh = Mesh::open(app).await;
        let mut stream = TcpStream::connect(mesh.router).await.unwrap();
        let head = mesh.head("GET /honest HTTP/1.1", "");
        stream.write_all(head.as_bytes()).await.unwrap();
        read_until(&mut stream, awaited.as_bytes()).await;
        let Some(Event::Asked(_)) = timeout(PATIENCE, events.recv()).await.expect(name) else {
            panic!("{name}: not asked")
        };
        drop(stream);
        let left = timeout(PATIENCE, events.recv()).await.expect(name);
        assert_eq!(left, Some(Event::Left), "{name}");
    }
}

#[tokio::test]
async fn an_answer_without_end_that_nobody_takes_is_held_back() {
    let (report, mut stalled) = mpsc::unbounded_channel();
    let app = RecordingApp::serving(move |mut stream| {
        let report = report.clone();
        async move {
            read_until(&mut stream, b"\r\n\r\n").await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let (piece, mut written) = (vec![b'a'; 65_536], 0);
            // Who takes more although nobody takes it from him, takes it without end.
            while let Ok(result) = timeout(Duration::from_millis(500), stream.write(&piece)).await {
                written += result.unwrap();
                assert!(written < 200_000_000, "an answer is taken without end");
            }
            report.send(written).unwrap();
        }
    });
    let mesh = Mesh::open(app.await).await;
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    let head = mesh.head("GET / HTTP/1.1", "");
    stream.write_all(head.as_bytes()).await.unwrap();
    let written = timeout(PATIENCE, stalled.recv()).await.unwrap();
    assert!(written.is_some_and(|written| written > 0), "{written:?}");
}

#[tokio::test]
async fn an_upload_that_is_answered_early_arrives_whole_although_others_ask_meanwhile() {
    let app = RecordingApp::start(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        if text.contains(" HTTP/1.1\r\n") && text.contains("\r\n\r\n") {
            Step::Answer(ok("early"))
        } else {
            Step::Wait
        }
    });
    let mesh = Mesh::open(app.await).await;
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    let head = mesh.head("POST /long HTTP/1.1", "Content-Length: 8\r\n");
    stream
        .write_all(head.replace("Connection: close\r\n", "").as_bytes())
        .await
        .unwrap();
    read_until(&mut stream, b"early").await;
    for _ in 0..3 {
        let response = mesh.send(mesh.head("GET /short HTTP/1.1", "")).await;
        assert_eq!(status(&response), 200, "{response}");
    }
    stream.write_all(b"the rest").await.unwrap();
    let whole = async {
        while !mesh
            .app
            .requests()
            .iter()
            .any(|request| request.complete && request.body == b"the rest")
        {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, whole).await.expect("the upload was cut");
}
