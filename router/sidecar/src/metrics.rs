//! What the gate counts. Hides what metrics and labels are called; none holds anything that a caller can choose.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};
use sandgate_mesh::control::server::{ControlMetrics, Pushes};
use sandgate_mesh::metrics;
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::policy::PolicySnapshot;
use sandgate_mesh::polled::Reload;

/// The gate's counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) allowed: IntCounter,
    pub(crate) handshakes: IntCounter,
    pub(crate) handshake_failures: IntCounter,
    pub(crate) refused: RefusedConnections,
    pub(crate) certificate_not_after: IntGauge,
    /// What control planes brought.
    pub(crate) control: ControlMetrics,
    policy_epoch: IntGauge,
    policy_counter: IntGauge,
    reloads: IntCounterVec,
    outcomes: IntCounterVec,
}

/// Connections that nothing was said on, by reason.
#[derive(Debug)]
pub(crate) struct RefusedConnections {
    /// So many others were in their handshake that the oldest of them had to go.
    pub(crate) handshakes: IntCounter,
    /// The caps on open connections, in all and from one address.
    pub(crate) connections: IntCounter,
    /// The gate itself has no identity that counts now.
    pub(crate) no_identity: IntCounter,
    /// They were for the control API and not from a control plane, or from one that has enough others; or a control plane
    /// asked for the app.
    pub(crate) control: IntCounter,
}

/// Files that the gate follows, as metrics name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum File {
    Credentials,
    Policy,
}

impl File {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::Policy => "policy",
        }
    }
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name, help, labels: &[&str]| metrics::counters(&registry, name, help, labels);
        let counter = |name, help| metrics::counter(&registry, name, help);
        let gauge = |name, help| metrics::gauge(&registry, name, help);
        let refused = counters(
            "sandgate_sidecar_refused_connections_total",
            "Connections over a cap, of the wrong control plane, or while the gate has no valid identity, by reason.",
            &["reason"],
        )?;
        let refused = |reason| refused.with_label_values(&[reason]);
        Ok(Self {
            allowed: counter("sandgate_sidecar_allowed_total", "Requests that the policy allowed.")?,
            handshakes: counter("sandgate_sidecar_handshakes_total", "Mesh connections accepted.")?,
            handshake_failures: counter("sandgate_sidecar_handshake_failures_total", "Mesh handshakes refused.")?,
            refused: RefusedConnections {
                handshakes: refused("handshakes"),
                connections: refused("connections"),
                no_identity: refused("no-identity"),
                control: refused("control"),
            },
            control: ControlMetrics {
                identities: Pushes::new(&counters(
                    "sandgate_sidecar_enrolments_total",
                    "Identities that control planes brought, by outcome.",
                    &["outcome"],
                )?),
                policies: Some(Pushes::new(&counters(
                    "sandgate_sidecar_policy_pushes_total",
                    "Policies that control planes brought, by outcome.",
                    &["outcome"],
                )?)),
                displaced: refused("control"),
            },
            certificate_not_after: gauge(
                "sandgate_sidecar_certificate_not_after_seconds",
                "End of the gate's certificate, in seconds since 1970; 0 without one.",
            )?,
            policy_epoch: gauge(
                "sandgate_sidecar_policy_generation_epoch",
                "Epoch of the policy snapshot in force; 0 without one.",
            )?,
            policy_counter: gauge(
                "sandgate_sidecar_policy_generation_counter",
                "Counter, within its epoch, of the policy snapshot in force; 0 without one.",
            )?,
            reloads: counters(
                "sandgate_sidecar_reloads_total",
                "Attempts to load changed files, by file and outcome.",
                &["file", "outcome"],
            )?,
            outcomes: counters(
                "sandgate_sidecar_refusals_total",
                "Requests the gate answered itself, by reason.",
                &["reason"],
            )?,
            registry: registry.clone(),
        })
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        self.outcomes.with_label_values(&[outcome.as_str()]).inc();
    }

    /// What counts attempts to load `file`. They are there with 0 from the first.
    pub(crate) fn on_reload(&self, file: File) -> impl Fn(Reload) + Send + use<> {
        let counter = |outcome: Reload| self.reloads.with_label_values(&[file.as_str(), outcome.as_str()]);
        let (success, failure) = (counter(Reload::Success), counter(Reload::Failure));
        move |outcome| match outcome {
            Reload::Success => success.inc(),
            Reload::Failure => failure.inc(),
        }
    }

    pub(crate) fn in_force(&self, policy: Option<&PolicySnapshot>) {
        let generation = policy.map(PolicySnapshot::generation);
        let [epoch, counter] = generation.map_or([0, 0], |found| [found.epoch, found.counter]);
        self.policy_epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
        self.policy_counter.set(i64::try_from(counter).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
