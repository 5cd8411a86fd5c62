//! What is counted of a control API. Hides how outcomes are called in metrics.

use prometheus::{IntCounter, IntCounterVec};

/// What became of what a control plane brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It is in force now.
    Accepted,
    /// It was in force already.
    Repeated,
    /// It can't be read, can't be used, or is old.
    Refused,
    /// It couldn't be kept.
    Failed,
}

/// Counts what control planes brought.
#[derive(Debug, Clone)]
pub struct Pushes([IntCounter; 4]);

impl Pushes {
    /// With all of the counters there from the first; their one label is the outcome.
    pub fn new(counters: &IntCounterVec) -> Self {
        Self(["accepted", "repeated", "refused", "failed"].map(|outcome| counters.with_label_values(&[outcome])))
    }

    pub(super) fn count(&self, outcome: Pushed) {
        let Self([accepted, repeated, refused, failed]) = self;
        match outcome {
            Pushed::Accepted => accepted.inc(),
            Pushed::Repeated => repeated.inc(),
            Pushed::Refused => refused.inc(),
            Pushed::Failed => failed.inc(),
        }
    }
}

/// What is counted of a control API.
#[derive(Debug, Clone)]
pub struct ControlMetrics {
    /// Identities that were brought.
    pub identities: Pushes,
    /// Policies that were brought; none where they are for nobody.
    pub policies: Option<Pushes>,
    /// Connections that ended because there were too many.
    pub displaced: IntCounter,
}
