//! What must be in a cluster before sandboxes can be: upstream's controller by its manifests, our chart by Helm.

use sandgate_cluster_tests::chart::{OWN_NAMESPACE, folder, helm};
use sandgate_cluster_tests::upstream::module;
use sandgate_cluster_tests::{Cluster, documents, until_within};
use serde_json::{Value, json};
use std::time::Duration;

/// The image of upstream's controller, as `tests/cluster/run` makes it.
const CONTROLLER_IMAGE: &str = "local/agent-sandbox-controller:1";
/// How long pods may take to start of which every image is there, on a machine that is busy. A router's kubelet looks every
/// minute or so for the roots that the injector has published.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// The SDK's default mode presents no token, so everybody is let in; policies of sandboxes are not the subject here.
const VALUES: &[&str] = &["router.auth.mode=allow-all", "injector.defaultPolicy=anonymous"];

/// Installs everything, also where it is installed already, and returns when all of it is ready.
pub(crate) async fn install(cluster: Cluster) {
    install_upstream(&cluster).await;
    release(&[]).await;
    rolled_out(&cluster, "sandgate-injector").await;
    rolled_out(&cluster, "sandbox-router").await;
}

/// Installs or changes our release, with these values besides.
pub(crate) async fn release(values: &[&'static str]) {
    let values: Vec<_> = VALUES.iter().chain(values).copied().collect();
    let done = tokio::task::spawn_blocking(move || {
        let chart = folder();
        let mut arguments = vec!["upgrade", "--install", "sandgate", chart.to_str().unwrap()];
        arguments.extend(["--namespace", OWN_NAMESPACE]);
        arguments.extend(values.iter().flat_map(|value| ["--set", value]));
        helm(&arguments)
    });
    let done = done.await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Upstream's controller with its extensions, as its manifests have it, but for the image.
async fn install_upstream(cluster: &Cluster) {
    cluster.install_upstream_crds().await;
    // The last one has the same Deployment with the extensions switched on.
    let files = [
        "controller.yaml",
        "rbac.generated.yaml",
        "extensions.yaml",
        "extensions-rbac.generated.yaml",
        "extensions.controller.yaml",
    ];
    for file in files {
        let text = std::fs::read_to_string(module().join("k8s").join(file)).unwrap();
        let mut objects = documents(&text);
        for object in objects.iter_mut().filter(|object| object["kind"] == "Deployment") {
            let container = &mut object["spec"]["template"]["spec"]["containers"][0];
            assert!(container["image"].as_str().unwrap().starts_with("ko://"), "{container}");
            container["image"] = CONTROLLER_IMAGE.into();
        }
        cluster.apply_all(&objects).await;
    }
    rolled_out(cluster, "agent-sandbox-controller").await;
}

fn own(api_version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": OWN_NAMESPACE}})
}

/// Returns when all pods of a Deployment are those that it asks for, and available.
pub(crate) async fn rolled_out(cluster: &Cluster, name: &str) {
    let wanted = own("apps/v1", "Deployment", name);
    until_within(PATIENCE, &format!("{name} is rolled out"), async || {
        let found = cluster.get(&wanted).await.unwrap();
        let (spec, status) = (&found["spec"], &found["status"]);
        let done = status["observedGeneration"] == found["metadata"]["generation"]
            && ["replicas", "updatedReplicas", "availableReplicas"]
                .iter()
                .all(|count| status[count] == spec["replicas"]);
        if done { Ok(()) } else { Err(status.clone()) }
    })
    .await;
}
