//! Why the router answers itself -> status, text and header, as CONTRACT words them, in one match.

use crate::limits::LimitReached;
use crate::proof::Over;
use bytes::Bytes;
use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use http_body_util::Full;
use sandgate_mesh::body::{BodyError, detail};
use sandgate_mesh::framing::Violation;
use sandgate_mesh::sandbox::SandboxName;
use std::borrow::Cow;
use std::num::NonZeroUsize;

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
    /// What the client certificate of the connection proved is over.
    CertificateOver(Over),
    /// Whoever knows the caller, the API server or an OIDC issuer, can't be asked now.
    Unreviewed,
    /// The API server doesn't let the caller connect to the sandbox.
    NoAccess(SandboxName),
    /// The token is good, but not for this request.
    OutOfScope(Bound),
    /// A page of another origin wants to switch protocols.
    ForeignOrigin,
    /// A page of another origin, or nobody knows which, wants to change something with a browser's cookie or certificate.
    ForeignPage,
    /// A routing header is missing or malformed.
    BadRoute(&'static str),
    /// A routing header occurs twice.
    Duplicate(&'static str),
    /// The router has no mesh identity that is valid now: no gate is to blame.
    NoIdentity,
    /// The gate has none, no policy, or is closing.
    NotReady(SandboxName),
    /// The sandbox runs without a gate in a namespace that has opted in.
    Ungated(SandboxName),
    /// The address that the client named is a pod's of another namespace.
    ForeignPod(SandboxName),
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
    /// The client has as many upgraded connections as it may have.
    TooManyUpgrades(NonZeroUsize),
    /// The caller, or the sandbox, has as much of the router as it may have.
    LimitReached(LimitReached),
    /// The API server is asked as much at once on behalf of the caller as it may be.
    TooManyReviews(usize),
}

/// What a scoped token is bound to, and the request isn't for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The sandbox: its name, namespace or UID.
    Sandbox,
    /// The app's port.
    Port,
    /// The method.
    Method,
    /// The path.
    Path,
}

impl Bound {
    const fn detail(self) -> &'static str {
        match self {
            Self::Sandbox => "Token is not valid for this sandbox.",
            Self::Port => "Token is not valid for this port.",
            Self::Method => "Token is not valid for this method.",
            Self::Path => "Token is not valid for this path.",
        }
    }
}

/// An answer of the router's own.
struct Words {
    status: StatusCode,
    detail: Cow<'static, str>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Words {
    fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            detail: detail.into(),
            header: None,
        }
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.header = Some((name, HeaderValue::from_static(value)));
        self
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.header = Some((RETRY_AFTER, seconds.into()));
        self
    }
}

impl From<LimitReached> for RouterError {
    fn from(reached: LimitReached) -> Self {
        Self::LimitReached(reached)
    }
}

impl RouterError {
    /// The answer.
    pub(crate) fn response(&self) -> Response<Full<Bytes>> {
        let words = self.words();
        let mut response = detail(words.status, &words.detail);
        response.headers_mut().extend(words.header);
        response
    }

    /// The answer's text, which is the same for whoever reads the log.
    pub(crate) fn detail(&self) -> Cow<'static, str> {
        self.words().detail
    }

    /// Whether it is the caller who is refused, or who can't be judged now, and not what is asked for.
    pub(crate) const fn is_of_caller(&self) -> bool {
        match self {
            Self::NoCredential
            | Self::BadCredential
            | Self::CertificateOver(_)
            | Self::Unreviewed
            | Self::TooManyReviews(_)
            | Self::NoAccess(_)
            | Self::OutOfScope(_)
            | Self::ForeignOrigin
            | Self::ForeignPage => true,
            Self::Framing(_)
            | Self::Connect
            | Self::Overloaded
            | Self::BadRoute(_)
            | Self::Duplicate(_)
            | Self::NoIdentity
            | Self::NotReady(_)
            | Self::Ungated(_)
            | Self::ForeignPod(_)
            | Self::Unreachable(_)
            | Self::TimedOut(_)
            | Self::Broken(_)
            | Self::Upload(_)
            | Self::EarlyBytes
            | Self::TooManyUpgrades(_)
            | Self::LimitReached(_) => false,
        }
    }

    fn words(&self) -> Words {
        let bad_request = |text: Cow<'static, str>| Words::new(StatusCode::BAD_REQUEST, text);
        // The credential's realm isn't told: there is one.
        let unauthorized = |text| Words::new(StatusCode::UNAUTHORIZED, text).with(WWW_AUTHENTICATE, "Bearer");
        let forbidden = |text: Cow<'static, str>| Words::new(StatusCode::FORBIDDEN, text);
        let unavailable =
            |text: Cow<'static, str>| Words::new(StatusCode::SERVICE_UNAVAILABLE, text).with(RETRY_AFTER, "1");
        match self {
            Self::Framing(violation) => Words::new(violation.status(), violation.detail()),
            Self::Upload(error) => Words::new(error.status(), error.detail()),
            Self::Connect => Words::new(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported.")
                .with(ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            Self::Overloaded => unavailable("The router is short of memory; try again.".into()),
            Self::NoCredential => unauthorized("Missing or invalid Authorization header."),
            Self::BadCredential => unauthorized("Invalid token."),
            Self::CertificateOver(Over::Expired) => {
                unauthorized("The client certificate of this connection has expired; open another.")
            }
            Self::CertificateOver(Over::Withdrawn) => {
                unauthorized("The client certificate of this connection is no longer trusted; open another.")
            }
            Self::Unreviewed => unavailable("Callers can't be verified at the moment; try again.".into()),
            Self::NoAccess(name) => forbidden(format!("Refused by the access review of {name}.").into()),
            Self::OutOfScope(bound) => forbidden(bound.detail().into()),
            Self::ForeignOrigin => forbidden("Upgrade requests from another origin are refused.".into()),
            Self::ForeignPage => forbidden(
                "Refused by the router's origin check: with a cookie or a certificate, requests must come from a page of this host or of an \
                 allowed origin."
                    .into(),
            ),
            Self::BadRoute(text) => bad_request((*text).into()),
            Self::Duplicate(name) => bad_request(format!("Duplicate {name} header.").into()),
            Self::EarlyBytes => bad_request("Bytes followed the upgrade request before its answer.".into()),
            Self::TooManyUpgrades(limit) => {
                let text = format!("Too many concurrent WebSocket connections (limit: {limit}).");
                Words::new(StatusCode::TOO_MANY_REQUESTS, text).with(RETRY_AFTER, "1")
            }
            Self::LimitReached(reached) => {
                Words::new(reached.status(), reached.to_string()).retry_after(reached.retry_after())
            }
            Self::TooManyReviews(limit) => {
                let text = format!("Too many concurrent reviews at the API server for this caller (limit: {limit}).");
                Words::new(StatusCode::TOO_MANY_REQUESTS, text).retry_after(1)
            }
            Self::NoIdentity => unavailable("The router has no valid identity.".into()),
            Self::Ungated(name) => forbidden(format!("Sandbox {name} runs without its gate; recreate it.").into()),
            Self::ForeignPod(name) => forbidden(format!("Pod IP does not belong to sandbox {name}.").into()),
            Self::NotReady(name) => unavailable(format!("Sandbox gate is not ready: {name}").into()),
            Self::Unreachable(name) | Self::Broken(name) => Words::new(
                StatusCode::BAD_GATEWAY,
                format!("Could not connect to the backend sandbox: {name}"),
            ),
            Self::TimedOut(name) => Words::new(
                StatusCode::GATEWAY_TIMEOUT,
                format!("Timed out waiting for the backend sandbox: {name}"),
            ),
        }
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
