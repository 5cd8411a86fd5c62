use super::*;
use crate::authority_stored::Stored;
use crate::ca_bundle::Trusted;

const WAITS: Waits = Waits {
    replicas: Duration::from_secs(70),
    api_servers: Duration::from_secs(10),
};
const BY_WORD: Schedule = Schedule {
    max_age: None,
    routers_follow_within: None,
};

/// A step, as it is stored, and the roots then.
fn step(place: usize) -> (Rotation, Stored) {
    let [distribute, switch, retire] = crate::rotation::steps::each_after(&Stored::new());
    let stored = [distribute, switch, retire].into_iter().nth(place).unwrap();
    (stored.rotation.clone().unwrap().unwrap(), stored)
}

/// What is seen when nothing is in the way, a while after the configurations were told of it.
async fn clear(stored: &Stored) -> Observed {
    let trusted = Trusted {
        roots: stored.roots.clone(),
        retired: stored.left().to_vec(),
    };
    let confirmed = vec![Confirmed::now(trusted); 2];
    tokio::time::advance(WAITS.api_servers).await;
    Observed {
        known_for: WAITS.replicas,
        confirmed,
        serves_under: Some(stored.authority.root().id()),
        ..Observed::default()
    }
}

fn names(count: usize) -> Names {
    let mut names = Names::default();
    for number in 0..count {
        names.add(&"team".parse().unwrap(), &format!("box-{number:02}").parse().unwrap());
    }
    names
}

fn reasons(rotation: &Rotation, seen: Observed, schedule: &Schedule) -> Vec<&'static str> {
    let found = blockers(rotation, seen, WAITS, schedule);
    found.iter().map(|blocker| blocker.reason.as_str()).collect()
}

fn confirmed(rotation: Rotation) -> Rotation {
    Rotation {
        confirmed: true,
        ..rotation
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_goes_on_when_nothing_is_in_its_way_and_not_before_somebody_has_said_so() {
    for place in [0, 1, 2] {
        let (rotation, stored) = step(place);
        let seen = clear(&stored).await;
        let unsaid: &[&str] = if place == 2 { &[] } else { &["confirmation"] };
        assert_eq!(reasons(&rotation, seen.clone(), &BY_WORD), unsaid);
        assert_eq!(reasons(&confirmed(rotation), seen, &BY_WORD), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_time_is_given_it_stands_for_the_word() {
    let (rotation, stored) = step(0);
    let schedule = Schedule {
        routers_follow_within: Some(Duration::from_secs(3600)),
        ..BY_WORD
    };
    let mut seen = clear(&stored).await;
    assert_eq!(reasons(&rotation, seen.clone(), &schedule), ["confirmation"]);
    seen.known_for = Duration::from_secs(3600);
    assert_eq!(reasons(&rotation, seen, &schedule), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn each_thing_in_the_way_is_named() {
    for place in [0, 1, 2] {
        let (rotation, stored) = step(place);
        let rotation = confirmed(rotation);
        let seen = clear(&stored).await;
        let with = |change: &dyn Fn(&mut Observed)| {
            let mut seen = seen.clone();
            change(&mut seen);
            reasons(&rotation, seen, &BY_WORD)
        };
        let early = WAITS.replicas.saturating_sub(Duration::from_secs(1));
        assert_eq!(with(&|seen| seen.known_for = early), ["replicas"]);
        assert_eq!(with(&|seen| seen.confirmed[1] = Confirmed::default()), ["ca_bundle"]);
        assert_eq!(with(&|seen| seen.gates = names(1)), ["gates"]);
        let pods: &[&str] = if place == 0 { &[] } else { &["pods"] };
        assert_eq!(
            with(&|seen| seen.pods = names(1)),
            pods,
            "they matter when the old root goes"
        );
        let certificate: &[&str] = if place == 0 { &[] } else { &["certificate"] };
        assert_eq!(with(&|seen| seen.serves_under = Some(rotation.from[0])), certificate);
        // A certificate from files, and configurations that somebody else looks after.
        let others = |seen: &mut Observed| (seen.serves_under, seen.confirmed) = (None, Vec::new());
        assert_eq!(with(&others), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_ca_bundle_counts_when_api_servers_follow_it_and_when_the_old_root_has_left_it() {
    let (rotation, stored) = step(0);
    let trusted = Trusted {
        roots: stored.roots.clone(),
        retired: Vec::new(),
    };
    let mut seen = clear(&stored).await;
    seen.confirmed[0] = Confirmed::now(trusted);
    assert_eq!(reasons(&confirmed(rotation), seen, &BY_WORD), ["ca_bundle"]);
    let (rotation, stored) = step(2);
    let trusted = Trusted {
        roots: stored.roots.clone(),
        retired: Vec::new(),
    };
    let mut seen = clear(&stored).await;
    seen.confirmed[0] = Confirmed::now(trusted);
    assert_eq!(reasons(&rotation, seen, &BY_WORD), ["ca_bundle"]);
}

#[test]
fn of_many_pods_the_first_few_are_named_whatever_their_order() {
    let ten: Vec<_> = names(10).first.into_iter().collect();
    assert_eq!(names(3).first.len(), 3);
    let mut shuffled = Names::default();
    for number in (0..500).rev() {
        shuffled.add(&"team".parse().unwrap(), &format!("box-{number:02}").parse().unwrap());
    }
    assert_eq!(shuffled.count, 500);
    assert_eq!(shuffled.first.iter().take(10).collect::<Vec<_>>().len(), MOST_NAMES);
    let mut some = Names::default();
    for number in [7, 3, 9, 1, 11, 0, 2, 4, 5, 6, 8, 10] {
        some.add(&"team".parse().unwrap(), &format!("box-{number:02}").parse().unwrap());
    }
    assert_eq!(some.first.into_iter().collect::<Vec<_>>(), ten);
}

#[test]
fn every_reason_says_in_every_step_what_it_means() {
    for reason in Reason::ALL {
        let text = serde_json::to_string(&reason).unwrap();
        assert_eq!(text, format!("\"{}\"", reason.as_str()), "one word everywhere");
        for step in [Step::Distribute, Step::Switch, Step::Retire] {
            assert!(reason.sentence(step).len() > 20);
        }
    }
}

/// No word stands for a router that the injector itself can ask.
#[tokio::test(start_paused = true)]
async fn every_step_waits_for_the_routers_that_are_enrolled_whatever_was_said() {
    let at_once = Schedule {
        routers_follow_within: Some(Duration::ZERO),
        ..BY_WORD
    };
    for place in [0, 1, 2] {
        let (rotation, stored) = step(place);
        let seen = Observed {
            routers: names(2),
            ..clear(&stored).await
        };
        for rotation in [rotation.clone(), confirmed(rotation)] {
            let found = blockers(&rotation, seen.clone(), WAITS, &at_once);
            let found: Vec<_> = found.iter().map(|found| (found.reason, found.count)).collect();
            assert_eq!(found, [(Reason::Routers, 2)], "{place}");
        }
    }
}
