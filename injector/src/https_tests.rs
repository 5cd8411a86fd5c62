use super::{Failing, HandshakeError, Https, TELL_EVERY};
use crate::authority_stored::Stored;
use crate::captured::Captured;
use crate::https_places::Places;
use crate::metrics::Metrics;
use crate::rig::{Client, PATIENCE, Rig, certificate, connect};
use crate::testing::settings;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use sandgate_mesh::listener::ConnectionLimits;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use warp::Filter;

/// A request that the webhook answers with 400, which is an answer.
fn request() -> Request<Full<Bytes>> {
    Request::post("/mutate")
        .header("content-type", "application/json")
        .body(Full::default())
        .unwrap()
}

#[tokio::test]
async fn without_a_certificate_there_is_no_handshake_and_with_one_there_is() {
    let rig = Rig::without_certificate(settings()).await;
    assert!(rig.connect(b"h2").await.is_err());
    rig.serve_with(&rig.stored);
    assert!(rig.connect(b"h2").await.is_ok());
}

/// A client that is shown it takes it in its last second, or says what is wrong with it. One that is shown none can do
/// neither.
#[tokio::test]
async fn an_expired_certificate_is_not_even_shown() {
    let rig = Rig::without_certificate(settings()).await;
    rig.serve_for(&rig.stored, Duration::ZERO);
    let refused = rig.connect(b"h2").await.unwrap_err();
    let about_tls = refused
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<rustls::Error>());
    assert_eq!(about_tls, None, "{refused}");
}

#[tokio::test]
async fn a_client_that_refuses_the_certificate_is_counted_and_one_that_only_looks_is_not() {
    let rig = Rig::start(settings()).await;
    let mut looks = TcpStream::connect(rig.address).await.unwrap();
    looks.shutdown().await.unwrap();
    looks.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(rig.metrics.handshake_failures.get(), 0);
    let other = Stored::new();
    connect(rig.address, other.authority.root(), b"h2").await.unwrap_err();
    let counted = async {
        while rig.metrics.handshake_failures.get() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    assert_eq!(rig.metrics.handshake_failures.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn failing_handshakes_are_warned_of_once_a_minute_with_their_number() {
    let https = Https {
        routes: warp::path::end().map(|| ""),
        served: tokio::sync::watch::channel(None).1,
        leaving: sandgate_mesh::drain::channel().0.state(),
        metrics: Arc::new(Metrics::new().unwrap()),
        failing: Failing::default(),
    };
    let fails = || https.handshake_failed([10, 0, 0, 1].into(), &HandshakeError::TimedOut);
    let first = Captured::of(|| (0..3).for_each(|_| fails()));
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(
        first[0].contains("peer=10.0.0.1 ") && first[0].contains("failures=1 "),
        "{first:?}"
    );
    tokio::time::advance(TELL_EVERY).await;
    let second = Captured::of(|| (0..3).for_each(|_| fails()));
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(second[0].contains("failures=3 "), "two before and this one: {second:?}");
    assert_eq!(https.metrics.handshake_failures.get(), 6);
}

#[tokio::test]
async fn every_answer_is_timed() {
    let rig = Rig::start(settings()).await;
    let mut client = Client::new(rig.connect(b"h2").await.unwrap(), b"h2").await;
    client.send(request()).await.unwrap();
    client.send(request()).await.unwrap();
    let families = rig.metrics.registry.gather();
    let durations = families
        .iter()
        .find(|family| family.name() == "sandgate_injector_admission_duration_seconds")
        .expect("some are there");
    assert_eq!(durations.get_metric()[0].get_histogram().get_sample_count(), 2);
}

#[tokio::test]
async fn a_client_of_another_root_does_not_believe_the_webhook() {
    let rig = Rig::start(settings()).await;
    assert!(
        connect(rig.address, Stored::new().authority.root(), b"h2")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_breaks_none() {
    let rig = Rig::start(settings()).await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let stream = rig.connect(alpn).await.unwrap();
        let before = certificate(&stream);
        let mut client = Client::new(stream, alpn).await;
        client.send(request()).await.unwrap();
        rig.serve_with(&rig.stored);
        assert_ne!(certificate(&rig.connect(alpn).await.unwrap()), before);
        client.send(request()).await.expect("the old connection goes on");
    }
}

#[tokio::test]
async fn a_review_under_way_is_answered_although_the_process_ends() {
    let mut rig = Rig::start(settings()).await;
    let mut stream = rig.connect(b"http/1.1").await.unwrap();
    let head = "POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\
                expect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut wanted = [0; 25];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut wanted))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(wanted, *b"HTTP/1.1 100 Continue\r\n\r\n", "its body is waited for");
    let draining = tokio::spawn(rig.drain.take().unwrap().finish(PATIENCE));
    // From here on nobody listens.
    let closed = async {
        while TcpStream::connect(rig.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
    stream.write_all(b"{}").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(draining.await.unwrap(), "nothing was left over");
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let mut rig = Rig::start(settings()).await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let mut client = Client::new(rig.connect(alpn).await.unwrap(), alpn).await;
        client.send(request()).await.unwrap();
        std::mem::forget(client);
    }
    let silent = TcpStream::connect(rig.address).await.unwrap();
    assert!(rig.drain.take().unwrap().finish(PATIENCE / 2).await);
    drop(silent);
}

#[tokio::test]
async fn once_the_process_leaves_clients_are_told_to_connect_elsewhere() {
    let rig = Rig::start(settings()).await;
    let mut client = Client::new(rig.connect(b"http/1.1").await.unwrap(), b"http/1.1").await;
    let before = client.send(request()).await.unwrap();
    assert!(!before.headers().contains_key("connection"), "{before:?}");
    rig.leave.start();
    let after = client.send(request()).await.unwrap();
    assert_eq!(after.headers()["connection"], "close");
    assert_eq!(after.status(), StatusCode::BAD_REQUEST, "and still answered");
    assert!(client.send(request()).await.is_err());
    let mut client = Client::new(rig.connect(b"h2").await.unwrap(), b"h2").await;
    assert!(
        !client
            .send(request())
            .await
            .unwrap()
            .headers()
            .contains_key("connection")
    );
}

/// A connection from an address of its own on loopback.
async fn connect_from(neighbour: u8, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, neighbour], 0).into()).unwrap();
    socket.connect(address).await.unwrap()
}

#[tokio::test]
async fn one_peer_cannot_take_every_connection() {
    let limits = ConnectionLimits { total: 20, per_peer: 4 };
    let rig = Rig::within(Places { limits, room: 10 }, settings()).await;
    rig.serve_with(&rig.stored);
    let held = [(); 4].map(|()| connect_from(2, rig.address));
    let held = futures_util::future::join_all(held).await;
    let mut fifth = connect_from(2, rig.address).await;
    assert_eq!(fifth.read(&mut [0]).await.unwrap(), 0, "refused");
    assert_eq!(rig.metrics.refused_connections.get(), 1);
    assert!(rig.connect(b"h2").await.is_ok());
    drop(held);
    let whole = Places::ALL.limits;
    assert!(whole.per_peer < whole.total);
    assert!(whole.per_peer >= 1200, "an API server's, of two calls each");
}

#[tokio::test]
async fn silent_connections_from_two_addresses_make_room_for_a_review() {
    let limits = ConnectionLimits {
        total: 100,
        per_peer: 50,
    };
    let rig = Rig::within(Places { limits, room: 20 }, settings()).await;
    rig.serve_with(&rig.stored);
    let mut silent = Vec::new();
    for neighbour in [2, 3] {
        for _ in 0..limits.per_peer {
            silent.push(connect_from(neighbour, rig.address).await);
        }
    }
    let (status, _) = rig.send(b"http/1.1", request()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "answered");
    // A burst of calls finds room as well.
    const { assert!(Places::ALL.room >= 600) };
}

#[tokio::test]
async fn connections_that_ask_nothing_more_make_room_for_a_review() {
    let limits = ConnectionLimits {
        total: 20,
        per_peer: 20,
    };
    let rig = Rig::within(Places { limits, room: 4 }, settings()).await;
    rig.serve_with(&rig.stored);
    let mut used = Client::new(rig.connect(b"http/1.1").await.unwrap(), b"http/1.1").await;
    let mut idle = Vec::new();
    for alpn in [&b"http/1.1"[..], b"h2"].into_iter().cycle().take(30) {
        // One that says nothing after its handshake, and one that asked once.
        idle.push(Err(rig.connect(alpn).await.unwrap()));
        let mut client = Client::new(rig.connect(alpn).await.unwrap(), alpn).await;
        client.send(request()).await.unwrap();
        idle.push(Ok(client));
        used.send(request()).await.expect("what is used stays");
    }
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_ever_asked_ends() {
    let rig = Rig::start(settings()).await;
    let mut silent = rig.connect(b"http/1.1").await.unwrap();
    tokio::time::pause();
    let ended = tokio::time::timeout(2 * super::IDLE_TIME, silent.read_to_end(&mut Vec::new())).await;
    ended.expect("still open").unwrap_err();
}

#[test]
fn api_servers_close_idle_connections_first() {
    // What net/http's transport keeps them for.
    assert!(super::IDLE_TIME > Duration::from_secs(90));
}
