//! What the unit tests of this crate share.

#[path = "../../tests/admit_settings.rs"]
mod chosen;

use crate::anchors::Anchors;
use crate::decide::{Decision, Operation, Request, User, decide};
use crate::deny::Denial;
use crate::patch::patch;
use crate::settings::Settings;
pub(crate) use chosen::{anchors, settings};
use serde_json::{Value, json};

/// Lockdown, and one runtime class that obeys it.
pub(crate) fn lockdown() -> Settings {
    chosen::lockdown(&["kata"])
}

/// A sandbox pod with one container.
pub(crate) fn sandbox() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "box", "labels": {"agents.x-k8s.io/sandbox-name-hash": "1f2e3d4c"}},
        "spec": {"containers": [{"name": "app", "image": "python:3"}]},
    })
}

/// The same with some fields merged into it (RFC 7386).
pub(crate) fn sandbox_with(fields: &Value) -> Value {
    let mut pod = sandbox();
    json_patch::merge(&mut pod, fields);
    pod
}

/// The decision about creating a pod in an ordinary namespace as an ordinary user.
pub(crate) fn decided(settings: &Settings, pod: &Value) -> Decision {
    decided_knowing(&anchors(), settings, pod)
}

/// The same of a replica that knows other roots.
pub(crate) fn decided_knowing(anchors: &Anchors, settings: &Settings, pod: &Value) -> Decision {
    let request = Request {
        pod,
        operation: Operation::Create,
        namespace: "team-a",
        user: &User::default(),
    };
    decide(settings, anchors, &request)
}

/// Why a pod is refused; nothing if it isn't.
pub(crate) fn denials(settings: &Settings, pod: &Value) -> Vec<Denial> {
    match decided(settings, pod) {
        Decision::Deny(denials) => denials.into_iter().collect(),
        Decision::Inject(_) | Decision::Skip(_) => Vec::new(),
    }
}

/// The pod as it leaves the webhook.
pub(crate) fn injected(settings: &Settings, pod: &Value) -> Value {
    let Decision::Inject(plan) = decided(settings, pod) else {
        panic!("not injected: {:?}", decided(settings, pod));
    };
    let mut pod = pod.clone();
    let patch = patch(&plan, &pod);
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}
