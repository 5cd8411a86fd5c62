//! The node: whoever reaches it reaches every gate's key on it.

use super::{Denial, DenyReason};
use crate::pod::{Pod, at, is_true, items, text_at};
use crate::probes::{HANDLER_PLACES, joined};
use crate::settings::Settings;

pub(super) fn namespaces(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (field, why) in [
        ("hostNetwork", "on the node's network a gate isn't the only way in"),
        ("hostPID", "the node's processes hold every gate's key"),
        ("hostIPC", "the node's shared memory belongs to all of its pods"),
    ] {
        if is_true(pod.raw(), &["spec", field]) {
            let fix = "remove it or set it to false";
            denials.push(Denial::new(
                DenyReason::HostNamespace,
                format!("spec.{field}"),
                why,
                fix,
            ));
        }
    }
}

pub(super) fn paths(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (index, volume) in pod.volumes() {
        if at(volume, &["hostPath"]).is_some() {
            denials.push(Denial::new(
                DenyReason::HostPath,
                format!("spec.volumes[{index}].hostPath"),
                "the node's files hold every gate's key",
                "use an emptyDir, a ConfigMap, a Secret or a PersistentVolumeClaim",
            ));
        }
    }
}

pub(super) fn ports(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for container in pod.containers() {
        for (index, port) in items(container.at(&["ports"])) {
            let open = at(port, &["hostPort"]).is_some_and(|port| port.as_u64() != Some(0));
            if open {
                denials.push(Denial::new(
                    DenyReason::HostPort,
                    container.field(&format!("ports[{index}].hostPort")),
                    "a port of the node leads past the gate",
                    "remove it; callers come through the router",
                ));
            }
        }
    }
}

/// The kubelet's own calls are let through everywhere: with another host they would reach somebody else's sandbox.
pub(super) fn probes(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for container in pod.containers() {
        for (place, _) in HANDLER_PLACES {
            for kind in ["httpGet", "tcpSocket"] {
                let host = container
                    .at(place)
                    .and_then(|handler| text_at(handler, &[kind, "host"]))
                    .is_some_and(|host| !host.is_empty());
                if host {
                    denials.push(Denial::new(
                        DenyReason::ProbeHost,
                        container.field(&format!("{}.{kind}.host", joined(place))),
                        "the kubelet would call another host in this pod's name",
                        "remove it; the call then goes to this pod",
                    ));
                }
            }
        }
    }
}
