use super::*;
use crate::enrol::namespaces::Change;
use crate::enrol::pods::Target;
use crate::rotation::Cause;

const HOUR: Duration = Duration::from_secs(3600);
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

fn root(name: &str) -> RootId {
    RootId::of(name.as_bytes())
}

fn rotation(step: Step) -> Rotation {
    Rotation {
        step,
        since: 1,
        cause: Cause::Command,
        from: vec![root("old")],
        to: root("new"),
        former: Vec::new(),
        confirmed: false,
    }
}

fn sighting(uid: &str, born_with: &[&str]) -> Sighting {
    let (namespace, name): (Namespace, SandboxName) = ("team".parse().unwrap(), uid.parse().unwrap());
    let uid: PodUid = uid.parse().unwrap();
    Sighting {
        uid: uid.clone(),
        namespace: namespace.clone(),
        name: name.clone(),
        born_with: Some(born_with.iter().map(|name| root(name)).collect()),
        target: Some(Target {
            namespace,
            name,
            uid,
            ip: [10, 0, 0, 1].into(),
        }),
        restarts: 0,
        ready: true,
    }
}

fn proof(roots: &[&str], under: &str) -> Proof {
    Proof {
        roots: roots.iter().map(|name| root(name)).collect(),
        under: root(under),
        until: SystemTime::now() + LIFETIME,
    }
}

/// Who is known to a leader that has seen these.
fn holders(now: Instant, pods: &[Sighting]) -> Holders {
    let opted_in = OptedIn::default();
    let namespaces = ["team".parse().unwrap()].into();
    opted_in.note(Change::Listed(namespaces)).unwrap();
    let mut holders = Holders::new(opted_in, LIFETIME, SystemTime::UNIX_EPOCH, now);
    holders.listing();
    for pod in pods {
        holders.seen(pod, now);
    }
    holders.listed();
    holders
}

/// Which gates and which pods are behind, by their names.
fn behind(holders: &mut Holders, step: Step, now: Instant) -> [Vec<String>; 2] {
    holders.follow(Some(&rotation(step)), now);
    at(holders, now, SystemTime::now())
}

fn at(holders: &Holders, now: Instant, clock: SystemTime) -> [Vec<String>; 2] {
    let behind = holders.progress(now, clock).unwrap().behind;
    [behind.stragglers, behind.pods].map(|names| {
        assert_eq!(names.count, names.first.len());
        let name = |name: &String| name.strip_prefix("team/").unwrap().to_owned();
        names.first.iter().map(name).collect()
    })
}

const NOBODY: [Vec<String>; 2] = [Vec::new(), Vec::new()];

fn shown(holders: &mut Holders, uid: &str, proof: Proof) {
    holders.shown(&uid.parse().unwrap(), proof);
}

#[tokio::test(start_paused = true)]
async fn a_gate_is_behind_until_it_has_shown_what_the_step_is_for() {
    let now = Instant::now();
    let mut holders = holders(now, &[sighting("box", &["old", "new"])]);
    let gate = [vec!["box".to_owned()], Vec::new()];
    for (step, not_yet, followed) in [
        (Step::Distribute, proof(&["old"], "old"), proof(&["old", "new"], "old")),
        (
            Step::Switch,
            proof(&["old", "new"], "old"),
            proof(&["old", "new"], "new"),
        ),
        (Step::Retire, proof(&["old", "new"], "new"), proof(&["new"], "new")),
    ] {
        shown(&mut holders, "box", not_yet);
        assert_eq!(behind(&mut holders, step, now), gate, "{step}");
        shown(&mut holders, "box", followed);
        assert_eq!(behind(&mut holders, step, now), NOBODY, "{step}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_has_ended_holds_nothing_back() {
    let now = Instant::now();
    let mut holders = holders(now, &[sighting("box", &["old", "new"])]);
    let old = proof(&["old"], "old");
    let end = old.until;
    shown(&mut holders, "box", old);
    assert_eq!(behind(&mut holders, Step::Switch, now)[0], ["box"]);
    assert_eq!(at(&holders, now, end)[0], ["box"]);
    assert_eq!(at(&holders, now, end + Duration::from_secs(1)), NOBODY);
}

/// A new leader knows nothing of what a former one has given out.
#[tokio::test(start_paused = true)]
async fn of_a_gate_that_has_shown_nothing_the_worst_is_assumed_as_long_as_it_can_be_true() {
    let now = Instant::now();
    let mut holders = holders(now, &[sighting("box", &["old", "new"]), sighting("older", &["old"])]);
    assert_eq!(
        behind(&mut holders, Step::Switch, now),
        [vec!["box".into(), "older".to_owned()], vec!["older".into()]]
    );
    // One that was born with the new root has had nothing that wasn't under both.
    assert_eq!(behind(&mut holders, Step::Distribute, now)[0], ["older"]);
    behind(&mut holders, Step::Retire, now);
    let later = now + LIFETIME - Duration::from_secs(1);
    assert_eq!(at(&holders, later, SystemTime::now())[0], ["box", "older"]);
    let later = now + LIFETIME;
    assert_eq!(
        at(&holders, later, SystemTime::now()),
        [Vec::new(), vec!["older".to_owned()]]
    );
}

/// Its lifetime is a shorter one than that of the leader before it.
#[tokio::test(start_paused = true)]
async fn what_a_former_leader_has_given_counts_for_as_long_as_that_gave_it_for() {
    let (now, clock) = (Instant::now(), SystemTime::now());
    let mut holders = holders(now, &[sighting("box", &["old", "new"])]);
    holders.former_until = clock + 2 * LIFETIME;
    behind(&mut holders, Step::Switch, now);
    holders.seen(&sighting("later", &["old", "new"]), now + HOUR);
    behind(&mut holders, Step::Retire, now + HOUR);
    let after = |time: Duration| at(&holders, now + time, clock + time)[0].clone();
    assert_eq!(after(HOUR), ["box", "later"]);
    assert_eq!(after(HOUR + LIFETIME), ["box"], "the other has only had this leader's");
    assert_eq!(after(2 * LIFETIME), ["box"]);
    assert_eq!(after(2 * LIFETIME + Duration::from_secs(1)), Vec::<String>::new());
}

/// It hears of the step before it has seen anybody.
#[tokio::test(start_paused = true)]
async fn whom_a_new_leader_finds_was_there_before_it() {
    let began = Instant::now();
    let opted_in = OptedIn::default();
    opted_in.note(Change::Listed(["team".parse().unwrap()].into())).unwrap();
    let mut holders = Holders::new(opted_in, LIFETIME, SystemTime::UNIX_EPOCH, began);
    tokio::time::advance(Duration::from_secs(1)).await;
    holders.follow(Some(&rotation(Step::Switch)), Instant::now());
    tokio::time::advance(Duration::from_secs(1)).await;
    let now = Instant::now();
    holders.listing();
    holders.seen(&sighting("box", &["old", "new"]), now);
    holders.listed();
    assert_eq!(at(&holders, now, SystemTime::now())[0], ["box"]);
    holders.seen(&sighting("later", &["old", "new"]), now);
    assert_eq!(at(&holders, now, SystemTime::now())[0], ["box"]);
    assert_eq!(at(&holders, began + LIFETIME, SystemTime::now()), NOBODY);
}

#[tokio::test(start_paused = true)]
async fn who_comes_after_the_step_has_begun_has_nothing_older() {
    let now = Instant::now();
    let mut holders = holders(now, &[]);
    behind(&mut holders, Step::Switch, now);
    let mut waits = sighting("waits", &["old", "new"]);
    waits.target = None;
    holders.seen(&waits, now);
    assert_eq!(
        at(&holders, now, SystemTime::now()),
        NOBODY,
        "nobody can have given it anything"
    );
    let later = now + HOUR;
    holders.seen(&sighting("waits", &["old", "new"]), later);
    holders.seen(&sighting("box", &["old", "new"]), later);
    assert_eq!(at(&holders, later, SystemTime::now()), NOBODY);
    // The same step, as an operator's word changes it, is the same step.
    let word = Rotation {
        confirmed: true,
        ..rotation(Step::Switch)
    };
    holders.follow(Some(&word), later + HOUR);
    let progress = holders.progress(later + HOUR, SystemTime::now()).unwrap();
    assert_eq!((progress.since, progress.behind), (now, Behind::default()));
    holders.follow(Some(&rotation(Step::Retire)), later + HOUR);
    assert_eq!(at(&holders, later + HOUR, SystemTime::now())[0], ["box", "waits"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_knows_only_a_root_that_leaves_is_named_until_it_ends() {
    let now = Instant::now();
    let pods = [
        sighting("old", &["old"]),
        sighting("older", &["before", "old"]),
        sighting("both", &["old", "new"]),
        sighting("new", &["new"]),
        // Whatever becomes of these roots, they are nothing to it.
        sighting("strange", &["other"]),
        sighting("none", &[]),
    ];
    let mut holders = holders(now, &pods);
    for pod in &pods {
        shown(&mut holders, pod.uid.as_str(), proof(&["new"], "new"));
    }
    assert_eq!(
        behind(&mut holders, Step::Switch, now),
        [Vec::new(), vec!["old".into(), "older".to_owned()]]
    );
    // Without an address it is still there.
    let mut waits = pods[0].clone();
    waits.target = None;
    holders.seen(&waits, now);
    assert_eq!(at(&holders, now, SystemTime::now())[1], ["old", "older"]);
    let mut ended = pods[0].clone();
    ended.born_with = None;
    holders.seen(&ended, now);
    holders.gone(&pods[1].uid);
    assert_eq!(at(&holders, now, SystemTime::now()), NOBODY);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_before_everybody_was_seen_and_who_was_not_seen_again_is_gone() {
    let now = Instant::now();
    let opted_in = OptedIn::default();
    let mut holders = Holders::new(opted_in.clone(), LIFETIME, SystemTime::UNIX_EPOCH, now);
    holders.follow(Some(&rotation(Step::Switch)), now);
    let knows = |holders: &Holders| holders.progress(now, SystemTime::now()).is_some();
    holders.listing();
    holders.seen(&sighting("box", &["old"]), now);
    assert!(!knows(&holders));
    holders.listed();
    assert!(!knows(&holders), "which namespaces have opted in is unknown");
    opted_in.note(Change::Listed(["team".parse().unwrap()].into())).unwrap();
    assert_eq!(at(&holders, now, SystemTime::now())[1], ["box"]);
    holders.listing();
    assert_eq!(
        at(&holders, now, SystemTime::now())[1],
        ["box"],
        "until the list is whole"
    );
    holders.listed();
    assert_eq!(at(&holders, now, SystemTime::now()), NOBODY);
    holders.seen(&sighting("box", &["old"]), now);
    opted_in.note(Change::Out("team".parse().unwrap())).unwrap();
    assert_eq!(
        at(&holders, now, SystemTime::now()),
        NOBODY,
        "nobody brings it anything any more"
    );
    holders.follow(None, now);
    assert!(!knows(&holders));
}
