//! Which pod is whose: by name, by the Sandbox's UID, by address.

use super::seen::{Pod, Sighting};
use crate::resolve::Target;
use crate::routing::{Route, may_be_a_pod};
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
    /// Its pod waits in a warm pool, and whoever asks doesn't know its UID; or nobody answered there a moment ago; or the pod
    /// that has its name isn't its own.
    Withheld,
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
    /// Names that pods have which aren't their sandboxes' own, or at no address that a pod can have.
    unfit: HashSet<SandboxKey>,
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
        self.unfit.insert(key);
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
        self.unfit.remove(key);
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
            Sighting::Running(Pod { key, .. }) | Sighting::Waiting(key) => self.remove(&key),
            Sighting::Unfit(key) => self.pods.shun(key),
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
            // A pod that nobody has claimed is found by who knows its Sandbox's UID.
            let unknown = pod.pooled && route.uid.as_deref() != Some(&*pod.sandbox_uid);
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
        if self.pods.unfit.contains(&route.sandbox) {
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
mod tests {
    use super::super::seen::tests::{object, pod};
    use super::super::seen::{Pod, Sighting, seen as sighting};
    use super::*;
    use sandgate_mesh::contract::{GATE_CONTAINER, INJECTED, INJECTED_LABEL, WARM_POOL_LABEL};
    use serde_json::json;

    fn seen(name: &str, ip: &str, change: impl FnOnce(&mut serde_json::Value)) -> Pod {
        let mut pod = pod(name, ip);
        change(&mut pod);
        match sighting(&object(&pod)) {
            Some(Sighting::Running(pod)) => pod,
            other => panic!("{other:?}"),
        }
    }

    fn plain(name: &str, ip: &str) -> Pod {
        seen(name, ip, |_| {})
    }

    fn gated(name: &str, ip: &str) -> Pod {
        seen(name, ip, |pod| {
            pod["metadata"]["labels"][INJECTED_LABEL] = INJECTED.into();
            pod["spec"]["initContainers"] = json!([{"name": GATE_CONTAINER, "image": "gate"}]);
        })
    }

    fn pooled(name: &str, ip: &str) -> Pod {
        seen(name, ip, |pod| {
            pod["metadata"]["labels"][WARM_POOL_LABEL] = "pool".into();
        })
    }

    fn table(pods: impl IntoIterator<Item = Pod>) -> Table {
        let mut table = Table::new("cluster.local".parse().unwrap(), false);
        table.replace_pods(pods.into_iter().map(Sighting::Running).collect());
        table
    }

    fn route(namespace: &str, name: &str, uid: Option<&str>, ip: Option<&str>) -> Route {
        Route {
            sandbox: SandboxKey {
                namespace: namespace.parse().unwrap(),
                name: name.parse().unwrap(),
            },
            port: sandgate_mesh::sandbox::AppPort::DEFAULT,
            uid: uid.map(Into::into),
            pod_ip: ip.map(|ip| ip.parse().unwrap()),
            timeout: None,
        }
    }

    fn ip(found: &Found) -> Option<String> {
        match found {
            Found::Pod(known) => Some(known.ip.to_string()),
            _ => None,
        }
    }

    #[test]
    fn what_is_known_of_a_sandbox_beats_every_hint() {
        let table = table([plain("alpha", "10.0.0.1"), plain("beta", "10.0.0.2")]);
        for (uid, hint) in [
            (None, None),
            (Some("stale"), None),
            (None, Some("10.0.0.2")),
            (None, Some("10.9.9.9")),
        ] {
            let found = table.find(&route("team-a", "alpha", uid, hint));
            assert_eq!(ip(&found).as_deref(), Some("10.0.0.1"), "{uid:?} {hint:?}");
        }
    }

    #[test]
    fn a_hint_leads_to_nobody_elses_pod() {
        let table = table([plain("alpha", "10.0.0.1")]);
        let find = |namespace, name, hint| table.find(&route(namespace, name, None, Some(hint)));
        assert_eq!(find("team-b", "alpha", "10.0.0.1"), Found::Foreign);
        assert_eq!(find("team-a", "gone", "10.0.0.1"), Found::Misled);
        assert_eq!(find("team-a", "gone", "10.0.0.9"), Found::Unknown);
    }

    #[test]
    fn an_unclaimed_pod_is_found_by_its_uid_only() {
        let table = table([pooled("warm", "10.0.0.1")]);
        // Nor by a hint, or by DNS where there is a Service.
        for hint in [None, Some("10.0.0.1"), Some("10.9.9.9")] {
            assert_eq!(table.find(&route("team-a", "warm", None, hint)), Found::Withheld);
            assert_eq!(
                table.find(&route("team-a", "warm", Some("other"), hint)),
                Found::Withheld
            );
        }
        let found = table.find(&route("team-a", "warm", Some("warm-sandbox"), None));
        assert_eq!(ip(&found).as_deref(), Some("10.0.0.1"));
        assert_eq!(
            table.find(&route("team-b", "warm", Some("warm-sandbox"), None)),
            Found::Unknown
        );
    }

    #[test]
    fn the_identity_that_must_answer_is_that_pods() {
        let mut table = table([gated("alpha", "10.0.0.1"), plain("beta", "10.0.0.2")]);
        table.replace_opted_in(HashSet::from_iter(["team-a".parse().unwrap()]));
        let Found::Pod(known) = table.find(&route("team-a", "alpha", None, None)) else {
            panic!("not found");
        };
        let gate = known.gate.unwrap();
        assert_eq!(gate.endpoint.to_string(), "10.0.0.1:14443");
        let expected = gate.expected.as_ref().unwrap().to_string();
        assert_eq!(expected, "spiffe://cluster.local/ns/team-a/sandbox/alpha/pod/alpha-uid");
        let Found::Pod(known) = table.find(&route("team-a", "beta", None, None)) else {
            panic!("not found");
        };
        assert!(known.gate.is_none() && known.opted_in);
        table.opted_in("team-a".parse().unwrap(), false);
        let Found::Pod(known) = table.find(&route("team-a", "beta", None, None)) else {
            panic!("not found");
        };
        assert!(!known.opted_in);
    }

    #[test]
    fn a_namespace_that_is_not_known_yet_counts_as_opted_in() {
        let mut table = table([plain("alpha", "10.0.0.1")]);
        let opted_in = |table: &Table| match table.find(&route("team-a", "alpha", None, None)) {
            Found::Pod(known) => known.opted_in,
            other => panic!("{other:?}"),
        };
        assert!(opted_in(&table));
        table.replace_opted_in(HashSet::default());
        assert!(!opted_in(&table));
    }

    #[tokio::test(start_paused = true)]
    async fn an_evicted_pod_stays_away_for_a_while_and_only_if_it_is_still_there() {
        let mut table = table([plain("alpha", "10.0.0.1")]);
        let key = route("team-a", "alpha", None, None).sandbox;
        assert!(!table.evict(&key, [10, 0, 0, 9].into()));
        assert!(table.evict(&key, [10, 0, 0, 1].into()));
        assert!(!table.evict(&key, [10, 0, 0, 1].into()), "once is enough");
        assert_eq!(
            table.find(&route("team-a", "alpha", None, Some("10.0.0.1"))),
            Found::Withheld
        );
        // Nobody else gets it meanwhile.
        assert_eq!(
            table.find(&route("team-b", "x", None, Some("10.0.0.1"))),
            Found::Foreign
        );
        tokio::time::advance(EVICTED).await;
        assert!(ip(&table.find(&route("team-a", "alpha", None, None))).is_some());
        assert!(table.evict(&key, [10, 0, 0, 1].into()));
        table.see(Sighting::Running(plain("alpha", "10.0.0.1")));
        assert!(
            ip(&table.find(&route("team-a", "alpha", None, None))).is_some(),
            "the API server spoke of it"
        );
    }

    fn unready(pod: Pod) -> Pod {
        Pod { ready: false, ..pod }
    }

    #[test]
    fn a_gated_pod_that_was_ready_keeps_its_requests_while_it_is_not() {
        let found = |table: &Table| ip(&table.find(&route("team-a", "alpha", None, None))).is_some();
        let mut table = table([gated("alpha", "10.0.0.1")]);
        table.see(Sighting::Running(unready(gated("alpha", "10.0.0.1"))));
        assert!(found(&table));
        table.replace_pods(vec![Sighting::Running(unready(gated("alpha", "10.0.0.1")))]);
        assert!(found(&table), "a new list says the same");
        // It has to be that very pod, where it was.
        table.see(Sighting::Running(unready(gated("alpha", "10.0.0.2"))));
        assert!(!found(&table));
        table.see(Sighting::Running(gated("alpha", "10.0.0.1")));
        let another = Pod {
            uid: "another-uid".parse().unwrap(),
            ..unready(gated("alpha", "10.0.0.1"))
        };
        table.see(Sighting::Running(another.clone()));
        assert!(!found(&table));
        table.see(Sighting::Running(gated("alpha", "10.0.0.1")));
        table.replace_pods(vec![Sighting::Running(another)]);
        assert!(!found(&table));
    }

    #[test]
    fn a_pod_that_was_never_ready_or_has_no_gate_gets_no_requests_before_it_is() {
        let found = |table: &Table| ip(&table.find(&route("team-a", "alpha", None, None))).is_some();
        let mut table = table([unready(gated("alpha", "10.0.0.1"))]);
        assert!(!found(&table));
        table.see(Sighting::Running(unready(gated("alpha", "10.0.0.1"))));
        assert!(!found(&table));
        table.see(Sighting::Running(plain("alpha", "10.0.0.1")));
        assert!(found(&table));
        table.see(Sighting::Running(unready(plain("alpha", "10.0.0.1"))));
        assert!(!found(&table));
    }

    /// The next pod may have the address before it is known that the last one is gone.
    #[test]
    fn an_address_belongs_to_who_got_it_last() {
        let mut table = table([plain("alpha", "10.0.0.1")]);
        table.see(Sighting::Running(plain("beta", "10.0.0.1")));
        table.remove(&route("team-a", "alpha", None, None).sandbox);
        assert_eq!(
            table.find(&route("team-b", "x", None, Some("10.0.0.1"))),
            Found::Foreign
        );
        table.see(Sighting::Running(plain("beta", "10.0.0.2")));
        assert_eq!(
            table.find(&route("team-b", "x", None, Some("10.0.0.1"))),
            Found::Unknown
        );
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn what_can_be_no_pods_address_is_nobodys() {
        let mut table = table([
            plain("alpha", "127.0.0.1"),
            plain("beta", "169.254.169.254"),
            plain("gamma", "10.0.0.3"),
        ]);
        assert_eq!(table.len(), 1);
        table.see(Sighting::Running(plain("gamma", "127.0.0.1")));
        assert_eq!(table.len(), 0);
        assert_eq!(table.find(&route("team-a", "gamma", None, None)), Found::Withheld);
    }

    /// Nothing leads to it: no hint, and no Service of that name, behind which it may be.
    #[test]
    fn a_name_that_somebody_else_has_leads_nowhere_until_it_is_free() {
        let mut table = table([plain("alpha", "10.0.0.1")]);
        let alpha = |hint| route("team-a", "alpha", None, hint);
        let key = alpha(None).sandbox;
        table.see(Sighting::Unfit(key.clone()));
        for hint in [None, Some("10.0.0.1"), Some("10.9.9.9")] {
            assert_eq!(table.find(&alpha(hint)), Found::Withheld, "{hint:?}");
        }
        assert_eq!(table.len(), 0);
        // Its own pod, not ready yet; and gone again.
        table.see(Sighting::Waiting(key.clone()));
        assert_eq!(table.find(&alpha(None)), Found::Unknown);
        table.see(Sighting::Unfit(key.clone()));
        table.see(Sighting::Running(plain("alpha", "10.0.0.2")));
        assert_eq!(ip(&table.find(&alpha(None))).as_deref(), Some("10.0.0.2"));
        table.see(Sighting::Unfit(key.clone()));
        table.remove(&key);
        assert_eq!(table.find(&alpha(None)), Found::Unknown);
        table.see(Sighting::Unfit(key));
        table.replace_pods(Vec::new());
        assert_eq!(table.find(&alpha(None)), Found::Unknown);
    }

    #[test]
    fn nothing_is_complete_before_both_lists_are() {
        let mut table = Table::new("cluster.local".parse().unwrap(), false);
        assert!(!table.is_complete());
        table.replace_pods(Vec::new());
        assert!(!table.is_complete());
        table.replace_opted_in(HashSet::default());
        assert!(table.is_complete());
    }
}
