//! A host that is gone holds nobody's request for long, and one that is back, or only refuses, is asked.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::future::join_all;
use sandgate_tests::processes::get;
use sandgate_tests::{
    Mesh, PATIENCE, POD_UID, RecordingApp, Step, assert_detail, closed_port, head_to, ok, send, status,
};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const UNREACHABLE: &str = "Could not connect to the backend sandbox: alpha";
const TIMED_OUT: &str = "Timed out waiting for the backend sandbox: alpha";
const GET: &str = "GET /page HTTP/1.1";
/// The kernel says at once that nobody is there: no connection leads to this address.
const NOWHERE: &str = "--sandbox-endpoint=default/alpha=255.255.255.255";
const RETRIES: &str = "upstream_retries_total";
const OPEN: &str = "open_breakers";
const NOT_MADE: &str = "short_circuited_dials_total";

/// A running router for `alpha`, and where its metrics are.
fn run(mesh: &Mesh, flags: &[&str]) -> (SocketAddr, SocketAddr) {
    let flags = [&["--upstream-retry-initial-delay=1ms"], flags].concat();
    let router = mesh.bind_router("default/alpha", POD_UID, &flags);
    let addresses = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(std::future::pending()));
    addresses
}

/// What was counted under this name, in all; `None` if there is no such metric.
async fn counted(metrics: SocketAddr, name: &str) -> Option<u64> {
    let (_, text) = get(metrics, "/metrics").await;
    let name = format!("sandbox_router_{name}");
    let lines = text.lines().filter(|line| line.starts_with(&name));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .reduce(|one, other| one + other)
}

async fn polite() -> Mesh {
    Mesh::open(RecordingApp::polite().await).await
}

/// A port whose queue of connections is full: the kernel drops further attempts, as if nobody were there.
async fn silent_port() -> (TcpListener, u16, Vec<TcpStream>) {
    let (socket, port) = closed_port();
    let listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(("127.0.0.1", port))).await {
        queued.push(stream.unwrap());
    }
    (listener, port, queued)
}

#[tokio::test]
async fn where_nobody_is_a_request_makes_all_its_attempts_and_after_some_in_a_row_none() {
    let mesh = polite().await;
    for more in [&[][..], &["--mesh=off"]] {
        let flags = [&[NOWHERE, "--upstream-breaker-open-time=1h"], more].concat();
        let (router, metrics) = run(&mesh, &flags);
        let ask = || send(router, head_to(8888, GET, ""));
        // As often as without a breaker: its own failures don't cut it short.
        assert_detail(&ask().await, 502, UNREACHABLE, "first");
        assert_eq!(counted(metrics, RETRIES).await, Some(3));
        assert_eq!(counted(metrics, OPEN).await, Some(0));
        // The fifth failure in a row.
        assert_detail(&ask().await, 502, UNREACHABLE, "second");
        assert_eq!(counted(metrics, OPEN).await, Some(1));
        assert_eq!(counted(metrics, NOT_MADE).await, Some(0));
        for answer in join_all((0..100).map(|_| ask())).await {
            assert_detail(&answer, 502, UNREACHABLE, "without a dial");
        }
        assert_eq!(counted(metrics, RETRIES).await, Some(3));
        assert_eq!(counted(metrics, NOT_MADE).await, Some(100));
    }
    mesh.app.assert_untouched("another host");
}

#[tokio::test]
async fn an_operator_can_have_every_request_dial() {
    let mesh = polite().await;
    let (router, metrics) = run(&mesh, &[NOWHERE, "--mesh=off", "--upstream-breaker-failures=0"]);
    for _ in 0..10 {
        assert_detail(&send(router, head_to(8888, GET, "")).await, 502, UNREACHABLE, "always");
    }
    assert_eq!(counted(metrics, RETRIES).await, Some(30));
    assert_eq!(counted(metrics, OPEN).await, None);
}

#[tokio::test]
async fn a_port_that_refuses_is_dialed_every_time_and_served_as_soon_as_somebody_listens() {
    let (socket, port) = closed_port();
    let mesh = Mesh::open_with(RecordingApp::polite().await, &[port]).await;
    let (router, metrics) = run(&mesh, &["--mesh=off", "--upstream-breaker-failures=1"]);
    for _ in 0..10 {
        assert_detail(&send(router, head_to(port, GET, "")).await, 502, UNREACHABLE, "refused");
    }
    assert_eq!(counted(metrics, RETRIES).await, Some(30));
    assert_eq!(counted(metrics, NOT_MADE).await, Some(0));
    let _app = RecordingApp::answering_at(socket.listen(16).unwrap(), Step::Answer(ok("hello")));
    assert_eq!(status(&send(router, head_to(port, GET, "")).await), 200);
}

#[tokio::test]
async fn while_a_host_is_silent_one_request_waits_for_it_and_when_it_is_back_all_are_served() {
    let (listener, port, queued) = silent_port().await;
    let mesh = Mesh::open_with(RecordingApp::polite().await, &[port]).await;
    let flags = [
        "--mesh=off",
        "--upstream-max-retries=0",
        "--upstream-breaker-failures=1",
        "--upstream-breaker-open-time=100ms",
    ];
    let (router, metrics) = run(&mesh, &flags);
    let ask = move || send(router, head_to(port, GET, ""));
    // A client that won't wait says nothing of the host.
    let hasty = send(router, head_to(port, GET, "X-Sandbox-Timeout: 0.2\r\n")).await;
    assert_detail(&hasty, 504, TIMED_OUT, "hasty");
    assert_eq!(counted(metrics, OPEN).await, Some(0));
    // This one waits for as long as a connection may take.
    assert_detail(&ask().await, 504, TIMED_OUT, "patient");
    assert_eq!(counted(metrics, OPEN).await, Some(1));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let answers = join_all((0..50).map(|_| ask())).await;
    let (waited, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| status(answer) == 504);
    assert_eq!(waited.len(), 1, "one is enough to see");
    for answer in refused {
        assert_detail(answer, 502, UNREACHABLE, "beside the probe");
    }
    // It is back.
    let app = RecordingApp::answering_at(listener, Step::Answer(ok("hello")));
    drop(queued);
    let served = async { while status(&ask().await) != 200 {} };
    timeout(PATIENCE, served).await.expect("not asked again");
    assert_eq!(counted(metrics, OPEN).await, Some(0));
    assert!(!app.requests().is_empty());
    for _ in 0..5 {
        assert_eq!(status(&ask().await), 200);
    }
    mesh.app.assert_untouched("another port");
}

#[tokio::test]
async fn another_port_and_another_sandbox_have_nothing_to_do_with_it() {
    let mesh = polite().await;
    let flags = [
        "--mesh=off",
        "--sandbox-endpoint=default/beta=255.255.255.255",
        "--upstream-breaker-failures=1",
        "--upstream-breaker-open-time=1h",
    ];
    let (router, metrics) = run(&mesh, &flags);
    let gone = head_to(mesh.ports.app, GET, "").replace("ID: alpha", "ID: beta");
    for _ in 0..3 {
        assert_eq!(status(&send(router, gone.clone()).await), 502);
    }
    assert_eq!(counted(metrics, OPEN).await, Some(1));
    assert_eq!(status(&send(router, head_to(mesh.ports.app, GET, "")).await), 200);
}
