//! One direction of a tunnel. Idle, it holds no buffer: bytes are read into one that all tunnels of a thread share, written
//! from there, and kept only as far as the other side did not take them.

use super::TunnelEnd;
use super::websocket::{Fault, Follower};
use bytes::{Buf, BytesMut};
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

thread_local! {
    static SHARED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// This thread's buffer, taken for as long as one poll lasts.
struct Chunk(Vec<u8>);

impl Chunk {
    fn take() -> Self {
        let mut chunk = SHARED.take();
        chunk.resize(CHUNK, 0);
        Self(chunk)
    }

    /// Reads at most `most` bytes behind the `held` ones, which move here. Returns them all; `None` at the stream's end.
    fn poll_fill<R>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        held: &mut BytesMut,
        most: u64,
    ) -> Poll<io::Result<Option<&[u8]>>>
    where
        R: AsyncRead + Unpin,
    {
        // Part of a frame's header, or nothing.
        let (front, room) = self.0.split_at_mut(held.len());
        front.copy_from_slice(held);
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(room.len());
        let mut room = ReadBuf::new(room.get_mut(..most).unwrap_or_default());
        ready!(Pin::new(from).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        if read == 0 {
            return Poll::Ready(Ok(None));
        }
        let filled = held.len() + read;
        *held = BytesMut::new();
        Poll::Ready(Ok(self.0.get(..filled)))
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        SHARED.set(std::mem::take(&mut self.0));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The reading side has ended, and the writing side is to be told.
    Ended,
    /// Nothing moves any more.
    Over,
}

/// Moves bytes from one side to the other.
#[derive(Debug)]
pub(super) struct Way {
    /// `None` where bytes pass without being looked at.
    frames: Option<Follower>,
    /// Read and not written.
    held: BytesMut,
    /// How many of the held bytes may be written. What is behind them is part of a header, or begins with a faulty frame.
    good: usize,
    fault: Option<Fault>,
    unflushed: bool,
    state: State,
    moved: bool,
    /// Written so far.
    bytes: u64,
}

impl Way {
    pub(super) fn new(frames: Option<Follower>) -> Self {
        Self {
            frames,
            held: BytesMut::new(),
            good: 0,
            fault: None,
            unflushed: false,
            state: State::Open,
            moved: false,
            bytes: 0,
        }
    }

    /// How many bytes were written.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a byte moved since this was asked last.
    pub(super) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Passes what comes until it ends, and then ends the writing side, too.
    ///
    /// # Errors
    /// A side broke, or a frame came that may not pass, after everything before it has.
    pub(super) fn poll_pass<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<Result<(), TunnelEnd>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let passed = ready!(self.poll_pass_within(cx, from, to, |_| u64::MAX));
        Poll::Ready(match (passed, self.fault) {
            (Err(_), _) => Err(TunnelEnd::Broken),
            (Ok(()), Some(Fault::Malformed)) => Err(TunnelEnd::Malformed),
            (Ok(()), Some(Fault::TooBig)) => Err(TunnelEnd::TooBig),
            (Ok(()), None) => Ok(()),
        })
    }

    /// Passes what was read, and of what comes only the rest of the frame under way.
    pub(super) fn poll_finish<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if ready!(self.poll_pass_within(cx, from, to, Follower::rest)).is_err() {
            self.state = State::Over;
        }
        Poll::Ready(())
    }

    /// Passes bytes until the stream ends, there is a fault, or no more of them are `wanted`.
    fn poll_pass_within<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        wanted: impl Fn(&Follower) -> u64,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut chunk = Chunk::take();
        loop {
            ready!(self.poll_write_held(cx, to))?;
            let wanted = self.frames.as_ref().map_or(u64::MAX, &wanted);
            if self.fault.is_some() || wanted == 0 {
                return Poll::Ready(Ok(()));
            }
            match self.state {
                State::Open => {}
                State::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Over;
                    return Poll::Ready(Ok(()));
                }
                State::Over => return Poll::Ready(Ok(())),
            }
            let read = ready!(chunk.poll_fill(cx, from, &mut self.held, wanted))?;
            self.moved = true;
            if let Some(bytes) = read {
                self.forward(cx, bytes, to)?;
            } else {
                // A header that never was complete is nobody's frame, and passes as it is.
                self.good = self.held.len();
                self.state = State::Ended;
            }
        }
    }

    /// Writes as much of these `bytes` as may pass and the other side takes now, and holds the rest.
    fn forward<W>(&mut self, cx: &mut Context<'_>, bytes: &[u8], to: &mut W) -> io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        let (good, fault) = match &mut self.frames {
            Some(frames) => frames.follow(bytes),
            None => (bytes.len(), None),
        };
        self.fault = fault;
        let mut written = 0;
        while let Some(good) = bytes.get(written..good).filter(|good| !good.is_empty()) {
            match Pin::new(&mut *to).poll_write(cx, good) {
                Poll::Ready(result) => written += self.note(result?)?,
                Poll::Pending => break,
            }
        }
        self.good = good - written;
        self.held = BytesMut::from(bytes.get(written..).unwrap_or_default());
        Ok(())
    }

    /// Writes the good ones of the held bytes, and sees them off.
    pub(super) fn poll_write_held<W>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        if self.good > 0 {
            while let Some(good) = self.held.get(..self.good).filter(|good| !good.is_empty()) {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, good))?;
                let written = self.note(written)?;
                self.held.advance(written);
                self.good -= written;
            }
            // In memory of its own size: a few bytes of a header may lie here for long.
            self.held = BytesMut::from(&*self.held);
        }
        if self.unflushed {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Notes so many written bytes.
    fn note(&mut self, written: usize) -> io::Result<usize> {
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes += written as u64;
        self.unflushed = true;
        self.moved = true;
        Ok(written)
    }

    /// Passes nothing more. Where the writing side is between two frames and has had no close, it gets this one. Returns
    /// whether it knows now that the tunnel closes, and who listens to the reading side from here on.
    pub(super) fn close(&mut self, close: Option<BytesMut>) -> (bool, Ear) {
        let mut frames = self.frames.take().unwrap_or_else(|| Follower::new(0));
        let unsent = self.held.split_off(self.good);
        let is_between_frames = self.state == State::Open && self.good == 0 && frames.rest() == 0;
        let knows = match close {
            _ if frames.closes() => true,
            Some(close) if is_between_frames => {
                self.good = close.len();
                self.held = close;
                true
            }
            _ => false,
        };
        frames.forgive();
        let mut ear = Ear {
            frames,
            held: BytesMut::new(),
            is_done: self.state != State::Open,
        };
        ear.hear(&unsent);
        (knows, ear)
    }
}

/// Listens to a side for its close, and forgets everything else that it says.
#[derive(Debug)]
pub(super) struct Ear {
    frames: Follower,
    /// Part of a header.
    held: BytesMut,
    is_done: bool,
}

impl Ear {
    /// Completes when the side has closed, or is gone.
    pub(super) fn poll_close<R>(&mut self, cx: &mut Context<'_>, from: &mut R) -> Poll<()>
    where
        R: AsyncRead + Unpin,
    {
        let mut chunk = Chunk::take();
        while !self.is_done {
            match ready!(chunk.poll_fill(cx, from, &mut self.held, u64::MAX)) {
                Ok(Some(bytes)) => self.hear(bytes),
                Ok(None) | Err(_) => self.is_done = true,
            }
        }
        Poll::Ready(())
    }

    fn hear(&mut self, bytes: &[u8]) {
        let (passed, _) = self.frames.follow(bytes);
        self.held = BytesMut::from(bytes.get(passed..).unwrap_or_default());
        self.is_done |= self.frames.closes() && self.frames.rest() == 0;
    }
}
