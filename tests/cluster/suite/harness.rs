//! What the harness promises to the tests that use it.

use sandgate_cluster_tests::admission::at_address;
use sandgate_cluster_tests::webhook::StubWebhook;
use sandgate_cluster_tests::{Cluster, documents, runner::Test, tests};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::process::Command;

pub(crate) const TESTS: &[Test] = tests![
    a_webhook_on_loopback_decides_for_its_namespace_alone,
    a_webhook_that_is_down_refuses_where_it_must_be_asked,
    a_policy_decides_in_the_api_server_for_its_namespace_alone,
    a_service_account_may_do_what_it_was_granted_and_no_more,
    a_node_may_create_a_mirror_pod_of_its_own_and_of_no_other,
    yaml_documents_are_applied_by_discovery,
    a_kept_cluster_is_not_forgotten_for_another,
];

/// A webhook configuration as a chart renders it.
const CONFIGURATION: &str = r"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: stub}
webhooks:
  - name: stub.sandgate.dev
    clientConfig: {service: {name: stub, namespace: default, path: /validate}}
    rules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
    failurePolicy: Fail
    sideEffects: None
    admissionReviewVersions: [v1]
    timeoutSeconds: 5
";

const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: short-names}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  validations: [{expression: "object.metadata.name.size() < 8", message: the name is too long for this test}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: short-names}
spec: {policyName: short-names, validationActions: [Deny]}
"#;

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "app.example/app:1"}]},
    })
}

/// Refuses pods called `bad`.
async fn stub() -> StubWebhook {
    StubWebhook::start(|request| {
        let allowed = request["name"] != "bad";
        json!({"allowed": allowed, "status": {"message": "the stub refuses this"}})
    })
    .await
}

async fn a_webhook_on_loopback_decides_for_its_namespace_alone(cluster: Cluster) {
    let (here, elsewhere) = (cluster.namespace(&[]).await, cluster.namespace(&[]).await);
    let webhook = stub().await;
    let configuration = at_address(&documents(CONFIGURATION)[0], webhook.address(), webhook.ca_pem());
    here.configure(&[configuration]).await;
    here.until_refused(&pod("bad"), "the stub refuses this").await;
    assert!(here.refused(&pod("bad")).await.contains("the stub refuses this"));
    here.admitted(&pod("good")).await;
    elsewhere.admitted(&pod("bad")).await;
    let seen = webhook.seen();
    assert!(
        seen.iter().all(|request| request["namespace"] == here.name()),
        "{seen:?}"
    );
    assert!(seen.iter().any(|request| request["name"] == "good"), "{seen:?}");
}

async fn a_webhook_that_is_down_refuses_where_it_must_be_asked(cluster: Cluster) {
    let (here, elsewhere) = (cluster.namespace(&[]).await, cluster.namespace(&[]).await);
    let webhook = stub().await;
    let configuration = at_address(&documents(CONFIGURATION)[0], webhook.address(), webhook.ca_pem());
    here.configure(&[configuration]).await;
    here.until_refused(&pod("bad"), "the stub refuses this").await;
    webhook.stop().await;
    let reason = here.refused(&pod("good")).await;
    assert!(
        reason.contains("failed calling webhook \"stub.sandgate.dev\""),
        "{reason}"
    );
    elsewhere.admitted(&pod("good")).await;
}

async fn a_policy_decides_in_the_api_server_for_its_namespace_alone(cluster: Cluster) {
    let (here, elsewhere) = (cluster.namespace(&[]).await, cluster.namespace(&[]).await);
    here.configure(&documents(POLICY)).await;
    here.until_refused(&pod("much-too-long"), "the name is too long for this test")
        .await;
    here.admitted(&pod("short")).await;
    elsewhere.admitted(&pod("much-too-long")).await;
}

async fn a_service_account_may_do_what_it_was_granted_and_no_more(cluster: Cluster) {
    let namespace = cluster.namespace(&[]).await;
    let as_account = namespace.as_new_service_account("worker", &["create"], &["pods"]).await;
    as_account.admitted(&pod("mine")).await;
    let config_map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}});
    let reason = as_account.refused(&config_map).await;
    let user = format!(
        "User \"system:serviceaccount:{}:worker\" cannot create",
        namespace.name()
    );
    assert!(reason.contains(&user), "{reason}");
    let elsewhere = cluster.namespace(&[]).await.seen_by(as_account.cluster());
    assert!(elsewhere.refused(&pod("mine")).await.contains("cannot create"));
}

async fn a_node_may_create_a_mirror_pod_of_its_own_and_of_no_other(cluster: Cluster) {
    let namespace = cluster.namespace(&[]).await;
    let node = cluster.node("node-of-mirror-pods").await;
    let mirror = |name: &str, node_name: &str| {
        let mut pod = pod(name);
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node["metadata"]["uid"], "controller": true,
        }]);
        pod["spec"]["nodeName"] = json!(node_name);
        pod
    };
    let as_node = namespace.seen_by(&cluster.as_node("node-of-mirror-pods"));
    as_node.admitted(&mirror("own", "node-of-mirror-pods")).await;
    let reason = as_node.refused(&mirror("foreign", "another-node")).await;
    assert!(
        reason.contains("can only create pods with spec.nodeName set to itself"),
        "{reason}"
    );
}

async fn yaml_documents_are_applied_by_discovery(cluster: Cluster) {
    let namespace = cluster.namespace(&[]).await;
    let yaml = format!(
        "# A comment and an empty document are no object.\n---\n---\napiVersion: v1\nkind: ConfigMap\n\
         metadata: {{name: first, namespace: {name}}}\ndata: {{key: \"on\"}}\n---\napiVersion: apps/v1\n\
         kind: Deployment\nmetadata: {{name: second, namespace: {name}}}\nspec:\n  \
         selector: {{matchLabels: {{app: second}}}}\n  template:\n    metadata: {{labels: {{app: second}}}}\n    \
         spec: {{containers: [{{name: app, image: app.example/app:1}}]}}\n",
        name = namespace.name()
    );
    let objects = documents(&yaml);
    let applied = cluster.apply_all(&objects).await;
    assert_eq!(applied.len(), 2);
    assert_eq!(cluster.get(&objects[0]).await.unwrap()["data"]["key"], "on");
    assert_eq!(cluster.get(&objects[1]).await.unwrap()["spec"]["replicas"], 1);
    // Twice is as good as once.
    cluster.apply_all(&objects).await;
    cluster.delete(&objects[0]).await.unwrap();
    assert!(cluster.get(&objects[0]).await.unwrap_err().is_not_found());
}

/// Two terminals, each with `--keep`: the second would take the first one's place, and leave it running with no name.
async fn a_kept_cluster_is_not_forgotten_for_another(_: Cluster) {
    let folder = std::env::temp_dir().join(format!("sandgate-kept-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (link, first) = (folder.join("kept"), folder.join("first"));
    std::os::unix::fs::symlink(&first, &link).unwrap();
    let second = || {
        // It looks for its servers after that.
        let mut command = Command::new(std::env::current_exe().unwrap().with_file_name("with-cluster"));
        command.args([
            "--etcd",
            "/nowhere/etcd",
            "--kube-apiserver",
            "/nowhere/kube-apiserver",
            "--keep",
        ]);
        let done = command.arg(&link).output().unwrap();
        assert!(!done.status.success());
        String::from_utf8(done.stderr).unwrap()
    };
    let lock = File::create(folder.join("kept.lock")).unwrap();
    lock.lock().unwrap();
    let told = second();
    assert!(
        told.contains("another run keeps its cluster in ") && told.contains("/first"),
        "{told}"
    );
    assert_eq!(fs::read_link(&link).unwrap(), first);
    // When that one has ended, even by a crash, the place is free.
    drop(lock);
    let told = second();
    assert!(told.contains("etcd isn't there"), "{told}");
    assert!(fs::read_link(&link).is_err(), "it takes its link away");
    fs::remove_dir_all(&folder).unwrap();
}
