//! What every test here needs: connections that deliver bytes in chosen pieces, and what came through a guard.

mod cases;
mod request;
mod response;
mod server;

use super::{Violation, refusal, violation};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A peer that sends pieces, at most one a read, and then closes its side or falls silent. It takes whatever it is sent.
struct Peer {
    pieces: VecDeque<Vec<u8>>,
    closes: bool,
}

impl Peer {
    fn sends<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self {
            pieces: pieces.into_iter().map(<[u8]>::to_vec).collect(),
            closes: true,
        }
    }

    fn then_falls_silent(self) -> Self {
        Self { closes: false, ..self }
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let closes = self.closes;
        let Some(piece) = self.pieces.front_mut() else {
            return if closes { Poll::Ready(Ok(())) } else { Poll::Pending };
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
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    /// Never ready again.
    Waiting,
    /// The last thing handed on was the stand-in for a refused head.
    Refused(Violation),
    Error(Violation),
}

/// Everything a guard hands on, read with a buffer of `room` bytes.
fn read_all(guard: &mut (impl AsyncRead + Unpin), room: usize) -> (Vec<u8>, End) {
    let mut handed_on = Vec::new();
    let mut memory = vec![0; room];
    loop {
        let mut buf = ReadBuf::new(&mut memory);
        match Pin::new(&mut *guard).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return (handed_on, End::Closed),
            Poll::Ready(Ok(())) => handed_on.extend_from_slice(buf.filled()),
            Poll::Ready(Err(error)) => return (handed_on, End::Error(violation(&error).unwrap())),
            Poll::Pending => {
                let stand_in = split_stand_in(&handed_on);
                return stand_in.map_or((handed_on, End::Waiting), |(good, why)| (good, End::Refused(why)));
            }
        }
    }
}

/// What came before a stand-in, and what the stand-in says.
fn split_stand_in(bytes: &[u8]) -> Option<(Vec<u8>, Violation)> {
    let text = str::from_utf8(bytes).ok()?;
    let start = text.rfind("SANDGATE-REFUSED ")?;
    let (good, stand_in) = text.split_at(start);
    assert!(
        stand_in.ends_with(" HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n"),
        "{stand_in}"
    );
    let mut words = stand_in.split(' ');
    let request = http::Request::builder()
        .method(words.next()?)
        .uri(words.next()?)
        .body(())
        .unwrap();
    Some((good.into(), refusal(&request).unwrap()))
}

/// The bytes in one piece, byte by byte, and cut in two at every place.
fn deliveries(bytes: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let whole_and_dribbled = [vec![bytes], bytes.chunks(1).collect()];
    whole_and_dribbled
        .into_iter()
        .chain((1..bytes.len()).map(|cut| vec![&bytes[..cut], &bytes[cut..]]))
}

/// What only an app's answer can be: the client isn't told.
const OF_ANSWERS: [Violation; 3] = [
    Violation::StatusLine,
    Violation::BodyNotAllowed,
    Violation::TooManyInformational,
];

#[test]
fn the_runbook_has_every_violation_with_its_status_and_no_other() {
    let page = include_str!("../../../../../docs/runbook.md");
    let section = page.split("## Requests that can be read in two ways").nth(1).unwrap();
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'));
    let row = |line: &str| {
        let (before, text) = (line.split(" | ").next().unwrap(), line.split('`').nth(1).unwrap());
        let status = before.trim_start_matches("| ").parse::<u16>().ok();
        (text.to_owned(), status)
    };
    let rows: BTreeMap<_, _> = rows.map(row).collect();
    let status = |violation: &Violation| violation.status().as_u16();
    let told = |violation: &Violation| (!OF_ANSWERS.contains(violation)).then(|| status(violation));
    let all = Violation::ALL.iter();
    let expected: BTreeMap<_, _> = all.map(|one| (one.detail().to_owned(), told(one))).collect();
    assert_eq!(rows, expected, "docs/runbook.md on the left");
}
