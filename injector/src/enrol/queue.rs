//! Which gate is visited next, and when: each once at a time, in the order that [`super::turns`] says, and of namespaces that
//! haven't opted in none. Pure: it is told the time.

use super::namespaces::OptedIn;
use super::pods::{Sighting, Target};
use super::turns::Turns;
use sandgate_mesh::sandbox::{Namespace, PodUid};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// How long to wait after a first failure.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Nothing that is seen of a pod has its gate visited more often.
const PAUSE: Duration = Duration::from_secs(1);
/// Failures in a row that aren't told, and are no trouble yet: a gate that has just got its address may not listen yet.
const QUIET: u32 = 2;
/// How long what is told of a gate that goes on failing for the same reason counts as told.
const TOLD: Duration = Duration::from_secs(600);

/// How a visit ended, as far as it says when the next is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// All is as it should be until then.
    After(Duration),
    /// Something failed, or was refused.
    Again(Trouble),
}

/// What keeps a gate from being as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Failed,
    Refused,
}

/// How many visits there may be at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// To gates of one namespace.
    pub(super) per_namespace: usize,
    /// To gates in trouble: that weren't as they should be more often in a row than any may at its beginning.
    pub(super) troubled: usize,
}

/// How many gates are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) all: Count,
    /// Those of them that haven't shown to have the roots in force.
    pub(super) behind: Count,
}

/// Gates by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) waiting: usize,
    pub(super) enrolled: usize,
    pub(super) refused: usize,
    pub(super) failing: usize,
}

#[derive(Debug)]
struct Entry {
    target: Target,
    restarts: i32,
    ready: bool,
    /// Where it is in the order, if it isn't being visited.
    place: Place,
    /// When the last visit began.
    visited: Option<Instant>,
    turn: Turn,
    roots: Roots,
    /// Failures in a row.
    failures: u32,
    /// What was told of them last, and when.
    told: Option<(&'static str, Instant)>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It is in the order.
    Waits,
    /// A visit is under way.
    Visited,
    /// The same, and something changed meanwhile, which may have come too late for it.
    Changed,
}

/// What is known of the roots that a gate has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Roots {
    /// Nothing yet.
    Unknown,
    /// Those in force have changed since it was visited.
    Old,
    /// It has those in force.
    InForce,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Enrolled,
    Troubled(Trouble),
}

/// When something is due, and a number that no other place has.
pub(super) type Place = (Instant, u64);

/// A visit to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Visit {
    /// Tells it from an earlier one to the same pod.
    place: Place,
    pub(super) target: Target,
    /// Whether the gate needs a new identity however long its present one lasts.
    pub(super) renew: bool,
    /// How many visits in a row have failed.
    pub(super) failures: u32,
    /// Whether it counts as one of those to troubled gates.
    troubled: bool,
}

/// The gates that are known.
#[derive(Debug)]
pub(super) struct Queue {
    entries: HashMap<PodUid, Entry>,
    /// Who isn't being visited and may be, by when that is due; without those whom `turns` has because it is.
    order: BTreeMap<Place, PodUid>,
    /// The number of the last place that was given.
    places: u64,
    turns: Turns,
    opted_in: OptedIn,
    /// Who was seen since a list began, while one is under way.
    listed: Option<HashSet<PodUid>>,
}

impl Queue {
    pub(super) fn new(limits: Limits, opted_in: OptedIn) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            places: 0,
            turns: Turns::new(limits),
            opted_in,
            listed: None,
        }
    }

    /// Everybody is about to be seen again.
    pub(super) fn listing(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// Everybody has been seen: who wasn't is gone.
    pub(super) fn listed(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let gone: Vec<_> = self
            .entries
            .keys()
            .filter(|uid| !listed.contains(uid))
            .cloned()
            .collect();
        for uid in gone {
            self.gone(&uid);
        }
    }

    /// These namespaces opt in or out, as [`OptedIn`] has it by now.
    pub(super) fn opted(&mut self, changed: &HashSet<Namespace>, now: Instant) {
        let waits = |entry: &Entry| entry.turn == Turn::Waits && changed.contains(&entry.target.namespace);
        let concerned: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| waits(entry))
            .map(|(uid, entry)| {
                let calm = entry.failures == 0;
                (uid.clone(), if calm { entry.not_before(now) } else { entry.place.0 })
            })
            .collect();
        for (uid, due) in concerned {
            self.place(&uid, due);
        }
    }

    /// Takes note of a pod. Its gate is visited soon if it is new or has another address; and, unless it has failed, if it
    /// was started again or has stopped being ready. Whatever else changes about a pod is no reason.
    pub(super) fn seen(&mut self, seen: Sighting, now: Instant) {
        if let Some(listed) = &mut self.listed {
            listed.insert(seen.uid.clone());
        }
        let Some(target) = seen.target else {
            self.gone(&seen.uid);
            return;
        };
        let Some(entry) = self.entries.get_mut(&seen.uid) else {
            let entry = Entry::new(target, seen.restarts, seen.ready, (now, 0));
            self.entries.insert(seen.uid.clone(), entry);
            self.place(&seen.uid, now);
            return;
        };
        let moved = entry.target != target;
        // Whoever runs a pod can have it fail, start again and be unready as often as they like.
        let stirred = entry.restarts != seen.restarts || (entry.ready && !seen.ready);
        let reason = moved || (stirred && entry.failures == 0);
        (entry.target, entry.restarts, entry.ready) = (target, seen.restarts, seen.ready);
        if moved {
            entry.failures = 0;
        }
        if entry.turn != Turn::Waits {
            if reason {
                entry.turn = Turn::Changed;
            }
            return;
        }
        let due = entry.not_before(now).min(entry.place.0);
        if reason {
            self.place(&seen.uid, due);
        }
    }

    /// Has a pod that isn't being visited be visited then, or not at all where its namespace hasn't opted in.
    fn place(&mut self, uid: &PodUid, due: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        self.order.remove(&entry.place);
        self.turns.remove(&entry.target.namespace, &entry.place);
        self.places += 1;
        entry.place = (due, self.places);
        if self.opted_in.contains(&entry.target.namespace) {
            self.order.insert(entry.place, uid.clone());
        }
    }

    /// Forgets a pod. A visit that is under way to it goes on, and counts until it has ended.
    pub(super) fn gone(&mut self, uid: &PodUid) {
        let Some(entry) = self.entries.remove(uid) else { return };
        self.order.remove(&entry.place);
        self.turns.remove(&entry.target.namespace, &entry.place);
    }

    /// Whether this pod is known.
    pub(super) fn knows(&self, uid: &PodUid) -> bool {
        self.entries.contains_key(uid)
    }

    /// Has every gate told the roots anew, within `spread`.
    pub(super) fn renew_all(&mut self, now: Instant, spread: Duration) {
        let mut free = Vec::new();
        for (uid, entry) in &mut self.entries {
            entry.roots = Roots::Old;
            if entry.turn == Turn::Waits {
                // Who has failed comes as soon as it would have.
                free.extend((entry.failures == 0).then(|| (uid.clone(), entry.place.0)));
            } else {
                entry.turn = Turn::Changed;
            }
        }
        for (uid, due) in free {
            self.place(&uid, due.min(now + spread.mul_f64(fastrand::f64())));
        }
    }

    /// The visit whose turn it is; none while there is none.
    pub(super) fn take(&mut self, now: Instant) -> Option<Visit> {
        while let Some(first) = self.order.first_entry()
            && first.key().0 <= now
        {
            let (place, uid) = first.remove_entry();
            if let Some(entry) = self.entries.get(&uid) {
                let troubled = entry.failures > QUIET;
                self.turns.add(&entry.target.namespace, place, uid, troubled);
            }
        }
        let next = self.turns.take()?;
        let entry = self.entries.get_mut(&next.uid)?;
        entry.turn = Turn::Visited;
        entry.visited = Some(now);
        Some(Visit {
            place: next.place,
            target: entry.target.clone(),
            renew: entry.roots == Roots::Old,
            failures: entry.failures,
            troubled: next.troubled,
        })
    }

    /// When the next visit is due that isn't yet. What is due and waits for others is taken when one of those ends.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let mut later = self.order.range((now, u64::MAX)..);
        later.next().map(|((due, _), _)| *due)
    }

    /// A visit has ended.
    pub(super) fn done(&mut self, visit: &Visit, next: Next, now: Instant) {
        self.turns.ended(&visit.target.namespace, visit.troubled);
        let uid = &visit.target.uid;
        let Some(entry) = self.entries.get_mut(uid) else { return };
        // Forgotten and seen again meanwhile, it is another's turn.
        if entry.turn == Turn::Waits || entry.place != visit.place {
            return;
        }
        let changed = std::mem::replace(&mut entry.turn, Turn::Waits) == Turn::Changed;
        let wait = match next {
            Next::After(wait) => {
                (entry.failures, entry.told) = (0, None);
                entry.state = State::Enrolled;
                if changed {
                    // If it was the roots that did, they are told in a visit of their own.
                    wait.min(PAUSE)
                } else {
                    entry.roots = Roots::InForce;
                    wait
                }
            }
            Next::Again(trouble) => {
                entry.failures = entry.failures.saturating_add(1);
                entry.state = State::Troubled(trouble);
                wait_after(entry.failures, fastrand::f64())
            }
        };
        self.place(uid, now + wait);
    }

    /// Whether the failure of a visit that has just ended is to be told: nobody was told lately of the same.
    pub(super) fn is_news(&mut self, visit: &Visit, trouble: Trouble, reason: &'static str, now: Instant) -> bool {
        if trouble == Trouble::Failed && visit.failures < QUIET {
            return false;
        }
        let Some(entry) = self.entries.get_mut(&visit.target.uid) else {
            return true;
        };
        let is_old = |(told, at): (&str, Instant)| told == reason && now < at + TOLD;
        if entry.told.is_some_and(is_old) {
            return false;
        }
        entry.told = Some((reason, now));
        true
    }

    /// Of the gates that may be visited.
    pub(super) fn census(&self) -> Census {
        let mut census = Census::default();
        let visitable = |entry: &&Entry| self.opted_in.contains(&entry.target.namespace);
        for entry in self.entries.values().filter(visitable) {
            census.all.add(entry.state);
            if entry.roots != Roots::InForce {
                census.behind.add(entry.state);
            }
        }
        census
    }
}

impl Count {
    fn add(&mut self, state: State) {
        *match state {
            State::Waiting => &mut self.waiting,
            State::Enrolled => &mut self.enrolled,
            State::Troubled(Trouble::Refused) => &mut self.refused,
            State::Troubled(Trouble::Failed) => &mut self.failing,
        } += 1;
    }
}

impl Entry {
    fn new(target: Target, restarts: i32, ready: bool, place: Place) -> Self {
        Self {
            target,
            restarts,
            ready,
            place,
            visited: None,
            turn: Turn::Waits,
            roots: Roots::Unknown,
            failures: 0,
            told: None,
            state: State::Waiting,
        }
    }

    /// The first moment from `now` on at which it may be visited again.
    fn not_before(&self, now: Instant) -> Instant {
        let again = self.visited.map(|visited| visited + PAUSE);
        again.map_or(now, |again| again.max(now))
    }
}

/// Twice as long after each failure, less up to a quarter: gates that fail together aren't tried together.
fn wait_after(failures: u32, random: f64) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(LONGEST_WAIT).mul_f64(1.0 - 0.25 * random)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
