//! Reads the body of a call within bounds. Anybody who reaches the port can send one.

use crate::inbound_pool::{Arrival, Body, Pool, PoolLimits};
use crate::review::ReviewError;
use bytes::Buf;
use futures_util::{Stream, TryStreamExt};
use http::{HeaderValue, StatusCode};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The longest review that is read, in bytes. etcd takes objects of 1.5 MiB, and a review may hold two.
pub(crate) const MAX_BODY: usize = 4 << 20;
/// The longest review that is an ordinary one, in bytes: a pod has some ten thousand, and its change twice as many.
pub(crate) const MAX_ORDINARY: usize = 64 << 10;
/// The longest answer, in bytes. Whoever doesn't read it has it held. A refusal is shorter; a patch has one part for each
/// container where the network is locked down.
pub(crate) const MAX_ANSWER: usize = 64 << 10;
/// What of one that is too long is read all the same, so that the refusal reaches whoever is still sending.
const MAX_DISCARDED: usize = 8 << 20;
/// Ordinary bodies that arrive at once. An API server has 600 requests under way at most, by its defaults.
pub(crate) const ARRIVING: usize = 1024;
/// Long ones that do.
const LONG_ARRIVING: usize = 128;
/// Memory for ordinary reviews, over all connections. Long ones have their own and take nothing of it.
const ORDINARY: PoolLimits = PoolLimits {
    body: MAX_ORDINARY,
    bytes: 16 << 20,
    arriving: ARRIVING,
};
/// Memory for long reviews.
const LONG: PoolLimits = PoolLimits {
    body: MAX_BODY,
    bytes: 24 << 20,
    arriving: LONG_ARRIVING,
};
/// From a call's head until its review is judged. Less than the five seconds that API servers wait, so that they show
/// this webhook's own words.
pub(crate) const CALL_TIME: Duration = Duration::from_secs(4);

/// A call that gets no review back. API servers show the text to whoever asked them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Another type of body, or none.
    #[error("the Content-Type must be application/json")]
    ContentType,
    /// A body over the limit.
    #[error("the review is longer than {} MiB", MAX_BODY >> 20)]
    TooLong,
    /// All the memory for bodies is taken.
    #[error("the injector holds too many reviews already; try again")]
    Busy,
    /// A body that didn't come in time.
    #[error("the review didn't arrive within {} s", CALL_TIME.as_secs())]
    TooSlow,
    /// A connection that ended.
    #[error("the review broke off: {0}")]
    BrokenOff(String),
    /// Not a review, or not one that can be answered.
    #[error(transparent)]
    Review(#[from] ReviewError),
    /// A patch over the limit.
    #[error("the answer would be longer than {} KiB: the pod has too many containers", MAX_ANSWER >> 10)]
    LongAnswer,
    /// A defect.
    #[error("the injector failed; its log says why")]
    Panicked,
    /// A defect.
    #[error("the answer can't be written as JSON: {0}")]
    Unwritable(#[from] serde_json::Error),
}

impl CallError {
    /// The status of the answer.
    pub(crate) const fn status(&self) -> StatusCode {
        match self {
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LongAnswer => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy | Self::Review(ReviewError::NoRoots) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BrokenOff(_) | Self::Review(_) => StatusCode::BAD_REQUEST,
            Self::Panicked | Self::Unwritable(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The word for it in metrics and logs.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::ContentType => "content_type",
            Self::TooLong => "too_long",
            Self::LongAnswer => "long_answer",
            Self::Busy => "busy",
            Self::TooSlow => "too_slow",
            Self::BrokenOff(_) => "broken_off",
            Self::Review(ReviewError::NoRoots) => "no_roots",
            Self::Review(_) => "bad_review",
            Self::Panicked | Self::Unwritable(_) => "internal",
        }
    }
}

/// The memory that bodies may take.
pub(crate) struct Bodies {
    ordinary: Pool,
    long: Pool,
    /// One long review at a time: judging takes several times the memory of what was sent.
    turns: Arc<Semaphore>,
}

impl Bodies {
    /// Nothing is taken yet.
    pub(crate) fn new() -> Self {
        Self {
            ordinary: Pool::new(ORDINARY),
            long: Pool::new(LONG),
            turns: Arc::new(Semaphore::new(1)),
        }
    }

    /// Waits until a long review may be judged.
    ///
    /// # Errors
    /// Those before it take longer than until the deadline.
    pub(crate) async fn turn(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, CallError> {
        let turn = tokio::time::timeout_at(deadline, Arc::clone(&self.turns).acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or(CallError::Busy)
    }

    /// How many could be judged now.
    #[cfg(test)]
    pub(crate) fn free_turns(&self) -> usize {
        self.turns.available_permits()
    }

    /// Reads one body, which has to be there by the deadline.
    ///
    /// # Errors
    /// It isn't JSON, is too long, comes too slowly, breaks off, or finds no memory.
    pub(crate) async fn read(
        &self,
        deadline: Instant,
        content_type: Option<&HeaderValue>,
        chunks: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Body, CallError> {
        let reading = self.read_all(is_json(content_type), chunks);
        let read = tokio::time::timeout_at(deadline, reading).await;
        read.map_err(|_| CallError::TooSlow)?
    }

    async fn read_all(
        &self,
        is_json: bool,
        chunks: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Body, CallError> {
        let mut chunks = pin!(chunks);
        let mut arrival = self.ordinary.enter();
        let (mut refused, mut discarded) = ((!is_json).then_some(CallError::ContentType), 0);
        while discarded <= MAX_DISCARDED {
            let next = tokio::select! {
                biased;
                next = chunks.try_next() => next,
                () = arrival.displaced() => return Err(refused.unwrap_or(CallError::Busy)),
            };
            let next = next.map_err(|error| CallError::BrokenOff(error.to_string()))?;
            let Some(chunk) = next else { break };
            let length = chunk.remaining();
            if refused.is_none() {
                refused = self.append(&mut arrival, chunk).err();
                if refused.is_some() {
                    // Whoever is still sending has a place, and nothing in it.
                    arrival = self.ordinary.enter();
                }
            }
            if refused.is_some() {
                discarded += length;
            }
        }
        refused.map_or_else(|| arrival.finish(), Err)
    }

    fn append(&self, arrival: &mut Arrival, chunk: impl Buf) -> Result<(), CallError> {
        if arrival.overflows(chunk.remaining()) && !arrival.is_of(&self.long) {
            arrival.move_to(&self.long)?;
        }
        arrival.append(chunk)
    }
}

fn is_json(content_type: Option<&HeaderValue>) -> bool {
    let text = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';')
        .next()
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
#[path = "inbound_tests.rs"]
mod tests;
