//! The validating webhook's decision, pure: whether a pod came out of admission with its gate, and whether a request
//! would change a gate or get into it.
//!
//! On Kubernetes 1.29, which has no `ValidatingAdmissionPolicy`, nothing else has the last word; elsewhere it stands
//! beside the policy.

use crate::anchors::Anchors;
use crate::born::may_change;
use crate::decide::{Decision, Operation, User, decide};
use crate::deny::{self, Denial, Denials, DenyReason};
use crate::existing;
use crate::names::{
    CONTAINERS, LOCKDOWN_CONTAINER, NODE_USER_PREFIX, NODES_GROUP, OWN_PREFIX, SANDBOX_HASH_LABEL, TOKEN_AUDIENCE,
    VOLUMES,
};
use crate::patch::{NET_RAW, drops_net_raw, patch};
use crate::pod::{Malformed, Pod, at, is_true, items, members, text_at};
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
            let verdict = changed(old, new).or_else(|| moved(&review.user_info, old, new));
            Ok(verdict.unwrap_or(Verdict::Allow("gate_unchanged")))
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
        (true, "serviceaccounts", "token", Operation::Create) => Ok(token(review)),
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

/// Refuses a change of anything that is the gate's, and of whose sandbox the pod is. Everything else is none of our business:
/// whatever the pod was admitted as, its labels, owners and finalizers must stay free to change. A pod that is being deleted is guarded like
/// any other: its author chooses how long that takes, and nothing that deletion needs is the gate's.
fn changed(old: Pod<'_>, new: Pod<'_>) -> Option<Verdict> {
    let (before, after) = (guarded(old), guarded(new));
    let fields = before.keys().chain(after.keys());
    let field = fields.into_iter().find(|field| before.get(*field) != after.get(*field));
    let Some(field) = field else {
        return adopted(old, new).or_else(|| limited(old, new));
    };
    Some(Verdict::deny(
        "gate_changed",
        format!(
            "{field}: it is the gate's and can't be changed in a running pod; delete the pod, and a new one gets its gate anew"
        ),
    ))
}

/// Refuses to make a pod with a gate another Sandbox's, or no Sandbox's pod a Sandbox's. agent-sandbox writes label and
/// controller when it creates the pod, and neither when a claim adopts it.
fn adopted(old: Pod<'_>, new: Pod<'_>) -> Option<Verdict> {
    if !existing::any(old) {
        return None;
    }
    if old.label(SANDBOX_HASH_LABEL) != new.label(SANDBOX_HASH_LABEL) {
        return Some(Verdict::deny(
            "owner_changed",
            format!(
                "metadata.labels[{SANDBOX_HASH_LABEL}]: it says whose sandbox the pod is and can't be changed in a pod with a \
                 gate; delete the pod, and its Sandbox gets a new one"
            ),
        ));
    }
    let before = controller(old);
    // The garbage collector may take it away.
    (controller(new).is_some_and(|after| before != Some(after))).then(|| {
        Verdict::deny(
            "owner_changed",
            "metadata.ownerReferences: a pod with a gate gets no other controller than the one that it was created with; delete \
             the pod, and its controller makes a new one",
        )
    })
}

/// The API group, kind, name and UID of a pod's controller.
fn controller(pod: Pod<'_>) -> Option<[&str; 4]> {
    let owners = items(pod.at(&["metadata", "ownerReferences"])).map(|(_, owner)| owner);
    let owner = owners.into_iter().find(|owner| is_true(owner, &["controller"]))?;
    let text = |name: &str| text_at(owner, &[name]).unwrap_or_default();
    let version = text("apiVersion");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    Some([group, text("kind"), text("name"), text("uid")])
}

/// Refuses to say that a pod of agent-sandbox is at another address: requests for the sandbox would be sent there.
fn moved(user: &User, old: Pod<'_>, new: Pod<'_>) -> Option<Verdict> {
    let addresses = |pod: Pod<'_>| ["podIP", "podIPs"].map(|name| pod.at(&["status", name]).cloned());
    let is_sandbox = [old, new].iter().any(|pod| pod.label(SANDBOX_HASH_LABEL).is_some());
    (is_sandbox && !is_kubelet(user) && addresses(old) != addresses(new)).then(|| {
        Verdict::deny(
            "address_changed",
            "status.podIP, status.podIPs: requests for the sandbox are sent there, so only kubelets change them; leave them as \
             they are",
        )
    })
}

/// A token for the gate's audience that is bound to a pod makes its holder that pod's gate.
fn token(review: &Review) -> Verdict {
    let audiences = review
        .object
        .as_ref()
        .and_then(|request| at(request, &["spec", "audiences"]));
    let for_gates = items(audiences).any(|(_, audience)| audience.as_str() == Some(TOKEN_AUDIENCE));
    if !for_gates || is_kubelet(&review.user_info) {
        return Verdict::Allow("token");
    }
    Verdict::deny(
        "gate_token",
        format!(
            "spec.audiences: a token for {TOKEN_AUDIENCE} makes its holder the gate of a pod, so only kubelets get one; choose \
             another audience"
        ),
    )
}

/// API servers let nobody else have both, unless somebody may impersonate it.
fn is_kubelet(user: &User) -> bool {
    user.username.starts_with(NODE_USER_PREFIX) && user.groups.iter().any(|group| group == NODES_GROUP)
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
        let is_ours = |name: &&String| name.starts_with(OWN_PREFIX) || *name == SANDBOX_HASH_LABEL;
        let ours = names.map(|(name, _)| name).find(is_ours)?;
        Some(format!("metadata.{map}[{ours}]"))
    };
    ours("labels")
        .or_else(|| ours("annotations"))
        .map_or(Verdict::Allow("gate_unchanged"), |field| {
            let message =
                format!("{field}: it says whose the pod is, and the binding would change it in the pod; remove it");
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
        for (name, value) in pod
            .texts(map)
            .filter(|(name, _)| name.starts_with(OWN_PREFIX) && !may_change(name))
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
