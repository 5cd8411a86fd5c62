//! Framing: the guards against a strict model of RFC 9112 that reads a byte string whole, and against hyper.

mod guarded;
mod hyper_view;
mod model;
mod request;
mod response;

pub use request::framing_request;
pub use response::framing_response;

use super::Choices;
use sandgate_mesh::framing::Limits;
use std::sync::Arc;

/// The default limits, and such as short inputs can reach.
fn limits() -> [Arc<Limits>; 2] {
    let narrow = Limits {
        head_bytes: 96,
        headers: 4,
        target_bytes: 16,
        informational: 2,
        ..Limits::default()
    };
    [Arc::default(), Arc::new(narrow)]
}

/// The bytes in one piece, byte by byte, and cut at two choices of places.
fn deliveries<'a>(bytes: &'a [u8], choices: &mut Choices) -> [Vec<&'a [u8]>; 4] {
    [
        vec![bytes],
        bytes.chunks(1).collect(),
        pieces(bytes, 3, choices),
        pieces(bytes, 24, choices),
    ]
}

/// The bytes in pieces of up to `most` bytes, each at least one long.
fn pieces<'a>(mut bytes: &'a [u8], most: usize, choices: &mut Choices) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at((1 + choices.below(most)).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}
