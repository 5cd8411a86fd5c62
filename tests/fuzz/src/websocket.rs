//! WebSocket frames.

use super::Choices;
use sandgate_mesh::tunnel::websocket::{Fault, Follower};

/// Longest message where there is a limit.
const LIMIT: u64 = 300;

/// A follower finds frames where RFC 6455 has them, and the same faults, however the bytes are cut: so what passes is what
/// came, up to the first frame that may not. The input is one direction of a WebSocket.
pub fn websocket_frames(data: &[u8]) -> bool {
    for limit in [0, LIMIT] {
        let whole = in_pieces(data, limit, |rest| rest);
        assert_eq!(whole, model(data, limit, false), "{limit}");
        let mut choices = Choices::of(data);
        assert_eq!(in_pieces(data, limit, |rest| 1 + choices.below(rest.min(20))), whole);
        assert_eq!(in_pieces(data, limit, |_| 1), whole);
    }
    forgiving(data);
    model(data, 0, false).fault.is_none()
}

/// How far a reader came.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    passed: usize,
    fault: Option<Fault>,
    rest: u64,
    closes: bool,
}

/// What comes of a follower that gets `data` in pieces, each of the length that `next` makes of what is left.
fn in_pieces(data: &[u8], limit: u64, mut next: impl FnMut(usize) -> usize) -> Place {
    let (mut follower, mut passed, mut came, mut fault) = (Follower::new(limit), 0, 0, None);
    while came < data.len() && fault.is_none() {
        came += next(data.len() - came);
        let (more, found) = follower.follow(&data[passed..came]);
        passed += more;
        fault = found;
        assert!(fault.is_some() || came - passed < 14, "more than a header is held back");
        assert!(came == passed || follower.rest() == 0, "payload is held back");
    }
    Place {
        passed,
        fault,
        rest: follower.rest(),
        closes: follower.closes(),
    }
}

/// A follower that forgives keeps its place, too.
fn forgiving(data: &[u8]) {
    let mut follower = Follower::new(LIMIT);
    follower.forgive();
    let (passed, fault) = follower.follow(data);
    let place = Place {
        passed,
        fault,
        rest: follower.rest(),
        closes: follower.closes(),
    };
    assert_eq!(place, model(data, LIMIT, true));
}

/// RFC 6455 section 5.2, field by field.
fn model(data: &[u8], limit: u64, lenient: bool) -> Place {
    let (mut bytes, mut message) = (data.iter().copied(), 0_u128);
    let mut place = Place {
        passed: 0,
        fault: None,
        rest: 0,
        closes: false,
    };
    while place.rest == 0 {
        let (Some(first), Some(second)) = (bytes.next(), bytes.next()) else {
            break;
        };
        let (fin, opcode) = (first & 0b1000_0000 != 0, first & 0b0000_1111);
        let (masked, short) = (second & 0b1000_0000 != 0, second & 0b0111_1111);
        let width = match short {
            ..=125 => 0,
            126 => 2,
            _ => 8,
        };
        let extended: Vec<u8> = bytes.by_ref().take(width).collect();
        let key = bytes.by_ref().take(if masked { 4 } else { 0 }).count();
        if extended.len() < width || masked && key < 4 {
            break;
        }
        let length = match *extended {
            [] => u64::from(short),
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            _ => u64::from_be_bytes(extended.try_into().unwrap()),
        };
        if !lenient && (length >= 1 << 63 || opcode >= 8 && (length > 125 || !fin)) {
            place.fault = Some(Fault::Malformed);
            break;
        }
        if opcode < 8 {
            message += u128::from(length);
            if !lenient && limit > 0 && message > u128::from(limit) {
                place.fault = Some(Fault::TooBig);
                break;
            }
            if fin {
                message = 0;
            }
        }
        place.closes |= opcode == 8;
        let payload = bytes
            .by_ref()
            .take(usize::try_from(length).unwrap_or(usize::MAX))
            .count();
        place.rest = length - payload as u64;
        place.passed = data.len() - bytes.len();
    }
    place
}
