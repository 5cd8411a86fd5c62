//! What the admission tests share: the operator's settings, and a pod's way through decision and patch.

#[path = "admit_settings.rs"]
mod chosen;

use chosen::anchors;
pub(crate) use chosen::{lockdown, settings};
use json_patch::Patch;
use sandbox_injector::decide::{Decision, Operation, Plan, Request, User, decide};
use sandbox_injector::patch::patch;
use sandbox_injector::settings::Settings;
use serde_json::Value;

/// The decision about a pod.
pub(crate) fn decided(
    settings: &Settings,
    operation: Operation,
    namespace: &str,
    user: &User,
    pod: &Value,
) -> Decision {
    let request = Request {
        pod,
        operation,
        namespace,
        user,
    };
    decide(settings, &anchors(), &request)
}

/// A plan's patch and the pod that it makes.
pub(crate) fn applied(plan: &Plan, pod: &Value) -> (Patch, Value) {
    let patch = patch(plan, pod);
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).expect("the patch fits the pod");
    (patch, pod)
}
