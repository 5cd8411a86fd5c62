//! Tokens that were verified once. A signature costs more than everything else that the router does for a request.

use crate::authenticate::Authenticated;
use foldhash::HashMap;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use sandgate_mesh::telemetry::seconds_since_1970;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Half of the tokens that are remembered.
const GENERATION: usize = 512;

type Tokens = HashMap<[u8; SHA256_OUTPUT_LEN], Entry>;

#[derive(Clone)]
struct Entry {
    holder: Authenticated,
    /// The second, counted from 1970, at which it is good no more.
    expires: u64,
}

/// Verified tokens by their SHA-256: at least the last 512 that were asked for, and at most 1,024. Refused ones aren't
/// remembered: whoever sends them could push out the others.
#[derive(Default)]
pub(super) struct Verified(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: Tokens,
    old: Tokens,
}

impl Verified {
    /// The holder of `token`, remembered or as `verify` says, with the second in which it expires. One that has is
    /// `past`.
    pub(super) fn get_or_verify<E>(
        &self,
        token: &[u8],
        now: SystemTime,
        past: E,
        verify: impl FnOnce() -> Result<(Authenticated, u64), E>,
    ) -> Result<Authenticated, E> {
        let mut key = [0; SHA256_OUTPUT_LEN];
        key.copy_from_slice(digest(&SHA256, token).as_ref());
        if let Some(entry) = self.with(|tokens| tokens.get(&key)) {
            return if seconds_since_1970(now) < entry.expires {
                Ok(entry.holder)
            } else {
                Err(past)
            };
        }
        // Not under the lock: others needn't wait for it.
        let (holder, expires) = verify()?;
        let entry = Entry {
            holder: holder.clone(),
            expires,
        };
        self.with(|tokens| tokens.insert(key, entry));
        Ok(holder)
    }

    fn with<T>(&self, use_them: impl FnOnce(&mut Generations) -> T) -> T {
        use_them(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Generations {
    fn get(&mut self, key: &[u8; SHA256_OUTPUT_LEN]) -> Option<Entry> {
        if let Some(entry) = self.young.get(key) {
            return Some(entry.clone());
        }
        let entry = self.old.remove(key)?;
        self.insert(*key, entry.clone());
        Some(entry)
    }

    fn insert(&mut self, key: [u8; SHA256_OUTPUT_LEN], entry: Entry) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.with(|tokens| tokens.young.len() + tokens.old.len());
        write!(f, "{count} tokens")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandgate_mesh::caller::Caller;
    use std::time::Duration;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    /// Whether the holder of `token` had to be verified.
    fn is_verified(verified: &Verified, token: &str) -> bool {
        let mut asked = false;
        let verify = || {
            asked = true;
            Ok((Caller::Anonymous.into(), 10))
        };
        verified.get_or_verify(token.as_bytes(), NOW, (), verify).unwrap();
        asked
    }

    #[test]
    fn a_token_is_verified_once_and_never_outlives_its_end() {
        let verified = Verified::default();
        assert!(is_verified(&verified, "a"));
        assert!(!is_verified(&verified, "a"));
        for (seconds, good) in [(9, true), (10, false), (11, false)] {
            let now = NOW + Duration::from_secs(seconds);
            let again = verified.get_or_verify(b"a", now, (), || panic!("it is known"));
            assert_eq!(again.is_ok(), good, "{seconds}");
        }
    }

    #[test]
    fn a_refused_token_is_not_remembered() {
        let verified = Verified::default();
        for _ in 0..2 {
            let refused = verified.get_or_verify(b"a", NOW, (), || Err(()));
            assert!(refused.is_err());
        }
        assert!(is_verified(&verified, "a"));
    }

    #[test]
    fn however_many_tokens_there_are_memory_is_bounded_and_those_in_use_stay() {
        let verified = Verified::default();
        is_verified(&verified, "in use");
        for number in 0..10 * GENERATION {
            is_verified(&verified, &number.to_string());
            assert!(!is_verified(&verified, "in use"), "{number}");
        }
        let count = verified.with(|tokens| tokens.young.len() + tokens.old.len());
        assert!((GENERATION..=2 * GENERATION).contains(&count), "{count}");
    }
}
