//! Which pods have a gate that can be dialed, and which are routers': watches that keep a few words of each, and say what
//! changed about it.

use crate::authority::RootId;
use crate::names::{
    APP, APP_LABEL, COMPONENT_LABEL, CONTAINER, ENABLED, ENROL_LABEL, INJECTED, INJECTED_LABEL, ROUTER_COMPONENT,
};
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ObjectMeta};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sandgate_kubernetes::{PartialObject, watch};
use sandgate_mesh::contract::TRUST_ANCHORS_VARIABLE;
use sandgate_mesh::sandbox::{Namespace, PodUid, SandboxName};
use sandgate_mesh::telemetry::chain;
use serde::Deserialize;
use std::net::IpAddr;
use std::pin::Pin;

/// A pod with a gate, or a router's, and where to dial it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) namespace: Namespace,
    pub(super) name: SandboxName,
    pub(super) uid: PodUid,
    pub(super) ip: IpAddr,
}

/// A pod as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) uid: PodUid,
    pub(super) namespace: Namespace,
    pub(super) name: SandboxName,
    /// The roots that its gate was born with; none once it has ended.
    pub(super) born_with: Option<Vec<RootId>>,
    /// None while it can't be dialed, or needn't be any more.
    pub(super) target: Option<Target>,
    /// How often its gate, or the router, was started again.
    pub(super) restarts: i32,
    /// Whether the kubelet takes it for ready.
    pub(super) ready: bool,
}

/// What a watch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// The watch starts over: whoever isn't seen before [`Self::Listed`] is gone.
    Listing,
    Listed,
    Seen(Sighting),
    Gone(PodUid),
    /// It failed, and goes on by itself.
    Failed(String),
}

/// The most roots of a gate that are looked at. The admission policy lets a few kibibytes pass, and three roots are as many as
/// there ever are at once.
const MOST_ROOTS: usize = 16;

/// What is read of a pod; the rest of it is skipped.
type Seen = PartialObject<Pod, Spec, Status>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    init_containers: Vec<InitContainer>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct InitContainer {
    name: String,
    env: Vec<Variable>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    init_container_statuses: Vec<ContainerStatus>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    name: String,
    ready: bool,
    restart_count: i32,
}

/// Follows the pods of the whole cluster that have a gate.
pub(super) fn changes(client: Client) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
    let api = Api::<Seen>::all(client);
    follow(api, &format!("{INJECTED_LABEL}={INJECTED}"), gate)
}

/// Follows the pods of routers that want an identity, which are in this namespace.
pub(super) fn router_changes(client: Client, namespace: &Namespace) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
    let api = Api::<Seen>::namespaced(client, namespace.as_str());
    let labels = format!("{APP_LABEL}={APP},{COMPONENT_LABEL}={ROUTER_COMPONENT},{ENROL_LABEL}={ENABLED}");
    follow(api, &labels, router)
}

/// How often what answers in a pod was started again, and whether it is ready.
type Life = (i32, bool);

fn follow(api: Api<Seen>, labels: &str, life: fn(&Status) -> Life) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
    let events = watch(api, watcher::Config::default().labels(labels));
    events
        .filter_map(move |event| std::future::ready(change(event, life)))
        .boxed()
}

fn gate(status: &Status) -> Life {
    let mut containers = status.init_container_statuses.iter();
    let gate = containers.find(|gate| gate.name == CONTAINER);
    gate.map_or((0, false), |gate| (gate.restart_count, gate.ready))
}

fn router(status: &Status) -> Life {
    let containers = &status.container_statuses;
    let restarts = containers.iter().map(|container| container.restart_count).sum();
    let ready = !containers.is_empty() && containers.iter().all(|container| container.ready);
    (restarts, ready)
}

fn change(event: watcher::Result<watcher::Event<Seen>>, life: fn(&Status) -> Life) -> Option<Change> {
    match event {
        Ok(watcher::Event::Init) => Some(Change::Listing),
        Ok(watcher::Event::InitDone) => Some(Change::Listed),
        Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => sighting(&pod, life).map(Change::Seen),
        Ok(watcher::Event::Delete(pod)) => uid(&pod.metadata).map(Change::Gone),
        Err(error) => Some(Change::Failed(chain(&error))),
    }
}

fn uid(metadata: &ObjectMeta) -> Option<PodUid> {
    metadata.uid.as_deref()?.parse().ok()
}

/// `None` of a pod whose name no sandbox can have: the webhook lets none such be injected, and no Deployment makes one.
fn sighting(pod: &Seen, life: fn(&Status) -> Life) -> Option<Sighting> {
    let uid = uid(&pod.metadata)?;
    let status = &pod.status;
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) || pod.is_being_deleted;
    let ip = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok());
    let (namespace, name): (Namespace, SandboxName) = (pod.namespace()?.parse().ok()?, pod.name_any().parse().ok()?);
    let target = ip.filter(|_| !over).map(|ip| Target {
        namespace: namespace.clone(),
        name: name.clone(),
        uid: uid.clone(),
        ip,
    });
    let (restarts, ready) = life(status);
    Some(Sighting {
        uid,
        namespace,
        name,
        born_with: (!over).then(|| born_with(&pod.spec)),
        target,
        restarts,
        ready,
    })
}

/// What can't be read is no root of anybody's.
fn born_with(spec: &Spec) -> Vec<RootId> {
    let gate = spec.init_containers.iter().find(|gate| gate.name == CONTAINER);
    let anchors = gate.and_then(|gate| gate.env.iter().find(|variable| variable.name == TRUST_ANCHORS_VARIABLE));
    let roots = anchors.map(|anchors| CertificateDer::pem_slice_iter(anchors.value.as_bytes()));
    roots
        .into_iter()
        .flatten()
        .map_while(Result::ok)
        .take(MOST_ROOTS)
        .map(|root| RootId::of(&root))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn seen(change: &Value) -> Option<Sighting> {
        seen_of(gate, change)
    }

    fn seen_of(life: fn(&Status) -> Life, change: &Value) -> Option<Sighting> {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "box", "namespace": "team-a", "uid": "u-1"},
            "spec": {"containers": [{"name": "app", "image": "a"}]},
            "status": {
                "phase": "Running",
                "podIP": "10.0.0.7",
                "initContainerStatuses": [
                    {"name": "other", "ready": false, "restartCount": 9},
                    {"name": "sandgate", "ready": true, "restartCount": 2},
                ],
            },
        });
        json_patch::merge(&mut pod, change);
        sighting(&serde_json::from_value(pod).unwrap(), life)
    }

    #[test]
    fn a_pod_with_an_address_can_be_dialed_until_it_ends() {
        let found = seen(&json!({})).unwrap();
        assert_eq!((found.restarts, found.ready), (2, true));
        let target = found.target.unwrap();
        assert_eq!(target.ip, IpAddr::from([10, 0, 0, 7]));
        assert_eq!((target.namespace.as_str(), target.name.as_str()), ("team-a", "box"));
        for over in [
            json!({"status": {"phase": "Succeeded"}}),
            json!({"status": {"phase": "Failed"}}),
            json!({"status": {"podIP": null}}),
            json!({"status": {"podIP": "10.0.0"}}),
            json!({"status": null}),
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        ] {
            assert_eq!(seen(&over).unwrap().target, None, "{over}");
        }
    }

    #[test]
    fn a_pods_gate_was_born_with_roots_until_the_pod_ends() {
        let stored = crate::authority_stored::Stored::new();
        let other = crate::authority_stored::Stored::new();
        let roots = [stored.authority.root().clone(), other.authority.root().clone()];
        let text = crate::ca_bundle::pem(&[roots[0].der(), roots[1].der()]);
        let gate = |name: &str, text: &str| {
            let env = json!([{"name": "OTHER", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}, {"name": name, "value": text}]);
            json!({"spec": {"initContainers": [{"name": "first"}, {"name": "sandgate", "env": env}]}})
        };
        let found = seen(&gate("SANDGATE_TRUST_ANCHORS", &text)).unwrap();
        assert_eq!(found.born_with, Some(vec![roots[0].id(), roots[1].id()]));
        for (name, text) in [("SANDGATE_TRUST_ANCHORS", "junk"), ("OTHER_ANCHORS", &text)] {
            assert_eq!(seen(&gate(name, text)).unwrap().born_with, Some(Vec::new()), "{name}");
        }
        let mut waits = gate("SANDGATE_TRUST_ANCHORS", &text);
        waits["status"] = json!({"podIP": null});
        let found = seen(&waits).unwrap();
        assert_eq!(
            (found.target, found.born_with.map(|roots| roots.len())),
            (None, Some(2))
        );
        waits["status"] = json!({"phase": "Succeeded"});
        assert_eq!(seen(&waits).unwrap().born_with, None);
    }

    #[test]
    fn a_router_is_as_ready_as_its_containers_are() {
        let seen = |containers: Value| {
            let found = seen_of(router, &json!({"status": {"containerStatuses": containers}})).unwrap();
            (found.restarts, found.ready)
        };
        let container = |ready, count| json!({"name": "router", "ready": ready, "restartCount": count});
        assert_eq!(seen(json!([])), (0, false));
        assert_eq!(seen(json!([container(true, 1)])), (1, true));
        assert_eq!(seen(json!([container(true, 1), container(false, 2)])), (3, false));
    }

    #[test]
    fn a_pod_that_can_be_no_sandbox_is_not_seen() {
        for odd in [
            json!({"metadata": {"uid": null}}),
            json!({"metadata": {"uid": "u/1"}}),
            json!({"metadata": {"name": "a.b"}}),
        ] {
            assert_eq!(seen(&odd), None, "{odd}");
        }
    }
}
