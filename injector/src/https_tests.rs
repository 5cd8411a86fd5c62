use crate::authority_secret::Stored;
use crate::rig::{Client, PATIENCE, Rig, certificate, connect};
use crate::testing::settings;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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

#[tokio::test]
async fn one_peer_cannot_take_every_connection() {
    let rig = Rig::start(settings()).await;
    let mut held = Vec::new();
    let full = async {
        while rig.metrics.refused_connections.get() == 0 {
            held.push(TcpStream::connect(rig.address).await.unwrap());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, full).await.unwrap();
    assert!(held.len() >= super::CONNECTIONS.per_peer, "{}", held.len());
    const { assert!(super::CONNECTIONS.per_peer < super::CONNECTIONS.total) };
}

#[test]
fn api_servers_close_idle_connections_first() {
    // What net/http's transport keeps them for.
    assert!(super::IDLE_TIME > Duration::from_secs(90));
}
