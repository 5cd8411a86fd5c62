//! What the parts of the router hand over when they count: the kinds that labels tell apart, and the counters of one part.

use prometheus::{Histogram, IntCounter, IntGauge};
use sandgate_mesh::control::server::ControlMetrics;

/// Why a request has no answer from its sandbox, as dashboards that come from elsewhere name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing to connect to.
    Dial,
    /// It took too long.
    Timeout,
    /// The connection broke before a response head.
    Eof,
    /// The two ends don't accept each other.
    Tls,
    /// An answer that can't be passed on, or a gate that has none.
    Other,
}

impl Reason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Dial => "dial",
            Self::Timeout => "timeout",
            Self::Eof => "eof",
            Self::Tls => "tls",
            Self::Other => "other",
        }
    }
}

/// Whether a request's caller may make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The sandbox was asked, and its gate didn't refuse.
    Allow,
    /// The router or the gate refused, or nobody could be asked who or what the caller is.
    Deny,
}

/// A limit of callers or of sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    CallerRate,
    CallerConcurrency,
    SandboxRate,
    SandboxConcurrency,
    /// Requests of so many callers are counted that no more fit.
    Callers,
    /// The same of sandboxes.
    Sandboxes,
}

impl Limit {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [
        Self::CallerRate,
        Self::CallerConcurrency,
        Self::SandboxRate,
        Self::SandboxConcurrency,
        Self::Callers,
        Self::Sandboxes,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::CallerRate => "caller-rate",
            Self::CallerConcurrency => "caller-concurrency",
            Self::SandboxRate => "sandbox-rate",
            Self::SandboxConcurrency => "sandbox-concurrency",
            Self::Callers => "callers",
            Self::Sandboxes => "sandboxes",
        }
    }
}

/// What is counted of hosts that are gone.
#[derive(Debug)]
pub(crate) struct BreakerMetrics {
    pub(crate) open: IntGauge,
    pub(crate) refused: IntCounter,
}

/// What is counted of the listener for control planes.
#[derive(Debug, Clone)]
pub(crate) struct EnrolmentMetrics {
    /// Of the control API.
    pub(crate) control: ControlMetrics,
    /// Handshakes that came to nothing.
    pub(crate) refused: IntCounter,
    /// So many others were in their handshake that the oldest of them had to go.
    pub(crate) handshakes: IntCounter,
}

/// What is counted of one kind of questions.
#[derive(Debug, Clone)]
pub(crate) struct ReviewMetrics {
    /// Answered without asking.
    pub(crate) cached: IntCounter,
    /// Waited for what somebody else had asked.
    pub(crate) joined: IntCounter,
    pub(crate) allowed: IntCounter,
    pub(crate) refused: IntCounter,
    /// No answer, or none in time.
    pub(crate) failed: IntCounter,
    /// Not asked: too many were under way.
    pub(crate) shed: IntCounter,
    /// Not asked: too many were under way of whoever asked.
    pub(crate) limited: IntCounter,
    /// Seconds, of those that were asked.
    pub(crate) duration: Histogram,
}
