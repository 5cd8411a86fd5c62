//! What holds only where the pod's network is closed from within.

use super::{Denial, DenyReason, shown};
use crate::pod::{Pod, text_at};
use crate::settings::Settings;

/// Some sandboxed runtimes bring a network stack of their own, which ignores the kernel's rules.
pub(super) fn runtime_class(settings: &Settings, pod: Pod<'_>, denials: &mut Vec<Denial>) {
    let Some(lockdown) = &settings.lockdown else { return };
    let Some(class) = text_at(pod.raw(), &["spec", "runtimeClassName"]).filter(|class| !class.is_empty()) else {
        return;
    };
    if !lockdown.runtime_classes.iter().any(|allowed| allowed == class) {
        denials.push(Denial::new(
            DenyReason::RuntimeClass,
            "spec.runtimeClassName",
            format!(
                "{} isn't listed as one that obeys the pod's network rules",
                shown(class)
            ),
            "remove it, or have the operator list it (--lockdown-runtime-class)",
        ));
    }
}
