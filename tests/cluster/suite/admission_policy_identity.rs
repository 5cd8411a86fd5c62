//! Whose sandbox a pod is, where it is, and who gets its gate's token: judged by the API server alone.

use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::{Answer, Cluster, Namespace, runner::Test, tests, until};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    nobody_but_a_kubelet_gets_a_gates_token,
    nobody_but_a_kubelet_says_where_a_sandbox_is,
    a_pod_with_a_gate_becomes_nobody_elses,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
const NO_TOKEN: &str = "spec.audiences: a token for sandgate makes its holder the gate of a pod";
const NO_MOVE: &str = "status.podIP, status.podIPs: requests for the sandbox are sent there";

/// Lets a user or a ServiceAccount do here what of the role `edit` counts, which only a controller would fill, and write pods'
/// status.
async fn edits(namespace: &Namespace, subject: &Value, name: &str) {
    let (group, version) = ("rbac.authorization.k8s.io", "rbac.authorization.k8s.io/v1");
    let rules = json!([
        {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["get", "patch", "update"]},
    ]);
    let role = json!({"apiVersion": version, "kind": "Role", "metadata": {"name": name}, "rules": rules});
    let binding = json!({
        "apiVersion": version, "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        "subjects": [subject],
    });
    for object in [role, binding] {
        namespace.create(&object).await.unwrap();
    }
}

/// Everybody who is no kubelet, though he may look like one, with rights that a kubelet has.
async fn others(namespace: &Namespace) -> Vec<Namespace> {
    let (cluster, name) = (namespace.cluster(), namespace.name());
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "editor"}});
    namespace.create(&account).await.unwrap();
    edits(
        namespace,
        &json!({"kind": "ServiceAccount", "name": "editor", "namespace": name}),
        "editor",
    )
    .await;
    let user = |user: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user});
    edits(namespace, &user("system:node:so-called"), "so-called").await;
    edits(namespace, &user("somebody"), "somebody").await;
    let users = [
        cluster.as_service_account(name, "editor"),
        cluster.impersonating("system:node:so-called", &[]),
        cluster.impersonating("somebody", &["system:nodes"]),
    ];
    for user in &users {
        until("the role is in force", async || {
            let may =
                user.may(name, "create", "serviceaccounts/token").await && user.may(name, "patch", "pods/status").await;
            may.then_some(()).ok_or("not yet")
        })
        .await;
    }
    users.iter().map(|user| namespace.seen_by(user)).collect()
}

/// Asks for a token of the namespace's own ServiceAccount that is bound to a pod, if there is one.
async fn token(namespace: &Namespace, audiences: Value, pod: Option<&Value>) -> Answer {
    let bound = pod.map(|pod| {
        let (name, uid) = (&pod["metadata"]["name"], &pod["metadata"]["uid"]);
        json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid})
    });
    let wanted = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": audiences, "expirationSeconds": 3600, "boundObjectRef": bound},
    });
    namespace.post(&["serviceaccounts", "default", "token"], &wanted).await
}

/// A pod that runs on a node that nobody runs.
async fn on_node(namespace: &Namespace, pod: &Value, node: &str) -> Value {
    namespace.cluster().node(node).await;
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    namespace.admitted(&pod).await
}

async fn nobody_but_a_kubelet_gets_a_gates_token(cluster: Cluster) {
    // A namespace that has not opted in, or has yet to: a token may live longer than that.
    let namespace = cluster.namespace(&[]).await;
    let chart = Chart::render(&[]);
    // API servers give a kubelet tokens only for what its pods have volumes for.
    let pod = on_node(&namespace, &chart.injected(&sandbox_pod("alpha")), "node-of-tokens").await;
    namespace.configure(&chart.policies()).await;
    until("the policy is in force", async || {
        match token(&namespace, json!(["sandgate"]), None).await {
            Err(status) if status.message.contains("sandgate-token") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    for other in others(&namespace).await {
        for audiences in [
            json!(["sandgate"]),
            json!(["api", "sandgate"]),
            json!(["sandgate", "api"]),
        ] {
            for bound in [None, Some(&pod)] {
                let refusal = token(&other, audiences.clone(), bound).await.unwrap_err();
                assert!(refusal.message.contains(NO_TOKEN), "{audiences}: {refusal}");
            }
        }
        // What isn't for gates is nobody's business here.
        for audiences in [
            json!(["api"]),
            json!([]),
            Value::Null,
            json!(["sandgate.example"]),
            json!(["Sandgate"]),
        ] {
            for bound in [None, Some(&pod)] {
                let issued = token(&other, audiences.clone(), bound).await;
                let issued = issued.unwrap_or_else(|status| panic!("{audiences}: {status}"));
                assert!(issued["status"]["token"].is_string(), "{issued}");
            }
        }
    }
    let kubelet = namespace.seen_by(&cluster.as_node("node-of-tokens"));
    until("the kubelet gets its pod's token", async || {
        match token(&kubelet, json!(["sandgate"]), Some(&pod)).await {
            Ok(issued) if issued["status"]["token"].is_string() => Ok(()),
            other => Err(other),
        }
    })
    .await;

    let kubelets = format!(
        "admissionPolicy.gateTokens.allowedUsers={{system:serviceaccount:{}:editor}}",
        namespace.name()
    );
    namespace.configure(&Chart::render(&[&kubelets]).policies()).await;
    let allowed = namespace.seen_by(&cluster.as_service_account(namespace.name(), "editor"));
    until("the named user gets it, too", async || {
        token(&allowed, json!(["sandgate"]), None).await
    })
    .await;
}

async fn nobody_but_a_kubelet_says_where_a_sandbox_is(cluster: Cluster) {
    let namespace = cluster.namespace(&[]).await;
    let mut sandbox = sandbox_pod("alpha");
    sandbox["metadata"]["labels"] = json!({"agents.x-k8s.io/sandbox-name-hash": "b8bb3a8e"});
    let pod = on_node(&namespace, &sandbox, "node-of-addresses").await;
    let ordinary = namespace.admitted(&sandbox_pod("ordinary")).await;
    namespace.configure(&Chart::render(&[]).policies()).await;
    let at = |ip: &str| json!({"status": {"podIP": ip, "podIPs": [{"$patch": "replace"}, {"ip": ip}]}});
    let mut last = 0;
    until("the policy is in force", async || {
        // Each time another one: what is there already is no change.
        last += 1;
        match namespace
            .change_part(&pod, "status", &at(&format!("10.1.0.{last}")))
            .await
        {
            Err(status) if status.message.contains("sandgate-pod-address") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let kubelet = namespace.seen_by(&cluster.as_node("node-of-addresses"));
    until("the kubelet says it", async || {
        kubelet.change_part(&pod, "status", &at("10.2.0.1")).await
    })
    .await;
    for other in others(&namespace).await {
        for change in [
            at("10.9.9.9"),
            json!({"status": {"podIPs": [{"$patch": "replace"}, {"ip": "10.2.0.1"}, {"ip": "fd00::9"}]}}),
            json!({"status": {"podIP": null, "podIPs": [{"$patch": "replace"}]}}),
            json!({"metadata": {"labels": null}, "status": {"podIP": "10.9.9.9", "podIPs": [{"$patch": "replace"}, {"ip": "10.9.9.9"}]}}),
        ] {
            let refusal = other.change_part(&pod, "status", &change).await.unwrap_err();
            assert!(refusal.message.contains(NO_MOVE), "{change}: {refusal}");
        }
        let ready =
            json!({"status": {"phase": "Running", "conditions": [{"type": "example.dev/Checked", "status": "True"}]}});
        other.change_part(&pod, "status", &ready).await.unwrap();
        other.change_part(&ordinary, "status", &at("10.3.0.1")).await.unwrap();
    }
    let stored = cluster.get(&pod).await.unwrap();
    assert_eq!(stored["status"]["podIPs"], json!([{"ip": "10.2.0.1"}]));

    let kubelets = format!(
        "admissionPolicy.podAddresses.allowedUsers={{system:serviceaccount:{}:editor}}",
        namespace.name()
    );
    namespace.configure(&Chart::render(&[&kubelets]).policies()).await;
    let allowed = namespace.seen_by(&cluster.as_service_account(namespace.name(), "editor"));
    until("the named user says it, too", async || {
        allowed.change_part(&pod, "status", &at("10.4.0.1")).await
    })
    .await;
}

fn controller(uid: &str) -> Value {
    json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "alpha", "uid": uid, "controller": true,
        "blockOwnerDeletion": true,
    })
}

async fn a_pod_with_a_gate_becomes_nobody_elses(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    // Of another system, under the name of a Sandbox that has no pod just now; and a Sandbox's own.
    let other = namespace.admitted(&chart.injected(&sandbox_pod("alpha"))).await;
    let mut own = sandbox_pod("beta");
    own["metadata"]["labels"] = json!({"agents.x-k8s.io/sandbox-name-hash": "1"});
    own["metadata"]["ownerReferences"] = json!([controller("1")]);
    let own = namespace.admitted(&chart.injected(&own)).await;
    let hash = |value: Value| json!({"metadata": {"labels": {"agents.x-k8s.io/sandbox-name-hash": value}}});
    let controlled_by = |controller: Value| json!({"metadata": {"ownerReferences": [controller]}});
    let changed = |change: Value| {
        let mut other = controller("1");
        json_patch::merge(&mut other, &change);
        controlled_by(other)
    };
    let label = "metadata.labels[agents.x-k8s.io/sandbox-name-hash]: ";
    let owner = "metadata.ownerReferences: ";
    for (pod, change, sentence) in [
        (&other, hash(json!("1")), label),
        (&own, hash(json!("2")), label),
        (&own, hash(Value::Null), label),
        (&other, controlled_by(controller("1")), owner),
        (&own, changed(json!({"uid": "2"})), owner),
        (&own, changed(json!({"name": "gamma"})), owner),
        (&own, changed(json!({"kind": "SandboxClaim"})), owner),
        (&own, changed(json!({"apiVersion": "apps/v1"})), owner),
    ] {
        let refusal = cluster.merge(pod, &change).await.unwrap_err();
        assert!(refusal.message.contains("sandgate-pod-update"), "{change}: {refusal}");
        assert!(refusal.message.contains(sentence), "{change}: {refusal}");
    }
    for pod in [&other, &own] {
        let refusal = namespace
            .change_part(pod, "status", &hash(json!("3")))
            .await
            .unwrap_err();
        assert!(refusal.message.contains(label), "{refusal}");
    }
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": "n"},
        "metadata": {"name": "alpha", "labels": {"agents.x-k8s.io/sandbox-name-hash": "1"}},
    });
    let refusal = namespace
        .post(&["pods", "alpha", "binding"], &binding)
        .await
        .unwrap_err();
    assert!(refusal.message.contains(label), "{refusal}");
    // The garbage collector may part the two, and then nobody joins them again.
    cluster
        .merge(&own, &json!({"metadata": {"ownerReferences": null}}))
        .await
        .unwrap();
    let refusal = cluster.merge(&own, &controlled_by(controller("1"))).await.unwrap_err();
    assert!(refusal.message.contains(owner), "{refusal}");
}
