//! The close frame that tells why a tunnel ends (RFC 6455 section 5.5.1).

use super::TunnelEnd;
use bytes::{BufMut, BytesMut};
use ring::rand::{SecureRandom, SystemRandom};

/// A last frame with a close opcode.
const OPCODE: u8 = 0x88;
/// In the second byte of a frame whose payload is masked.
const MASKED: u8 = 0x80;

/// A status code (RFC 6455 section 7.4.1) and its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Close {
    code: u16,
    reason: &'static str,
}

impl Close {
    /// What the peers are told of this end; `None` where they know, or can't be told.
    pub(super) const fn of(end: TunnelEnd) -> Option<Self> {
        let (code, reason) = match end {
            TunnelEnd::Closed | TunnelEnd::Broken => return None,
            TunnelEnd::Idle => (1001, "idle timeout exceeded"),
            TunnelEnd::Lifetime => (1001, "max lifetime exceeded"),
            TunnelEnd::Drain => (1001, "shutting down"),
            TunnelEnd::Malformed => (1002, "malformed frame"),
            TunnelEnd::TooBig => (1009, "message too big"),
        };
        Some(Self { code, reason })
    }

    /// As a server says it.
    pub(super) fn unmasked(self) -> BytesMut {
        self.frame(None)
    }

    /// As a client says it, with a key of its own (RFC 6455 section 5.3); `None` if the system has no random bytes.
    pub(super) fn masked(self) -> Option<BytesMut> {
        let mut key = [0; 4];
        SystemRandom::new().fill(&mut key).ok()?;
        Some(self.frame(Some(key)))
    }

    fn frame(self, key: Option<[u8; 4]>) -> BytesMut {
        let [high, low] = self.code.to_be_bytes();
        let payload = [high, low].into_iter().chain(self.reason.bytes());
        // The reasons above are all short enough.
        let length = u8::try_from(2 + self.reason.len()).unwrap_or(u8::MAX);
        let mut frame = BytesMut::with_capacity(64);
        frame.put_u8(OPCODE);
        match key {
            None => {
                frame.put_u8(length);
                frame.extend(payload);
            }
            Some(key) => {
                frame.put_u8(MASKED | length);
                frame.put_slice(&key);
                frame.extend(payload.zip(key.into_iter().cycle()).map(|(byte, key)| byte ^ key));
            }
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: [TunnelEnd; 5] = [
        TunnelEnd::Idle,
        TunnelEnd::Lifetime,
        TunnelEnd::Drain,
        TunnelEnd::Malformed,
        TunnelEnd::TooBig,
    ];

    #[test]
    fn a_masked_close_says_what_an_unmasked_one_says_under_a_key_of_its_own() {
        for end in TOLD {
            let close = Close::of(end).unwrap();
            let plain = close.unmasked();
            assert_eq!((plain[0], usize::from(plain[1])), (0x88, plain.len() - 2));
            assert!(plain.len() <= 127, "too long for a control frame");
            assert_eq!(plain[2..4], close.code.to_be_bytes());
            assert_eq!(&plain[4..], close.reason.as_bytes());
            let (masked, again) = (close.masked().unwrap(), close.masked().unwrap());
            assert_eq!((masked[0], usize::from(masked[1] & 0x7f)), (0x88, plain.len() - 2));
            assert!(masked[1] & 0x80 != 0 && masked[2..6] != again[2..6]);
            let payload = masked[6..].iter().zip(masked[2..6].iter().cycle());
            let payload: Vec<u8> = payload.map(|(byte, key)| byte ^ key).collect();
            assert_eq!(payload, plain[2..]);
        }
    }
}
