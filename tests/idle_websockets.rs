//! What a WebSocket costs that says nothing. The only test of its process, whose allocations and open files it counts.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cap::Cap;
use sandgate_mesh::policy::model::DefaultPolicy;
use sandgate_tests::processes::open_files_at_hand;
use sandgate_tests::websocket::{handshake, masked};
use sandgate_tests::{Mesh, PATIENCE, POD_UID, RecordingApp, default_policy};
use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// WebSockets at once, if this process may open so many files: with both ends and all hops in it, each takes six.
const WANTED: usize = 1000;
/// Most bytes that a router may hold for each, in a cluster without gates.
const ROUTER: usize = 6 * 1024;
/// Most bytes that a router and a gate may hold for each, with their TLS.
const ROUTER_AND_GATE: usize = 32 * 1024;

fn websockets_at_hand() -> usize {
    (open_files_at_hand().saturating_sub(500) / 6).min(WANTED)
}

/// Reads a head that nothing follows. Bare sockets of the standard library: what Tokio's have besides would be measured, too.
fn read_head(stream: &mut TcpStream) -> Vec<u8> {
    let (mut head, mut bytes) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "ended after {:?}", String::from_utf8_lossy(&head));
        head.extend(&bytes[..read]);
    }
    head
}

/// Both ends of a new WebSocket.
fn open(router: SocketAddr, app: &TcpListener) -> [TcpStream; 2] {
    let mut client = TcpStream::connect(router).unwrap();
    let port = app.local_addr().unwrap().port();
    client
        .write_all(handshake(port, "X-Request-ID: of-the-client\r\n").as_bytes())
        .unwrap();
    let mut app = app.accept().unwrap().0;
    read_head(&mut app);
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    app.write_all(answer.as_bytes()).unwrap();
    assert!(read_head(&mut client).starts_with(b"HTTP/1.1 101 "));
    [client, app]
}

/// Sends a message to the app and back.
fn talk(ends: &mut [TcpStream; 2], message: &[u8]) {
    for _ in 0..2 {
        let [from, to] = ends;
        let mut seen = vec![0; message.len()];
        // The sockets on the way have room for it.
        from.write_all(message).unwrap();
        to.read_exact(&mut seen).unwrap();
        assert!(seen == message);
        ends.reverse();
    }
}

/// Waits until the process holds at most so many bytes more than it held.
async fn assert_within(bytes: usize, held: usize, what: &str) {
    let within = async {
        while ALLOCATOR.allocated().saturating_sub(held) > bytes {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let within = tokio::time::timeout(PATIENCE, within).await;
    let grown = ALLOCATOR.allocated().saturating_sub(held);
    assert!(
        within.is_ok(),
        "{what}: {grown} bytes are held, {bytes} would be enough"
    );
}

async fn assert_cheap(router: SocketAddr, app: TcpListener, count: usize, most: usize) -> TcpListener {
    // Larger than what is read at once.
    let message = masked(0x82, [1, 2, 3, 4], &vec![7; 40_000]);
    let opening = move || {
        let mut first = open(router, &app);
        talk(&mut first, &message);
        let held = ALLOCATOR.allocated();
        let websockets: Vec<_> = (0..count).map(|_| open(router, &app)).collect();
        (app, first, websockets, held, message)
    };
    let (app, first, mut websockets, held, message) = tokio::task::spawn_blocking(opening).await.unwrap();
    assert_within(count * most, held, &format!("{count} that never said anything")).await;
    let talking = move || {
        for ends in &mut websockets {
            talk(ends, &message);
        }
        websockets
    };
    let websockets = tokio::task::spawn_blocking(talking).await.unwrap();
    assert_within(count * most, held, &format!("{count} that fell silent")).await;
    drop((first, websockets));
    app
}

#[tokio::test]
async fn a_thousand_websockets_that_say_nothing_cost_little_before_and_after_they_said_much() {
    let count = websockets_at_hand();
    assert!(count >= 100, "{count} WebSockets: raise the limit of open files");
    let app = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = app.local_addr().unwrap().port();
    let policy = |_| default_policy(DefaultPolicy::Authenticated, vec![port]);
    let mesh = Mesh::start_with(RecordingApp::polite().await, policy, |settings| {
        settings.caps.connections.total = 2 * WANTED;
    });
    let mesh = mesh.await;
    let run = |flags: &[&str]| {
        let router = mesh.bind_router_with("default/alpha", POD_UID, flags, |config| {
            config.upgrades_per_client = None;
        });
        let address = router.http_address();
        tokio::spawn(router.run(std::future::pending()));
        address
    };
    let (without_gate, with_gate) = (run(&["--mesh=off"]), run(&[]));
    let app = assert_cheap(without_gate, app, count, ROUTER).await;
    assert_cheap(with_gate, app, count, ROUTER_AND_GATE).await;
}
