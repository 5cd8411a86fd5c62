//! What a client's certificate proves ends, with its validity or with the trust in its authority, and with it what its connection
//! is used for: answers that go on, WebSockets, requests that are still to come.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use sandgate_tests::front::{Front, NAME, client, config, everybody};
use sandgate_tests::http2::{head, over};
use sandgate_tests::websocket::handshake;
use sandgate_tests::{PATIENCE, RecordingApp, exchange, read_until, status};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_tungstenite::accept_async;

/// Without tokens: the certificate says who calls. What is under way when it is over has two seconds.
const FLAGS: [&str; 3] = ["--auth-token=", "--authz-mode=allow-all", "--shutdown-timeout=2s"];
/// How long a certificate counts that ends within a test: enough for a slow machine to have begun.
const LIFE: Duration = Duration::from_secs(8);

/// An app that answers with events without end, and what it hears: each connection's bytes, and `gone` at its end.
async fn events() -> (RecordingApp, UnboundedReceiver<String>) {
    let (tell, hears) = unbounded_channel();
    let app = RecordingApp::serving(move |mut stream| {
        let tell = tell.clone();
        async move {
            let _ = tell.send(read_until(&mut stream, b"\r\n\r\n").await);
            let begun = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(begun.as_bytes()).await.unwrap();
            let mut bytes = [0; 4096];
            loop {
                tokio::select! {
                    read = stream.read(&mut bytes) => {
                        let read = read.unwrap_or(0);
                        let more = String::from_utf8_lossy(&bytes[..read]).into_owned();
                        let _ = tell.send(if read == 0 { "gone".into() } else { more });
                        if read == 0 {
                            return;
                        }
                    }
                    () = sleep(Duration::from_millis(50)) => {
                        let _ = stream.write_all(b"9\r\ndata: 1\n\n\r\n").await;
                    }
                }
            }
        }
    });
    (app.await, hears)
}

/// The app heard the end of what it was asked for, and nothing more.
async fn assert_gone(hears: &mut UnboundedReceiver<String>) {
    let last = timeout(PATIENCE, hears.recv()).await.expect("the app goes on");
    assert_eq!(last.unwrap(), "gone");
    sleep(Duration::from_millis(300)).await;
    assert!(hears.try_recv().is_err(), "the app was asked for more");
}

/// A certificate that ends soon, and when.
fn short_lived(authority: &Authority) -> (Issued, SystemTime) {
    let mut leaf = LeafSpec::new("alice", "", Usage::Client);
    (leaf.uris, leaf.not_after) = (vec![], SystemTime::now() + LIFE);
    (authority.issue(&leaf).unwrap(), leaf.not_after)
}

async fn until(time: SystemTime) {
    sleep(time.duration_since(SystemTime::now()).unwrap_or_default()).await;
}

/// A connection that is for HTTP/2.
async fn http2(front: &Front, certificate: &Issued) -> SendRequest<Full<Bytes>> {
    let mut config = ClientConfig::clone(&config(&front.authority, Some(certificate)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(front.https).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    over(connector.connect(NAME.try_into().unwrap(), stream).await.unwrap()).await
}

fn get(front: &Front) -> Request<Full<Bytes>> {
    let mut request = Request::get("http://front.example/").body(Full::default()).unwrap();
    request.headers_mut().extend(head(front.mesh.ports.app));
    request
}

/// Fails unless a stream of a connection whose certificate is over is refused: by 401, or since the connection takes no more.
async fn assert_refused(client: &mut SendRequest<Full<Bytes>>, front: &Front) {
    if let Ok(answer) = timeout(PATIENCE, client.send_request(get(front))).await.unwrap() {
        assert_eq!(answer.status(), 401);
    }
}

/// Uses a connection that stays open.
async fn assert_served(stream: &mut TlsStream<TcpStream>, front: &Front) {
    let head = front
        .mesh
        .head("GET / HTTP/1.1", "")
        .replace("Connection: close\r\n", "");
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(stream, b"hello").await;
    assert_eq!(status(&answer), 200, "{answer}");
}

#[tokio::test]
async fn events_end_soon_after_their_clients_certificate_and_so_does_the_app() {
    let (app, mut hears) = events().await;
    let front = Front::around(app, "required", &FLAGS, everybody).await;
    let (alice, end) = short_lived(&front.authority);
    let mut stream = front.connect(&front.authority, Some(&alice)).await.unwrap();
    let head = front
        .mesh
        .head("GET /events HTTP/1.1", "")
        .replace("Connection: close\r\n", "");
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(status(&read_until(&mut stream, b"data: 1\n\n").await), 200);
    assert!(hears.recv().await.unwrap().starts_with("GET /events "));
    until(end + Duration::from_secs(1)).await;
    // It goes on for a moment. What is asked for behind it is not for the app any more.
    let _ = stream
        .write_all(front.mesh.head("GET /more HTTP/1.1", "").as_bytes())
        .await;
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("events without end");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "the answer looks whole");
    assert_gone(&mut hears).await;
}

#[tokio::test]
async fn streams_of_http2_end_soon_after_their_clients_certificate_and_so_does_the_app() {
    let (app, mut hears) = events().await;
    let front = Front::around(app, "required", &FLAGS, everybody).await;
    let (alice, end) = short_lived(&front.authority);
    let mut client = http2(&front, &alice).await;
    let answer = timeout(PATIENCE, client.send_request(get(&front)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    assert!(
        timeout(PATIENCE, body.frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .is_data()
    );
    assert!(hears.recv().await.unwrap().starts_with("GET / "));
    until(end + Duration::from_secs(1)).await;
    assert_refused(&mut client, &front).await;
    let rest = timeout(PATIENCE, body.collect()).await.expect("a stream without end");
    assert!(rest.is_err(), "the answer looks whole");
    assert_gone(&mut hears).await;
}

#[tokio::test]
async fn a_replaced_client_bundle_costs_those_nothing_whom_it_still_has_and_ends_the_connections_of_all_others() {
    let front = Front::open("required").await;
    let successor = Authority::new("successor").unwrap();
    let (old, new) = (client(&front.authority, "alice", &[]), client(&successor, "alice", &[]));
    let mut kept = front.connect(&front.authority, Some(&old)).await.unwrap();
    assert_served(&mut kept, &front).await;
    let mut streams = http2(&front, &old).await;
    assert_eq!(streams.send_request(get(&front)).await.unwrap().status(), 200);
    assert_eq!(front.status(Some(&new)).await, 0);
    let both = front.authority.root_pem().to_owned() + successor.root_pem();
    front.folder.rename_over("clients.crt", both);
    front.reloads("success", 1).await;
    let statuses = (front.status(Some(&old)).await, front.status(Some(&new)).await);
    assert_eq!(statuses, (200, 200));
    // The old one's is still among them, and its connections are as good as before.
    assert_served(&mut kept, &front).await;
    assert_eq!(streams.send_request(get(&front)).await.unwrap().status(), 200);
    let mut renewed = front.connect(&front.authority, Some(&new)).await.unwrap();
    assert_served(&mut renewed, &front).await;

    front.folder.rename_over("clients.crt", successor.root_pem());
    front.reloads("success", 2).await;
    front.mesh.app.forget();
    assert_refused(&mut streams, &front).await;
    let _ = kept.write_all(front.mesh.head("GET / HTTP/1.1", "").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, kept.read_to_end(&mut answer))
        .await
        .expect("still open");
    let answer = String::from_utf8(answer).unwrap();
    assert!([0, 401].contains(&status(&answer)), "{answer}");
    assert_eq!(front.status(Some(&old)).await, 0);
    front.mesh.app.assert_untouched("nobody vouches for the client");
    assert_served(&mut renewed, &front).await;
}

#[tokio::test]
async fn answers_and_websockets_end_when_nobody_vouches_for_their_client_any_more() {
    let (app, mut hears) = events().await;
    let front = Front::around(app, "required", &FLAGS, everybody).await;
    let alice = client(&front.authority, "alice", &[]);
    let mut stream = front.connect(&front.authority, Some(&alice)).await.unwrap();
    stream
        .write_all(front.mesh.head("GET /events HTTP/1.1", "").as_bytes())
        .await
        .unwrap();
    assert_eq!(status(&read_until(&mut stream, b"data: 1\n\n").await), 200);
    assert!(hears.recv().await.unwrap().starts_with("GET /events "));
    let successor = Authority::new("successor").unwrap();
    front.folder.rename_over("clients.crt", successor.root_pem());
    let rest = exchange(stream, "", false).await;
    assert!(!rest.ends_with("0\r\n\r\n"), "the answer looks whole");
    assert_gone(&mut hears).await;

    let app = RecordingApp::serving(|stream| async move {
        let mut socket = accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            let _ = socket.send(message).await;
        }
    });
    let front = Front::around(app.await, "required", &FLAGS, everybody).await;
    let alice = client(&front.authority, "alice", &[]);
    let mut stream = front.connect(&front.authority, Some(&alice)).await.unwrap();
    stream
        .write_all(handshake(front.mesh.ports.app, "").as_bytes())
        .await
        .unwrap();
    let answer = read_until(&mut stream, b"\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    front.folder.rename_over("clients.crt", successor.root_pem());
    let mut last = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut last))
        .await
        .expect("a WebSocket without end");
    assert!(last.ends_with(b"max lifetime exceeded"), "{last:?}");
}
