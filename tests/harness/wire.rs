//! Bytes to somebody and what comes back.

use crate::PATIENCE;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Sends bytes over a connection of their own; see [`exchange`].
pub async fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    exchange(TcpStream::connect(address).await.unwrap(), bytes, false).await
}

/// Writes bytes and returns what comes until the peer closes; it must close within 10 s. A reset is a close, too.
pub async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: impl AsRef<[u8]>,
    and_stop: bool,
) -> String {
    let talk = async {
        // A peer that refuses the first bytes may be gone before the last ones.
        let _ = stream.write_all(bytes.as_ref()).await;
        let _ = stream.flush().await;
        if and_stop {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        while let Ok(1..) = stream.read_buf(&mut answer).await {}
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = tokio::time::timeout(PATIENCE, talk).await;
    answer.expect("the peer did not close the connection")
}

/// Sends a whole request, however early it is answered, and returns what comes until the peer closes. Panics if the peer
/// resets the connection before it has read all of it, whereby a client may lose the answer.
pub async fn send_whole(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    // Or all of it would lie with the kernel, and nobody would see that it isn't read.
    socket.set_send_buffer_size(16 * 1024).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let talk = async {
        stream.write_all(bytes.as_ref()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, talk).await;
    let answer = answer.expect("the peer did not close the connection");
    let answer = answer.unwrap_or_else(|error| panic!("{error} instead of an answer"));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Writes `start`, then `piece` again and again with `pause` in between for as long as the peer takes it. Returns what
/// comes until the peer closes; it must close within 10 s.
pub async fn exchange_without_end(
    stream: impl AsyncRead + AsyncWrite,
    start: impl AsRef<[u8]>,
    piece: impl AsRef<[u8]>,
    pause: Duration,
) -> String {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = async {
        let mut written = writer.write_all(start.as_ref()).await;
        while written.is_ok() && writer.flush().await.is_ok() {
            tokio::time::sleep(pause).await;
            written = writer.write_all(piece.as_ref()).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let talk = async {
        tokio::select! {
            () = async { while let Ok(1..) = reader.read_buf(&mut answer).await {} } => {}
            () = writing => {}
        }
    };
    let ended = tokio::time::timeout(PATIENCE, talk).await;
    ended.expect("the peer did not close the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads until `end` is the last that came; it must come within 10 s.
pub async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &[u8]) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while !bytes.ends_with(end) {
            let read = stream.read_u8().await;
            let read = read.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)));
            bytes.push(read);
        }
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    let text = String::from_utf8_lossy;
    read.unwrap_or_else(|_| panic!("{:?} did not come after {:?}", text(end), text(&bytes)));
    String::from_utf8(bytes).unwrap()
}

/// The status of a response; 0 if there is none.
pub fn status(response: &str) -> u16 {
    response
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .unwrap_or(0)
}

/// The values of a header of a message, one for each line of it.
pub fn field<'a>(message: &'a str, name: &str) -> Vec<&'a str> {
    let head = message.split("\r\n\r\n").next().unwrap_or_default();
    head.split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// Fails unless `response` is one answer with this status and this text, worded as clients know errors.
pub fn assert_detail(response: &str, code: u16, text: &str, context: &str) {
    assert_eq!(status(response), code, "{context}: {response}");
    let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    assert_eq!(body, serde_json::json!({ "detail": text }).to_string(), "{context}");
    assert_eq!(field(response, "content-type"), ["application/json"], "{context}");
    assert_eq!(field(response, "content-length"), [body.len().to_string()], "{context}");
    let lower = response.to_ascii_lowercase();
    assert!(
        !lower.contains("\r\nx-sandgate-") && !lower.contains("\r\nx-sandbox-"),
        "{context}: {response}"
    );
}

/// Whether a client would take this for a whole response.
pub fn looks_complete(response: &str) -> bool {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((response, ""));
    match field(head, "content-length").as_slice() {
        [length] => length.parse() == Ok(body.len()),
        _ => !field(head, "transfer-encoding").is_empty() && body.ends_with("0\r\n\r\n"),
    }
}

/// Waits until `condition` holds, which no event tells; it must within 10 s.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}
