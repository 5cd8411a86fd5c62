//! Why a pod can't be admitted with a gate. An opted-in pod is gated or refused, never let through as it is.
//!
//! Everything outside the Pod Security level *baseline*
//! (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>) is refused whatever the namespace's own
//! level: a node's files, network or kernel hold every gate's key. The other checks keep the pod's own containers away
//! from its gate.

mod host;
mod kernel;
mod lockdown;
pub(crate) mod own;
mod platform;

pub use kernel::{CAPABILITIES, SELINUX_TYPES, SYSCTLS};

use crate::pod::{Malformed, Pod};
use crate::settings::Settings;
use std::fmt;
use std::ops::Deref;

/// Declares [`DenyReason`]: a bounded set, for metrics.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        /// The kind of a refusal; a bounded set.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DenyReason { $($(#[$doc])* $variant),+ }

        impl DenyReason {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word for it in metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

reasons!(
    /// The node's network, processes or inter-process communication.
    HostNamespace = "host_namespace",
    /// A volume with the node's files.
    HostPath = "host_path",
    /// A port of the node.
    HostPort = "host_port",
    /// A probe or hook that goes to another host.
    ProbeHost = "probe_host",
    /// A privileged container.
    Privileged = "privileged",
    /// A capability beyond the baseline.
    Capability = "capability",
    /// A sysctl beyond the baseline.
    Sysctl = "sysctl",
    /// No seccomp profile.
    Seccomp = "seccomp",
    /// No `AppArmor` profile.
    AppArmor = "apparmor",
    /// `SELinux` options beyond the baseline.
    SeLinux = "selinux",
    /// An unmasked `/proc`.
    ProcMount = "proc_mount",
    /// Windows.
    Windows = "windows",
    /// One process namespace for all containers of the pod.
    SharedProcesses = "shared_processes",
    /// A raw block device.
    BlockDevice = "block_device",
    /// The gate's user or group.
    OwnUser = "own_user",
    /// A name, label or annotation of the gate's.
    ReservedName = "reserved_name",
    /// Parts of a gate that aren't what would be injected.
    Tampered = "tampered",
    /// A container that uses a volume of the gate's.
    OwnVolume = "own_volume",
    /// A volume with a credential of the gate's kind.
    OwnCredential = "own_credential",
    /// A limit that the gate would share with the sandbox.
    PodLimits = "pod_limits",
    /// A port of the gate's.
    PortConflict = "port_conflict",
    /// A mirror pod that no kubelet made.
    MirrorPod = "mirror_pod",
    /// A label that says neither yes nor no.
    InjectLabel = "inject_label",
    /// An annotation for the gate that can't be followed.
    Annotation = "annotation",
    /// A name that no sandbox can have.
    PodName = "pod_name",
    /// With lockdown: a runtime class whose network stack may not obey the rules.
    RuntimeClass = "runtime_class",
    /// With lockdown: a probe that the gate can't run in the kubelet's place.
    Probe = "probe",
    /// Not a pod.
    Malformed = "malformed",
);

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that has to change before the pod can be admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The kind.
    pub reason: DenyReason,
    /// Which field: `spec.containers[0].ports[1].hostPort`.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
    /// What to change.
    pub fix: String,
}

impl Denial {
    fn new(reason: DenyReason, field: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            reason,
            field: field.into(),
            why: why.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.why, self.fix)
    }
}

impl From<Malformed> for Denial {
    fn from(malformed: Malformed) -> Self {
        let why = format!("must be {}", malformed.expected);
        Self::new(DenyReason::Malformed, malformed.field, why, "correct its type")
    }
}

/// What is wrong with a pod: at least one denial, in the order in which they are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denials {
    reason: DenyReason,
    all: Vec<Denial>,
}

impl Denials {
    /// `None` of none.
    pub fn of(all: Vec<Denial>) -> Option<Self> {
        let reason = all.first()?.reason;
        Some(Self { reason, all })
    }

    /// The kind of the first, which stands for all of them in metrics and logs.
    pub const fn reason(&self) -> DenyReason {
        self.reason
    }

    /// These behind others.
    pub(crate) fn after(self, others: impl IntoIterator<Item = Denial>) -> Self {
        let mut all: Vec<_> = others.into_iter().collect();
        let reason = all.first().map_or(self.reason, |first| first.reason);
        all.extend(self.all);
        Self { reason, all }
    }

    /// The same about fields that are called otherwise elsewhere.
    pub(crate) fn with_fields(mut self, name: impl Fn(&str) -> String) -> Self {
        for denial in &mut self.all {
            denial.field = name(&denial.field);
        }
        self
    }
}

impl<T: Into<Denial>> From<T> for Denials {
    fn from(only: T) -> Self {
        let only = only.into();
        Self {
            reason: only.reason,
            all: vec![only],
        }
    }
}

impl Deref for Denials {
    type Target = [Denial];

    fn deref(&self) -> &[Denial] {
        &self.all
    }
}

impl IntoIterator for Denials {
    type Item = Denial;
    type IntoIter = std::vec::IntoIter<Denial>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.into_iter()
    }
}

/// One check: adds what it finds.
type Check = fn(&Settings, Pod<'_>, &mut Vec<Denial>);

/// Every check, in the order in which denials are told.
const CHECKS: &[Check] = &[
    platform::windows,
    platform::mirror,
    host::namespaces,
    host::paths,
    host::ports,
    host::probes,
    kernel::privileged,
    kernel::capabilities,
    kernel::sysctls,
    kernel::seccomp,
    kernel::apparmor,
    kernel::selinux,
    kernel::proc_mount,
    own::shared_processes,
    own::block_devices,
    own::users,
    own::containers,
    own::volumes,
    own::port_names,
    own::labels,
    own::annotations,
    own::volume_use,
    own::credentials,
    |_, pod, denials| denials.extend(own::pod_limits(pod)),
    own::ports,
    platform::name,
    lockdown::runtime_class,
];

/// Everything that has to change in a pod that holds no part of a gate yet, but for what its gate can't be made from:
/// the annotations about it, and with lockdown the app's probes.
pub(crate) fn denials(settings: &Settings, pod: Pod<'_>) -> Vec<Denial> {
    let mut denials = Vec::new();
    for check in CHECKS {
        check(settings, pod, &mut denials);
    }
    denials
}

/// The longest part of a pod's own text that a message repeats, in characters.
const SHOWN: usize = 64;

/// A pod's own text for a message: quoted, escaped and short, since nothing has validated it yet.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests;
