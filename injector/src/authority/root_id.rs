//! What a root is called: where roots are compared, told and remembered without being there themselves.

use sandgate_mesh::control::certificate_digest;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};
use std::str::FromStr;

/// The name of a root: SHA-256 of its DER. In text 64 hexadecimal digits, as `openssl x509 -fingerprint -sha256` has them
/// but for its colons and capitals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootId([u8; 32]);

impl RootId {
    /// The name of the root in DER.
    pub fn of(der: &[u8]) -> Self {
        Self(certificate_digest(der))
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RootId {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "not 64 hexadecimal digits";
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 64 || !text.bytes().all(is_digit) {
            return Err(wrong);
        }
        let mut id = [0; 32];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong)?;
        }
        Ok(Self(id))
    }
}

impl TryFrom<String> for RootId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RootId> for String {
    fn from(id: RootId) -> Self {
        let mut text = Self::with_capacity(64);
        // Writing to a text can't fail.
        let _ = write!(text, "{id}");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_digest_and_reads_back_and_nothing_else_is_one() {
        let id = RootId::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(id.to_string(), text, "as sha256sum has it");
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<RootId>(&format!("\"{text}\"")).unwrap(), id);
        for bad in [
            "",
            &text[1..],
            &text.to_uppercase(),
            &format!("{text}0"),
            &text.replace('b', "+"),
        ] {
            assert!(bad.parse::<RootId>().is_err(), "{bad}");
        }
    }
}
