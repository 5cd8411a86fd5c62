//! Pods that no gate can be put into.

use super::kernel::contexts;
use super::{Denial, DenyReason, shown};
use crate::names::MIRROR_ANNOTATION;
use crate::pod::{Pod, at, text_at};
use crate::settings::Settings;
use sandgate_mesh::sandbox::SandboxName;

pub(super) fn windows(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    let mut deny = |field: String| {
        let (why, fix) = (
            "the gate runs on Linux only",
            "run the sandbox on Linux, or outside this namespace",
        );
        denials.push(Denial::new(DenyReason::Windows, field, why, fix));
    };
    let is_windows = |path: &[&str]| text_at(pod.raw(), path) == Some("windows");
    if is_windows(&["spec", "os", "name"]) {
        deny("spec.os.name".to_owned());
    }
    if is_windows(&["spec", "nodeSelector", "kubernetes.io/os"]) {
        deny("spec.nodeSelector[kubernetes.io/os]".to_owned());
    }
    for (field, context) in contexts(pod) {
        if at(context, &["windowsOptions"]).is_some() {
            deny(format!("{field}.windowsOptions"));
        }
    }
}

/// Kubelets' own mirror pods were let through before this check.
pub(super) fn mirror(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    if pod.annotation(MIRROR_ANNOTATION).is_some() {
        denials.push(Denial::new(
            DenyReason::MirrorPod,
            format!("metadata.annotations[{MIRROR_ANNOTATION}]"),
            "only a kubelet makes mirror pods",
            "remove it",
        ));
    }
}

/// The pod's name becomes part of the gate's identity, and the gate refuses to start with one it can't have.
pub(super) fn name(_: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    let (field, name, probe) = match (
        text_at(pod.raw(), &["metadata", "name"]).filter(|name| !name.is_empty()),
        text_at(pod.raw(), &["metadata", "generateName"]).filter(|prefix| !prefix.is_empty()),
    ) {
        (Some(name), _) => ("metadata.name", name, name.to_owned()),
        // The API server shortens the prefix and adds five letters or digits.
        (None, Some(prefix)) => {
            let kept: String = prefix.chars().take(58).collect();
            ("metadata.generateName", prefix, format!("{kept}00000"))
        }
        (None, None) => return,
    };
    if probe.parse::<SandboxName>().is_err() {
        denials.push(Denial::new(
            DenyReason::PodName,
            field,
            format!("{} can't name a sandbox", shown(name)),
            "use lower-case letters, digits and inner hyphens, at most 63 characters, no dots",
        ));
    }
}
