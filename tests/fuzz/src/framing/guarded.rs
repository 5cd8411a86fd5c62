//! Reading through a guard.

use sandgate_mesh::framing::{Violation, refusal, violation};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A peer that sends pieces, at most one a read, and takes whatever it is sent.
pub(super) struct Peer {
    pieces: VecDeque<Vec<u8>>,
    behind: Behind,
    /// Whether nothing may be read yet.
    waits: bool,
    reader: Waker,
}

/// What a peer does when it has sent everything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    Close,
    FallSilent,
}

impl Peer {
    pub(super) fn new(pieces: &[&[u8]], behind: Behind) -> Self {
        Self {
            pieces: pieces.iter().map(|piece| piece.to_vec()).collect(),
            behind,
            waits: false,
            reader: Waker::noop().clone(),
        }
    }

    /// Sends nothing before it was sent something.
    pub(super) fn answering(self) -> Self {
        Self { waits: true, ..self }
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.waits {
            self.reader.clone_from(cx.waker());
            return Poll::Pending;
        }
        let behind = self.behind;
        let Some(piece) = self.pieces.front_mut() else {
            return match behind {
                Behind::Close => Poll::Ready(Ok(())),
                Behind::FallSilent => Poll::Pending,
            };
        };
        let count = piece.len().min(buf.remaining());
        buf.put_slice(&piece[..count]);
        piece.drain(..count);
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.waits = false;
        self.reader.wake_by_ref();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How reading through a guard ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Closed,
    /// The last thing handed on was the stand-in for a refused head.
    Refused(Violation),
    Error(Violation),
}

/// Everything a guard around a peer that closes hands on, read with a buffer of `room` bytes.
pub(super) fn read_all(mut guard: impl AsyncRead + Unpin, room: usize) -> (Vec<u8>, End) {
    let mut handed_on = Vec::new();
    let mut memory = vec![0; room];
    loop {
        let mut buf = ReadBuf::new(&mut memory);
        match Pin::new(&mut guard).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return (handed_on, End::Closed),
            Poll::Ready(Ok(())) => handed_on.extend_from_slice(buf.filled()),
            Poll::Ready(Err(error)) => return (handed_on, End::Error(violation(&error).unwrap())),
            Poll::Pending => {
                let why = split_off_stand_in(&mut handed_on);
                return (handed_on, End::Refused(why));
            }
        }
    }
}

/// Takes the stand-in for a refused head off the end.
fn split_off_stand_in(handed_on: &mut Vec<u8>) -> Violation {
    let method = b"SANDGATE-REFUSED ";
    let start = handed_on
        .windows(method.len())
        .rposition(|window| window == method)
        .unwrap();
    let stand_in = String::from_utf8(handed_on.split_off(start)).unwrap();
    assert!(
        stand_in.ends_with(" HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n"),
        "{stand_in}"
    );
    let mut words = stand_in.split(' ');
    let request = http::Request::builder()
        .method(words.next().unwrap())
        .uri(words.next().unwrap())
        .body(())
        .unwrap();
    refusal(&request).unwrap()
}
