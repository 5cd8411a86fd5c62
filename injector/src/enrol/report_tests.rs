use super::*;
use crate::enrol::namespaces::{Change, OptedIn};
use crate::enrol::pods::{Sighting, Target};
use crate::enrol::queue::{Count, Limits, Next, Queue};
use crate::enrol::verify::Refusal;
use std::collections::BTreeMap;
use tokio::time::Instant;

struct Rig {
    registry: Registry,
    report: Report,
    publisher: crate::enrol::events::Publisher,
}

impl Rig {
    fn new() -> Self {
        let registry = Registry::new();
        let (events, publisher) = Events::new(&registry, crate::rig::unreachable()).unwrap();
        let report = Report::new(&registry, LineLog::to(std::io::sink()).unwrap(), events).unwrap();
        Self {
            registry,
            report,
            publisher,
        }
    }

    /// A family's series that aren't 0, by their labels' values.
    fn series(&self, name: &str) -> BTreeMap<Vec<String>, f64> {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family
            .map(prometheus::proto::MetricFamily::get_metric)
            .unwrap_or_default();
        let labelled = metrics.iter().map(|metric| {
            let labels = metric.get_label().iter().map(|label| label.value().to_owned());
            let value = metric.get_gauge().get_value() + metric.get_counter().get_value();
            (labels.collect(), value)
        });
        labelled.filter(|(_, value)| *value > 0.0).collect()
    }
}

fn states(count: Count) -> BTreeMap<Vec<String>, f64> {
    let states = [
        ("waiting", count.waiting),
        ("enrolled", count.enrolled),
        ("refused", count.refused),
        ("failing", count.failing),
    ];
    let series = |(state, count): (&str, usize)| (vec![state.to_owned()], f64::from(u32::try_from(count).unwrap()));
    states.map(series).into()
}

#[tokio::test]
async fn every_state_of_gates_and_of_routers_has_its_own_number() {
    let rig = Rig::new();
    let count = |first| Count {
        waiting: first,
        enrolled: first + 1,
        refused: first + 2,
        failing: first + 3,
    };
    let census = |first| Census {
        all: count(first),
        behind: count(first + 10),
    };
    rig.report.census(Party::Gates, census(100), 7);
    rig.report.census(Party::Routers, census(200), 8);
    for (name, first) in [
        ("sandgate_injector_gates", 100),
        ("sandgate_injector_gates_behind", 110),
        ("sandgate_injector_routers", 200),
        ("sandgate_injector_routers_behind", 210),
    ] {
        assert_eq!(rig.series(name), states(count(first)), "{name}");
    }
    let skewed = [(vec!["gate".to_owned()], 7.0), (vec!["router".to_owned()], 8.0)];
    assert_eq!(rig.series("sandgate_injector_clocks_skewed"), skewed.into());
    // Whoever leads no more looks after nobody.
    rig.report.leads(false);
    for party in ["gates", "routers"] {
        assert_eq!(rig.series(&format!("sandgate_injector_{party}")), BTreeMap::new());
    }
}

/// Visits to one gate, of which none goes well.
struct Visits {
    queue: Queue,
    now: Instant,
}

impl Visits {
    fn new() -> Self {
        let (now, opted_in) = (Instant::now(), OptedIn::default());
        opted_in.note(Change::In("team-a".parse().unwrap())).unwrap();
        let limits = Limits {
            per_namespace: 1,
            troubled: 1,
        };
        let mut queue = Queue::new(limits, opted_in);
        let target = Target {
            namespace: "team-a".parse().unwrap(),
            name: "box".parse().unwrap(),
            uid: "pod-1".parse().unwrap(),
            ip: [10, 0, 0, 7].into(),
        };
        let sighting = Sighting {
            uid: target.uid.clone(),
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            born_with: Some(Vec::new()),
            target: Some(target),
            restarts: 0,
            ready: true,
        };
        queue.seen(sighting, now);
        Self { queue, now }
    }

    /// The next, which ends so.
    fn next(&mut self, rig: &Rig, error: VisitError, news: bool) {
        // Beyond the longest wait after a failure.
        self.now += Duration::from_secs(120);
        let visit = self.queue.take(self.now).unwrap();
        self.queue.done(&visit, Next::Again(error.trouble()), self.now);
        rig.report
            .visited(Party::Gates, &visit, &Err(error), Duration::ZERO, news);
    }
}

fn counted(outcome: &str, reason: &str, times: f64) -> (Vec<String>, f64) {
    (vec![outcome.to_owned(), reason.to_owned()], times)
}

#[tokio::test]
async fn a_refusal_is_told_at_once_and_a_failure_when_it_has_lasted() {
    let (mut rig, mut visits) = (Rig::new(), Visits::new());
    visits.next(&rig, VisitError::Refused(Refusal::OtherPod), true);
    let told = rig.publisher.next().unwrap();
    assert_eq!((told.reason, told.word), (Reason::Refused, Refusal::OtherPod.as_str()));
    assert!(told.note.starts_with("The gate gets no identity: "), "{}", told.note);
    visits.next(&rig, VisitError::Refused(Refusal::OtherPod), false);
    assert!(rig.publisher.next().is_none(), "it is no news");

    let (mut rig, mut visits) = (Rig::new(), Visits::new());
    for _ in 1..LASTING {
        visits.next(&rig, VisitError::TooLong, true);
        assert!(rig.publisher.next().is_none(), "it may come to an end");
    }
    visits.next(&rig, VisitError::TooLong, false);
    let told = rig.publisher.next().unwrap();
    assert_eq!((told.reason, told.word), (Reason::Failing, "too_long"));
    assert!(told.note.contains(" 6 times in a row: "), "{}", told.note);
}

#[tokio::test]
async fn visits_are_counted_by_whether_they_were_refused_or_failed() {
    let (rig, mut visits) = (Rig::new(), Visits::new());
    for _ in 0..2 {
        visits.next(&rig, VisitError::Refused(Refusal::OtherPod), false);
    }
    visits.next(&rig, VisitError::TooLong, false);
    let expected = [
        counted("refused", Refusal::OtherPod.as_str(), 2.0),
        counted("failed", "too_long", 1.0),
    ];
    assert_eq!(rig.series("sandgate_injector_enrolments_total"), expected.into());
    assert_eq!(rig.series("sandgate_injector_router_enrolments_total"), BTreeMap::new());
}
