//! Upstream's agent-sandbox: its custom resource definitions, and pods as its controller creates them. No controller
//! runs against the API server alone.

use crate::{Cluster, documents, until};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// The unpacked module sigs.k8s.io/agent-sandbox. `tests/cluster/run` says where it is.
pub fn module() -> PathBuf {
    let path = std::env::var_os("SANDGATE_AGENT_SANDBOX");
    path.expect("SANDGATE_AGENT_SANDBOX isn't set: use tests/cluster/run")
        .into()
}

/// Upstream's custom resource definitions.
pub fn crds() -> Vec<Value> {
    let folder = module().join("k8s/crds");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .flat_map(|path| documents(&std::fs::read_to_string(path).unwrap()))
        .collect()
}

impl Cluster {
    /// Installs upstream's custom resource definitions, also where they are installed already, and waits until the API
    /// server serves them. They stay.
    pub async fn install_upstream_crds(&self) -> Vec<Value> {
        let mut established = Vec::new();
        for crd in self.apply_all(&crds()).await {
            let what = format!("{} is established", crd["metadata"]["name"]);
            let crd = until(&what, async || match self.get(&crd).await {
                Ok(crd) if is_established(&crd) => Ok(crd),
                other => Err(other.map(|crd| crd["status"].clone())),
            });
            established.push(crd.await);
        }
        established
    }
}

fn is_established(crd: &Value) -> bool {
    let conditions = crd["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

/// A Sandbox with this pod specification, as a user would write it.
pub fn sandbox(name: &str, pod_spec: &Value) -> Value {
    json!({
        "apiVersion": "agents.x-k8s.io/v1beta1",
        "kind": "Sandbox",
        "metadata": {"name": name},
        "spec": {"podTemplate": {"spec": pod_spec}},
    })
}

/// The pod that upstream's controller creates for a stored Sandbox: of its name, owned by it, tracked by a label, and
/// with what the template asks for.
pub fn pod_of(sandbox: &Value) -> Value {
    let metadata = &sandbox["metadata"];
    let name = metadata["name"].as_str().unwrap();
    let template = &sandbox["spec"]["podTemplate"];
    let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let mut annotations = template["metadata"]["annotations"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let propagated = [
        ("agents.x-k8s.io/propagated-labels", keys(&labels)),
        ("agents.x-k8s.io/propagated-annotations", keys(&annotations)),
    ];
    for (annotation, keys) in propagated.into_iter().filter(|(_, keys)| !keys.is_empty()) {
        annotations.insert(annotation.into(), keys.into());
    }
    labels.insert("agents.x-k8s.io/sandbox-name-hash".into(), name_hash(name).into());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": sandbox["apiVersion"],
                "kind": sandbox["kind"],
                "name": name,
                "uid": metadata["uid"],
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": template["spec"],
    })
}

fn keys(map: &Map<String, Value>) -> String {
    let mut keys: Vec<_> = map.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys.join(",")
}

/// FNV-1a of 32 bits, in hexadecimal: the value of the controller's tracking label.
fn name_hash(name: &str) -> String {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    format!("{:08x}", name.bytes().fold(0x811c_9dc5, step))
}
