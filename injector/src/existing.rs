//! Parts of a gate that a pod already holds: the gate of an earlier call of this webhook, or somebody's imitation.

use crate::anchors::Anchors;
use crate::decide::Plan;
use crate::deny::own::reserved;
use crate::deny::{Denial, DenyReason};
use crate::names::{CONTAINER, CONTAINERS, INJECTED, INJECTED_LABEL, SHAPE_ANNOTATION, VOLUMES};
use crate::pod::{Container, ContainerList, Pod, text_at, variable};
use crate::probes;
use crate::settings::{Image, Settings};
use crate::shape::difference;
use sandgate_mesh::contract::TRUST_ANCHORS_VARIABLE;
use serde_json::Value;

/// Whether an init container bears one of the gate's names.
pub(crate) fn is_named_ours(container: Container<'_>) -> bool {
    container.list == ContainerList::Init && CONTAINERS.contains(&container.name())
}

/// Whether a pod holds any part of a gate.
pub(crate) fn any(pod: Pod<'_>) -> bool {
    pod.containers().any(is_named_ours)
        || pod.volumes().any(|(_, volume)| is_our_volume(volume))
        || pod.label(INJECTED_LABEL).is_some()
        || pod.annotation(SHAPE_ANNOTATION).is_some()
}

fn is_our_volume(volume: &Value) -> bool {
    text_at(volume, &["name"]).is_some_and(|name| VOLUMES.contains(&name))
}

/// The containers that bear the gate's name.
fn gates(pod: Pod<'_>) -> impl Iterator<Item = Container<'_>> {
    pod.containers()
        .filter(|container| is_named_ours(*container) && container.name() == CONTAINER)
}

/// The gate that is there; of several the first.
pub(crate) fn gate(pod: Pod<'_>) -> Option<Container<'_>> {
    gates(pod).next()
}

/// The roots in the gate that is there.
pub(crate) fn anchors(pod: Pod<'_>) -> Option<&str> {
    let (_, text) = variable(gate(pod)?.fields(), TRUST_ANCHORS_VARIABLE)?;
    Some(text)
}

/// The roots in the gate that is there, if all of them are known here, and not only such as leave: another replica may have
/// known fewer, or more.
pub(crate) fn accepted_anchors<'a>(known: &Anchors, pod: Pod<'a>) -> Option<&'a str> {
    anchors(pod).filter(|text| known.admit(text))
}

/// The image of the gate that is there, if it is none that would be injected and the operator accepts it as well.
pub(crate) fn accepted_image<'a>(settings: &'a Settings, pod: Pod<'_>) -> Option<&'a Image> {
    let image = text_at(gate(pod)?.fields(), &["image"])?;
    settings
        .accepted_images
        .iter()
        .find(|accepted| accepted.as_str() == image)
}

/// The pod as it was before the gate was added.
pub(crate) fn without(pod: Pod<'_>) -> Value {
    let mut raw = pod.raw().clone();
    let mut retain = |pointer: &str, keep: &dyn Fn(&Value) -> bool| {
        if let Some(list) = raw.pointer_mut(pointer).and_then(Value::as_array_mut) {
            list.retain(keep);
        }
    };
    retain("/spec/initContainers", &|container| {
        text_at(container, &["name"]).is_none_or(|name| !CONTAINERS.contains(&name))
    });
    retain("/spec/volumes", &|volume| !is_our_volume(volume));
    for (map, name) in [("labels", INJECTED_LABEL), ("annotations", SHAPE_ANNOTATION)] {
        let map = raw
            .pointer_mut(&format!("/metadata/{map}"))
            .and_then(Value::as_object_mut);
        if let Some(map) = map {
            map.remove(name);
        }
    }
    let mut gates = gates(pod);
    // Of several none is known to be the right one, and the pod is refused.
    if let (Some(gate), None) = (gates.next(), gates.next())
        && let Some((_, declared)) = probes::variable(gate.fields())
    {
        probes::restore(&mut raw, declared);
    }
    raw
}

/// The field of the gate that is there in which its roots are, if they are those of another day.
fn outdated_anchors(known: &Anchors, pod: Pod<'_>) -> Option<String> {
    let gate = gate(pod)?;
    let (index, text) = variable(gate.fields(), TRUST_ANCHORS_VARIABLE)?;
    let outdated = known.hold(text) && known.are_outdated(text);
    outdated.then(|| gate.field(&format!("env[{index}].value")))
}

/// What is wrong with the parts that are there: all of them must be, and be what would be injected.
pub(crate) fn denials(pod: Pod<'_>, plan: &Plan, known: &Anchors) -> Vec<Denial> {
    let parts = parts(pod, plan);
    if parts.iter().any(|part| part.found == Found::Nowhere) {
        let there = parts.into_iter().filter(|part| part.found != Found::Nowhere);
        return there.map(|part| reserved(part.field, part.name)).collect();
    }
    let outdated = outdated_anchors(known, pod);
    let differing = parts.into_iter().filter_map(|part| match part.found {
        Found::Differs(rest) => {
            let field = [part.field, rest].into_iter().filter(|text| !text.is_empty());
            let field = field.collect::<Vec<_>>().join(".");
            Some(differs(outdated.as_ref() == Some(&field), field))
        }
        Found::Equal | Found::Nowhere => None,
    });
    differing.collect()
}

fn differs(outdated: bool, field: String) -> Denial {
    let fix = "remove all parts of the gate from the pod; they are added when it is created";
    let (why, fix) = if outdated {
        let again = "if nobody wrote them there, a root was replaced a moment ago: create the pod again";
        ("the control plane's roots of another day", format!("{fix}; {again}"))
    } else {
        ("it isn't what would be injected", fix.to_owned())
    };
    Denial {
        reason: DenyReason::Tampered,
        field,
        why: why.to_owned(),
        fix,
    }
}

struct Part<'a> {
    name: &'a str,
    field: String,
    found: Found,
}

#[derive(PartialEq, Eq)]
enum Found {
    Nowhere,
    Equal,
    /// With the field in the part, if it is a part with fields.
    Differs(String),
}

/// Every part that is expected, and every further one with a name of the gate's.
fn parts<'a>(pod: Pod<'a>, plan: &'a Plan) -> Vec<Part<'a>> {
    let actual = pod.containers().filter(|container| is_named_ours(*container));
    let actual: Vec<_> = actual.map(|found| (found.field(""), found.fields())).collect();
    let mut parts = matched(plan.lockdown, &plan.containers, &actual);
    let actual = pod.volumes().filter(|(_, volume)| is_our_volume(volume));
    let actual: Vec<_> = actual
        .map(|(index, volume)| (format!("spec.volumes[{index}]"), volume))
        .collect();
    parts.extend(matched(plan.lockdown, &plan.volumes, &actual));
    for (map, name, expected, actual) in [
        ("labels", INJECTED_LABEL, INJECTED, pod.label(INJECTED_LABEL)),
        (
            "annotations",
            SHAPE_ANNOTATION,
            plan.shape,
            pod.annotation(SHAPE_ANNOTATION),
        ),
    ] {
        parts.push(Part {
            name,
            field: format!("metadata.{map}[{name}]"),
            found: match actual {
                None => Found::Nowhere,
                Some(actual) if actual == expected => Found::Equal,
                Some(_) => Found::Differs(String::new()),
            },
        });
    }
    parts
}

fn matched<'a>(lockdown: bool, expected: &'a [Value], actual: &[(String, &'a Value)]) -> Vec<Part<'a>> {
    let name = |part: &'a Value| text_at(part, &["name"]).unwrap_or_default();
    let mut parts = Vec::new();
    for expected in expected {
        let part = |field: &str, found| Part {
            name: name(expected),
            field: field.to_owned(),
            found,
        };
        let same_name: Vec<_> = actual
            .iter()
            .filter(|(_, actual)| name(actual) == name(expected))
            .collect();
        if same_name.is_empty() {
            parts.push(part("", Found::Nowhere));
        }
        for (place, (field, actual)) in same_name.into_iter().enumerate() {
            let differs = if lockdown {
                difference(&without_app_probes(expected), &without_app_probes(actual))
            } else {
                difference(expected, actual)
            };
            let differs = differs.map(Found::Differs);
            let found = if place == 0 {
                differs.unwrap_or(Found::Equal)
            } else {
                Found::Differs("name".to_owned())
            };
            parts.push(part(field, found));
        }
    }
    let unexpected = actual
        .iter()
        .filter(|(_, actual)| !expected.iter().any(|expected| name(expected) == name(actual)));
    parts.extend(unexpected.map(|(field, actual)| Part {
        name: name(actual),
        field: field.clone(),
        found: Found::Differs("name".to_owned()),
    }));
    parts
}

/// A part without the app's probes: other admission may add containers with probes after the gate, and the patch brings
/// the gate's list up to date.
fn without_app_probes(part: &Value) -> Value {
    let variable = probes::variable(part).map(|(index, _)| index);
    let mut part = part.clone();
    if let (Some(index), Some(environment)) = (variable, part.get_mut("env").and_then(Value::as_array_mut)) {
        environment.remove(index);
    }
    part
}

#[cfg(test)]
#[path = "existing_tests.rs"]
mod tests;
