//! HTTP to servers outside the mesh, such as an OIDC issuer or a collector of traces. Hides how roots become requests:
//! names, connections, TLS and which of them failed. Redirects aren't followed, and proxies of the environment aren't used.

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sandgate_mesh::contract::CONNECT_TIMEOUT;
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::tls::{self, HandshakeError, TlsError};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::{self, RootCertStore};

/// Longest head of an answer in HTTP/1.1, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// How long a connection of HTTP/2 over which nothing comes is believed in, and then a ping's answer is waited for: a server
/// that is gone without a word must not be waited for again and again on the connection of before.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What tonic sends its calls with.
pub(crate) type Client<B> = legacy::Client<HttpsConnector<HttpConnector>, B>;

/// Asks servers in one version of HTTP. Whoever asks sets the time limit.
#[derive(Debug)]
pub(crate) struct Outbound<B> {
    client: Client<B>,
    longest: usize,
}

impl<B> Outbound<B>
where
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// What believes servers of `https` under `roots`, and reads answers of up to `longest` bytes.
    ///
    /// # Errors
    /// rustls refuses it.
    pub(crate) fn new(version: HttpVersion, roots: Arc<RootCertStore>, longest: usize) -> Result<Self, TlsError> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnector::from((http, tls::web_client_config(version, roots)?));
        let client = legacy::Client::builder(TokioExecutor::new())
            .http2_only(version == HttpVersion::Http2)
            .http1_max_buf_size(MAX_HEAD)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(KEEPALIVE)
            .http2_keep_alive_timeout(KEEPALIVE)
            .build(connector);
        Ok(Self { client, longest })
    }

    /// The client alone, whose answers somebody else reads.
    pub(crate) fn client(&self) -> Client<B> {
        self.client.clone()
    }

    /// The head of the answer to `request`, which names its server; its body is still to be read.
    pub(crate) async fn ask(&self, request: Request<B>) -> Result<Response<Incoming>, legacy::Error> {
        self.client.request(request).await
    }

    /// The whole body of an answer.
    pub(crate) async fn read(&self, body: Incoming) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        Ok(Limited::new(body, self.longest).collect().await?.to_bytes())
    }
}

/// How far a request got that has no answer.
#[derive(Debug)]
pub(crate) enum Cause {
    /// There is no connection.
    Connect(io::Error),
    /// Nobody is there who proves to be that server.
    Tls(HandshakeError),
    /// It broke on the connection, for the reason that is told.
    Broken(String),
}

impl From<legacy::Error> for Cause {
    fn from(error: legacy::Error) -> Self {
        let Some(source) = error.source() else {
            return Self::Broken(error.to_string());
        };
        if !error.is_connect() {
            return Self::Broken(source.to_string());
        }
        // The handshake's errors come as they are, and the connection's below a word on what was tried.
        if let Some(handshake) = source.downcast_ref::<io::Error>() {
            let inner = handshake.get_ref().and_then(|inner| inner.downcast_ref());
            return Self::Tls(copy(inner.unwrap_or(handshake)).into());
        }
        match source.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
            Some(cause) => Self::Connect(copy(cause)),
            // A name that no certificate can have.
            None => Self::Tls(HandshakeError::Tls(rustls::Error::General(source.to_string()))),
        }
    }
}

/// The same error, as far as anybody asks: one of I/O can't be cloned.
fn copy(error: &io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => io::Error::new(error.kind(), tls.clone()),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Empty;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LONGEST: usize = 10;

    fn outbound() -> Outbound<Empty<Bytes>> {
        Outbound::new(HttpVersion::Http1, Arc::new(RootCertStore::empty()), LONGEST).unwrap()
    }

    /// The answer of a server that says just this, and nothing more.
    async fn asked(scheme: &str, answer: &str) -> Result<Response<Incoming>, Cause> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("{scheme}://{}/", listener.local_addr().unwrap());
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let request = Request::get(uri).body(Empty::new()).unwrap();
        let outbound = outbound();
        let (answer, ()) = tokio::join!(outbound.ask(request), served);
        Ok(answer?)
    }

    #[tokio::test]
    async fn what_failed_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = format!("https://{}/", listener.local_addr().unwrap());
        drop(listener);
        let request = Request::get(nobody).body(Empty::new()).unwrap();
        let cause = outbound().ask(request).await.unwrap_err().into();
        assert!(
            matches!(&cause, Cause::Connect(error) if error.to_string().starts_with("Connection refused")),
            "{cause:?}"
        );
        for (scheme, answer) in [
            ("https", "HTTP/1.1 400 Bad Request\r\n\r\n"),
            ("http", "garbage\r\n\r\n"),
            ("https", ""),
        ] {
            let cause = asked(scheme, answer).await.unwrap_err();
            let expected = match (scheme, answer) {
                ("http", _) => matches!(cause, Cause::Broken(_)),
                (_, "") => matches!(cause, Cause::Tls(HandshakeError::Io(_))),
                _ => matches!(cause, Cause::Tls(HandshakeError::NotTls)),
            };
            assert!(expected, "{scheme} {answer:?}: {cause:?}");
        }
        let head = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
        let cause = asked("http", &head).await.unwrap_err();
        assert!(matches!(cause, Cause::Broken(_)), "{cause:?}");
    }

    #[tokio::test]
    async fn an_answer_is_read_to_its_end_or_not_at_all() {
        for (length, sent, whole) in [
            (LONGEST, LONGEST, true),
            (LONGEST + 1, LONGEST + 1, false),
            (LONGEST, 1, false),
        ] {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}",
                "x".repeat(sent)
            );
            let body = asked("http", &answer).await.unwrap().into_body();
            assert_eq!(outbound().read(body).await.is_ok(), whole, "{length} {sent}");
        }
    }
}
