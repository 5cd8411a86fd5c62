use super::*;
use crate::decide::SkipReason;
use crate::names::{CONTAINERS, TENANT_ANNOTATIONS};
use crate::offline::documents;
use crate::testing::{denials, injected, lockdown, sandbox, sandbox_with, settings};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};

/// A pod whose only container has these fields.
fn app(fields: &Value) -> Value {
    let mut container = json!({"name": "app", "image": "python:3"});
    json_patch::merge(&mut container, fields);
    spec(&json!({ "containers": [container] }))
}

fn spec(fields: &Value) -> Value {
    sandbox_with(&json!({ "spec": fields }))
}

/// The rows of a file, each with its pod.
fn rows(yaml: &str) -> Vec<(Value, Value)> {
    let documents = documents::parse(yaml).unwrap();
    let row = |row: &Value| {
        let pod = match row.get("container") {
            Some(container) => app(container),
            None => sandbox_with(&row["pod"]),
        };
        (pod, row.clone())
    };
    documents[0].as_array().unwrap().iter().map(row).collect()
}

/// The pod, the kind of its refusal and the whole sentence.
fn table() -> Vec<(Value, String, String)> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    rows(include_str!("../../../tests/golden/denials.yaml"))
        .into_iter()
        .map(|(pod, row)| (pod, text(&row, "kind"), text(&row, "says")))
        .collect()
}

#[test]
fn each_refusal_names_the_field_what_is_wrong_and_what_to_change() {
    for (pod, reason, sentence) in table() {
        let found: Vec<_> = denials(&settings(), &pod)
            .into_iter()
            .map(|denial| (denial.reason.to_string(), denial.to_string()))
            .collect();
        assert_eq!(found, [(reason, sentence)], "{pod}");
    }
}

#[test]
fn every_kind_of_refusal_has_a_row() {
    let mut shown: HashSet<_> = table().into_iter().map(|(_, kind, _)| kind).collect();
    // These have tests of their own: parts that are there already, and lockdown.
    shown.extend(["tampered", "runtime_class", "probe"].map(str::to_owned));
    let all: HashSet<_> = DenyReason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(shown, all);
}

#[test]
fn what_one_container_may_not_do_no_kind_of_container_may() {
    for (pod, reason, _) in table() {
        let Some([container]) = pod["spec"]["containers"].as_array().map(Vec::as_slice) else {
            continue;
        };
        let ours = CONTAINERS.iter().any(|name| container["name"] == *name);
        if ours || container == &sandbox()["spec"]["containers"][0] {
            continue;
        }
        for list in ["initContainers", "ephemeralContainers"] {
            let mut other = container.clone();
            other["name"] = "other".into();
            let found = denials(&settings(), &spec(&json!({ list: [other] })));
            let found: Vec<_> = found.iter().map(|denial| denial.reason.as_str()).collect();
            assert_eq!(found, [&reason], "{list} {container}");
        }
    }
}

#[test]
fn a_capability_is_refused_in_any_spelling_and_an_allowed_one_is_not() {
    for spelling in [
        "NET_ADMIN",
        "net_admin",
        "CAP_NET_ADMIN",
        "Cap_Net_Admin",
        "ALL",
        "all",
        "SYS_ADMIN",
        "",
        "CAP_CAP_CHOWN",
    ] {
        let pod = app(&json!({"securityContext": {"capabilities": {"add": [spelling]}}}));
        let reasons: Vec<_> = denials(&settings(), &pod).iter().map(|denial| denial.reason).collect();
        assert_eq!(reasons, [DenyReason::Capability], "{spelling}");
    }
    for spelling in ["NET_BIND_SERVICE", "cap_chown", "Kill"] {
        let pod = app(&json!({"securityContext": {"capabilities": {"add": [spelling]}}}));
        assert_eq!(denials(&settings(), &pod), [], "{spelling}");
    }
}

#[test]
fn what_the_baseline_allows_is_not_refused() {
    for (pod, _) in rows(include_str!("../../../tests/golden/admitted.yaml")) {
        assert_eq!(denials(&settings(), &pod), [], "{pod}");
    }
}

/// The lists of <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, as of Kubernetes 1.37, in its
/// order. Those of the API server's own checks are compared with ours by the tests against a real one.
#[test]
fn the_lists_of_the_baseline_are_those_of_the_pod_security_standards() {
    let sorted = |names: &[&'static str]| names.iter().copied().collect::<BTreeSet<_>>();
    let capabilities = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    assert_eq!(sorted(&CAPABILITIES), sorted(&capabilities));
    let types = [
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ];
    assert_eq!(sorted(&SELINUX_TYPES), sorted(&types));
    let sysctls = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
        "net.ipv4.tcp_slow_start_after_idle",
        "net.ipv4.tcp_notsent_lowat",
    ];
    assert_eq!(sorted(&SYSCTLS), sorted(&sysctls));
}

#[test]
fn an_annotation_may_go_to_its_bounds_and_not_beyond() {
    for (name, least, less, most, more) in [
        ("cpu-request", "1m", "0", "1", "4001m"),
        ("cpu-limit", "10m", "0", "4", "4001m"),
        ("memory-request", "8Mi", "7Mi", "64Mi", "1025Mi"),
        ("memory-limit", "32Mi", "31Mi", "1Gi", "1025Mi"),
    ] {
        let with = |amount: &str| {
            let annotations = json!({format!("sandgate.dev/{name}"): amount});
            let found = denials(
                &settings(),
                &sandbox_with(&json!({"metadata": {"annotations": annotations}})),
            );
            found.iter().map(|denial| denial.reason).collect::<Vec<_>>()
        };
        for within in [least, most] {
            assert_eq!(with(within), [], "{name}: {within}");
        }
        for beyond in [less, more] {
            assert_eq!(with(beyond), [DenyReason::Annotation], "{name}: {beyond}");
        }
    }
}

#[test]
fn a_pod_repeats_little_of_its_own_text_in_a_refusal() {
    let pod = app(&json!({"securityContext": {"capabilities": {"add": ["\u{1b}[31m".repeat(1000)]}}}));
    let sentence = denials(&settings(), &pod)[0].to_string();
    assert!(sentence.len() < 1000 && !sentence.contains('\u{1b}'), "{sentence}");
}

#[test]
fn with_lockdown_only_listed_runtime_classes_are_let_in() {
    let pod = |class: &str| spec(&json!({"runtimeClassName": class}));
    let refused = denials(&lockdown(), &pod("gvisor"));
    assert_eq!(
        refused[0].to_string(),
        "spec.runtimeClassName: \"gvisor\" isn't listed as one that obeys the pod's network rules; \
         remove it, or have the operator list it (--lockdown-runtime-class)"
    );
    assert_eq!(refused[0].reason, DenyReason::RuntimeClass);
    assert_eq!(denials(&lockdown(), &pod("kata")), []);
    assert_eq!(denials(&lockdown(), &sandbox()), []);
    assert_eq!(denials(&settings(), &pod("gvisor")), []);
}

#[test]
fn a_container_that_imitates_the_lockdown_is_refused() {
    let imitation = injected(&lockdown(), &sandbox())["spec"]["initContainers"][0].clone();
    assert_eq!(imitation["name"], "sandgate-lockdown");
    let pod = spec(&json!({"initContainers": [imitation]}));
    for settings in [settings(), lockdown()] {
        let found = denials(&settings, &pod);
        assert!(
            found.iter().any(|denial| denial.reason == DenyReason::ReservedName),
            "{found:?}"
        );
    }
}

#[test]
fn the_page_on_injection_explains_every_refusal_and_every_exclusion() {
    let page = include_str!("../../../docs/injection.md");
    for reason in DenyReason::ALL {
        assert!(page.contains(&format!("| `{reason}` |")), "{reason}");
    }
    for reason in SkipReason::ALL {
        assert!(page.contains(&format!("| `{}` |", reason.as_str())), "{reason:?}");
    }
    for annotation in TENANT_ANNOTATIONS {
        assert!(page.contains(&format!("| `{annotation}` |")), "{annotation}");
    }
}
