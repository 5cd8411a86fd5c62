//! WebSockets over HTTP/2 (RFC 8441): to the app they are those of HTTP/1.1, with the same limits and the same closes.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use sandbox_router::config::Config;
use sandgate_mesh::framing::Limits;
use sandgate_tests::http2::{connect, head, status_and_detail};
use sandgate_tests::websocket::echo;
use sandgate_tests::{Mesh, PATIENCE, POD_UID, RecordingApp, Step, field, ok};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::{WebSocketStream, accept_async};

type Client = SendRequest<Empty<Bytes>>;
type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A client that has heard that extended CONNECTs are served: settings come before any answer.
async fn client(router: SocketAddr) -> Client {
    let mut client: Client = connect(router).await;
    let request = Request::get("http://front.example/healthz").body(Empty::new()).unwrap();
    let answer = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    client
}

fn handshake(mesh: &Mesh, protocol: Option<&'static str>) -> Request<Empty<Bytes>> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://front.example/socket?a=b");
    request.headers_mut().unwrap().extend(head(mesh.ports.app));
    request = request
        .header("sec-websocket-version", "13")
        .header("origin", "https://notebook.example");
    if let Some(protocol) = protocol {
        request = request.extension(Protocol::from_static(protocol));
    }
    request.body(Empty::new()).unwrap()
}

async fn ask(client: &mut Client, mesh: &Mesh) -> Response<Incoming> {
    let request = handshake(mesh, Some("websocket"));
    timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap()
}

async fn open(client: &mut Client, mesh: &Mesh) -> Socket {
    let mut answer = ask(client, mesh).await;
    assert_eq!(answer.status(), StatusCode::OK);
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!answer.headers().contains_key(name), "{name}");
    }
    let upgraded = timeout(PATIENCE, hyper::upgrade::on(&mut answer))
        .await
        .unwrap()
        .unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

async fn next(socket: &mut Socket) -> Message {
    timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
}

async fn closed(socket: &mut Socket) -> (u16, String) {
    loop {
        match next(socket).await {
            Message::Close(Some(close)) => return (close.code.into(), close.reason.as_str().to_owned()),
            Message::Close(None) => panic!("a close without a reason"),
            _ => {}
        }
    }
}

async fn say_hello(socket: &mut Socket) {
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(next(socket).await, Message::text("hello"));
}

/// A router that runs until it is told to drain.
fn run(mesh: &Mesh, flags: &[&str], change: impl FnOnce(&mut Config)) -> (SocketAddr, oneshot::Sender<()>) {
    let router = mesh.bind_router_with("default/alpha", POD_UID, flags, change);
    let address = router.http_address();
    let (drain, drained) = oneshot::channel();
    tokio::spawn(router.run(async {
        let _ = drained.await;
    }));
    (address, drain)
}

#[tokio::test]
async fn several_websockets_of_one_connection_talk_with_the_app() {
    let (app, _) = echo().await;
    let mesh = Mesh::open(app).await;
    for router in mesh.run_both(&[]) {
        let mut client = client(router).await;
        let mut sockets = Vec::new();
        for _ in 0..5 {
            sockets.push(open(&mut client, &mesh).await);
        }
        for socket in &mut sockets {
            say_hello(socket).await;
            let large = Message::binary(vec![7; 300_000]);
            socket.send(large.clone()).await.unwrap();
            assert_eq!(next(socket).await, large);
        }
        let mut socket = sockets.remove(0);
        socket.close(None).await.unwrap();
        assert!(matches!(next(&mut socket).await, Message::Close(_)));
        say_hello(&mut sockets[0]).await;
    }
}

/// A connection whose requests are all answered is idle, unless one of them has become something else.
#[tokio::test]
async fn a_websocket_is_no_idle_connection_however_long_it_lasts() {
    let (app, _) = echo().await;
    let mesh = Mesh::open(app).await;
    let soon = Duration::from_millis(300);
    let (router, _drain) = run(&mesh, &[], |config| {
        config.framing = Arc::new(Limits {
            idle_time: soon,
            head_time: soon,
            ..Limits::default()
        });
    });
    let mut client = client(router).await;
    let mut socket = open(&mut client, &mesh).await;
    for _ in 0..8 {
        sleep(soon).await;
        say_hello(&mut socket).await;
    }
}

#[tokio::test]
async fn the_app_sees_the_handshake_of_http_1_1() {
    let app = RecordingApp::answering(Step::Answer(
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno".to_vec(),
    ))
    .await;
    let mesh = Mesh::open(app).await;
    let mut client = client(mesh.router).await;
    let answer = ask(&mut client, &mesh).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let head = mesh.app.only_request().head;
    assert!(head.starts_with("GET /socket?a=b HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
    ] {
        assert_eq!(field(&head, name), [value], "{head}");
    }
    assert_eq!(field(&head, "sec-websocket-key").len(), 1, "{head}");
    assert_eq!(field(&head, "origin").len(), 0, "{head}");
}

#[tokio::test]
async fn an_answer_that_does_not_switch_is_never_taken_for_one_that_does() {
    for answer in [
        ok("hello"),
        b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec(),
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n".to_vec(),
    ] {
        let context = String::from_utf8_lossy(&answer).into_owned();
        let mesh = Mesh::open(RecordingApp::answering(Step::Answer(answer)).await).await;
        for router in mesh.run_both(&[]) {
            let mut client = client(router).await;
            let found = status_and_detail(ask(&mut client, &mesh).await).await;
            assert_eq!(
                found,
                (502, "Could not connect to the backend sandbox: alpha".into()),
                "{context}"
            );
        }
    }
}

#[tokio::test]
async fn other_protocols_and_plain_connect_are_405_and_the_app_hears_nothing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let mut client = client(mesh.router).await;
    for protocol in ["connect-udp", "webtransport", "WebSocket"] {
        let request = handshake(&mesh, Some(protocol));
        let answer = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
        assert_eq!(
            status_and_detail(answer).await,
            (405, "CONNECT is not supported.".into()),
            "{protocol}"
        );
    }
    let mut request = handshake(&mesh, None);
    *request.uri_mut() = "front.example:80".parse().unwrap();
    let answer = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    let mut request = handshake(&mesh, Some("websocket"));
    request.headers_mut().remove("authorization");
    let answer = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    mesh.app.assert_untouched("refused");
}

#[tokio::test]
async fn limits_and_closes_are_those_of_http_1_1() {
    let (app, mut closes) = echo().await;
    let mesh = Mesh::open(app).await;
    let flags = ["--websocket-max-connections-per-client=1"];
    let (router, _drain) = run(&mesh, &flags, |config| config.tunnels.message = 1000);
    let mut one = client(router).await;
    let mut socket = open(&mut one, &mesh).await;
    let found = status_and_detail(ask(&mut one, &mesh).await).await;
    assert_eq!(
        found,
        (429, "Too many concurrent WebSocket connections (limit: 1).".into())
    );
    socket.send(Message::binary(vec![1; 1001])).await.unwrap();
    let close = (1009, "message too big".to_owned());
    assert_eq!(closed(&mut socket).await, close);
    assert_eq!(timeout(PATIENCE, closes.recv()).await.unwrap().unwrap(), close);
    drop(socket);

    let (router, _drain) = run(&mesh, &[], |config| config.tunnels.idle = Duration::from_millis(300));
    let mut socket = open(&mut client(router).await, &mesh).await;
    assert_eq!(closed(&mut socket).await, (1001, "idle timeout exceeded".to_owned()));
}

#[tokio::test]
async fn a_drain_closes_websockets_and_says_so() {
    let (app, mut closes) = echo().await;
    let mesh = Mesh::open(app).await;
    let (router, drain) = run(&mesh, &[], |_| {});
    let mut client = client(router).await;
    let mut socket = open(&mut client, &mesh).await;
    say_hello(&mut socket).await;
    drain.send(()).unwrap();
    assert_eq!(closed(&mut socket).await.0, 1001);
    assert_eq!(timeout(PATIENCE, closes.recv()).await.unwrap().unwrap().0, 1001);
}

#[tokio::test]
async fn a_client_that_resets_its_stream_is_gone_for_the_app_too() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let app = RecordingApp::serving(move |stream| {
        let ended = ended.clone();
        async move {
            let Ok(mut socket) = accept_async(stream).await else {
                return;
            };
            while let Some(Ok(_)) = socket.next().await {}
            let _ = ended.send(());
        }
    });
    let mesh = Mesh::open(app.await).await;
    let mut client = client(mesh.router).await;
    let socket = open(&mut client, &mesh).await;
    drop(socket);
    timeout(PATIENCE, ends.recv())
        .await
        .expect("the app's end stays open")
        .unwrap();
    // And the connection is as good as before.
    open(&mut client, &mesh).await;
}
