//! Reads the body of a call within bounds. Anybody who reaches the port can send one.

use crate::review::ReviewError;
use bytes::Buf;
use futures_util::{Stream, TryStreamExt};
use http::{HeaderValue, StatusCode};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The longest review that is read, in bytes. API servers take objects of three megabytes, and a review may hold two.
pub(crate) const MAX_BODY: usize = 8 << 20;
/// What of a longer one is read all the same, so that the refusal reaches whoever is still sending.
const MAX_DISCARDED: usize = 8 << 20;
/// Bytes of reviews in memory at once, over all connections.
const MAX_BODIES: usize = 64 << 20;
/// Less than the five seconds that API servers wait, so that they show this webhook's own words.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

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
    #[error("the review didn't arrive within {} s", READ_TIMEOUT.as_secs())]
    TooSlow,
    /// A connection that ended.
    #[error("the review broke off: {0}")]
    BrokenOff(String),
    /// Not a review, or not one that can be answered.
    #[error(transparent)]
    Review(#[from] ReviewError),
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
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
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
            Self::Busy => "busy",
            Self::TooSlow => "too_slow",
            Self::BrokenOff(_) => "broken_off",
            Self::Review(_) => "bad_review",
            Self::Panicked | Self::Unwritable(_) => "internal",
        }
    }
}

/// The memory that bodies may take.
pub(crate) struct Bodies(Semaphore);

/// A body, and its share of that memory until it is dropped.
#[derive(Default)]
pub(crate) struct Body<'a> {
    bytes: Vec<u8>,
    share: Option<SemaphorePermit<'a>>,
}

impl Body<'_> {
    /// What was sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Bodies {
    /// Nothing is taken yet.
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(MAX_BODIES))
    }

    /// Reads one body.
    ///
    /// # Errors
    /// It isn't JSON, is too long, comes too slowly, breaks off, or finds no memory.
    pub(crate) async fn read(
        &self,
        content_type: Option<&HeaderValue>,
        chunks: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Body<'_>, CallError> {
        let reading = self.read_all(is_json(content_type), chunks);
        let read = tokio::time::timeout(READ_TIMEOUT, reading).await;
        read.map_err(|_| CallError::TooSlow)?
    }

    async fn read_all(
        &self,
        is_json: bool,
        chunks: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Result<Body<'_>, CallError> {
        let mut chunks = pin!(chunks);
        let (mut body, mut discarded) = (Body::default(), 0);
        let mut refused = (!is_json).then_some(CallError::ContentType);
        while let Some(chunk) = chunks
            .try_next()
            .await
            .map_err(|error| CallError::BrokenOff(error.to_string()))?
        {
            let length = chunk.remaining();
            if refused.is_none()
                && let Err(error) = self.append(&mut body, chunk)
            {
                refused = Some(error);
                body = Body::default();
            }
            if refused.is_some() {
                discarded += length;
            }
            if discarded > MAX_DISCARDED {
                break;
            }
        }
        refused.map_or(Ok(body), Err)
    }

    fn append<'a>(&'a self, body: &mut Body<'a>, mut chunk: impl Buf) -> Result<(), CallError> {
        let length = chunk.remaining();
        if body.bytes.len() + length > MAX_BODY {
            return Err(CallError::TooLong);
        }
        let permits = u32::try_from(length).map_err(|_| CallError::TooLong)?;
        let share = self.0.try_acquire_many(permits).map_err(|_| CallError::Busy)?;
        match &mut body.share {
            Some(held) => held.merge(share),
            none => *none = Some(share),
        }
        body.bytes.extend_from_slice(&chunk.copy_to_bytes(length));
        Ok(())
    }
}

fn is_json(content_type: Option<&HeaderValue>) -> bool {
    let text = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';')
        .next()
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::{StreamExt, stream};

    const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

    fn chunks(sizes: &[usize]) -> impl Stream<Item = Result<Bytes, warp::Error>> + use<> {
        let chunks: Vec<_> = sizes.iter().map(|size| Ok(Bytes::from(vec![b' '; *size]))).collect();
        stream::iter(chunks)
    }

    #[tokio::test]
    async fn a_body_is_read_whole_up_to_the_limit() {
        let bodies = Bodies::new();
        let body = bodies.read(Some(&JSON), chunks(&[1, MAX_BODY - 2, 1])).await.unwrap();
        assert_eq!(body.bytes().len(), MAX_BODY);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_and_takes_no_memory() {
        let bodies = Bodies::new();
        let refused = bodies.read(Some(&JSON), chunks(&[MAX_BODY, 1])).await.err().unwrap();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(bodies.0.available_permits(), MAX_BODIES);
    }

    #[tokio::test]
    async fn a_sender_that_never_stops_is_not_listened_to_for_ever() {
        let endless = stream::repeat_with(|| Ok(Bytes::from(vec![b' '; 1 << 16])));
        let refused = Bodies::new().read(Some(&JSON), endless).await.err().unwrap();
        assert_eq!(refused.reason(), "too_long");
    }

    #[tokio::test]
    async fn bodies_together_take_no_more_memory_than_there_is_and_give_it_back() {
        let bodies = Bodies(Semaphore::new(10));
        let first = bodies.read(Some(&JSON), chunks(&[3, 4])).await.unwrap();
        let refused = bodies.read(Some(&JSON), chunks(&[3, 1])).await.err().unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(first);
        assert!(bodies.read(Some(&JSON), chunks(&[10])).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_refused_before_the_api_server_gives_up() {
        let stalled = chunks(&[1]).chain(stream::pending());
        let started = tokio::time::Instant::now();
        let refused = Bodies::new().read(Some(&JSON), stalled).await.err().unwrap();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn only_json_is_read() {
        for kind in [
            "text/plain",
            "application/jsonx",
            "",
            "application/yaml; application/json",
        ] {
            let kind = HeaderValue::from_static(kind);
            let refused = Bodies::new().read(Some(&kind), chunks(&[1])).await.err().unwrap();
            assert_eq!(refused.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind:?}");
        }
        assert_eq!(
            Bodies::new().read(None, chunks(&[1])).await.err().unwrap().reason(),
            "content_type"
        );
    }
}
