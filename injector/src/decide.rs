//! Inject, skip or refuse: decided from the operator's settings, the roots of the day and the request alone.

use crate::anchors::Anchors;
use crate::deny::own::reserved;
use crate::deny::{self, Denials};
use crate::existing;
use crate::names::{
    DISABLED, ENABLED, INJECT_LABEL, INJECTED_LABEL, MIRROR_ANNOTATION, NODES_GROUP, SANDBOX_HASH_LABEL,
    SHAPE_ANNOTATION,
};
use crate::overrides::Overrides;
use crate::pod::Pod;
use crate::probes;
use crate::settings::Settings;
use crate::shape::{SHAPES, Shape};
use sandgate_mesh::probe::model::Declaration;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

/// What the API server is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// Make an object.
    Create,
    /// Change one.
    Update,
    /// Remove one.
    Delete,
    /// Open a connection to one.
    Connect,
}

/// Who asks the API server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct User {
    /// The name.
    #[serde(default)]
    pub username: String,
    /// The groups.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// A pod at admission.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The pod as the API server sent it.
    pub pod: &'a Value,
    /// What is about to happen to it.
    pub operation: Operation,
    /// The namespace of the request: the pod itself may not name it yet.
    pub namespace: &'a str,
    /// Who asks.
    pub user: &'a User,
}

/// What happens to a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It gets a gate, or has the right one already.
    Inject(Plan),
    /// It is let through as it is.
    Skip(SkipReason),
    /// It isn't let through.
    Deny(Denials),
}

impl Decision {
    /// `inject`, `skip` or `deny`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Inject(_) => "inject",
            Self::Skip(_) => "skip",
            Self::Deny(_) => "deny",
        }
    }

    /// The word for the reason in metrics and logs; of several denials the first.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Inject(plan) => plan.trigger.as_str(),
            Self::Skip(reason) => reason.as_str(),
            Self::Deny(denials) => denials.reason().as_str(),
        }
    }
}

/// Why a pod is let through as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// Only pods that are being created get a gate.
    NotCreated,
    /// The namespace never gets gates.
    ExcludedNamespace,
    /// A kubelet shows a pod of its own.
    MirrorPod,
    /// Nothing says that it is a sandbox.
    NotSelected,
    /// Its label opts out, and the operator allows that.
    OptedOut,
}

impl SkipReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [
        Self::NotCreated,
        Self::ExcludedNamespace,
        Self::MirrorPod,
        Self::NotSelected,
        Self::OptedOut,
    ];

    /// The word for it in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotCreated => "not_created",
            Self::ExcludedNamespace => "excluded_namespace",
            Self::MirrorPod => "mirror_pod",
            Self::NotSelected => "not_selected",
            Self::OptedOut => "opted_out",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCreated => f.write_str("only pods that are being created get a gate"),
            Self::ExcludedNamespace => f.write_str("this namespace never gets gates, whatever it is labelled"),
            Self::MirrorPod => f.write_str("a kubelet's mirror pod runs from a file of its node"),
            Self::NotSelected => write!(
                f,
                "it has neither label {SANDBOX_HASH_LABEL} nor {INJECT_LABEL}={ENABLED}"
            ),
            Self::OptedOut => write!(f, "it has label {INJECT_LABEL}={DISABLED}, which the operator allows"),
        }
    }
}

/// What makes a pod a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The label that agent-sandbox sets.
    SandboxLabel,
    /// The pod's own label.
    InjectLabel,
}

impl Trigger {
    /// The word for it in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SandboxLabel => "sandbox_label",
            Self::InjectLabel => "inject_label",
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SandboxLabel => write!(f, "it has label {SANDBOX_HASH_LABEL}"),
            Self::InjectLabel => write!(f, "it has label {INJECT_LABEL}={ENABLED}"),
        }
    }
}

/// What the pod holds in the end.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Why it gets a gate.
    pub trigger: Trigger,
    /// The version of what the gate consists of.
    pub shape: &'static str,
    /// The gate's containers, in the order in which they come first.
    pub containers: Vec<Value>,
    /// The gate's volumes.
    pub volumes: Vec<Value>,
    /// Whether the app's probes go to the gate and its containers lose `NET_RAW`.
    pub lockdown: bool,
    /// What the pod's author should know.
    pub warnings: Vec<String>,
}

/// Decides about one pod. A gate is given these roots.
pub fn decide(settings: &Settings, anchors: &Anchors, request: &Request<'_>) -> Decision {
    decide_as(SHAPES.current(), settings, anchors, request)
}

/// The same of a release whose gates have that shape.
pub(crate) fn decide_as(shape: &Shape, settings: &Settings, anchors: &Anchors, request: &Request<'_>) -> Decision {
    if request.operation != Operation::Create {
        return Decision::Skip(SkipReason::NotCreated);
    }
    if settings.excludes(request.namespace) {
        return Decision::Skip(SkipReason::ExcludedNamespace);
    }
    let pod = match Pod::read(request.pod) {
        Ok(pod) => pod,
        Err(malformed) => return Decision::Deny(malformed.into()),
    };
    // Anybody can write the annotation; only kubelets are in the group.
    let by_kubelet = request.user.groups.iter().any(|group| group == NODES_GROUP);
    if by_kubelet && pod.annotation(MIRROR_ANNOTATION).is_some() {
        return Decision::Skip(SkipReason::MirrorPod);
    }
    let opts_out = pod.label(INJECT_LABEL) == Some(DISABLED);
    if opts_out && settings.allow_opt_out {
        return ungated(pod, SkipReason::OptedOut);
    }
    let trigger = match pod.label(INJECT_LABEL) {
        _ if pod.label(SANDBOX_HASH_LABEL).is_some() => Trigger::SandboxLabel,
        None | Some(DISABLED) => return ungated(pod, SkipReason::NotSelected),
        // Any other value is refused by the checks: whoever wrote it may have meant yes.
        Some(_) => Trigger::InjectLabel,
    };
    let mut warnings = Vec::new();
    if opts_out {
        warnings.push(format!(
            "label {INJECT_LABEL}={DISABLED} has no effect here: the operator doesn't allow opting out"
        ));
    }
    plan(shape, settings, anchors, pod, trigger, warnings).map_or_else(Decision::Deny, Decision::Inject)
}

/// A pod that gets no gate. It still can't say that it has one: that is believed of running pods.
fn ungated(pod: Pod<'_>, reason: SkipReason) -> Decision {
    let claims = [
        ("labels", INJECTED_LABEL, pod.label(INJECTED_LABEL)),
        ("annotations", SHAPE_ANNOTATION, pod.annotation(SHAPE_ANNOTATION)),
    ];
    let claims = claims.into_iter().filter(|(_, _, value)| value.is_some());
    let denials = claims.map(|(map, name, _)| reserved(format!("metadata.{map}[{name}]"), name));
    Denials::of(denials.collect()).map_or(Decision::Skip(reason), Decision::Deny)
}

/// What a pod consists of in the end, if there is nothing that it couldn't be admitted with.
pub(crate) fn plan(
    shape: &Shape,
    settings: &Settings,
    anchors: &Anchors,
    pod: Pod<'_>,
    trigger: Trigger,
    warnings: Vec<String>,
) -> Result<Plan, Denials> {
    let holds_parts = existing::any(pod);
    let original = if holds_parts {
        Cow::Owned(existing::without(pod))
    } else {
        Cow::Borrowed(pod.raw())
    };
    let original = Pod::read(&original)?;
    let mut denials = deny::denials(settings, original);
    let (overrides, app_probes) = match (Overrides::read(settings, original), app_probes(settings, original)) {
        (Ok(overrides), Ok(app_probes)) => (overrides, app_probes),
        (Err(found), Ok(_)) | (Ok(_), Err(found)) => return Err(found.after(denials)),
        (Err(found), Err(more)) => return Err(more.after(found.after(denials))),
    };
    let image = existing::accepted_image(settings, pod).unwrap_or(&settings.image);
    let roots = existing::accepted_anchors(anchors, pod).unwrap_or(anchors.as_pem());
    let plan = Plan {
        trigger,
        shape: shape.version,
        containers: (shape.containers)(settings, image, roots, &overrides, &app_probes),
        volumes: (shape.volumes)(settings),
        lockdown: settings.lockdown.is_some(),
        warnings,
    };
    if holds_parts {
        denials.extend(existing::denials(pod, &plan, anchors));
    }
    Denials::of(denials).map_or(Ok(plan), Err)
}

/// The probes that the gate has to run; none without lockdown.
fn app_probes(settings: &Settings, pod: Pod<'_>) -> Result<Vec<Declaration>, Denials> {
    match settings.lockdown {
        Some(_) => probes::declared(pod),
        None => Ok(Vec::new()),
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
