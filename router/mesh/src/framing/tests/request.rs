//! What a request guard accepts and refuses, without hyper.

use super::cases::{GOOD, bad_bodies, bad_heads, chunked, good_streams};
use super::{End, Peer, deliveries, read_all};
use crate::framing::{Limits, RequestGuard, Violation, judge_request_bytes, refusal};
use http::{StatusCode, Uri};
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::io::{AsyncRead, ReadBuf};

fn guard(peer: Peer) -> RequestGuard<Peer> {
    RequestGuard::new(peer, Arc::new(Limits::default())).0
}

#[test]
fn complete_streams_come_out_as_they_went_in_however_they_are_cut() {
    for (count, stream) in good_streams() {
        assert_eq!(judge_request_bytes(stream.as_bytes()), Ok(count), "{stream}");
        for pieces in deliveries(stream.as_bytes()) {
            for room in [1, 7, 8192] {
                let (bytes, end) = read_all(&mut guard(Peer::sends(pieces.iter().copied())), room);
                assert_eq!(
                    (String::from_utf8_lossy(&bytes), end),
                    (stream.as_str().into(), End::Closed)
                );
            }
        }
    }
}

#[test]
fn bad_heads_are_refused_and_what_came_before_is_served() {
    for (name, head, why) in bad_heads() {
        assert_eq!(judge_request_bytes(head.as_bytes()), Err(why), "{name}");
        for before in ["", GOOD, &chunked("5\r\nhello\r\n0\r\n\r\n")] {
            let stream = format!("{before}{head}{GOOD}");
            for pieces in deliveries(stream.as_bytes()) {
                let (bytes, end) = read_all(&mut guard(Peer::sends(pieces)), 8192);
                assert_eq!(
                    (String::from_utf8_lossy(&bytes), end),
                    (before.into(), End::Refused(why)),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn bad_bodies_end_in_an_error_and_nothing_behind_them_is_handed_on() {
    for (name, message, why) in bad_bodies() {
        assert_eq!(judge_request_bytes(message.as_bytes()), Err(why), "{name}");
        let stream = format!("{GOOD}{message}{GOOD}");
        let dribbled = stream.as_bytes().chunks(1).collect();
        for pieces in [vec![stream.as_bytes()], dribbled] {
            let (bytes, end) = read_all(&mut guard(Peer::sends(pieces)), 8192);
            assert_eq!(end, End::Error(why), "{name}");
            assert!(bytes.len() < GOOD.len() + message.len(), "{name}");
            assert!(stream.as_bytes().starts_with(&bytes), "{name}");
        }
    }
}

#[test]
fn endless_heads_are_refused_as_soon_as_they_are_too_long() {
    use Violation as V;
    let start = "GET / HTTP/1.1\r\nHost: a\r\n";
    let filled = |size: usize| format!("{start}A: {}", "a".repeat(size - start.len() - "A: ".len()));
    let cases = [
        (
            "target",
            format!("GET /{}", "a".repeat(8192)),
            V::TargetTooLong,
            StatusCode::URI_TOO_LONG,
        ),
        (
            "method",
            "A".repeat(61_441),
            V::HeadTooLarge,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
        (
            "value",
            filled(61_441),
            V::HeadTooLarge,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
        (
            "lines",
            format!("{start}{}", "A: b\r\n".repeat(100)),
            V::TooManyHeaders,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
    ];
    for (name, bytes, why, status) in cases {
        assert_eq!(why.status(), status);
        for pieces in [vec![bytes.as_bytes()], bytes.as_bytes().chunks(16).collect()] {
            let (before, end) = read_all(&mut guard(Peer::sends(pieces).then_falls_silent()), 100_000);
            assert_eq!((before.as_slice(), end), (&b""[..], End::Refused(why)), "{name}");
        }
        // One byte, or one line, less is still waited for.
        let shorter = if name == "lines" {
            bytes.len() - 6
        } else {
            bytes.len() - 1
        };
        assert_eq!(judge_request_bytes(&bytes.as_bytes()[..shorter]), Ok(0), "{name}");
    }
}

#[test]
fn the_largest_head_is_accepted() {
    let largest = |size: usize| {
        let start = "GET / HTTP/1.1\r\nHost: a\r\nA: ";
        format!("{start}{}\r\n\r\n", "a".repeat(size - start.len() - 4))
    };
    assert_eq!(judge_request_bytes(largest(61_440).as_bytes()), Ok(1));
    assert_eq!(
        judge_request_bytes(largest(61_441).as_bytes()),
        Err(Violation::HeadTooLarge)
    );
    let target = |size: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(size - 1));
    assert_eq!(judge_request_bytes(target(8192).as_bytes()), Ok(1));
    assert_eq!(
        judge_request_bytes(target(8193).as_bytes()),
        Err(Violation::TargetTooLong)
    );
}

#[test]
fn a_broken_line_is_refused_for_its_break_however_much_arrives_behind_it() {
    let long = "a".repeat(8193);
    for (line_break, why) in [("\r", Violation::BareCarriageReturn), ("\n", Violation::BareLineFeed)] {
        for start in ["", "GET", "GET /"] {
            let stream = format!("{start}{line_break}{long}\n");
            for pieces in [vec![stream.as_bytes()], stream.as_bytes().chunks(1).collect()] {
                let (before, end) = read_all(&mut guard(Peer::sends(pieces)), 100_000);
                assert_eq!((before.as_slice(), end), (&b""[..], End::Refused(why)), "{start:?}");
            }
        }
    }
}

#[test]
fn chunk_extensions_are_bounded_over_the_whole_body() {
    let chunks = |count: usize| chunked(&format!("1;{}\r\na\r\n", "x".repeat(127)).repeat(count));
    assert_eq!(judge_request_bytes(chunks(127).as_bytes()), Ok(0));
    assert_eq!(
        judge_request_bytes(chunks(128).as_bytes()),
        Err(Violation::ChunkLineTooLong)
    );
}

#[test]
fn large_bodies_pass() {
    let body = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".repeat(30_000);
    let fixed = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let chunked = chunked(&format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    let stream = format!("{fixed}{chunked}{GOOD}");
    for pieces in [vec![stream.as_bytes()], stream.as_bytes().chunks(1_000).collect()] {
        let (bytes, end) = read_all(&mut guard(Peer::sends(pieces)), 16_384);
        assert!(bytes == stream.as_bytes());
        assert_eq!(end, End::Closed);
    }
    assert_eq!(judge_request_bytes(stream.as_bytes()), Ok(3));
}

#[test]
fn an_unfinished_head_never_comes_out() {
    for cut in 1..GOOD.len() {
        let stream = format!("{GOOD}{}", &GOOD[..cut]);
        let (bytes, end) = read_all(&mut guard(Peer::sends([stream.as_bytes()])), 8192);
        assert_eq!((bytes.as_slice(), end), (GOOD.as_bytes(), End::Closed));
    }
}

#[test]
fn unread_bytes_can_be_taken_back() {
    let mut guard = guard(Peer::sends([b"GET /a".as_slice(), b" HTTP"]));
    let mut memory = [0; 64];
    let mut buf = ReadBuf::new(&mut memory);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(std::pin::Pin::new(&mut guard).poll_read(cx, &mut buf).is_ready());
    assert!(buf.filled().is_empty());
    assert_eq!(guard.into_inner().1, "GET /a HTTP");
}

#[test]
fn what_a_refused_peer_still_sends_is_thrown_away_up_to_a_bound() {
    for (pieces, left) in [(64, 0), (80, 16)] {
        let sent = std::iter::once(b"GET\n".as_slice()).chain(std::iter::repeat_n([b'a'; 4096].as_slice(), pieces));
        let mut guard = guard(Peer::sends(sent));
        assert_eq!(
            read_all(&mut guard, 4096),
            (Vec::new(), End::Refused(Violation::BareLineFeed))
        );
        let (peer, unread) = guard.into_inner();
        assert_eq!((peer.pieces.len(), unread.len()), (left, 0));
    }
}

#[test]
fn what_was_held_back_comes_first_when_judging_ends() {
    let peer = Peer::sends([
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\n\x00\x01\r".as_slice(),
        b"\x02\n\n",
    ]);
    let (mut guard, pass_through) = RequestGuard::new(peer, Arc::new(Limits::default()));
    let mut memory = [0; 64];
    let mut buf = ReadBuf::new(&mut memory);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(std::pin::Pin::new(&mut guard).poll_read(cx, &mut buf).is_ready());
    assert!(buf.filled().ends_with(b"\r\n\r\n"));
    assert!(pass_through.open() && pass_through.open());
    assert_eq!(read_all(&mut guard, 2), (b"\x00\x01\r\x02\n\n".to_vec(), End::Closed));
}

#[test]
fn judging_cannot_end_behind_a_refusal() {
    let stream = format!("{GOOD}\x00\r\n");
    let peer = Peer::sends([stream.as_bytes()]);
    let (mut guard, pass_through) = RequestGuard::new(peer, Arc::new(Limits::default()));
    assert_eq!(
        read_all(&mut guard, 64),
        (GOOD.into(), End::Refused(Violation::RequestLine))
    );
    assert!(!pass_through.open());
    assert_eq!(read_all(&mut guard, 64), (Vec::new(), End::Waiting));
}

#[test]
fn only_a_stand_in_is_a_refusal() {
    let request = |method, uri| http::Request::builder().method(method).uri(uri).body(()).unwrap();
    assert_eq!(
        refusal(&request("SANDGATE-REFUSED", "/0")),
        Some(Violation::RequestLine)
    );
    assert_eq!(refusal(&request("GET", "/0")), None);
    assert_eq!(refusal(&request("sandgate-refused", "/0")), None);
    assert_eq!(refusal(&request("SANDGATE-REFUSED", "/9999")), None);
    assert_eq!(refusal(&request("SANDGATE-REFUSED", "/x")), None);
}

#[test]
fn targets_are_what_hyper_takes() {
    for byte in 0x21..=0x7e_u8 {
        for target in [format!("/{}", char::from(byte)), format!("/?{}", char::from(byte))] {
            // The http crate cuts a target at '#' where the guard refuses.
            let taken = byte != b'#' && Uri::try_from(target.as_str()).is_ok();
            let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(judge_request_bytes(request.as_bytes()).is_ok(), taken, "{target}");
        }
    }
}
