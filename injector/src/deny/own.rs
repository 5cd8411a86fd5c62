//! What is the gate's: names, user, volumes, credentials, ports, memory.

use super::kernel::contexts;
use super::{Denial, DenyReason, shown};
use crate::names::{
    CONTAINERS, DISABLED, ENABLED, HEALTH_PORT_NAME, INJECT_LABEL, MESH_PORT_NAME, OWN_PREFIX, TENANT_ANNOTATIONS,
    TOKEN_AUDIENCE, UID, VOLUMES,
};
use crate::pod::{Container, Pod, at, is_true, items, text_at};
use crate::probes::{HANDLER_PLACES, joined};
use crate::settings::Settings;
use sandgate_mesh::contract::{HEALTH_PORT, MESH_PORT};
use serde_json::Value;

const PORT_NAMES: [&str; 2] = [MESH_PORT_NAME, HEALTH_PORT_NAME];

pub(super) fn shared_processes(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    if is_true(pod.raw(), &["spec", "shareProcessNamespace"]) {
        denials.push(Denial::new(
            DenyReason::SharedProcesses,
            "spec.shareProcessNamespace",
            "the sandbox would see and signal the gate's process",
            "remove it or set it to false",
        ));
    }
}

pub(super) fn block_devices(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for container in pod.containers() {
        for (index, _) in items(container.at(&["volumeDevices"])) {
            denials.push(Denial::new(
                DenyReason::BlockDevice,
                container.field(&format!("volumeDevices[{index}]")),
                "a raw block device may hold the node's files",
                "mount the volume as a file system (volumeMounts)",
            ));
        }
    }
}

pub(super) fn users(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    let mut deny = |field: String| {
        let (why, fix) = (format!("{UID} is the gate's user and group"), "choose another number");
        denials.push(Denial::new(DenyReason::OwnUser, field, why, fix));
    };
    let own = |value: &Value| value.as_i64() == Some(UID);
    for (field, context) in contexts(pod) {
        for name in ["runAsUser", "runAsGroup", "fsGroup"] {
            if at(context, &[name]).is_some_and(own) {
                deny(format!("{field}.{name}"));
            }
        }
        for (index, group) in items(at(context, &["supplementalGroups"])) {
            if own(group) {
                deny(format!("{field}.supplementalGroups[{index}]"));
            }
        }
    }
}

/// A name that is the gate's, declared by somebody else.
pub(crate) fn reserved(field: impl Into<String>, name: &str) -> Denial {
    Denial::new(
        DenyReason::ReservedName,
        field,
        format!("{} is the gate's own name", shown(name)),
        "remove it; the gate is added when the pod is created",
    )
}

pub(super) fn containers(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for container in pod.containers() {
        for (field, name) in [
            ("name", container.name()),
            ("targetContainerName", text_of(container, "targetContainerName")),
        ] {
            if CONTAINERS.contains(&name) {
                denials.push(reserved(container.field(field), name));
            }
        }
    }
}

fn text_of<'a>(container: Container<'a>, field: &str) -> &'a str {
    container.at(&[field]).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn volumes(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (index, volume) in pod.volumes() {
        let name = text_at(volume, &["name"]).unwrap_or_default();
        if VOLUMES.contains(&name) {
            denials.push(reserved(format!("spec.volumes[{index}].name"), name));
        }
    }
}

pub(super) fn port_names(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for container in pod.containers() {
        for (index, port) in items(container.at(&["ports"])) {
            let name = text_at(port, &["name"]).unwrap_or_default();
            if PORT_NAMES.contains(&name) {
                denials.push(reserved(container.field(&format!("ports[{index}].name")), name));
            }
        }
    }
}

pub(super) fn labels(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (name, value) in pod.texts("labels") {
        let field = format!("metadata.labels[{name}]");
        if name == INJECT_LABEL {
            if value != ENABLED && value != DISABLED {
                denials.push(Denial::new(
                    DenyReason::InjectLabel,
                    field,
                    format!("{} says neither yes nor no", shown(value)),
                    format!("set it to {ENABLED}, or remove it"),
                ));
            }
        } else if name.starts_with(OWN_PREFIX) {
            denials.push(reserved(field, name));
        }
    }
}

pub(super) fn annotations(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (name, _) in pod.texts("annotations") {
        if name.starts_with(OWN_PREFIX) && !TENANT_ANNOTATIONS.contains(&name) {
            denials.push(Denial::new(
                DenyReason::ReservedName,
                format!("metadata.annotations[{name}]"),
                "it isn't one that a pod's author may set",
                format!("remove it; allowed are {}", TENANT_ANNOTATIONS.join(", ")),
            ));
        }
    }
}

/// By a mount, or by an environment variable that the kubelet reads from a file in a volume.
pub(super) fn volume_use(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for container in pod.containers() {
        let mounts = items(container.at(&["volumeMounts"]))
            .map(|(index, mount)| (format!("volumeMounts[{index}].name"), text_at(mount, &["name"])));
        let variables = items(container.at(&["env"])).map(|(index, variable)| {
            let volume = text_at(variable, &["valueFrom", "fileKeyRef", "volumeName"]);
            (format!("env[{index}].valueFrom.fileKeyRef.volumeName"), volume)
        });
        for (field, name) in mounts.chain(variables) {
            if name.is_some_and(|name| VOLUMES.contains(&name)) {
                denials.push(Denial::new(
                    DenyReason::OwnVolume,
                    container.field(&field),
                    "the volume holds the gate's key and token",
                    "use a volume of the sandbox's own",
                ));
            }
        }
    }
}

/// A token for the gate's audience, or a certificate of its signer, would let the sandbox enrol in the gate's place.
pub(super) fn credentials(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (index, volume) in pod.volumes() {
        for (place, source) in items(at(volume, &["projected", "sources"])) {
            let field = format!("spec.volumes[{index}].projected.sources[{place}]");
            if text_at(source, &["serviceAccountToken", "audience"]) == Some(TOKEN_AUDIENCE) {
                denials.push(Denial::new(
                    DenyReason::OwnCredential,
                    format!("{field}.serviceAccountToken.audience"),
                    "a token for this audience makes its holder the gate",
                    "choose another audience",
                ));
            }
            let signer = text_at(source, &["podCertificate", "signerName"]);
            if signer.is_some_and(|signer| signer.starts_with(OWN_PREFIX)) {
                denials.push(Denial::new(
                    DenyReason::OwnCredential,
                    format!("{field}.podCertificate.signerName"),
                    "a certificate of this signer makes its holder the gate",
                    "choose another signer",
                ));
            }
        }
    }
}

/// Limits of the whole pod hold for all of its containers together. What the sandbox uses of them the gate lacks, and once
/// the kernel has ended the gate for want of memory, its ports are anybody's until it is started again.
pub(crate) fn pod_limits(pod: Pod<'_>) -> impl Iterator<Item = Denial> {
    let limits = pod.at(&["spec", "resources", "limits"]);
    let limited = ["cpu", "memory"]
        .into_iter()
        .filter(move |name| limits.is_some_and(|limits| at(limits, &[name]).is_some()));
    limited.map(|name| {
        Denial::new(
            DenyReason::PodLimits,
            format!("spec.resources.limits.{name}"),
            "the sandbox could use up what the gate needs of it",
            "limit each container instead",
        )
    })
}

/// The gate's ports, declared by a container or asked by its probes.
pub(super) fn ports(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    let own = |value: &Value| [MESH_PORT, HEALTH_PORT].into_iter().any(|port| is_port(value, port));
    for container in pod.containers() {
        let mut deny = |field: &str| {
            denials.push(Denial::new(
                DenyReason::PortConflict,
                container.field(field),
                format!("{MESH_PORT} and {HEALTH_PORT} are the gate's ports"),
                "choose another port for the sandbox",
            ));
        };
        for (index, port) in items(container.at(&["ports"])) {
            if at(port, &["containerPort"]).is_some_and(own) {
                deny(&format!("ports[{index}].containerPort"));
            }
        }
        for (place, _) in HANDLER_PLACES {
            for kind in ["httpGet", "tcpSocket", "grpc"] {
                let port = container.at(place).and_then(|handler| at(handler, &[kind, "port"]));
                if port.is_some_and(own) {
                    deny(&format!("{}.{kind}.port", joined(place)));
                }
            }
        }
    }
}

/// A probe's port may be written as a number or, in a text, as digits.
fn is_port(value: &Value, port: u16) -> bool {
    match value {
        Value::Number(number) => number.as_u64() == Some(u64::from(port)),
        Value::String(text) => text.parse() == Ok(port),
        _ => false,
    }
}
