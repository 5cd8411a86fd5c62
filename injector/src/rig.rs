//! A webhook on loopback behind real TLS, and clients of it.

use crate::anchors::Anchors;
use crate::authority::Root;
use crate::authority_stored::Stored;
use crate::https::{Failing, Https};
use crate::https_places::Places;
use crate::inbound::Bodies;
use crate::metrics::Metrics;
use crate::serving::Serving;
use crate::settings::Settings;
use crate::webhook::Webhook;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use sandgate_mesh::credentials::FrontCredentials;
use sandgate_mesh::drain::{self, Drain};
use sandgate_mesh::telemetry::LineLog;
use sandgate_mesh::tls;
use serde_json::Value;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Nothing here takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What the certificate is for.
pub(crate) const NAME: &str = "sandgate-injector.agent-sandbox-system.svc";

/// A running webhook.
pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    pub(crate) stored: Stored,
    pub(crate) trust: watch::Sender<Option<Arc<Anchors>>>,
    pub(crate) serve: watch::Sender<Option<Arc<Serving>>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) webhook: Arc<Webhook>,
    pub(crate) drain: Option<Drain>,
    pub(crate) leave: Drain,
    log: LineLog,
    lines: Lines,
}

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Rig {
    /// Starts one that serves a certificate of its own root.
    pub(crate) async fn start(settings: Settings) -> Self {
        let rig = Self::without_certificate(settings).await;
        rig.serve_with(&rig.stored);
        rig
    }

    /// Starts one that has nothing to serve with.
    pub(crate) async fn without_certificate(settings: Settings) -> Self {
        Self::within(Places::ALL, settings).await
    }

    /// The same with room for fewer connections.
    pub(crate) async fn within(places: Places, settings: Settings) -> Self {
        let (lines, metrics) = (Lines::default(), Arc::new(Metrics::new().unwrap()));
        let log = LineLog::to(lines.clone()).unwrap();
        let stored = Stored::new();
        let anchors = Anchors::of(&stored.roots).unwrap();
        let (trust, anchors) = watch::channel(Some(Arc::new(anchors)));
        let webhook = Arc::new(Webhook {
            settings,
            anchors,
            restrict_connect: false,
            metrics: Arc::clone(&metrics),
            log: log.clone(),
            bodies: Bodies::new(),
        });
        let (serve, served) = watch::channel(None);
        let ((drain, draining), (leave, _)) = (drain::channel(), drain::channel());
        let https = Https {
            routes: webhook.routes(),
            served,
            leaving: leave.state(),
            metrics: Arc::clone(&metrics),
            failing: Failing::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(https.serve_within(places, listener, draining));
        Self {
            address,
            stored,
            trust,
            serve,
            metrics,
            webhook,
            drain: Some(drain),
            leave,
            log,
            lines,
        }
    }

    /// Serves new connections with a certificate of this root.
    pub(crate) fn serve_with(&self, stored: &Stored) {
        self.serve_for(stored, Duration::from_secs(3600));
    }

    /// The same, with one that lives for so long.
    pub(crate) fn serve_for(&self, stored: &Stored, lifetime: Duration) {
        let names = [NAME.parse().unwrap(), "127.0.0.1".parse().unwrap()];
        let issued = stored.authority.serving(&names, lifetime).unwrap();
        let credentials = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
        self.serve
            .send_replace(Some(Arc::new(Serving::new(&credentials, None).unwrap())));
    }

    /// The decisions that were logged.
    pub(crate) fn logged(&self) -> Vec<Value> {
        self.log.flush();
        let lines = self.lines.0.lock().unwrap();
        lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    /// A TLS connection of a client that trusts the rig's root, or why there is none.
    pub(crate) async fn connect(&self, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        connect(self.address, self.stored.authority.root(), alpn).await
    }

    /// Posts a body on a connection of its own.
    pub(crate) async fn post(&self, alpn: &[u8], path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(alpn, request.body(Full::new(body.into())).unwrap()).await
    }

    /// Sends a request on a connection of its own.
    pub(crate) async fn send(&self, alpn: &[u8], request: Request<Full<Bytes>>) -> (StatusCode, String) {
        let mut client = Client::new(self.connect(alpn).await.unwrap(), alpn).await;
        let response = client.send(request).await.unwrap();
        (response.status(), response.into_body())
    }

    /// Asks for an answer to a review about this object.
    pub(crate) async fn review(&self, path: &str, review: &Value) -> Value {
        let (status, body) = self.post(b"http/1.1", path, serde_json::to_vec(review).unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// A TLS connection of a client that trusts this root.
pub(crate) async fn connect(address: SocketAddr, root: &Root, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.der().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from(NAME).unwrap();
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    tokio::time::timeout(PATIENCE, connecting).await.unwrap()
}

/// The certificate that a connection was served with.
pub(crate) fn certificate(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// A connection that can be used again.
pub(crate) enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub(crate) async fn new(stream: TlsStream<TcpStream>, alpn: &[u8]) -> Self {
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
        let stream = TokioIo::new(stream);
        if alpn == b"h2" {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            Self::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            Self::Http1(sender)
        }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<String>> {
        let exchange = async {
            let response = match self {
                Self::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
                Self::Http2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
            };
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Response::from_parts(head, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap()
    }
}

/// A connection to an API server that is down.
pub(crate) fn unreachable() -> kube::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    config.default_retry = false;
    kube::Client::try_from(config).unwrap()
}
