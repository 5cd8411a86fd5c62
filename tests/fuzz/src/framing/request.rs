//! Streams of requests.

use super::super::Choices;
use super::guarded::{Behind, End, Peer, read_all};
use super::hyper_view::{Seen, serve};
use super::model::{Request, Tail, requests};
use super::{deliveries, limits, pieces};
use sandgate_mesh::framing::{Limits, RequestGuard, Violation, judge_request_bytes};
use std::sync::Arc;

/// A stream of requests means the same to the guard, to hyper behind it and to the model, however it is cut.
pub fn framing_request(data: &[u8]) -> bool {
    let mut choices = Choices::of(data);
    let [default, narrow] = limits();
    let (found, tail, _) = requests(data, &default);
    let judged = judge_request_bytes(data);
    assert_eq!(
        judged.ok(),
        (tail == Tail::Open).then_some(found.len()),
        "{judged:?}: {}",
        data.escape_ascii()
    );
    for limits in [&default, &narrow] {
        let why = guarded(data, limits, &mut choices);
        hyper_agrees(data, limits, why, &mut choices);
    }
    if let Some(request) = found.first() {
        plain(data, request);
        tampered(&data[..request.ends], request, &mut choices);
    }
    tail == Tail::Open
}

/// What the guard hands on is what the model lets pass, and why it stops doesn't depend on how the bytes arrive.
fn guarded(data: &[u8], limits: &Arc<Limits>, choices: &mut Choices) -> Option<Violation> {
    let (found, tail, passed) = requests(data, limits);
    let complete = found.last().map_or(0, |request| request.ends);
    let mut ends = Vec::new();
    for delivery in deliveries(data, choices) {
        for room in [1 + choices.below(16), 8192] {
            let guard = RequestGuard::new(Peer::new(&delivery, Behind::Close), Arc::clone(limits)).0;
            let (handed_on, end) = read_all(guard, room);
            assert!(data.starts_with(&handed_on), "{}", handed_on.escape_ascii());
            match end {
                End::Closed => assert_eq!((tail, handed_on.len()), (Tail::Open, passed)),
                End::Refused(_) => assert_eq!((tail, handed_on.len()), (Tail::BadHead, passed)),
                // What a bad piece begins with may come out or not: the connection is lost.
                End::Error(_) => {
                    assert_eq!(tail, Tail::BadBody);
                    assert!((complete..=passed).contains(&handed_on.len()));
                    assert!(handed_on.len() < data.len(), "the bad byte itself never comes out");
                }
            }
            ends.push(end);
        }
    }
    assert!(
        ends.iter().all(|end| *end == ends[0]),
        "{ends:?}: {}",
        data.escape_ascii()
    );
    match ends[0] {
        End::Closed => None,
        End::Refused(why) | End::Error(why) => Some(why),
    }
}

/// hyper sees the model's requests, in order, and then the refusal.
fn hyper_agrees(data: &[u8], limits: &Arc<Limits>, why: Option<Violation>, choices: &mut Choices) {
    let (found, tail, _) = requests(data, limits);
    let delivery = pieces(data, 64, choices);
    let seen = serve(&delivery, limits);
    let expected: Vec<Seen> = found.iter().map(Seen::of).collect();
    let (refusals, served): (Vec<Seen>, Vec<Seen>) =
        seen.into_iter().partition(|seen| matches!(seen, Seen::Refusal(_)));
    assert!(
        expected.starts_with(&served),
        "{served:#?} is not the start of {expected:#?}"
    );
    // After one of these hyper closes, or hands the connection over.
    let last = |request: &Request<'_>| {
        let [method, _, version] = request.head.start;
        let says = request
            .head
            .fields
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(b"connection"));
        says || method == b"CONNECT" || version != b"HTTP/1.1"
    };
    let reached = found.iter().position(last).map_or(found.len(), |at| at + 1);
    assert!(served.len() >= reached, "{served:#?} lacks some of {expected:#?}");
    match refusals.as_slice() {
        [] => assert!(
            tail != Tail::BadHead || found.iter().any(last),
            "hyper didn't learn of the refusal"
        ),
        [Seen::Refusal(found)] => assert_eq!((tail, Some(*found)), (Tail::BadHead, why)),
        more => panic!("{more:?}"),
    }
}

/// Without the model: what no accepted head has.
fn plain(data: &[u8], request: &Request<'_>) {
    let head = &data[request.head.begins..request.head.ends];
    for (at, byte) in head.iter().enumerate() {
        assert_eq!(
            *byte == b'\r',
            head.get(at + 1) == Some(&b'\n'),
            "{}",
            head.escape_ascii()
        );
    }
    let lines: Vec<Vec<u8>> = head
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::to_ascii_lowercase)
        .collect();
    let starting = |name: &str| lines.iter().filter(|line| line.starts_with(name.as_bytes())).count();
    assert!(
        starting("content-length:") + starting("transfer-encoding:") <= 1,
        "{}",
        head.escape_ascii()
    );
    assert_eq!(starting(" ") + starting("\t"), 0, "{}", head.escape_ascii());
}

/// Small changes to an accepted request that make it one that can be read in two ways.
fn tampered(data: &[u8], request: &Request<'_>, choices: &mut Choices) {
    let head_end = request.head.ends - 2;
    let first_line_end = data[request.head.begins..]
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap()
        + request.head.begins
        + 1;
    let with = |at: usize, removed: usize, text: &str| [&data[..at], text.as_bytes(), &data[at + removed..]].concat();
    let line_end = request.line_ends[choices.below(request.line_ends.len())];
    let lengths = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let changes = [
        ("bare LF", with(line_end, 1, "")),
        // Not just without its LF: the body's first byte can be another.
        ("bare CR", with(line_end + 1, 1, "a")),
        ("both lengths", with(head_end, 0, lengths)),
        (
            "a length twice",
            with(head_end, 0, "content-length: 0\r\nCONTENT-LENGTH: 0\r\n"),
        ),
        (
            "a coding twice",
            with(
                first_line_end,
                0,
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            ),
        ),
        ("obs-fold", with(head_end, 0, " folded: yes\r\n")),
        (
            "obs-fold of the first line",
            with(first_line_end, 0, "\tfolded: yes\r\n"),
        ),
        ("space before a colon", with(head_end, 0, "Content-Length : 5\r\n")),
        ("two hosts", with(head_end, 0, "Host: a\r\nHost: b\r\n")),
        ("control byte", with(head_end, 0, "a: \x0b\r\n")),
    ];
    for (name, changed) in changes {
        // A cut CRLF at the very end may only be incomplete.
        let complete = [&changed, &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..]].concat();
        let judged = judge_request_bytes(&complete);
        assert!(judged.is_err(), "{name}: {judged:?}: {}", complete.escape_ascii());
    }
}
