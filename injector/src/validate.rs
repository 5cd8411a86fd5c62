//! The validating webhook's decision, pure: whether a pod came out of admission with its gate, and whether a request
//! would change a gate or get into it.
//!
//! On Kubernetes 1.29, which has no `ValidatingAdmissionPolicy`, nothing else has the last word; elsewhere it stands
//! beside the policy.

use crate::anchors::Anchors;
use crate::decide::{Decision, Operation, decide};
use crate::deny::{self, Denial, Denials, DenyReason};
use crate::existing;
use crate::names::{CONTAINERS, INJECT_LABEL, LOCKDOWN_CONTAINER, OWN_PREFIX, TENANT_ANNOTATIONS, VOLUMES};
use crate::patch::{NET_RAW, drops_net_raw, patch};
use crate::pod::{Malformed, Pod, at, items, members, text_at};
use crate::review::{Review, ReviewError, message};
use crate::settings::Settings;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

/// What the validating webhook says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may happen, for this reason.
    Allow(&'static str),
    /// It may not.
    Deny {
        /// The word for the reason in metrics and logs.
        reason: &'static str,
        /// What to tell whoever asked.
        message: String,
    },
}

impl Verdict {
    fn deny(reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Deny { reason, message }
    }

    fn denials(denials: &Denials) -> Self {
        Self::deny(denials.reason().as_str(), message(denials))
    }
}

/// Judges one request. With `restrict_connect`, nobody gets into a pod of an opted-in namespace past its gate. Without
/// `anchors`, no new pod can be judged; nothing of a running one depends on them.
///
/// # Errors
/// A request that the webhook's rules shouldn't send here, or one that can't be judged yet.
pub fn validate(
    settings: &Settings,
    anchors: Option<&Anchors>,
    restrict_connect: bool,
    review: &Review,
) -> Result<Verdict, ReviewError> {
    let namespace = review.namespace.as_str();
    if settings.excludes(namespace) {
        return Ok(Verdict::Allow("excluded_namespace"));
    }
    let core = review.resource.group.is_empty();
    let (resource, sub_resource) = (review.resource.resource.as_str(), review.sub_resource.as_str());
    match (core, resource, sub_resource, review.operation) {
        (true, "pods", "", Operation::Create) => created(settings, anchors.ok_or(ReviewError::NoRoots)?, review),
        // Through its status a pod's labels and annotations can be changed too.
        (true, "pods", "" | "resize" | "status", Operation::Update) => {
            let (old, new) = pods(review)?;
            Ok(changed(old, new).unwrap_or(Verdict::Allow("gate_unchanged")))
        }
        (true, "pods", "ephemeralcontainers", Operation::Update) => {
            let (old, new) = pods(review)?;
            let verdict = match changed(old, new) {
                None => debugged(settings, old, new)?,
                changed => changed,
            };
            Ok(verdict.unwrap_or(Verdict::Allow("gate_unchanged")))
        }
        (true, "pods", "binding", Operation::Create) | (true, "bindings", "", Operation::Create) => Ok(bound(review)),
        (true, "pods", "exec" | "attach" | "portforward" | "proxy", Operation::Connect)
        | (true, "services", "proxy", Operation::Connect) => Ok(connected(restrict_connect, review)),
        _ => Err(ReviewError::NotAPod(format!("{resource:.64}/{sub_resource:.64}"))),
    }
}

/// A pod at the end of admission, with the API server's defaults and everybody's changes.
fn created(settings: &Settings, anchors: &Anchors, review: &Review) -> Result<Verdict, ReviewError> {
    let request = review.pod()?;
    Ok(match decide(settings, anchors, &request) {
        Decision::Skip(reason) => Verdict::Allow(reason.as_str()),
        Decision::Deny(denials) => Verdict::denials(&denials),
        Decision::Inject(plan) if patch(&plan, request.pod).0.is_empty() => Verdict::Allow("gate_present"),
        Decision::Inject(_) => Verdict::deny(
            "gate_missing",
            "this pod must have a gate, and has none or not the whole of it, first among its init containers: the mutating \
             webhook inject.sandgate.dev wasn't called, or another webhook changed the pod after it; look at the order \
             and the reinvocationPolicy of mutating webhooks",
        ),
    })
}

/// The pod before and after a change.
fn pods(review: &Review) -> Result<(Pod<'_>, Pod<'_>), ReviewError> {
    Ok((pod(review.old_object.as_ref())?, pod(review.object.as_ref())?))
}

fn pod(object: Option<&Value>) -> Result<Pod<'_>, ReviewError> {
    let wrong =
        |malformed: Malformed| ReviewError::NotAReview(format!("{} must be {}", malformed.field, malformed.expected));
    Pod::read(object.ok_or(ReviewError::NoObject)?).map_err(wrong)
}

/// Refuses a change of anything that is the gate's. Everything else is none of our business: whatever the pod was
/// admitted as, its labels, owners and finalizers must stay free to change. A pod that is being deleted is guarded like
/// any other: its author chooses how long that takes, and nothing that deletion needs is the gate's.
fn changed(old: Pod<'_>, new: Pod<'_>) -> Option<Verdict> {
    let (before, after) = (guarded(old), guarded(new));
    let fields = before.keys().chain(after.keys());
    let field = fields.into_iter().find(|field| before.get(*field) != after.get(*field));
    let Some(field) = field else {
        return limited(old, new);
    };
    Some(Verdict::deny(
        "gate_changed",
        format!(
            "{field}: it is the gate's and can't be changed in a running pod; delete the pod, and a new one gets its gate anew"
        ),
    ))
}

/// Refuses limits of the whole pod that a resize gives a pod with a gate.
fn limited(old: Pod<'_>, new: Pod<'_>) -> Option<Verdict> {
    let limits = |pod: Pod<'_>| pod.at(&["spec", "resources", "limits"]).cloned();
    if !existing::any(old) || limits(old) == limits(new) {
        return None;
    }
    let denials = Denials::of(deny::own::pod_limits(new).collect())?;
    Some(Verdict::denials(&denials))
}

/// A pod gets the labels and annotations of the binding that puts it on a node.
fn bound(review: &Review) -> Verdict {
    let ours = |map: &str| {
        let names = members(
            review
                .object
                .as_ref()
                .and_then(|binding| at(binding, &["metadata", map])),
        );
        let ours = names.map(|(name, _)| name).find(|name| name.starts_with(OWN_PREFIX))?;
        Some(format!("metadata.{map}[{ours}]"))
    };
    ours("labels")
        .or_else(|| ours("annotations"))
        .map_or(Verdict::Allow("gate_unchanged"), |field| {
            let message = format!("{field}: it is the gate's, and the binding would change it in the pod; remove it");
            Verdict::deny("gate_changed", message)
        })
}

/// Everything in a pod that is the gate's, by its field.
fn guarded(pod: Pod<'_>) -> BTreeMap<String, Value> {
    let mut guarded = BTreeMap::new();
    for container in pod.containers().filter(|container| is_gate(container.name())) {
        let field = format!("spec.{}[{}]", container.list.name(), container.name());
        guarded.insert(field, container.fields().clone());
    }
    for (_, volume) in pod.volumes() {
        if let Some(name) = text_at(volume, &["name"]).filter(|name| VOLUMES.contains(name)) {
            guarded.insert(format!("spec.volumes[{name}]"), volume.clone());
        }
    }
    for map in ["labels", "annotations"] {
        // What a pod's author may write has had its effect when the pod was created.
        let free = |name: &str| name == INJECT_LABEL || TENANT_ANNOTATIONS.contains(&name);
        for (name, value) in pod
            .texts(map)
            .filter(|(name, _)| name.starts_with(OWN_PREFIX) && !free(name))
        {
            guarded.insert(format!("metadata.{map}[{name}]"), value.into());
        }
    }
    guarded
}

fn is_gate(container: &str) -> bool {
    CONTAINERS.contains(&container)
}

/// Judges the ephemeral containers that are added to a pod with a gate as if the pod were created with them.
fn debugged(settings: &Settings, old: Pod<'_>, new: Pod<'_>) -> Result<Option<Verdict>, ReviewError> {
    if !existing::any(old) {
        return Ok(None);
    }
    let known: HashSet<_> = items(old.at(&["spec", "ephemeralContainers"]))
        .filter_map(|(_, known)| text_at(known, &["name"]))
        .collect();
    // Those that were there are left out, and leave their places.
    let added = items(new.at(&["spec", "ephemeralContainers"])).map(|(_, container)| {
        if text_at(container, &["name"]).is_some_and(|name| known.contains(name)) {
            json!({"name": ""})
        } else {
            container.clone()
        }
    });
    let added = json!({"spec": {"ephemeralContainers": added.collect::<Vec<_>>()}});
    let added = pod(Some(&added))?;
    let mut denials = deny::denials(settings, added);
    if old.containers().any(|container| container.name() == LOCKDOWN_CONTAINER) {
        denials.extend(packet_sockets(added));
    }
    Ok(Denials::of(denials).map(|denials| Verdict::denials(&denials)))
}

/// Containers that could go around the rules of a locked-down network. The mutating webhook takes the capability away
/// from containers that a pod is created with; it isn't called for these.
fn packet_sockets(pod: Pod<'_>) -> impl Iterator<Item = Denial> {
    pod.containers()
        .filter(|container| !container.name().is_empty() && !drops_net_raw(*container))
        .map(|container| Denial {
            reason: DenyReason::Capability,
            field: container.field("securityContext.capabilities.drop"),
            why: format!("with {NET_RAW} it could go around the pod's closed network"),
            fix: format!("drop {NET_RAW} or ALL (kubectl debug --profile=restricted does)"),
        })
}

/// A connection that the kubelet makes into a pod, whatever the pod's network lets in.
fn connected(restrict_connect: bool, review: &Review) -> Verdict {
    let kind = match review.sub_resource.as_str() {
        sub_resource if review.resource.resource == "pods" => sub_resource.to_owned(),
        sub_resource => format!("{} {sub_resource}", review.resource.resource),
    };
    let container = review
        .object
        .as_ref()
        .and_then(|options| text_at(options, &["container"]))
        .unwrap_or_default();
    if is_gate(container) {
        return Verdict::deny(
            "connect_gate",
            format!(
                "{kind}: nobody gets into the gate's container; its log says what it does (kubectl logs -c {container})"
            ),
        );
    }
    if restrict_connect {
        return Verdict::deny(
            "connect_restricted",
            format!(
                "{kind} leads past the gate and is closed in this namespace (--restrict-connect); call the sandbox through the router"
            ),
        );
    }
    Verdict::Allow("connect")
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
