//! The way to the control API of a gate or a router. Whoever answers there may be a stranger, so this bounds what it can send and how long
//! it can take; and a policy goes to nobody but a gate that has proven who it is.

use super::clock::Skew;
use super::pods::Target;
use crate::authority::Root;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use rustls_pki_types::CertificateDer;
use sandgate_mesh::contract::{CONNECT_TIMEOUT, MESH_PORT};
use sandgate_mesh::control::{ENROLMENT_PATH, Enrolment, IDENTITY_PATH, IdentityGrant, POLICY_PATH, PolicyPush};
use sandgate_mesh::credentials::MeshCredentials;
use sandgate_mesh::identity::{ExpectedSandbox, TrustDomain};
use sandgate_mesh::sandbox::SandboxKey;
use sandgate_mesh::telemetry::{LONGEST_TEXT, cut};
use sandgate_mesh::tls::{ControlDialError, Dialed, DialedStanding, NotEnrolled, connect_control};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long a gate may take to answer one request.
const EXCHANGE_TIME: Duration = Duration::from_secs(5);
/// The largest answer, in bytes: a token, a request for a certificate and a few words.
const MAX_ANSWER: usize = 32 * 1024;
/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The most fields in it.
const MAX_HEADERS: usize = 32;
/// All that a gate may send on one connection, in bytes: its handshake, and a few answers. It also bounds what is never
/// shown here, such as informational answers.
const MAX_RECEIVED: usize = 256 * 1024;

/// Why a gate couldn't be asked, or told.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("nothing accepts connections on the mesh port: {0}")]
    Unreachable(io::Error),
    #[error("the mesh port took longer than {} s to accept a connection; a NetworkPolicy may block it", CONNECT_TIMEOUT.as_secs())]
    Unanswered,
    #[error(transparent)]
    Handshake(#[from] ControlDialError),
    #[error(
        "it takes this injector's certificate for one that has ended, or isn't valid yet: the clock of its node must be wrong"
    )]
    OutOfDate,
    #[error("no whole answer came within {} s", EXCHANGE_TIME.as_secs())]
    Silent,
    #[error("the answer is larger than a gate's")]
    TooLarge,
    #[error("the connection broke: {0}")]
    Broken(hyper::Error),
    #[error("the answer isn't a gate's: {0}")]
    Unreadable(serde_json::Error),
    #[error("the gate refuses a generation below its floor: {0}")]
    Stale(String),
    #[error("the gate answers {status}: {detail}")]
    Refused { status: StatusCode, detail: String },
}

impl DialError {
    /// The word for it in metrics and logs.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable(_) | Self::Unanswered => "unreachable",
            Self::Handshake(_) => "handshake",
            Self::OutOfDate => "clock",
            Self::Silent => "silent",
            Self::TooLarge => "too_large",
            Self::Broken(_) => "broken",
            Self::Unreadable(_) => "unreadable",
            Self::Stale(_) => "stale",
            Self::Refused { .. } => "gate_refused",
        }
    }

    /// Whether the gate may not have believed what it was shown. Since TLS 1.3 whoever shows something hears that only with
    /// the first answer.
    pub(super) const fn may_be_disbelief(&self) -> bool {
        matches!(self, Self::Handshake(_) | Self::OutOfDate | Self::Broken(_))
    }
}

/// A connection to whoever answered.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    standing: DialedStanding,
    leaf: Option<CertificateDer<'static>>,
    /// What its first answer has told of its clock.
    skew: Option<Skew>,
    // Ends with this.
    _driver: JoinSet<()>,
}

/// A connection to a gate that has proven that it has the identity that was given to it.
#[derive(Debug)]
pub(super) struct Proven(Connection);

/// What refusals are written as.
#[derive(Deserialize)]
struct Detail {
    detail: String,
}

/// Whom the gate of a pod must prove to be.
pub(super) fn gate(target: &Target, trust_domain: &TrustDomain) -> Dialed {
    Dialed::Gate(ExpectedSandbox {
        trust_domain: trust_domain.clone(),
        sandbox: SandboxKey {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
        },
        pod_uid: Some(target.uid.clone()),
    })
}

/// Dials a gate or a router, or whoever has its address.
///
/// # Errors
/// Nobody is there, or who is doesn't speak the control API.
pub(super) async fn dial(
    target: &Target,
    expected: &Dialed,
    credentials: &MeshCredentials,
) -> Result<Connection, DialError> {
    dial_at((target.ip, MESH_PORT).into(), expected, credentials).await
}

async fn dial_at(
    address: SocketAddr,
    expected: &Dialed,
    credentials: &MeshCredentials,
) -> Result<Connection, DialError> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = stream
        .map_err(|_| DialError::Unanswered)?
        .map_err(DialError::Unreachable)?;
    let stream = Capped {
        stream,
        left: MAX_RECEIVED,
    };
    let (stream, standing) = connect_control(stream, credentials, expected).await?;
    let presented = stream.get_ref().1.peer_certificates();
    let leaf = presented
        .and_then(|chain| chain.first())
        .map(|leaf| leaf.clone().into_owned());
    let (sender, driver) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(DialError::Broken)?;
    let mut driving = JoinSet::new();
    driving.spawn(async move {
        // Whoever waits for an answer is told.
        let _ = driver.await;
    });
    Ok(Connection {
        sender,
        standing,
        leaf,
        skew: None,
        _driver: driving,
    })
}

impl Connection {
    /// What who was dialed has proven.
    pub(super) fn standing(&self) -> &DialedStanding {
        &self.standing
    }

    /// Whether what was presented was signed by this root.
    pub(super) fn is_under(&self, root: &Root) -> bool {
        self.leaf.as_ref().is_some_and(|leaf| root.has_signed(leaf))
    }

    /// How far its clock is from this one, if it has told.
    pub(super) fn skew(&self) -> Option<Skew> {
        self.skew
    }

    /// Asks for what enrols it.
    ///
    /// # Errors
    /// What comes isn't that, or doesn't come.
    pub(super) async fn enrolment(&mut self) -> Result<Enrolment, DialError> {
        let body = self.exchange(Method::GET, ENROLMENT_PATH, Bytes::new()).await?;
        serde_json::from_slice(&body).map_err(DialError::Unreadable)
    }

    /// Gives an identity to whoever holds the key that it is for.
    ///
    /// # Errors
    /// It wasn't taken.
    pub(super) async fn put_identity(&mut self, grant: &IdentityGrant) -> Result<(), DialError> {
        self.put(IDENTITY_PATH, grant).await
    }

    /// The same connection, if it leads to whom was dialed and that has an identity of this root until `least` or later.
    ///
    /// # Errors
    /// What it has proven instead, if anything.
    pub(super) fn proven(self, root: &Root, least: SystemTime) -> Result<Proven, Option<NotEnrolled>> {
        match &self.standing {
            DialedStanding::Enrolled { until } if *until >= least && self.is_under(root) => Ok(Proven(self)),
            DialedStanding::Enrolled { .. } => Err(None),
            DialedStanding::Unproven(reason) => Err(Some(reason.clone())),
        }
    }

    async fn put(&mut self, path: &'static str, message: &impl Serialize) -> Result<(), DialError> {
        let body = serde_json::to_vec(message).map_err(DialError::Unreadable)?;
        self.exchange(Method::PUT, path, body.into()).await.map(drop)
    }

    /// One request and its whole answer.
    async fn exchange(&mut self, method: Method, path: &'static str, body: Bytes) -> Result<Bytes, DialError> {
        let exchange = async {
            let mut request = Request::new(Full::new(body));
            *request.method_mut() = method;
            *request.uri_mut() = http::Uri::from_static(path);
            let headers = request.headers_mut();
            headers.insert(HOST, http::HeaderValue::from_static("gate"));
            headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            self.sender.ready().await.map_err(broken)?;
            let asked = SystemTime::now();
            let answer = self.sender.send_request(request).await.map_err(broken)?;
            if self.skew.is_none() {
                self.skew = Skew::of(answer.headers(), asked, SystemTime::now());
            }
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(error) => broken(*error),
                Err(error) if error.is::<LengthLimitError>() => DialError::TooLarge,
                // There is no third kind.
                Err(_) => DialError::Silent,
            })?;
            Ok::<_, DialError>((status, body.to_bytes()))
        };
        let answer = tokio::time::timeout(EXCHANGE_TIME, exchange).await;
        let (status, body) = answer.map_err(|_| DialError::Silent)??;
        if status.is_success() {
            return Ok(body);
        }
        let detail = serde_json::from_slice(&body).map_or_else(|_| String::new(), |found: Detail| found.detail);
        let detail = cut(&detail, LONGEST_TEXT).into_owned();
        Err(match status {
            StatusCode::CONFLICT => DialError::Stale(detail),
            _ => DialError::Refused { status, detail },
        })
    }
}

impl Proven {
    /// Gives the gate its policy.
    ///
    /// # Errors
    /// It wasn't taken.
    pub(super) async fn put_policy(&mut self, push: &PolicyPush) -> Result<(), DialError> {
        self.0.put(POLICY_PATH, push).await
    }
}

fn broken(error: hyper::Error) -> DialError {
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    let alert = cause
        .and_then(io::Error::get_ref)
        .and_then(|cause| cause.downcast_ref());
    if matches!(
        alert,
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired))
    ) {
        return DialError::OutOfDate;
    }
    let capped = cause.is_some_and(|cause| cause.kind() == io::ErrorKind::FileTooLarge);
    if capped || error.is_parse_too_large() {
        DialError::TooLarge
    } else {
        DialError::Broken(error)
    }
}

/// A stream that fails when more has come than a gate sends.
struct Capped {
    stream: TcpStream,
    left: usize,
}

impl AsyncRead for Capped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        match self.left.checked_sub(read) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Err(io::ErrorKind::FileTooLarge.into())),
        }
    }
}

impl AsyncWrite for Capped {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
