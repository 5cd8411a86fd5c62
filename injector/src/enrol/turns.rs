//! Whose turn it is of those whose visit is due. The namespace with the fewest visits under way comes first; of several the one
//! that has had no turn for longest; and in it who has waited longest. So whoever has however many gates, however slow or
//! broken, takes only turns that nobody else wants.

use super::queue::{Limits, Place};
use sandgate_mesh::sandbox::{Namespace, PodUid};
use std::collections::{BTreeMap, HashMap};

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) place: Place,
    pub(super) uid: PodUid,
    /// Whether it counts as one of the visits to troubled gates.
    pub(super) troubled: bool,
}

/// Of one namespace.
#[derive(Debug, Default)]
struct Lane {
    /// Visits under way.
    running: usize,
    /// The number of its last turn; before its first, of the last that anybody had when it came.
    last: u64,
    /// Who is due.
    calm: BTreeMap<Place, PodUid>,
    /// The same of those that are in trouble.
    troubled: BTreeMap<Place, PodUid>,
}

impl Lane {
    fn is_idle(&self) -> bool {
        self.running == 0 && self.calm.is_empty() && self.troubled.is_empty()
    }

    /// Who has waited longest, and whether it is in trouble.
    fn next(&self, troubled_too: bool) -> Option<(Place, bool)> {
        let first = |waiting: &BTreeMap<Place, PodUid>| waiting.first_key_value().map(|(place, _)| *place);
        let calm = first(&self.calm).map(|place| (place, false));
        let troubled = first(&self.troubled)
            .filter(|_| troubled_too)
            .map(|place| (place, true));
        calm.into_iter().chain(troubled).min()
    }
}

/// Everybody who is due, and how many visits are under way.
#[derive(Debug)]
pub(super) struct Turns {
    limits: Limits,
    /// Those of namespaces in which somebody is due or being visited.
    lanes: HashMap<Namespace, Lane>,
    /// Visits under way to troubled gates.
    running_troubled: usize,
    /// The number of the last turn.
    given: u64,
}

impl Turns {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: HashMap::new(),
            running_troubled: 0,
            given: 0,
        }
    }

    /// Somebody is due.
    pub(super) fn add(&mut self, namespace: &Namespace, place: Place, uid: PodUid, troubled: bool) {
        let new = Lane {
            last: self.given,
            ..Lane::default()
        };
        let lane = self.lanes.entry(namespace.clone()).or_insert(new);
        let waiting = if troubled { &mut lane.troubled } else { &mut lane.calm };
        waiting.insert(place, uid);
    }

    /// Somebody isn't due any more, if they were.
    pub(super) fn remove(&mut self, namespace: &Namespace, place: &Place) {
        let Some(lane) = self.lanes.get_mut(namespace) else {
            return;
        };
        lane.calm.remove(place);
        lane.troubled.remove(place);
        if lane.is_idle() {
            self.lanes.remove(namespace);
        }
    }

    /// Whoever's turn it is. Each counts as being visited until [`ended`](Self::ended), whatever becomes of its pod.
    pub(super) fn take(&mut self) -> Option<Due> {
        let troubled_too = self.running_troubled < self.limits.troubled;
        let most = self.limits.per_namespace;
        let free = self.lanes.iter().filter(|(_, lane)| lane.running < most);
        let next = free.filter_map(|(namespace, lane)| {
            let (place, troubled) = lane.next(troubled_too)?;
            Some(((lane.running, lane.last, place), troubled, namespace))
        });
        let ((_, _, place), troubled, namespace) = next.min_by_key(|(order, ..)| *order)?;
        let namespace = namespace.clone();
        let lane = self.lanes.get_mut(&namespace)?;
        let waiting = if troubled { &mut lane.troubled } else { &mut lane.calm };
        let uid = waiting.remove(&place)?;
        self.given += 1;
        lane.last = self.given;
        lane.running += 1;
        self.running_troubled += usize::from(troubled);
        Some(Due { place, uid, troubled })
    }

    /// A visit has ended.
    pub(super) fn ended(&mut self, namespace: &Namespace, troubled: bool) {
        self.running_troubled = self.running_troubled.saturating_sub(usize::from(troubled));
        let Some(lane) = self.lanes.get_mut(namespace) else {
            return;
        };
        lane.running = lane.running.saturating_sub(1);
        if lane.is_idle() {
            self.lanes.remove(namespace);
        }
    }

    /// Whether nobody is due, and nobody is being visited.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.lanes.is_empty() && self.running_troubled == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const LIMITS: Limits = Limits {
        per_namespace: 2,
        troubled: 2,
    };

    /// Namespaces, each with those that are due in it, who have waited longest first.
    fn turns(now: Instant, due: &[&str]) -> Turns {
        let mut turns = Turns::new(LIMITS);
        for (namespace, number) in due.iter().zip(0..) {
            let uid = format!("u{number}").parse().unwrap();
            turns.add(&namespace.parse().unwrap(), (now, number), uid, false);
        }
        turns
    }

    /// However few visits each of the others has under way.
    #[tokio::test]
    async fn each_namespace_has_its_turn() {
        let names = ["a", "b", "c"].repeat(10);
        let due: Vec<_> = names.into_iter().chain(["victim", "victim"]).collect();
        let mut turns = turns(Instant::now(), &due);
        let mut served = Vec::new();
        for _ in 0..8 {
            let uid = turns.take().unwrap().uid;
            let index: usize = uid.as_str().trim_start_matches('u').parse().unwrap();
            served.push(due[index]);
            turns.ended(&due[index].parse().unwrap(), false);
        }
        assert_eq!(served, ["a", "b", "c", "victim"].repeat(2));
    }

    #[tokio::test]
    async fn who_comes_later_comes_behind_those_who_wait_and_before_those_who_have_been_served_since() {
        let now = Instant::now();
        let mut turns = turns(now, &["a", "a", "a", "b", "b", "b"]);
        turns.take().unwrap();
        turns.ended(&"a".parse().unwrap(), false);
        turns.add(&"new".parse().unwrap(), (now, 9), "new".parse().unwrap(), false);
        let mut next = |namespace: &str| {
            let uid = turns.take().unwrap().uid.to_string();
            turns.ended(&namespace.parse().unwrap(), false);
            uid
        };
        assert_eq!(
            [next("b"), next("a"), next("new"), next("b")],
            ["u3", "u1", "new", "u4"]
        );
    }
}
