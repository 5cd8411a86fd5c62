//! Counts the heads of an upstream's answers as they arrive. h2 keeps each informational one until it is asked for, and hyper
//! asks for the last head only: an app could fill memory with them.

use crate::framing::{Limits, Violation};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A frame's header in bytes (RFC 9113 section 4.1): length, type, flags, stream.
const HEADER: usize = 9;
/// The type of a HEADERS frame.
const HEADERS: u8 = 1;
/// The heads of an answer that aren't informational: its own, and its trailers.
const FINAL: usize = 2;

/// A connection to an upstream that breaks when an answer has more heads than the limits allow.
pub(crate) struct CountedHeads<S> {
    io: S,
    frames: Frames,
}

impl<S> CountedHeads<S> {
    pub(crate) fn new(io: S, limits: &Limits) -> Self {
        Self {
            io,
            frames: Frames {
                most: limits.informational.saturating_add(FINAL),
                header: [0; HEADER],
                read: 0,
                payload: 0,
                stream: 0,
                heads: 0,
            },
        }
    }
}

/// Where in the frames a reader is, and how many heads the youngest stream has had. Frames of older ones count as its own: they
/// have ended, or it is too much at once in any case.
struct Frames {
    most: usize,
    header: [u8; HEADER],
    /// Bytes of the header that have come.
    read: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
    stream: u32,
    heads: usize,
}

impl Frames {
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = bytes.split_first() else { break };
            if let Some(place) = self.header.get_mut(self.read) {
                *place = *byte;
            }
            self.read += 1;
            bytes = rest;
            if self.read == HEADER {
                self.read = 0;
                self.begin()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Violation> {
        let [a, b, c, kind, _flags, stream @ ..] = self.header;
        self.payload = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if kind != HEADERS {
            return Ok(());
        }
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        if stream > self.stream {
            (self.stream, self.heads) = (stream, 0);
        }
        self.heads += 1;
        if self.heads > self.most {
            return Err(Violation::TooManyInformational);
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CountedHeads<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let came = buf.filled().get(before..).unwrap_or_default();
        Poll::Ready(self.frames.take(came).map_err(io::Error::from))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountedHeads<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, 4, 0, 0, 0, stream], payload].concat()
    }

    /// What becomes of these bytes in pieces of this size.
    fn taken(bytes: &[u8], piece: usize) -> Result<(), Violation> {
        let mut frames = CountedHeads::new((), &Limits::default()).frames;
        bytes.chunks(piece).try_for_each(|piece| frames.take(piece))
    }

    #[test]
    fn an_answer_has_eight_informational_heads_at_most_however_they_arrive() {
        // A payload that looks like the header of another head.
        let decoy = frame(HEADERS, 1, &[]);
        let stream = |id| {
            let heads = (0..10).flat_map(|_| [frame(HEADERS, id, b"abc"), frame(0, id, &decoy)]);
            heads.collect::<Vec<_>>().concat()
        };
        let two = [stream(1), stream(3)].concat();
        let reserved = [&[0, 0, 0, HEADERS, 4, 0x80, 0, 0, 3], &[][..]].concat();
        for piece in [1, 2, 8, 9, 10, 1000] {
            assert_eq!(taken(&two, piece), Ok(()));
            for more in [frame(HEADERS, 3, &[]), frame(HEADERS, 1, &[]), reserved.clone()] {
                let refused = taken(&[&two[..], &more].concat(), piece);
                assert_eq!(refused, Err(Violation::TooManyInformational), "{more:?}");
            }
        }
    }
}
