//! Guards a connection on which responses arrive.

use super::gate::{Gate, Judge, write_through_gate};
use super::head::{Fields, Framing, Section, status_line};
use super::{Limits, Violation};
use bytes::Bytes;
use http::Version;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Hands responses from `S` on to hyper, and only those whose head is framed in exactly one way.
///
/// Judging starts when [`ExpectResponse::arm`] was called and ends behind the final head: a status of 200 or more, or
/// 101. Until the next call everything passes, the body too, which hyper checks and frames anew for whoever reads it;
/// hyper itself ends an idle connection on which bytes arrive. A violation is an error in which
/// [`violation`](super::violation) finds the reason, and nothing is handed on any more.
///
/// The guard waits as long as the peer does; the caller bounds the wait for a response. Writing passes through
/// untouched.
pub struct ResponseGuard<S> {
    gate: Gate<S>,
    judge: ResponseJudge,
    armed: Arc<AtomicBool>,
}

/// Announces responses to a [`ResponseGuard`]. Clones announce to the same one.
#[derive(Debug, Clone)]
pub struct ExpectResponse(Arc<AtomicBool>);

impl ExpectResponse {
    /// The next bytes are a response's head. To be called before each request is sent, when hyper is ready to take it.
    pub fn arm(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl<S> ResponseGuard<S> {
    /// A guard around `io`, and what tells it of requests.
    pub fn new(io: S, limits: Arc<Limits>) -> (Self, ExpectResponse) {
        let armed = Arc::new(AtomicBool::new(false));
        let judge = ResponseJudge {
            limits,
            head: None,
            informational: 0,
        };
        let guard = Self {
            gate: Gate::new(io),
            judge,
            armed: Arc::clone(&armed),
        };
        (guard, ExpectResponse(armed))
    }

    /// The connection, and the bytes that were read from it and not handed on.
    pub fn into_inner(self) -> (S, Bytes) {
        self.gate.into_inner()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ResponseGuard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.armed.load(Ordering::Acquire) && this.armed.swap(false, Ordering::AcqRel) {
            this.judge.expect();
        }
        let violation = ready!(this.gate.poll_judged(cx, buf, &mut this.judge))?;
        Poll::Ready(violation.map_or(Ok(()), |violation| Err(violation.into())))
    }
}

write_through_gate!(ResponseGuard);

/// Judges the response heads of one connection.
struct ResponseJudge {
    limits: Arc<Limits>,
    /// The head that is being read. None: everything passes.
    head: Option<Head>,
    /// 1xx heads since the request.
    informational: usize,
}

/// A response head as far as it was judged.
#[derive(Default)]
struct Head {
    section: Section,
    start: Option<(Version, u16)>,
    fields: Fields,
}

impl ResponseJudge {
    /// The next bytes are a response's head.
    fn expect(&mut self) {
        self.head = Some(Head::default());
        self.informational = 0;
    }

    /// Another head follows one with this status, or the body does.
    fn follow(&mut self, status: u16) -> Result<(), Violation> {
        if status == 101 || status >= 200 {
            self.head = None;
            return Ok(());
        }
        self.head = Some(Head::default());
        self.informational += 1;
        if self.informational > self.limits.informational {
            Err(Violation::TooManyInformational)
        } else {
            Ok(())
        }
    }
}

impl Judge for ResponseJudge {
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let Some(head) = &mut self.head else {
            return Ok(bytes.len());
        };
        let Some((length, status)) = head.judge(bytes, &self.limits)? else {
            return Ok(0);
        };
        self.follow(status)?;
        Ok(length)
    }
}

impl Head {
    /// The head's length and its status, or nothing when more bytes are needed.
    fn judge(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<(usize, u16)>, Violation> {
        while let Some(line) = self.section.line(bytes, limits)? {
            match self.start {
                None => self.start = Some(status_line(line)?),
                Some((version, status)) if line.is_empty() => {
                    let framing = self.fields.framing_in(version)?;
                    let bodiless = status < 200 || status == 204;
                    // Content-Length: 0 says what the status says. Real servers send it.
                    if bodiless && !matches!(framing, Framing::Unsaid | Framing::Length(0)) {
                        return Err(Violation::BodyNotAllowed);
                    }
                    return Ok(Some((self.section.len(), status)));
                }
                Some(_) => self.fields.line(line, limits)?,
            }
        }
        Ok(None)
    }
}

/// Whether a byte string starts with a complete final response head, or why it is refused. The guard's judgement
/// without a connection, with default limits: for fuzzing.
///
/// # Errors
/// The first violation.
pub fn judge_response_bytes(input: &[u8]) -> Result<bool, Violation> {
    let mut judge = ResponseJudge {
        limits: Arc::new(Limits::default()),
        head: None,
        informational: 0,
    };
    judge.expect();
    match judge.judge(input) {
        (_, Some(violation)) => Err(violation),
        (_, None) => Ok(judge.head.is_none()),
    }
}
