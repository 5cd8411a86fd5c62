//! What the injector counts. No label holds anything that a pod's author can choose.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use sandgate_mesh::admin::Readiness;
use sandgate_mesh::metrics;
use sandgate_mesh::telemetry::seconds_since_1970;
use std::time::{Duration, SystemTime};

/// Seconds: most decisions take well under a millisecond, and the API server gives up after five.
const BUCKETS: [f64; 10] = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// The injector's counters, gauges and histograms.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    decisions: IntCounterVec,
    durations: HistogramVec,
    pub(crate) refused_connections: IntCounter,
    pub(crate) handshake_failures: IntCounter,
    renewals: IntCounterVec,
    pub(crate) ca_bundle_updates: IntCounter,
    webhook_configurations: IntGaugeVec,
    not_after: IntGaugeVec,
    network_policies: IntCounterVec,
    pub(crate) network_policy_openings: IntGauge,
    failures: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name, help, labels: &[&str]| metrics::counters(&registry, name, help, labels);
        let counter = |name, help| metrics::counter(&registry, name, help);
        let durations = HistogramOpts::new(
            "sandgate_injector_admission_duration_seconds",
            "From the last byte of a review to its answer.",
        )
        .buckets(BUCKETS.to_vec());
        let not_after = Opts::new(
            "sandgate_injector_certificate_not_after_timestamp_seconds",
            "When a certificate in use expires.",
        );
        let configurations = Opts::new(
            "sandgate_injector_webhook_configurations",
            "Whether the webhook configuration of this kind is there: 0 or 1.",
        );
        let build = Opts::new("sandgate_injector_build_info", "1.");
        let build = metrics::registered(&registry, IntGaugeVec::new(build, &["version"]))?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            decisions: counters(
                "sandgate_injector_admission_decisions_total",
                "Reviews answered, by decision and reason.",
                &["webhook", "decision", "reason"],
            )?,
            durations: metrics::registered(&registry, HistogramVec::new(durations, &["webhook"]))?,
            refused_connections: counter(
                "sandgate_injector_refused_connections_total",
                "Connections to the webhook over a cap.",
            )?,
            handshake_failures: counter(
                "sandgate_injector_handshake_failures_total",
                "TLS handshakes with the webhook that failed, but for those whose peer just closed the connection.",
            )?,
            renewals: counters(
                "sandgate_injector_certificate_renewals_total",
                "Attempts to renew the webhook's certificate, by outcome.",
                &["outcome"],
            )?,
            ca_bundle_updates: counter(
                "sandgate_injector_ca_bundle_updates_total",
                "Times that a caBundle of the webhook configurations was corrected.",
            )?,
            webhook_configurations: metrics::registered(&registry, IntGaugeVec::new(configurations, &["kind"]))?,
            not_after: metrics::registered(&registry, IntGaugeVec::new(not_after, &["certificate"]))?,
            network_policies: counters(
                "sandgate_injector_network_policy_changes_total",
                "NetworkPolicies created, repaired after somebody changed or deleted them, and removed.",
                &["action"],
            )?,
            network_policy_openings: metrics::gauge(
                &registry,
                "sandgate_injector_network_policy_openings",
                "NetworkPolicies of others that open further ports of injected pods.",
            )?,
            failures: counters(
                "sandgate_injector_failures_total",
                "Attempts at background work that failed and are repeated.",
                &["task"],
            )?,
            registry: registry.clone(),
        })
    }

    /// Counts an answered review.
    pub(crate) fn decided(&self, webhook: &str, decision: &str, reason: &str) {
        self.decisions.with_label_values(&[webhook, decision, reason]).inc();
    }

    /// Counts how long a review took.
    pub(crate) fn took(&self, webhook: &str, time: Duration) {
        self.durations.with_label_values(&[webhook]).observe(time.as_secs_f64());
    }

    /// Counts an attempt to renew the webhook's certificate.
    pub(crate) fn renewed(&self, outcome: &str) {
        self.renewals.with_label_values(&[outcome]).inc();
    }

    /// Says when a certificate in use expires.
    pub(crate) fn expires(&self, certificate: &str, at: SystemTime) {
        let gauge = self.not_after.with_label_values(&[certificate]);
        gauge.set(i64::try_from(seconds_since_1970(at)).unwrap_or(i64::MAX));
    }

    /// Says whether the webhook configuration of this kind is there.
    pub(crate) fn webhook_configuration(&self, kind: &str, there: bool) {
        self.webhook_configurations.with_label_values(&[kind]).set(there.into());
    }

    /// Says at each scrape whether this replica is ready.
    pub(crate) fn follow_readiness(&self, readiness: Readiness) -> prometheus::Result<()> {
        let help = "Whether this replica is ready, as /readyz says: 0 or 1.";
        let gauge = IntGauge::new("sandgate_injector_ready", help)?;
        metrics::register(&self.registry, Ready { gauge, readiness })
    }

    /// Counts a change to a `NetworkPolicy` of ours.
    pub(crate) fn network_policy(&self, action: &str) {
        self.network_policies.with_label_values(&[action]).inc();
    }

    /// Counts a failure of a background task.
    pub(crate) fn failed(&self, task: &str) {
        self.failures.with_label_values(&[task]).inc();
    }
}

/// A gauge that asks when it is read: nothing happens when a certificate expires.
struct Ready {
    gauge: IntGauge,
    readiness: Readiness,
}

impl Collector for Ready {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set((self.readiness)().is_ok().into());
        self.gauge.collect()
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
