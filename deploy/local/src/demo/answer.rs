//! What the demo app answers with: JSON, streams and refusals.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest silence inside a request body.
pub(super) const BODY_SILENCE: Duration = Duration::from_secs(60);
/// Pieces of a streamed answer that may wait for a slow reader.
const PIECES_AHEAD: usize = 4;

/// A response of the demo app.
pub(super) type Answer = Response<Either<Full<Bytes>, Stream>>;

/// A body that a task of its own produces piece by piece.
pub(super) struct Stream {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// Bytes still to come, when known beforehand.
    left: Option<u64>,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.pieces.poll_recv(cx).map(|piece| {
            let piece = piece?;
            if let (Some(left), Ok(bytes)) = (&mut self.left, &piece) {
                *left = left.saturating_sub(bytes.len() as u64);
            }
            Some(piece.map(Frame::data))
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A body of `length` bytes, if known, and the sender that feeds it.
///
/// The task that owns the sender runs at the reader's pace and ends when a send fails: then the caller has gone.
pub(super) fn stream(length: Option<u64>) -> (mpsc::Sender<io::Result<Bytes>>, Either<Full<Bytes>, Stream>) {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    (sender, Either::Right(Stream { pieces, left: length }))
}

/// An answer whose body is the JSON text `body`.
pub(super) fn json(status: StatusCode, body: String) -> Answer {
    let mut answer = Response::new(Either::Left(Full::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// An error answer in the shape of the Python runtime's: `{"detail": …}`.
pub(super) fn detail(status: StatusCode, detail: &str) -> Answer {
    json(status, json!({ "detail": detail }).to_string())
}

/// Reads `body` to its end without keeping it and returns its length in bytes.
///
/// # Errors
/// When the caller breaks off or stays silent for a minute.
pub(super) async fn count(body: &mut Incoming) -> Result<u64, Refusal> {
    let mut total = 0_u64;
    loop {
        let Ok(frame) = timeout(BODY_SILENCE, body.frame()).await else {
            return Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "the request body stopped arriving",
            ));
        };
        match frame {
            None => return Ok(total),
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                total = total.saturating_add(bytes as u64);
            }
            Some(Err(_)) => return Err(Refusal::new(StatusCode::BAD_REQUEST, "the request body broke off")),
        }
    }
}

/// Why a request isn't served.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    detail: String,
    /// What happened, for the log only.
    cause: Option<io::Error>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            cause: None,
        }
    }

    pub(super) fn into_answer(self, sandbox: &str) -> Answer {
        if let Some(error) = &self.cause {
            tracing::warn!(sandbox, %error, "the demo app's folder failed");
        }
        detail(self.status, &self.detail)
    }

    /// Whether the file or folder asked for doesn't exist.
    pub(super) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let (status, detail) = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => (StatusCode::NOT_FOUND, "no such file or folder"),
            io::ErrorKind::IsADirectory => (StatusCode::CONFLICT, "this is a folder"),
            io::ErrorKind::AlreadyExists => (StatusCode::CONFLICT, "a part of this path is a file"),
            io::ErrorKind::InvalidFilename => (StatusCode::BAD_REQUEST, "this name is too long"),
            io::ErrorKind::StorageFull => (StatusCode::INSUFFICIENT_STORAGE, "the disk is full"),
            _ => {
                let detail = "the demo app's folder failed; see the log of sandgate-local".into();
                return Self {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    detail,
                    cause: Some(error),
                };
            }
        };
        Self::new(status, detail)
    }
}
