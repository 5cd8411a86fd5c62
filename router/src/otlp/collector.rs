//! One collector: sends it a message and waits for its answer. Hides the two protocols, and where the roots come from.

use crate::config::{OtlpExport, OtlpProtocol};
use crate::outbound::Outbound;
use anyhow::{Context, bail};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use prost::Message;
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::telemetry::{LONGEST_TEXT, chain, cut};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

/// Longest answer of a collector that is read, in bytes. It has little to say.
const LONGEST_ANSWER: usize = 64 * 1024;
const OWN_NAME: &str = concat!("sandbox-router/", env!("CARGO_PKG_VERSION"));

/// Where one signal goes.
#[derive(Debug)]
pub(super) struct Collector {
    outbound: Outbound<Body>,
    export: OtlpExport,
    headers: HeaderMap,
}

/// Why a message has not arrived.
#[derive(Debug)]
pub(super) struct Failure {
    /// Whether it may be another time.
    pub(super) is_passing: bool,
    pub(super) text: String,
}

impl Failure {
    fn passing(text: impl Into<String>) -> Self {
        Self {
            is_passing: true,
            text: text.into(),
        }
    }
}

impl Collector {
    /// # Errors
    /// Roots that can't be used.
    pub(super) fn new(export: &OtlpExport) -> anyhow::Result<Self> {
        let roots = if export.endpoint.scheme_str() == Some("https") {
            roots(export.roots.as_deref())?
        } else {
            RootCertStore::empty()
        };
        let version = match export.protocol {
            OtlpProtocol::Grpc => HttpVersion::Http2,
            OtlpProtocol::HttpProtobuf => HttpVersion::Http1,
        };
        let mut headers = export.headers.clone();
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(OWN_NAME));
        Ok(Self {
            outbound: Outbound::new(version, Arc::new(roots), LONGEST_ANSWER)?,
            export: export.clone(),
            headers,
        })
    }

    /// Whom the log names.
    pub(super) fn name(&self) -> String {
        self.export.endpoint.to_string()
    }

    /// Sends a `message`, with gRPC to the method at `path`.
    pub(super) async fn send<M, A>(&self, message: M, path: &'static str) -> Result<A, Failure>
    where
        M: Message + 'static,
        A: Message + Default + 'static,
    {
        let sent = async {
            match self.export.protocol {
                OtlpProtocol::Grpc => self.call(message, path).await,
                OtlpProtocol::HttpProtobuf => self.post(&message).await,
            }
        };
        let answer = tokio::time::timeout(self.export.timeout, sent).await;
        answer.unwrap_or_else(|_| Err(Failure::passing("no answer in time")))
    }

    async fn call<M, A>(&self, message: M, path: &'static str) -> Result<A, Failure>
    where
        M: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::with_origin(self.outbound.client(), self.export.endpoint.clone())
            .max_decoding_message_size(LONGEST_ANSWER);
        grpc.ready().await.map_err(|error| Failure::passing(chain(&error)))?;
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(self.headers.clone());
        request.set_timeout(self.export.timeout);
        let codec = ProstCodec::<M, A>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(path), codec).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| refused(&status))
    }

    async fn post<A: Message + Default>(&self, message: &impl Message) -> Result<A, Failure> {
        let body = Body::new(Full::new(Bytes::from(message.encode_to_vec())));
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.export.endpoint.clone();
        *request.headers_mut() = self.headers.clone();
        let protobuf = HeaderValue::from_static("application/x-protobuf");
        request.headers_mut().insert(CONTENT_TYPE, protobuf);
        let answer = self.outbound.ask(request).await;
        let answer = answer.map_err(|error| Failure::passing(chain(&error)))?;
        let status = answer.status();
        if !status.is_success() {
            use StatusCode as S;
            let passing = [
                S::TOO_MANY_REQUESTS,
                S::BAD_GATEWAY,
                S::SERVICE_UNAVAILABLE,
                S::GATEWAY_TIMEOUT,
            ];
            return Err(Failure {
                is_passing: passing.contains(&status),
                text: format!("it answered {status}"),
            });
        }
        let body = self.outbound.read(answer.into_body()).await;
        let body = body.map_err(|error| Failure::passing(format!("its answer broke off: {error}")))?;
        // What it can't say in these terms it says with the status, and that was a good one.
        Ok(A::decode(body).unwrap_or_default())
    }
}

/// Which codes are worth another attempt: OTLP's specification, "Failures".
fn refused(status: &Status) -> Failure {
    use Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, ResourceExhausted, Unavailable, Unknown};
    let passing = [
        Aborted,
        Cancelled,
        DataLoss,
        DeadlineExceeded,
        OutOfRange,
        ResourceExhausted,
        Unavailable,
        // Of a connection that can't be made.
        Unknown,
    ];
    let cause = status
        .source()
        .map(|source| format!(": {}", chain(source)))
        .unwrap_or_default();
    Failure {
        is_passing: passing.contains(&status.code()),
        text: format!("{:?}: {}{cause}", status.code(), cut(status.message(), LONGEST_TEXT)),
    }
}

/// The roots in `file`, or the system's.
fn roots(file: Option<&Path>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = file {
        let pem = std::fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        for root in CertificateDer::pem_slice_iter(&pem) {
            let added = root.map_err(anyhow::Error::from).and_then(|root| Ok(roots.add(root)?));
            added.with_context(|| format!("{} is no PEM file of certificates", file.display()))?;
        }
        if roots.is_empty() {
            bail!("{} holds no certificate", file.display());
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            bail!("the system has no roots for an https:// collector; name some with --otlp-certificate");
        }
    }
    Ok(roots)
}
