//! What a step of a replacement waits for, each by a name that an operator meets in metrics, in the log and in `root status`.
//! Pure.

use super::{Rotation, Schedule, Step};
use crate::authority::RootId;
use crate::ca_bundle::Confirmed;
use sandgate_mesh::sandbox::{Namespace, SandboxName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// The most names that are told of one reason.
const MOST_NAMES: usize = 10;

/// Why a step isn't over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    /// The leader has just begun.
    Leader,
    /// A replica may not have read it.
    Replicas,
    /// API servers may not know it.
    CaBundle,
    /// The webhook is served under the root that leaves.
    Certificate,
    /// Gates haven't followed.
    Gates,
    /// Gates were born too early.
    Pods,
    /// Routers that are enrolled haven't followed.
    Routers,
    /// Nobody has said that all else has followed.
    Confirmation,
}

impl Reason {
    /// Every reason.
    pub(crate) const ALL: [Self; 8] = [
        Self::Leader,
        Self::Replicas,
        Self::CaBundle,
        Self::Certificate,
        Self::Gates,
        Self::Pods,
        Self::Routers,
        Self::Confirmation,
    ];

    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Replicas => "replicas",
            Self::CaBundle => "ca_bundle",
            Self::Certificate => "certificate",
            Self::Gates => "gates",
            Self::Pods => "pods",
            Self::Routers => "routers",
            Self::Confirmation => "confirmation",
        }
    }

    /// What it means in this step, and what to do if it lasts.
    pub(crate) const fn sentence(self, step: Step) -> &'static str {
        match (self, step) {
            (Self::Leader, _) => "the leader is looking at every pod; if it lasts, its log says why it can't",
            (Self::Replicas, _) => "every replica is given time to read the Secret",
            (Self::CaBundle, Step::Retire | Step::Done) => {
                "the caBundle of a webhook configuration still holds the old root, or is about to be changed"
            }
            (Self::CaBundle, _) => {
                "the caBundle of a webhook configuration doesn't hold the new root yet, or only since a moment ago"
            }
            (Self::Certificate, _) => "the webhook's certificate is still under the old root",
            (Self::Gates, Step::Distribute) => {
                "gates that haven't taken the new root; the injector's log says why. Delete pods that can't be mended"
            }
            (Self::Gates, Step::Switch) => {
                "gates whose identity is under the old root, or that nobody could ask; the injector's log says why. Delete pods \
                 that can't be mended"
            }
            (Self::Gates, _) => {
                "gates that still believe the old root; the injector's log says why. Delete pods that can't be mended"
            }
            (Self::Pods, Step::Retire) => {
                "pods whose gates know no root but one that has left: they can get no identity again. Delete them, at once if \
                 somebody else has that root's key"
            }
            (Self::Pods, _) => {
                "pods that were created before the new root was given to gates: without the old one they could never get an \
                 identity again. They end by themselves, or delete them"
            }
            (Self::Routers, Step::Distribute) => {
                "routers that haven't taken the new root; the injector's log says why. Delete pods that can't be mended"
            }
            (Self::Routers, Step::Switch) => {
                "routers whose identity is under the old root, or that nobody could ask; the injector's log says why. Delete \
                 pods that can't be mended"
            }
            (Self::Routers, _) => {
                "routers that still believe the old root; the injector's log says why. Delete pods that can't be mended"
            }
            (Self::Confirmation, Step::Distribute) => {
                "routers that aren't enrolled must trust the new root too: give them both, then run `sandbox-injector root \
                 confirm`"
            }
            (Self::Confirmation, _) => {
                "routers that aren't enrolled must show certificates under the new root: renew theirs, then run \
                 `sandbox-injector root confirm`"
            }
        }
    }
}

/// Some pods, of which only a few are named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) count: usize,
    /// The first in their order, so that they stay the same from one look to the next.
    pub(crate) first: BTreeSet<String>,
}

impl Names {
    /// One more.
    pub(crate) fn add(&mut self, namespace: &Namespace, name: &SandboxName) {
        self.count += 1;
        let is_full = self.first.len() >= MOST_NAMES;
        let name = format!("{namespace}/{name}");
        if is_full && self.first.last().is_some_and(|last| *last <= name) {
            return;
        }
        self.first.insert(name);
        if self.first.len() > MOST_NAMES {
            self.first.pop_last();
        }
    }
}

/// Something that a step waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Blocker {
    pub(crate) reason: Reason,
    /// Of how many pods, or 1.
    pub(crate) count: usize,
    /// The first few of those pods.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) names: BTreeSet<String>,
}

impl Blocker {
    pub(crate) fn new(reason: Reason) -> Self {
        Self {
            reason,
            count: 1,
            names: BTreeSet::new(),
        }
    }

    fn named(reason: Reason, names: Names) -> Self {
        Self {
            reason,
            count: names.count,
            names: names.first,
        }
    }
}

/// What the leader sees of a step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// How long it has known of it.
    pub(crate) known_for: Duration,
    /// What the webhook configurations hold; none where somebody else looks after those.
    pub(crate) confirmed: Vec<Confirmed>,
    /// The root that its own webhook's certificate is under; none if that is from files.
    pub(crate) serves_under: Option<RootId>,
    /// Gates that haven't followed.
    pub(crate) gates: Names,
    /// Pods whose gates know a root that leaves, and not the one that stays.
    pub(crate) pods: Names,
    /// Routers that haven't followed.
    pub(crate) routers: Names,
}

/// How long things take that nobody can see.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    /// Until every replica has read the Secret, and acted on it.
    pub(crate) replicas: Duration,
    /// Until API servers follow a configuration.
    pub(crate) api_servers: Duration,
}

/// All that this step waits for; when there is nothing, the next may begin.
pub(crate) fn blockers(rotation: &Rotation, seen: Observed, waits: Waits, schedule: &Schedule) -> Vec<Blocker> {
    let step = rotation.step;
    let in_bundles = match step {
        Step::Distribute | Step::Switch => {
            let holds = |confirmed: &Confirmed| confirmed.holds(&rotation.to, waits.api_servers);
            seen.confirmed.iter().all(holds)
        }
        Step::Retire | Step::Done => {
            let is_rid = |confirmed: &Confirmed| confirmed.is_rid_of(&rotation.from);
            seen.confirmed.iter().all(is_rid)
        }
    };
    let serves = step == Step::Distribute || seen.serves_under.is_none_or(|root| root == rotation.to);
    let followed = || {
        schedule
            .routers_follow_within
            .is_some_and(|time| seen.known_for >= time)
    };
    let confirmed = step == Step::Retire || rotation.confirmed || followed();
    let plain = [
        (Reason::Replicas, seen.known_for < waits.replicas),
        (Reason::CaBundle, !in_bundles),
        (Reason::Certificate, !serves),
        (Reason::Confirmation, !confirmed),
    ];
    let plain = plain.into_iter().filter(|(_, holds)| *holds);
    let mut found: Vec<_> = plain.map(|(reason, _)| Blocker::new(reason)).collect();
    let pods = if step == Step::Distribute {
        Names::default()
    } else {
        seen.pods
    };
    let named = [
        (Reason::Gates, seen.gates),
        (Reason::Pods, pods),
        (Reason::Routers, seen.routers),
    ]
    .into_iter();
    let named = named.filter(|(_, names)| names.count > 0);
    found.extend(named.map(|(reason, names)| Blocker::named(reason, names)));
    found.sort_by_key(|blocker| blocker.reason);
    found
}

#[cfg(test)]
#[path = "blockers_tests.rs"]
mod tests;
