//! Properties of injection over a generated corpus of pods, the same on every run.
//!
//! With `ADMIT_CORPUS=folder` the pods are also written there, before and after, for checks against Kubernetes' schemas.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "admit_common.rs"]
mod common;
#[path = "admit_pods.rs"]
mod pods;

use common::{applied, decided, lockdown, settings};
use pods::{arbitrary, broken, pod};
use sandbox_injector::decide::{Decision, Operation, Plan, User};
use sandbox_injector::patch::patch;
use sandbox_injector::settings::Settings;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Pods in the corpus.
const PODS: u64 = 400;
/// Inputs that nobody would send.
const BROKEN: u64 = 5_000;

fn corpus() -> impl Iterator<Item = (u64, Value)> {
    (0..PODS).map(|seed| (seed, pod(&mut fastrand::Rng::with_seed(seed))))
}

fn both() -> [Settings; 2] {
    [settings(), lockdown(&["kata"])]
}

fn plan(settings: &Settings, pod: &Value) -> Plan {
    match decided(settings, Operation::Create, "team-a", &User::default(), pod) {
        Decision::Inject(plan) => plan,
        other => panic!("{other:?} for {pod:#}"),
    }
}

fn injected(settings: &Settings, pod: &Value) -> Value {
    applied(&plan(settings, pod), pod).1
}

#[test]
fn injecting_twice_is_injecting_once() {
    for settings in both() {
        for (seed, pod) in corpus() {
            let once = injected(&settings, &pod);
            assert_ne!(once, pod, "{seed}");
            let again = patch(&plan(&settings, &once), &once);
            assert!(again.0.is_empty(), "{seed}: {again}");
        }
    }
}

/// Where an absent, a null and an empty value mean the same, and injection may make one of another.
const MADE: [&str; 4] = [
    "/metadata/labels",
    "/metadata/annotations",
    "/spec/initContainers",
    "/spec/volumes",
];

fn without_empty(mut pod: Value) -> Value {
    for place in MADE {
        let (parent, name) = place.rsplit_once('/').unwrap();
        let empty = [Value::Null, json!([]), json!({})];
        if pod.pointer(place).is_some_and(|value| empty.contains(value)) {
            pod.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
        }
    }
    pod
}

/// Takes out what has a name of ours, and nothing else.
fn without_gate(mut pod: Value) -> Value {
    for place in ["/spec/initContainers", "/spec/volumes"] {
        let list = pod.pointer_mut(place).unwrap().as_array_mut().unwrap();
        let before = list.len();
        list.retain(|item| !item["name"].as_str().unwrap().starts_with("sandgate"));
        assert!(list.len() < before, "{place}");
    }
    for (map, name) in [
        ("labels", "sandgate.dev/injected"),
        ("annotations", "sandgate.dev/shape"),
    ] {
        let removed = pod["metadata"][map].as_object_mut().unwrap().remove(name);
        assert!(removed.is_some(), "{name}");
    }
    pod
}

#[test]
fn taking_out_what_was_added_gives_back_the_pod() {
    for (seed, pod) in corpus() {
        let back = without_gate(injected(&settings(), &pod));
        assert_eq!(without_empty(back), without_empty(pod), "{seed}");
    }
}

/// What lockdown is to change in containers that aren't ours, written a second time.
fn locked_down(mut pod: Value) -> Value {
    for list in ["initContainers", "containers"] {
        for container in pod["spec"]
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let name = container["name"].as_str().unwrap().to_owned();
            for place in [
                "/livenessProbe",
                "/readinessProbe",
                "/startupProbe",
                "/lifecycle/postStart",
                "/lifecycle/preStop",
            ] {
                let Some(handler) = container.pointer_mut(place).and_then(Value::as_object_mut) else {
                    continue;
                };
                let calls = ["httpGet", "tcpSocket", "grpc"]
                    .iter()
                    .filter(|kind| handler.remove(**kind).is_some());
                if calls.count() > 0 {
                    let path = format!("/app-probe/{name}/{}", place.rsplit('/').next().unwrap());
                    handler.insert(
                        "httpGet".to_owned(),
                        json!({"path": path, "port": 14480, "scheme": "HTTP"}),
                    );
                }
            }
            let mut dropped = container["securityContext"]["capabilities"]["drop"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            if !dropped.contains(&json!("ALL")) && !dropped.contains(&json!("NET_RAW")) {
                dropped.push("NET_RAW".into());
                container["securityContext"]["capabilities"]["drop"] = dropped.into();
            }
        }
    }
    pod
}

#[test]
fn lockdown_changes_probes_and_capabilities_and_nothing_else() {
    for (seed, pod) in corpus() {
        let back = without_gate(injected(&lockdown(&["kata"]), &pod));
        assert_eq!(without_empty(back), without_empty(locked_down(pod)), "{seed}");
    }
}

#[test]
fn patches_only_add_and_only_where_the_gate_belongs() {
    for (seed, pod) in corpus() {
        let operations = serde_json::to_value(patch(&plan(&settings(), &pod), &pod)).unwrap();
        for operation in operations.as_array().unwrap() {
            let path = operation["path"].as_str().unwrap();
            let ours = [
                "/metadata/labels/sandgate.dev~1injected",
                "/metadata/annotations/sandgate.dev~1shape",
                "/spec/volumes/-",
                "/spec/initContainers/0",
            ];
            let made = MADE.contains(&path) && pod.pointer(path).is_none_or(Value::is_null);
            assert!(ours.contains(&path) || made, "{seed}: {path}");
            assert_eq!(operation["op"], "add", "{seed}: {path}");
        }
        assert!(operations.as_array().unwrap().len() <= 5, "{seed}: {operations}");
    }
}

#[test]
fn the_gate_is_first_whatever_else_is_in_the_pod() {
    for (settings, first) in both()
        .into_iter()
        .zip([vec!["sandgate"], vec!["sandgate-lockdown", "sandgate"]])
    {
        for (seed, pod) in corpus() {
            let after = injected(&settings, &pod);
            let containers = after["spec"]["initContainers"].as_array().unwrap();
            let names: Vec<_> = containers
                .iter()
                .map(|container| container["name"].as_str().unwrap())
                .collect();
            assert_eq!(&names[..first.len()], first, "{seed}");
        }
    }
}

/// Whether a pod is on the Pod Security level restricted, of which the generated pods may miss these points.
fn restricted(pod: &Value) -> bool {
    let of_pod = &pod["spec"]["securityContext"];
    let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    let confined = |container: &Value| {
        let context = &container["securityContext"];
        let or_of_pod = |name: &str| {
            if context[name].is_null() {
                &of_pod[name]
            } else {
                &context[name]
            }
        };
        let added = context["capabilities"]["add"].as_array();
        context["allowPrivilegeEscalation"] == json!(false)
            && context["capabilities"]["drop"]
                .as_array()
                .is_some_and(|drop| drop.contains(&json!("ALL")))
            && added.is_none_or(|add| add.iter().all(|capability| capability == "NET_BIND_SERVICE"))
            && *or_of_pod("runAsNonRoot") == json!(true)
            && *or_of_pod("runAsUser") != json!(0)
            && matches!(
                or_of_pod("seccompProfile")["type"].as_str(),
                Some("RuntimeDefault" | "Localhost")
            )
    };
    let kinds = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let volumes = pod["spec"]["volumes"].as_array();
    let known = |volume: &Value| {
        volume
            .as_object()
            .unwrap()
            .keys()
            .all(|key| key == "name" || kinds.contains(&key.as_str()))
    };
    lists.into_iter().flatten().flatten().all(confined) && volumes.is_none_or(|volumes| volumes.iter().all(known))
}

#[test]
fn a_restricted_pod_stays_restricted() {
    let mut seen = 0;
    for (seed, pod) in corpus().filter(|(_, pod)| restricted(pod)) {
        seen += 1;
        assert!(restricted(&injected(&settings(), &pod)), "{seed}");
    }
    let others = PODS - seen;
    assert!(seen > 20 && others > 20, "{seen} of {PODS} are restricted");
}

#[test]
fn nothing_that_anybody_sends_makes_decision_or_patch_panic() {
    let good = plan(&settings(), &corpus().next().unwrap().1);
    let mut decisions = std::collections::BTreeMap::new();
    for seed in 0..BROKEN {
        let rng = &mut fastrand::Rng::with_seed(seed);
        let pod = if seed % 4 == 0 { arbitrary(rng, 5) } else { broken(rng) };
        for settings in both() {
            let decision = decided(&settings, Operation::Create, "team-a", &User::default(), &pod);
            *decisions.entry(decision.as_str()).or_insert(0) += 1;
            if let Decision::Inject(plan) = decision {
                // What is injected can be applied, broken as the rest may be.
                let after = applied(&plan, &pod).1;
                assert_eq!(after["metadata"]["labels"]["sandgate.dev/injected"], "true", "{seed}");
            }
        }
        patch(&good, &pod);
    }
    // Every way was taken.
    assert_eq!(decisions.len(), 3, "{decisions:?}");
}

#[test]
fn the_corpus_is_written_where_it_is_asked_for() {
    let Some(folder) = std::env::var_os("ADMIT_CORPUS") else {
        return;
    };
    let write = |name: String, pod: &Value| fs::write(Path::new(&folder).join(name), pod.to_string()).unwrap();
    fs::create_dir_all(&folder).unwrap();
    for (seed, pod) in corpus() {
        write(format!("{seed:03}-before.json"), &pod);
        write(format!("{seed:03}-after.json"), &injected(&settings(), &pod));
        write(
            format!("{seed:03}-locked-down.json"),
            &injected(&lockdown(&["kata"]), &pod),
        );
    }
}
