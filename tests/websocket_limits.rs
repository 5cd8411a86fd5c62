//! How many upgraded connections one client may have, who one client is, and where the limits come from.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::processes::{Process, Programs, command, json_lines};
use sandgate_tests::websocket::{connect_raw, handshake};
use sandgate_tests::{
    Mesh, PATIENCE, POD_UID, RecordingApp, TOKEN, assert_detail, field, programs, read_until, send, status,
};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PROGRAMS: Programs = programs!();
const TOO_MANY: &str = "Too many concurrent WebSocket connections (limit: 2).";

/// An app that takes every upgrade, and counts the requests that come to it.
async fn app() -> (RecordingApp, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let app = RecordingApp::serving(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            let head = read_until(&mut stream, b"\r\n\r\n").await;
            count.fetch_add(1, Ordering::Relaxed);
            let answer = if head.contains("/socket ") {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            } else {
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    (app.await, asked)
}

/// A router with two places for each client.
fn run(mesh: &Mesh, flags: &[&str]) -> SocketAddr {
    let router = mesh.bind_router_with("default/alpha", POD_UID, flags, |config| {
        config.upgrades_per_client = NonZeroUsize::new(2);
    });
    let address = router.http_address();
    tokio::spawn(router.run(std::future::pending()));
    address
}

/// Asks for one upgrade more than there are places for.
async fn refused(router: SocketAddr, port: u16, fields: &str) {
    let fields = format!("{fields}Connection: close\r\n");
    let answer = send(router, handshake(port, &fields)).await;
    assert_detail(&answer, 429, TOO_MANY, &fields);
    assert_eq!(field(&answer, "retry-after"), ["1"]);
}

/// Tries until an upgrade is taken.
async fn taken_again(router: SocketAddr, port: u16, fields: &str) -> TcpStream {
    let taken = async {
        loop {
            let mut stream = TcpStream::connect(router).await.unwrap();
            stream.write_all(handshake(port, fields).as_bytes()).await.unwrap();
            if status(&read_until(&mut stream, b"\r\n\r\n").await) == 101 {
                break stream;
            }
        }
    };
    timeout(PATIENCE, taken).await.expect("no place was freed")
}

#[tokio::test]
async fn one_client_gets_its_share_over_all_workers_and_a_place_again_when_a_websocket_ends() {
    let (app, asked) = app().await;
    let mesh = Mesh::open(app).await;
    let (router, port) = (run(&mesh, &["--workers=3"]), mesh.ports.app);
    let (first, _) = connect_raw(router, port, "").await;
    let (_second, _) = connect_raw(router, port, "").await;
    for _ in 0..4 {
        refused(router, port, "").await;
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2, "the app was asked");

    // A stranger learns nothing of that, and plain requests have nothing to do with it.
    let unknown = handshake(port, "Connection: close\r\n").replace(TOKEN, "wrong");
    assert_eq!(status(&send(router, unknown).await), 401);
    assert_eq!(status(&send(router, mesh.head("GET / HTTP/1.1", "")).await), 200);

    drop(first);
    let _third = taken_again(router, port, "").await;
    refused(router, port, "").await;
}

#[tokio::test]
async fn an_upgrade_that_is_declined_or_fails_leaves_its_place() {
    let (app, _) = app().await;
    let mesh = Mesh::open(app).await;
    let (router, port) = (run(&mesh, &[]), mesh.ports.app);
    let fields = "Connection: close\r\n";
    for _ in 0..3 {
        let declined = handshake(port, fields).replace("/socket ", "/ ");
        assert_eq!(status(&send(router, declined).await), 200);
        let unknown = handshake(port, fields).replace("ID: alpha", "ID: nobody");
        assert_eq!(status(&send(router, unknown).await), 502);
        let refused = handshake(1, fields);
        assert_eq!(status(&send(router, refused).await), 403);
    }
    connect_raw(router, port, "").await;
}

#[tokio::test]
async fn whatever_is_upgraded_counts_and_not_only_what_says_that_it_is_a_websocket() {
    let (app, _) = app().await;
    let mesh = Mesh::open(app).await;
    let (router, port) = (run(&mesh, &[]), mesh.ports.app);
    let _kept = [connect_raw(router, port, "").await, connect_raw(router, port, "").await];
    let other = handshake(port, "").replace("Upgrade: websocket", "Upgrade: echo");
    let mut stream = TcpStream::connect(router).await.unwrap();
    stream.write_all(other.as_bytes()).await.unwrap();
    assert_eq!(status(&read_until(&mut stream, b"}").await), 429);
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_client_has_its_own_share_and_nobody_makes_up_another() {
    let (app, _) = app().await;
    let mesh = Mesh::open(app).await;
    let trusting = run(&mesh, &["--trusted-proxy-cidrs=127.0.0.0/8,10.0.0.0/8"]);
    let port = mesh.ports.app;
    let one = "X-Forwarded-For: 192.0.2.1, 10.0.0.7\r\n";
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(connect_raw(trusting, port, one).await);
    }
    refused(trusting, port, one).await;
    // What a client claims stands to the left of what the proxy saw.
    for claimed in ["203.0.113.9", "unknown", "10.0.0.8, 198.51.100.1"] {
        refused(trusting, port, &format!("X-Forwarded-For: {claimed}, 192.0.2.1\r\n")).await;
    }
    let another = "X-Forwarded-For: 192.0.2.1, 192.0.2.2\r\n";
    kept.push(connect_raw(trusting, port, another).await);

    // From anybody else the header counts for nothing.
    let wary = run(&mesh, &[]);
    for number in 1..=2 {
        kept.push(connect_raw(wary, port, &format!("X-Forwarded-For: 192.0.2.{number}\r\n")).await);
    }
    refused(wary, port, "X-Forwarded-For: 192.0.2.3\r\n").await;
}

/// What a router says of its configuration and what it warns of, with these variables set.
async fn configured(variables: &[(&str, &str)]) -> (String, Vec<String>) {
    let flags = [
        "--mesh=off",
        "--authz-mode=allow-all",
        "--http-bind-address=127.0.0.1:0",
        "--metrics-bind-address=127.0.0.1:0",
        "--health-probe-bind-address=127.0.0.1:0",
    ];
    let mut command = command(PROGRAMS.router, flags);
    command.envs(variables.iter().copied());
    let mut router = Process::start(command);
    router.listens(["http"]).await;
    let lines = json_lines(&router.stderr());
    let effective = lines
        .iter()
        .find(|line| line["message"] == "effective configuration")
        .unwrap();
    let warnings = lines.iter().filter(|line| line["level"] == "WARN");
    (
        effective["settings"].as_str().unwrap().to_owned(),
        warnings
            .map(|line| line["message"].as_str().unwrap().to_owned())
            .collect(),
    )
}

#[tokio::test]
async fn the_old_variables_set_the_limits_0_takes_them_away_and_a_bad_value_warns_and_falls_back() {
    const NAMES: [&str; 4] = [
        "WEBSOCKET_IDLE_TIMEOUT_SECONDS",
        "WEBSOCKET_MAX_LIFETIME_SECONDS",
        "WEBSOCKET_MAX_CONNECTIONS_PER_CLIENT",
        "WEBSOCKET_MAX_MESSAGE_BYTES",
    ];
    const FLAGS: [&str; 4] = [
        "websocket-idle-timeout",
        "websocket-max-lifetime",
        "websocket-max-connections-per-client",
        "websocket-max-message-bytes",
    ];
    let default = ["3600s", "86400s", "64", "16777216"];
    for (values, expected, bad) in [
        (None, default, 0),
        (
            Some(["2.5", "600", "8", "33554432"]),
            ["2.5s", "600s", "8", "33554432"],
            0,
        ),
        (Some(["0"; 4]), ["0s", "0s", "0", "0"], 0),
        (Some(["-1"; 4]), default, 4),
        (Some(["soon", "inf", "2.5", "16MiB"]), default, 4),
    ] {
        let variables: Vec<_> = values.map_or(Vec::new(), |values| NAMES.into_iter().zip(values).collect());
        let (config, warnings) = configured(&variables).await;
        for (flag, expected) in FLAGS.into_iter().zip(expected) {
            let wanted = [format!("{flag}={expected},"), format!("{flag}={expected} (")];
            assert!(
                wanted.iter().any(|wanted| config.contains(wanted)),
                "{wanted:?} {variables:?}: {config}"
            );
        }
        let warned = NAMES
            .iter()
            .filter(|name| warnings.iter().any(|warning| warning.contains(*name)));
        assert_eq!(warned.count(), bad, "{variables:?}: {warnings:?}");
    }
}

#[tokio::test]
async fn no_limit_means_no_limit() {
    let (app, _) = app().await;
    let mesh = Mesh::open(app).await;
    let router = mesh.bind_router_with("default/alpha", POD_UID, &[], |config| {
        config.upgrades_per_client = None;
    });
    let address = router.http_address();
    tokio::spawn(router.run(std::future::pending()));
    let mut kept = Vec::new();
    for _ in 0..70 {
        kept.push(connect_raw(address, mesh.ports.app, "").await);
    }
}
