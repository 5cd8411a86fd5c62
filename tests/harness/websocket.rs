//! A real client of WebSockets, and one that says what no library would.

use crate::{PATIENCE, RecordingApp, TOKEN, read_until, status};
use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Message, http::Request};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

/// A WebSocket of the real client, or of an app.
pub type Socket = WebSocketStream<TcpStream>;

/// The real client's, through `router` to this port of `alpha`.
pub async fn connect(router: SocketAddr, port: u16) -> Socket {
    let mut request: Request<()> = format!("ws://{router}/socket").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    headers.insert("x-sandbox-id", "alpha".parse().unwrap());
    headers.insert("x-sandbox-port", port.into());
    // A browser's, which the app would compare with a Host that it never sees.
    headers.insert("origin", "https://notebook.example".parse().unwrap());
    let stream = TcpStream::connect(router).await.unwrap();
    let (socket, response) = timeout(PATIENCE, client_async(request, stream)).await.unwrap().unwrap();
    assert_eq!(response.status(), 101);
    socket
}

/// The next message.
pub async fn next(socket: &mut Socket) -> Message {
    timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap()
}

/// The code and the reason of the close that comes next, after which the connection ends.
pub async fn closed(socket: &mut Socket) -> (u16, String) {
    let Message::Close(Some(CloseFrame { code, reason })) = next(socket).await else {
        panic!("no close frame")
    };
    assert!(
        timeout(PATIENCE, socket.next())
            .await
            .unwrap()
            .is_none_or(|end| end.is_err())
    );
    (code.into(), reason.as_str().to_owned())
}

/// The head of a handshake, with `fields` (each ended with CRLF).
pub fn handshake(port: u16, fields: &str) -> String {
    format!(
        "GET /socket HTTP/1.1\r\nHost: sandbox.example\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: alpha\r\n\
         X-Sandbox-Port: {port}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    )
}

/// A connection that has made its handshake and says whatever it is told. Returns the head of the answer, too.
pub async fn connect_raw(router: SocketAddr, port: u16, fields: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(router).await.unwrap();
    stream.write_all(handshake(port, fields).as_bytes()).await.unwrap();
    let head = read_until(&mut stream, b"\r\n\r\n").await;
    assert_eq!(status(&head), 101, "{head}");
    (stream, head)
}

/// So many bytes.
pub async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

/// A frame of at most 65,535 payload bytes as a server sends it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    header(first, None, payload)
}

/// The same as a client sends it, with this key.
pub fn masked(first: u8, key: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let payload: Vec<u8> = payload
        .iter()
        .zip(key.iter().cycle())
        .map(|(byte, key)| byte ^ key)
        .collect();
    header(first, Some(key), &payload)
}

fn header(first: u8, key: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    const MEDIUM: u8 = 126;
    let mask = if key.is_some() { 0x80 } else { 0 };
    let mut frame = vec![first];
    if let Ok(short @ ..MEDIUM) = u8::try_from(payload.len()) {
        frame.push(mask | short);
    } else {
        frame.push(mask | MEDIUM);
        frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    }
    frame.extend(key.into_iter().flatten());
    frame.extend(payload);
    frame
}

/// What the only close frame says that `bytes` are: whether it is masked, its code and its reason.
pub fn close_in(bytes: &[u8]) -> (bool, u16, String) {
    assert_eq!(bytes.first(), Some(&0x88), "no close frame: {bytes:?}");
    let (is_masked, length) = (bytes[1] & 0x80 != 0, usize::from(bytes[1] & 0x7f));
    let (key, payload) = bytes[2..].split_at(if is_masked { 4 } else { 0 });
    assert_eq!(payload.len(), length, "more than a close frame: {bytes:?}");
    let key = if is_masked { key } else { &[0] };
    let payload: Vec<u8> = payload
        .iter()
        .zip(key.iter().cycle())
        .map(|(byte, key)| byte ^ key)
        .collect();
    let code = u16::from_be_bytes([payload[0], payload[1]]);
    (is_masked, code, String::from_utf8(payload[2..].to_vec()).unwrap())
}

/// An app that sends every text and binary message back, and tells what closes it was sent.
pub async fn echo() -> (RecordingApp, UnboundedReceiver<(u16, String)>) {
    let (report, reported) = unbounded_channel();
    let app = RecordingApp::serving(move |stream| {
        let report = report.clone();
        async move {
            // What doesn't ask for a WebSocket is not answered with one.
            let Ok(mut socket) = accept_async(stream).await else {
                return;
            };
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Close(Some(close)) => {
                        let _ = report.send((close.code.into(), close.reason.as_str().to_owned()));
                    }
                    Message::Text(_) | Message::Binary(_) => {
                        let _ = socket.send(message).await;
                    }
                    _ => {}
                }
            }
        }
    });
    (app.await, reported)
}
