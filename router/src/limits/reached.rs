//! What a client hears whose request is one too many.

use super::table::Full;
use crate::metrics::Limit;
use http::StatusCode;
use sandgate_mesh::sandbox::SandboxName;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

/// Whose limit it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Of {
    Caller,
    Sandbox(SandboxName),
}

/// What is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    PerSecond(u32, Duration),
    AtOnce(NonZeroUsize),
    Counted,
}

/// Why a request is one too many. Its text is the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitReached {
    what: What,
    of: Of,
}

impl LimitReached {
    pub(super) fn new(full: Full, of: Of) -> Self {
        let what = match full {
            Full::Rate(rate, wait) => What::PerSecond(rate.per_second.get(), wait),
            Full::Concurrent(limit) => What::AtOnce(limit),
            Full::Table => What::Counted,
        };
        Self { what, of }
    }

    /// 429 where the caller or the sandbox has had its share; 503 where the router can't tell.
    ///
    /// A sandbox's share is no 503: clients take that for a fault, send the request again, and forget where the sandbox is.
    pub(crate) const fn status(&self) -> StatusCode {
        match self.what {
            What::PerSecond(..) | What::AtOnce(_) => StatusCode::TOO_MANY_REQUESTS,
            What::Counted => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// After so many seconds there is something left, unless others were faster. When a request under way ends, nobody knows.
    pub(crate) const fn retry_after(&self) -> u64 {
        match self.what {
            What::PerSecond(_, wait) if wait.subsec_nanos() == 0 => wait.as_secs(),
            What::PerSecond(_, wait) => wait.as_secs() + 1,
            What::AtOnce(_) | What::Counted => 1,
        }
    }

    pub(super) const fn limit(&self) -> Limit {
        match (&self.of, self.what) {
            (Of::Caller, What::PerSecond(..)) => Limit::CallerRate,
            (Of::Caller, What::AtOnce(_)) => Limit::CallerConcurrency,
            (Of::Caller, What::Counted) => Limit::Callers,
            (Of::Sandbox(_), What::PerSecond(..)) => Limit::SandboxRate,
            (Of::Sandbox(_), What::AtOnce(_)) => Limit::SandboxConcurrency,
            (Of::Sandbox(_), What::Counted) => Limit::Sandboxes,
        }
    }
}

#[cfg(test)]
impl LimitReached {
    /// All of them, with the largest limits.
    pub(crate) fn all(sandbox: &SandboxName) -> impl Iterator<Item = Self> + use<> {
        let what = [
            What::PerSecond(u32::MAX, Duration::ZERO),
            What::AtOnce(NonZeroUsize::MAX),
            What::Counted,
        ];
        let of = |of: Of| what.map(|what| Self { what, of: of.clone() });
        of(Of::Caller).into_iter().chain(of(Of::Sandbox(sandbox.clone())))
    }
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.of, self.what) {
            (Of::Caller, What::PerSecond(limit, _)) => {
                write!(f, "Too many requests per second from this caller (limit: {limit}).")
            }
            (Of::Caller, What::AtOnce(limit)) => {
                write!(f, "Too many concurrent requests from this caller (limit: {limit}).")
            }
            (Of::Sandbox(name), What::PerSecond(limit, _)) => {
                write!(f, "Too many requests per second to sandbox {name} (limit: {limit}).")
            }
            (Of::Sandbox(name), What::AtOnce(limit)) => {
                write!(f, "Too many concurrent requests to sandbox {name} (limit: {limit}).")
            }
            (Of::Caller, What::Counted) => f.write_str("The router has too many callers; try again."),
            (Of::Sandbox(_), What::Counted) => f.write_str("The router has too many sandboxes in use; try again."),
        }
    }
}
