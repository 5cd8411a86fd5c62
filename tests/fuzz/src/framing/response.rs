//! Heads of responses.

use super::super::Choices;
use super::guarded::{Behind, End, Peer, read_all};
use super::hyper_view::fetch;
use super::model::{Head, Tail, response};
use super::{deliveries, limits, pieces};
use sandgate_mesh::framing::{Limits, ResponseGuard, judge_response_bytes};
use std::sync::Arc;

/// A response's head means the same to the guard, to hyper behind it and to the model, however it is cut.
pub fn framing_response(data: &[u8]) -> bool {
    let mut choices = Choices::of(data);
    let [default, narrow] = limits();
    let (head, tail, _) = response(data, &default);
    let judged = judge_response_bytes(data);
    let expected = (tail == Tail::Open).then_some(head.is_some());
    assert_eq!(judged.ok(), expected, "{judged:?}: {}", data.escape_ascii());
    for limits in [&default, &narrow] {
        guarded(data, limits, &mut choices);
    }
    if let Some(head) = &head {
        let (status, fields) = fetch(&pieces(data, 64, &mut choices), &default);
        assert_eq!(status.to_string().as_bytes(), head.start[1]);
        assert_eq!(fields, super::hyper_view::sorted(&head.fields));
        tampered(data, head, &mut choices);
    }
    head.is_some()
}

fn guarded(data: &[u8], limits: &Arc<Limits>, choices: &mut Choices) {
    let (head, tail, before) = response(data, limits);
    let mut ends = Vec::new();
    for delivery in deliveries(data, choices) {
        for room in [1 + choices.below(16), 8192] {
            let peer = Peer::new(&delivery, Behind::Close);
            let (guard, expect) = ResponseGuard::new(peer, Arc::clone(limits));
            expect.arm();
            let (handed_on, end) = read_all(guard, room);
            assert!(data.starts_with(&handed_on), "{}", handed_on.escape_ascii());
            // Behind a final head comes its body, which passes.
            let passed = if head.is_some() { data.len() } else { before };
            assert_eq!(handed_on.len(), passed, "{}", data.escape_ascii());
            assert_eq!(
                end == End::Closed,
                tail == Tail::Open,
                "{end:?}: {}",
                data.escape_ascii()
            );
            ends.push(end);
        }
    }
    assert!(
        ends.iter().all(|end| *end == ends[0]),
        "{ends:?}: {}",
        data.escape_ascii()
    );
}

/// Small changes to an accepted head that make it one that can be read in two ways.
fn tampered(data: &[u8], head: &Head<'_>, choices: &mut Choices) {
    let begins = head.begins;
    let ends: Vec<usize> = (begins..head.ends).filter(|at| data[*at] == b'\n').collect();
    let line_end = ends[choices.below(ends.len())];
    let (first_line_end, head_end) = (ends[0] + 1, head.ends - 2);
    let with = |at: usize, removed: usize, text: &str| [&data[..at], text.as_bytes(), &data[at + removed..]].concat();
    let lengths = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n";
    for (name, changed) in [
        ("bare LF", with(line_end - 1, 1, "")),
        ("both lengths", with(head_end, 0, lengths)),
        (
            "a length twice",
            with(first_line_end, 0, "content-length: 0\r\nCONTENT-LENGTH: 0\r\n"),
        ),
        ("obs-fold", with(head_end, 0, " folded: yes\r\n")),
        (
            "obs-fold of the first line",
            with(first_line_end, 0, "\tfolded: yes\r\n"),
        ),
        ("space before a colon", with(head_end, 0, "Content-Length : 0\r\n")),
        ("control byte", with(head_end, 0, "a: \0\r\n")),
    ] {
        let judged = judge_response_bytes(&changed);
        assert!(judged.is_err(), "{name}: {judged:?}: {}", changed.escape_ascii());
    }
}
