use super::*;
use crate::testing::{injected, lockdown, sandbox, sandbox_with, settings};

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
    match validate(settings, restrict_connect, review).unwrap() {
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
fn pods_that_need_no_gate_are_created_without() {
    let mut plain = sandbox();
    plain["metadata"]["labels"] = json!({});
    assert_eq!(created(&settings(), &plain), ("not_selected", None));
    let mut own = review("CREATE", "", None, &sandbox());
    own.namespace = "agent-sandbox-system".into();
    assert_eq!(judged_with(&settings(), false, &own), ("excluded_namespace", None));
}

#[test]
fn adoption_and_every_other_change_of_a_pod_passes() {
    let pod = injected(&settings(), &sandbox());
    for change in [
        json!({"metadata": {"labels": {"agents.x-k8s.io/warm-pool-sandbox": null, "agents.x-k8s.io/claim-uid": "c"}}}),
        json!({"metadata": {"labels": {"agents.x-k8s.io/sandbox-name-hash": "other"}}}),
        json!({"metadata": {"ownerReferences": [{"kind": "SandboxClaim", "name": "c", "uid": "u"}]}}),
        json!({"metadata": {"finalizers": ["a.example/b"]}}),
        json!({"metadata": {"annotations": {"sandgate.dev/log-level": "debug", "team": "a"}}}),
        json!({"metadata": {"labels": {"sandgate.dev/inject": "enabled"}}}),
        json!({"spec": {"activeDeadlineSeconds": 60, "tolerations": [{"key": "a", "operator": "Exists"}]}}),
    ] {
        let verdict = updated("", &pod, |pod| json_patch::merge(pod, &change));
        assert_eq!(verdict, ("gate_unchanged", None), "{change}");
    }
    let app_image = updated("", &pod, |pod| {
        pod["spec"]["containers"][0]["image"] = "python:4".into();
    });
    assert_eq!(app_image, ("gate_unchanged", None));
}

#[test]
fn a_shape_of_an_earlier_release_and_a_pod_without_a_gate_stay_free_to_change() {
    let mut old = injected(&settings(), &sandbox());
    old["spec"]["initContainers"][0]["image"] = "sandgate/sidecar:0".into();
    old["metadata"]["annotations"]["sandgate.dev/shape"] = "0".into();
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
fn nothing_is_guarded_once_the_pod_is_being_deleted() {
    let mut pod = injected(&settings(), &sandbox());
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let strip = |pod: &mut Value| pod["metadata"]["labels"] = json!({});
    assert_eq!(updated("", &pod, strip), ("deleting", None));
    // The new object alone doesn't say so: whoever sends it wrote it.
    let claim = |pod: &mut Value| {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        strip(pod);
    };
    refused(
        "gate_changed",
        "metadata",
        updated("", &injected(&settings(), &sandbox()), claim),
    );
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
fn an_ephemeral_container_gets_at_nothing_of_the_gates() {
    let pod = injected(&settings(), &sandbox());
    for (reason, field, container) in [
        (
            "reserved_name",
            "targetContainerName",
            json!({"name": "d", "targetContainerName": "sandgate"}),
        ),
        (
            "gate_changed",
            "spec.ephemeralContainers[sandgate]",
            json!({"name": "sandgate"}),
        ),
        (
            "own_volume",
            "volumeMounts[0]",
            json!({"name": "d", "volumeMounts": [{"name": "sandgate-state", "mountPath": "/s"}]}),
        ),
        (
            "own_user",
            "runAsUser",
            json!({"name": "d", "securityContext": {"runAsUser": 2102}}),
        ),
        (
            "privileged",
            "privileged",
            json!({"name": "d", "securityContext": {"privileged": true}}),
        ),
        (
            "capability",
            "capabilities.add[0]",
            json!({"name": "d", "securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}}}),
        ),
    ] {
        refused(reason, field, debugged(&settings(), &pod, &container));
    }
    let harmless = json!({"name": "d", "image": "busybox", "targetContainerName": "app"});
    assert_eq!(debugged(&settings(), &pod, &harmless), ("gate_unchanged", None));
}

#[test]
fn an_ephemeral_container_in_a_locked_down_pod_must_drop_packet_sockets() {
    let pod = injected(&lockdown(), &sandbox());
    refused(
        "capability",
        "NET_RAW",
        debugged(&lockdown(), &pod, &json!({"name": "d"})),
    );
    let drops = json!({"name": "d", "securityContext": {"capabilities": {"drop": ["ALL"]}}});
    assert_eq!(debugged(&lockdown(), &pod, &drops), ("gate_unchanged", None));
}

#[test]
fn ephemeral_containers_that_are_there_are_not_judged_again_and_the_place_of_a_new_one_is_right() {
    let mut pod = injected(&settings(), &sandbox());
    pod["spec"]["ephemeralContainers"] = json!([{"name": "old", "securityContext": {"privileged": true}}]);
    assert_eq!(
        debugged(&settings(), &pod, &json!({"name": "new"})),
        ("gate_unchanged", None)
    );
    let bad = json!({"name": "new", "securityContext": {"privileged": true}});
    refused(
        "privileged",
        "spec.ephemeralContainers[1].securityContext",
        debugged(&settings(), &pod, &bad),
    );
}

#[test]
fn a_pod_without_a_gate_is_debugged_freely() {
    let bad = json!({"name": "d", "securityContext": {"privileged": true}});
    assert_eq!(debugged(&settings(), &sandbox(), &bad), ("gate_unchanged", None));
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
        let error = validate(&settings(), false, &review).unwrap_err();
        assert!(
            matches!(error, ReviewError::NotAPod(_)),
            "{operation} {sub_resource}: {error}"
        );
    }
    let error = validate(&settings(), false, &review("UPDATE", "", None, &pod)).unwrap_err();
    assert_eq!(error, ReviewError::NoObject);
}
