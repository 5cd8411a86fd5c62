//! What happened at the gate, as the sidecar tells the router beside its answer, so that the router's metrics and log
//! can tell a gate's own answer from the app's.

use http::HeaderValue;

/// Why a gate answered itself instead of relaying the app's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The request was not one that may be passed on.
    Malformed,
    /// Somebody asserted a caller whom the gate doesn't take for a router.
    NotARouter,
    /// The certificate that the connection was opened with has expired since.
    PeerExpired,
    /// The sandbox's policy refused it.
    Denied,
    /// The gate has no identity or no policy yet.
    NotReady,
    /// The gate sheds load or the caller has too much open.
    Overloaded,
    /// Nobody listens on the app's port.
    Dial,
    /// The app didn't answer in time.
    Timeout,
    /// The app's connection broke before an answer.
    Broken,
    /// The app's answer was not valid HTTP, or one nobody asked for.
    BadAnswer,
    /// The request's body was cut, too long or badly framed.
    Upload,
}

impl Outcome {
    const ALL: [Self; 11] = [
        Self::Malformed,
        Self::NotARouter,
        Self::PeerExpired,
        Self::Denied,
        Self::NotReady,
        Self::Overloaded,
        Self::Dial,
        Self::Timeout,
        Self::Broken,
        Self::BadAnswer,
        Self::Upload,
    ];

    /// The outcome's name on the wire, in logs and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotARouter => "not-a-router",
            Self::PeerExpired => "peer-expired",
            Self::Denied => "denied",
            Self::NotReady => "not-ready",
            Self::Overloaded => "overloaded",
            Self::Dial => "dial",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::BadAnswer => "bad-answer",
            Self::Upload => "upload",
        }
    }

    /// What the sandbox's policy had decided by then, or `None` where it came to no decision.
    pub const fn allowed(self) -> Option<bool> {
        match self {
            Self::Malformed | Self::NotARouter | Self::PeerExpired | Self::NotReady | Self::Overloaded => None,
            Self::Denied => Some(false),
            Self::Dial | Self::Timeout | Self::Broken | Self::BadAnswer | Self::Upload => Some(true),
        }
    }

    /// The value of the [`X_SANDGATE_OUTCOME`](crate::contract::X_SANDGATE_OUTCOME) header.
    pub fn to_header(self) -> HeaderValue {
        HeaderValue::from_static(self.as_str())
    }

    /// Reads that header; an unknown value is nothing.
    pub fn from_header(value: &HeaderValue) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|outcome| value.as_bytes() == outcome.as_str().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_survives_the_wire() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_header(&outcome.to_header()), Some(outcome));
        }
        assert_eq!(Outcome::from_header(&HeaderValue::from_static("")), None);
        assert_eq!(Outcome::from_header(&HeaderValue::from_static("fine")), None);
    }
}
