//! Questions to the API server about callers. Hides that most of them aren't asked: an answer is believed for a while, whoever
//! asks the same thing meanwhile waits for the same answer, and only so many questions are under way.
//!
//! What is refused is remembered apart from what isn't: whoever makes up tokens pushes nobody's out.

use crate::error::RouterError;
use crate::limits::Who;
use crate::metrics::ReviewMetrics;
use foldhash::HashMap;
use ring::digest::{Context, SHA256};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};

/// Questions of one kind that may be under way at once. A few milliseconds each, that is more than an API server will take.
pub(crate) const PLACES: usize = 64;
/// Of these, what one may have at most who asks: others find a place whatever he makes up.
pub(crate) const SHARE: usize = PLACES / 2;
/// How long the API server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a refusal is believed, if not shorter than what is allowed: who was just given a right shouldn't wait for long.
const REFUSED: Duration = Duration::from_secs(5);
/// How long nobody asks again what had no answer. Clients are told to come back after that.
const FAILED: Duration = Duration::from_secs(1);
/// How often the log tells that there are no answers.
const TOLD: Duration = Duration::from_secs(1);

/// What is known at once, or the wait for it. Only who waits pays for the room.
pub(crate) enum Verdict<'a, T> {
    Known(Result<T, RouterError>),
    Asked(Pin<Box<dyn Future<Output = Result<T, RouterError>> + Send + 'a>>),
}

impl<T> Verdict<'_, T> {
    pub(crate) async fn get(self) -> Result<T, RouterError> {
        match self {
            Self::Known(known) => known,
            Self::Asked(answer) => answer.await,
        }
    }
}

/// What a question is remembered by. It may hold a secret, so it isn't kept itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// The key of a question: the SHA-256 of its parts, one after the other.
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(part);
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Self(key)
    }
}

/// What the API server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer<T> {
    Yes(T),
    No,
}

/// Why nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The API server can't be asked, or too much is asked at once.
    Failed,
    /// Whoever asks has [`SHARE`] questions under way.
    TooMany,
}

impl From<Unanswered> for RouterError {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Failed => Self::Unreviewed,
            Unanswered::TooMany => Self::TooManyReviews(SHARE),
        }
    }
}

pub(crate) type Outcome<T> = Result<Answer<T>, Unanswered>;

/// Answers to questions of one kind. Clones are the same.
#[derive(Debug)]
pub(crate) struct Reviews<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    /// What is asked, for the log.
    kind: &'static str,
    /// How long what is allowed is believed.
    believed: Duration,
    known: Mutex<Known<T>>,
    places: Arc<Semaphore>,
    /// Where questions are asked: they go on without whoever asked, and the connections to the API server are shared.
    runtime: Handle,
    metrics: ReviewMetrics,
}

#[derive(Debug)]
struct Known<T> {
    allowed: Recent<T>,
    others: Recent<Outcome<T>>,
    pending: HashMap<Key, watch::Receiver<Option<Outcome<T>>>>,
    /// How many of these each has asked.
    asking: HashMap<Who, usize>,
    /// When the log last told that there was no answer.
    told: Option<Instant>,
}

/// How a question stands.
enum Standing<T> {
    Settled(Outcome<T>),
    Pending(watch::Receiver<Option<Outcome<T>>>),
    New(Asking<T>, watch::Receiver<Option<Outcome<T>>>),
}

impl<T: Clone + Send + Sync + 'static> Reviews<T> {
    /// Believes what is allowed for `believed`, and remembers up to `size` allowed ones and as many others. To be called inside
    /// the runtime that is to ask.
    pub(crate) fn new(kind: &'static str, believed: Duration, size: usize, metrics: ReviewMetrics) -> Self {
        let known = Known {
            allowed: Recent::new(size),
            others: Recent::new(size),
            pending: HashMap::default(),
            asking: HashMap::default(),
            told: None,
        };
        Self(Arc::new(Shared {
            kind,
            believed,
            known: Mutex::new(known),
            places: Arc::new(Semaphore::new(PLACES)),
            runtime: Handle::current(),
            metrics,
        }))
    }

    /// What is known without asking.
    pub(crate) fn find(&self, key: &Key) -> Option<Outcome<T>> {
        let found = self.0.known().find(key, Instant::now());
        found.inspect(|_| self.0.metrics.cached.inc())
    }

    /// The answer to `question`, of which `key` is the key, and which `who` wants to know. It is asked only if nobody has, and
    /// then to the end, whether anybody still waits or not. Its error is a text for the log.
    pub(crate) async fn ask(
        &self,
        key: Key,
        who: Who,
        question: impl Future<Output = Result<Answer<T>, String>> + Send + 'static,
    ) -> Outcome<T> {
        let mut answer = match self.0.standing(key, who) {
            Standing::Settled(outcome) => return outcome,
            Standing::Pending(answer) => answer,
            Standing::New(asking, answer) => {
                self.0.runtime.spawn(asking.ask(question));
                answer
            }
        };
        // Whoever asks can end without an answer only together with the process.
        let answer = answer.wait_for(Option::is_some).await;
        answer
            .ok()
            .and_then(|answer| answer.clone())
            .unwrap_or(Err(Unanswered::Failed))
    }
}

impl<T> Shared<T> {
    fn known(&self) -> MutexGuard<'_, Known<T>> {
        // Nothing under this lock can panic halfway through a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Shared<T> {
    fn standing(self: &Arc<Self>, key: Key, who: Who) -> Standing<T> {
        let mut known = self.known();
        // Between the first look and this one there may have been an answer.
        if let Some(outcome) = known.find(&key, Instant::now()) {
            self.metrics.cached.inc();
            return Standing::Settled(outcome);
        }
        if let Some(answer) = known.pending.get(&key) {
            self.metrics.joined.inc();
            return Standing::Pending(answer.clone());
        }
        let asking = known.asking.get(&who).copied().unwrap_or(0);
        if asking >= SHARE {
            self.metrics.limited.inc();
            return Standing::Settled(Err(Unanswered::TooMany));
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.shed.inc();
            return Standing::Settled(Err(Unanswered::Failed));
        };
        let (sender, answer) = watch::channel(None);
        known.pending.insert(key, answer.clone());
        known.asking.insert(who.clone(), asking + 1);
        let asking = Asking {
            shared: Arc::clone(self),
            key,
            who,
            sender,
            _place: place,
        };
        Standing::New(asking, answer)
    }

    /// Remembers what came of a question.
    fn settle(&self, key: Key, answer: Result<Answer<T>, String>) -> Outcome<T> {
        let now = Instant::now();
        let mut known = self.known();
        match answer {
            Ok(Answer::Yes(yes)) => {
                self.metrics.allowed.inc();
                known.allowed.insert(key, now, self.believed, yes.clone());
                Ok(Answer::Yes(yes))
            }
            Ok(Answer::No) => {
                self.metrics.refused.inc();
                let believed = REFUSED.min(self.believed);
                known.others.insert(key, now, believed, Ok(Answer::No));
                Ok(Answer::No)
            }
            Err(error) => {
                self.metrics.failed.inc();
                known.others.insert(key, now, FAILED, Err(Unanswered::Failed));
                if known.told.is_none_or(|told| now.duration_since(told) >= TOLD) {
                    known.told = Some(now);
                    tracing::warn!(
                        review = self.kind,
                        error,
                        "no answer from the API server; nobody new is let in"
                    );
                }
                Err(Unanswered::Failed)
            }
        }
    }
}

impl<T: Clone> Known<T> {
    fn find(&self, key: &Key, now: Instant) -> Option<Outcome<T>> {
        let allowed = self.allowed.get(key, now).cloned();
        let allowed = allowed.map(|allowed| Ok(Answer::Yes(allowed)));
        allowed.or_else(|| self.others.get(key, now).cloned())
    }
}

/// A question under way. It has its place, and its entry among those, for as long as this lasts.
struct Asking<T> {
    shared: Arc<Shared<T>>,
    key: Key,
    who: Who,
    sender: watch::Sender<Option<Outcome<T>>>,
    _place: OwnedSemaphorePermit,
}

impl<T: Clone> Asking<T> {
    async fn ask(self, question: impl Future<Output = Result<Answer<T>, String>>) {
        let began = Instant::now();
        let late = |_| Err(format!("it took longer than {} s", PATIENCE.as_secs()));
        let answer = timeout(PATIENCE, question).await.unwrap_or_else(late);
        self.shared.metrics.duration.observe(began.elapsed().as_secs_f64());
        let outcome = self.shared.settle(self.key, answer);
        self.sender.send_replace(Some(outcome));
    }
}

impl<T> Drop for Asking<T> {
    fn drop(&mut self) {
        let mut known = self.shared.known();
        known.pending.remove(&self.key);
        if let Some(asking) = known.asking.get_mut(&self.who) {
            *asking -= 1;
            if *asking == 0 {
                known.asking.remove(&self.who);
            }
        }
    }
}

/// The youngest entries, up to a number of them, each for its time.
#[derive(Debug)]
struct Recent<T> {
    size: usize,
    entries: HashMap<Key, (Instant, T)>,
    /// Oldest first, with the time at which each ends.
    order: VecDeque<(Instant, Key)>,
}

impl<T> Recent<T> {
    fn new(size: usize) -> Self {
        Self {
            size,
            entries: HashMap::default(),
            order: VecDeque::new(),
        }
    }

    fn get(&self, key: &Key, now: Instant) -> Option<&T> {
        let (until, entry) = self.entries.get(key)?;
        (*until > now).then_some(entry)
    }

    fn insert(&mut self, key: Key, now: Instant, time: Duration, entry: T) {
        while let Some((until, oldest)) = self.order.front().copied()
            && (until <= now || self.order.len() >= self.size)
        {
            self.order.pop_front();
            // It may have been renewed since.
            if self.entries.get(&oldest).is_some_and(|(entry, _)| *entry == until) {
                self.entries.remove(&oldest);
            }
        }
        // No clock gets so far.
        let Some(until) = now.checked_add(time) else { return };
        self.entries.insert(key, (until, entry));
        self.order.push_back((until, key));
    }
}

#[cfg(test)]
#[path = "reviews_tests.rs"]
mod tests;
