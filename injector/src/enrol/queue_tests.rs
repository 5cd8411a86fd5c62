use super::*;
use crate::enrol::namespaces::Change;
use std::collections::VecDeque;
use std::net::IpAddr;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn sighting(namespace: &str, uid: &str) -> Sighting {
    let uid: PodUid = uid.parse().unwrap();
    Sighting {
        uid: uid.clone(),
        namespace: namespace.parse().unwrap(),
        name: "box".parse().unwrap(),
        born_with: Some(Vec::new()),
        target: Some(Target {
            namespace: namespace.parse().unwrap(),
            name: "box".parse().unwrap(),
            uid,
            ip: [10, 0, 0, 1].into(),
        }),
        restarts: 0,
        ready: true,
    }
}

const LIMITS: Limits = Limits {
    per_namespace: 2,
    troubled: 2,
};

/// With every namespace opted in that has a pod.
fn queue(now: Instant, pods: &[(&str, &str)]) -> Queue {
    let opted_in = OptedIn::default();
    for (namespace, _) in pods {
        opted_in.note(Change::In(namespace.parse().unwrap())).unwrap();
    }
    let mut queue = Queue::new(LIMITS, opted_in);
    for (namespace, uid) in pods {
        queue.seen(sighting(namespace, uid), now);
    }
    queue
}

fn waiting(waiting: usize) -> Count {
    Count {
        waiting,
        ..Count::default()
    }
}

fn enrolled(enrolled: usize) -> Count {
    Count {
        enrolled,
        ..Count::default()
    }
}

/// Makes this pod's gate fail so often, one visit after the other.
fn fail(queue: &mut Queue, now: Instant, uid: &str, times: u32) {
    for _ in 0..times {
        let due = queue.entries[&uid.parse::<PodUid>().unwrap()].place.0;
        let visit = queue.take(due.max(now)).unwrap();
        assert_eq!(visit.target.uid.as_str(), uid);
        queue.done(&visit, Next::Again(Trouble::Failed), now);
    }
}

fn taken(queue: &mut Queue, now: Instant) -> Vec<String> {
    std::iter::from_fn(|| queue.take(now))
        .map(|visit| visit.target.uid.to_string())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn gates_are_counted_by_what_came_of_their_last_visit() {
    let now = Instant::now();
    let pods = [
        ("a", "u1"),
        ("a", "u2"),
        ("b", "u3"),
        ("b", "u4"),
        ("c", "u5"),
        ("c", "u6"),
    ];
    let mut queue = queue(now, &pods);
    let (refused, failed) = (Next::Again(Trouble::Refused), Next::Again(Trouble::Failed));
    let ends = [
        refused,
        failed,
        failed,
        Next::After(HOUR),
        Next::After(HOUR),
        Next::After(HOUR),
    ];
    for next in ends {
        let visit = queue.take(now).unwrap();
        queue.done(&visit, next, now);
    }
    let troubled = Count {
        refused: 1,
        failing: 2,
        ..Count::default()
    };
    let all = Count {
        enrolled: 3,
        ..troubled
    };
    assert_eq!(queue.census(), Census { all, behind: troubled });
}

#[tokio::test(start_paused = true)]
async fn each_gate_is_visited_at_once_and_by_one_visit_at_a_time() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1")]);
    let visit = queue.take(now).unwrap();
    assert_eq!(queue.take(now), None);
    // Whatever is seen of it meanwhile.
    let mut restarted = sighting("a", "u1");
    restarted.restarts = 1;
    queue.seen(restarted, now);
    assert_eq!(queue.take(now + HOUR), None);
    queue.done(&visit, Next::After(HOUR), now);
    assert_eq!(queue.take(now), None);
    assert!(
        queue.take(now + SECOND).is_some(),
        "what changed may have come too late for the visit"
    );
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_keeps_its_visitors_keeps_no_other_namespace_waiting() {
    let now = Instant::now();
    let mut queue = queue(now, &[("slow", "u1"), ("slow", "u2"), ("slow", "u3"), ("other", "u4")]);
    let slow = queue.take(now).unwrap();
    assert_eq!(taken(&mut queue, now), ["u4", "u2"]);
    assert_eq!(queue.next_due(now), None);
    queue.done(&slow, Next::Again(Trouble::Failed), now);
    assert_eq!(taken(&mut queue, now), ["u3"]);
}

#[tokio::test(start_paused = true)]
async fn who_fails_again_and_again_comes_after_those_who_wait() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1"), ("b", "u2")]);
    let failing = queue.take(now).unwrap();
    queue.done(&failing, Next::Again(Trouble::Refused), now);
    assert_eq!(taken(&mut queue, now + HOUR), ["u2", "u1"]);
}

#[test]
fn failures_are_repeated_after_one_second_to_a_minute() {
    for (failures, most) in [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (40, 60), (u32::MAX, 60)] {
        let most = Duration::from_secs(most);
        assert_eq!(wait_after(failures, 0.0), most);
        assert_eq!(wait_after(failures, 1.0), most.mul_f64(0.75));
    }
}

#[tokio::test(start_paused = true)]
async fn no_event_makes_a_failing_gate_be_visited_sooner_unless_something_about_it_changed() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1")]);
    for _ in 0..7 {
        let due = queue.next_due(now).unwrap_or(now);
        let visit = queue.take(due).unwrap();
        queue.done(&visit, Next::Again(Trouble::Failed), now);
    }
    for _ in 0..100 {
        queue.seen(sighting("a", "u1"), now);
    }
    assert_eq!(queue.take(now + 40 * SECOND), None);
    let mut moved = sighting("a", "u1");
    moved.target.as_mut().unwrap().ip = [10, 0, 0, 2].into();
    queue.seen(moved, now + 2 * SECOND);
    let soon = now + 3 * LONGEST_WAIT;
    assert_eq!(queue.take(soon).unwrap().target.ip, IpAddr::from([10, 0, 0, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_was_started_again_or_is_no_longer_ready_is_visited_soon_and_not_more_than_once_a_second() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1")]);
    let visit = queue.take(now).unwrap();
    queue.done(&visit, Next::After(HOUR), now);
    let mut changed = sighting("a", "u1");
    (changed.restarts, changed.ready) = (1, false);
    queue.seen(changed.clone(), now);
    assert_eq!(queue.take(now), None);
    let visit = queue.take(now + SECOND).unwrap();
    queue.done(&visit, Next::After(HOUR), now + SECOND);
    changed.ready = true;
    queue.seen(changed, now + SECOND);
    assert_eq!(
        queue.take(now + 60 * SECOND),
        None,
        "it got ready, which is what was wanted"
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_gone_is_forgotten_also_when_the_watch_was_blind() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1"), ("a", "u2"), ("a", "u3")]);
    let visit = queue.take(now).unwrap();
    queue.listing();
    queue.seen(sighting("a", "u2"), now);
    queue.listed();
    assert_eq!(queue.census().all, waiting(1));
    queue.done(&visit, Next::After(HOUR), now);
    let mut ended = sighting("a", "u2");
    ended.target = None;
    queue.seen(ended, now);
    assert_eq!(queue.take(now + HOUR), None);
    assert!(queue.turns.is_idle() && queue.order.is_empty(), "{queue:?}");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_visits_end_says_nothing_about_a_later_one() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1")]);
    let early = queue.take(now).unwrap();
    queue.gone(&early.target.uid);
    queue.seen(sighting("a", "u1"), now);
    let late = queue.take(now).unwrap();
    queue.done(&early, Next::After(HOUR), now);
    assert_eq!(queue.take(now + 2 * HOUR), None, "it is still being visited");
    queue.done(&late, Next::After(HOUR), now);
    assert!(queue.take(now + 2 * HOUR).is_some());
}

#[tokio::test(start_paused = true)]
async fn after_the_roots_have_changed_every_gate_is_told_once() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1"), ("b", "u2")]);
    let first = queue.take(now).unwrap();
    let second = queue.take(now).unwrap();
    assert!(!first.renew);
    queue.done(&first, Next::After(HOUR), now);
    queue.renew_all(now, 60 * SECOND);
    // This one was told the old ones while they changed.
    queue.done(&second, Next::After(HOUR), now);
    for _ in 0..2 {
        let visit = queue.take(now + 60 * SECOND).unwrap();
        assert!(visit.renew);
        queue.done(&visit, Next::After(HOUR), now + 60 * SECOND);
    }
    assert_eq!(queue.take(now + 120 * SECOND), None);
    assert!(!queue.take(now + 2 * HOUR).unwrap().renew);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_flaps_does_not_have_its_failing_gate_visited_sooner() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1")]);
    fail(&mut queue, now, "u1", 7);
    let flap = |queue: &mut Queue, restarts| {
        let mut seen = sighting("a", "u1");
        (seen.restarts, seen.ready) = (restarts, restarts % 2 == 0);
        queue.seen(seen, now);
    };
    (0..100).for_each(|restarts| flap(&mut queue, restarts));
    assert_eq!(queue.take(now + 44 * SECOND), None);
    // Nor when it flaps during the visit.
    let visit = queue.take(now + 60 * SECOND).unwrap();
    (100..200).for_each(|restarts| flap(&mut queue, restarts));
    queue.done(&visit, Next::Again(Trouble::Refused), now);
    assert_eq!(queue.take(now + 44 * SECOND), None);
    // Nor when the roots change.
    queue.renew_all(now, SECOND);
    assert_eq!(queue.take(now + 44 * SECOND), None);
    assert!(queue.take(now + 60 * SECOND).unwrap().renew);
}

/// Visits everybody once, and all fail but one.
fn all_fail(queue: &mut Queue, at: Instant, calm: &str) {
    for _ in 0..queue.entries.len() {
        let visit = queue.take(at).unwrap();
        let next = if visit.target.uid.as_str() == calm {
            Next::After(SECOND)
        } else {
            Next::Again(Trouble::Refused)
        };
        queue.done(&visit, next, at);
    }
    assert_eq!(queue.take(at), None);
}

#[tokio::test(start_paused = true)]
async fn troubled_gates_of_however_many_namespaces_leave_room_for_others() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1"), ("b", "u2"), ("c", "u3"), ("d", "u4")]);
    (0..=QUIET).for_each(|round| all_fail(&mut queue, now + 10 * round * SECOND, "u4"));
    let later = now + 60 * SECOND;
    let visits: Vec<_> = std::iter::from_fn(|| queue.take(later)).collect();
    let (troubled, calm): (Vec<_>, Vec<_>) = visits.iter().partition(|visit| visit.failures > 0);
    assert_eq!((troubled.len(), calm.len()), (LIMITS.troubled, 1), "and not the third");
    // A first failure or two are no trouble.
    queue.opted_in.note(Change::In("e".parse().unwrap())).unwrap();
    queue.seen(sighting("e", "u5"), later);
    for round in 0..=QUIET {
        let visit = queue.take(later + 10 * round * SECOND).unwrap();
        assert_eq!((visit.target.uid.as_str(), visit.failures), ("u5", round));
        queue.done(&visit, Next::Again(Trouble::Failed), later + 10 * round * SECOND);
    }
    let later = later + 60 * SECOND;
    assert_eq!(queue.take(later), None);
    // One that ends makes room, and not before.
    queue.gone(&troubled[0].target.uid);
    assert_eq!(queue.take(later), None, "its visit goes on");
    queue.done(troubled[0], Next::Again(Trouble::Failed), later);
    assert_eq!(queue.take(later).unwrap().failures, QUIET + 1);
    assert_eq!(queue.take(later), None);
}

/// Visits to them last as long as whoever runs them likes.
#[tokio::test(start_paused = true)]
async fn namespaces_with_however_many_failing_gates_keep_nobody_elses_waiting() {
    let now = Instant::now();
    let pods: Vec<_> = (0..20)
        .map(|index| (["a", "b"][index % 2], format!("u{index}")))
        .collect();
    let mut pods: Vec<_> = pods.iter().map(|(namespace, uid)| (*namespace, uid.as_str())).collect();
    pods.push(("victim", "v"));
    let mut queue = queue(now, &pods);
    (0..=QUIET).for_each(|round| all_fail(&mut queue, now + 10 * round * SECOND, ""));
    let victim = queue.entries[&"v".parse::<PodUid>().unwrap()].place.0;
    // It comes last of all.
    queue.place(&"v".parse().unwrap(), victim + 10 * SECOND);
    let before = victim + 9 * SECOND;
    let mut running = VecDeque::from([queue.take(before).unwrap(), queue.take(before).unwrap()]);
    let later = victim + 10 * SECOND;
    assert_eq!(queue.take(later), None);
    let mut turns = 0;
    let served = |visit: &Visit| visit.target.uid.as_str() == "v";
    while !running.iter().any(served) {
        let ended = running.pop_front().unwrap();
        queue.done(&ended, Next::Again(Trouble::Failed), later);
        running.push_back(queue.take(later).unwrap());
        turns += 1;
    }
    assert!(turns <= 3, "one for each namespace, and not {turns}");
}

/// Whoever may delete pods would have as many visits as there are at all.
#[tokio::test(start_paused = true)]
async fn who_deletes_a_pod_has_no_further_visit_before_the_one_to_it_has_ended() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1"), ("a", "u2")]);
    let first = queue.take(now).unwrap();
    let second = queue.take(now).unwrap();
    for visit in [&first, &second] {
        queue.gone(&visit.target.uid);
    }
    for uid in ["u3", "u4"] {
        queue.seen(sighting("a", uid), now);
    }
    assert_eq!(queue.take(now), None);
    queue.done(&first, Next::Again(Trouble::Refused), now);
    assert_eq!(taken(&mut queue, now), ["u3"]);
    queue.done(&second, Next::Again(Trouble::Refused), now);
    assert_eq!(taken(&mut queue, now), ["u4"]);
}

#[tokio::test(start_paused = true)]
async fn no_gate_is_visited_where_the_namespace_has_not_opted_in() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1")]);
    queue.seen(sighting("b", "u2"), now);
    assert_eq!(taken(&mut queue, now + HOUR), ["u1"]);
    assert_eq!(queue.census().all, waiting(1));
    let b: Namespace = "b".parse().unwrap();
    let changed = queue.opted_in.note(Change::In(b.clone())).unwrap();
    queue.opted(&changed, now);
    assert_eq!(queue.census().all, waiting(2));
    let visit = queue.take(now).unwrap();
    assert_eq!(visit.target.namespace, b);
    // It opts out during the visit, or afterwards.
    for _ in 0..2 {
        let changed = queue.opted_in.note(Change::Out(b.clone())).unwrap();
        queue.opted(&changed, now);
        queue.done(&visit, Next::After(SECOND), now);
        queue.seen(sighting("b", "u2"), now);
        let mut moved = sighting("b", "u2");
        moved.restarts = 1;
        queue.seen(moved, now);
        queue.renew_all(now, SECOND);
        assert_eq!(queue.take(now + HOUR), None);
    }
    let changed = queue.opted_in.note(Change::In(b)).unwrap();
    queue.opted(&changed, now);
    assert_eq!(taken(&mut queue, now + SECOND), ["u2"]);
}

#[tokio::test(start_paused = true)]
async fn opting_out_and_in_again_makes_no_failing_gate_be_visited_sooner() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1")]);
    fail(&mut queue, now, "u1", 7);
    for change in [Change::Out("a".parse().unwrap()), Change::In("a".parse().unwrap())] {
        let changed = queue.opted_in.note(change).unwrap();
        queue.opted(&changed, now);
    }
    assert_eq!(queue.take(now + 44 * SECOND), None);
    assert!(queue.take(now + 60 * SECOND).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_again_when_it_is_another_or_after_ten_minutes() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1")]);
    let visit = queue.take(now).unwrap();
    let mut news = |trouble, reason, seconds| queue.is_news(&visit, trouble, reason, now + seconds * SECOND);
    assert!(!news(Trouble::Failed, "unreachable", 0), "it may not listen yet");
    assert!(news(Trouble::Refused, "shape", 0));
    assert!(!news(Trouble::Refused, "shape", 1));
    assert!(!news(Trouble::Refused, "shape", 599));
    assert!(news(Trouble::Refused, "token", 599));
    assert!(!news(Trouble::Refused, "token", 700));
    assert!(news(Trouble::Refused, "token", 1199));
    let often = Visit {
        failures: QUIET,
        ..visit.clone()
    };
    assert!(queue.is_news(&often, Trouble::Failed, "unreachable", now));
    assert!(!queue.is_news(&often, Trouble::Failed, "unreachable", now));
    queue.done(&visit, Next::After(SECOND), now);
    assert!(
        queue.is_news(&often, Trouble::Failed, "unreachable", now),
        "it was well meanwhile"
    );
}

#[tokio::test(start_paused = true)]
async fn who_has_not_shown_to_have_the_roots_in_force_is_behind() {
    let now = Instant::now();
    let mut queue = queue(now, &[("a", "u1"), ("b", "u2")]);
    assert_eq!(queue.census().behind, waiting(2));
    let (first, second) = (queue.take(now).unwrap(), queue.take(now).unwrap());
    queue.done(&first, Next::After(HOUR), now);
    assert_eq!(queue.census().behind, waiting(1));
    queue.renew_all(now, SECOND);
    queue.done(&second, Next::After(HOUR), now);
    assert_eq!(queue.census().behind, enrolled(2), "the second was told the old ones");
    for _ in 0..2 {
        let visit = queue.take(now + SECOND).unwrap();
        queue.done(&visit, Next::After(HOUR), now);
    }
    assert_eq!(queue.census().behind, Count::default());
    let visit = queue.take(now + 2 * HOUR).unwrap();
    queue.done(&visit, Next::Again(Trouble::Failed), now);
    assert_eq!(queue.census().behind, Count::default(), "a failure takes no roots away");
}
