//! Why the router answers itself -> status and text, as CONTRACT words them, in one match.

use bytes::Bytes;
use http::header::{ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use http_body_util::Full;
use sandgate_mesh::body::{BodyError, detail};
use sandgate_mesh::framing::Violation;
use sandgate_mesh::sandbox::SandboxName;

/// Why there is no answer from the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouterError {
    /// The request's framing.
    Framing(Violation),
    /// CONNECT.
    Connect,
    /// The router is over its memory budget.
    Overloaded,
    /// No credential.
    NoCredential,
    /// A wrong one.
    BadCredential,
    /// A routing header is missing or malformed.
    BadRoute(&'static str),
    /// A routing header occurs twice.
    Duplicate(&'static str),
    /// The router has no mesh identity that is valid now: no gate is to blame.
    NoIdentity,
    /// The gate has none, no policy, or is closing.
    NotReady(SandboxName),
    /// Nothing answers there, or not the sandbox that was asked for.
    Unreachable(SandboxName),
    /// Nothing answered in time.
    TimedOut(SandboxName),
    /// The connection broke before a response head, or what came wasn't one.
    Broken(SandboxName),
    /// The request's body stopped.
    Upload(BodyError),
    /// Bytes followed an upgrade request before it was answered.
    EarlyBytes,
}

/// The credential's realm isn't told: there is one.
const BEARER: HeaderValue = HeaderValue::from_static("Bearer");

impl RouterError {
    /// The answer.
    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
        let (status, text) = self.status_and_text();
        let mut response = detail(status, &text);
        let headers = response.headers_mut();
        match self {
            Self::NoCredential | Self::BadCredential => drop(headers.insert(WWW_AUTHENTICATE, BEARER)),
            Self::NotReady(_) | Self::NoIdentity | Self::Overloaded => {
                drop(headers.insert(RETRY_AFTER, HeaderValue::from_static("1")));
            }
            Self::Connect => drop(headers.insert(
                ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            )),
            _ => {}
        }
        response
    }

    fn status_and_text(&self) -> (StatusCode, String) {
        match self {
            Self::Framing(violation) | Self::Upload(BodyError::Framing(violation)) => {
                (violation.status(), violation.detail().into())
            }
            Self::Connect => (StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported.".into()),
            Self::Overloaded => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The router is short of memory; try again.".into(),
            ),
            Self::NoCredential => (
                StatusCode::UNAUTHORIZED,
                "Missing or invalid Authorization header.".into(),
            ),
            Self::BadCredential => (StatusCode::UNAUTHORIZED, "Invalid token.".into()),
            Self::BadRoute(text) => (StatusCode::BAD_REQUEST, (*text).into()),
            Self::Duplicate(name) => (StatusCode::BAD_REQUEST, format!("Duplicate {name} header.")),
            Self::NoIdentity => (
                StatusCode::SERVICE_UNAVAILABLE,
                "The router has no valid identity.".into(),
            ),
            Self::NotReady(name) => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("Sandbox gate is not ready: {name}"),
            ),
            Self::Unreachable(name) | Self::Broken(name) => (
                StatusCode::BAD_GATEWAY,
                format!("Could not connect to the backend sandbox: {name}"),
            ),
            Self::TimedOut(name) => (
                StatusCode::GATEWAY_TIMEOUT,
                format!("Timed out waiting for the backend sandbox: {name}"),
            ),
            Self::Upload(BodyError::TooLarge) => (StatusCode::PAYLOAD_TOO_LARGE, "Request body is too large.".into()),
            Self::Upload(BodyError::Silent) => (
                StatusCode::REQUEST_TIMEOUT,
                "Timed out waiting for the request body.".into(),
            ),
            Self::Upload(BodyError::Broken) => (StatusCode::BAD_REQUEST, "Request body ended early.".into()),
            Self::EarlyBytes => (
                StatusCode::BAD_REQUEST,
                "Bytes followed the upgrade request before its answer.".into(),
            ),
        }
    }
}
