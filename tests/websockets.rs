//! How WebSockets end that the router or the gate ends: with a close frame to both sides, between two frames of theirs, and
//! with nothing of what may not pass.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::{SinkExt, StreamExt};
use sandbox_router::config::Config;
use sandgate_mesh::policy::model::DefaultPolicy;
use sandgate_tests::processes::until_metric;
use sandgate_tests::websocket::{self, Socket, close_in, closed, connect_raw, echo, frame, masked, next, read};
use sandgate_tests::{Mesh, POD_UID, RecordingApp, default_policy, read_until};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// No step of an exchange takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// A time limit that a test waits for.
const SOON: Duration = Duration::from_millis(300);
/// Longest message where a test says so.
const LONGEST: u64 = 1000;

/// An app that makes the handshake with the `fields` given, says `says` when it has heard a byte, and tells every byte that
/// it was sent once its connection ends.
async fn raw(fields: &'static str, says: Vec<u8>) -> (RecordingApp, UnboundedReceiver<Vec<u8>>) {
    let (report, reported) = mpsc::unbounded_channel();
    let app = RecordingApp::serving(move |mut stream| {
        let (report, says) = (report.clone(), says.clone());
        async move {
            read_until(&mut stream, b"\r\n\r\n").await;
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{fields}\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut heard = Vec::new();
            if !says.is_empty() {
                stream.read_buf(&mut heard).await.unwrap();
                stream.write_all(&says).await.unwrap();
            }
            let _ = stream.read_to_end(&mut heard).await;
            let _ = report.send(heard);
        }
    });
    (app.await, reported)
}

async fn told<T>(reported: &mut UnboundedReceiver<T>) -> T {
    timeout(PATIENCE, reported.recv()).await.unwrap().unwrap()
}

/// Everything that comes until the connection ends.
async fn rest_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    ended.unwrap().unwrap();
    bytes
}

/// A router that runs until it is told to drain.
struct Running {
    http: SocketAddr,
    metrics: SocketAddr,
    drain: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

fn run(mesh: &Mesh, flags: &[&str], change: impl FnOnce(&mut Config)) -> Running {
    let router = mesh.bind_router_with("default/alpha", POD_UID, flags, change);
    let (http, metrics) = (router.http_address(), router.metrics_address());
    let (drain, drained) = oneshot::channel();
    let ended = tokio::spawn(async move {
        let shutdown = async {
            let _ = drained.await;
        };
        router.run(shutdown).await.unwrap();
    });
    Running {
        http,
        metrics,
        drain,
        ended,
    }
}

fn short_messages(config: &mut Config) {
    config.tunnels.message = LONGEST;
}

async fn say_hello(socket: &mut Socket) {
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(next(socket).await, Message::text("hello"));
}

#[tokio::test]
async fn a_silent_websocket_is_closed_and_both_ends_hear_why() {
    let (app, mut closes) = echo().await;
    let mesh = Mesh::open(app).await;
    let router = run(&mesh, &[], |config| config.tunnels.idle = SOON);
    let mut socket = websocket::connect(router.http, mesh.ports.app).await;
    let close = (1001, "idle timeout exceeded".to_owned());
    assert_eq!(closed(&mut socket).await, close);
    assert_eq!(told(&mut closes).await, close);
    let ended = "sandbox_router_tunnels_ended_total{reason=\"idle\"}";
    until_metric(router.metrics, ended, "1").await;
    until_metric(router.metrics, "sandbox_router_open_tunnels", "0").await;
}

#[tokio::test]
async fn a_websocket_in_use_is_closed_when_it_has_lasted_too_long_and_both_ends_hear_why() {
    let (app, mut closes) = echo().await;
    let mesh = Mesh::open(app).await;
    let router = run(&mesh, &[], |config| config.tunnels.lifetime = SOON);
    let mut socket = websocket::connect(router.http, mesh.ports.app).await;
    let close = loop {
        // Its close may be here before this is sent.
        let _ = socket.send(Message::text("busy")).await;
        match next(&mut socket).await {
            Message::Close(close) => break close.unwrap(),
            message => assert_eq!(message, Message::text("busy")),
        }
    };
    let expected = (1001, "max lifetime exceeded".to_owned());
    assert_eq!((close.code.into(), close.reason.as_str().to_owned()), expected);
    // The real client answers the close as it goes on.
    assert!(
        timeout(PATIENCE, socket.next())
            .await
            .unwrap()
            .is_none_or(|end| end.is_err())
    );
    assert_eq!(told(&mut closes).await, expected);
}

#[tokio::test]
async fn a_gate_that_ends_a_websocket_says_why_as_the_router_does() {
    let (app, mut closes) = echo().await;
    let policy = |ports: sandgate_tests::Ports| default_policy(DefaultPolicy::Authenticated, vec![ports.app]);
    // A limit for those who call the gate themselves: what comes through a router has the router's.
    let mesh = Mesh::start_with(app, policy, |settings| settings.caps.tunnels.lifetime = SOON).await;
    let mut socket = websocket::connect(mesh.router, mesh.ports.app).await;
    tokio::time::sleep(2 * SOON).await;
    say_hello(&mut socket).await;
    mesh.gate_drain.start();
    let close = (1001, "shutting down".to_owned());
    assert_eq!(closed(&mut socket).await, close);
    assert_eq!(told(&mut closes).await, close);
}

#[tokio::test]
async fn a_draining_router_closes_websockets_and_ends_as_soon_as_both_ends_have_answered() {
    let (app, mut closes) = echo().await;
    let mesh = Mesh::open(app).await;
    // Whoever waits for the whole budget, waits too long for this test.
    let router = run(&mesh, &["--shutdown-timeout=1h"], |_| {});
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let mut socket = websocket::connect(router.http, mesh.ports.app).await;
        say_hello(&mut socket).await;
        sockets.push(socket);
    }
    router.drain.send(()).unwrap();
    let close = (1001, "shutting down".to_owned());
    for socket in &mut sockets {
        assert_eq!(closed(socket).await, close);
        assert_eq!(told(&mut closes).await, close);
    }
    timeout(PATIENCE, router.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn ends_that_do_not_answer_hold_a_drain_up_for_seconds_at_most_and_never_beyond_its_budget() {
    for budget in ["1h", "100ms"] {
        let (app, mut heard) = raw("", Vec::new()).await;
        let mesh = Mesh::open(app).await;
        let router = run(&mesh, &[&format!("--shutdown-timeout={budget}")], |_| {});
        let (mut client, _) = connect_raw(router.http, mesh.ports.app, "").await;
        router.drain.send(()).unwrap();
        // Neither reads nor answers for as long as the router lives.
        timeout(PATIENCE, router.ended).await.unwrap().unwrap();
        if budget == "1h" {
            let close = "shutting down".to_owned();
            assert_eq!(close_in(&rest_of(&mut client).await), (false, 1001, close.clone()));
            assert_eq!(close_in(&told(&mut heard).await), (true, 1001, close));
        }
    }
}

#[tokio::test]
async fn a_draining_gate_closes_websockets_and_both_ends_hear_why() {
    let (app, mut closes) = echo().await;
    let mesh = Mesh::open(app).await;
    let mut socket = websocket::connect(mesh.router, mesh.ports.app).await;
    say_hello(&mut socket).await;
    let draining = tokio::spawn(mesh.gate_drain.finish(Duration::from_secs(3600)));
    let close = (1001, "shutting down".to_owned());
    assert_eq!(closed(&mut socket).await, close);
    assert_eq!(told(&mut closes).await, close);
    assert!(timeout(PATIENCE, draining).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_message_of_the_longest_length_passes_either_way_and_a_longer_one_is_told_to_both_ends() {
    let (app, mut closes) = echo().await;
    let mesh = Mesh::open(app).await;
    let router = run(&mesh, &[], short_messages);
    let mut socket = websocket::connect(router.http, mesh.ports.app).await;
    let longest = Message::binary(vec![7; usize::try_from(LONGEST).unwrap()]);
    for _ in 0..3 {
        socket.send(longest.clone()).await.unwrap();
        assert!(next(&mut socket).await == longest);
    }
    let longer = Message::binary(vec![7; usize::try_from(LONGEST).unwrap() + 1]);
    socket.send(longer).await.unwrap();
    let close = (1009, "message too big".to_owned());
    assert_eq!(closed(&mut socket).await, close);
    assert_eq!(told(&mut closes).await, close);
    let ended = "sandbox_router_tunnels_ended_total{reason=\"message-too-big\"}";
    until_metric(router.metrics, ended, "1").await;
}

#[tokio::test]
async fn nothing_of_a_message_from_a_client_that_is_too_long_reaches_the_app() {
    let first = masked(0x02, [1, 2, 3, 4], &[7; 600]);
    let ping = masked(0x89, [9; 4], b"still there?");
    for (passes, too_long) in [
        (Vec::new(), masked(0x82, [1, 2, 3, 4], &[7; 1001])),
        // Fragments that are one message, whatever is said between them.
        ([first.clone(), ping].concat(), masked(0x80, [5; 4], &[7; 401])),
        (first, masked(0x00, [5; 4], &[7; 401])),
    ] {
        let (app, mut heard) = raw("", Vec::new()).await;
        let mesh = Mesh::open(app).await;
        let router = run(&mesh, &[], short_messages);
        let (mut client, _) = connect_raw(router.http, mesh.ports.app, "").await;
        client.write_all(&[&passes[..], &too_long].concat()).await.unwrap();
        client.write_all(&masked(0x88, [0; 4], &[])).await.unwrap();
        let close = "message too big".to_owned();
        assert_eq!(close_in(&rest_of(&mut client).await), (false, 1009, close.clone()));
        let heard = told(&mut heard).await;
        assert!(heard.starts_with(&passes));
        assert_eq!(close_in(&heard[passes.len()..]), (true, 1009, close));
    }
}

#[tokio::test]
async fn nothing_of_a_message_from_an_app_that_is_too_long_reaches_the_client() {
    let first = frame(0x01, &[b'a'; 600]);
    for (passes, too_long) in [
        (Vec::new(), frame(0x82, &[7; 1001])),
        (first, frame(0x80, &[b'a'; 401])),
    ] {
        let (app, mut heard) = raw("", [&passes[..], &too_long].concat()).await;
        let mesh = Mesh::open(app).await;
        let router = run(&mesh, &[], short_messages);
        let (mut client, _) = connect_raw(router.http, mesh.ports.app, "").await;
        let asked = masked(0x81, [3; 4], b"go on");
        client.write_all(&asked).await.unwrap();
        let close = "message too big".to_owned();
        assert_eq!(read(&mut client, passes.len()).await, passes);
        assert_eq!(close_in(&rest_of(&mut client).await), (false, 1009, close.clone()));
        let heard = told(&mut heard).await;
        assert!(heard.starts_with(&asked));
        assert_eq!(close_in(&heard[asked.len()..]), (true, 1009, close));
    }
}

#[tokio::test]
async fn a_frame_that_two_readers_may_read_in_two_ways_reaches_nobody() {
    let long_ping = masked(0x89, [1; 4], &[0; 126]);
    let half_close = masked(0x08, [1; 4], b"\x03\xe8");
    let endless = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1].to_vec();
    for bad in [long_ping, half_close, endless] {
        let (app, mut heard) = raw("", Vec::new()).await;
        let mesh = Mesh::open(app).await;
        let (mut client, _) = connect_raw(mesh.router, mesh.ports.app, "").await;
        client.write_all(&bad).await.unwrap();
        let close = "malformed frame".to_owned();
        assert_eq!(close_in(&rest_of(&mut client).await), (false, 1002, close.clone()));
        assert_eq!(close_in(&told(&mut heard).await), (true, 1002, close));
    }
}

#[tokio::test]
async fn extensions_are_agreed_on_end_to_end_and_their_bits_pass_as_they_are() {
    let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    // Compressed messages have the first reserved bit set; the others are for extensions to come.
    let from_app = [0xc1, 0xa2, 0xf2]
        .map(|first| frame(first, b"\xf2\x48\xcd\xc9\xc9\x07\x00"))
        .concat();
    let from_client = [0xc1, 0xa2, 0xf2, 0xc9]
        .map(|first| masked(first, [7, 0, 255, 1], b"\xf2\x48\xcd"))
        .concat();
    let (app, mut heard) = raw(extension, from_app.clone()).await;
    let mesh = Mesh::open(app).await;
    let (mut client, answer) = connect_raw(mesh.router, mesh.ports.app, extension).await;
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("\r\nsec-websocket-extensions: permessage-deflate\r\n")
    );
    client.write_all(&from_client).await.unwrap();
    assert_eq!(read(&mut client, from_app.len()).await, from_app);
    client.shutdown().await.unwrap();
    assert_eq!(told(&mut heard).await, from_client);
}

#[tokio::test]
async fn a_hundred_websockets_at_once_each_hear_only_their_own() {
    let (app, _closes) = echo().await;
    let mesh = Mesh::open(app).await;
    let router = run(&mesh, &["--workers=2"], |config| config.upgrades_per_client = None);
    let (http, port) = (router.http, mesh.ports.app);
    let clients = (0..100_usize).map(|number| {
        tokio::spawn(async move {
            let mut socket = websocket::connect(http, port).await;
            for round in 0..5 {
                let text = format!("{number}-{round}-").repeat(1 + number * 31 % 2000);
                socket.send(Message::text(text.clone())).await.unwrap();
                assert!(
                    next(&mut socket).await == Message::text(text),
                    "another socket's message"
                );
            }
            socket
        })
    });
    // All of them are open when the last one has said everything.
    let mut sockets = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        sockets.push(client.await.unwrap());
    }
    until_metric(router.metrics, "sandbox_router_open_tunnels", "100").await;
}
