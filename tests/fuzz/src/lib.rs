//! What must hold for every byte string that a peer can send: one property for each parser of such bytes.
//!
//! `fuzz_targets/` hands each of them to libFuzzer (`tests/fuzz/run`), `tests/fuzz_seeds.rs` of the main workspace runs
//! them on the committed seeds. A property panics where it doesn't hold, and returns whether the parser accepted the
//! input: so a seed can say what it is for, and a parser that refuses everything doesn't pass.

// A property reports by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::missing_panics_doc)]

mod assertion;
mod framing;
mod identity;
mod policy_snapshot;
mod routing_headers;
mod scoped_token;
mod trace_context;
mod url_routing;
mod websocket;

pub use assertion::assertion;
pub use framing::{framing_request, framing_response};
pub use identity::identity;
pub use policy_snapshot::policy_snapshot;
pub use routing_headers::routing_headers;
pub use scoped_token::scoped_token;
pub use trace_context::trace_context;
pub use url_routing::url_routing;
pub use websocket::websocket_frames;

/// A property: whether the parser accepted the input.
pub type Property = fn(&[u8]) -> bool;

/// Every property, by the name of its target and corpus.
pub const TARGETS: [(&str, Property); 10] = [
    ("identity", identity),
    ("routing_headers", routing_headers),
    ("url_routing", url_routing),
    ("policy_snapshot", policy_snapshot),
    ("assertion", assertion),
    ("framing_request", framing_request),
    ("framing_response", framing_response),
    ("scoped_token", scoped_token),
    ("trace_context", trace_context),
    ("websocket_frames", websocket_frames),
];

/// Whether `text` is a DNS-1123 label. Not the parsers' own check: that is what is tested.
fn is_dns_label(text: &str) -> bool {
    let mut places = text.chars().enumerate().map(|(place, c)| match c {
        'a'..='z' | '0'..='9' => true,
        '-' => place > 0 && place + 1 < text.len(),
        _ => false,
    });
    (1..=63).contains(&text.len()) && places.all(|fits| fits)
}

/// Choices that follow from the input alone, so that a finding can be replayed.
struct Choices(u64);

impl Choices {
    fn of(data: &[u8]) -> Self {
        // FNV-1a.
        Self(data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// A number below `bound`, which isn't 0.
    fn below(&mut self, bound: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}
