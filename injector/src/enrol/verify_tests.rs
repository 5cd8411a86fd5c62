use super::*;
use crate::born::tests::{TO_COME, of_shape_2};
use crate::enrol::namespaces::Change;
use crate::settings::LogLevel;
use crate::shape::SHAPES;
use crate::testing::{anchors, injected, sandbox_with, settings};
use k8s_openapi::api::authentication::v1::UserInfo;
use serde_json::json;
use std::collections::BTreeMap;

fn target() -> Target {
    Target {
        namespace: "team-a".parse().unwrap(),
        name: "box".parse().unwrap(),
        uid: "pod-1".parse().unwrap(),
        ip: [10, 0, 0, 7].into(),
    }
}

/// The Sandbox's pod as it is stored while it runs.
fn pod() -> Value {
    let mut pod = injected(
        &settings(),
        &sandbox_with(&json!({
            "metadata": {"ownerReferences": [
                {"apiVersion": "v1", "kind": "ConfigMap", "name": "box", "uid": "other"},
                {
                    "apiVersion": "agents.x-k8s.io/v1beta1",
                    "kind": "Sandbox",
                    "name": "box",
                    "uid": "sandbox-1",
                    "controller": true,
                },
            ]},
        })),
    );
    let stored = json!({
        "metadata": {"namespace": "team-a", "uid": "pod-1"},
        "spec": {"serviceAccountName": "runner", "nodeName": "node-1"},
        "status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]},
    });
    json_patch::merge(&mut pod, &stored);
    pod
}

fn pod_with(change: &Value) -> Value {
    let mut pod = pod();
    json_patch::merge(&mut pod, change);
    pod
}

/// What the API server says about the pod's own token.
fn token() -> TokenReviewStatus {
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec!["sandgate".into()]),
        error: None,
        user: Some(UserInfo {
            username: Some("system:serviceaccount:team-a:runner".into()),
            extra: Some(BTreeMap::from([
                ("authentication.kubernetes.io/pod-name".into(), vec!["box".into()]),
                ("authentication.kubernetes.io/pod-uid".into(), vec!["pod-1".into()]),
                ("authentication.kubernetes.io/node-name".into(), vec!["node-1".into()]),
            ])),
            ..UserInfo::default()
        }),
    }
}

fn opted_in() -> OptedIn {
    let opted_in = OptedIn::default();
    opted_in.note(Change::In(target().namespace)).unwrap();
    opted_in
}

fn sandbox() -> Sandbox {
    Sandbox {
        uid: "sandbox-1".into(),
        is_being_deleted: false,
    }
}

fn leaving() -> Sandbox {
    Sandbox {
        is_being_deleted: true,
        ..sandbox()
    }
}

fn terms<'a>(settings: &'a Settings, anchors: &'a Anchors) -> Terms<'a> {
    Terms {
        shapes: SHAPES,
        settings,
        anchors,
        proven: false,
    }
}

fn looked_at(pod: &Value) -> Result<Candidate, Refusal> {
    candidate(terms(&settings(), &anchors()), &target(), &target().uid, pod)
}

/// The refusal of a pod that a merge patch made different.
fn refused(change: &Value) -> Refusal {
    looked_at(&pod_with(change)).expect_err("refused")
}

/// The refusal of a token that was made different.
fn refused_token(change: impl FnOnce(&mut TokenReviewStatus)) -> Refusal {
    let mut token = token();
    change(&mut token);
    let verified = looked_at(&pod()).unwrap().verify(&token, Some(&sandbox()), &opted_in());
    verified.expect_err("refused")
}

#[test]
fn the_gate_of_a_running_pod_gets_its_identity() {
    let verified = looked_at(&pod())
        .unwrap()
        .verify(&token(), Some(&sandbox()), &opted_in())
        .unwrap();
    assert_eq!(
        verified.identity().to_string(),
        "spiffe://cluster.local/ns/team-a/sandbox/box/pod/pod-1"
    );
    let second = Target {
        ip: "fd00::7".parse().unwrap(),
        ..target()
    };
    assert!(
        candidate(terms(&settings(), &anchors()), &second, &second.uid, &pod()).is_ok(),
        "by any of its addresses"
    );
}

#[test]
fn a_pod_that_is_not_there_any_more_gets_nothing() {
    assert_eq!(dialed(&target(), None), Err(Refusal::PodGone));
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    assert_eq!(refused(&deleted), Refusal::PodGone);
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(refused(&json!({"status": {"phase": phase}})), Refusal::PodEnded);
    }
}

#[test]
fn a_pod_that_has_the_name_of_one_that_was_dialed_gets_nothing() {
    assert_eq!(refused(&json!({"metadata": {"uid": "pod-2"}})), Refusal::PodReplaced);
    assert_eq!(refused(&json!({"metadata": {"uid": null}})), Refusal::PodReplaced);
}

#[test]
fn a_pod_without_the_label_gets_nothing() {
    for value in [Value::Null, json!("false"), json!("")] {
        let change = json!({"metadata": {"labels": {"sandgate.dev/injected": value}}});
        assert_eq!(refused(&change), Refusal::NotInjected);
    }
}

#[test]
fn a_pod_gets_nothing_at_an_address_that_is_not_its_own() {
    for status in [
        json!({"podIP": "10.0.0.8", "podIPs": [{"ip": "10.0.0.8"}]}),
        json!({"podIP": null, "podIPs": null}),
    ] {
        assert_eq!(refused(&json!({"status": status})), Refusal::OtherAddress);
    }
}

#[test]
fn what_says_that_it_is_in_another_pod_gets_nothing() {
    let claimed = "pod-2".parse().unwrap();
    assert_eq!(
        candidate(terms(&settings(), &anchors()), &target(), &claimed, &pod()),
        Err(Refusal::OtherPod)
    );
}

/// Every field of the gate that makes it one, and what makes a pod's other containers no danger to it.
#[test]
fn a_pod_that_is_not_as_it_would_be_injected_gets_nothing() {
    let changed = |pointer: &str, value: Value| {
        let mut pod = pod();
        *pod.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
        looked_at(&pod)
    };
    for (pointer, value) in [
        ("/spec/initContainers/0/image", json!("evil/gate:1")),
        ("/spec/initContainers/0/command", json!(["/bin/sh"])),
        (
            "/spec/initContainers/0/args/0",
            json!("--router-identity=spiffe://cluster.local/ns/a/sa/b"),
        ),
        (
            "/spec/initContainers/0/env/1",
            json!({"name": "SANDGATE_SANDBOX", "value": "other"}),
        ),
        ("/spec/initContainers/0/securityContext/runAsUser", json!(0)),
        ("/spec/initContainers/0/volumeMounts", json!([])),
        ("/spec/initContainers/0/restartPolicy", Value::Null),
        ("/metadata/annotations/sandgate.dev~1shape", json!("0")),
        (
            "/spec/containers/0",
            json!({"name": "app", "image": "a", "volumeMounts": [{"name": "sandgate-token", "mountPath": "/t"}]}),
        ),
        (
            "/spec/containers/0",
            json!({"name": "app", "image": "a", "securityContext": {"runAsUser": 2102}}),
        ),
        ("/spec/initContainers", json!([])),
        ("/spec/containers", json!("none")),
    ] {
        let answer = changed(pointer, value);
        assert!(matches!(answer, Err(Refusal::Misfit(_))), "{pointer}: {answer:?}");
    }
    let mut behind = pod();
    let others = behind["spec"]["initContainers"].as_array_mut().unwrap();
    others.insert(0, json!({"name": "first", "image": "a"}));
    assert!(
        matches!(looked_at(&behind), Err(Refusal::Misfit(_))),
        "another container comes first"
    );
}

#[test]
fn a_gate_that_logs_otherwise_or_has_an_accepted_image_is_as_it_was_injected() {
    let mut before = settings();
    before.log_level = LogLevel::Debug;
    let mut after = settings();
    after.image = "sandgate/sidecar:2".parse().unwrap();
    let look = |settings: &Settings, pod: &Value| candidate(terms(settings, &anchors()), &target(), &target().uid, pod);
    assert!(look(&before, &pod()).is_ok());
    assert!(matches!(look(&after, &pod()), Err(Refusal::Misfit(_))));
    after.accepted_images = vec![settings().image];
    assert!(look(&after, &pod()).is_ok());
    let mut odd = pod();
    let arguments = odd["spec"]["initContainers"][0]["args"].as_array_mut().unwrap();
    *arguments.last_mut().unwrap() = json!("--log-level=info,all");
    assert!(matches!(looked_at(&odd), Err(Refusal::Misfit(_))));
}

/// Whether it has an identity that ends, or lost it with the memory of its node.
#[test]
fn a_pod_of_a_shape_before_keeps_its_identity_after_an_upgrade() {
    let (pod, target) = (of_shape_2(), target());
    for (anchors, proven) in [(anchors(), false), (born_with(&pod).unwrap(), true)] {
        let settings = settings();
        let terms = Terms {
            shapes: TO_COME,
            proven,
            ..terms(&settings, &anchors)
        };
        let candidate = candidate(terms, &target, &target.uid, &pod).unwrap();
        let verified = candidate.verify(&token(), Some(&sandbox()), &opted_in()).unwrap();
        assert_eq!(
            verified.identity().to_string(),
            "spiffe://cluster.local/ns/team-a/sandbox/box/pod/pod-1"
        );
    }
}

#[test]
fn a_gate_that_was_given_other_settings_is_refused_by_that_name() {
    let mut other = settings();
    other.control_identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let refusal = settings_hold(&other, &pod()).unwrap_err();
    assert_eq!(refusal.as_str(), "settings");
    assert!(settings_hold(&settings(), &pod()).is_ok());
    let found = candidate(terms(&other, &anchors()), &target(), &target().uid, &pod());
    assert_eq!(found, Err(refusal));
}

#[test]
fn roots_that_nobody_knows_any_more_count_for_a_gate_that_has_an_identity_and_for_no_other() {
    let stored = crate::authority_stored::Stored::new();
    let now = Anchors::of(&stored.roots).unwrap();
    let look = |anchors: &Anchors| candidate(terms(&settings(), anchors), &target(), &target().uid, &pod());
    assert!(matches!(look(&now), Err(Refusal::Misfit(_))));
    assert!(look(&born_with(&pod()).unwrap()).is_ok());
    let mut without = pod();
    without["spec"]["initContainers"][0]["env"] = json!([]);
    assert_eq!(born_with(&without), None);
}

#[test]
fn a_token_that_the_api_server_does_not_take_proves_nothing() {
    let said = "token has been invalidated";
    let unauthenticated = |token: &mut TokenReviewStatus| {
        token.authenticated = Some(false);
        token.error = Some(said.into());
    };
    assert_eq!(refused_token(unauthenticated), Refusal::Token(said.into()));
    assert_eq!(
        refused_token(|token| token.authenticated = None),
        Refusal::Token(String::new())
    );
}

#[test]
fn a_token_for_another_audience_proves_nothing() {
    for audiences in [
        None,
        Some(vec![]),
        Some(vec!["https://kubernetes.default.svc".to_owned()]),
    ] {
        let refusal = refused_token(|token| token.audiences = audiences);
        assert_eq!(refusal, Refusal::TokenAudience);
    }
}

#[test]
fn a_token_of_another_account_proves_nothing() {
    for username in [
        "system:serviceaccount:team-b:runner",
        "system:serviceaccount:team-a:default",
        "system:admin",
        "",
    ] {
        let refusal = refused_token(|token| token.user.as_mut().unwrap().username = Some(username.into()));
        assert_eq!(refusal, Refusal::TokenAccount, "{username}");
    }
    assert_eq!(refused_token(|token| token.user = None), Refusal::TokenAccount);
}

#[test]
fn a_token_of_another_pod_or_of_none_proves_nothing() {
    for key in [
        "authentication.kubernetes.io/pod-name",
        "authentication.kubernetes.io/pod-uid",
    ] {
        for values in [
            vec![],
            vec!["other"],
            vec!["box", "pod-1"],
            vec!["pod-1", "other"],
            vec!["box", "other"],
        ] {
            let values: Vec<String> = values.into_iter().map(Into::into).collect();
            let refusal = refused_token(|token| {
                let extra = token.user.as_mut().unwrap().extra.as_mut().unwrap();
                extra.insert(key.into(), values);
            });
            assert_eq!(refusal, Refusal::TokenPod, "{key}");
        }
    }
    assert_eq!(
        refused_token(|token| token.user.as_mut().unwrap().extra = None),
        Refusal::TokenPod,
        "not bound"
    );
}

#[test]
fn who_forges_the_label_of_a_sandbox_gets_nobodys_name() {
    let owner = |change: &Value| {
        let mut pod = pod();
        json_patch::merge(&mut pod["metadata"]["ownerReferences"][1], change);
        looked_at(&pod)
    };
    for change in [
        json!({"controller": null}),
        json!({"controller": false}),
        json!({"name": "other"}),
        json!({"kind": "SandboxClaim"}),
        json!({"apiVersion": "v1"}),
        json!({"apiVersion": "agents.x-k8s.io"}),
        json!({"apiVersion": "agents.x-k8s.io/"}),
        json!({"apiVersion": "agents.x-k8s.io.evil/v1"}),
        json!({"apiVersion": "agents.x-k8s.io/v1/../../core/v1"}),
        json!({"apiVersion": "agents.x-k8s.io/v1?x"}),
    ] {
        assert_eq!(owner(&change), Err(Refusal::NoOwner), "{change}");
    }
    assert_eq!(
        refused(&json!({"metadata": {"ownerReferences": null}})),
        Refusal::NoOwner
    );
}

#[test]
fn a_sandbox_that_is_not_there_or_is_another_proves_nothing() {
    let verify = |sandbox: Option<&Sandbox>| looked_at(&pod()).unwrap().verify(&token(), sandbox, &opted_in());
    assert_eq!(verify(None), Err(Refusal::OwnerGone));
    let another = |uid: &str| Sandbox {
        uid: uid.into(),
        ..sandbox()
    };
    for other in [another("sandbox-2"), another(""), leaving()] {
        assert_eq!(verify(Some(&other)), Err(Refusal::OwnerGone), "{other:?}");
    }
}

/// A pod that agent-sandbox didn't make.
fn of_another_system() -> Value {
    let labels = json!({"agents.x-k8s.io/sandbox-name-hash": null, "sandgate.dev/inject": "enabled"});
    pod_with(&json!({"metadata": {"labels": labels, "ownerReferences": null}}))
}

#[test]
fn a_pod_of_another_sandbox_system_needs_no_owner() {
    let candidate = looked_at(&of_another_system()).unwrap();
    assert_eq!(candidate.owner(), None);
    assert!(candidate.verify(&token(), None, &opted_in()).is_ok());
}

/// Also if the Sandbox is going away, and if the pod says that it is its owner: the router would look for it there.
#[test]
fn a_pod_of_another_sandbox_system_gets_no_sandboxs_name() {
    let mut owned = of_another_system();
    owned["metadata"]["ownerReferences"] = pod()["metadata"]["ownerReferences"].clone();
    for (pod, sandbox) in [
        (of_another_system(), sandbox()),
        (of_another_system(), leaving()),
        (owned, sandbox()),
    ] {
        let verified = looked_at(&pod).unwrap().verify(&token(), Some(&sandbox), &opted_in());
        assert_eq!(verified, Err(Refusal::NameTaken));
    }
}

#[test]
fn nothing_is_signed_in_a_namespace_that_has_not_opted_in_or_has_opted_out_meanwhile() {
    let verified = |opted_in: &OptedIn| looked_at(&pod()).unwrap().verify(&token(), Some(&sandbox()), opted_in);
    assert_eq!(verified(&OptedIn::default()), Err(Refusal::NotOptedIn));
    let opted_in = opted_in();
    assert!(verified(&opted_in).is_ok());
    opted_in.note(Change::Out(target().namespace)).unwrap();
    assert_eq!(verified(&opted_in), Err(Refusal::NotOptedIn));
}
