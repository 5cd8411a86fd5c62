//! Namespaces, sandboxes and pods as these tests have them, and what can be asked of them.

use crate::install::PATIENCE;
use sandgate_cluster_tests::chart::{OWN_NAMESPACE, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::kubectl::{exec, kubectl_prints};
use sandgate_cluster_tests::router::ask;
use sandgate_cluster_tests::upstream::sandbox;
use sandgate_cluster_tests::{Cluster, Namespace, until, until_within};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Where apps listen, on every address of their pods.
pub(crate) const APP_PORT: u16 = 8888;
/// Where gates listen for routers and for the injector.
pub(crate) const MESH_PORT: u16 = 14443;
/// What opts a namespace in.
const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];

/// A pod's specification: an app that answers everybody with the pod's UID.
pub(crate) fn app() -> Value {
    json!({
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "app",
            "image": "local/app:1",
            "imagePullPolicy": "Never",
            "command": ["python3", "/opt/tests/app.py"],
            "ports": [{"containerPort": APP_PORT}],
            "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
            "readinessProbe": {"httpGet": {"path": "/", "port": APP_PORT}, "periodSeconds": 1},
        }],
    })
}

/// A pod that runs.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) ip: String,
}

/// A namespace that has opted in, in which the injector and its NetworkPolicy are in force.
pub(crate) async fn team(cluster: &Cluster) -> Namespace {
    let team = cluster.namespace(OPTED_IN).await;
    team.until_admitted(&sandbox_pod("until"), has_gate).await;
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "sandgate-gate", "namespace": team.name()},
    });
    until("the injector has made its NetworkPolicy", async || {
        cluster.get(&policy).await
    })
    .await;
    team
}

/// Creates a Sandbox with an app; its pod, once that is ready.
pub(crate) async fn start_sandbox(team: &Namespace, name: &str) -> Running {
    team.admitted(&sandbox(name, &app())).await;
    until_ready(team, name).await
}

/// Creates a pod; what it is once it is ready.
pub(crate) async fn start_pod(namespace: &Namespace, name: &str, spec: &Value) -> Running {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    namespace.admitted(&pod).await;
    until_ready(namespace, name).await
}

/// A pod of somebody else in a namespace of its own: it waits to be told what to do.
pub(crate) async fn stranger(cluster: &Cluster) -> (Namespace, Running) {
    let elsewhere = cluster.namespace(&[]).await;
    let pod = start_pod(&elsewhere, "stranger", &app()).await;
    (elsewhere, pod)
}

/// The pod of this name, as it is stored.
pub(crate) async fn stored(namespace: &Namespace, name: &str) -> Option<Value> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace.name()}});
    namespace.cluster().get(&pod).await.ok()
}

/// What a stored pod is, if it is ready and stays.
pub(crate) fn running(pod: &Value) -> Option<Running> {
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    let conditions = pod["status"]["conditions"].as_array()?;
    if !conditions.iter().any(ready) || pod["metadata"].get("deletionTimestamp").is_some() {
        return None;
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Running {
        name: text(&pod["metadata"]["name"])?,
        uid: text(&pod["metadata"]["uid"])?,
        ip: text(&pod["status"]["podIP"])?,
    })
}

/// Returns when the pod of this name is ready.
pub(crate) async fn until_ready(namespace: &Namespace, name: &str) -> Running {
    until_within(PATIENCE, &format!("the pod {name} is ready"), async || {
        let pod = stored(namespace, name).await;
        let ready = pod.as_ref().and_then(running);
        ready.ok_or_else(|| pod.map_or(Value::Null, |pod| pod["status"].clone()))
    })
    .await
}

/// Returns when another pod of this one's name is ready.
pub(crate) async fn until_replaced(namespace: &Namespace, old: &Running) -> Running {
    until_within(PATIENCE, &format!("there is another pod {}", old.name), async || {
        let pod = stored(namespace, &old.name).await;
        let found = pod.as_ref().and_then(running).filter(|found| found.uid != old.uid);
        found.ok_or_else(|| pod.map_or(Value::Null, |pod| pod["status"]["phase"].clone()))
    })
    .await
}

/// The router's Service, which the node reaches as every pod does.
pub(crate) async fn router(cluster: &Cluster) -> SocketAddr {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "sandbox-router-svc", "namespace": OWN_NAMESPACE},
    });
    let found = cluster.get(&service).await.unwrap();
    let ip = found["spec"]["clusterIP"].as_str().unwrap();
    (ip.parse::<std::net::IpAddr>().unwrap(), 8080).into()
}

/// A pod of the router's itself: Kubernetes takes the pods of a node out of every Service when the API server comes back before
/// it has heard from that node's kubelet.
pub(crate) async fn router_pod() -> SocketAddr {
    let labels = "app.kubernetes.io/component=router";
    let first = "jsonpath={.items[0].status.podIP}";
    let ip = kubectl_prints(&["get", "pods", "-n", OWN_NAMESPACE, "-l", labels, "-o", first]).await;
    (ip.parse::<std::net::IpAddr>().unwrap(), 8080).into()
}

/// How long it takes until a sandbox answers through the router, with the UID of this pod.
pub(crate) async fn until_answered(team: &Namespace, sandbox: &str, pod: &Running) -> Duration {
    let (router, started) = (router(team.cluster()).await, Instant::now());
    until(&format!("{sandbox} answers"), async || {
        match ask(router, team.name(), sandbox, APP_PORT, "").await {
            (200, body) if body.trim_end() == pod.uid => Ok(()),
            other => Err(other),
        }
    })
    .await;
    started.elapsed()
}

/// Returns when a pod gets no TCP connection there any more: rules for new pods come with a delay.
pub(crate) async fn until_closed(namespace: &Namespace, from: &Running, ip: &str, port: u16) {
    let what = format!("{} has no connection to {ip}:{port}", from.name);
    until(&what, async || {
        let reached = connects(namespace, from, ip, port).await;
        (!reached).then_some(()).ok_or("it has one")
    })
    .await;
}

/// Whether a pod gets a TCP connection.
pub(crate) async fn connects(namespace: &Namespace, from: &Running, ip: &str, port: u16) -> bool {
    const DIAL: &str = "import socket, sys\n\
        try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close(); print('connected')\n\
        except OSError as error: print('not connected:', error)";
    let command = ["python3", "-c", DIAL, ip, &port.to_string()];
    let told = exec(namespace.name(), &from.name, "app", &command).await;
    assert!(
        told.starts_with("connected") || told.starts_with("not connected"),
        "{told}"
    );
    told.starts_with("connected")
}
