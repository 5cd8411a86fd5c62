//! The app's own probes, which the gate runs for the kubelet where lockdown keeps that from the app: what was declared
//! is done, nothing else, and whoever asks learns nothing of the app.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{Process, Programs, command, get, json_lines, sidecar_flags};
use sandgate_tests::{PATIENCE, RecordingApp, Step, closed_port, exchange, ok, programs, send, status};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

const PROGRAMS: Programs = programs!();
/// A gate without identity and policy runs probes all the same: pods start before both come.
const PATH: &str = "/app-probe/app/readinessProbe";

/// A gate's health port, for as long as the gate lives.
struct Gate {
    health: SocketAddr,
    process: Process,
}

impl Gate {
    async fn start(probes: &[Value]) -> Self {
        let mut command = command(
            PROGRAMS.sidecar,
            sidecar_flags(&Folder::new(), ([127, 0, 0, 1], 0).into()),
        );
        let document = json!({"version": 1, "probes": probes});
        command.env("SANDGATE_APP_PROBES", document.to_string());
        let mut process = Process::start(command);
        let [health] = process.listens(["health"]).await;
        let health = SocketAddr::from(([127, 0, 0, 1], health.parse().unwrap()));
        Self { health, process }
    }

    /// A gate with one readiness probe.
    async fn of(handler: &str, fields: Value) -> Self {
        Self::start(&[declaration("readinessProbe", handler, fields)]).await
    }
}

fn declaration(kind: &str, handler: &str, fields: Value) -> Value {
    let mut declaration = json!({"container": "app", "kind": kind, "timeoutSeconds": 2});
    declaration[handler] = fields;
    declaration
}

#[tokio::test]
async fn the_app_gets_what_was_declared_and_nothing_of_who_asks() {
    let app = RecordingApp::polite().await;
    let gate = Gate::of(
        "httpGet",
        json!({"path": "/ready?deep=1", "port": app.port(), "httpHeaders": [
            {"name": "Host", "value": "app.example"}, {"name": "X-Probe", "value": "1"}, {"name": "Accept", "value": ""}]}),
    )
    .await;
    let request = format!(
        "GET {PATH}?path=/admin&port=1&evil HTTP/1.1\r\nHost: evil.example\r\nX-Probe: evil\r\nAccept: evil\r\n\
         Cookie: evil\r\nContent-Length: 4\r\nConnection: close\r\n\r\nevil"
    );
    let answer = send(gate.health, request).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let request = app.only_request();
    let mut lines: Vec<_> = request.head.trim_end().split("\r\n").collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        [
            "GET /ready?deep=1 HTTP/1.1",
            "connection: close",
            "host: app.example",
            "user-agent: kube-probe/sandgate",
            "x-probe: 1",
        ]
    );
    assert_eq!((request.body.as_slice(), request.complete), (&b""[..], true));
}

#[tokio::test]
async fn what_nobody_declared_does_not_exist() {
    let app = RecordingApp::polite().await;
    let gate = Gate::of("httpGet", json!({"port": app.port()})).await;
    for target in [
        "/app-probe/app/livenessProbe",
        "/app-probe/other/readinessProbe",
        "/app-probe/app/readinessProbe/",
        "/app-probe/app//readinessProbe",
        "/app-probe/app/readinessprobe",
        "/app-probe/app/%72eadinessProbe",
        "/app-probe/x/../app/readinessProbe",
        "/app-probe/app",
        "/app-probe/",
        "/",
    ] {
        assert_eq!(get(gate.health, target).await.0, 404, "{target}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let request = format!("{method} {PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = send(gate.health, request).await;
        assert_eq!(status(&answer), 404, "{answer}");
    }
    app.assert_untouched("undeclared");
    assert_eq!(get(gate.health, PATH).await.0, 200);
    assert_eq!(app.only_request().head.lines().next(), Some("GET / HTTP/1.1"));
}

#[tokio::test]
async fn the_answers_status_decides_and_no_redirect_is_followed() {
    let elsewhere = RecordingApp::polite().await;
    for (code, expected) in [
        (200, 200),
        (204, 200),
        (302, 200),
        (399, 200),
        (400, 503),
        (404, 503),
        (503, 503),
    ] {
        let location = format!("Location: http://127.0.0.1:{}/\r\n", elsewhere.port());
        let length = if code == 204 { "" } else { "Content-Length: 6\r\n" };
        let body = if code == 204 { "" } else { "secret" };
        let answer = format!("HTTP/1.1 {code} Said\r\nX-Secret: 1\r\n{location}{length}\r\n{body}");
        let app = RecordingApp::answering(Step::Answer(answer.into_bytes())).await;
        let gate = Gate::of("httpGet", json!({"port": app.port(), "path": "/r"})).await;
        let found = send(
            gate.health,
            format!("GET {PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        )
        .await;
        assert_eq!(status(&found), expected, "{code}: {found}");
        assert!(!found.to_ascii_lowercase().contains("secret"), "{found}");
        assert_eq!(app.heads().len(), 1);
    }
    elsewhere.assert_untouched("redirect");
}

#[tokio::test]
async fn a_hostile_answer_is_a_failure_in_bounded_time() {
    let head = "HTTP/1.1 200 OK\r\n";
    let endless = |first: &str, again: &str| Step::Endless(first.into(), again.repeat(100).into());
    for (name, step) in [
        ("silence", Step::Wait),
        ("nothing", Step::Close(Vec::new())),
        ("no HTTP", Step::Close(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())),
        (
            "101",
            Step::Answer(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n".to_vec()),
        ),
        (
            "two lengths",
            Step::Answer(format!("{head}Content-Length: 1\r\nContent-Length: 1\r\n\r\na").into()),
        ),
        (
            "two framings",
            Step::Answer(format!("{head}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na").into()),
        ),
        (
            "half a body",
            Step::Close(format!("{head}Content-Length: 9\r\n\r\nabc").into()),
        ),
        (
            "a body that never ends",
            Step::Answer(format!("{head}Content-Length: 9\r\n\r\nabc").into()),
        ),
        ("endless head", endless(head, "X-A: b\r\n")),
        ("endless 1xx", endless("", "HTTP/1.1 100 Continue\r\n\r\n")),
    ] {
        let app = RecordingApp::answering(step).await;
        let gate = Gate::of("httpGet", json!({"port": app.port()})).await;
        assert_eq!(get(gate.health, PATH).await, (503, "failed".into()), "{name}");
        assert_eq!(app.connections().len(), 1, "{name}");
        assert_eq!(get(gate.health, "/healthz").await.0, 200, "{name}");
    }
}

#[tokio::test]
async fn of_a_long_body_no_more_is_read_than_the_kubelet_reads() {
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let chunk = [&b"400\r\n"[..], &[b'a'; 1024], b"\r\n"].concat();
    let app = RecordingApp::answering(Step::Endless(head, chunk)).await;
    let gate = Gate::of("httpGet", json!({"port": app.port()})).await;
    assert_eq!(get(gate.health, PATH).await, (200, "ok".into()));
}

#[tokio::test]
async fn a_connection_is_enough_for_a_tcp_probe_and_nothing_is_sent_on_it() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gate = Gate::of("tcpSocket", json!({"port": app.local_addr().unwrap().port()})).await;
    assert_eq!(get(gate.health, PATH).await, (200, "ok".into()));
    let (mut connection, _) = app.accept().await.unwrap();
    let mut said = Vec::new();
    let until_closed = connection.read_to_end(&mut said);
    let ended = tokio::time::timeout(PATIENCE, until_closed).await;
    // A reset is an end, too.
    let _ = ended.expect("the connection stays open");
    assert_eq!(said, b"");

    let (_held, port) = closed_port();
    let gate = Gate::of("tcpSocket", json!({"port": port})).await;
    assert_eq!(get(gate.health, PATH).await, (503, "failed".into()));
}

#[tokio::test]
async fn an_app_that_listens_on_ipv6_loopback_only_is_reached() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let gate = Gate::of("tcpSocket", json!({"port": listener.local_addr().unwrap().port()})).await;
    assert_eq!(get(gate.health, PATH).await.0, 200);
}

#[tokio::test]
async fn a_hook_succeeds_with_any_answer_and_fails_without_one() {
    let path = "/app-probe/app/preStop";
    let ask = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let app = RecordingApp::answering(Step::Answer(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec())).await;
    let gate = Gate::start(&[declaration(
        "preStop",
        "httpGet",
        json!({"port": app.port(), "path": "/stop"}),
    )])
    .await;
    assert_eq!(get(gate.health, path).await, (200, "ok".into()));
    assert!(
        app.only_request()
            .head
            .contains("\r\nuser-agent: kube-lifecycle/sandgate\r\n")
    );

    // The kubelet would take any answer for a success.
    let (_held, port) = closed_port();
    let gate = Gate::start(&[declaration("preStop", "httpGet", json!({"port": port}))]).await;
    assert_eq!(
        exchange(TcpStream::connect(gate.health).await.unwrap(), ask, false).await,
        ""
    );
    assert_eq!(get(gate.health, "/healthz").await.0, 200);
}

#[tokio::test]
async fn a_change_is_logged_once_with_its_reason() {
    let (socket, port) = closed_port();
    let mut gate = Gate::of("tcpSocket", json!({"port": port})).await;
    assert_eq!(get(gate.health, PATH).await.0, 503);
    let _listener = socket.listen(16).unwrap();
    let opened = async { while get(gate.health, PATH).await.0 != 200 {} };
    tokio::time::timeout(PATIENCE, opened).await.unwrap();
    gate.process.logs("the app's probe succeeds again", 1).await;
    let lines = json_lines(&gate.process.stderr());
    let failing: Vec<_> = lines
        .iter()
        .filter(|line| line["message"] == "the app's probe fails")
        .collect();
    assert_eq!(failing.len(), 1, "{failing:?}");
    let line = failing[0];
    assert_eq!(
        (&line["container"], &line["probe"], &line["reason"]),
        (
            &"app".into(),
            &"readinessProbe".into(),
            &"nobody takes a connection on the port".into()
        )
    );
}

/// A real HTTP/2 server with a health service: it knows `good` and `bad`, and serves as a whole.
async fn grpc_app() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(health)));
        }
    });
    port
}

type Frames = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn health(request: Request<hyper::body::Incoming>) -> Result<Response<Frames>, Infallible> {
    let (head, body) = request.into_parts();
    assert_eq!(head.method, "POST");
    assert_eq!(head.uri.path(), "/grpc.health.v1.Health/Check");
    assert_eq!(head.headers["content-type"], "application/grpc");
    assert_eq!(head.headers["te"], "trailers");
    let message = body.collect().await.unwrap().to_bytes();
    let status = match &message[..] {
        b"\0\0\0\0\0" | b"\0\0\0\0\x06\x0a\x04good" => Some(1),
        b"\0\0\0\0\x05\x0a\x03bad" => Some(2),
        _ => None,
    };
    let mut response = Response::builder().header("content-type", "application/grpc");
    let mut frames = Vec::new();
    if let Some(status) = status {
        frames.push(Ok(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]))));
        let trailers = [("grpc-status", "0")].map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        frames.push(Ok(Frame::trailers(trailers.into_iter().collect())));
    } else {
        response = response.header("grpc-status", "5");
    }
    Ok(response
        .body(StreamBody::new(futures_util::stream::iter(frames)))
        .unwrap())
}

#[tokio::test]
async fn a_grpc_probe_asks_a_real_http2_server_for_its_health() {
    let port = grpc_app().await;
    for (fields, expected) in [
        (json!({"port": port}), 200),
        (json!({"port": port, "service": ""}), 200),
        (json!({"port": port, "service": "good"}), 200),
        (json!({"port": port, "service": "bad"}), 503),
        (json!({"port": port, "service": "unknown"}), 503),
    ] {
        let gate = Gate::of("grpc", fields.clone()).await;
        assert_eq!(get(gate.health, PATH).await.0, expected, "{fields}");
    }
    let http1 = RecordingApp::answering(Step::Close(ok("hello"))).await;
    let gate = Gate::of("grpc", json!({"port": http1.port()})).await;
    assert_eq!(get(gate.health, PATH).await, (503, "failed".into()));
}

#[tokio::test]
async fn declarations_that_cannot_be_run_keep_the_gate_from_starting() {
    for (document, wanted) in [
        ("{}", "missing field `version`"),
        (r#"{"version":2,"probes":[]}"#, "this release reads version 1"),
        (
            r#"{"version":1,"probes":[{"container":"app","kind":"preStop","timeoutSeconds":1,"httpGet":{"port":14480}}]}"#,
            "httpGet.port: is one of the gate's own ports",
        ),
        (
            r#"{"version":1,"probes":[{"container":"app","kind":"preStop","timeoutSeconds":1,"httpGet":{"port":1,"scheme":"HTTPS"}}]}"#,
            "HTTPS is not probed under lockdown",
        ),
    ] {
        let mut command = command(
            PROGRAMS.sidecar,
            sidecar_flags(&Folder::new(), ([127, 0, 0, 1], 0).into()),
        );
        command.env("SANDGATE_APP_PROBES", document);
        let left = Process::start(command).ended().await;
        assert_eq!((left.code, left.stdout.as_str()), (Some(64), ""), "{document}");
        assert!(left.stderr.contains(wanted), "{wanted}: {}", left.stderr);
    }
}
