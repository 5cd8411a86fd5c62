//! Objects that a tenant made hard to read: they hide nobody else's, neither from routers nor from the injector.

use crate::enrolment::{LEADER, Scene};
use crate::network_policy::{admits_the_gates_ports_only, until_ours};
use sandgate_cluster_tests::router::{PodApp, RunningRouter};
use sandgate_cluster_tests::runner::Test;
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::{Cluster, Namespace, tests};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    a_router_reads_other_pods_beside_one_that_is_hard_to_read,
    @alone an_injector_reads_other_pods_and_policies_beside_those_that_are_hard_to_read,
];

/// A time that the API server stores and that most clients can't parse.
const FAR: &str = "9999-12-31T23:59:59Z";

/// Has the API server store that its author changed it then. Whoever may update an object may do this.
async fn date(cluster: &Cluster, object: &Value) {
    let managed = json!([{
        "manager": "tenant", "operation": "Update", "apiVersion": object["apiVersion"], "fieldsType": "FieldsV1", "time": FAR,
        "fieldsV1": {"f:metadata": {"f:labels": {"f:odd": {}}}},
    }]);
    let change = json!({"metadata": {"annotations": {"odd": "1"}, "managedFields": managed}});
    let stored = cluster.merge(object, &change).await.unwrap();
    let dated = stored["metadata"]["managedFields"].as_array().unwrap();
    assert!(dated.iter().any(|entry| entry["time"] == FAR), "{dated:?}");
}

/// A pod of agent-sandbox's kind, of a Sandbox that nobody else has to do with.
async fn odd_pod(namespace: &Namespace) -> Value {
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    let owner = namespace.admitted(&sandbox("odd", &spec)).await;
    let mut pod = pod_of(&owner);
    pod["metadata"]["labels"]["odd"] = "odd".into();
    pod["metadata"]["labels"]["sandgate.dev/injected"] = "true".into();
    let pod = namespace.admitted(&pod).await;
    date(namespace.cluster(), &pod).await;
    pod
}

async fn a_router_reads_other_pods_beside_one_that_is_hard_to_read(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (cluster.router_system().await, cluster.namespace(&[]).await);
    let neighbour = cluster.namespace(&[]).await;
    odd_pod(&neighbour).await;
    let router = RunningRouter::start(&system, &["--mesh=off"]);
    router.until_ready().await;
    let app = PodApp::start("127.0.31.1", "app").await;
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    let owner = team.admitted(&sandbox("alpha", &spec)).await;
    let pod = team.admitted(&pod_of(&owner)).await;
    team.run_pod(&pod, "127.0.31.1", true).await;
    let port = app.port();
    assert_eq!(router.until_answered(200, team.name(), "alpha", port).await, "app");
    // Also while the list is followed: an event about such a pod delays no other.
    let later = cluster.namespace(&[]).await;
    let odd = odd_pod(&later).await;
    cluster.delete(&odd).await.unwrap();
    team.run_pod(&pod, "127.0.31.1", false).await;
    router.until_answered(502, team.name(), "alpha", port).await;
    assert_eq!(router.metric("sandbox_router_cache_watch_failures_total").await, 0);
}

async fn an_injector_reads_other_pods_and_policies_beside_those_that_are_hard_to_read(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let neighbour = cluster.namespace(&[]).await;
    odd_pod(&neighbour).await;
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "odd", "labels": {"odd": "odd"}}, "spec": {"podSelector": {}},
    });
    let policy = neighbour.admitted(&policy).await;
    date(&cluster, &policy).await;
    let (scene, replica) = Scene::start(&cluster).await;
    replica.until_metric(LEADER, 1).await;
    scene.gate("alpha").await;
    // Our own policy, made hard to read and changed, is repaired all the same.
    let ours = until_ours(&scene.sandboxes, admits_the_gates_ports_only).await;
    cluster
        .merge(&ours, &json!({"metadata": {"labels": {"odd": "odd"}}}))
        .await
        .unwrap();
    date(&cluster, &ours).await;
    cluster
        .merge(&ours, &json!({"spec": {"ingress": [{"ports": [{"port": 1}]}]}}))
        .await
        .unwrap();
    let repaired = until_ours(&scene.sandboxes, admits_the_gates_ports_only).await;
    assert_eq!(repaired["metadata"]["labels"]["odd"], "odd", "{repaired}");
}
