//! A leader's work: follows the pods, and visits their gates, or the routers in them, so many at once.

use super::clock::{Clock, Skew, Skewed};
use super::holders::{Holders, Progress};
use super::namespaces;
use super::pods::{self, Change};
use super::queue::{Limits, Next, Queue, Visit};
use super::report::Report;
use super::visit::{Done, Party, Settled, VisitError, Visitor};
use crate::authority::Root;
use crate::metrics::Metrics;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use kube::Client;
use sandgate_mesh::sandbox::PodUid;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Visits at the same time.
const VISITS: usize = 64;
/// Of these, the most to gates of one namespace, for whoever runs it can have gates stall; and to gates in trouble, in whatever
/// namespaces.
const LIMITS: Limits = Limits {
    per_namespace: VISITS / 4,
    troubled: VISITS / 2,
};
/// In which part of an identity's life every gate is told changed roots: for a day, within some twenty seconds.
const ROOTS_SPREAD: u32 = 4000;
/// How often the numbers of gates are told.
const CENSUS: Duration = Duration::from_secs(2);

/// How a visit ended, and what it has learned of a clock.
type Ended = (Visit, Result<Settled, VisitError>, Option<Skew>, Duration);

/// Works for ever, and tells how the replacement of the root stands. Dropped, it ends every visit that is under way.
pub(super) async fn work(
    client: Client,
    visitor: Visitor,
    progress: watch::Sender<Option<Progress>>,
    report: &Report,
    metrics: &Metrics,
) {
    let mut authority = visitor.authority.clone();
    let mut roots = roots(&visitor);
    let party = visitor.party;
    let own = &visitor.settings.own_namespace;
    let (changes, namespaces) = match party {
        Party::Gates => (
            pods::changes(client.clone()),
            namespaces::changes(client, &visitor.settings),
        ),
        // Their namespace is the one that it is.
        Party::Routers => (pods::router_changes(client, own), stream::pending().boxed()),
    };
    let mut work = Work {
        changes,
        namespaces,
        queue: Queue::new(LIMITS, visitor.opted_in.clone()),
        holders: Holders::new(
            visitor.opted_in.clone(),
            visitor.lifetime,
            visitor.former_until,
            Instant::now(),
        ),
        skewed: Skewed::default(),
        visitor: Arc::new(visitor),
        visits: JoinSet::new(),
    };
    work.follow();
    let mut census = tokio::time::interval(CENSUS);
    loop {
        work.begin();
        let now = Instant::now();
        let due = work.queue.next_due(now).filter(|_| work.visits.len() < VISITS);
        tokio::select! {
            Some(change) = work.changes.next() => work.note(change, metrics),
            Some(change) = work.namespaces.next() => work.note_namespaces(change, metrics),
            Some(Ok((visit, ended, skew, took))) = work.visits.join_next() => {
                if let Some(skew) = skew {
                    let news = work.queue.knows(&visit.target.uid) && work.skewed.note(&visit.target.uid, skew);
                    report.clock(party, &visit, skew, news);
                }
                let told = work.is_news(&visit, &ended);
                report.visited(party, &visit, &ended, took, told);
                work.end(&visit, &ended);
            }
            () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            Ok(()) = authority.changed() => {
                work.follow();
                let found = self::roots(&work.visitor);
                if found != roots {
                    roots = found;
                    work.queue.renew_all(Instant::now(), work.visitor.lifetime / ROOTS_SPREAD);
                }
            }
            _ = census.tick() => {
                report.census(party, work.queue.census(), work.skewed.count());
                progress.send_replace(work.holders.progress(Instant::now(), SystemTime::now()));
            }
        }
    }
}

struct Work {
    visitor: Arc<Visitor>,
    changes: Pin<Box<dyn Stream<Item = Change> + Send>>,
    namespaces: Pin<Box<dyn Stream<Item = namespaces::Change> + Send>>,
    queue: Queue,
    holders: Holders,
    /// Whose clocks differ.
    skewed: Skewed,
    visits: JoinSet<Ended>,
}

impl Work {
    /// Begins as many of the visits that are due as there is room for.
    fn begin(&mut self) {
        while self.visits.len() < VISITS
            && let Some(visit) = self.queue.take(Instant::now())
        {
            let visitor = Arc::clone(&self.visitor);
            self.visits.spawn(async move {
                let began = Instant::now();
                let clock = Clock::default();
                let visited = AssertUnwindSafe(visitor.visit(&visit, &clock)).catch_unwind().await;
                let ended = visited.unwrap_or(Err(VisitError::Panicked));
                (visit, ended, clock.skew(), began.elapsed())
            });
        }
    }

    /// Keeps in mind which step of a replacement of the root is under way.
    fn follow(&mut self) {
        let stored = self.visitor.authority.borrow().clone();
        let rotation = stored.as_ref().and_then(|stored| stored.under_way());
        self.holders.follow(rotation, Instant::now());
    }

    fn is_news(&mut self, visit: &Visit, ended: &Result<Settled, VisitError>) -> bool {
        match ended {
            Ok(settled) => settled.done != Done::Nothing,
            Err(error) => {
                let now = Instant::now();
                self.queue.is_news(visit, error.trouble(), error.as_str(), now)
            }
        }
    }

    fn end(&mut self, visit: &Visit, ended: &Result<Settled, VisitError>) {
        let next = match ended {
            Ok(settled) => {
                self.holders.shown(&visit.target.uid, settled.proof.clone());
                self.prove(&visit.target.uid);
                self.visitor.next(settled.proof.until)
            }
            Err(error) => {
                if let Some(proof) = error.proof() {
                    self.holders.shown(&visit.target.uid, proof.clone());
                    self.prove(&visit.target.uid);
                }
                Next::Again(error.trouble())
            }
        };
        self.queue.done(visit, next, Instant::now());
    }

    /// A gate has shown its identity. The visit may have lasted longer than its pod.
    fn prove(&self, uid: &PodUid) {
        if self.queue.knows(uid) {
            self.visitor.shown.note(uid);
        }
    }

    fn note(&mut self, change: Change, metrics: &Metrics) {
        match change {
            Change::Listing => {
                self.holders.listing();
                self.queue.listing();
            }
            Change::Listed => {
                self.holders.listed();
                self.queue.listed();
                self.skewed.retain(|uid| self.queue.knows(uid));
                self.visitor.shown.retain(|uid| self.queue.knows(uid));
            }
            Change::Seen(sighting) => {
                self.holders.seen(&sighting, Instant::now());
                self.queue.seen(sighting, Instant::now());
            }
            Change::Gone(uid) => {
                self.holders.gone(&uid);
                self.queue.gone(&uid);
                self.skewed.gone(&uid);
                self.visitor.shown.gone(&uid);
            }
            Change::Failed(error) => {
                metrics.failed("enrolment");
                tracing::warn!(error, "can't watch the pods that have a gate, or are a router's");
            }
        }
    }

    fn note_namespaces(&mut self, change: namespaces::Change, metrics: &Metrics) {
        match self.visitor.opted_in.note(change) {
            Ok(changed) => self.queue.opted(&changed, Instant::now()),
            Err(error) => {
                metrics.failed("enrolment");
                tracing::warn!(error, "can't watch the namespaces that have opted in");
            }
        }
    }
}

fn roots(visitor: &Visitor) -> Vec<Root> {
    let stored = visitor.authority.borrow();
    stored.as_ref().map(|stored| stored.roots.clone()).unwrap_or_default()
}
