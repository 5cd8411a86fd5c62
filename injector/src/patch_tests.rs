use super::*;
use crate::decide::Decision;
use crate::settings::Settings;
use crate::testing::{decided, injected, lockdown, sandbox, sandbox_with, settings};

fn operations(settings: &Settings, pod: &Value) -> Vec<(String, String)> {
    let Decision::Inject(plan) = decided(settings, pod) else {
        panic!("not injected: {:?}", decided(settings, pod));
    };
    let patch = serde_json::to_value(patch(&plan, pod)).unwrap();
    let text = |operation: &Value, field: &str| operation[field].as_str().unwrap().to_owned();
    let operations = patch.as_array().unwrap().iter();
    operations
        .map(|operation| (text(operation, "op"), text(operation, "path")))
        .collect()
}

fn adds(paths: &[&str]) -> Vec<(String, String)> {
    paths
        .iter()
        .map(|path| ("add".to_owned(), (*path).to_owned()))
        .collect()
}

#[test]
fn where_maps_and_lists_are_absent_or_null_they_are_made() {
    let expected = adds(&[
        "/metadata/labels/sandgate.dev~1injected",
        "/metadata/annotations",
        "/spec/volumes",
        "/spec/initContainers",
    ]);
    assert_eq!(operations(&settings(), &sandbox()), expected);
    let mut nulls = sandbox();
    nulls["metadata"]["annotations"] = Value::Null;
    nulls["spec"]["volumes"] = Value::Null;
    nulls["spec"]["initContainers"] = Value::Null;
    assert_eq!(operations(&settings(), &nulls), expected);
    assert_eq!(injected(&settings(), &nulls), injected(&settings(), &sandbox()));
}

#[test]
fn where_they_are_there_only_our_own_items_are_added() {
    let pod = sandbox_with(&json!({
        "metadata": {"annotations": {}},
        "spec": {"volumes": [], "initContainers": [{"name": "first", "image": "a"}]},
    }));
    let expected = adds(&[
        "/metadata/labels/sandgate.dev~1injected",
        "/metadata/annotations/sandgate.dev~1shape",
        "/spec/volumes/-",
        "/spec/volumes/-",
        "/spec/initContainers/0",
    ]);
    assert_eq!(operations(&settings(), &pod), expected);
    let names: Vec<_> = injected(&settings(), &pod)["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|container| container["name"].clone())
        .collect();
    assert_eq!(names, ["sandgate", "first"]);
}

#[test]
fn a_template_without_metadata_gets_some() {
    let plan = match decided(&settings(), &sandbox()) {
        Decision::Inject(plan) => plan,
        other => panic!("{other:?}"),
    };
    for mut template in [json!({"spec": {}}), json!({"metadata": null, "spec": {}})] {
        let patch = patch(&plan, &template);
        json_patch::patch(&mut template, &patch).unwrap();
        let expected = json!({
            "labels": {"sandgate.dev/injected": "true"},
            "annotations": {"sandgate.dev/shape": "3"},
        });
        assert_eq!(template["metadata"], expected);
    }
}

#[test]
fn with_lockdown_every_other_container_drops_net_raw_unless_it_does() {
    let container = |name: &str, context: &Value| json!({"name": name, "image": "a", "securityContext": context});
    let contexts = [
        (Value::Null, json!({"capabilities": {"drop": ["NET_RAW"]}})),
        (
            json!({"runAsUser": 1}),
            json!({"runAsUser": 1, "capabilities": {"drop": ["NET_RAW"]}}),
        ),
        (
            json!({"capabilities": {}}),
            json!({"capabilities": {"drop": ["NET_RAW"]}}),
        ),
        (
            json!({"capabilities": {"drop": null}}),
            json!({"capabilities": {"drop": ["NET_RAW"]}}),
        ),
        (
            json!({"capabilities": {"drop": ["KILL"]}}),
            json!({"capabilities": {"drop": ["KILL", "NET_RAW"]}}),
        ),
        // Not every runtime knows these spellings.
        (
            json!({"capabilities": {"drop": ["all"]}}),
            json!({"capabilities": {"drop": ["all", "NET_RAW"]}}),
        ),
        (
            json!({"capabilities": {"drop": ["ALL"]}}),
            json!({"capabilities": {"drop": ["ALL"]}}),
        ),
        (
            json!({"capabilities": {"drop": ["NET_RAW"]}}),
            json!({"capabilities": {"drop": ["NET_RAW"]}}),
        ),
    ];
    let containers: Vec<_> = contexts
        .iter()
        .enumerate()
        .map(|(index, (context, _))| container(&format!("c{index}"), context))
        .collect();
    let pod = sandbox_with(&json!({"spec": {"containers": containers, "initContainers": containers[..1].to_vec()}}));
    let after = injected(&lockdown(), &pod);
    for (index, (_, expected)) in contexts.iter().enumerate() {
        assert_eq!(
            &after["spec"]["containers"][index]["securityContext"], expected,
            "{index}"
        );
    }
    assert_eq!(after["spec"]["initContainers"][2]["securityContext"], contexts[0].1);
    let names: Vec<_> = (0..3)
        .map(|index| after["spec"]["initContainers"][index]["name"].clone())
        .collect();
    assert_eq!(names, ["sandgate-lockdown", "sandgate", "c0"]);
    assert_eq!(injected(&lockdown(), &after), after);
}
