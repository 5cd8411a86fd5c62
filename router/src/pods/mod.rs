//! The pods of sandboxes as the API server tells of them. Hides how they are followed: whoever asks gets the pod of a
//! sandbox as it is now, or hears that there is none.
//!
//! Only what a request needs is kept of a pod, and only of pods that may get requests, so memory grows with the sandboxes
//! that are up; and the names of pods that aren't their sandboxes' own. While the API server is away, what it said last counts on.

mod seen;
mod table;
mod watch;

pub(crate) use table::{Found, Known};
pub use watch::Source;
pub(crate) use watch::follow;

use crate::routing::Route;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};
use sandgate_mesh::identity::TrustDomain;
use sandgate_mesh::metrics;
use sandgate_mesh::sandbox::SandboxKey;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use table::Table;

/// What is counted of the cache.
#[derive(Debug)]
struct CacheMetrics {
    pods: IntGauge,
    invalidations: IntCounterVec,
    failures: IntCounter,
}

/// The pods that may get requests, as of now. Clones are the same cache.
#[derive(Debug, Clone)]
pub(crate) struct PodCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: RwLock<Table>,
    metrics: CacheMetrics,
}

impl PodCache {
    /// An empty cache of sandboxes whose gates prove themselves in `trust_domain`. Pods may be at loopback addresses only if
    /// that is allowed.
    ///
    /// # Errors
    /// A metric of that name is registered already.
    pub(crate) fn new(
        trust_domain: TrustDomain,
        allow_loopback: bool,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let metrics = CacheMetrics {
            pods: metrics::gauge(registry, "sandbox_router_cache_pods", "Sandbox pods in the cache.")?,
            invalidations: metrics::counters(
                registry,
                "sandbox_router_cache_invalidations_total",
                "Pods that got no requests for a moment because nothing answered there, or somebody else.",
                &["sandbox_namespace"],
            )?,
            failures: metrics::counter(
                registry,
                "sandbox_router_cache_watch_failures_total",
                "Failed requests for the pods or namespaces of the cache.",
            )?,
        };
        Ok(Self(Arc::new(Shared {
            table: RwLock::new(Table::new(trust_domain, allow_loopback)),
            metrics,
        })))
    }

    // Nothing under these locks can panic halfway through a change.
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.write();
        change(&mut table);
        self.0.metrics.pods.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
    }

    fn len(&self) -> usize {
        self.read().len()
    }

    fn failed(&self) {
        self.0.metrics.failures.inc();
    }

    /// What is known of where this route leads.
    pub(crate) fn find(&self, route: &Route) -> Found {
        self.read().find(route)
    }

    /// Lets a sandbox's pod rest for a moment, if it is still the one at `ip`: nobody answers there, or somebody else.
    pub(crate) fn evict(&self, sandbox: &SandboxKey, ip: IpAddr) {
        let mut evicted = false;
        self.change(|table| evicted = table.evict(sandbox, ip));
        if evicted {
            // No caller can choose it: a pod is there.
            let namespace = sandbox.namespace.as_str();
            self.0.metrics.invalidations.with_label_values(&[namespace]).inc();
            tracing::info!(%sandbox, %ip, "the pod gets no requests for a moment");
        }
    }

    /// Whether all pods and all opted-in namespaces have been heard of.
    pub(crate) fn is_complete(&self) -> bool {
        self.read().is_complete()
    }
}

#[cfg(test)]
impl PodCache {
    /// Has heard of a pod of this name in the namespace `team-a`, whose Sandbox has the UID `<name>-sandbox`.
    pub(crate) fn hear_of(&self, name: &str, ip: &str) {
        let pod = seen::tests::object(&seen::tests::pod(name, ip));
        self.change(|table| seen::seen(&pod).into_iter().for_each(|sighting| table.see(sighting)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_gets_no_requests_for_a_moment_is_counted_once_and_no_other() {
        let registry = Registry::new();
        let cache = PodCache::new("cluster.local".parse().unwrap(), false, &registry).unwrap();
        cache.hear_of("alpha", "10.0.0.1");
        let counted = || {
            let families = registry.gather();
            let name = "sandbox_router_cache_invalidations_total";
            let family = families.iter().find(|family| family.name() == name);
            let counters = family.into_iter().flat_map(prometheus::proto::MetricFamily::get_metric);
            counters.map(|metric| metric.get_counter().get_value()).sum::<f64>()
        };
        let key = |name: &str| SandboxKey {
            namespace: "team-a".parse().unwrap(),
            name: name.parse().unwrap(),
        };
        // Somebody else's address, a sandbox that isn't known.
        cache.evict(&key("alpha"), [10, 0, 0, 9].into());
        cache.evict(&key("beta"), [10, 0, 0, 1].into());
        assert!(counted() < 0.5);
        // Of many requests that find nobody there, the first counts.
        for _ in 0..3 {
            cache.evict(&key("alpha"), [10, 0, 0, 1].into());
        }
        assert!((counted() - 1.0).abs() < 0.5);
    }
}
