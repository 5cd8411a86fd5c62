//! What a response guard accepts and refuses, without hyper.

use super::{End, Peer, deliveries, read_all};
use crate::framing::{Limits, ResponseGuard, Violation, judge_response_bytes};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

fn armed(peer: Peer) -> ResponseGuard<Peer> {
    let (guard, expect) = ResponseGuard::new(peer, Arc::new(Limits::default()));
    expect.arm();
    guard
}

#[test]
fn bad_heads_are_refused_and_nothing_of_them_comes_out() {
    use Violation as V;
    let ok = |name, fields: &str, why| (name, format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello"), why);
    let line = |name, line: &str, why| (name, format!("{line}\r\n\r\n"), why);
    let cases = [
        ok("bare LF", "A: b\nC: d", V::BareLineFeed),
        ok("bare CR", "A: b\rc", V::BareCarriageReturn),
        ok("NUL", "A: \0", V::FieldValue),
        ok("obs-fold", "A: b\r\n c", V::FoldedLine),
        ok("space before the colon", "A : b", V::SpaceBeforeColon),
        ok("no colon", "A", V::MissingColon),
        ok("empty name", ": a", V::FieldName),
        ok(
            "both framings",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            V::BothFramings,
        ),
        ok(
            "two equal lengths",
            "Content-Length: 5\r\nContent-Length: 5",
            V::ContentLengthRepeated,
        ),
        ok("list of lengths", "Content-Length: 5, 5", V::ContentLength),
        ok("signed length", "Content-Length: +5", V::ContentLength),
        ok("gzip, chunked", "Transfer-Encoding: gzip, chunked", V::TransferEncoding),
        ok("identity", "Transfer-Encoding: identity", V::TransferEncoding),
        ok("too many headers", &["A: b"; 101].join("\r\n"), V::TooManyHeaders),
        ok("large head", &format!("A: {}", "b".repeat(61_440)), V::HeadTooLarge),
        line(
            "coding in HTTP/1.0",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
            V::TransferEncodingInHttp10,
        ),
        line(
            "coding on 101",
            "HTTP/1.1 101 Switching\r\nTransfer-Encoding: chunked",
            V::BodyNotAllowed,
        ),
        line(
            "length on 103",
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5",
            V::BodyNotAllowed,
        ),
        line(
            "length on 204",
            "HTTP/1.1 204 No Content\r\nContent-Length: 5",
            V::BodyNotAllowed,
        ),
        line(
            "coding on 204",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked",
            V::BodyNotAllowed,
        ),
        line("empty line first", "\r\nHTTP/1.1 200 OK", V::StatusLine),
        line("two spaces", "HTTP/1.1  200 OK", V::StatusLine),
        line("status of two digits", "HTTP/1.1 20 OK", V::StatusLine),
        line("status of four digits", "HTTP/1.1 2000 OK", V::StatusLine),
        line("status 099", "HTTP/1.1 099 OK", V::StatusLine),
        line("status 600", "HTTP/1.1 600 OK", V::StatusLine),
        line("NUL in the reason", "HTTP/1.1 200 O\0", V::StatusLine),
        line("HTTP/1.2", "HTTP/1.2 200 OK", V::Version),
        line("HTTP/2", "HTTP/2.0 200 OK", V::Version),
        line("HTTP/0.9", "<html>hello</html>", V::Version),
    ];
    for (name, head, why) in cases {
        assert_eq!(judge_response_bytes(head.as_bytes()), Err(why), "{name}");
        for pieces in [vec![head.as_bytes()], head.as_bytes().chunks(1).collect()] {
            assert_eq!(
                read_all(&mut armed(Peer::sends(pieces)), 100_000),
                (Vec::new(), End::Error(why)),
                "{name}"
            );
        }
    }
}

#[test]
fn good_responses_come_out_as_they_went_in_however_they_are_cut() {
    let cases = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200\r\n\r\nuntil the end",
        "HTTP/1.0 404 \r\n\r\n",
        "HTTP/1.1 599 \u{e4}\t!\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n\n\n\0",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\n\r\n\0\n\r\r",
    ];
    for stream in cases {
        assert_eq!(judge_response_bytes(stream.as_bytes()), Ok(true), "{stream}");
        for pieces in deliveries(stream.as_bytes()) {
            for room in [1, 7, 8192] {
                let (bytes, end) = read_all(&mut armed(Peer::sends(pieces.iter().copied())), room);
                assert_eq!((String::from_utf8_lossy(&bytes), end), (stream.into(), End::Closed));
            }
        }
    }
}

#[test]
fn a_flood_of_informational_heads_ends() {
    let responses = |count: usize| {
        format!(
            "{}HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 102 Processing\r\n\r\n".repeat(count)
        )
    };
    assert_eq!(judge_response_bytes(responses(8).as_bytes()), Ok(true));
    assert_eq!(
        judge_response_bytes(responses(9).as_bytes()),
        Err(Violation::TooManyInformational)
    );
}

#[tokio::test]
async fn every_armed_response_is_judged_and_nothing_else() {
    let good = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na";
    let (mut peer, io) = tokio::io::duplex(1024);
    let (mut guard, expect) = ResponseGuard::new(io, Arc::default());
    peer.write_all(b"\n\n").await.unwrap();
    assert_eq!(read_all(&mut guard, 64), (b"\n\n".to_vec(), End::Waiting));
    for _ in 0..2 {
        expect.arm();
        peer.write_all(good.as_bytes()).await.unwrap();
        assert_eq!(read_all(&mut guard, 64), (good.into(), End::Waiting));
    }
    expect.arm();
    peer.write_all(b"\n\n").await.unwrap();
    assert_eq!(
        read_all(&mut guard, 64),
        (Vec::new(), End::Error(Violation::BareLineFeed))
    );
    assert_eq!(
        read_all(&mut guard, 64),
        (Vec::new(), End::Error(Violation::BareLineFeed))
    );
}

#[test]
fn an_unfinished_head_never_comes_out() {
    assert_eq!(judge_response_bytes(b"HTTP/1.1 200 OK\r\n"), Ok(false));
    assert_eq!(judge_response_bytes(b"HTTP/1.1 100 Continue\r\n\r\n"), Ok(false));
    assert_eq!(
        read_all(&mut armed(Peer::sends([b"HTTP/1.1 200 OK\r\n".as_slice()])), 64),
        (Vec::new(), End::Closed)
    );
}
