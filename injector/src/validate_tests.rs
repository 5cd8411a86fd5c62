use super::*;
use crate::names::TENANT_ANNOTATIONS;
use crate::testing::{anchors, injected, lockdown, sandbox, sandbox_with, settings};

/// A request in an ordinary namespace; `sub_resource` may be empty.
fn review(operation: &str, sub_resource: &str, old: Option<&Value>, new: &Value) -> Review {
    let kind = match sub_resource {
        "exec" => "PodExecOptions",
        "attach" => "PodAttachOptions",
        "portforward" => "PodPortForwardOptions",
        "proxy" => "PodProxyOptions",
        _ => "Pod",
    };
    let review = json!({
        "uid": "u",
        "kind": {"group": "", "version": "v1", "kind": kind},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "subResource": sub_resource,
        "name": "box",
        "namespace": "team-a",
        "operation": operation,
        "object": new,
        "oldObject": old,
    });
    serde_json::from_value(review).unwrap()
}

/// The reason, and the message if it is refused.
fn judged_with(settings: &Settings, restrict_connect: bool, review: &Review) -> (&'static str, Option<String>) {
    match validate(settings, Some(&anchors()), restrict_connect, review).unwrap() {
        Verdict::Allow(reason) => (reason, None),
        Verdict::Deny { reason, message } => (reason, Some(message)),
    }
}

fn created(settings: &Settings, pod: &Value) -> (&'static str, Option<String>) {
    judged_with(settings, false, &review("CREATE", "", None, pod))
}

fn updated(sub_resource: &str, old: &Value, change: impl FnOnce(&mut Value)) -> (&'static str, Option<String>) {
    let mut new = old.clone();
    change(&mut new);
    judged_with(&settings(), false, &review("UPDATE", sub_resource, Some(old), &new))
}

fn refused(reason: &str, message: &str, (found, told): (&'static str, Option<String>)) {
    let told = told.unwrap_or_else(|| panic!("allowed as {found}"));
    assert!(found == reason && told.contains(message), "{found}: {told}");
}

#[test]
fn a_pod_that_should_have_a_gate_is_created_only_with_it() {
    for settings in [settings(), lockdown()] {
        assert_eq!(
            created(&settings, &injected(&settings, &sandbox())),
            ("gate_present", None)
        );
        refused(
            "gate_missing",
            "inject.sandgate.dev wasn't called",
            created(&settings, &sandbox()),
        );
    }
    let mut second = injected(
        &settings(),
        &sandbox_with(&json!({"spec": {"initContainers": [{"name": "i"}]}})),
    );
    second["spec"]["initContainers"].as_array_mut().unwrap().swap(0, 1);
    refused(
        "gate_missing",
        "first among its init containers",
        created(&settings(), &second),
    );
    refused(
        "gate_missing",
        "not the whole of it",
        created(&lockdown(), &{
            let mut pod = injected(&lockdown(), &sandbox());
            pod["spec"]["containers"][0]
                .as_object_mut()
                .unwrap()
                .remove("securityContext");
            pod
        }),
    );
}

#[test]
fn a_tampered_gate_is_refused_by_its_field() {
    let mut pod = injected(&settings(), &sandbox());
    pod["spec"]["initContainers"][0]["image"] = "evil.example/gate:1".into();
    refused("tampered", "spec.initContainers[0].image", created(&settings(), &pod));
    let mut pod = injected(&settings(), &sandbox());
    pod["spec"]["hostNetwork"] = true.into();
    refused("host_namespace", "spec.hostNetwork", created(&settings(), &pod));
}

#[test]
fn a_gate_whose_roots_somebody_replaced_is_refused_by_its_field() {
    let root = crate::authority::NewRoot::generate().unwrap().certificate_pem;
    let known = anchors().as_pem().to_owned();
    for roots in [root.clone(), format!("{known}{root}")] {
        let mut pod = injected(&settings(), &sandbox());
        pod["spec"]["initContainers"][0]["env"][3]["value"] = roots.into();
        refused(
            "tampered",
            "spec.initContainers[0].env[3].value",
            created(&settings(), &pod),
        );
    }
    let mut pod = injected(&settings(), &sandbox());
    pod["spec"]["initContainers"][0]["env"]
        .as_array_mut()
        .unwrap()
        .remove(3);
    refused("tampered", "spec.initContainers[0].env", created(&settings(), &pod));
}

#[test]
fn pods_that_need_no_gate_are_created_without() {
    let mut plain = sandbox();
    plain["metadata"]["labels"] = json!({});
    assert_eq!(created(&settings(), &plain), ("not_selected", None));
    let mut own = review("CREATE", "", None, &sandbox());
    own.namespace = "agent-sandbox-system".into();
    assert_eq!(judged_with(&settings(), false, &own), ("excluded_namespace", None));
}

#[test]
fn where_no_gate_is_put_in_nothing_is_guarded() {
    let pod = injected(&settings(), &sandbox());
    let mut stripped = pod.clone();
    stripped["metadata"]["labels"] = json!({});
    for namespace in ["kube-system", "kube-node-lease", "agent-sandbox-system"] {
        for mut review in [
            review("UPDATE", "", Some(&pod), &stripped),
            review("CONNECT", "exec", None, &json!({"container": "sandgate"})),
        ] {
            review.namespace = namespace.into();
            let verdict = judged_with(&settings(), true, &review);
            assert_eq!(verdict, ("excluded_namespace", None), "{namespace}");
        }
    }
}

#[test]
fn adoption_and_every_other_change_of_a_pod_passes() {
    let pod = injected(&settings(), &sandbox());
    for change in [
        json!({"metadata": {"labels": {"agents.x-k8s.io/warm-pool-sandbox": null, "agents.x-k8s.io/claim-uid": "c"}}}),
        json!({"metadata": {"ownerReferences": [{"kind": "SandboxClaim", "name": "c", "uid": "u"}]}}),
        json!({"metadata": {"finalizers": ["a.example/b"]}}),
        json!({"metadata": {"annotations": {"team": "a"}}}),
        json!({"metadata": {"labels": {"sandgate.dev/inject": "enabled"}}}),
        json!({"spec": {"activeDeadlineSeconds": 60, "tolerations": [{"key": "a", "operator": "Exists"}]}}),
    ] {
        let verdict = updated("", &pod, |pod| json_patch::merge(pod, &change));
        assert_eq!(verdict, ("gate_unchanged", None), "{change}");
    }
    for annotation in TENANT_ANNOTATIONS {
        let verdict = updated("", &pod, |pod| pod["metadata"]["annotations"][annotation] = "x".into());
        assert_eq!(verdict, ("gate_unchanged", None), "{annotation}");
    }
    let app_image = updated("", &pod, |pod| {
        pod["spec"]["containers"][0]["image"] = "python:4".into();
    });
    assert_eq!(app_image, ("gate_unchanged", None));
}

#[test]
fn a_shape_of_an_earlier_release_and_a_pod_without_a_gate_stay_free_to_change() {
    let mut old = injected(&settings(), &sandbox());
    old["metadata"]["annotations"]["sandgate.dev/shape"] = "1".into();
    let gate = &mut old["spec"]["initContainers"][0];
    gate["image"] = "sandgate/sidecar:0".into();
    gate["args"] = json!(["--policy-file=/run/sandgate/policy.json", "--log-level=info"]);
    gate["env"].as_array_mut().unwrap().remove(3);
    let mut wild = sandbox();
    wild["spec"]["hostNetwork"] = true.into();
    for pod in [old, sandbox(), wild] {
        let verdict = updated("", &pod, |pod| pod["metadata"]["labels"]["a"] = "b".into());
        assert_eq!(verdict, ("gate_unchanged", None), "{pod}");
    }
}

#[test]
fn the_gates_parts_of_a_running_pod_cannot_be_changed_added_or_taken_away() {
    type Change = fn(&mut Value);
    let with_gate = injected(&lockdown(), &sandbox());
    let changes: [(&str, Change); 9] = [
        ("spec.initContainers[sandgate]", |pod| {
            pod["spec"]["initContainers"][1]["image"] = "evil:1".into();
        }),
        ("spec.initContainers[sandgate-lockdown]", |pod| {
            pod["spec"]["initContainers"][0]["image"] = "evil:1".into();
        }),
        ("spec.initContainers[sandgate]", |pod| {
            pod["spec"]["initContainers"].as_array_mut().unwrap().remove(1);
        }),
        ("spec.volumes[sandgate-state]", |pod| {
            let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
            volumes.retain(|volume| volume["name"] != "sandgate-state");
        }),
        ("metadata.labels[sandgate.dev/injected]", |pod| {
            pod["metadata"]["labels"]
                .as_object_mut()
                .unwrap()
                .remove("sandgate.dev/injected");
        }),
        ("metadata.labels[sandgate.dev/injected]", |pod| {
            pod["metadata"]["labels"]["sandgate.dev/injected"] = "false".into();
        }),
        ("metadata.annotations[sandgate.dev/shape]", |pod| {
            pod["metadata"]["annotations"]["sandgate.dev/shape"] = "9".into();
        }),
        ("metadata.annotations[sandgate.dev/other]", |pod| {
            pod["metadata"]["annotations"]["sandgate.dev/other"] = "x".into();
        }),
        ("spec.ephemeralContainers[sandgate]", |pod| {
            pod["spec"]["ephemeralContainers"] = json!([{"name": "sandgate"}]);
        }),
    ];
    for (field, change) in changes {
        refused("gate_changed", field, updated("", &with_gate, change));
    }
    let claim = |pod: &mut Value| pod["metadata"]["labels"]["sandgate.dev/injected"] = "true".into();
    refused(
        "gate_changed",
        "metadata.labels[sandgate.dev/injected]",
        updated("", &sandbox(), claim),
    );
}

#[test]
fn a_pod_that_is_being_deleted_keeps_its_gate_and_loses_its_finalizers() {
    let mut pod = injected(&settings(), &sandbox());
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    pod["metadata"]["finalizers"] = json!(["example.dev/keep", "foregroundDeletion"]);
    for (field, strip) in [
        (
            "metadata.labels[sandgate.dev/injected]: ",
            json!({"metadata": {"labels": null}}),
        ),
        (
            "metadata.annotations[sandgate.dev/shape]: ",
            json!({"metadata": {"annotations": null}}),
        ),
        (
            "spec.initContainers[sandgate]: ",
            json!({"spec": {"initContainers": []}}),
        ),
        ("spec.volumes[sandgate-state]: ", json!({"spec": {"volumes": []}})),
    ] {
        for sub_resource in ["", "status", "resize", "ephemeralcontainers"] {
            let verdict = updated(sub_resource, &pod, |pod| json_patch::merge(pod, &strip));
            refused("gate_changed", field, verdict);
        }
    }
    let privileged = json!({"name": "d", "securityContext": {"privileged": true}});
    refused("privileged", "privileged", debugged(&settings(), &pod, &privileged));
    for needed in [
        json!({"metadata": {"finalizers": ["foregroundDeletion"]}}),
        json!({"metadata": {"finalizers": null}}),
        json!({"metadata": {"deletionGracePeriodSeconds": 0, "ownerReferences": null, "labels": {"a": "b"}}}),
        json!({"status": {"phase": "Failed", "reason": "Evicted", "containerStatuses": []}}),
    ] {
        for sub_resource in ["", "status"] {
            let verdict = updated(sub_resource, &pod, |pod| json_patch::merge(pod, &needed));
            assert_eq!(verdict, ("gate_unchanged", None), "{needed}");
        }
    }
}

#[test]
fn the_gate_cannot_be_resized_and_the_app_can() {
    let pod = injected(&settings(), &sandbox());
    let limit = |list: &'static str| {
        move |pod: &mut Value| pod["spec"][list][0]["resources"]["limits"]["memory"] = "1Mi".into()
    };
    refused(
        "gate_changed",
        "spec.initContainers[sandgate]",
        updated("resize", &pod, limit("initContainers")),
    );
    assert_eq!(updated("resize", &pod, limit("containers")), ("gate_unchanged", None));
}

#[test]
fn a_pod_with_a_gate_gets_no_limits_that_the_gate_would_share() {
    let limit = |limits: Value| move |pod: &mut Value| pod["spec"]["resources"]["limits"] = limits;
    let gated = injected(&settings(), &sandbox());
    for (name, limits) in [("memory", json!({"memory": "1Gi"})), ("cpu", json!({"cpu": "1"}))] {
        let field = format!("spec.resources.limits.{name}: ");
        refused("pod_limits", &field, updated("resize", &gated, limit(limits.clone())));
        assert_eq!(
            updated("resize", &sandbox(), limit(limits.clone())),
            ("gate_unchanged", None)
        );
        // A pod that has them from before these checks goes on, and can be rid of them.
        let mut limited = gated.clone();
        limit(limits)(&mut limited);
        let other = |pod: &mut Value| pod["metadata"]["labels"]["a"] = "b".into();
        assert_eq!(updated("", &limited, other), ("gate_unchanged", None));
        assert_eq!(updated("resize", &limited, limit(json!({}))), ("gate_unchanged", None));
        let more = limit(json!({"memory": "2Gi", "cpu": "2"}));
        refused("pod_limits", &field, updated("resize", &limited, more));
    }
    let requests = |pod: &mut Value| pod["spec"]["resources"]["requests"] = json!({"memory": "1Gi"});
    assert_eq!(updated("resize", &gated, requests), ("gate_unchanged", None));
}

#[test]
fn neither_the_status_nor_a_binding_is_a_way_to_the_gates_labels() {
    let pod = injected(&settings(), &sandbox());
    let unlabelled = |pod: &mut Value| pod["metadata"]["labels"]["sandgate.dev/injected"] = json!("false");
    let field = "metadata.labels[sandgate.dev/injected]: ";
    refused("gate_changed", field, updated("status", &pod, unlabelled));
    let ready = |pod: &mut Value| pod["status"] = json!({"phase": "Running"});
    assert_eq!(updated("status", &pod, ready), ("gate_unchanged", None));
    let bound = |metadata: Value| {
        let binding = json!({"kind": "Binding", "metadata": metadata, "target": {"kind": "Node", "name": "n"}});
        judged_with(&settings(), false, &review("CREATE", "binding", None, &binding))
    };
    refused(
        "gate_changed",
        field,
        bound(json!({"labels": {"sandgate.dev/injected": "false"}})),
    );
    let shape = json!({"annotations": {"a": "b", "sandgate.dev/shape": "9"}});
    refused(
        "gate_changed",
        "metadata.annotations[sandgate.dev/shape]: ",
        bound(shape),
    );
    // The resource that bindings had before they were the pod's.
    let binding = json!({"kind": "Binding", "metadata": {"name": "box", "labels": {"sandgate.dev/injected": "false"}}});
    let mut legacy = review("CREATE", "", None, &binding);
    legacy.resource.resource = "bindings".into();
    refused("gate_changed", field, judged_with(&settings(), false, &legacy));
    let topology = json!({"labels": {"topology.kubernetes.io/zone": "a"}});
    assert_eq!(bound(topology), ("gate_unchanged", None));
}

/// What comes of debugging a pod with this container.
fn debugged(settings: &Settings, pod: &Value, container: &Value) -> (&'static str, Option<String>) {
    let mut new = pod.clone();
    let list = new["spec"]
        .as_object_mut()
        .unwrap()
        .entry("ephemeralContainers")
        .or_insert_with(|| json!([]));
    list.as_array_mut().unwrap().push(container.clone());
    judged_with(
        settings,
        false,
        &review("UPDATE", "ephemeralcontainers", Some(pod), &new),
    )
}

#[test]
fn nobody_gets_into_the_gates_containers() {
    for sub_resource in ["exec", "attach"] {
        for restrict_connect in [false, true] {
            for container in ["sandgate", "sandgate-lockdown"] {
                let into = review("CONNECT", sub_resource, None, &json!({"container": container}));
                refused(
                    "connect_gate",
                    container,
                    judged_with(&settings(), restrict_connect, &into),
                );
            }
        }
        let into_app = review("CONNECT", sub_resource, None, &json!({"container": "app"}));
        assert_eq!(judged_with(&settings(), false, &into_app), ("connect", None));
    }
}

#[test]
fn where_connections_are_restricted_every_way_past_the_gate_is_closed() {
    let mut service = review("CONNECT", "proxy", None, &json!({"path": "/"}));
    service.resource.resource = "services".into();
    let ways = ["exec", "attach", "portforward", "proxy"].map(|way| review("CONNECT", way, None, &json!({})));
    for way in ways.iter().chain([&service]) {
        assert_eq!(judged_with(&settings(), false, way), ("connect", None));
        refused(
            "connect_restricted",
            "through the router",
            judged_with(&settings(), true, way),
        );
    }
}

#[test]
fn a_request_that_the_rules_should_not_send_is_an_error_and_not_an_answer() {
    let pod = sandbox();
    for (operation, sub_resource) in [("CREATE", "status"), ("DELETE", ""), ("CREATE", "eviction")] {
        let review = review(operation, sub_resource, Some(&pod), &pod);
        let error = validate(&settings(), Some(&anchors()), false, &review).unwrap_err();
        assert!(
            matches!(error, ReviewError::NotAPod(_)),
            "{operation} {sub_resource}: {error}"
        );
    }
    let error = validate(&settings(), Some(&anchors()), false, &review("UPDATE", "", None, &pod)).unwrap_err();
    assert_eq!(error, ReviewError::NoObject);
}

#[path = "validate_ephemeral_tests.rs"]
mod ephemeral;
#[path = "validate_identity_tests.rs"]
mod identity;
