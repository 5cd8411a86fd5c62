//! Which `PodCertificateRequests` wait for an answer, and when each is tried: a watch of those of our signer, and so many tried
//! at once. Who can't be answered is tried again, less and less often.

use super::report::Report;
use super::signer::{Answered, Asked, RequestObject, Signer, Unanswered};
use crate::metrics::Metrics;
use crate::names::SIGNER;
use futures_util::{FutureExt, StreamExt};
use kube::api::Api;
use kube::runtime::watcher;
use sandgate_kubernetes::watch;
use sandgate_mesh::telemetry::chain;
use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Requests that are tried at the same time.
const TRIES: usize = 32;
/// How long to wait before the second try, and between any two at most.
const WAITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// How often it is looked whether one is due.
const TICK: Duration = Duration::from_millis(500);

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    asked: Arc<Asked>,
    failures: u32,
    due: Instant,
    under_way: bool,
    /// What was said of it last, so that it is said once.
    told: Option<&'static str>,
}

/// Those that wait, by UID.
#[derive(Debug, Default)]
struct Requests {
    waiting: HashMap<String, Waiting>,
    /// Who was seen since a list began, while one is under way.
    listed: Option<HashSet<String>>,
}

type Ended = (Arc<Asked>, Option<Result<Answered, Unanswered>>);

/// Answers for ever. Dropped, it ends every try that is under way.
pub(super) async fn run(signer: Signer, report: &Report, metrics: &Metrics) {
    let config = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let mut events = watch(Api::<RequestObject>::all(signer.client.clone()), config).boxed();
    let signer = Arc::new(signer);
    let (mut requests, mut tries) = (Requests::default(), JoinSet::<Ended>::new());
    let mut ticks = tokio::time::interval(TICK);
    loop {
        while tries.len() < TRIES
            && let Some(asked) = requests.take(Instant::now())
        {
            let signer = Arc::clone(&signer);
            tries.spawn(async move {
                let answered = AssertUnwindSafe(signer.answer(&asked)).catch_unwind().await;
                (Arc::clone(&asked), answered.ok())
            });
        }
        tokio::select! {
            Some(event) = events.next() => match event {
                Ok(event) => requests.note(event, Instant::now()),
                Err(error) => {
                    metrics.failed("pod_certificates");
                    tracing::warn!(error = chain(&error), "can't watch the PodCertificateRequests of gates");
                }
            },
            Some(Ok((asked, ended))) = tries.join_next() => {
                let news = requests.end(&asked, ended.as_ref(), Instant::now());
                report.requested(&asked, ended.as_ref(), news);
            }
            _ = ticks.tick() => {}
        }
    }
}

impl Requests {
    fn note(&mut self, event: watcher::Event<RequestObject>, now: Instant) {
        match event {
            watcher::Event::Init => self.listed = Some(HashSet::new()),
            watcher::Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    self.waiting.retain(|uid, _| listed.contains(uid));
                }
            }
            watcher::Event::Apply(request) | watcher::Event::InitApply(request) => match Asked::of(&request) {
                Some(asked) => self.seen(asked, now),
                None => self.gone(&request),
            },
            watcher::Event::Delete(request) => self.gone(&request),
        }
    }

    fn seen(&mut self, asked: Asked, now: Instant) {
        if let Some(listed) = &mut self.listed {
            listed.insert(asked.uid.clone());
        }
        // A request never changes but by its answer.
        self.waiting.entry(asked.uid.clone()).or_insert_with(|| Waiting {
            asked: Arc::new(asked),
            failures: 0,
            due: now,
            under_way: false,
            told: None,
        });
    }

    fn gone(&mut self, request: &RequestObject) {
        if let Some(uid) = &request.metadata.uid {
            self.waiting.remove(uid);
        }
    }

    /// One that is due: the one that has been for the longest time.
    fn take(&mut self, now: Instant) -> Option<Arc<Asked>> {
        let due = self
            .waiting
            .values_mut()
            .filter(|waiting| !waiting.under_way && waiting.due <= now);
        let next = due.min_by_key(|waiting| waiting.due)?;
        next.under_way = true;
        Some(Arc::clone(&next.asked))
    }

    /// Takes note of how a try ended, and says whether that is news.
    fn end(&mut self, asked: &Asked, ended: Option<&Result<Answered, Unanswered>>, now: Instant) -> bool {
        let word = match ended {
            Some(Ok(_)) => {
                self.waiting.remove(&asked.uid);
                return true;
            }
            Some(Err(error)) => error.as_str(),
            None => "panicked",
        };
        let Some(waiting) = self.waiting.get_mut(&asked.uid) else {
            return false;
        };
        let [first, longest] = WAITS;
        waiting.under_way = false;
        waiting.due = now + (first * 2_u32.pow(waiting.failures.min(8))).min(longest);
        waiting.failures += 1;
        waiting.told.replace(word) != Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrol::signer::tests::{request, request_with};
    use crate::enrol::verify::Refusal;

    fn refused() -> Result<Answered, Unanswered> {
        Err(Refusal::NotOptedIn.into())
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_answered_is_tried_again_less_and_less_often_and_told_of_once() {
        let mut requests = Requests::default();
        requests.note(watcher::Event::Apply(request()), Instant::now());
        let mut waits = Vec::new();
        for round in 0..8 {
            let since = Instant::now();
            let asked = loop {
                match requests.take(Instant::now()) {
                    Some(asked) => break asked,
                    None => tokio::time::advance(Duration::from_secs(1)).await,
                }
            };
            waits.push(since.elapsed().as_secs());
            assert!(requests.take(Instant::now()).is_none(), "it is under way");
            // The watch says the same again.
            requests.note(watcher::Event::Apply(request()), Instant::now());
            let news = requests.end(&asked, Some(&refused()), Instant::now());
            assert_eq!(news, round == 0, "{round}");
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 30, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_answered_or_has_gone_is_tried_no_more() {
        let now = Instant::now();
        let answered = request_with(&serde_json::json!({"status": {"conditions": [{
            "type": "Issued", "status": "True", "reason": "Issued", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}}));
        for event in [watcher::Event::Delete(request()), watcher::Event::Apply(answered)] {
            let mut requests = Requests::default();
            requests.note(watcher::Event::Apply(request()), now);
            requests.note(event, now);
            assert!(requests.take(now).is_none());
        }
        let mut requests = Requests::default();
        requests.note(watcher::Event::Apply(request()), now);
        // A list that it isn't in.
        requests.note(watcher::Event::Init, now);
        requests.note(watcher::Event::InitDone, now);
        assert!(requests.take(now).is_none());
        requests.note(watcher::Event::Apply(request()), now);
        let asked = requests.take(now).unwrap();
        let issued = Ok(Answered::Issued(std::time::SystemTime::now()));
        assert!(requests.end(&asked, Some(&issued), now));
        assert!(requests.waiting.is_empty());
    }
}
