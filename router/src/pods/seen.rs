//! A pod as the API server sends it -> what a request needs of it. Reads a few fields and skips the rest unread.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use sandgate_kubernetes::PartialObject;
use sandgate_mesh::contract::{GATE_CONTAINER, INJECTED, INJECTED_LABEL, WARM_POOL_LABEL};
use sandgate_mesh::sandbox::{PodUid, SandboxKey};
use serde::Deserialize;
use std::net::IpAddr;

/// The API group of the controller's own objects.
const AGENT_SANDBOX_GROUP: &str = "agents.x-k8s.io/";

/// The fields of a pod that are read.
pub(super) type PodObject = PartialObject<v1::Pod, Spec, Status>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(default)]
    init_containers: Vec<Container>,
    #[serde(default)]
    host_network: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Container {
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    #[serde(default, rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// A pod of a sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) key: SandboxKey,
    pub(super) uid: PodUid,
    /// The UID of the Sandbox that it belongs to.
    pub(super) sandbox_uid: Box<str>,
    pub(super) ip: IpAddr,
    /// It waits in a warm pool: nobody has claimed it.
    pub(super) pooled: bool,
    /// It was born with a gate.
    pub(super) gated: bool,
    /// It says that it can serve.
    pub(super) ready: bool,
}

/// What a pod is to the sandbox of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sighting {
    /// It is the sandbox's own, and runs.
    Running(Pod),
    /// It is the sandbox's own, and can't be reached.
    Waiting(SandboxKey),
    /// It isn't the sandbox's own, or has no address of its own. Whoever answers to the name may be this pod.
    Unfit(SandboxKey),
}

/// Which pod an event is about; `None` of one whose name can't be a sandbox's.
pub(super) fn key(pod: &PodObject) -> Option<SandboxKey> {
    Some(SandboxKey {
        namespace: pod.metadata.namespace.as_deref()?.parse().ok()?,
        name: pod.metadata.name.as_deref()?.parse().ok()?,
    })
}

/// What to make of a pod; `None` of one whose name can't be a sandbox's.
pub(super) fn seen(pod: &PodObject) -> Option<Sighting> {
    let key = key(pod)?;
    let owner = controlling_sandbox(pod, &key);
    Some(match owner.filter(|_| !pod.spec.host_network) {
        None => Sighting::Unfit(key),
        Some(owner) => running(pod, &key, owner).map_or(Sighting::Waiting(key), Sighting::Running),
    })
}

/// The Sandbox of its name, if it controls the pod: the label alone is anybody's to write.
fn controlling_sandbox<'a>(pod: &'a PodObject, key: &SandboxKey) -> Option<&'a OwnerReference> {
    let mut owners = pod.owner_references().iter();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    (is_sandbox(owner) && owner.name == key.name.as_str()).then_some(owner)
}

/// The pod, if it runs, has an address and isn't being deleted.
fn running(pod: &PodObject, key: &SandboxKey, owner: &OwnerReference) -> Option<Pod> {
    let status = &pod.status;
    let is_ready = |condition: &Condition| condition.kind == "Ready" && condition.status == "True";
    if status.phase.as_deref() != Some("Running") || pod.is_being_deleted {
        return None;
    }
    let labels = pod.labels();
    let has_gate = pod
        .spec
        .init_containers
        .iter()
        .any(|container| container.name == GATE_CONTAINER);
    Some(Pod {
        uid: pod.metadata.uid.as_deref()?.parse().ok()?,
        sandbox_uid: owner.uid.as_str().into(),
        ip: status.pod_ip.as_deref()?.parse::<IpAddr>().ok()?.to_canonical(),
        pooled: labels.contains_key(WARM_POOL_LABEL),
        gated: has_gate && labels.get(INJECTED_LABEL).is_some_and(|value| value == INJECTED),
        ready: status.conditions.iter().any(is_ready),
        key: key.clone(),
    })
}

fn is_sandbox(owner: &OwnerReference) -> bool {
    owner.kind == "Sandbox" && owner.api_version.starts_with(AGENT_SANDBOX_GROUP)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A pod that may get requests, as the API server sends it.
    pub(in crate::pods) fn pod(name: &str, ip: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "team-a", "uid": format!("{name}-uid"),
                "labels": {"agents.x-k8s.io/sandbox-name-hash": "8c736521"},
                "ownerReferences": [{
                    "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": name, "uid": format!("{name}-sandbox"),
                    "controller": true,
                }],
            },
            "spec": {"containers": [{"name": "app", "image": "app"}]},
            "status": {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    pub(in crate::pods) fn object(pod: &Value) -> PodObject {
        serde_json::from_value(pod.clone()).unwrap()
    }

    fn sighted(change: impl FnOnce(&mut Value)) -> Option<Sighting> {
        let mut pod = pod("alpha", "10.0.0.7");
        change(&mut pod);
        super::seen(&object(&pod))
    }

    fn seen(change: impl FnOnce(&mut Value)) -> Option<Pod> {
        match sighted(change) {
            Some(Sighting::Running(pod)) => Some(pod),
            _ => None,
        }
    }

    fn is_unfit(change: impl FnOnce(&mut Value)) -> bool {
        matches!(sighted(change), Some(Sighting::Unfit(key)) if key.to_string() == "team-a/alpha")
    }

    #[test]
    fn a_ready_pod_of_its_sandbox_is_seen() {
        let pod = seen(|_| {}).unwrap();
        assert_eq!(pod.key.to_string(), "team-a/alpha");
        assert_eq!((pod.uid.as_str(), &*pod.sandbox_uid), ("alpha-uid", "alpha-sandbox"));
        assert_eq!(pod.ip, IpAddr::from([10, 0, 0, 7]));
        assert!(pod.ready && !pod.pooled && !pod.gated);
        let unready = seen(|pod| pod["status"]["conditions"][0]["status"] = "False".into());
        assert!(!unready.unwrap().ready);
        assert!(!seen(|pod| pod["status"]["conditions"] = json!([])).unwrap().ready);
    }

    #[test]
    fn who_gets_no_requests() {
        assert_eq!(seen(|pod| pod["status"]["phase"] = "Succeeded".into()), None);
        assert_eq!(seen(|pod| pod["status"]["podIP"] = Value::Null), None);
        assert_eq!(seen(|pod| pod["status"] = Value::Null), None);
        assert_eq!(
            seen(|pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()),
            None
        );
        assert_eq!(sighted(|pod| pod["metadata"]["name"] = "a.b".into()), None);
        // At a node's address are the node's own ports.
        assert!(is_unfit(|pod| pod["spec"]["hostNetwork"] = true.into()));
        // Its own pod that isn't ready yet is no reason to believe nobody.
        assert!(matches!(
            sighted(|pod| pod["status"] = Value::Null),
            Some(Sighting::Waiting(_))
        ));
    }

    #[test]
    fn a_label_steals_nobodys_name() {
        assert!(is_unfit(|pod| pod["metadata"]["ownerReferences"] = json!([])));
        for (field, forged) in [
            ("name", json!("beta")),
            ("kind", json!("ReplicaSet")),
            ("apiVersion", json!("apps/v1")),
            ("controller", json!(false)),
        ] {
            // Whether it runs or not.
            for status in [pod("alpha", "10.0.0.7")["status"].clone(), Value::Null] {
                let unfit = is_unfit(|pod| {
                    pod["metadata"]["ownerReferences"][0][field] = forged.clone();
                    pod["status"] = status;
                });
                assert!(unfit, "{field}");
            }
        }
    }

    #[test]
    fn a_gate_is_its_container_and_its_label() {
        let gated = |label: bool, container: bool| {
            let pod = seen(|pod| {
                if label {
                    pod["metadata"]["labels"][INJECTED_LABEL] = INJECTED.into();
                }
                if container {
                    pod["spec"]["initContainers"] = json!([{"name": GATE_CONTAINER, "image": "gate"}]);
                }
            });
            pod.unwrap().gated
        };
        assert!(gated(true, true) && !gated(true, false) && !gated(false, true));
    }

    #[test]
    fn a_pod_in_a_pool_is_known_as_one() {
        let pod = seen(|pod| pod["metadata"]["labels"][WARM_POOL_LABEL] = "pool".into());
        assert!(pod.unwrap().pooled);
    }
}
