//! Ephemeral containers that are added to a pod.

use super::*;

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

/// Each of so many looked for among all of the others would take minutes.
#[test]
fn as_many_ephemeral_containers_as_a_review_may_hold_are_told_apart_by_name() {
    let named = |names: std::ops::Range<u32>| -> Vec<_> {
        let names = names.map(|number| json!({"name": format!("c{number}")}));
        names.collect()
    };
    let mut old = injected(&settings(), &sandbox());
    old["spec"]["ephemeralContainers"] = named(0..30_000).into();
    let added = |pod: &mut Value| pod["spec"]["ephemeralContainers"] = named(0..60_000).into();
    assert_eq!(updated("ephemeralcontainers", &old, added), ("gate_unchanged", None));
    let bad = |pod: &mut Value| {
        added(pod);
        pod["spec"]["ephemeralContainers"][59_999]["securityContext"]["runAsUser"] = 2102.into();
    };
    let field = "spec.ephemeralContainers[59999].securityContext.runAsUser";
    refused("own_user", field, updated("ephemeralcontainers", &old, bad));
}

#[test]
fn a_pod_without_a_gate_is_debugged_freely() {
    let bad = json!({"name": "d", "securityContext": {"privileged": true}});
    assert_eq!(debugged(&settings(), &sandbox(), &bad), ("gate_unchanged", None));
}
