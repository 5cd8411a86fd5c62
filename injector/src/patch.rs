//! From a plan to the fewest JSON Patch operations (RFC 6902). Whatever they don't name stays as it is, byte for byte.

use crate::decide::Plan;
use crate::existing::is_named_ours;
use crate::names::{CONTAINER, INJECTED, INJECTED_LABEL, SHAPE_ANNOTATION};
use crate::pod::{Container, Pod, items, text_at};
use crate::probes;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, MoveOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use sandgate_mesh::contract::APP_PROBES_VARIABLE;
use serde_json::{Value, json};

/// The capability behind packet sockets, which go around the rules of a locked-down network.
pub(crate) const NET_RAW: &str = "NET_RAW";

/// The patch that makes a pod what the plan says; empty if it is that already.
pub fn patch(plan: &Plan, raw: &Value) -> Patch {
    let mut operations = Vec::new();
    let Ok(pod) = Pod::read(raw) else {
        return Patch(operations);
    };
    metadata(plan, pod, &mut operations);
    volumes(plan, pod, &mut operations);
    // Places in lists change with the init containers, so these come last.
    if plan.lockdown {
        operations.extend(probes::rewrites(pod));
        drop_net_raw(pod, &mut operations);
        update_app_probes(plan, pod, &mut operations);
    }
    init_containers(plan, pod, &mut operations);
    Patch(operations)
}

/// The place that these names lead to, one below the other.
pub(crate) fn pointer(tokens: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(tokens.iter().copied())
}

/// Puts something there, in place of what is there.
pub(crate) fn add(path: PointerBuf, value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path, value })
}

fn metadata(plan: &Plan, pod: Pod<'_>, operations: &mut Vec<PatchOperation>) {
    let texts = [
        ("labels", INJECTED_LABEL, INJECTED),
        ("annotations", SHAPE_ANNOTATION, plan.shape),
    ];
    if pod.at(&["metadata"]).is_none() {
        let maps = texts.map(|(map, name, value)| (map.to_owned(), json!({name: value})));
        operations.push(add(pointer(&["metadata"]), maps.into_iter().collect()));
        return;
    }
    for (map, name, value) in texts {
        if pod.at(&["metadata", map]).is_none() {
            operations.push(add(pointer(&["metadata", map]), json!({name: value})));
        } else if pod.at(&["metadata", map, name]).is_none() {
            operations.push(add(pointer(&["metadata", map, name]), value.into()));
        }
    }
}

fn volumes(plan: &Plan, pod: Pod<'_>, operations: &mut Vec<PatchOperation>) {
    let there = |volume: &&Value| pod.volumes().any(|(_, found)| found.get("name") == volume.get("name"));
    let missing: Vec<_> = plan.volumes.iter().filter(|volume| !there(volume)).cloned().collect();
    if missing.is_empty() {
        return;
    }
    if pod.at(&["spec", "volumes"]).is_none() {
        operations.push(add(pointer(&["spec", "volumes"]), missing.into()));
        return;
    }
    let end = || pointer(&["spec", "volumes", "-"]);
    operations.extend(missing.into_iter().map(|volume| add(end(), volume)));
}

/// Adds the gate's containers at the front, or moves them back there.
fn init_containers(plan: &Plan, pod: Pod<'_>, operations: &mut Vec<PatchOperation>) {
    let list = pod.at(&["spec", "initContainers"]);
    if list.is_none() {
        operations.push(add(
            pointer(&["spec", "initContainers"]),
            plan.containers.clone().into(),
        ));
        return;
    }
    let mut order: Vec<_> = items(list)
        .map(|(_, container)| text_at(container, &["name"]))
        .collect();
    for (place, container) in plan.containers.iter().enumerate() {
        let name = text_at(container, &["name"]);
        let path = pointer(&["spec", "initContainers", &place.to_string()]);
        match order.iter().position(|other| *other == name) {
            Some(found) if found == place => {}
            Some(found) => {
                let from = pointer(&["spec", "initContainers", &found.to_string()]);
                operations.push(PatchOperation::Move(MoveOperation { from, path }));
                order.remove(found);
                order.insert(place, name);
            }
            None => {
                operations.push(add(path, container.clone()));
                order.insert(place, name);
            }
        }
    }
}

/// Whether a container gives up [`NET_RAW`].
pub(crate) fn drops_net_raw(container: Container<'_>) -> bool {
    let dropped = container.at(&["securityContext", "capabilities", "drop"]);
    items(dropped).any(|(_, dropped)| matches!(dropped.as_str(), Some("ALL" | NET_RAW)))
}

/// Without being told, runtimes give every container `NET_RAW`.
fn drop_net_raw(pod: Pod<'_>, operations: &mut Vec<PatchOperation>) {
    for container in pod.containers().filter(|container| !is_named_ours(*container)) {
        if drops_net_raw(container) {
            continue;
        }
        let path = |rest: &[&str]| container.pointer(&[&["securityContext"], rest].concat());
        operations.push(if container.at(&["securityContext"]).is_none() {
            add(path(&[]), json!({"capabilities": {"drop": [NET_RAW]}}))
        } else if container.at(&["securityContext", "capabilities"]).is_none() {
            add(path(&["capabilities"]), json!({"drop": [NET_RAW]}))
        } else if container.at(&["securityContext", "capabilities", "drop"]).is_none() {
            add(path(&["capabilities", "drop"]), json!([NET_RAW]))
        } else {
            add(path(&["capabilities", "drop", "-"]), NET_RAW.into())
        });
    }
}

/// A gate that is there already learns of the app's probes as they are now.
fn update_app_probes(plan: &Plan, pod: Pod<'_>, operations: &mut Vec<PatchOperation>) {
    let expected = plan.containers.iter().find_map(probes::variable).map(|(_, text)| text);
    for gate in pod.containers().filter(|container| is_named_ours(*container)) {
        if gate.name() != CONTAINER {
            continue;
        }
        let path = |rest: &[&str]| gate.pointer(&[&["env"], rest].concat());
        let actual = probes::variable(gate.fields()).map(|(index, text)| (index.to_string(), text));
        operations.extend(match (expected, actual) {
            (Some(expected), Some((index, actual))) if expected != actual => {
                let (path, value) = (path(&[&index, "value"]), expected.into());
                Some(PatchOperation::Replace(ReplaceOperation { path, value }))
            }
            (Some(expected), None) => {
                let variable = json!({"name": APP_PROBES_VARIABLE, "value": expected});
                Some(add(path(&["-"]), variable))
            }
            (None, Some((index, _))) => {
                let path = path(&[&index]);
                Some(PatchOperation::Remove(RemoveOperation { path }))
            }
            (Some(_), Some(_)) | (None, None) => None,
        });
    }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
