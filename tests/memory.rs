//! A router and a gate whose memory budget is spent shed, say so, and serve again once what they held is freed.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use sandgate_tests::http2;
use sandgate_tests::processes::{Process, ProcessMesh, Programs, command, get, sidecar_flags, until_ready};
use sandgate_tests::{Mesh, POD_UID, RecordingApp, assert_detail, exchange, field, programs, read_until, send, status};
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const PROGRAMS: Programs = programs!();
const SHORT: &str = "The router is short of memory; try again.";
const PATIENCE: Duration = Duration::from_secs(30);

fn assert_shed(response: &str, context: &str) {
    assert_detail(response, 503, SHORT, context);
    assert_eq!(field(response, "retry-after"), ["1"], "{context}");
}

#[tokio::test]
async fn a_router_short_of_memory_sheds_requests_and_connections_and_no_probe() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = mesh.bind_router("default/alpha", POD_UID, &[]);
    let (http, health, memory) = (router.http_address(), router.health_address(), router.memory());
    tokio::spawn(router.run(pending()));
    let head = mesh.head("GET / HTTP/1.1", "");
    let mut kept = TcpStream::connect(http).await.unwrap();
    kept.write_all(head.replace("Connection: close\r\n", "").as_bytes())
        .await
        .unwrap();
    assert_eq!(status(&read_until(&mut kept, b"hello").await), 200);
    mesh.app.take_only_request();

    let watch = tokio::spawn(memory.clone().watch(0, || 1));
    while !memory.is_exhausted() {
        tokio::task::yield_now().await;
    }
    assert_shed(&exchange(kept, &head, false).await, "a request");
    assert_shed(&send(http, &head).await, "a connection");
    assert_eq!(get(health, "/healthz").await.0, 200);
    mesh.app.assert_untouched("no memory");

    watch.abort();
    tokio::spawn(memory.clone().watch(1, || 1));
    while memory.is_exhausted() {
        tokio::task::yield_now().await;
    }
    assert_eq!(status(&send(http, &head).await), 200);
    mesh.app.take_only_request();
}

#[tokio::test]
async fn a_burst_of_half_heads_is_shed_and_a_router_that_was_left_alone_serves_again() {
    let app = RecordingApp::polite().await;
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &["--memory-budget-bytes=8000000"]).await;
    let head = mesh.head("GET /", "Connection: close\r\n");
    assert_eq!(status(&send(mesh.http, &head).await), 200);
    app.take_only_request();

    let half = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}", "a".repeat(24_000));
    let mut burst = Vec::new();
    let shed = async {
        loop {
            for _ in 0..50 {
                let mut stream = TcpStream::connect(mesh.http).await.unwrap();
                // Once the router sheds, it may be closed.
                let _ = stream.write_all(half.as_bytes()).await;
                burst.push(stream);
            }
            let answer = send(
                mesh.http,
                "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            )
            .await;
            if status(&answer) == 503 {
                break assert_shed(&answer, "after the burst");
            }
        }
    };
    timeout(PATIENCE, shed).await.expect("the router took everything");
    app.assert_untouched("the burst");
    drop(burst);
    let served = async { while status(&send(mesh.http, &head).await) != 200 {} };
    timeout(PATIENCE, served).await.expect("the router sheds for ever");
}

/// A process's resident memory in kB.
fn resident_kilobytes(process: &Process) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The same once it has stopped growing.
async fn settled_kilobytes(process: &Process) -> u64 {
    let (mut last, mut still) = (0, 0);
    while still < 5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = resident_kilobytes(process);
        still = if now > last + 64 { 0 } else { still + 1 };
        last = last.max(now);
    }
    last
}

/// Requests that were let in are no longer shed: what their bodies may hold is bounded by the windows that the router gives.
#[tokio::test]
async fn bodies_over_http2_that_an_app_never_reads_hold_little_of_a_routers_memory() {
    const CONNECTIONS: u64 = 32;
    let app = RecordingApp::serving(|stream| async move {
        let _unread = stream;
        pending::<()>().await;
    })
    .await;
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let before = settled_kilobytes(&mesh.router).await;
    let body = Bytes::from(vec![b'a'; 32 * 1024 * 1024]);
    let mut under_way = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client: SendRequest<Full<Bytes>> = http2::connect(mesh.http).await;
        for _ in 0..2 {
            let mut request = Request::post("http://front.example/")
                .body(Full::new(body.clone()))
                .unwrap();
            request.headers_mut().extend(http2::head(app.port()));
            under_way.push(client.send_request(request));
        }
    }
    let grown = settled_kilobytes(&mesh.router).await - before;
    // A window of 128 KiB for each of two streams, and what a request of any version has in buffers.
    assert!(grown < CONNECTIONS * 700, "{grown} kB for {CONNECTIONS} connections");
    drop(under_way);
}

#[tokio::test]
async fn a_gate_short_of_memory_is_not_ready() {
    let app = RecordingApp::polite().await;
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let mut flags = sidecar_flags(&mesh.folder, ([127, 0, 0, 1], 0).into());
    flags.push("--memory-budget-bytes=1".into());
    let mut gate = Process::start(command(PROGRAMS.sidecar, flags));
    let [_, health] = gate.listens(["mesh", "health"]).await;
    let health = SocketAddr::from(([127, 0, 0, 1], health.parse().unwrap()));
    until_ready(health, (503, "short of memory")).await;
    assert_eq!(get(health, "/healthz").await.0, 200);
}
