//! The part of a node that gates need: without a kubelet a test runs a pod's gate as a process of this machine, with the
//! pod's own token and on an address of its own, and tells the API server about it.

use crate::Namespace;
use sandgate_tests::folder::Folder;
use sandgate_tests::kubelet;
use sandgate_tests::processes::{Process, start_gate};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};

/// Values of the chart with which whoever runs tests may do what only kubelets may otherwise: see [`Namespace::run_gate`].
pub const AS_KUBELET: [&str; 2] = [
    "admissionPolicy.gateTokens.allowedUsers={sandgate-test-administrator}",
    "admissionPolicy.podAddresses.allowedUsers={sandgate-test-administrator}",
];
/// The volume with the token.
const TOKEN_VOLUME: &str = "sandgate-token";
/// The memory-backed volume with what the gate was given.
const STATE_VOLUME: &str = "sandgate-state";
/// The gate's ports.
const PORTS: [u16; 2] = [14443, 14480];

/// Where the gate's program is. `tests/cluster/run` builds it and says so.
fn program() -> String {
    std::env::var("SANDGATE_SIDECAR").expect("SANDGATE_SIDECAR isn't set: use tests/cluster/run")
}

/// An address that no other pod of this run has.
pub fn new_address() -> Ipv4Addr {
    static LAST: AtomicU8 = AtomicU8::new(0);
    Ipv4Addr::new(127, 77, 0, LAST.fetch_add(1, Ordering::Relaxed) + 1)
}

/// A running gate. It is killed when dropped.
pub struct RunningGate {
    /// Where it is.
    pub address: Ipv4Addr,
    process: Process,
    pod: Value,
    reboots: u32,
    // Removed with it.
    volumes: Folder,
}

impl RunningGate {
    /// Starts the gate of a stored pod with a token. The API server isn't told yet.
    pub async fn start(pod: &Value, token: &str, address: Ipv4Addr) -> Self {
        let volumes = Folder::new();
        volumes.swap(TOKEN_VOLUME, &[("token", token)]);
        Self {
            address,
            process: start(pod, address, &volumes).await,
            pod: pod.clone(),
            reboots: 0,
            volumes,
        }
    }

    /// Kills it and starts it again in the same pod.
    pub async fn restart(&mut self) {
        self.process.kill().await;
        self.process = start(&self.pod, self.address, &self.volumes).await;
    }

    /// Where its health and metrics are.
    pub fn health(&self) -> SocketAddr {
        (self.address, PORTS[1]).into()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.stderr()
    }
}

async fn start(pod: &Value, address: Ipv4Addr, volumes: &Folder) -> Process {
    let containers = pod["spec"]["initContainers"].as_array().expect("a pod with a gate");
    let gate = containers.iter().find(|container| container["name"] == "sandgate");
    let mut command = kubelet::command(&program(), pod, gate.expect("a pod with a gate"), volumes);
    // What a pod has to itself, here every gate shares.
    let [mesh, health] = PORTS;
    let token = volumes.path(TOKEN_VOLUME).join("token");
    command.args([
        format!("--mesh-bind-address={address}:{mesh}"),
        format!("--health-bind-address={address}:{health}"),
        format!("--token-file={}", token.display()),
    ]);
    start_gate(command).await.0
}

impl Namespace {
    /// A token of a pod's ServiceAccount that is bound to the pod, as the kubelet asks for it.
    pub async fn token_of(&self, pod: &Value, audience: &str) -> String {
        let (name, uid) = (&pod["metadata"]["name"], &pod["metadata"]["uid"]);
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
        let wanted = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience],
                "expirationSeconds": 3600,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid},
            },
        });
        let answer = self.post(&["serviceaccounts", account, "token"], &wanted).await;
        let issued = answer.unwrap_or_else(|status| panic!("a token for {name}: {status}"));
        issued["status"]["token"].as_str().unwrap().to_owned()
    }

    /// Tells the API server that a pod runs at an address.
    pub async fn runs_at(&self, pod: &Value, address: Ipv4Addr) {
        let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"$patch": "replace"}, {"ip": address}]}});
        let answer = self.change_part(pod, "status", &status).await;
        answer.unwrap_or_else(|status| panic!("the status of {}: {status}", pod["metadata"]["name"]));
    }

    /// Kills a gate and starts it in the same pod as a node does that was started again: what was in memory is gone. The API
    /// server is told so.
    pub async fn reboot(&self, gate: &mut RunningGate) {
        gate.process.kill().await;
        std::fs::remove_dir_all(gate.volumes.path(STATE_VOLUME)).unwrap();
        gate.process = start(&gate.pod, gate.address, &gate.volumes).await;
        gate.reboots += 1;
        let found = json!({
            "name": "sandgate", "image": "gate", "imageID": "", "ready": false, "restartCount": gate.reboots,
        });
        let status = json!({"status": {"initContainerStatuses": [found]}});
        let answer = self.change_part(&gate.pod, "status", &status).await;
        answer.unwrap_or_else(|status| panic!("the status of {}: {status}", gate.pod["metadata"]["name"]));
    }

    /// Creates a pod that must be taken, for the length of the test, and runs its gate as a kubelet would.
    pub async fn run_gate(&self, pod: &Value) -> (Value, RunningGate) {
        let stored = self.admitted(pod).await;
        self.cluster().remove_afterwards(&stored);
        let token = self.token_of(&stored, "sandgate").await;
        let gate = RunningGate::start(&stored, &token, new_address()).await;
        self.runs_at(&stored, gate.address).await;
        (stored, gate)
    }
}
