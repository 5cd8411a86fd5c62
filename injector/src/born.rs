//! Whether a pod that runs is one that was born with its gate. It is compared with the shape that it says it has, and with
//! what its gate was given then, as far as the operator stands by that: an upgrade, a changed setting or a changed annotation
//! cuts off no gate that is as it was injected.
//!
//! A pod's author chooses nothing of this. When a pod is created, admission compares its gate with the settings of that day
//! ([`decide`](crate::decide)), and none of it can be changed in a running pod ([`validate`](crate::validate)).

use crate::anchors::Anchors;
use crate::decide::{Trigger, plan};
use crate::existing;
use crate::names::{
    CONTAINER, IDENTITY_VOLUME, INJECT_LABEL, LOCKDOWN_CONTAINER, SANDBOX_HASH_LABEL, SHAPE_ANNOTATION,
    TENANT_ANNOTATIONS,
};
use crate::overrides::MEMORY_LIMIT;
use crate::patch::patch;
use crate::pod::{Container, Pod, items, text_at};
use crate::quantity::Memory;
use crate::settings::{IdentitySource, Image, Lockdown, LogLevel, PullPolicy, Resources, Settings};
use crate::shape::Shapes;
use sandgate_mesh::identity::WorkloadIdentity;
use sandgate_mesh::telemetry::{LONGEST_TEXT, cut};
use serde_json::Value;
use std::fmt::Display;

const ROUTER_FLAG: &str = "--router-identity=";
const CONTROL_FLAG: &str = "--control-identity=";
const TRUST_DOMAIN_FLAG: &str = "--trust-domain=";
const LOG_LEVEL_FLAG: &str = "--log-level=";

/// Why a running pod isn't one that was born with a gate of ours, or isn't any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("the pod isn't what was injected: {0}")]
    Shape(String),
    #[error(
        "the pod says that its gate is of shape {0:?}, which this release doesn't know; delete the pod, and a new one gets \
             a gate of today"
    )]
    UnknownShape(String),
    #[error(
        "the gate's image {0:?} is neither the one that is injected nor one of --accepted-sidecar-image; add it there, or \
             delete the pod, and a new one gets a gate of today"
    )]
    Image(String),
    #[error("the gate was injected with other settings: {0}; delete the pod, and a new one gets a gate of today")]
    Settings(String),
}

impl Misfit {
    /// The word for it in metrics and logs.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Shape(_) => "shape",
            Self::UnknownShape(_) => "unknown_shape",
            Self::Image(_) => "image",
            Self::Settings(_) => "settings",
        }
    }
}

/// Whether a label or an annotation with a name of ours may be changed in a running pod. It had its effect when the pod was
/// created, and counts for nothing afterwards.
pub(crate) fn may_change(name: &str) -> bool {
    name == INJECT_LABEL || TENANT_ANNOTATIONS.contains(&name)
}

/// What a running pod is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) shapes: Shapes,
    pub(crate) settings: &'a Settings,
    /// The roots that its gate may have been given.
    pub(crate) anchors: &'a Anchors,
    /// Whether its gate has shown the identity that it was given once. Then its image was looked at, and can't be changed in a
    /// running pod: it needn't be accepted any more, as it must be while pods with it are created.
    pub(crate) proven: bool,
}

/// Looks at a running pod.
///
/// # Errors
/// The first thing in which it isn't what was injected, under settings that hold.
pub(crate) fn check(terms: Terms<'_>, pod: Pod<'_>) -> Result<(), Misfit> {
    let version = pod.annotation(SHAPE_ANNOTATION).unwrap_or_default();
    let shape = terms
        .shapes
        .find(version)
        .ok_or_else(|| Misfit::UnknownShape(cut(version, LONGEST_TEXT).into_owned()))?;
    let gate = existing::gate(pod);
    let gate = gate.ok_or_else(|| Misfit::Shape(format!("it has no init container {CONTAINER}")))?;
    let image = image(terms, gate)?;
    let mut settings = as_born(terms.settings, pod, gate)?;
    settings.accepted_images.push(image);

    let raw = without_what_may_change(pod);
    let pod = Pod::read(&raw).map_err(|malformed| Misfit::Shape(format!("{} is malformed", malformed.field)))?;
    let trigger = match pod.label(SANDBOX_HASH_LABEL) {
        Some(_) => Trigger::SandboxLabel,
        None => Trigger::InjectLabel,
    };
    match plan(shape, &settings, &terms.anchors.of_any_day(), pod, trigger, Vec::new()) {
        Ok(plan) if patch(&plan, &raw).0.is_empty() => Ok(()),
        Ok(_) => Err(Misfit::Shape(
            "the gate isn't whole, or not first among the init containers".into(),
        )),
        Err(denials) => Err(Misfit::Shape(
            denials.first().map(ToString::to_string).unwrap_or_default(),
        )),
    }
}

/// Whether the gate of a running pod was given settings that hold still: who may be its router, who its control plane, and in
/// which trust domain.
///
/// # Errors
/// The first that doesn't hold.
pub(crate) fn settings_hold(settings: &Settings, pod: Pod<'_>) -> Result<(), Misfit> {
    let Some(gate) = existing::gate(pod) else {
        return Ok(());
    };
    as_born(settings, pod, gate).map(drop)
}

fn image(terms: Terms<'_>, gate: Container<'_>) -> Result<Image, Misfit> {
    let text = text_at(gate.fields(), &["image"]).unwrap_or_default();
    let image = text.parse::<Image>().ok().filter(|image| {
        let settings = terms.settings;
        terms.proven || settings.image == *image || settings.accepted_images.contains(image)
    });
    image.ok_or_else(|| Misfit::Image(cut(text, LONGEST_TEXT).into_owned()))
}

/// The settings with what the gate was given and an operator may change without cutting it off.
fn as_born(settings: &Settings, pod: Pod<'_>, gate: Container<'_>) -> Result<Settings, Misfit> {
    same(CONTROL_FLAG, &settings.control_identity, gate)?;
    same(TRUST_DOMAIN_FLAG, &settings.trust_domain, gate)?;
    let log_level: Option<LogLevel> = values(gate, LOG_LEVEL_FLAG).last().and_then(|text| text.parse().ok());
    let pull_policy = text_at(gate.fields(), &["imagePullPolicy"]);
    let pull_policy: Option<PullPolicy> = pull_policy.and_then(|text| text.parse().ok());
    Ok(Settings {
        router_identities: routers(settings, gate)?,
        log_level: log_level.unwrap_or(settings.log_level),
        image_pull_policy: pull_policy.unwrap_or(settings.image_pull_policy),
        resources: resources(settings, gate),
        identity_source: identity_source(pod),
        lockdown: lockdown(settings, pod)?,
        ..settings.clone()
    })
}

/// The values of a flag among a gate's arguments.
fn values<'a>(gate: Container<'a>, flag: &'static str) -> impl Iterator<Item = &'a str> {
    items(gate.at(&["args"])).filter_map(move |(_, argument)| argument.as_str()?.strip_prefix(flag))
}

fn other(flag: &str, value: &str, instead: impl Display) -> Misfit {
    Misfit::Settings(format!("{flag}{}, {instead}", cut(value, LONGEST_TEXT)))
}

fn same(flag: &'static str, expected: &impl ToString, gate: Container<'_>) -> Result<(), Misfit> {
    let expected = expected.to_string();
    match values(gate, flag).find(|value| *value != expected) {
        None => Ok(()),
        Some(value) => Err(other(flag, value, format_args!("where {expected} holds now"))),
    }
}

/// Who the gate takes for a router, if all of them are routers now, or were and are accepted still.
fn routers(settings: &Settings, gate: Container<'_>) -> Result<Vec<WorkloadIdentity>, Misfit> {
    let known = || {
        let accepted = &settings.accepted_router_identities;
        settings.router_identities.iter().chain(accepted)
    };
    let given = values(gate, ROUTER_FLAG).map(|value| {
        let router = known().find(|known| known.to_string() == value);
        router.cloned().ok_or_else(|| {
            other(
                ROUTER_FLAG,
                value,
                "which is none of today's, nor one of --accepted-router-identity",
            )
        })
    });
    let given = given.collect::<Result<Vec<_>, _>>()?;
    // A gate without one is no gate of ours.
    Ok(if given.is_empty() {
        settings.router_identities.clone()
    } else {
        given
    })
}

/// With the memory that the gate may use, if that is enough for one.
fn resources(settings: &Settings, gate: Container<'_>) -> Resources {
    let mut resources = settings.resources;
    let limit = text_at(gate.fields(), &["resources", "limits", "memory"]).and_then(|text| text.parse::<Memory>().ok());
    let enough = (*MEMORY_LIMIT.start()).min(resources.memory_limit);
    if let Some(limit) = limit.filter(|limit| *limit >= enough) {
        resources.memory_limit = limit;
        resources.memory_request = resources.memory_request.min(limit);
    }
    resources
}

/// Who brings the gate its identity. Whether all of its parts fit that is seen when they are compared.
pub(crate) fn identity_source(pod: Pod<'_>) -> IdentitySource {
    let mut volumes = pod.volumes();
    if volumes.any(|(_, volume)| text_at(volume, &["name"]) == Some(IDENTITY_VOLUME)) {
        IdentitySource::PodCertificates
    } else {
        IdentitySource::Enrolment
    }
}

/// Whether the pod's network was closed from within. It may be where it needn't be any more.
fn lockdown(settings: &Settings, pod: Pod<'_>) -> Result<Option<Lockdown>, Misfit> {
    let closed = pod
        .containers()
        .any(|container| existing::is_named_ours(container) && container.name() == LOCKDOWN_CONTAINER);
    match (&settings.lockdown, closed) {
        (lockdown, true) => Ok(Some(lockdown.clone().unwrap_or_else(|| {
            Lockdown {
                runtime_classes: text_at(pod.raw(), &["spec", "runtimeClassName"])
                    .map(str::to_owned)
                    .into_iter()
                    .collect(),
            }
        }))),
        (Some(_), false) => Err(Misfit::Settings("--lockdown=disabled, where enabled holds now".into())),
        (None, false) => Ok(None),
    }
}

fn without_what_may_change(pod: Pod<'_>) -> Value {
    let mut raw = pod.raw().clone();
    for map in ["/metadata/labels", "/metadata/annotations"] {
        if let Some(map) = raw.pointer_mut(map).and_then(Value::as_object_mut) {
            map.retain(|name, _| !may_change(name));
        }
    }
    raw
}

#[cfg(test)]
#[path = "born_tests.rs"]
pub(crate) mod tests;
