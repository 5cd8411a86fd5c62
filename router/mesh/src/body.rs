//! Bodies in passing: nothing is buffered whole, every byte is counted, every silence is bounded, and a body that ends
//! early is never presented as complete.

use crate::framing::{Violation, violation};
use crate::headers::sanitise_trailers;
use crate::http2::Reset;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Why a body stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Longer than the configured limit.
    #[error("body is too large")]
    TooLarge,
    /// Framed in a way that can be read twice.
    #[error("{0}")]
    Framing(Violation),
    /// Its sender went away.
    #[error("body ended early")]
    Broken,
    /// Its sender gave up its HTTP/2 stream.
    #[error("body's stream was reset: {0}")]
    Reset(#[source] Reset),
    /// No byte came for the configured time.
    #[error("body was silent for too long")]
    Silent,
}

impl BodyError {
    /// The status that tells a client what was wrong with its request's body.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Framing(violation) => violation.status(),
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Silent => StatusCode::REQUEST_TIMEOUT,
            Self::Broken | Self::Reset(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// What a client is told of it (CONTRACT section 4).
    pub fn detail(self) -> &'static str {
        match self {
            Self::Framing(violation) => violation.detail(),
            Self::TooLarge => "Request body is too large.",
            Self::Silent => "Timed out waiting for the request body.",
            Self::Broken | Self::Reset(_) => "Request body ended early.",
        }
    }
}

impl From<hyper::Error> for BodyError {
    fn from(error: hyper::Error) -> Self {
        match (violation(&error), Reset::behind(&error)) {
            (Some(violation), _) => Self::Framing(violation),
            (None, Some(reset)) => Self::Reset(reset),
            (None, None) => Self::Broken,
        }
    }
}

/// What others may know about an [`Upload`] while it is under way.
#[derive(Debug)]
pub struct UploadWatch {
    started: Instant,
    bytes: AtomicU64,
    moved_millis: AtomicU64,
    awaits_client: AtomicBool,
    ended: AtomicBool,
    failure: OnceLock<BodyError>,
}

impl UploadWatch {
    /// Payload bytes forwarded so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When a frame last moved.
    pub fn moved(&self) -> Instant {
        self.started + Duration::from_millis(self.moved_millis.load(Ordering::Relaxed))
    }

    /// Whether the sender of the body is who is being waited for.
    pub fn awaits_client(&self) -> bool {
        self.awaits_client.load(Ordering::Relaxed)
    }

    /// Whether nobody reads the body any more: it is through, or was given up.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Why the body stopped, if it did.
    pub fn failure(&self) -> Option<BodyError> {
        self.failure.get().copied()
    }

    fn pass(&self, frame: Frame<Bytes>, limit: u64) -> Result<Frame<Bytes>, BodyError> {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_millis.store(millis, Ordering::Relaxed);
        match frame.into_data() {
            Ok(data) => {
                let sum = self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
                if sum > limit {
                    Err(BodyError::TooLarge)
                } else {
                    Ok(Frame::data(data))
                }
            }
            Err(frame) => Ok(clean_trailers(frame)),
        }
    }
}

/// Where an upload comes from.
#[derive(Debug)]
enum Source {
    Client(Incoming),
    /// A request of our own: what is still to be sent.
    Own(Bytes),
}

/// A request's body on its way up.
#[derive(Debug)]
pub struct Upload {
    source: Source,
    limit: u64,
    started: Instant,
    watch: Option<Arc<UploadWatch>>,
}

impl Upload {
    /// Wraps the body of a request that began at `started`, which may hold at most `limit` bytes. It breaks where it turns
    /// out to be longer.
    pub fn new(incoming: Incoming, limit: Option<u64>, started: Instant) -> Self {
        let watch = || UploadWatch {
            started,
            bytes: AtomicU64::new(0),
            moved_millis: AtomicU64::new(0),
            awaits_client: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            failure: OnceLock::new(),
        };
        Self {
            limit: limit.unwrap_or(u64::MAX),
            started,
            watch: (!incoming.is_end_stream()).then(|| Arc::new(watch())),
            source: Source::Client(incoming),
        }
    }

    /// No body, of a request that begins at `started`.
    pub fn empty(started: Instant) -> Self {
        Self::own(Bytes::new(), started)
    }

    /// The body of a request of our own that begins at `started`.
    pub fn own(body: Bytes, started: Instant) -> Self {
        Self {
            source: Source::Own(body),
            limit: 0,
            started,
            watch: None,
        }
    }

    /// When the request that it belongs to began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// A view for whoever waits for the answer; `None` of a body that has no bytes, or is our own.
    pub fn watch(&self) -> Option<Arc<UploadWatch>> {
        self.watch.clone()
    }
}

fn clean_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            sanitise_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let incoming = match &mut this.source {
            Source::Client(incoming) => incoming,
            Source::Own(body) => {
                let rest = std::mem::take(body);
                return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
            }
        };
        let Some(watch) = &this.watch else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(incoming).poll_frame(cx);
        watch.awaits_client.store(polled.is_pending(), Ordering::Relaxed);
        let passed = match ready!(polled) {
            None => return Poll::Ready(None),
            Some(frame) => frame
                .map_err(BodyError::from)
                .and_then(|frame| watch.pass(frame, this.limit)),
        };
        if let Err(error) = passed {
            let _ = watch.failure.set(error);
        }
        Poll::Ready(Some(passed))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Client(incoming) => incoming.is_end_stream(),
            Source::Own(body) => body.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Client(incoming) => incoming.size_hint(),
            Source::Own(body) => SizeHint::with_exact(body.len() as u64),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.ended.store(true, Ordering::Relaxed);
        }
    }
}

/// How an answer's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All of it was relayed.
    Complete,
    /// It broke off, or was silent for too long.
    Broken(BodyError),
    /// Whoever it was for went away.
    Unread,
}

/// What is to happen when an answer's body is over.
pub trait BodyEnd {
    /// Called once, when `bytes` of payload were relayed.
    fn ended(self, ending: Ending, bytes: u64);
}

/// An answer's body on its way down.
#[derive(Debug)]
pub struct Download<E: BodyEnd> {
    incoming: Incoming,
    silence: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    upload: Option<Arc<UploadWatch>>,
    end: Option<E>,
    bytes: u64,
}

impl<E: BodyEnd> Download<E> {
    /// Wraps an answer's body that may pause for at most `silence` unless `upload` still moves, and calls `end` when it
    /// is over.
    pub fn new(incoming: Incoming, silence: Duration, upload: Option<Arc<UploadWatch>>, end: E) -> Self {
        let mut download = Self {
            incoming,
            silence,
            timer: None,
            upload,
            end: Some(end),
            bytes: 0,
        };
        download.end_if_complete();
        download
    }

    // hyper stops polling once a declared length is met, so the end has to be looked for after each frame.
    fn end_if_complete(&mut self) {
        if self.incoming.is_end_stream() {
            self.end(Ending::Complete);
        }
    }

    fn end(&mut self, ending: Ending) {
        if let Some(end) = self.end.take() {
            end.ended(ending, self.bytes);
        }
    }

    /// Ready when the silence has lasted too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let silence = self.silence;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence)));
        ready!(timer.as_mut().poll(cx));
        let Some(next) = self
            .upload
            .as_ref()
            .map(|upload| upload.moved() + silence)
            .filter(|next| *next > Instant::now())
        else {
            return Poll::Ready(());
        };
        timer.as_mut().reset(next);
        timer.as_mut().poll(cx)
    }
}

impl<E: BodyEnd + Unpin> Body for Download<E> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            ready!(self.poll_silence(cx));
            self.end(Ending::Broken(BodyError::Silent));
            return Poll::Ready(Some(Err(BodyError::Silent)));
        };
        self.timer = None;
        match frame {
            Some(Ok(frame)) => {
                self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.end_if_complete();
                Poll::Ready(Some(Ok(clean_trailers(frame))))
            }
            Some(Err(error)) => {
                let error = BodyError::from(error);
                self.end(Ending::Broken(error));
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.end(Ending::Complete);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl<E: BodyEnd> Drop for Download<E> {
    fn drop(&mut self) {
        self.end(Ending::Unread);
    }
}

/// What a program answers with: a text of its own, or somebody else's body in passing.
#[derive(Debug)]
pub enum Answer<E: BodyEnd> {
    /// A whole body at hand.
    Own(Full<Bytes>),
    /// A body that is relayed. In a box, because a response passes through several futures before it is written.
    Relayed(Box<Download<E>>),
}

impl<E: BodyEnd> Answer<E> {
    /// No body.
    pub fn empty() -> Self {
        Self::Own(Full::default())
    }

    /// Relays a body; see [`Download::new`].
    pub fn relay(incoming: Incoming, silence: Duration, upload: Option<Arc<UploadWatch>>, end: E) -> Self {
        Self::Relayed(Box::new(Download::new(incoming, silence, upload, end)))
    }
}

impl<E: BodyEnd + Unpin> Body for Answer<E> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Relayed(body) => Pin::new(body.as_mut()).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Relayed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Relayed(body) => body.size_hint(),
        }
    }
}

/// An error as clients know it: `{"detail":"<text>"}`.
pub fn detail(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let body = serde_json::json!({ "detail": text }).to_string();
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Longest rest of a refused request's body that is read and thrown away, in bytes.
const DISCARD_BYTES: u64 = 1024 * 1024;
/// Longest time spent on that.
const DISCARD_TIME: Duration = Duration::from_millis(500);

/// Reads a bounded rest of a refused request's body, because closing a socket with unread bytes resets the connection
/// and the peer may lose the answer that said why.
pub async fn discard(mut incoming: Incoming) {
    if incoming.is_end_stream() {
        return;
    }
    let read = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = incoming.frame().await {
            seen += frame.data_ref().map_or(0, |data| data.len() as u64);
            if seen > DISCARD_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIME, read).await;
}
