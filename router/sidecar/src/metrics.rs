//! What the gate counts. No label holds anything that a caller can choose.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use sandgate_mesh::outcome::Outcome;

/// The gate's counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) allowed: IntCounter,
    pub(crate) handshakes: IntCounter,
    pub(crate) handshake_failures: IntCounter,
    pub(crate) refused_connections: IntCounter,
    outcomes: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let outcomes = IntCounterVec::new(
            Opts::new(
                "sandgate_sidecar_refusals_total",
                "Requests the gate answered itself, by reason.",
            ),
            &["reason"],
        )?;
        let metrics = Self {
            allowed: counter("sandgate_sidecar_allowed_total", "Requests that the policy allowed.")?,
            handshakes: counter("sandgate_sidecar_handshakes_total", "Mesh connections accepted.")?,
            handshake_failures: counter("sandgate_sidecar_handshake_failures_total", "Mesh handshakes refused.")?,
            refused_connections: counter("sandgate_sidecar_refused_connections_total", "Connections over a cap.")?,
            outcomes: outcomes.clone(),
            registry: registry.clone(),
        };
        registry.register(Box::new(outcomes))?;
        Ok(metrics)
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        self.outcomes.with_label_values(&[outcome.as_str()]).inc();
    }
}
