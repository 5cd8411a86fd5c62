//! The names of keys.

use std::fmt;
use std::str::FromStr;

/// The key ID that holders of v1 tokens are named by, as these have none: no key pair can have it.
pub const V1_HOLDER: &str = "v1";
/// Longest key ID, in bytes.
const MAX_BYTES: usize = 128;

/// Not the name of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a key ID must be 1 to 128 letters, digits, hyphens and underscores, and not `v1`, by which holders of v1 tokens are named"
)]
pub struct KeyIdError;

/// The ID of a key pair of v2 tokens: 1 to 128 letters, digits, `-` and `_`. Policies name a token's holder by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyId(Box<str>);

impl KeyId {
    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;
    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if (1..=MAX_BYTES).contains(&text.len()) && text.bytes().all(allowed) && text != V1_HOLDER {
            Ok(Self(text.into()))
        } else {
            Err(KeyIdError)
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
