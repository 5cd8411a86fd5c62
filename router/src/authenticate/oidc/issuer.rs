//! The issuer that is asked for its keys, and what it said last. Hides when it is asked: at intervals, and once more when a
//! token names a key that isn't known, but never more often than the operator allows, whatever callers send.

use super::fetch;
use super::keys::KeySet;
use crate::authenticate::followed::Followed;
use crate::config::{HttpsUrl, OidcRefresh};
use prometheus::IntCounterVec;
use sandgate_mesh::telemetry::{LONGEST_TEXT, chain, cut};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::rustls::RootCertStore;

/// How long the issuer may take for both of its documents.
const PATIENCE: Duration = Duration::from_secs(5);
/// However short the issuer says that its keys are to be kept, it is asked no sooner.
const SHORTEST_MAX_AGE: Duration = Duration::from_secs(60);
/// The first pause after an attempt that failed; it doubles up to the shortest interval.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Where an issuer is asked, and when.
#[derive(Debug)]
pub(super) struct KeySource {
    /// Its name in tokens.
    pub(super) issuer: String,
    pub(super) discovery: HttpsUrl,
    pub(super) roots: Followed<Arc<RootCertStore>>,
    pub(super) refresh: OidcRefresh,
}

/// What is known of the issuer's keys.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The keys, and when the issuer last said that it has these.
    keys: Option<(Arc<KeySet>, Instant)>,
    /// When its last answer came, or failed to.
    asked: Option<Instant>,
    /// Whether its answer is still to come.
    under_way: bool,
    failed: bool,
    /// Answers and failures so far.
    settled: u64,
}

/// An issuer's keys, which a task of their own keeps up to date. It ends with the last of these.
#[derive(Debug)]
pub(super) struct Issuer {
    known: watch::Receiver<Known>,
    demand: Arc<Notify>,
    refresh: OidcRefresh,
}

impl Issuer {
    /// Asks at once, and from then on. To be called inside the runtime that is to ask.
    pub(super) fn follow(source: KeySource, refreshes: IntCounterVec) -> Self {
        let (sender, known) = watch::channel(Known::default());
        let demand = Arc::new(Notify::new());
        let refresh = source.refresh;
        let follower = Follower {
            source,
            known: sender,
            demand: Arc::clone(&demand),
            refreshes,
        };
        tokio::spawn(follower.run());
        Self { known, demand, refresh }
    }

    /// The keys, unless there are none yet, or none that the issuer has spoken of lately.
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        let known = self.known.borrow();
        let (keys, confirmed) = known.keys.as_ref()?;
        (confirmed.elapsed() < self.refresh.max_age).then(|| Arc::clone(keys))
    }

    /// Whether there were keys at any time.
    pub(super) fn has_answered(&self) -> bool {
        self.known.borrow().keys.is_some()
    }

    /// Whether the last question had no answer.
    pub(super) fn has_failed(&self) -> bool {
        self.known.borrow().failed
    }

    /// Whether the issuer is being asked, or may be asked again already.
    pub(super) fn may_ask(&self) -> bool {
        let known = self.known.borrow();
        known.under_way || known.asked.is_none_or(|asked| asked.elapsed() >= self.refresh.shortest)
    }

    /// Waits until the issuer was asked once more. Whoever comes meanwhile waits for the same answer.
    pub(super) async fn ask(&self) {
        let mut known = self.known.clone();
        let (settled, under_way) = {
            let known = known.borrow_and_update();
            (known.settled, known.under_way)
        };
        if !under_way {
            self.demand.notify_one();
        }
        // The task has limits of its own; this one is for a process that hangs.
        let _ = timeout(2 * PATIENCE, known.wait_for(|known| known.settled > settled)).await;
    }
}

/// The task that asks.
struct Follower {
    source: KeySource,
    known: watch::Sender<Known>,
    demand: Arc<Notify>,
    refreshes: IntCounterVec,
}

/// The part of a discovery document that is of use here (OIDC Discovery 1.0 section 3).
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Follower {
    async fn run(self) {
        let shortest = self.source.refresh.shortest;
        let mut pause = FIRST_PAUSE.min(shortest);
        loop {
            self.known.send_modify(|known| known.under_way = true);
            let answer = timeout(PATIENCE, self.fetch()).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("it took longer than {} s", PATIENCE.as_secs())));
            let next = if let Ok((_, max_age)) = &answer {
                pause = FIRST_PAUSE.min(shortest);
                self.next(*max_age)
            } else {
                let next = pause;
                pause = shortest.min(2 * pause);
                next
            };
            self.settle(answer);
            let demanded = async {
                sleep(shortest).await;
                self.demand.notified().await;
            };
            tokio::select! {
                () = sleep(next) => {}
                () = demanded => {}
                () = self.known.closed() => return,
            }
        }
    }

    /// When to ask again that has answered.
    fn next(&self, max_age: Option<Duration>) -> Duration {
        let OidcRefresh { longest, shortest, .. } = self.source.refresh;
        let soonest = SHORTEST_MAX_AGE.min(longest).max(shortest);
        let next = max_age.map_or(longest, |max_age| max_age.max(soonest).min(longest));
        // So that routers that were started together don't ask together forever.
        next.mul_f64(1.0 - 0.1 * fastrand::f64()).max(shortest)
    }

    async fn fetch(&self) -> Result<(KeySet, Option<Duration>), String> {
        let KeySource {
            issuer,
            discovery,
            roots,
            ..
        } = &self.source;
        let roots = roots.borrow().as_deref().cloned().ok_or("there are no roots")?;
        let document = fetch::get(discovery, Arc::clone(&roots)).await;
        let document = document.map_err(|error| chain(&error))?;
        let found: Discovery = serde_json::from_slice(&document.body)
            .map_err(|_| format!("{discovery} holds no discovery document with `issuer` and `jwks_uri`"))?;
        if found.issuer != *issuer {
            let other = cut(&found.issuer, LONGEST_TEXT);
            return Err(format!(
                "{discovery} is the document of {other:?}, and not of {issuer:?}"
            ));
        }
        let keys: HttpsUrl = found
            .jwks_uri
            .parse()
            .map_err(|error| format!("`jwks_uri` in {discovery} {error}"))?;
        let document = fetch::get(&keys, roots).await.map_err(|error| chain(&error))?;
        let set = KeySet::parse(&document.body).map_err(|error| format!("{keys}: {error}"))?;
        Ok((set, document.max_age))
    }

    /// Makes known what came of a question.
    fn settle(&self, answer: Result<(KeySet, Option<Duration>), String>) {
        let label = if answer.is_ok() { "success" } else { "failure" };
        self.refreshes.with_label_values(&[label]).inc();
        self.known.send_modify(|known| {
            let now = Instant::now();
            known.asked = Some(now);
            known.under_way = false;
            known.settled += 1;
            known.failed = answer.is_err();
            match answer {
                Ok((set, _)) => known.keys = Some((renewed(known.keys.take(), set), now)),
                Err(error) => {
                    let error = &*cut(&error, 2 * LONGEST_TEXT);
                    let kept = known.keys.is_some();
                    tracing::warn!(error, kept, "no keys from the OIDC issuer");
                }
            }
        });
    }
}

/// The keys there are now. Where they are those there were, the tokens stay verified that were; a key that went takes all of
/// its tokens along.
fn renewed(old: Option<(Arc<KeySet>, Instant)>, new: KeySet) -> Arc<KeySet> {
    match old {
        Some((old, _)) if old.has_same_keys(&new) => old,
        old => {
            let first = old.is_none();
            tracing::info!(keys = new.len(), first, "the OIDC issuer's keys are known");
            Arc::new(new)
        }
    }
}
