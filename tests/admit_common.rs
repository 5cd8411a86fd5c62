//! What the admission tests share: the operator's settings, and a pod's way through decision and patch.

use json_patch::Patch;
use sandbox_injector::decide::{Decision, Operation, Plan, Request, User, decide};
use sandbox_injector::patch::patch;
use sandbox_injector::settings::{Lockdown, LogLevel, PullPolicy, Resources, Settings};
use serde_json::Value;

/// The settings of a chart that nobody changed.
pub(crate) fn settings() -> Settings {
    Settings {
        own_namespace: "agent-sandbox-system".parse().unwrap(),
        image: "sandgate/sidecar:1".parse().unwrap(),
        image_pull_policy: PullPolicy::IfNotPresent,
        resources: Resources::default(),
        log_level: LogLevel::Info,
        router_identities: vec![
            "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router"
                .parse()
                .unwrap(),
        ],
        trust_domain: "cluster.local".parse().unwrap(),
        allow_opt_out: false,
        lockdown: None,
    }
}

/// The same with lockdown, for these runtime classes.
pub(crate) fn lockdown(runtime_classes: &[&str]) -> Settings {
    Settings {
        lockdown: Some(Lockdown {
            runtime_classes: runtime_classes.iter().map(ToString::to_string).collect(),
        }),
        ..settings()
    }
}

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
        dry_run: false,
    };
    decide(settings, &request)
}

/// A plan's patch and the pod that it makes.
pub(crate) fn applied(plan: &Plan, pod: &Value) -> (Patch, Value) {
    let patch = patch(plan, pod);
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).expect("the patch fits the pod");
    (patch, pod)
}
