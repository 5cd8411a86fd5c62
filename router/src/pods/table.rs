//! Which pod is whose: by name, by the Sandbox's UID, by address.

use super::seen::{Pod, Sighting};
use crate::routing::{Route, may_be_a_pod};
use crate::target::Target;
use foldhash::{HashMap, HashSet};
use sandgate_mesh::contract::MESH_PORT;
use sandgate_mesh::identity::{ExpectedSandbox, TrustDomain};
use sandgate_mesh::sandbox::{Namespace, SandboxKey};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What is known of where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The sandbox's pod.
    Pod(Known),
    /// Its pod waits in a warm pool, and whoever asks doesn't know its UID; or nobody answered there a moment ago; or it isn't
    /// ready; or the pod that has its name isn't its own.
    Withheld,
    /// Its Sandbox is another one than that which alone will do.
    Replaced,
    /// No pod of that sandbox, and the address that the client named is a pod's of another namespace.
    Foreign,
    /// No pod of that sandbox, and the address that the client named is another sandbox's pod.
    Misled,
    /// No pod of that sandbox.
    Unknown,
}

/// A sandbox's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) ip: IpAddr,
    /// Its gate, if it was born with one.
    pub(crate) gate: Option<Arc<Target>>,
    /// Whether its namespace has opted in.
    pub(crate) opted_in: bool,
}

#[derive(Debug)]
struct Entry {
    pod: Pod,
    gate: Option<Arc<Target>>,
    /// When somebody found nobody there.
    evicted: Option<Instant>,
}

/// How long a pod where nobody answered gets no requests, unless the API server speaks of it. It may have been the network.
const EVICTED: Duration = Duration::from_secs(5);

/// Pods by what they are looked up by.
#[derive(Debug, Default)]
struct Pods {
    by_key: HashMap<SandboxKey, Entry>,
    by_ip: HashMap<IpAddr, SandboxKey>,
    /// Names of pods that get no requests: they aren't ready, or not their sandboxes' own, or at no address that a pod can have.
    shunned: HashSet<SandboxKey>,
}

#[derive(Debug)]
pub(super) struct Table {
    trust_domain: TrustDomain,
    /// Whether pods may be at loopback addresses.
    allow_loopback: bool,
    pods: Pods,
    opted_in: HashSet<Namespace>,
    /// Whether all of them have been heard of once.
    heard_of_pods: bool,
    heard_of_namespaces: bool,
}

impl Entry {
    fn is_evicted(&self, now: Instant) -> bool {
        self.evicted.is_some_and(|since| now.duration_since(since) < EVICTED)
    }
}

impl Pods {
    fn insert(&mut self, entry: Entry) {
        self.remove(&entry.pod.key);
        let (key, ip) = (entry.pod.key.clone(), entry.pod.ip);
        self.by_ip.insert(ip, key.clone());
        self.by_key.insert(key, entry);
    }

    fn shun(&mut self, key: SandboxKey) {
        self.remove(&key);
        self.shunned.insert(key);
    }

    /// Whether a pod gets requests. One that isn't Ready gets none, unless it is the very pod that got them until now, and has
    /// a gate: a restart of the gate or of the kubelet leaves pods unready for a moment, there is no other pod to ask, and
    /// a gate says itself whether it can serve.
    fn takes(&self, sighting: &Sighting) -> bool {
        let Sighting::Running(pod) = sighting else { return false };
        let is_known = |entry: &Entry| entry.pod.uid == pod.uid && entry.pod.ip == pod.ip;
        pod.ready || (pod.gated && self.by_key.get(&pod.key).is_some_and(is_known))
    }

    fn remove(&mut self, key: &SandboxKey) {
        self.shunned.remove(key);
        let Some(gone) = self.by_key.remove(key) else { return };
        // An address is given to the next pod as soon as it is free: it may be in other hands already.
        if self.by_ip.get(&gone.pod.ip) == Some(key) {
            self.by_ip.remove(&gone.pod.ip);
        }
    }
}

impl Table {
    pub(super) fn new(trust_domain: TrustDomain, allow_loopback: bool) -> Self {
        Self {
            trust_domain,
            allow_loopback,
            pods: Pods::default(),
            opted_in: HashSet::default(),
            heard_of_pods: false,
            heard_of_namespaces: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.pods.by_key.len()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.heard_of_pods && self.heard_of_namespaces
    }

    /// All pods there are.
    pub(super) fn replace_pods(&mut self, pods: Vec<Sighting>) {
        let known = std::mem::take(&mut self.pods);
        for sighting in pods {
            let takes = known.takes(&sighting);
            self.note(sighting, takes);
        }
        self.heard_of_pods = true;
    }

    /// A pod as it is now.
    pub(super) fn see(&mut self, sighting: Sighting) {
        let takes = self.pods.takes(&sighting);
        self.note(sighting, takes);
    }

    fn note(&mut self, sighting: Sighting, takes: bool) {
        match sighting {
            Sighting::Running(pod) if !may_be_a_pod(pod.ip, self.allow_loopback) => self.pods.shun(pod.key),
            Sighting::Running(pod) if takes => self.insert(pod),
            Sighting::Running(Pod { key, .. }) | Sighting::Waiting(key) | Sighting::Unfit(key) => self.pods.shun(key),
        }
    }

    fn insert(&mut self, pod: Pod) {
        let gate = pod.gated.then(|| {
            Arc::new(Target {
                endpoint: SocketAddr::new(pod.ip, MESH_PORT),
                expected: Some(ExpectedSandbox {
                    trust_domain: self.trust_domain.clone(),
                    sandbox: pod.key.clone(),
                    pod_uid: Some(pod.uid.clone()),
                }),
            })
        });
        let evicted = None;
        self.pods.insert(Entry { pod, gate, evicted });
    }

    /// A pod that is gone.
    pub(super) fn remove(&mut self, key: &SandboxKey) {
        self.pods.remove(key);
    }

    /// Whether there was one at that address.
    pub(super) fn evict(&mut self, key: &SandboxKey, ip: IpAddr) -> bool {
        let now = Instant::now();
        let entry = self.pods.by_key.get_mut(key);
        let Some(entry) = entry.filter(|entry| entry.pod.ip == ip && !entry.is_evicted(now)) else {
            return false;
        };
        entry.evicted = Some(now);
        true
    }

    /// All namespaces that have opted in.
    pub(super) fn replace_opted_in(&mut self, opted_in: HashSet<Namespace>) {
        self.opted_in = opted_in;
        self.heard_of_namespaces = true;
    }

    /// Whether a namespace has opted in.
    pub(super) fn opted_in(&mut self, namespace: Namespace, opted_in: bool) {
        if opted_in {
            self.opted_in.insert(namespace);
        } else {
            self.opted_in.remove(&namespace);
        }
    }

    /// The order of CONTRACT section 2. What is known of the sandbox itself comes first, so a hint can't lead away from it.
    pub(super) fn find(&self, route: &Route) -> Found {
        if let Some(entry) = self.pods.by_key.get(&route.sandbox) {
            let Entry { pod, gate, .. } = entry;
            let is_meant = route.uid.as_deref() == Some(&*pod.sandbox_uid);
            if route.uid_is_binding && !is_meant {
                return Found::Replaced;
            }
            // A pod that nobody has claimed is found by who knows its Sandbox's UID.
            let unknown = pod.pooled && !is_meant;
            if unknown || entry.is_evicted(Instant::now()) {
                return Found::Withheld;
            }
            return Found::Pod(Known {
                ip: pod.ip,
                gate: gate.clone(),
                // What isn't known yet is taken for what lets less through.
                opted_in: !self.heard_of_namespaces || self.opted_in.contains(&pod.key.namespace),
            });
        }
        // Neither a hint nor a Service says more of it, and there is no UID that who answers could be held to.
        if self.pods.shunned.contains(&route.sandbox) {
            return Found::Withheld;
        }
        let hinted = route.pod_ip.and_then(|ip| self.pods.by_ip.get(&ip));
        match hinted {
            None => Found::Unknown,
            Some(other) if other.namespace != route.sandbox.namespace => Found::Foreign,
            Some(_) => Found::Misled,
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
