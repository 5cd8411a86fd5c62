//! CONTRACT section 4 on retries: connections are attempted again, requests are never sent again.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use rustix::process::Signal;
use sandgate_tests::processes::{ProcessMesh, get};
use sandgate_tests::{
    Mesh, PATIENCE, POD_UID, RecordingApp, Step, assert_detail, closed_port, head_to, ok, programs, read_until, send,
    status, until,
};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

const UNREACHABLE: &str = "Could not connect to the backend sandbox: alpha";
const GET: &str = "GET /page HTTP/1.1";

#[tokio::test]
async fn a_port_that_refuses_is_502() {
    let (_socket, port) = closed_port();
    let mesh = Mesh::open_with(RecordingApp::polite().await, &[port]).await;
    for router in mesh.run_both(&["--upstream-retry-initial-delay=10ms"]) {
        assert_detail(&send(router, head_to(port, GET, "")).await, 502, UNREACHABLE, "GET");
        let upload = head_to(port, "POST /page HTTP/1.1", "Content-Length: 4\r\n") + "body";
        assert_detail(&send(router, upload).await, 502, UNREACHABLE, "POST");
    }
    mesh.app.assert_untouched("another port");
}

#[tokio::test]
async fn a_connection_that_breaks_before_a_head_is_502_and_nothing_is_sent_twice() {
    for half in ["", "HTTP/1.1 2", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"] {
        let mesh = Mesh::open(RecordingApp::answering(Step::Close(half.into())).await).await;
        for router in mesh.run_both(&[]) {
            for line in ["GET /page HTTP/1.1", "PUT /page HTTP/1.1", "POST /page HTTP/1.1"] {
                let request = mesh.head(line, "Content-Length: 4\r\n") + "body";
                assert_detail(&send(router, request).await, 502, UNREACHABLE, line);
                let request = mesh.app.take_only_request();
                assert!(request.head.starts_with(line) && request.body == b"body", "{request:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_upload_that_the_app_breaks_off_at_its_head_is_502_and_not_begun_again() {
    let app = RecordingApp::start(|bytes| {
        let headed = bytes.windows(4).any(|end| end == b"\r\n\r\n");
        if headed { Step::Close(Vec::new()) } else { Step::Wait }
    });
    let mesh = Mesh::open(app.await).await;
    let body = "b".repeat(1_000_000);
    for router in mesh.run_both(&[]) {
        let head = mesh.head("PUT /page HTTP/1.1", "Content-Length: 1000000\r\n");
        assert_detail(&send(router, head + &body).await, 502, UNREACHABLE, "PUT");
        let request = mesh.app.take_only_request();
        assert!(!request.complete && request.head.starts_with("PUT /page HTTP/1.1\r\n"));
    }
}

/// An app that answers the first request of each connection and closes on the second without an answer.
async fn once_per_connection() -> RecordingApp {
    RecordingApp::start(|bytes| match bytes {
        bytes if !bytes.ends_with(b"\r\n\r\n") => Step::Wait,
        bytes if bytes.starts_with(b"GET /first ") => Step::Answer(ok("first")),
        _ => Step::Close(Vec::new()),
    })
    .await
}

#[tokio::test]
async fn a_kept_connection_that_breaks_under_a_request_is_502_and_nothing_is_sent_twice() {
    for line in [
        "GET /second HTTP/1.1",
        "DELETE /second HTTP/1.1",
        "POST /second HTTP/1.1",
    ] {
        let mesh = Mesh::open(once_per_connection().await).await;
        for (round, router) in (1..).zip(mesh.run_both(&[])) {
            let response = send(router, mesh.head("GET /first HTTP/1.1", "")).await;
            assert_eq!(status(&response), 200, "{response}");
            mesh.app.take_only_request();
            assert_detail(&send(router, mesh.head(line, "")).await, 502, UNREACHABLE, line);
            assert!(mesh.app.take_only_request().head.starts_with(line));
            assert_eq!(
                mesh.app.connections().len(),
                round,
                "{line} was not sent on the kept connection"
            );
        }
    }
}

#[tokio::test]
async fn an_idle_connection_that_the_app_closed_is_no_error() {
    // hello, and then the end of the connection that the router or the gate keeps.
    let mesh = Mesh::open(RecordingApp::answering(Step::Close(ok("hello"))).await).await;
    for router in mesh.run_both(&[]) {
        for round in 0..20 {
            let line = ["GET / HTTP/1.1", "POST / HTTP/1.1"][round % 2];
            let response = send(router, mesh.head(line, "Content-Length: 4\r\n") + "body").await;
            assert_eq!(status(&response), 200, "{round}: {response}");
            assert_eq!(mesh.app.take_only_request().body, b"body", "{round}");
        }
    }
}

/// An app that answers requests, and closes its connections when it is told to.
struct Closing {
    app: RecordingApp,
    heads: Arc<Mutex<Vec<String>>>,
    close: Arc<Notify>,
    closed: mpsc::UnboundedReceiver<()>,
}

impl Closing {
    async fn start() -> Self {
        let (heads, close) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let (report, closed) = mpsc::unbounded_channel();
        let (record, told) = (Arc::clone(&heads), Arc::clone(&close));
        let app = RecordingApp::serving(move |mut stream| {
            let (record, told, report) = (Arc::clone(&record), Arc::clone(&told), report.clone());
            async move {
                let mut head = Vec::new();
                loop {
                    tokio::select! {
                        read = stream.read_buf(&mut head) => assert!(read.unwrap() > 0, "closed by the other side"),
                        () = told.notified() => break,
                    }
                    if head.ends_with(b"\r\n\r\n") {
                        record
                            .lock()
                            .unwrap()
                            .push(String::from_utf8(std::mem::take(&mut head)).unwrap());
                        stream.write_all(&ok("hello")).await.unwrap();
                    }
                }
                drop(stream);
                report.send(()).unwrap();
            }
        });
        Self {
            app: app.await,
            heads,
            close,
            closed,
        }
    }
}

fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().starts_with('T')
}

/// Whether a connection at this local port holds bytes that nobody has read.
fn has_unread(address: SocketAddr) -> bool {
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // An established connection; a listener's queue is counted in the same place.
        fields[1].ends_with(&port) && fields[3] == "01" && !fields[4].ends_with(":00000000")
    })
}

#[tokio::test]
async fn a_request_that_crosses_the_apps_close_is_answered_and_never_sent_twice() {
    for flags in [&["--mesh=off"][..], &[]] {
        let mut app = Closing::start().await;
        let mesh = ProcessMesh::start(programs!(), app.app.port(), flags).await;
        // Whoever keeps the connection to the app is asleep when the request comes and the app closes: awake, it finds
        // both at once, the request first.
        let (keeper, inbox) = match flags {
            [] => (&mesh.sidecar, mesh.mesh),
            _ => (&mesh.router, mesh.http),
        };
        let mut client = TcpStream::connect(mesh.http).await.unwrap();
        client.write_all(mesh.head("GET /first", "").as_bytes()).await.unwrap();
        assert_eq!(status(&read_until(&mut client, b"hello").await), 200);
        keeper.signal(Signal::STOP);
        until("it has happened", || is_stopped(keeper.pid())).await;
        let second = mesh.head("POST /second", "Content-Length: 0\r\n");
        client.write_all(second.as_bytes()).await.unwrap();
        until("it has happened", || has_unread(inbox)).await;
        app.close.notify_one();
        timeout(PATIENCE, app.closed.recv()).await.unwrap().unwrap();
        keeper.signal(Signal::CONT);
        let answer = read_until(&mut client, b"\r\n\r\n").await;
        let heads = app.heads.lock().unwrap().clone();
        let seconds = heads
            .iter()
            .filter(|head| head.starts_with("POST /second HTTP/1.1\r\n"))
            .count();
        // Usually the close is noticed before a byte is sent. Where it isn't, nothing may be sent again.
        match status(&answer) {
            200 => assert_eq!(seconds, 1, "{heads:?}"),
            502 => assert!(seconds <= 1, "{heads:?}"),
            other => panic!("{other} {flags:?}: {answer}"),
        }
    }
}

/// What the router counted under `name`, in all.
async fn counted(metrics: SocketAddr, name: &str) -> u64 {
    let (_, text) = get(metrics, "/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

const RETRIES: &str = "sandbox_router_upstream_retries_total";

#[tokio::test]
async fn only_connection_attempts_are_made_again_and_no_more_often_than_configured() {
    let (socket, port) = closed_port();
    let mesh = Mesh::open_with(RecordingApp::polite().await, &[port]).await;
    for retries in [0, 1, 4] {
        let flags = [
            "--mesh=off",
            "--upstream-retry-initial-delay=1ms",
            &format!("--upstream-max-retries={retries}"),
        ];
        let router = mesh.bind_router("default/alpha", POD_UID, &flags);
        let (http, metrics) = (router.http_address(), router.metrics_address());
        tokio::spawn(router.run(std::future::pending()));
        assert_detail(&send(http, head_to(port, GET, "")).await, 502, UNREACHABLE, "refused");
        assert_eq!(counted(metrics, RETRIES).await, retries);
    }
    // Somebody who took the connection may have taken the request: no more attempts.
    let listener = socket.listen(16).unwrap();
    let taken = AtomicUsize::new(0);
    let closing = async {
        while let Ok((mut stream, _)) = listener.accept().await {
            taken.fetch_add(1, Ordering::Relaxed);
            read_until(&mut stream, b"\r\n\r\n").await;
        }
    };
    let router = mesh.bind_router("default/alpha", POD_UID, &["--mesh=off"]);
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(std::future::pending()));
    tokio::select! {
        () = closing => {}
        response = send(http, head_to(port, GET, "")) => assert_detail(&response, 502, UNREACHABLE, "broken"),
    }
    assert_eq!((taken.into_inner(), counted(metrics, RETRIES).await), (1, 0));
    mesh.app.assert_untouched("another port");
}

#[tokio::test]
async fn a_port_that_opens_during_the_retries_gets_the_request_once() {
    let (socket, port) = closed_port();
    let mesh = Mesh::open_with(RecordingApp::polite().await, &[port]).await;
    let flags = [
        "--mesh=off",
        "--upstream-max-retries=100000",
        "--upstream-retry-initial-delay=10ms",
        "--upstream-retry-max-delay=10ms",
    ];
    let router = mesh.bind_router("default/alpha", POD_UID, &flags);
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(std::future::pending()));
    let asked = tokio::spawn(send(http, head_to(port, GET, "")));
    while counted(metrics, RETRIES).await == 0 {
        assert!(!asked.is_finished(), "answered although nobody listens");
    }
    let listener = socket.listen(16).unwrap();
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let head = read_until(&mut stream, b"\r\n\r\n").await;
    assert!(head.starts_with("GET /page HTTP/1.1\r\n"), "{head}");
    stream.write_all(&ok("hello")).await.unwrap();
    let response = asked.await.unwrap();
    assert!(status(&response) == 200 && response.ends_with("hello"), "{response}");
    assert_nobody_waits(listener).await;
}

/// Fails if a connection waits to be accepted.
async fn assert_nobody_waits(listener: TcpListener) {
    let waiting = std::future::poll_fn(|cx| std::task::Poll::Ready(listener.poll_accept(cx).is_ready()));
    assert!(!waiting.await, "there was another connection");
}

#[tokio::test]
async fn a_gate_that_stalls_in_its_handshake_takes_no_longer_than_the_request_may() {
    let gate = RecordingApp::start(|_| Step::Wait).await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let stalled = format!("--sandbox-endpoint=default/alpha=127.0.0.1:{}", gate.port());
    let router = mesh.run_router(&[&stalled]);
    // A request that may take a minute ends when the handshake has lasted too long. Which one ends first counts.
    let patient = send(router, mesh.head(GET, "X-Sandbox-Timeout: 60\r\n"));
    let hasty = send(router, mesh.head(GET, "X-Sandbox-Timeout: 0.5\r\n"));
    tokio::select! {
        biased;
        response = patient => panic!("the patient one was first: {response}"),
        response = hasty => {
            let text = "Timed out waiting for the backend sandbox: alpha";
            assert_detail(&response, 504, text, "stalled");
        }
    }
    let seen = gate.connections().concat();
    assert!(
        !String::from_utf8_lossy(&seen).contains("/page"),
        "sent before the handshake"
    );
    mesh.app.assert_untouched("stalled");
}
