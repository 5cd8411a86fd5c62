//! Where the pods are in a file's objects: pods themselves, and the templates that controllers make pods of.

use crate::names::SANDBOX_HASH_LABEL;
use crate::pod::{at, items, text_at};
use serde_json::{Map, Value, json};

/// A pod in a document, or one that a controller would make of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The kind of the object that holds it.
    pub kind: String,
    /// The object's namespace, where it names one.
    pub namespace: Option<String>,
    /// The object's name, or how it is made.
    pub name: String,
    /// Where the object is in its document; not empty in lists.
    pub object: Vec<String>,
    /// Where the pod is in the object; empty for the object itself.
    pub template: &'static [&'static str],
    /// The pod as it would come to admission.
    pub pod: Value,
}

impl Found {
    /// A field of the pod, as a field of its object.
    pub fn field(&self, field: &str) -> String {
        if self.template.is_empty() {
            field.to_owned()
        } else {
            format!("{}.{field}", self.template.join("."))
        }
    }

    /// The pod, or its template, in the document.
    pub fn place<'a>(&self, document: &'a mut Value) -> Option<&'a mut Value> {
        let mut path = self
            .object
            .iter()
            .map(String::as_str)
            .chain(self.template.iter().copied());
        path.try_fold(document, |value, step| match value {
            Value::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
            value => value.get_mut(step),
        })
    }
}

/// How a controller names and labels the pods that it makes of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    /// The object is a pod.
    Nobody,
    /// Its name and more.
    Controller,
    /// Its name, and the label of every sandbox.
    Sandbox,
    /// A name that isn't known yet, and the label of every sandbox.
    SandboxTemplate,
}

/// Where an object of a kind holds a pod; `None` if it holds none.
fn template_of(group: &str, kind: &str) -> Option<(&'static [&'static str], Maker)> {
    Some(match (group, kind) {
        ("", "Pod") => (&[], Maker::Nobody),
        ("", "PodTemplate") => (&["template"], Maker::Controller),
        ("", "ReplicationController")
        | ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("batch", "Job") => (&["spec", "template"], Maker::Controller),
        ("batch", "CronJob") => (&["spec", "jobTemplate", "spec", "template"], Maker::Controller),
        ("agents.x-k8s.io", "Sandbox") => (&["spec", "podTemplate"], Maker::Sandbox),
        ("extensions.agents.x-k8s.io", "SandboxTemplate") => (&["spec", "podTemplate"], Maker::SandboxTemplate),
        _ => return None,
    })
}

/// Every pod in a document. What holds none is named in the notes.
pub fn pods(document: &Value, notes: &mut Vec<String>) -> Vec<Found> {
    let mut found = Vec::new();
    search(document, &mut Vec::new(), &mut found, notes);
    found
}

fn search(object: &Value, place: &mut Vec<String>, found: &mut Vec<Found>, notes: &mut Vec<String>) {
    let (kind, version) = match (text_at(object, &["kind"]), text_at(object, &["apiVersion"])) {
        (Some(kind), Some(version)) => (kind, version),
        (kind, version) => {
            notes.push(no_object(kind, version, &name_of(object)));
            return;
        }
    };
    if kind.ends_with("List") && object.get("items").is_some_and(Value::is_array) {
        for (index, item) in items(object.get("items")) {
            place.extend(["items".to_owned(), index.to_string()]);
            search(item, place, found, notes);
            place.truncate(place.len().saturating_sub(2));
        }
        return;
    }
    let name = name_of(object);
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let Some((template, maker)) = template_of(group, kind) else {
        notes.push(format!("{kind} {name}: {}, passed through", without_pod(group, kind)));
        return;
    };
    let Some(pod) = at(object, template) else {
        notes.push(format!("{kind} {name}: has no {}, passed through", template.join(".")));
        return;
    };
    found.push(Found {
        kind: kind.to_owned(),
        namespace: text_at(object, &["metadata", "namespace"]).map(str::to_owned),
        pod: as_made(pod, maker, &name),
        name,
        object: place.clone(),
        template,
    });
}

fn no_object(kind: Option<&str>, version: Option<&str>, name: &str) -> String {
    match (kind, version) {
        (Some(kind), _) => format!("{kind} {name}: without apiVersion it is no Kubernetes object: passed through"),
        (None, Some(_)) => "a document without kind is no Kubernetes object: passed through".to_owned(),
        (None, None) => "a document without kind and apiVersion is no Kubernetes object: passed through".to_owned(),
    }
}

fn without_pod(group: &str, kind: &str) -> &'static str {
    match (group, kind) {
        ("extensions.agents.x-k8s.io", "SandboxClaim" | "SandboxWarmPool") => {
            "its pods come from a SandboxTemplate, which is the object to look at"
        }
        _ => "not known to hold a pod",
    }
}

fn name_of(object: &Value) -> String {
    let generated = || text_at(object, &["metadata", "generateName"]).map(|prefix| format!("{prefix}*"));
    let name = text_at(object, &["metadata", "name"]).map(str::to_owned);
    name.or_else(generated).unwrap_or_default()
}

/// The pod that a controller makes of a template, as far as the decision depends on it.
fn as_made(template: &Value, maker: Maker, name: &str) -> Value {
    let mut pod = template.clone();
    let made = match maker {
        Maker::Nobody => return pod,
        Maker::Controller => json!({"generateName": format!("{name}-")}),
        Maker::Sandbox => json!({"name": name}),
        Maker::SandboxTemplate => json!({}),
    };
    let Some(fields) = pod.as_object_mut() else { return pod };
    let metadata = fields.entry("metadata").or_insert(Value::Null);
    if metadata.is_null() {
        *metadata = Map::new().into();
    }
    let (Some(metadata), Value::Object(made)) = (metadata.as_object_mut(), made) else {
        return pod;
    };
    metadata.extend(made);
    if matches!(maker, Maker::Sandbox | Maker::SandboxTemplate) {
        let labels = metadata.entry("labels").or_insert(Value::Null);
        if labels.is_null() {
            *labels = Map::new().into();
        }
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(SANDBOX_HASH_LABEL.to_owned(), "set-by-the-controller".into());
        }
    }
    pod
}
