//! Whose sandbox a pod is, where it is, and who gets its gate's token.

use super::*;

/// A pod of agent-sandbox with its gate: of a warm pool, until a claim adopts it.
fn pooled() -> Value {
    injected(
        &settings(),
        &sandbox_with(&json!({"metadata": {
            "labels": {"agents.x-k8s.io/warm-pool-sandbox": "pool"},
            "ownerReferences": [controller("sandbox-1", "agents.x-k8s.io/v1beta1")],
        }})),
    )
}

fn controller(uid: &str, version: &str) -> Value {
    json!({"apiVersion": version, "kind": "Sandbox", "name": "box", "uid": uid, "controller": true, "blockOwnerDeletion": true})
}

#[test]
fn a_pod_of_a_warm_pool_is_adopted_and_its_owner_may_go() {
    for change in [
        // What the controller changes when a claim adopts the pod's Sandbox.
        json!({"metadata": {
            "labels": {"agents.x-k8s.io/warm-pool-sandbox": null, "agents.x-k8s.io/claim-uid": "c", "mine": "x"},
            "annotations": {"agents.x-k8s.io/propagated-labels": "mine", "cluster-autoscaler.kubernetes.io/safe-to-evict": null},
        }}),
        // What the garbage collector changes when the Sandbox goes and leaves its pod behind, or waits for it.
        json!({"metadata": {"ownerReferences": null}}),
        json!({"metadata": {"ownerReferences": [{
            "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "box", "uid": "sandbox-1", "controller": true,
            "blockOwnerDeletion": false,
        }]}}),
        // Another version of the same, and others that don't control it.
        json!({"metadata": {"ownerReferences": [controller("sandbox-1", "agents.x-k8s.io/v1"), {
            "apiVersion": "v1", "kind": "ConfigMap", "name": "box", "uid": "x",
        }]}}),
    ] {
        for sub_resource in ["", "status"] {
            let verdict = updated(sub_resource, &pooled(), |pod| json_patch::merge(pod, &change));
            assert_eq!(verdict, ("gate_unchanged", None), "{change}");
        }
    }
}

#[test]
fn a_pod_with_a_gate_becomes_nobody_elses() {
    let mut of_nobody = pooled();
    of_nobody["metadata"]["ownerReferences"] = Value::Null;
    let mut of_another_system = injected(
        &settings(),
        &sandbox_with(&json!({"metadata": {"labels": {
            "agents.x-k8s.io/sandbox-name-hash": null, "sandgate.dev/inject": "enabled",
        }}})),
    );
    of_another_system["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    let label = "metadata.labels[agents.x-k8s.io/sandbox-name-hash]: ";
    for (pod, hash) in [
        (&of_another_system, json!("1f2e3d4c")),
        (&pooled(), json!("00000000")),
        (&pooled(), Value::Null),
    ] {
        for sub_resource in ["", "status", "resize", "ephemeralcontainers"] {
            let change = json!({"metadata": {"labels": {"agents.x-k8s.io/sandbox-name-hash": hash}}});
            let verdict = updated(sub_resource, pod, |pod| json_patch::merge(pod, &change));
            refused("owner_changed", label, verdict);
        }
    }
    let other = |change: Value| {
        let mut owner = controller("sandbox-1", "agents.x-k8s.io/v1beta1");
        json_patch::merge(&mut owner, &change);
        owner
    };
    for (pod, owner) in [
        (&of_another_system, other(json!({}))),
        (&of_nobody, other(json!({}))),
        (&pooled(), other(json!({"uid": "sandbox-2"}))),
        (&pooled(), other(json!({"name": "other"}))),
        (&pooled(), other(json!({"kind": "SandboxClaim"}))),
        (&pooled(), other(json!({"apiVersion": "evil.example/v1beta1"}))),
        (&pooled(), other(json!({"apiVersion": "v1"}))),
    ] {
        let verdict = updated("", pod, |pod| pod["metadata"]["ownerReferences"] = json!([owner]));
        refused("owner_changed", "metadata.ownerReferences: ", verdict);
    }
    // Whatever it is, a pod without a gate isn't ours to judge.
    let change = json!({"metadata": {"labels": {"agents.x-k8s.io/sandbox-name-hash": "0"}}});
    let verdict = updated("", &sandbox(), |pod| json_patch::merge(pod, &change));
    assert_eq!(verdict, ("gate_unchanged", None));
    let binding = json!({"metadata": {"labels": {"agents.x-k8s.io/sandbox-name-hash": "0"}}});
    let verdict = judged_with(&settings(), false, &review("CREATE", "binding", None, &binding));
    refused("gate_changed", label, verdict);
}

fn by(user: &str, groups: &[&str], mut review: Review) -> (&'static str, Option<String>) {
    review.user_info.username = user.into();
    review.user_info.groups = groups.iter().map(ToString::to_string).collect();
    judged_with(&settings(), false, &review)
}

/// Everybody who is no kubelet, though some of it may look like one.
const OTHERS: [(&str, &[&str]); 4] = [
    ("system:serviceaccount:team-a:edit", &["system:serviceaccounts"]),
    ("system:admin", &["system:masters"]),
    ("system:node:n", &[]),
    ("somebody", &["system:nodes"]),
];

#[test]
fn nobody_but_a_kubelet_says_where_a_sandbox_is() {
    let mut gone = sandbox();
    gone["status"] = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    for status in [
        json!({"podIP": "10.0.0.9"}),
        json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.9"}]}),
        json!({"podIP": null, "podIPs": null}),
    ] {
        let mut new = gone.clone();
        json_patch::merge(&mut new["status"], &status);
        for (user, groups) in OTHERS {
            let verdict = by(user, groups, review("UPDATE", "status", Some(&gone), &new));
            refused("address_changed", "status.podIP, status.podIPs: ", verdict);
        }
        let verdict = by(
            "system:node:n",
            &["system:nodes"],
            review("UPDATE", "status", Some(&gone), &new),
        );
        assert_eq!(verdict, ("gate_unchanged", None));
        // Not by losing the label with it, nor where it is nobody's sandbox.
        new["metadata"]["labels"] = json!({});
        let verdict = by("a", &[], review("UPDATE", "status", Some(&gone), &new));
        refused("address_changed", "status.podIP", verdict);
        let mut ordinary = gone.clone();
        ordinary["metadata"]["labels"] = json!({});
        let verdict = by("a", &[], review("UPDATE", "status", Some(&ordinary), &new));
        assert_eq!(verdict, ("gate_unchanged", None));
    }
    let ready = |pod: &mut Value| pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    assert_eq!(updated("status", &gone, ready), ("gate_unchanged", None));
}

#[test]
fn nobody_but_a_kubelet_gets_a_gates_token() {
    let request = |audiences: Value| {
        let object = json!({"kind": "TokenRequest", "spec": {"audiences": audiences}});
        let mut review = review("CREATE", "token", None, &object);
        review.resource.resource = "serviceaccounts".into();
        review
    };
    for audiences in [json!(["sandgate"]), json!(["api", "sandgate"])] {
        for (user, groups) in OTHERS {
            refused(
                "gate_token",
                "spec.audiences: ",
                by(user, groups, request(audiences.clone())),
            );
        }
        let verdict = by("system:node:n", &["system:nodes"], request(audiences));
        assert_eq!(verdict, ("token", None));
    }
    for audiences in [
        json!(["api"]),
        json!([]),
        Value::Null,
        json!(["sandgate.example", "Sandgate"]),
    ] {
        assert_eq!(by("a", &[], request(audiences)), ("token", None));
    }
}
