//! Holds back what may not be handed on yet. Both guards stand on it.

use super::Violation;
use bytes::Bytes;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Decides about the bytes of one direction of a connection, in order.
pub(super) trait Judge {
    /// How many leading bytes of `bytes`, which are not empty, are well framed. None if that can only be told of more
    /// bytes than these: they are presented again when more have arrived.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Violation>;

    /// How many bytes may be handed on, and what is wrong with those behind, if something is.
    fn judge(&mut self, bytes: &[u8]) -> (usize, Option<Violation>) {
        let mut good = 0;
        while let Some(rest) = bytes.get(good..).filter(|rest| !rest.is_empty()) {
            match self.step(rest) {
                Ok(0) => break,
                Ok(length) => good += length,
                Err(violation) => return (good, Some(violation)),
            }
        }
        (good, None)
    }
}

/// A connection whose reader sees only what a [`Judge`] passed.
pub(super) struct Gate<S> {
    pub(super) io: S,
    /// Bytes read and not handed on. Empty, and without memory of its own, most of the time.
    held: Vec<u8>,
    /// How many of the held bytes may be handed on.
    good: usize,
    /// What is wrong with the held bytes behind the good ones.
    objection: Option<Violation>,
}

impl<S> Gate<S> {
    pub(super) fn new(io: S) -> Self {
        Self {
            io,
            held: Vec::new(),
            good: 0,
            objection: None,
        }
    }

    pub(super) fn into_inner(self) -> (S, Bytes) {
        (self.io, self.held.into())
    }

    /// The bytes that can only be judged together with more.
    pub(super) fn unjudged(&self) -> &[u8] {
        self.held.get(self.good..).unwrap_or_default()
    }

    /// Forgets what is held.
    pub(super) fn clear(&mut self) {
        self.held = Vec::new();
        self.good = 0;
    }

    /// Hands on good bytes that are held. Whether there were any.
    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let count = self.good.min(buf.remaining());
        let Some(bytes) = self.held.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return false;
        };
        buf.put_slice(bytes);
        self.good -= count;
        if count == self.held.len() {
            self.held = Vec::new();
        } else {
            self.held.drain(..count);
        }
        true
    }
}

impl<S: AsyncRead + Unpin> Gate<S> {
    /// Reads until there is something to hand on, the peer closed (then `buf` stays as it is), or the judge objects to
    /// what comes next. `buf` must have room.
    pub(super) fn poll_judged(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        judge: &mut impl Judge,
    ) -> Poll<io::Result<Option<Violation>>> {
        loop {
            if self.hand_on(buf) {
                return Poll::Ready(Ok(None));
            }
            if self.objection.is_some() {
                return Poll::Ready(Ok(self.objection));
            }
            let start = buf.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            let read = buf.filled().get(start..).unwrap_or_default();
            if read.is_empty() {
                return Poll::Ready(Ok(None));
            }
            if self.held.is_empty() {
                let (good, objection) = judge.judge(read);
                self.held.extend_from_slice(read.get(good..).unwrap_or_default());
                self.objection = objection;
                buf.set_filled(start + good);
                if good > 0 {
                    return Poll::Ready(Ok(None));
                }
            } else {
                self.held.extend_from_slice(read);
                (self.good, self.objection) = judge.judge(&self.held);
                buf.set_filled(start);
            }
        }
    }

    /// Reads what is held and then whatever the peer sends.
    pub(super) fn poll_unjudged(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.good = self.held.len();
        if self.hand_on(buf) {
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut self.io).poll_read(cx, buf)
        }
    }
}

/// Up to this size, one plain write of a copy costs less than a vectored write.
const JOINED_BYTES: usize = 1024;

impl<S: AsyncWrite + Unpin> Gate<S> {
    /// Writes a head and a small body as one slice, and anything larger as it is.
    pub(super) fn poll_write_joined(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.io);
        if let [only] = bufs {
            return io.poll_write(cx, only);
        }
        let mut joined = [0; JOINED_BYTES];
        let mut length = 0;
        for buf in bufs {
            let Some(room) = joined.get_mut(length..length + buf.len()) else {
                return io.poll_write_vectored(cx, bufs);
            };
            room.copy_from_slice(buf);
            length += buf.len();
        }
        io.poll_write(cx, joined.get(..length).unwrap_or_default())
    }
}

/// Implements `AsyncWrite` for a guard: writing is none of its business.
macro_rules! write_through_gate {
    ($guard:ident) => {
        impl<S: AsyncWrite + Unpin> AsyncWrite for $guard<S> {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.get_mut().gate.io).poll_write(cx, buf)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.get_mut().gate.poll_write_joined(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.gate.io.is_write_vectored()
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().gate.io).poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().gate.io).poll_shutdown(cx)
            }
        }
    };
}
pub(super) use write_through_gate;
