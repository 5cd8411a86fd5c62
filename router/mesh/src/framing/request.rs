//! Guards a connection on which requests arrive.

use super::body::{Chunks, skip};
use super::gate::{Gate, Judge, write_through_gate};
use super::head::{Fields, Framing, Section, Trailers, request_line};
use super::{Limits, Violation};
use bytes::{Buf, Bytes};
use http::{Method, Request, Uri, Version};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The method of the request that stands in for a refused one. Nobody else may use it.
const REFUSED: &str = "SANDGATE-REFUSED";
/// How much of what a refused peer sends on is read and thrown away. Closing a socket with unread bytes resets the
/// connection, and a reset can overtake the answer.
const DISCARDED_BYTES: usize = 256 * 1024;

/// Hands requests from `S` on to hyper, and only those that are framed in exactly one way.
///
/// - A bad head is replaced by a request that [`refusal`] recognises. Nothing behind it is handed on, and hyper closes
///   the connection after the answer.
/// - A bad chunk or trailer ends the body with an error in which [`violation`](super::violation) finds the reason.
/// - A head that takes longer than [`Limits::head_time`] is refused. Silence inside a body and between messages is not
///   the guard's business, however long it lasts: see [`crate::serve::http1`].
/// - One empty line before a request line is tolerated (RFC 9112 section 2.2), a second one is not.
///
/// Writing passes through untouched.
pub struct RequestGuard<S> {
    gate: Gate<S>,
    judge: RequestJudge,
    mode: Arc<AtomicU8>,
    /// Set when a head was refused.
    refused: Option<Refused>,
    /// Runs while a head is incomplete.
    head_timer: Option<Pin<Box<Sleep>>>,
}

/// The rest of the stand-in for a refused head, and how much may still be read and thrown away behind it.
struct Refused {
    text: Bytes,
    discard: usize,
}

/// Ends the judging of a connection's requests. Clones are the same switch. Whoever goes on with what comes behind it keeps one
/// until the end: so an HTTP/2 connection knows that a stream of it is still in use.
#[derive(Debug, Clone)]
pub struct PassThrough(Arc<AtomicU8>);

/// Whether a [`PassThrough`] is still kept by anybody.
#[derive(Debug)]
pub(crate) struct Kept(Weak<AtomicU8>);

impl Kept {
    pub(crate) fn is_kept(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// States of a [`PassThrough`]: only the first one can be left.
const JUDGING: u8 = 0;
const OPEN: u8 = 1;
const CLOSED: u8 = 2;

impl PassThrough {
    /// The switch of a request whose connection nobody judges byte by byte: an HTTP/2 stream, which is its own.
    pub(crate) fn of_stream() -> Self {
        Self(Arc::new(AtomicU8::new(JUDGING)))
    }

    /// To know whether anybody keeps it.
    pub(crate) fn kept(&self) -> Kept {
        Kept(Arc::downgrade(&self.0))
    }

    /// Lets everything behind the current request pass unjudged, bytes that were held back first. To be called before
    /// the service answers 101.
    ///
    /// Returns false, and changes nothing, if something behind the current request was already refused: the peer didn't
    /// wait for the 101, and the connection can't be upgraded any more. The answer is 400, then.
    #[must_use = "an upgrade must not go ahead when this is false"]
    pub fn open(&self) -> bool {
        leave_judging(&self.0, OPEN)
    }
}

/// Whether the connection is in `state` now, for good.
fn leave_judging(mode: &AtomicU8, state: u8) -> bool {
    match mode.compare_exchange(JUDGING, state, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(now) => now == state,
    }
}

impl<S> RequestGuard<S> {
    /// A guard around `io`, and the switch that turns it off for an upgrade.
    pub fn new(io: S, limits: Arc<Limits>) -> (Self, PassThrough) {
        let mode = Arc::new(AtomicU8::new(JUDGING));
        let guard = Self {
            gate: Gate::new(io),
            judge: RequestJudge::new(limits),
            mode: Arc::clone(&mode),
            refused: None,
            head_timer: None,
        };
        (guard, PassThrough(mode))
    }

    /// The connection, and the bytes that were read from it and not handed on.
    pub fn into_inner(self) -> (S, Bytes) {
        self.gate.into_inner()
    }
}

impl<S: AsyncRead + Unpin> RequestGuard<S> {
    fn poll_judged(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let violation = match self.gate.poll_judged(cx, buf, &mut self.judge) {
            Poll::Ready(result) => {
                self.head_timer = None;
                match result? {
                    Some(violation) => violation,
                    None => return Poll::Ready(Ok(())),
                }
            }
            Poll::Pending => {
                ready!(self.poll_head_timer(cx));
                Violation::SlowHead
            }
        };
        if !leave_judging(&self.mode, CLOSED) {
            return self.gate.poll_unjudged(cx, buf);
        }
        if !self.judge.in_head() {
            return Poll::Ready(Err(violation.into()));
        }
        self.gate.clear();
        self.refused = Some(Refused {
            text: stand_in(violation),
            discard: DISCARDED_BYTES,
        });
        self.poll_refused(cx, buf)
    }

    /// Ready when a head is incomplete and has taken too long. A lone empty line is no head yet.
    fn poll_head_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.judge.in_head() || matches!(self.gate.unjudged(), b"" | b"\r\n") {
            return Poll::Pending;
        }
        let head_time = self.judge.limits.head_time;
        self.head_timer
            .get_or_insert_with(|| Box::pin(sleep(head_time)))
            .as_mut()
            .poll(cx)
    }

    /// Hands on the stand-in. Then never ready again: at an end of input hyper would drop the answer unsent.
    fn poll_refused(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(refused) = &mut self.refused else {
            return Poll::Pending;
        };
        if refused.text.has_remaining() {
            let count = refused.text.len().min(buf.remaining());
            buf.put_slice(&refused.text.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        while refused.discard > 0 {
            let Poll::Ready(Ok(())) = Pin::new(&mut self.gate.io).poll_read(cx, buf) else {
                break;
            };
            let read = buf.filled().len() - start;
            if read == 0 {
                break;
            }
            buf.set_filled(start);
            refused.discard = refused.discard.saturating_sub(read);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestGuard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.refused.is_some() {
            this.poll_refused(cx, buf)
        } else if this.mode.load(Ordering::Acquire) == OPEN {
            this.head_timer = None;
            this.gate.poll_unjudged(cx, buf)
        } else {
            this.poll_judged(cx, buf)
        }
    }
}

write_through_gate!(RequestGuard);

/// The request that hyper sees instead of a refused one.
fn stand_in(violation: Violation) -> Bytes {
    let code = violation as usize;
    format!("{REFUSED} /{code} HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n").into()
}

/// The same for a request that arrived over HTTP/2, with its own body.
pub(super) fn stand_in_request<B>(violation: Violation, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(REFUSED.as_bytes()).unwrap_or_default();
    *request.uri_mut() = Uri::try_from(format!("/{}", violation as usize)).unwrap_or_default();
    request
}

/// Whether only a stand-in may have this method.
pub(super) fn is_reserved(method: &Method) -> bool {
    method.as_str() == REFUSED
}

/// Why the request that this one stands in for was refused, if it is a stand-in.
///
/// The service answers it with [`Violation::status`] and [`Violation::detail`] before it looks at anything else. The
/// connection closes by itself after that over HTTP/1, where only a [`RequestGuard`] can have made a stand-in.
pub fn refusal<B>(request: &Request<B>) -> Option<Violation> {
    if !is_reserved(request.method()) {
        return None;
    }
    let code: usize = request.uri().path().strip_prefix('/')?.parse().ok()?;
    Violation::ALL.get(code).copied()
}

/// Judges the requests of one connection.
struct RequestJudge {
    limits: Arc<Limits>,
    place: Place,
}

/// Where in a request the next byte is.
enum Place {
    Head(Head),
    Fixed(u64),
    Chunks(Chunks),
    Trailers(Trailers),
}

/// A request head as far as it was judged.
#[derive(Default)]
struct Head {
    section: Section,
    version: Option<Version>,
    fields: Fields,
}

impl RequestJudge {
    fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            place: Place::Head(Head::default()),
        }
    }

    /// Whether the next byte belongs to a head.
    fn in_head(&self) -> bool {
        matches!(self.place, Place::Head(_))
    }
}

impl Judge for RequestJudge {
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let between_messages = || Place::Head(Head::default());
        match &mut self.place {
            Place::Head(head) => {
                let Some((length, framing)) = head.judge(bytes, &self.limits)? else {
                    return Ok(0);
                };
                self.place = match framing {
                    Framing::Unsaid | Framing::Length(0) => between_messages(),
                    Framing::Length(left) => Place::Fixed(left),
                    Framing::Chunked => Place::Chunks(Chunks::new()),
                };
                Ok(length)
            }
            Place::Fixed(left) => {
                let length = skip(left, bytes.len());
                if *left == 0 {
                    self.place = between_messages();
                }
                Ok(length)
            }
            Place::Chunks(chunks) => {
                let (length, ended) = chunks.judge(bytes)?;
                if ended {
                    self.place = Place::Trailers(Trailers::default());
                }
                Ok(length)
            }
            Place::Trailers(trailers) => {
                let Some(length) = trailers.judge(bytes, &self.limits)? else {
                    return Ok(0);
                };
                self.place = between_messages();
                Ok(length)
            }
        }
    }
}

impl Head {
    /// The head's length and its body's framing, or nothing when more bytes are needed.
    fn judge(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<(usize, Framing)>, Violation> {
        loop {
            if self.version.is_none() && self.section.target_too_long(bytes, limits) {
                return Err(Violation::TargetTooLong);
            }
            let Some(line) = self.section.line(bytes, limits)? else {
                return Ok(None);
            };
            match self.version {
                None if line.is_empty() && self.section.len() == b"\r\n".len() => {}
                None => self.version = Some(request_line(line, REFUSED)?),
                Some(version) if line.is_empty() => {
                    let framing = self.fields.framing_in(version)?;
                    if version == Version::HTTP_11 && !self.fields.host {
                        return Err(Violation::HostMissing);
                    }
                    return Ok(Some((self.section.len(), framing)));
                }
                Some(_) => self.fields.line(line, limits)?,
            }
        }
    }
}

/// How many complete requests a byte string holds, or why one of them is refused. The guard's judgement without a
/// connection, with default limits: for fuzzing.
///
/// # Errors
/// The first violation.
pub fn judge_request_bytes(input: &[u8]) -> Result<usize, Violation> {
    let mut judge = RequestJudge::new(Arc::new(Limits::default()));
    let mut rest = input;
    let mut complete = 0;
    while !rest.is_empty() {
        let length = judge.step(rest)?;
        if length == 0 {
            break;
        }
        complete += usize::from(judge.in_head());
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(complete)
}
