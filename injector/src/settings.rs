//! What the operator chose for injected pods. Nothing a pod's author writes gets in here.

use crate::names::EXCLUDED_NAMESPACES;
use crate::quantity::{Cpu, Memory};
use sandgate_mesh::identity::{TrustDomain, WorkloadIdentity};
use sandgate_mesh::sandbox::Namespace;
use std::fmt;
use std::str::FromStr;

/// What the operator chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where our own programs run: nothing is injected there.
    pub own_namespace: Namespace,
    /// The image of the gate.
    pub image: Image,
    /// Images of gates that are left as they are where they are there already: another replica, of the release before or
    /// after this one, put them there while one follows the other.
    pub accepted_images: Vec<Image>,
    /// When the kubelet pulls it.
    pub image_pull_policy: PullPolicy,
    /// What the gate asks of its node.
    pub resources: Resources,
    /// How much the gate logs.
    pub log_level: LogLevel,
    /// Whose caller assertions the gate believes.
    pub router_identities: Vec<WorkloadIdentity>,
    /// Routers that gates were given before, and may go on with: no new gate is given them, and none is let in with them.
    pub accepted_router_identities: Vec<WorkloadIdentity>,
    /// Who may give the gate its identity and its policy: this program.
    pub control_identity: WorkloadIdentity,
    /// The trust domain of gates and routers.
    pub trust_domain: TrustDomain,
    /// Who brings new gates their identity.
    pub identity_source: IdentitySource,
    /// Whether a pod may opt out by its label.
    pub allow_opt_out: bool,
    /// Whether the pod's network is closed from within, and where.
    pub lockdown: Option<Lockdown>,
}

impl Settings {
    /// Whether nothing is injected in this namespace, whatever it is labelled.
    pub fn excludes(&self, namespace: &str) -> bool {
        namespace == self.own_namespace.as_str() || EXCLUDED_NAMESPACES.contains(&namespace)
    }
}

/// The pod's network is closed by its own init container, for clusters that enforce no network policies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lockdown {
    /// The runtime classes whose network stack obeys nftables rules. Pods without a class run under the node's default.
    pub runtime_classes: Vec<String>,
}

/// A container image: registry, repository, tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image(String);

impl Image {
    /// The image as a pod names it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Image {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':' | b'@');
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if starts_well && text.len() <= 512 && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err("not an image; write it like registry.example/sandbox-sidecar@sha256:…")
        }
    }
}

/// A choice among a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$word_doc])* $variant),+ }

        impl $name {
            /// The word for it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("not one of {}", [$($word),+].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(
    /// When the kubelet pulls an image.
    PullPolicy {
        /// Unless the node has it.
        IfNotPresent = "IfNotPresent",
        /// At every start.
        Always = "Always",
        /// Never: the node must have it.
        Never = "Never",
    }
);

words!(
    /// How much a gate logs.
    LogLevel {
        /// Failures.
        Error = "error",
        /// What an operator should look at.
        Warn = "warn",
        /// What happened.
        Info = "info",
        /// Why it happened.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
);

words!(
    /// Who brings a gate its identity.
    IdentitySource {
        /// The control plane, which dials it.
        Enrolment = "enrolment",
        /// The kubelet: a Pod Certificate of Kubernetes, which the control plane signs, and a Cluster Trust Bundle.
        PodCertificates = "pod-certificates",
    }
);

/// CPU and memory of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// CPU that is kept free for it.
    pub cpu_request: Cpu,
    /// CPU that it may use at most; without one it may use what is idle.
    pub cpu_limit: Option<Cpu>,
    /// Memory that is kept free for it.
    pub memory_request: Memory,
    /// Memory that it may use at most.
    pub memory_limit: Memory,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_request: Cpu::millis(10),
            cpu_limit: None,
            memory_request: Memory::mebibytes(16),
            memory_limit: Memory::mebibytes(64),
        }
    }
}

impl Resources {
    /// What the API server would refuse in every pod.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(limit) = self.cpu_limit.filter(|limit| self.cpu_request > *limit) {
            let request = self.cpu_request;
            problems.push(format!("the CPU request {request} is above the CPU limit {limit}"));
        }
        if self.memory_request > self.memory_limit {
            let (request, limit) = (self.memory_request, self.memory_limit);
            problems.push(format!(
                "the memory request {request} is above the memory limit {limit}"
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_references_and_nothing_that_a_pod_would_expand_or_split() {
        for good in ["a", "gate:1.0", "localhost:5000/a/b@sha256:00ff", "r.example/x_y-z"] {
            assert!(good.parse::<Image>().is_ok(), "{good}");
        }
        for bad in ["", " a", "a b", "$(X)", "a\n", "-a", "ä", &"a".repeat(513)] {
            assert!(bad.parse::<Image>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests_above_limits_are_all_named() {
        let resources = Resources {
            cpu_request: Cpu::millis(2),
            cpu_limit: Some(Cpu::millis(1)),
            memory_request: Memory::mebibytes(65),
            ..Resources::default()
        };
        assert_eq!(resources.problems().len(), 2, "{:?}", resources.problems());
        assert!(Resources::default().problems().is_empty());
    }
}
