//! The walls that the kernel puts around a container.

use super::own::reserved;
use super::{Denial, DenyReason, shown};
use crate::names::CONTAINERS;
use crate::pod::{Pod, at, is_true, items, text_at};
use crate::settings::Settings;
use serde_json::Value;

/// What a container may add: the baseline's set. `NET_RAW` isn't in it and must never be, since packet sockets go
/// around a locked-down network.
pub const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Sysctls that belong to the pod alone and are safe: the baseline's set as of Kubernetes 1.37.
pub const SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// `SELinux` types that are made for containers: the baseline's set.
pub const SELINUX_TYPES: [&str; 5] = [
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];

/// How `AppArmor` profiles were named before they had a field of their own.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// The security contexts of a pod: its own and those of its containers, each with its field.
pub(super) fn contexts(pod: Pod<'_>) -> impl Iterator<Item = (String, &Value)> {
    let own = pod
        .at(&["spec", "securityContext"])
        .map(|context| ("spec.securityContext".to_owned(), context));
    own.into_iter().chain(pod.containers().filter_map(|container| {
        let context = container.at(&["securityContext"])?;
        Some((container.field("securityContext"), context))
    }))
}

pub(super) fn privileged(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (field, context) in contexts(pod) {
        if is_true(context, &["privileged"]) {
            denials.push(Denial::new(
                DenyReason::Privileged,
                format!("{field}.privileged"),
                "a privileged container owns its node, and every gate's key on it",
                "remove it or set it to false",
            ));
        }
    }
}

pub(super) fn capabilities(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (field, context) in contexts(pod) {
        for (index, capability) in items(at(context, &["capabilities", "add"])) {
            let spelled = capability.as_str().unwrap_or_default();
            // Runtimes take any case and an optional prefix.
            let upper = spelled.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if !CAPABILITIES.contains(&name) {
                denials.push(Denial::new(
                    DenyReason::Capability,
                    format!("{field}.capabilities.add[{index}]"),
                    format!("{} isn't a capability that a sandbox may add", shown(spelled)),
                    format!("remove it; allowed are {}", CAPABILITIES.join(", ")),
                ));
            }
        }
    }
}

pub(super) fn sysctls(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (index, sysctl) in items(pod.at(&["spec", "securityContext", "sysctls"])) {
        let name = text_at(sysctl, &["name"]).unwrap_or_default();
        // The kernel takes slashes for dots.
        if !SYSCTLS.contains(&name.replace('/', ".").as_str()) {
            denials.push(Denial::new(
                DenyReason::Sysctl,
                format!("spec.securityContext.sysctls[{index}]"),
                format!("{} isn't a safe sysctl", shown(name)),
                "remove it; the Pod Security level baseline lists the safe ones",
            ));
        }
    }
}

pub(super) fn seccomp(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (field, context) in contexts(pod) {
        if let Some(profile) = unknown_profile(context, "seccompProfile") {
            denials.push(Denial::new(
                DenyReason::Seccomp,
                format!("{field}.seccompProfile.type"),
                format!("{profile} opens every system call to the sandbox"),
                "remove it, or choose RuntimeDefault or Localhost",
            ));
        }
    }
}

pub(super) fn apparmor(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    let fix = "remove it, or choose RuntimeDefault or Localhost";
    for (field, context) in contexts(pod) {
        if let Some(profile) = unknown_profile(context, "appArmorProfile") {
            let why = format!("{profile} lifts the AppArmor profile of the sandbox");
            let field = format!("{field}.appArmorProfile.type");
            denials.push(Denial::new(DenyReason::AppArmor, field, why, fix));
        }
    }
    // The gate can't say that it has another: it would run only on nodes that have AppArmor.
    if text_at(pod.raw(), &["spec", "securityContext", "appArmorProfile", "type"]) == Some("Localhost") {
        denials.push(Denial::new(
            DenyReason::AppArmor,
            "spec.securityContext.appArmorProfile.type",
            "a profile of the node's would hold for the gate too",
            "choose it in the securityContext of each container instead",
        ));
    }
    for (name, profile) in pod.texts("annotations") {
        let Some(container) = name.strip_prefix(APPARMOR_ANNOTATION) else {
            continue;
        };
        // The API server itself writes down for every container what holds for the pod.
        if profile.is_empty() || profile == "runtime/default" {
            continue;
        }
        if CONTAINERS.contains(&container) {
            denials.push(reserved(format!("metadata.annotations[{name}]"), container));
        } else if !profile.starts_with("localhost/") {
            denials.push(Denial::new(
                DenyReason::AppArmor,
                format!("metadata.annotations[{name}]"),
                format!("{} lifts the AppArmor profile of the sandbox", shown(profile)),
                "remove it, or choose runtime/default or localhost/<profile>",
            ));
        }
    }
}

/// A profile's type, unless it is one that confines.
fn unknown_profile(context: &Value, field: &str) -> Option<String> {
    let profile = text_at(context, &[field, "type"])?;
    (!matches!(profile, "RuntimeDefault" | "Localhost")).then(|| shown(profile))
}

pub(super) fn selinux(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (field, context) in contexts(pod) {
        let Some(options) = at(context, &["seLinuxOptions"]) else {
            continue;
        };
        let mut deny = |option: &str, fix: &str| {
            denials.push(Denial::new(
                DenyReason::SeLinux,
                format!("{field}.seLinuxOptions.{option}"),
                "it leaves what SELinux confines containers to",
                fix,
            ));
        };
        if !SELINUX_TYPES.contains(&text_at(options, &["type"]).unwrap_or_default()) {
            deny(
                "type",
                "remove it, or choose container_t or another type made for containers",
            );
        }
        for option in ["user", "role"] {
            if text_at(options, &[option]).is_some_and(|text| !text.is_empty()) {
                deny(option, "remove it");
            }
        }
    }
}

pub(super) fn proc_mount(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    for (field, context) in contexts(pod) {
        if text_at(context, &["procMount"]).is_some_and(|mount| mount != "Default") {
            denials.push(Denial::new(
                DenyReason::ProcMount,
                format!("{field}.procMount"),
                "an unmasked /proc shows and changes what belongs to the node",
                "remove it or set it to Default",
            ));
        }
    }
}
