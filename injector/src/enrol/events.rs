//! Events (events.k8s.io/v1) on pods whose gate, or router, can't be given what it needs: for whoever runs the pod and reads no
//! log of the injector's.
//!
//! A pod can fail as often as it likes, and there may be thousands of them. So the same is told of a pod once in a while, there
//! is a limit for all pods together, and what is too much is counted and left out: an Event is a courtesy.

use super::pods::Target;
use crate::kubernetes::bounded;
use crate::names::FIELD_MANAGER;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use prometheus::{IntCounterVec, Registry};
use sandgate_mesh::metrics;
use sandgate_mesh::sandbox::PodUid;
use sandgate_mesh::telemetry::cut;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The longest text in bytes: the API server takes 1024.
const NOTE: usize = 1000;
/// How long the same counts as told of a pod.
const QUIET: Duration = Duration::from_secs(600);
/// How often an Event is published in the long run, and how many may be at once.
const EVERY: Duration = Duration::from_secs(1);
const BURST: u32 = 20;
/// How many wait to be published.
const WAITING: usize = 64;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// What it shows proves something else than it should.
    Refused,
    /// It can't be asked, or told, and that has lasted.
    Failing,
    /// Its node's clock differs.
    Clock,
}

impl Reason {
    /// The reason of the Event.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "EnrolmentRefused",
            Self::Failing => "EnrolmentFailing",
            Self::Clock => "ClockSkewed",
        }
    }
}

/// Something to tell of a pod.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) target: Target,
    pub(super) reason: Reason,
    /// The word for it in metrics and logs.
    pub(super) word: &'static str,
    pub(super) note: String,
}

/// Takes what is to be told, and never waits.
#[derive(Clone)]
pub(crate) struct Events {
    waiting: mpsc::Sender<Told>,
    counts: IntCounterVec,
}

/// Publishes it.
pub(crate) struct Publisher {
    recorder: Recorder,
    told: mpsc::Receiver<Told>,
    limit: Limit,
    counts: IntCounterVec,
}

impl Events {
    /// With what publishes them, which the caller runs.
    pub(crate) fn new(registry: &Registry, client: Client) -> prometheus::Result<(Self, Publisher)> {
        let counts = metrics::counters(
            registry,
            "sandgate_injector_pod_events_total",
            "Events on pods about their enrolment, by outcome: published, failed, left out since they were too many.",
            &["outcome"],
        )?;
        let (waiting, told) = mpsc::channel(WAITING);
        let publisher = Publisher {
            recorder: Recorder::new(client, Reporter::from(FIELD_MANAGER)),
            told,
            limit: Limit::new(Instant::now()),
            counts: counts.clone(),
        };
        Ok((Self { waiting, counts }, publisher))
    }

    /// Has something be told, if there is room.
    pub(super) fn tell(&self, told: Told) {
        if self.waiting.try_send(told).is_err() {
            self.counts.with_label_values(&["left_out"]).inc();
        }
    }
}

impl Publisher {
    /// Publishes for as long as there is somebody who tells.
    pub(crate) async fn run(mut self) {
        while let Some(told) = self.told.recv().await {
            let outcome = match self.limit.admit(&told.target.uid, told.word, Instant::now()) {
                Admitted::Told => continue,
                Admitted::TooMany => "left_out",
                Admitted::Yes => match bounded(self.recorder.publish(&event(&told), &pod(&told.target))).await {
                    Ok(()) => "published",
                    Err(error) => {
                        let (namespace, pod) = (told.target.namespace.as_str(), told.target.name.as_str());
                        tracing::debug!(namespace, pod, %error, "can't publish an Event");
                        "failed"
                    }
                },
            };
            self.counts.with_label_values(&[outcome]).inc();
        }
    }
}

#[cfg(test)]
impl Publisher {
    /// What waits to be published first, if anything.
    pub(super) fn next(&mut self) -> Option<Told> {
        self.told.try_recv().ok()
    }
}

fn event(told: &Told) -> Event {
    Event {
        type_: EventType::Warning,
        reason: told.reason.as_str().into(),
        note: Some(cut(&told.note, NOTE).into_owned()),
        action: told.word.into(),
        secondary: None,
    }
}

fn pod(target: &Target) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(target.namespace.as_str().into()),
        name: Some(target.name.as_str().into()),
        uid: Some(target.uid.as_str().into()),
        ..ObjectReference::default()
    }
}

/// Whether something may be told now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admitted {
    Yes,
    /// It was, lately.
    Told,
    TooMany,
}

/// Remembers what was told, for as long as that counts: so it holds no more than may be told in that time.
#[derive(Debug)]
struct Limit {
    told: HashMap<(PodUid, &'static str), Instant>,
    /// How many may be told at once.
    left: u32,
    /// Since when that is so.
    since: Instant,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self {
            told: HashMap::new(),
            left: BURST,
            since: now,
        }
    }

    fn admit(&mut self, pod: &PodUid, word: &'static str, now: Instant) -> Admitted {
        self.told.retain(|_, at| now < *at + QUIET);
        let key = (pod.clone(), word);
        if self.told.contains_key(&key) {
            return Admitted::Told;
        }
        let new = u32::try_from(now.duration_since(self.since).as_secs() / EVERY.as_secs()).unwrap_or(u32::MAX);
        let whole = EVERY.saturating_mul(new);
        (self.left, self.since) = (self.left.saturating_add(new).min(BURST), self.since + whole);
        let Some(left) = self.left.checked_sub(1) else {
            return Admitted::TooMany;
        };
        self.left = left;
        self.told.insert(key, now);
        Admitted::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(number: u32) -> PodUid {
        format!("pod-{number}").parse().unwrap()
    }

    #[test]
    fn the_same_is_told_of_a_pod_once_in_a_while() {
        let now = Instant::now();
        let mut limit = Limit::new(now);
        assert_eq!(limit.admit(&uid(1), "token", now), Admitted::Yes);
        for other in [(2, "token"), (1, "shape")] {
            assert_eq!(limit.admit(&uid(other.0), other.1, now), Admitted::Yes);
        }
        for _ in 0..1000 {
            assert_eq!(limit.admit(&uid(1), "token", now + QUIET / 2), Admitted::Told);
        }
        assert_eq!(limit.admit(&uid(1), "token", now + QUIET), Admitted::Yes);
    }

    #[test]
    fn however_many_pods_fail_few_events_are_published_and_little_is_remembered() {
        let now = Instant::now();
        let mut limit = Limit::new(now);
        let mut published = 0;
        for number in 0..10_000 {
            let at = now + Duration::from_millis(u64::from(number));
            published += u32::from(limit.admit(&uid(number), "token", at) == Admitted::Yes);
        }
        assert_eq!(published, BURST + 9, "ten seconds, of which the last isn't over");
        // Who was left out comes again.
        assert_eq!(
            limit.admit(&uid(9_999), "token", now + Duration::from_secs(11)),
            Admitted::Yes
        );
        assert!(limit.told.len() <= usize::try_from(published).unwrap() + 1);
        let later = now + 2 * QUIET;
        assert_eq!(limit.admit(&uid(0), "token", later), Admitted::Yes);
        assert_eq!((limit.told.len(), limit.left), (1, BURST - 1));
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_is_left_out_and_nobody_waits() {
        let (events, publisher) = Events::new(&Registry::new(), crate::rig::unreachable()).unwrap();
        let told = |number| Told {
            target: Target {
                namespace: "team-a".parse().unwrap(),
                name: "box".parse().unwrap(),
                uid: uid(number),
                ip: [10, 0, 0, 7].into(),
            },
            reason: Reason::Refused,
            word: "token",
            note: "x".repeat(5000),
        };
        for number in 0..100 {
            events.tell(told(number));
        }
        assert_eq!(events.counts.with_label_values(&["left_out"]).get(), 100 - 64);
        assert!(event(&told(1)).note.unwrap().len() <= 1024);
        drop(publisher);
    }
}
