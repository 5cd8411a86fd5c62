use super::*;
use crate::deny::DenyReason;
use crate::testing::{anchors, decided, injected, lockdown, sandbox, sandbox_with, settings};
use serde_json::json;

fn labelled(labels: &Value) -> Value {
    sandbox_with(&json!({"metadata": {"labels": labels}}))
}

fn kubelet() -> User {
    User {
        username: "system:node:n1".to_owned(),
        groups: vec![NODES_GROUP.to_owned()],
    }
}

#[test]
fn a_pod_is_a_sandbox_by_the_label_of_agent_sandbox_or_by_its_own() {
    let reason = |labels| decided(&settings(), &labelled(&labels)).reason();
    assert_eq!(reason(json!({})), "sandbox_label");
    assert_eq!(reason(json!({"sandgate.dev/inject": "enabled"})), "sandbox_label");
    let without = json!({"agents.x-k8s.io/sandbox-name-hash": null, "sandgate.dev/inject": "enabled"});
    assert_eq!(reason(without), "inject_label");
    assert_eq!(
        reason(json!({"agents.x-k8s.io/sandbox-name-hash": ""})),
        "sandbox_label"
    );
    assert_eq!(
        reason(json!({"agents.x-k8s.io/sandbox-name-hash": null})),
        "not_selected"
    );
    let out = json!({"agents.x-k8s.io/sandbox-name-hash": null, "sandgate.dev/inject": "disabled"});
    assert_eq!(reason(out), "not_selected");
}

#[test]
fn a_pod_that_is_no_sandbox_is_let_through_whatever_it_holds() {
    let pod = sandbox_with(&json!({"metadata": {"labels": null}, "spec": {"hostNetwork": true}}));
    assert_eq!(decided(&settings(), &pod), Decision::Skip(SkipReason::NotSelected));
    let pod = json!({"spec": {}});
    assert_eq!(decided(&settings(), &pod), Decision::Skip(SkipReason::NotSelected));
}

#[test]
fn a_pod_that_is_no_sandbox_cannot_pass_for_gated() {
    for claim in [
        json!({"labels": {"sandgate.dev/injected": "true"}}),
        json!({"annotations": {"sandgate.dev/shape": ""}}),
        json!({"labels": {"sandgate.dev/inject": "disabled", "sandgate.dev/injected": "x"}}),
    ] {
        let Decision::Deny(denials) = decided(&settings(), &json!({"metadata": claim, "spec": {}})) else {
            panic!("let through: {claim}");
        };
        assert_eq!(denials.len(), 1, "{denials:?}");
        assert_eq!(denials[0].reason, DenyReason::ReservedName, "{denials:?}");
    }
}

#[test]
fn a_pod_that_opts_out_cannot_pass_for_gated() {
    let allowed = Settings {
        allow_opt_out: true,
        ..settings()
    };
    let out = json!({
        "metadata": {"labels": {"sandgate.dev/inject": "disabled"}},
        "spec": {
            "containers": [{"name": "app", "image": "a", "ports": [{"containerPort": 14443}]}],
            "volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"audience": "sandgate", "path": "t"}}]}}],
        },
    });
    let both = json!({"labels": {"sandgate.dev/injected": "true"}, "annotations": {"sandgate.dev/shape": "1"}});
    for (claim, found) in [
        (json!({"labels": both["labels"]}), 1),
        (json!({"annotations": both["annotations"]}), 1),
        (both, 2),
    ] {
        let mut pod = sandbox_with(&out);
        json_patch::merge(&mut pod["metadata"], &claim);
        let Decision::Deny(denials) = decided(&allowed, &pod) else {
            panic!("let through: {claim}");
        };
        assert_eq!(denials.len(), found, "{denials:?}");
        assert_eq!(denials.reason(), DenyReason::ReservedName, "{denials:?}");
    }
    // Nor with a whole gate: it opts out of having one.
    let mut whole = injected(&settings(), &sandbox());
    whole["metadata"]["labels"]["sandgate.dev/inject"] = "disabled".into();
    assert!(matches!(decided(&allowed, &whole), Decision::Deny(_)));
    let quiet = sandbox_with(&out);
    assert_eq!(decided(&allowed, &quiet), Decision::Skip(SkipReason::OptedOut));
}

#[test]
fn opting_out_counts_only_where_the_operator_allows_it() {
    let pod = labelled(&json!({"sandgate.dev/inject": "disabled"}));
    let Decision::Inject(plan) = decided(&settings(), &pod) else {
        panic!("not injected");
    };
    assert!(plan.warnings[0].contains("has no effect"), "{:?}", plan.warnings);
    let allowed = Settings {
        allow_opt_out: true,
        ..settings()
    };
    assert_eq!(decided(&allowed, &pod), Decision::Skip(SkipReason::OptedOut));
}

#[test]
fn only_creation_injects() {
    for operation in [Operation::Update, Operation::Delete, Operation::Connect] {
        let request = Request {
            pod: &sandbox(),
            operation,
            namespace: "team-a",
            user: &User::default(),
        };
        let decision = decide(&settings(), &anchors(), &request);
        assert_eq!(decision, Decision::Skip(SkipReason::NotCreated), "{operation:?}");
    }
}

#[test]
fn system_namespaces_and_our_own_are_never_touched() {
    // The pod names another namespace, or none: the request's counts.
    for namespace in ["kube-system", "kube-node-lease", "agent-sandbox-system"] {
        let request = Request {
            pod: &sandbox_with(&json!({"metadata": {"namespace": "team-a"}, "spec": {"hostNetwork": true}})),
            operation: Operation::Create,
            namespace,
            user: &User::default(),
        };
        let decision = decide(&settings(), &anchors(), &request);
        assert_eq!(decision, Decision::Skip(SkipReason::ExcludedNamespace), "{namespace}");
    }
}

#[test]
fn the_mirror_annotation_is_a_way_out_for_kubelets_only() {
    let pod = sandbox_with(&json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}));
    let with = |user: &User| {
        let request = Request {
            pod: &pod,
            operation: Operation::Create,
            namespace: "team-a",
            user,
        };
        decide(&settings(), &anchors(), &request)
    };
    assert_eq!(with(&kubelet()), Decision::Skip(SkipReason::MirrorPod));
    let imitator = User {
        username: "system:node:n1".to_owned(),
        groups: vec!["system:masters".to_owned(), "system:nodes-of-mine".to_owned()],
    };
    for user in [imitator, User::default()] {
        assert!(matches!(with(&user), Decision::Deny(denials) if denials[0].reason == DenyReason::MirrorPod));
    }
}

#[test]
fn a_kubelet_gets_no_pod_through_without_the_annotation() {
    let request = Request {
        pod: &sandbox(),
        operation: Operation::Create,
        namespace: "team-a",
        user: &kubelet(),
    };
    assert!(matches!(decide(&settings(), &anchors(), &request), Decision::Inject(_)));
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let pod = sandbox_with(&json!({
        "metadata": {"annotations": {"sandgate.dev/log-level": "loud"}},
        "spec": {"hostNetwork": true, "shareProcessNamespace": true, "volumes": [{"name": "sandgate-state"}]},
    }));
    let Decision::Deny(denials) = decided(&settings(), &pod) else {
        panic!("let through");
    };
    let mut reasons: Vec<_> = denials.iter().map(|denial| denial.reason.as_str()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["annotation", "host_namespace", "shared_processes"]);
    // With what the gate would be made from, too.
    let pod = sandbox_with(&json!({
        "metadata": {"annotations": {"sandgate.dev/log-level": "loud"}},
        "spec": {
            "hostNetwork": true,
            "containers": [{"name": "app", "livenessProbe": {"httpGet": {"port": "nowhere"}}}],
        },
    }));
    let decision = decided(&lockdown(), &pod);
    let Decision::Deny(denials) = &decision else {
        panic!("let through");
    };
    let reasons: Vec<_> = denials.iter().map(|denial| denial.reason.as_str()).collect();
    assert_eq!(reasons, ["host_namespace", "annotation", "probe"]);
    assert_eq!(decision.reason(), "host_namespace");
    // Parts of a gate are looked at once the rest of the pod can be judged.
    let pod = sandbox_with(&json!({"spec": {"hostNetwork": true, "volumes": [{"name": "sandgate-state"}]}}));
    let Decision::Deny(denials) = decided(&settings(), &pod) else {
        panic!("let through");
    };
    assert_eq!(denials.len(), 2, "{denials:?}");
}

#[test]
fn annotations_change_resources_and_log_level_and_nothing_else() {
    let annotations = json!({
        "sandgate.dev/cpu-request": "20m",
        "sandgate.dev/cpu-limit": "0.5",
        "sandgate.dev/memory-request": "32Mi",
        "sandgate.dev/memory-limit": "1Gi",
        "sandgate.dev/log-level": "debug",
    });
    let plain = injected(&settings(), &sandbox());
    let pod = injected(
        &settings(),
        &sandbox_with(&json!({"metadata": {"annotations": annotations}})),
    );
    let (mut plain, mut gate) = (
        plain["spec"]["initContainers"][0].clone(),
        pod["spec"]["initContainers"][0].clone(),
    );
    assert_eq!(
        gate["resources"],
        json!({"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "1Gi"}})
    );
    let last = |gate: &Value| gate["args"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (last(&plain), last(&gate)),
        (json!("--log-level=info"), json!("--log-level=debug"))
    );
    for gate in [&mut plain, &mut gate] {
        gate["resources"].take();
        gate["args"].as_array_mut().unwrap().pop();
    }
    assert_eq!(plain, gate);
}
