//! Upstream's agent-sandbox on this API server.

use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::{Cluster, runner::Test, tests};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    upstreams_custom_resources_can_be_installed,
    a_pod_as_upstreams_controller_creates_it_is_stored_as_sent,
];

async fn upstreams_custom_resources_can_be_installed(cluster: Cluster) {
    let installed = cluster.install_upstream_crds().await;
    let mut names: Vec<_> = installed
        .iter()
        .map(|crd| crd["metadata"]["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    let expected = [
        "sandboxclaims.extensions.agents.x-k8s.io",
        "sandboxes.agents.x-k8s.io",
        "sandboxtemplates.extensions.agents.x-k8s.io",
        "sandboxwarmpools.extensions.agents.x-k8s.io",
    ];
    assert_eq!(names, expected);
    let namespace = cluster.namespace(&[]).await;
    let reason = namespace
        .refused(&sandbox("alpha", &json!({"containers": "none"})))
        .await;
    assert!(reason.contains("spec.podTemplate.spec.containers"), "{reason}");
}

async fn a_pod_as_upstreams_controller_creates_it_is_stored_as_sent(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let namespace = cluster.namespace(&[]).await;
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    let owner = namespace.admitted(&sandbox("alpha", &spec)).await;
    let pod = pod_of(&owner);
    let stored = namespace.admitted(&pod).await;
    for field in ["labels", "ownerReferences"] {
        assert_eq!(stored["metadata"][field], pod["metadata"][field], "{stored}");
    }
    assert_eq!(
        stored["metadata"]["labels"],
        json!({"agents.x-k8s.io/sandbox-name-hash": "5d8b6dab"}),
        "{stored}"
    );
    assert_eq!(
        stored["metadata"]["ownerReferences"][0]["uid"], owner["metadata"]["uid"],
        "{stored}"
    );
    assert!(stored["spec"].get("initContainers").is_none(), "{stored}");
    assert_eq!(stored["spec"]["containers"].as_array().unwrap().len(), 1, "{stored}");
}
