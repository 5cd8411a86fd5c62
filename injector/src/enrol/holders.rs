//! Who still holds on to which root: the roots that each pod's gate was born with, and what it has shown since; and likewise of
//! routers, which are born with none. A root that is replaced stays as long as somebody needs it, and this says who does. Pure:
//! it is told the time.
//!
//! What a gate has shown is a fact until it shows something else. Of a gate that has shown nothing to this leader the worst is
//! assumed, until no identity that somebody may have given it before can be valid any more.

use super::namespaces::OptedIn;
use super::pods::Sighting;
use crate::authority::RootId;
use crate::rotation::blockers::Names;
use crate::rotation::{Rotation, Step};
use sandgate_mesh::sandbox::{Namespace, PodUid, SandboxName};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// What a gate has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proof {
    /// The roots that it believes.
    pub(super) roots: Vec<RootId>,
    /// The one that its own leaf is under.
    pub(super) under: RootId,
    /// The end of that leaf.
    pub(super) until: SystemTime,
}

/// Whom a step of a replacement waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Gates, or routers, that haven't shown to have followed.
    pub(crate) stragglers: Names,
    /// Pods whose gates were born with roots that leave, and without the one that stays.
    pub(crate) pods: Names,
}

/// How a replacement stands, as far as gates are concerned, or routers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) rotation: Rotation,
    /// Since when this leader knows of the step.
    pub(crate) since: Instant,
    pub(crate) behind: Behind,
}

#[derive(Debug)]
struct Pod {
    namespace: Namespace,
    name: SandboxName,
    born_with: Vec<RootId>,
    /// When this leader first saw it with an address, without which nobody can have given it anything; of those that were
    /// there before it, when it began.
    addressed: Option<Instant>,
    proof: Option<Proof>,
}

/// Every live pod that has a gate.
#[derive(Debug)]
pub(super) struct Holders {
    pods: HashMap<PodUid, Pod>,
    /// When this leader began, before it knew of any pod or step.
    began: Instant,
    opted_in: OptedIn,
    /// How long this leader's identities live.
    lifetime: Duration,
    /// When each that was given before it has ended.
    former_until: SystemTime,
    /// Who was seen since a list began, while one is under way.
    listed: Option<HashSet<PodUid>>,
    /// Whether there has ever been a whole list.
    complete: bool,
    /// The step that is under way, and since when this leader knows of it.
    step: Option<(Rotation, Instant)>,
}

impl Holders {
    /// Nobody is known yet. Only pods of namespaces that have opted in count: others get nothing from anybody.
    pub(super) fn new(opted_in: OptedIn, lifetime: Duration, former_until: SystemTime, now: Instant) -> Self {
        Self {
            pods: HashMap::new(),
            began: now,
            opted_in,
            lifetime,
            former_until,
            listed: None,
            complete: false,
            step: None,
        }
    }

    /// Everybody is about to be seen again.
    pub(super) fn listing(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// Everybody has been seen: who wasn't is gone.
    pub(super) fn listed(&mut self) {
        if let Some(listed) = self.listed.take() {
            self.pods.retain(|uid, _| listed.contains(uid));
            self.complete = true;
        }
    }

    /// Takes note of a pod.
    pub(super) fn seen(&mut self, seen: &Sighting, now: Instant) {
        if let Some(listed) = &mut self.listed {
            listed.insert(seen.uid.clone());
        }
        let Some(born_with) = &seen.born_with else {
            self.gone(&seen.uid);
            return;
        };
        let new = || Pod {
            namespace: seen.namespace.clone(),
            name: seen.name.clone(),
            born_with: born_with.clone(),
            addressed: None,
            proof: None,
        };
        let pod = self.pods.entry(seen.uid.clone()).or_insert_with(new);
        if seen.target.is_some() {
            let first = if self.complete { now } else { self.began };
            pod.addressed.get_or_insert(first);
        }
    }

    /// Forgets a pod.
    pub(super) fn gone(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
    }

    /// Takes note of what a gate has shown.
    pub(super) fn shown(&mut self, uid: &PodUid, proof: Proof) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.proof = Some(proof);
        }
    }

    /// This step is under way, or none.
    pub(super) fn follow(&mut self, rotation: Option<&Rotation>, now: Instant) {
        self.step = rotation.map(|rotation| match self.step.take() {
            Some((before, since)) if before.is_same_step(rotation) => (rotation.clone(), since),
            _ => (rotation.clone(), now),
        });
    }

    /// How the step stands that is under way; none while there is none, or while it isn't known whom there is.
    pub(super) fn progress(&self, now: Instant, clock: SystemTime) -> Option<Progress> {
        let (rotation, since) = self.step.as_ref()?;
        if !self.complete || !self.opted_in.is_known() {
            return None;
        }
        let mut behind = Behind::default();
        for pod in self.pods.values().filter(|pod| self.opted_in.contains(&pod.namespace)) {
            if self.is_behind(pod, rotation, *since, now, clock) {
                behind.stragglers.add(&pod.namespace, &pod.name);
            }
            if is_left_alone(pod, rotation) {
                behind.pods.add(&pod.namespace, &pod.name);
            }
        }
        Some(Progress {
            rotation: rotation.clone(),
            since: *since,
            behind,
        })
    }

    /// Whether the next step could cost this pod's gate something: it doesn't believe the new root yet, or others don't
    /// believe what it shows when the old one has gone.
    fn is_behind(&self, pod: &Pod, rotation: &Rotation, since: Instant, now: Instant, clock: SystemTime) -> bool {
        let Some(proof) = &pod.proof else {
            // Whoever came since can have nothing older than this step; nor can who was born with the new root have had
            // anything before that was given to everybody.
            let may_be_formers = |first: Instant| first == self.began && clock <= self.former_until;
            let may_be_older =
                |first: Instant| first <= since && (now < first + self.lifetime || may_be_formers(first));
            return pod.addressed.is_some_and(may_be_older)
                && !(rotation.step == Step::Distribute && pod.born_with.contains(&rotation.to));
        };
        let followed = match rotation.step {
            Step::Distribute => proof.roots.contains(&rotation.to),
            Step::Switch => proof.under == rotation.to,
            Step::Retire | Step::Done => {
                proof.under == rotation.to && !rotation.from.iter().any(|root| proof.roots.contains(root))
            }
        };
        !followed && clock <= proof.until
    }
}

/// Whether this pod's gate, once it has lost its identity, knows the control plane by a root that leaves and by no other.
fn is_left_alone(pod: &Pod, rotation: &Rotation) -> bool {
    let knows = |root| pod.born_with.contains(root);
    rotation.from.iter().any(knows) && !knows(&rotation.to)
}

#[cfg(test)]
#[path = "holders_tests.rs"]
mod tests;
