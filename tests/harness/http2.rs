//! A real client of HTTP/2, and one that sends whatever frames it is told.

use crate::{PATIENCE, TOKEN};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::error::Error;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client that speaks HTTP/2 to `router` without asking.
pub async fn connect<B>(router: SocketAddr) -> SendRequest<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    over(TcpStream::connect(router).await.unwrap()).await
}

/// The same over a connection that is there already.
pub async fn over<B>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> SendRequest<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let client = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = client.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The headers that every request for this port of `alpha` needs.
pub fn head(port: u16) -> HeaderMap {
    let value = |text: &str| HeaderValue::from_str(text).unwrap();
    [
        (
            HeaderName::from_static("authorization"),
            value(&format!("Bearer {TOKEN}")),
        ),
        (HeaderName::from_static("x-sandbox-id"), value("alpha")),
        (HeaderName::from_static("x-sandbox-port"), port.into()),
    ]
    .into_iter()
    .collect()
}

/// An answer's whole body.
pub async fn text(answer: Response<Incoming>) -> String {
    let body = timeout(PATIENCE, answer.into_body().collect()).await.unwrap().unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// An answer of the programs' own: its status and what it says.
pub async fn status_and_detail(answer: Response<Incoming>) -> (u16, String) {
    let status = answer.status().as_u16();
    let body = text(answer).await;
    let detail = serde_json::from_str::<serde_json::Value>(&body);
    let detail = detail.ok().and_then(|body| body["detail"].as_str().map(str::to_owned));
    (status, detail.unwrap_or_default())
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, l0, l1, l2] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [&[l0, l1, l2, kind, flags, s0, s1, s2, s3], payload].concat()
}

/// A header block that refers to no table (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // A length of 7 bits, and what is above it in groups of 7 (section 5.1).
            if let Ok(short @ ..127) = u8::try_from(text.len()) {
                block.push(short);
            } else {
                block.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// How a server ended what it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// `RST_STREAM` with this code.
    Stream(u32),
    /// `GOAWAY` with this code.
    Connection(u32),
    /// An answer on a stream.
    Answered,
    /// Nothing but the end of the connection.
    Closed,
}

/// Sends `bytes` behind preface and settings, and returns the first end that comes.
pub async fn provoke(server: SocketAddr, bytes: &[u8]) -> Ended {
    provoke_until(server, bytes, |_| true).await.remove(0)
}

/// The same with all ends up to the first that `is_last`, or that is the connection's.
pub async fn provoke_until(server: SocketAddr, bytes: &[u8], is_last: impl Fn(Ended) -> bool) -> Vec<Ended> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let start = [PREFACE, &frame(4, 0, 0, &[])].concat();
    stream.write_all(&start).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let bytes = bytes.to_vec();
    // A server that refuses the first bytes may be gone before the last ones.
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&bytes).await;
        writer
    });
    let mut ends = Vec::new();
    loop {
        let ended = timeout(PATIENCE, next_end(&mut reader)).await;
        let ended = ended.unwrap_or_else(|_| panic!("the server said nothing after {ends:?}"));
        ends.push(ended);
        if is_last(ended) || matches!(ended, Ended::Connection(_) | Ended::Closed) {
            drop(writing);
            return ends;
        }
    }
}

async fn next_end(reader: &mut (impl AsyncRead + Unpin)) -> Ended {
    loop {
        let mut head = [0; 9];
        if reader.read_exact(&mut head).await.is_err() {
            return Ended::Closed;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        if reader.read_exact(&mut payload).await.is_err() {
            return Ended::Closed;
        }
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match head[3] {
            1 => return Ended::Answered,
            3 => return Ended::Stream(code(0)),
            7 => return Ended::Connection(code(4)),
            _ => {}
        }
    }
}
