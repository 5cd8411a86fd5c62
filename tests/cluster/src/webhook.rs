//! An admission webhook on loopback that does what a test says, and no more: for tests of the API server's side, and
//! to measure others against.

use crate::until;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// From an `AdmissionReview`'s request to its response, without the `uid`.
type Answering = dyn Fn(&Value) -> Value + Send + Sync;
/// The requests so far; none where nobody will ask.
type Seen = Option<Arc<Mutex<Vec<Value>>>>;

/// A webhook that answers every path. It is down when dropped.
pub struct StubWebhook {
    address: SocketAddr,
    ca_pem: String,
    seen: Seen,
    serving: JoinHandle<()>,
}

impl StubWebhook {
    /// Starts one that answers each request with what `answer` makes of it.
    pub async fn start(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        Self::with(Arc::new(answer), Some(Arc::default())).await
    }

    /// Starts one that allows everything and remembers nothing: the least that a webhook costs.
    pub async fn empty() -> Self {
        Self::forgetful(|_| json!({"allowed": true})).await
    }

    /// Starts one that answers each request with what `answer` makes of it, and remembers none: for long runs.
    pub async fn forgetful(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        Self::with(Arc::new(answer), None).await
    }

    async fn with(answer: Arc<Answering>, seen: Seen) -> Self {
        let (tls, ca_pem) = certificates();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, tls, answer, seen.clone()));
        Self {
            address,
            ca_pem,
            seen,
            serving,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that the API server must trust to believe it.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The requests of all reviews so far.
    pub fn seen(&self) -> Vec<Value> {
        let seen = self.seen.as_ref().expect("a forgetful webhook remembers nothing");
        seen.lock().unwrap().clone()
    }

    /// Stops listening and ends all connections, and returns when that is done.
    pub async fn stop(mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
        until("nobody listens", async || {
            match TcpStream::connect(self.address).await {
                Ok(stream) => Err(stream),
                Err(_) => Ok(()),
            }
        })
        .await;
    }
}

impl Drop for StubWebhook {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, answer: Arc<Answering>, seen: Seen) {
    // Dropped with this task, so that no connection outlives the webhook.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let (tls, answer, seen) = (tls.clone(), Arc::clone(&answer), seen.clone());
        connections.spawn(async move {
            // The API server looks whether anybody listens, and closes.
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = service_fn(|request| review(request, &*answer, seen.as_deref()));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn review(
    request: Request<Incoming>,
    answer: &Answering,
    seen: Option<&Mutex<Vec<Value>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request
        .into_body()
        .collect()
        .await
        .expect("the API server sends whole requests")
        .to_bytes();
    let review: Value = serde_json::from_slice(&body).expect("the API server sends JSON");
    let request = &review["request"];
    let mut response = answer(request);
    seen.inspect(|seen| seen.lock().unwrap().push(request.clone()));
    response["uid"] = request["uid"].clone();
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(Response::new(Full::new(serde_json::to_vec(&review).unwrap().into())))
}

/// A certificate for 127.0.0.1 and what to trust for it.
fn certificates() -> (TlsAcceptor, String) {
    let mut params = CertificateParams::default();
    // Not the leaf's name, or verifiers take that for self-signed.
    params
        .distinguished_name
        .push(DnType::CommonName, "stub-webhook-authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca_pem = params.self_signed(&key).unwrap().pem();
    let authority = Issuer::new(params, key);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "stub-webhook");
    params
        .subject_alt_names
        .push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &authority).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca_pem)
}
