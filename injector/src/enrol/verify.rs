//! Whether a gate is the gate of the pod that was dialed: decided from what the API server says about the pod, its token
//! and its Sandbox, and from nothing that the gate says about itself.

use super::evidence::Sandbox;
use super::namespaces::OptedIn;
use super::pods::Target;
use crate::anchors::Anchors;
use crate::born::{self, Misfit, Terms};
use crate::existing;
use crate::names::{
    ENABLED, INJECT_LABEL, INJECTED, INJECTED_LABEL, SANDBOX_GROUP, SANDBOX_HASH_LABEL, SANDBOX_KIND, TOKEN_AUDIENCE,
};
use crate::pod::{Pod, at, is_true, items, text_at};
use crate::settings::{IdentitySource, Settings};
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use sandgate_mesh::identity::SandboxIdentity;
use sandgate_mesh::sandbox::{Namespace, PodUid, SandboxKey, SandboxName};
use serde_json::Value;
use std::net::IpAddr;

/// The extra of a token's user with the name of the pod that the token is bound to.
const POD_NAME_EXTRA: &str = "authentication.kubernetes.io/pod-name";
/// The same with the pod's UID.
const POD_UID_EXTRA: &str = "authentication.kubernetes.io/pod-uid";
/// Phases of pods in which nothing runs any more.
const ENDED: [&str; 2] = ["Succeeded", "Failed"];

/// Why a gate, or a router, gets no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the pod isn't there any more, or is going away")]
    PodGone,
    /// Of another size or form than what is admitted.
    #[error("{0}")]
    Unreadable(&'static str),
    #[error("another pod has the name by now")]
    PodReplaced,
    #[error("the pod has ended")]
    PodEnded,
    #[error("the pod's namespace has no label {INJECT_LABEL}={ENABLED}, or is one in which nothing is injected")]
    NotOptedIn,
    #[error("the pod has no label {INJECTED_LABEL}={INJECTED}")]
    NotInjected,
    #[error("the pod doesn't have the address that was dialed")]
    OtherAddress,
    #[error("what answered says that it runs in another pod")]
    OtherPod,
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error("the API server doesn't take the token: {0}")]
    Token(String),
    #[error("the token isn't for the audience {TOKEN_AUDIENCE}")]
    TokenAudience,
    #[error("the token is of another ServiceAccount than the pod's")]
    TokenAccount,
    #[error("the token is bound to another pod, or to none")]
    TokenPod,
    #[error("the pod has label {SANDBOX_HASH_LABEL} without a Sandbox of its name that controls it")]
    NoOwner,
    #[error("the Sandbox that should control the pod isn't there, or is going away")]
    OwnerGone,
    #[error(
        "the pod has the name of a Sandbox that isn't its owner; a pod that agent-sandbox didn't make needs another name"
    )]
    NameTaken,
    #[error("the request names another ServiceAccount than the pod's")]
    RequestAccount,
    #[error("the request names another node than the pod's")]
    RequestNode,
    #[error("the pod's gate is to be given its identity by the control plane, and asks for no certificate")]
    RequestUnexpected,
    #[error("the pod isn't in the namespace of routers, or has no labels of a router")]
    NotARouter,
    #[error("the pod's ServiceAccount {0} is none of --router-identity")]
    RouterAccount(String),
}

impl Refusal {
    /// The word for it in metrics and logs.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::PodGone => "pod_gone",
            Self::Unreadable(_) => "unreadable_object",
            Self::PodReplaced => "pod_replaced",
            Self::PodEnded => "pod_ended",
            Self::NotOptedIn => "not_opted_in",
            Self::NotInjected => "not_injected",
            Self::OtherAddress => "other_address",
            Self::OtherPod => "other_pod",
            Self::Misfit(misfit) => misfit.as_str(),
            Self::Token(_) => "token",
            Self::TokenAudience => "token_audience",
            Self::TokenAccount => "token_account",
            Self::TokenPod => "token_pod",
            Self::NoOwner => "no_owner",
            Self::OwnerGone => "owner_gone",
            Self::NameTaken => "name_taken",
            Self::RequestAccount => "request_account",
            Self::RequestNode => "request_node",
            Self::RequestUnexpected => "request_unexpected",
            Self::NotARouter => "not_a_router",
            Self::RouterAccount(_) => "router_account",
        }
    }
}

/// A pod that may be the one that was dialed. What its token and its Sandbox prove is still to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    identity: SandboxIdentity,
    account: String,
    owner: Option<Owner>,
}

/// The Sandbox that a pod names as its controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    /// The version of the API group in which it is named.
    pub(super) version: String,
    uid: String,
}

/// An identity that was proven. It is made here and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verified(SandboxIdentity);

impl Verified {
    pub(super) fn identity(&self) -> &SandboxIdentity {
        &self.0
    }
}

/// The pod that was dialed, if it is the one that has its name now and isn't going away.
///
/// # Errors
/// It isn't.
pub(super) fn dialed<'a>(target: &Target, pod: Option<&'a Value>) -> Result<&'a Value, Refusal> {
    live(&target.uid, pod)
}

/// The pod of this UID, if it is the one that has its name now and isn't going away.
///
/// # Errors
/// It isn't.
pub(super) fn live<'a>(uid: &PodUid, pod: Option<&'a Value>) -> Result<&'a Value, Refusal> {
    let pod = pod.ok_or(Refusal::PodGone)?;
    if text_at(pod, &["metadata", "uid"]) != Some(uid.as_str()) {
        return Err(Refusal::PodReplaced);
    }
    if at(pod, &["metadata", "deletionTimestamp"]).is_some() {
        return Err(Refusal::PodGone);
    }
    Ok(pod)
}

/// The roots that a pod's gate was born with. They count for a gate that has proven the identity that it was once given:
/// they were looked at then, and can't be changed in a running pod, however old they are by now.
pub(super) fn born_with(pod: &Value) -> Option<Anchors> {
    let roots = existing::anchors(Pod::read(pod).ok()?)?;
    Anchors::from_pem(roots.as_bytes()).ok()
}

/// Whether the settings hold that a pod's gate was given: if not, it may know nothing of this control plane.
///
/// # Errors
/// They don't.
pub(super) fn settings_hold(settings: &Settings, pod: &Value) -> Result<(), Refusal> {
    let pod = Pod::read(pod).map_err(|malformed| Misfit::Shape(format!("{} is malformed", malformed.field)))?;
    Ok(born::settings_hold(settings, pod)?)
}

/// Whether the gate of a pod was born to be given its identity by the kubelet.
pub(super) fn has_pod_certificate(pod: &Value) -> bool {
    Pod::read(pod).is_ok_and(|pod| born::identity_source(pod) == IdentitySource::PodCertificates)
}

/// Whether a pod says that it has a gate.
pub(super) fn is_injected(pod: &Value) -> bool {
    Pod::read(pod).is_ok_and(|pod| pod.label(INJECTED_LABEL) == Some(INJECTED))
}

/// Looks at the pod that was dialed, and at what answered there says it is.
///
/// # Errors
/// The first thing that isn't as it must be.
pub(super) fn candidate(
    terms: Terms<'_>,
    target: &Target,
    claimed: &PodUid,
    pod: &Value,
) -> Result<Candidate, Refusal> {
    let raw = dialed(target, Some(pod))?;
    if *claimed != target.uid {
        return Err(Refusal::OtherPod);
    }
    let sandbox = SandboxKey {
        namespace: target.namespace.clone(),
        name: target.name.clone(),
    };
    let candidate = injected(terms, sandbox, &target.uid, raw)?;
    check_place(target, raw)?;
    Ok(candidate)
}

/// Looks at a pod that is to have a gate of ours, wherever it is.
///
/// # Errors
/// The first thing that isn't as it must be.
pub(super) fn injected(terms: Terms<'_>, sandbox: SandboxKey, uid: &PodUid, raw: &Value) -> Result<Candidate, Refusal> {
    let pod = Pod::read(raw).map_err(|malformed| Misfit::Shape(format!("{} is malformed", malformed.field)))?;
    if pod.label(INJECTED_LABEL) != Some(INJECTED) {
        return Err(Refusal::NotInjected);
    }
    check_running(raw)?;
    born::check(terms, pod)?;
    Ok(Candidate {
        account: account(raw).to_owned(),
        owner: owner(&sandbox.name, pod)?,
        identity: SandboxIdentity {
            trust_domain: terms.settings.trust_domain.clone(),
            sandbox,
            pod_uid: uid.clone(),
        },
    })
}

impl Candidate {
    /// The Sandbox that has to be there. For a pod that agent-sandbox didn't make none may have its name.
    pub(super) fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    /// The identity, if the token proves that whoever has it is in this pod, the Sandbox is there, and the namespace wants
    /// gates.
    ///
    /// # Errors
    /// The first of these that isn't so.
    pub(super) fn verify(
        self,
        token: &TokenReviewStatus,
        sandbox: Option<&Sandbox>,
        opted_in: &OptedIn,
    ) -> Result<Verified, Refusal> {
        let SandboxKey { namespace, name } = &self.identity.sandbox;
        check_token(token, &self.account, namespace, name, &self.identity.pod_uid)?;
        self.wanted(sandbox, opted_in)
    }

    /// The identity, if the kubelet of the pod's node asks for it, as the API server has seen to, and the rest is so as well.
    ///
    /// # Errors
    /// The first of these that isn't so.
    pub(super) fn verify_request(
        self,
        account: &str,
        sandbox: Option<&Sandbox>,
        opted_in: &OptedIn,
    ) -> Result<Verified, Refusal> {
        if account != self.account {
            return Err(Refusal::RequestAccount);
        }
        self.wanted(sandbox, opted_in)
    }

    fn wanted(self, sandbox: Option<&Sandbox>, opted_in: &OptedIn) -> Result<Verified, Refusal> {
        match (&self.owner, sandbox) {
            (Some(owner), found) => {
                let live = found.filter(|found| found.uid == owner.uid && !found.is_being_deleted);
                live.ok_or(Refusal::OwnerGone)?;
            }
            // Whoever asks for the Sandbox would be led to it.
            (None, Some(_)) => return Err(Refusal::NameTaken),
            (None, None) => {}
        }
        // Last: all that came before took time.
        if !opted_in.contains(&self.identity.sandbox.namespace) {
            return Err(Refusal::NotOptedIn);
        }
        Ok(Verified(self.identity))
    }
}

/// Whether the token is this ServiceAccount's and bound to this pod. An API server that knows no audiences takes any token
/// that opens its API, so the audience must come back.
pub(super) fn check_token(
    token: &TokenReviewStatus,
    account: &str,
    namespace: &Namespace,
    name: &SandboxName,
    uid: &PodUid,
) -> Result<(), Refusal> {
    if token.authenticated != Some(true) {
        return Err(Refusal::Token(token.error.clone().unwrap_or_default()));
    }
    let audiences = token.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(Refusal::TokenAudience);
    }
    let user = token.user.clone().unwrap_or_default();
    let account = format!("system:serviceaccount:{namespace}:{account}");
    if user.username.as_deref() != Some(account.as_str()) {
        return Err(Refusal::TokenAccount);
    }
    let extra = user.extra.unwrap_or_default();
    let is = |key: &str, value: &str| extra.get(key).is_some_and(|values| *values == [value]);
    if is(POD_NAME_EXTRA, name.as_str()) && is(POD_UID_EXTRA, uid.as_str()) {
        Ok(())
    } else {
        Err(Refusal::TokenPod)
    }
}

/// Whether the pod still runs, at the address that was dialed.
pub(super) fn check_place(target: &Target, pod: &Value) -> Result<(), Refusal> {
    check_running(pod)?;
    let found = addresses(pod).any(|address| address == target.ip);
    found.then_some(()).ok_or(Refusal::OtherAddress)
}

fn check_running(pod: &Value) -> Result<(), Refusal> {
    let ended = text_at(pod, &["status", "phase"]).is_some_and(|phase| ENDED.contains(&phase));
    (!ended).then_some(()).ok_or(Refusal::PodEnded)
}

/// The ServiceAccount of a stored pod.
pub(super) fn account(pod: &Value) -> &str {
    text_at(pod, &["spec", "serviceAccountName"]).unwrap_or("default")
}

/// Every address of a pod.
fn addresses(pod: &Value) -> impl Iterator<Item = IpAddr> {
    let further = items(at(pod, &["status", "podIPs"])).filter_map(|(_, entry)| text_at(entry, &["ip"]));
    let all = text_at(pod, &["status", "podIP"]).into_iter().chain(further);
    all.filter_map(|address| address.parse().ok())
}

/// The Sandbox of its own name that a pod of agent-sandbox has as its controller. A forged label steals nobody's name.
fn owner(name: &SandboxName, pod: Pod<'_>) -> Result<Option<Owner>, Refusal> {
    if pod.label(SANDBOX_HASH_LABEL).is_none() {
        return Ok(None);
    }
    let mut owners = items(pod.at(&["metadata", "ownerReferences"])).map(|(_, owner)| owner);
    let owner = owners.find(|owner| is_true(owner, &["controller"]));
    let owner = owner.ok_or(Refusal::NoOwner)?;
    let text = |field: &str| text_at(owner, &[field]).unwrap_or_default();
    let version = text("apiVersion")
        .strip_prefix(SANDBOX_GROUP)
        .and_then(|rest| rest.strip_prefix('/'));
    match version {
        // It becomes part of a path.
        Some(version)
            if text("kind") == SANDBOX_KIND
                && text("name") == name.as_str()
                && (1..=16).contains(&version.len())
                && version
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) =>
        {
            Ok(Some(Owner {
                version: version.to_owned(),
                uid: text("uid").to_owned(),
            }))
        }
        _ => Err(Refusal::NoOwner),
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
