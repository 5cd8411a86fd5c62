//! The caller is an attacker that wants more held for it than it gives: connections, heads, bodies and answers that it
//! leaves unfinished. Each is bounded, and others are served meanwhile.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandbox_sidecar::Settings;
use sandgate_mesh::framing::Limits;
use sandgate_mesh::listener::ConnectionLimits;
use sandgate_mesh::policy::model::{DefaultPolicy, Source};
use sandgate_mesh::tls;
use sandgate_tests::{
    Mesh, PATIENCE, ROUTER, RecordingApp, Step, TOKEN, TOKEN_HOLDER, WORKLOAD, assert_detail, default_policy, exchange,
    exchange_without_end, ok, read_until, rule, send, status,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

/// A mesh whose gate lets everybody use the app's port and is set as `change` leaves its settings.
async fn mesh(change: impl FnOnce(&mut Settings)) -> Mesh {
    let policy = |ports: sandgate_tests::Ports| default_policy(DefaultPolicy::Authenticated, vec![ports.app]);
    Mesh::start_with(RecordingApp::polite().await, policy, change).await
}

/// A request that keeps its connection.
fn kept(mesh: &Mesh, request_line: &str, fields: &str) -> String {
    mesh.head(request_line, fields).replace("Connection: close\r\n", "")
}

/// The same for the gate, as a router writes it.
fn to_gate(mesh: &Mesh, request_line: &str, fields: &str) -> String {
    format!(
        "{request_line}\r\nHost: gate\r\nX-Sandgate-Caller: v1;static;default\r\nX-Sandbox-Port: {}\r\n{fields}\r\n",
        mesh.ports.app
    )
}

/// Connects to the gate with a client's certificate of this name, from the address 127.0.0.`host`.
async fn connect_as(mesh: &Mesh, name: &str, host: u8) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
    let stream = socket.connect(([127, 0, 0, 1], mesh.ports.mesh).into()).await.unwrap();
    let leaf = mesh.authority.router(&name.parse().unwrap()).unwrap();
    tls::connect_mesh(stream, mesh.client_config(Some(&leaf)))
        .await
        .unwrap()
        .0
}

/// Connects to the gate as a router.
async fn as_router(mesh: &Mesh) -> TlsStream<TcpStream> {
    connect_as(mesh, ROUTER, 1).await
}

/// A request over a connection that stays open is answered with 200.
async fn assert_served(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) {
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let answer = read_until(stream, b"hello").await;
    assert_eq!(status(&answer), 200, "{answer}");
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test]
async fn a_head_that_drips_byte_by_byte_is_408_at_the_router_and_at_the_gate() {
    let hurried = |settings: &mut Settings| {
        settings.framing = Arc::new(Limits {
            head_time: Duration::from_millis(300),
            ..Limits::default()
        });
    };
    let mesh = mesh(hurried).await;
    let router = mesh.run_router(&["--request-head-timeout=300ms"]);
    let pause = Duration::from_millis(10);
    for start in [
        "G",
        "GET / HTTP/1.1\r\n",
        &mesh.head("GET / HTTP/1.1", "X-A: ").replace("\r\n\r\n", ""),
    ] {
        let answer = exchange_without_end(connect(router).await, start, "a", pause).await;
        assert_eq!(status(&answer), 408, "{start:?}: {answer}");
        let answer = exchange_without_end(as_router(&mesh).await, start, "a", pause).await;
        assert_eq!(status(&answer), 408, "{start:?} at the gate: {answer}");
    }
    mesh.app.assert_untouched("half a head");
    // The time is one head's: it doesn't run while a connection waits for its next request.
    let (mut front, mut gate) = (connect(router).await, as_router(&mesh).await);
    for _ in 0..2 {
        assert_served(&mut front, &kept(&mesh, "GET / HTTP/1.1", "")).await;
        assert_served(&mut gate, &to_gate(&mesh, "GET / HTTP/1.1", "")).await;
        sleep(Duration::from_millis(400)).await;
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_without_an_answer() {
    let impatient = |settings: &mut Settings| {
        settings.framing = Arc::new(Limits {
            idle_time: Duration::from_millis(500),
            ..Limits::default()
        });
    };
    let mesh = mesh(impatient).await;
    let router = mesh.run_router(&["--idle-timeout=500ms"]);
    assert_eq!(exchange(connect(router).await, "", false).await, "");
    assert_eq!(exchange(as_router(&mesh).await, "", false).await, "");
    let mut used = connect(router).await;
    assert_served(&mut used, &kept(&mesh, "GET / HTTP/1.1", "")).await;
    assert_eq!(exchange(used, "", false).await, "");
    assert_eq!(mesh.app.requests().len(), 1);
}

#[tokio::test]
async fn the_router_refuses_connections_above_its_cap_and_serves_those_below() {
    let mesh = mesh(|_| {}).await;
    let router = mesh.run_router(&["--max-connections=3", "--max-connections-per-peer=3"]);
    let request = kept(&mesh, "GET / HTTP/1.1", "");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(router).await;
        assert_served(&mut stream, &request).await;
        held.push(stream);
    }
    for _ in 0..20 {
        let refused = send(router, mesh.head("GET /surplus HTTP/1.1", "")).await;
        assert_detail(
            &refused,
            503,
            "The router has too many connections; try again.",
            "over the cap",
        );
        assert!(refused.contains("\r\nRetry-After: 1\r\n"), "{refused}");
    }
    for stream in &mut held {
        assert_served(stream, &request).await;
    }
    assert_eq!(mesh.app.requests().len(), 6);
    assert!(!mesh.app.heads().iter().any(|head| head.contains("/surplus")));
    held.pop();
    let served = async {
        while status(&send(router, mesh.head("GET / HTTP/1.1", "")).await) != 200 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, served)
        .await
        .expect("a place that was left stays taken");
}

#[tokio::test]
async fn one_address_gets_three_quarters_of_the_routers_connections_and_a_trusted_proxy_all() {
    let mesh = mesh(|_| {}).await;
    let request = kept(&mesh, "GET / HTTP/1.1", "");
    let surplus = mesh.head("GET /surplus HTTP/1.1", "");
    for (flags, ours, (code, answer)) in [
        (
            ["--max-connections=4", "--trusted-proxy-cidrs=127.0.0.2"],
            3,
            (429, "The router has too many connections from this address; try again."),
        ),
        (
            ["--max-connections=4", "--trusted-proxy-cidrs=127.0.0.1"],
            4,
            (503, "The router has too many connections; try again."),
        ),
    ] {
        let router = mesh.run_router(&flags);
        let mut held = Vec::new();
        for _ in 0..ours {
            let mut stream = connect(router).await;
            assert_served(&mut stream, &request).await;
            held.push(stream);
        }
        assert_detail(&send(router, &surplus).await, code, answer, flags[1]);
        if ours == 3 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((Ipv4Addr::new(127, 0, 0, 3), 0).into()).unwrap();
            let mut neighbour = socket.connect(router).await.unwrap();
            assert_served(&mut neighbour, &request).await;
        }
    }
    assert!(!mesh.app.heads().iter().any(|head| head.contains("/surplus")));
}

#[tokio::test]
async fn the_gate_refuses_connections_above_its_caps_per_peer_and_in_all_and_serves_those_below() {
    let both = Source {
        users: Some(vec![TOKEN_HOLDER.into()]),
        spiffe_ids: Some(vec![WORKLOAD.into()]),
        ..Source::default()
    };
    let capped = |settings: &mut Settings| settings.caps.connections = ConnectionLimits { total: 4, per_peer: 2 };
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start_with(app, |ports| rule(both, ports.app, &[], &[]), capped).await;
    let by_router = to_gate(&mesh, "GET / HTTP/1.1", "");
    let by_itself = by_router.replace("X-Sandgate-Caller: v1;static;default\r\n", "");
    let mut held = Vec::new();
    for host in [2, 2, 3] {
        let mut stream = connect_as(&mesh, WORKLOAD, host).await;
        assert_served(&mut stream, &by_itself).await;
        held.push(stream);
    }
    // One too many from that address, while there is still a place for others.
    let surplus = connect_as(&mesh, WORKLOAD, 2).await;
    assert_eq!(status(&exchange(surplus, &by_itself, false).await), 503);
    let mut router = as_router(&mesh).await;
    assert_served(&mut router, &by_router).await;
    for (name, host, request) in [
        (WORKLOAD, 3, &by_itself),
        (WORKLOAD, 4, &by_itself),
        (ROUTER, 1, &by_router),
    ] {
        let surplus = connect_as(&mesh, name, host).await;
        let refused = exchange(surplus, request, false).await;
        assert_eq!(status(&refused), 503, "{name} from 127.0.0.{host}: {refused}");
    }
    let response = mesh.send(mesh.head("GET /surplus HTTP/1.1", "")).await;
    assert_eq!(status(&response), 503, "{response}");
    for stream in &mut held {
        assert_served(stream, &by_itself).await;
    }
    assert_served(&mut router, &by_router).await;
    assert_eq!(mesh.app.requests().len(), 8);
    held.clear();
    let served = async {
        while status(&mesh.send(mesh.head("GET / HTTP/1.1", "")).await) != 200 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, served)
        .await
        .expect("a place that was left stays taken");
}

/// What announces a body without end, and what it consists of.
fn endless_bodies() -> [(&'static str, String); 2] {
    let piece = "a".repeat(0x1000);
    [
        ("Transfer-Encoding: chunked\r\n", format!("1000\r\n{piece}\r\n")),
        ("Content-Length: 9223372036854775807\r\n", piece),
    ]
}

#[tokio::test]
async fn a_body_without_end_is_not_waited_for_where_the_request_is_refused() {
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| default_policy(DefaultPolicy::Deny, vec![ports.app])).await;
    for (fields, piece) in endless_bodies() {
        let head = kept(&mesh, "POST /endless HTTP/1.1", fields);
        for (case, head, code) in [
            ("no token", head.replace(TOKEN, "wrong"), 401),
            ("no sandbox", head.replace("X-Sandbox-ID: alpha\r\n", ""), 400),
            ("CONNECT", head.replace("POST /endless", "CONNECT a:1"), 405),
            ("policy", head.clone(), 403),
        ] {
            let answer = exchange_without_end(connect(mesh.router).await, head, &piece, Duration::ZERO).await;
            assert_eq!(status(&answer), code, "{case}, {fields:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{case}, {fields:?}: {answer}");
        }
        let head = to_gate(&mesh, "POST /endless HTTP/1.1", fields);
        let answer = exchange_without_end(as_router(&mesh).await, head, &piece, Duration::ZERO).await;
        assert_eq!(status(&answer), 403, "at the gate, {fields:?}: {answer}");
    }
    mesh.app.assert_untouched("refused");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_where_the_request_is_refused() {
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| default_policy(DefaultPolicy::Deny, vec![ports.app])).await;
    for fields in ["Transfer-Encoding: chunked\r\n", "Content-Length: 10\r\n"] {
        let head = kept(&mesh, "POST /never HTTP/1.1", fields);
        let answer = mesh.send(head.replace(TOKEN, "wrong")).await;
        assert_eq!(status(&answer), 401, "{fields:?}: {answer}");
        let answer = mesh.send(head).await;
        assert_eq!(status(&answer), 403, "{fields:?}: {answer}");
    }
    mesh.app.assert_untouched("refused");
}

#[tokio::test]
async fn a_body_without_end_is_413_and_never_whole_where_its_size_is_limited() {
    let mesh = mesh(|_| {}).await;
    let router = mesh.run_router(&["--max-request-body-bytes=100000"]);
    for (fields, piece) in endless_bodies() {
        let head = kept(&mesh, "POST /endless HTTP/1.1", fields);
        let answer = exchange_without_end(connect(router).await, head, piece, Duration::ZERO).await;
        assert_eq!(status(&answer), 413, "{fields:?}: {answer}");
    }
    let requests = mesh.app.requests();
    assert!(requests.len() <= 1 && requests.iter().all(|request| !request.complete));
    assert!(requests.iter().all(|request| request.body.len() < 200_000));
}

#[tokio::test]
async fn a_body_that_drips_and_falls_silent_is_408_and_never_whole() {
    let mut cases = JoinSet::new();
    for (fields, bytes) in [
        ("Content-Length: 100\r\n", "ten bytes."),
        ("Transfer-Encoding: chunked\r\n", "a\r\nten bytes.\r\n"),
        ("Transfer-Encoding: chunked\r\n", "64\r\nten bytes."),
        ("Transfer-Encoding: chunked\r\n", "a\r\nten bytes.\r\n0\r\nX-Trailer: "),
    ] {
        cases.spawn(async move {
            let mesh = mesh(|_| {}).await;
            let router = mesh.run_router(&["--proxy-timeout=1s"]);
            let head = kept(&mesh, "POST /slow HTTP/1.1", fields);
            let answer = drip(connect(router).await, &head, bytes).await;
            assert_eq!(status(&answer), 408, "{bytes:?}: {answer}");
            assert!(!mesh.app.only_request().complete, "{bytes:?}");
        });
        cases.spawn(async move {
            let mesh = mesh(|settings| settings.proxy_timeout = Duration::from_secs(1)).await;
            let head = to_gate(&mesh, "POST /slow HTTP/1.1", fields);
            let answer = drip(as_router(&mesh).await, &head, bytes).await;
            assert_eq!(status(&answer), 408, "{bytes:?} at the gate: {answer}");
            assert!(!mesh.app.only_request().complete, "{bytes:?} at the gate");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

/// Writes a head, then `bytes` one at a time, and then nothing.
async fn drip(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str, bytes: &str) -> String {
    stream.write_all(head.as_bytes()).await.unwrap();
    for byte in bytes.bytes() {
        stream.write_all(&[byte]).await.unwrap();
        stream.flush().await.unwrap();
        sleep(Duration::from_millis(2)).await;
    }
    exchange(stream, "", false).await
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_by_one_in_their_order() {
    let app = RecordingApp::start(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        if !text.ends_with("\r\n\r\n") {
            return Step::Wait;
        }
        let path = text.split(' ').nth(1).unwrap_or_default();
        assert_eq!(text.matches("GET /").count(), 1, "{text}");
        Step::Answer(ok(&format!("<{path}>")))
    });
    let mesh = Mesh::open(app.await).await;
    let mut flood: String = (0..300)
        .map(|n| kept(&mesh, &format!("GET /{n} HTTP/1.1"), ""))
        .collect();
    flood += &mesh.head("GET /last HTTP/1.1", "");
    let answer = mesh.send(flood).await;
    let paths: Vec<_> = answer
        .split('<')
        .skip(1)
        .map(|part| part.split('>').next().unwrap())
        .collect();
    let expected: Vec<_> = (0..300).map(|n| format!("/{n}")).chain(["/last".into()]).collect();
    assert_eq!(paths, expected);
    assert_eq!(mesh.app.requests().len(), 301);
}

#[tokio::test]
async fn a_pipelined_flood_whose_answers_nobody_reads_is_held_back_and_holds_up_nobody() {
    let mesh = mesh(|_| {}).await;
    let refused = kept(&mesh, "GET /flood HTTP/1.1", "")
        .replace(TOKEN, "wrong")
        .repeat(1000);
    let mut stream = connect(mesh.router).await;
    let mut written = 0;
    // Who reads on although its answers aren't taken, reads on forever.
    while let Ok(result) = timeout(Duration::from_millis(500), stream.write(refused.as_bytes())).await {
        written += result.unwrap();
        assert!(written < 100_000_000, "requests are taken without end");
    }
    let response = mesh.send(mesh.head("GET / HTTP/1.1", "")).await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(mesh.app.only_request().head.starts_with("GET / "));
}

#[tokio::test]
async fn an_answer_that_its_caller_does_not_take_is_given_up_and_the_app_is_left() {
    let (report, mut left) = mpsc::unbounded_channel();
    let app = RecordingApp::serving(move |mut stream| {
        let report = report.clone();
        async move {
            read_until(&mut stream, b"\r\n\r\n").await;
            let mut written = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            let piece = vec![b'a'; 65_536];
            while written.is_ok() {
                written = stream.write_all(&piece).await;
            }
            report.send(()).unwrap();
        }
    });
    let mesh = Mesh::open(app.await).await;
    let router = mesh.run_router(&["--idle-timeout=500ms"]);
    let mut deaf = connect(router).await;
    deaf.write_all(mesh.head("GET / HTTP/1.1", "").as_bytes())
        .await
        .unwrap();
    let gone = timeout(PATIENCE, left.recv()).await;
    assert_eq!(gone.expect("the app still answers"), Some(()));
}

#[tokio::test]
async fn many_connections_with_half_a_head_each_hold_up_nobody_and_end_in_408() {
    let hurried = |settings: &mut Settings| {
        settings.framing = Arc::new(Limits {
            head_time: Duration::from_secs(1),
            ..Limits::default()
        });
    };
    let mesh = mesh(hurried).await;
    let router = mesh.run_router(&["--request-head-timeout=1s"]);
    let half = |head: String| head.trim_end().to_owned() + "\r\nX-Half: " + &"a".repeat(30_000);
    let (to_router, to_gate_) = (
        half(kept(&mesh, "GET /half HTTP/1.1", "")),
        half(to_gate(&mesh, "GET /half HTTP/1.1", "")),
    );
    let mut halves = JoinSet::new();
    for _ in 0..300 {
        halves.spawn(exchange(connect(router).await, to_router.clone(), false));
    }
    for _ in 0..50 {
        halves.spawn(exchange(as_router(&mesh).await, to_gate_.clone(), false));
    }
    let response = send(router, mesh.head("GET /whole HTTP/1.1", "")).await;
    assert_eq!(status(&response), 200, "{response}");
    while let Some(answer) = halves.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(status(&answer), 408, "{answer}");
    }
    assert!(mesh.app.only_request().head.starts_with("GET /whole "));
}
