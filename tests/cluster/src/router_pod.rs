//! Routers as the chart's Deployment makes them: a pod of its template, and what a kubelet does with that, for a process of this
//! machine. Nobody gives such a router an identity by hand.

use crate::chart::Chart;
use crate::injector::in_namespace;
use crate::node::new_address;
use crate::router::{ACCOUNT, ask, kubeconfig};
use crate::{Cluster, Namespace, until};
use sandgate_tests::folder::Folder;
use sandgate_tests::kubelet;
use sandgate_tests::processes::{Process, until_ready};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};

/// The `ConfigMap` with the roots.
pub const ROOTS: &str = "sandgate-roots";
/// The mesh port of routers.
const MESH_PORT: u16 = 14443;

/// Where the router's program is. `tests/cluster/run` builds it and says so.
fn program() -> String {
    std::env::var("SANDGATE_ROUTER").expect("SANDGATE_ROUTER isn't set: use tests/cluster/run")
}

/// A router of the chart's Deployment. It is killed when dropped.
pub struct RouterPod {
    /// The pod as it is stored.
    pub pod: Value,
    /// Where it is.
    pub address: Ipv4Addr,
    /// Where clients reach it.
    pub http: SocketAddr,
    /// Where its probes are.
    pub health: SocketAddr,
    /// Where its metrics are.
    pub metrics: SocketAddr,
    process: Process,
    system: Namespace,
    // Removed with it.
    volumes: Folder,
}

impl RouterPod {
    /// Starts the router of a stored pod in the injector's namespace with a token, and with the roots that are published there
    /// now, if any. The API server isn't told where it runs.
    pub async fn start(system: &Namespace, pod: &Value, token: &str) -> Self {
        let roots = published_roots(system).await;
        Self::start_with(system, pod, token, roots).await
    }

    /// The same before its kubelet has heard of the roots.
    pub async fn start_without_roots(system: &Namespace, pod: &Value, token: &str) -> Self {
        Self::start_with(system, pod, token, None).await
    }

    async fn start_with(system: &Namespace, pod: &Value, token: &str, roots: Option<String>) -> Self {
        let (volumes, address) = (Folder::new(), new_address());
        volumes.swap("token", &[("token", token)]);
        volumes.rename_over("kubeconfig", kubeconfig(system.name(), None).to_string());
        mount(&volumes, roots.as_deref());
        let (process, [http, health, metrics]) = start(pod, address, &volumes).await;
        Self {
            pod: pod.clone(),
            address,
            http,
            health,
            metrics,
            process,
            system: system.clone(),
            volumes,
        }
    }

    /// Kills it and starts its container again in the same pod.
    pub async fn restart(&mut self) {
        self.process.kill().await;
        let (process, [http, health, metrics]) = start(&self.pod, self.address, &self.volumes).await;
        (self.process, self.http, self.health, self.metrics) = (process, http, health, metrics);
    }

    /// Brings the published roots into its volume, as a kubelet does from time to time.
    pub async fn mount_roots(&self) {
        mount(&self.volumes, published_roots(&self.system).await.as_deref());
    }

    /// Returns when it is ready.
    pub async fn until_ready(&self) {
        until_ready(self.health, (200, "ok")).await;
    }

    /// What a client gets for this sandbox and port.
    pub async fn ask(&self, namespace: &str, sandbox: &str, port: u16) -> (u16, String) {
        ask(self.http, namespace, sandbox, port, "").await
    }

    /// Returns when a client gets this status for a sandbox; the answer's body.
    pub async fn until_answered(&self, status: u16, namespace: &str, sandbox: &str, port: u16) -> String {
        until(&format!("{sandbox} answers {status}"), async || {
            match self.ask(namespace, sandbox, port).await {
                (found, body) if found == status => Ok(body),
                other => Err(other),
            }
        })
        .await
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.stderr()
    }
}

/// The roots as they are published in the injector's namespace.
async fn published_roots(system: &Namespace) -> Option<String> {
    let published =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOTS, "namespace": system.name()}});
    let found = system.cluster().get(&published).await.ok()?;
    found["data"]["ca.crt"].as_str().map(Into::into)
}

fn mount(volumes: &Folder, roots: Option<&str>) {
    let files: Vec<_> = roots.map(|roots| ("ca.crt", roots)).into_iter().collect();
    volumes.swap("roots", &files);
}

async fn start(pod: &Value, address: Ipv4Addr, volumes: &Folder) -> (Process, [SocketAddr; 3]) {
    let containers = pod["spec"]["containers"].as_array().expect("a router's pod");
    let mut command = kubelet::command(&program(), pod, &containers[0], volumes);
    // What a pod has to itself, here all share; and pods of tests are on loopback.
    command.args([
        format!("--mesh-bind-address={address}:{MESH_PORT}"),
        format!("--http-bind-address={address}:0"),
        format!("--health-probe-bind-address={address}:0"),
        format!("--metrics-bind-address={address}:0"),
        format!("--kubeconfig={}", volumes.path("kubeconfig").display()),
        "--allow-loopback-pod-ip".into(),
        "--workers=1".into(),
    ]);
    let mut router = Process::start(command);
    let addresses = router.listens(["http", "health", "metrics"]).await;
    (router, addresses.map(|address| address.parse().unwrap()))
}

impl Cluster {
    /// Each `ServiceAccount` of a namespace that router pods are made with in tests: the chart's, and one that is nobody's.
    pub async fn router_accounts(&self, namespace: &Namespace) {
        for name in [ACCOUNT, "builder"] {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
            namespace.create(&account).await.expect("a ServiceAccount");
        }
    }
}

impl Chart {
    /// A pod of the router's Deployment, as its `ReplicaSet` would make it in a namespace.
    pub fn router_pod(&self, namespace: &Namespace, name: &str) -> Value {
        let mut deployments = self.of_component("router", &["Deployment"]);
        let template = in_namespace(namespace, &[deployments.remove(0)])[0]["spec"]["template"].clone();
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template["metadata"],
            "spec": template["spec"],
        });
        pod["metadata"]["name"] = name.into();
        pod["metadata"]["namespace"] = namespace.name().into();
        pod
    }
}

impl Namespace {
    /// Creates a router's pod, for the length of the test, and runs it as a kubelet would.
    pub async fn run_router(&self, pod: &Value) -> RouterPod {
        let stored = self.admitted(pod).await;
        self.cluster().remove_afterwards(&stored);
        let router = RouterPod::start(self, &stored, &self.token_of(&stored, "sandgate").await).await;
        self.runs_at(&stored, router.address).await;
        router
    }
}
