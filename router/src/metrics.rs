//! What the router counts, under the names and labels that existing dashboards use (CONTRACT section 7). Label values
//! that a caller can choose are bounded: what isn't known counts as `other`.

mod kinds;

pub(crate) use kinds::{BreakerMetrics, Decision, EnrolmentMetrics, Limit, Reason, ReviewMetrics};

use foldhash::HashMap;
use http::{Method, StatusCode};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use sandgate_mesh::control::server::{ControlMetrics, Pushes};
use sandgate_mesh::metrics;
use sandgate_mesh::polled::Reload;
use sandgate_mesh::sandbox::Namespace;
use sandgate_mesh::tunnel::TunnelEnd;
use std::sync::{Mutex, PoisonError};

/// Namespaces that get a label value of their own.
const MAX_NAMESPACES: usize = 256;
/// The label value of everything else.
const OTHER: &str = "other";

/// What nobody said when the program was built, as the Go router has it.
const UNKNOWN: &str = "unknown";
/// Bounds of the durations of requests, in seconds: the existing Go router's, so that its dashboards carry over.
const DURATION_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0,
];

/// The end of a tunnel of which one side never switched.
const NOT_OPENED: &str = "not-opened";

/// Client connections that nothing was said on, by reason.
#[derive(Debug)]
pub(crate) struct RefusedConnections {
    /// The cap on open connections in all.
    pub(crate) connections: IntCounter,
    /// The cap on open connections from one address.
    pub(crate) connections_of_peer: IntCounter,
    /// The memory budget is spent.
    pub(crate) memory: IntCounter,
}

#[derive(Debug)]
struct Handles {
    count: IntCounter,
    duration: Histogram,
}

/// Handles that were looked up already: a look-up by label is too dear for every request.
#[derive(Debug, Default)]
struct Known {
    namespaces: HashMap<Namespace, usize>,
    handles: HashMap<(&'static str, StatusCode, usize), Handles>,
    allowed: HashMap<usize, IntCounter>,
}

/// The router's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    pub(crate) inflight: IntGauge,
    pub(crate) refused: RefusedConnections,
    pub(crate) open_tunnels: IntGauge,
    ended_tunnels: IntCounterVec,
    cert_reloads: IntCounterVec,
    requests: IntCounterVec,
    durations: HistogramVec,
    errors: IntCounterVec,
    retries: IntCounterVec,
    unresolved: IntCounterVec,
    decisions: IntCounterVec,
    reviews: IntCounterVec,
    review_durations: HistogramVec,
    limited: IntCounterVec,
    known: Mutex<Known>,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let labels = ["method", "code", "sandbox_namespace"];
        let counters = |name, help, labels: &[&str]| metrics::counters(&registry, name, help, labels);
        let durations = HistogramOpts::new(
            "sandbox_router_request_duration_seconds",
            "Duration of requests in seconds.",
        )
        .buckets(DURATION_BUCKETS.to_vec());
        let review_durations = HistogramOpts::new(
            "sandbox_router_review_duration_seconds",
            "Duration of reviews of callers at the API server in seconds, those without an answer included.",
        );
        let build = Opts::new(
            "sandbox_router_build_info",
            "1, labelled with the version and how it was built.",
        );
        let (names, values): (Vec<_>, Vec<_>) = build_info().into_iter().unzip();
        let build = metrics::registered(&registry, IntGaugeVec::new(build, &names))?;
        build.with_label_values(&values).set(1);
        let refused = counters(
            "sandbox_router_refused_connections_total",
            "Client connections over a cap or the memory budget, by reason.",
            &["reason"],
        )?;
        let refused = |reason| refused.with_label_values(&[reason]);
        let ended_tunnels = counters(
            "sandbox_router_tunnels_ended_total",
            "Upgraded connections that ended, by reason.",
            &["reason"],
        )?;
        for reason in TunnelEnd::ALL.map(TunnelEnd::as_str).into_iter().chain([NOT_OPENED]) {
            ended_tunnels.with_label_values(&[reason]);
        }
        let limited = counters(
            "sandbox_router_limited_requests_total",
            "Requests over a limit of their caller or their sandbox, by limit.",
            &["limit"],
        )?;
        for limit in Limit::ALL {
            limited.with_label_values(&[limit.as_str()]);
        }
        Ok(Self {
            limited,
            open_tunnels: metrics::gauge(
                &registry,
                "sandbox_router_open_tunnels",
                "Upgraded connections that are open.",
            )?,
            ended_tunnels,
            inflight: metrics::gauge(&registry, "sandbox_router_inflight_requests", "Requests under way.")?,
            retries: counters(
                "sandbox_router_upstream_retries_total",
                "Further connection attempts.",
                &["sandbox_namespace"],
            )?,
            refused: RefusedConnections {
                connections: refused("connections"),
                connections_of_peer: refused("connections-per-peer"),
                memory: refused("memory"),
            },
            cert_reloads: counters(
                "sandbox_router_cert_reloads_total",
                "Certificate reloads by outcome.",
                &["outcome"],
            )?,
            requests: counters(
                "sandbox_router_requests_total",
                "Requests by method, status and namespace.",
                &labels,
            )?,
            errors: counters(
                "sandbox_router_upstream_errors_total",
                "Requests without an answer from the sandbox, by reason.",
                &["sandbox_namespace", "reason"],
            )?,
            unresolved: counters(
                "sandbox_router_unresolved_total",
                "Requests whose sandbox was not found, by reason.",
                &["reason"],
            )?,
            decisions: counters(
                "sandbox_router_authz_decisions_total",
                "Requests by whether their caller may make them.",
                &["sandbox_namespace", "decision"],
            )?,
            reviews: counters(
                "sandbox_router_reviews_total",
                "Questions about callers that are the API server's to answer, by what came of them.",
                &["review", "outcome"],
            )?,
            review_durations: metrics::registered(&registry, HistogramVec::new(review_durations, &["review"]))?,
            durations: metrics::registered(&registry, HistogramVec::new(durations, &labels))?,
            known: Mutex::default(),
            registry,
        })
    }

    fn with_known<T>(&self, read: impl FnOnce(&mut Known) -> T) -> T {
        read(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives a namespace a label value of its own. Only one whose sandbox has answered is worth it: anybody can ask.
    pub(crate) fn learn(&self, namespace: &Namespace) {
        self.with_known(|known| {
            let next = known.namespaces.len() + 1;
            if next <= MAX_NAMESPACES && !known.namespaces.contains_key(namespace) {
                known.namespaces.insert(namespace.clone(), next);
            }
        });
    }

    fn label<'a>(&self, namespace: Option<&'a Namespace>) -> &'a str {
        let is_known = |namespace: &&Namespace| self.with_known(|known| known.namespaces.contains_key(*namespace));
        namespace.filter(is_known).map_or(OTHER, Namespace::as_str)
    }

    /// Counts a finished request.
    pub(crate) fn request(
        &self,
        method: &'static str,
        status: StatusCode,
        namespace: Option<&Namespace>,
        seconds: f64,
    ) {
        self.with_known(|known| {
            let index = namespace
                .and_then(|namespace| known.namespaces.get(namespace))
                .copied()
                .unwrap_or(0);
            let label = if index == 0 {
                OTHER
            } else {
                namespace.map_or(OTHER, Namespace::as_str)
            };
            let make = || {
                let labels = [method, status.as_str(), label];
                Handles {
                    count: self.requests.with_label_values(&labels),
                    duration: self.durations.with_label_values(&labels),
                }
            };
            let handles = known.handles.entry((method, status, index)).or_insert_with(make);
            handles.count.inc();
            handles.duration.observe(seconds);
        });
    }

    /// Counts a request that the sandbox didn't answer.
    pub(crate) fn error(&self, namespace: &Namespace, reason: Reason) {
        self.errors
            .with_label_values(&[self.label(Some(namespace)), reason.as_str()])
            .inc();
    }

    /// Counts a further attempt to connect.
    pub(crate) fn retried(&self, namespace: &Namespace) {
        self.retries.with_label_values(&[self.label(Some(namespace))]).inc();
    }

    /// Counts a request whose sandbox was not found.
    pub(crate) fn unresolved(&self, namespace: &Namespace, reason: &'static str) {
        self.unresolved.with_label_values(&[reason]).inc();
        // Dashboards that come from elsewhere know it as this.
        self.error(namespace, Reason::Dial);
    }

    /// What counts attempts to load changed certificates.
    pub(crate) fn on_cert_reload(&self) -> impl Fn(Reload) + Send + use<> {
        let reloads = self.cert_reloads.clone();
        start_at_zero(&reloads);
        move |outcome| reloads.with_label_values(&[outcome.as_str()]).inc()
    }

    /// What counts attempts to load changed secrets or public keys of scoped tokens. Only a router that has any has this metric.
    pub(crate) fn scoped_token_reloads(&self) -> prometheus::Result<IntCounterVec> {
        let reloads = metrics::counters(
            &self.registry,
            "sandbox_router_scoped_token_reloads_total",
            "Reloads of secrets and public keys of scoped tokens by outcome.",
            &["outcome"],
        )?;
        start_at_zero(&reloads);
        Ok(reloads)
    }

    /// What counts questions to an OIDC issuer for its keys. Only a router that takes its tokens has this metric.
    pub(crate) fn oidc_refreshes(&self) -> prometheus::Result<IntCounterVec> {
        let refreshes = metrics::counters(
            &self.registry,
            "sandbox_router_oidc_key_refreshes_total",
            "Questions to the OIDC issuer for its keys, or reloads of the file with them, by outcome.",
            &["outcome"],
        )?;
        start_at_zero(&refreshes);
        Ok(refreshes)
    }

    /// What is counted of enrolment. Only a router that a control plane brings its identity has these metrics.
    pub(crate) fn enrolment(&self) -> prometheus::Result<EnrolmentMetrics> {
        let identities = metrics::counters(
            &self.registry,
            "sandbox_router_enrolments_total",
            "Identities that control planes brought, by outcome.",
            &["outcome"],
        )?;
        let refused = metrics::counters(
            &self.registry,
            "sandbox_router_refused_control_connections_total",
            "Connections to the mesh port of no control plane, or too many of them, by reason.",
            &["reason"],
        )?;
        Ok(EnrolmentMetrics {
            control: ControlMetrics {
                identities: Pushes::new(&identities),
                policies: None,
                displaced: refused.with_label_values(&["connections"]),
            },
            refused: refused.with_label_values(&["control"]),
            handshakes: refused.with_label_values(&["handshakes"]),
        })
    }

    /// The end of the mesh certificate. Only a router that has one has this metric: 0 stands for a missing one.
    pub(crate) fn certificate_not_after(&self) -> prometheus::Result<IntGauge> {
        metrics::gauge(
            &self.registry,
            "sandbox_router_mesh_certificate_not_after_seconds",
            "End of the router's mesh certificate, in seconds since 1970; 0 without one.",
        )
    }

    /// The end of the HTTPS listener's certificate. Only a router that has one has this metric.
    pub(crate) fn https_certificate_not_after(&self) -> prometheus::Result<IntGauge> {
        metrics::gauge(
            &self.registry,
            "sandbox_router_https_certificate_not_after_seconds",
            "End of the HTTPS listener's certificate, in seconds since 1970.",
        )
    }

    /// What is counted of one kind of reviews. Only a router that asks for them shows it.
    pub(crate) fn reviews(&self, review: &'static str) -> ReviewMetrics {
        let outcome = |outcome| self.reviews.with_label_values(&[review, outcome]);
        ReviewMetrics {
            cached: outcome("cached"),
            joined: outcome("joined"),
            allowed: outcome("allowed"),
            refused: outcome("refused"),
            failed: outcome("failed"),
            shed: outcome("shed"),
            limited: outcome("limited"),
            duration: self.review_durations.with_label_values(&[review]),
        }
    }

    /// Counts a request over a limit.
    pub(crate) fn limited(&self, limit: Limit) {
        self.limited.with_label_values(&[limit.as_str()]).inc();
    }

    /// What is counted of hosts that are gone. Only a router that remembers them has these metrics.
    pub(crate) fn breakers(&self) -> prometheus::Result<BreakerMetrics> {
        Ok(BreakerMetrics {
            open: metrics::gauge(
                &self.registry,
                "sandbox_router_open_breakers",
                "Hosts of sandboxes that are taken for gone, and not dialed but now and then.",
            )?,
            refused: metrics::counter(
                &self.registry,
                "sandbox_router_short_circuited_dials_total",
                "Dials that were not made, because the sandbox's host is taken for gone.",
            )?,
        })
    }

    /// Counts a tunnel that has ended; without an end, one that never was.
    pub(crate) fn tunnel_ended(&self, end: Option<TunnelEnd>) {
        let reason = end.map_or(NOT_OPENED, TunnelEnd::as_str);
        self.ended_tunnels.with_label_values(&[reason]).inc();
    }

    /// Counts a request by whether its caller may make it.
    pub(crate) fn decided(&self, decision: Decision, namespace: Option<&Namespace>) {
        if decision == Decision::Deny {
            self.decisions.with_label_values(&[self.label(namespace), "deny"]).inc();
            return;
        }
        self.with_known(|known| {
            let found = namespace.and_then(|namespace| Some((*known.namespaces.get(namespace)?, namespace.as_str())));
            let (index, label) = found.unwrap_or((0, OTHER));
            let make = || self.decisions.with_label_values(&[label, "allow"]);
            known.allowed.entry(index).or_insert_with(make).inc();
        });
    }
}

/// The labels of `sandbox_router_build_info`: those of the Go router, so that dashboards can group by them, and one of this
/// project. Who builds says which commit it is; an architecture is named as Go and container images name it.
fn build_info() -> [(&'static str, &'static str); 7] {
    let platform = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => "linux/amd64",
        ("linux", "aarch64") => "linux/arm64",
        _ => UNKNOWN,
    };
    let commit = match option_env!("SANDGATE_GIT_COMMIT") {
        None | Some("") => UNKNOWN,
        Some(commit) => commit,
    };
    [
        ("version", env!("CARGO_PKG_VERSION")),
        ("git_version", concat!("v", env!("CARGO_PKG_VERSION"))),
        ("git_commit", commit),
        // The same sources give the same program, whenever it is built.
        ("build_date", UNKNOWN),
        ("go_version", "none"),
        ("compiler", "rustc"),
        ("platform", platform),
    ]
}

/// Has both outcomes there before they happen: an increase from nothing to 1 is none that an alert could see.
fn start_at_zero(reloads: &IntCounterVec) {
    for outcome in [Reload::Success, Reload::Failure] {
        reloads.with_label_values(&[outcome.as_str()]);
    }
}

/// A method as a label: the common ones by name.
pub(crate) fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => OTHER,
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
