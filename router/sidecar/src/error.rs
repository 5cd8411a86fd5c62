//! Why the gate answers itself -> status, outcome and text, as CONTRACT words them. Hides the wording: elsewhere an answer
//! is a reason and nothing else.

use crate::authorize::Denied;
use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;
use sandgate_mesh::body::{BodyError, detail};
use sandgate_mesh::contract::X_SANDGATE_OUTCOME;
use sandgate_mesh::framing::Violation;
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::overflow::Refusal;
use sandgate_mesh::sandbox::SandboxName;
use std::borrow::Cow;

/// Why there is no answer of the app's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateError {
    /// The request's framing.
    Framing(Violation),
    /// `Connection` or `Trailer` names more than is looked at.
    NamesTooMuch,
    /// CONNECT.
    Connect,
    /// The target is none that an app is asked for.
    Target,
    /// The port's header occurs twice.
    RepeatedPort,
    /// It is no port.
    Port,
    /// The caller assertion occurs twice.
    RepeatedAssertion,
    /// It is not one that a router writes.
    Assertion,
    /// A router sent none.
    NoAssertion,
    /// Somebody else sent one.
    NotARouter,
    /// The peer's certificate has ended since the handshake.
    PeerExpired,
    /// The gate is over its memory budget.
    OutOfMemory,
    /// The decision about the request.
    Denied(Denied),
    /// Nobody takes a connection on the app's port.
    Dial,
    /// The app took no connection in time, or didn't answer in time.
    TimedOut,
    /// The app's connection broke before a response head.
    Broken,
    /// What the app answered is not relayed.
    BadAnswer,
    /// The request's body stopped.
    Upload(BodyError),
    /// Bytes followed an upgrade request before it was answered.
    EarlyBytes,
    /// A fault of the gate's.
    Internal,
}

/// What a caller is told.
#[derive(Debug, Clone, Copy)]
enum Text {
    Plain(&'static str),
    /// With the sandbox's name in between.
    Naming(&'static str, &'static str),
}

impl Text {
    fn of(self, sandbox: &SandboxName) -> Cow<'static, str> {
        match self {
            Self::Plain(text) => text.into(),
            Self::Naming(before, behind) => format!("{before}{sandbox}{behind}").into(),
        }
    }
}

/// A refusal by the gate itself.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) error: GateError,
    /// What the log is told beside, and the caller isn't.
    pub(crate) cause: Option<String>,
}

impl From<GateError> for Refused {
    fn from(error: GateError) -> Self {
        Self { error, cause: None }
    }
}

impl GateError {
    /// The same, with what the log is told of why.
    pub(crate) fn because(self, cause: impl Into<String>) -> Refused {
        Refused {
            error: self,
            cause: Some(cause.into()),
        }
    }

    /// The answer of the gate of `sandbox`.
    pub(crate) fn response(self, sandbox: &SandboxName) -> Response<Full<Bytes>> {
        let (status, outcome, text) = self.answer();
        let mut response = detail(status, &text.of(sandbox));
        let headers = response.headers_mut();
        headers.insert(X_SANDGATE_OUTCOME, outcome.to_header());
        // All that the gate answers so is over in a moment, or on another connection.
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// What the router and the metrics are told.
    pub(crate) fn outcome(self) -> Outcome {
        self.answer().1
    }

    /// What the caller is told.
    pub(crate) fn detail(self, sandbox: &SandboxName) -> Cow<'static, str> {
        self.answer().2.of(sandbox)
    }

    /// Of a decision callers hear which layer refused, never what the policy holds. What policy refuses is never a 5xx:
    /// they would try again.
    fn answer(self) -> (StatusCode, Outcome, Text) {
        use Outcome::{BadAnswer, Malformed, NotReady, Overloaded, Timeout};
        use StatusCode as Status;
        use Text::{Naming, Plain};
        let bad = |text| (Status::BAD_REQUEST, Malformed, Plain(text));
        let unavailable = |outcome, text| (Status::SERVICE_UNAVAILABLE, outcome, text);
        let unreachable = |outcome| {
            let text = Naming("Could not connect to the backend sandbox: ", "");
            (Status::BAD_GATEWAY, outcome, text)
        };
        match self {
            Self::Framing(violation) => (violation.status(), Malformed, Plain(violation.detail())),
            Self::NamesTooMuch => bad("Connection or Trailer header is too long."),
            Self::Connect => (
                Status::METHOD_NOT_ALLOWED,
                Malformed,
                Plain("CONNECT is not supported."),
            ),
            Self::Target => bad("Invalid request target."),
            Self::RepeatedPort => bad("Duplicate X-Sandbox-Port header."),
            Self::Port => bad("Invalid port format."),
            Self::RepeatedAssertion => bad("Repeated caller assertion."),
            Self::Assertion => bad("Malformed caller assertion."),
            Self::NoAssertion => bad("A router must assert the caller."),
            Self::NotARouter => (
                Status::BAD_REQUEST,
                Outcome::NotARouter,
                Plain("Only a router may assert a caller."),
            ),
            Self::PeerExpired => unavailable(
                Outcome::PeerExpired,
                Plain("The certificate of this connection has expired; open another."),
            ),
            Self::OutOfMemory => unavailable(Overloaded, Plain("The sandbox gate is short of memory; try again.")),
            Self::Denied(Denied::NoSnapshot) => unavailable(NotReady, Naming("Sandbox gate is not ready: ", "")),
            Self::Denied(Denied::OwnPort | Denied::Policy) => (
                Status::FORBIDDEN,
                Outcome::Denied,
                Naming("Refused by the sandbox policy of ", "."),
            ),
            Self::Denied(Denied::AmbiguousPath) => {
                let needs = " needs one without empty or dot segments, `;`, `\\` and encoded separators.";
                let text = Naming("Ambiguous path: the sandbox policy of ", needs);
                (Status::BAD_REQUEST, Outcome::Denied, text)
            }
            Self::Dial => unreachable(Outcome::Dial),
            Self::Broken => unreachable(Outcome::Broken),
            Self::BadAnswer => unreachable(BadAnswer),
            Self::TimedOut => (
                Status::GATEWAY_TIMEOUT,
                Timeout,
                Naming("Timed out waiting for the backend sandbox: ", ""),
            ),
            Self::Upload(error) => (error.status(), Outcome::Upload, Plain(error.detail())),
            Self::EarlyBytes => bad("Bytes followed the upgrade request too early."),
            Self::Internal => (
                Status::INTERNAL_SERVER_ERROR,
                Malformed,
                Plain("An internal error occurred in the proxy."),
            ),
        }
    }
}

const TOO_MANY: &str = "The sandbox gate has too many connections; try again.";

/// What a peer hears whose connection is one too many.
pub(crate) fn too_many_connections() -> Refusal {
    Refusal::unavailable(TOO_MANY, Some(Outcome::Overloaded))
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
