//! The API server that the other tests stand on.

use sandgate_cluster_tests::{Cluster, runner::Test, tests};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    the_api_server_answers_and_is_new_enough,
    admission_runs_as_in_a_cluster_of_its_own,
    a_service_account_token_is_issued_and_reviewed,
];

/// It is the pinned one, or one that the developer brought: `ValidatingAdmissionPolicy` is in every one from 1.30.
async fn the_api_server_answers_and_is_new_enough(cluster: Cluster) {
    let request = http::Request::get("/version").body(Vec::new()).unwrap();
    let version = cluster.send(request).await.unwrap();
    assert_eq!(version["major"], "1", "{version}");
    let minor: u32 = version["minor"].as_str().unwrap().parse().unwrap();
    assert!(minor >= 30, "{version}");
}

/// The pod gets its token, tolerations, priority and defaults, although no node will ever run it.
async fn admission_runs_as_in_a_cluster_of_its_own(cluster: Cluster) {
    let namespace = cluster.namespace(&[]).await;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "plain"},
        "spec": {"containers": [{"name": "app", "image": "app.example/app:1"}]},
    });
    let stored = namespace.admitted(&pod).await;
    let container = &stored["spec"]["containers"][0];
    let mount = &container["volumeMounts"][0]["mountPath"];
    assert_eq!(mount, "/var/run/secrets/kubernetes.io/serviceaccount", "{stored}");
    assert_eq!(
        stored["spec"]["tolerations"][0]["key"], "node.kubernetes.io/not-ready",
        "{stored}"
    );
    assert_eq!(stored["spec"]["priority"], 0, "{stored}");
    assert_eq!(container["terminationMessagePolicy"], "File", "{stored}");
    assert_eq!(stored["status"]["phase"], "Pending", "{stored}");
}

async fn a_service_account_token_is_issued_and_reviewed(cluster: Cluster) {
    let namespace = cluster.namespace(&[]).await;
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/default/token", namespace.name());
    let wanted = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": ["sandgate"]},
    });
    let request = http::Request::post(path)
        .body(serde_json::to_vec(&wanted).unwrap())
        .unwrap();
    let token = cluster.send(request).await.unwrap()["status"]["token"].clone();
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["sandgate"]},
    });
    let reviewed = cluster.create(&review).await.unwrap();
    let user = format!("system:serviceaccount:{}:default", namespace.name());
    assert_eq!(reviewed["status"]["user"]["username"], user, "{reviewed}");
    let mut elsewhere = review;
    elsewhere["spec"]["audiences"] = json!(["another"]);
    let reviewed = cluster.create(&elsewhere).await.unwrap();
    assert_ne!(reviewed["status"]["authenticated"], true, "{reviewed}");
}
