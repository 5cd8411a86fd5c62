//! v1: secrets that minter and router share.

use super::PublicKeysError::{Form, Json, Private};
use super::{Claims, MintError, Proof, PublicKeys, Scope, Token, TokenError, minted};
use ring::hmac;
use std::fmt;
use std::time::SystemTime;

/// Fewest bytes of a secret: each token that somebody sees lets him try secrets at leisure.
pub const MIN_SECRET_BYTES: usize = 32;
/// Most secrets in one file: each one costs an attempt for a token that is of none.
pub const MAX_SECRETS: usize = 16;

/// Why a file holds no secrets. It doesn't repeat them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretsError {
    /// Too short, as a whole.
    #[error(
        "a secret must have at least {MIN_SECRET_BYTES} bytes without the white space around it, and this has {0}; make one with \
         `openssl rand -hex 32`"
    )]
    TooShort(usize),
    /// More than [`MAX_SECRETS`].
    #[error("more than {MAX_SECRETS} secrets; remove those whose tokens have expired")]
    TooMany,
    /// What everybody may know.
    #[error("it holds public keys, with which anybody could mint; a secret is random bytes that nobody else has")]
    Public,
}

/// Secrets of v1 tokens. The first one mints, and all of them verify.
pub struct Secrets {
    first: hmac::Key,
    others: Vec<hmac::Key>,
}

impl Secrets {
    /// Reads the content of a file: one secret, or several, one a line, each of at least [`MIN_SECRET_BYTES`].
    ///
    /// A file of several lines is also one secret as a whole, as upstream reads it (its secrets may be binary, or base64 in
    /// lines): so every file that upstream takes means here what it means there.
    ///
    /// # Errors
    /// See [`SecretsError`].
    pub fn parse(content: &[u8]) -> Result<Self, SecretsError> {
        let whole = trimmed(content);
        if whole.len() < MIN_SECRET_BYTES {
            return Err(SecretsError::TooShort(whole.len()));
        }
        // Whatever else is wrong with it as a file of public keys: it was meant for one.
        if !matches!(PublicKeys::parse(whole), Err(Form | Json(_) | Private)) {
            return Err(SecretsError::Public);
        }
        let key = |secret: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, secret);
        let lines: Vec<&[u8]> = whole
            .split(|byte| *byte == b'\n')
            .map(trimmed)
            .filter(|line| !line.is_empty())
            .collect();
        match lines.split_first() {
            Some((first, rest)) if !rest.is_empty() && lines.iter().all(|line| line.len() >= MIN_SECRET_BYTES) => {
                if lines.len() > MAX_SECRETS {
                    return Err(SecretsError::TooMany);
                }
                Ok(Self {
                    first: key(first),
                    others: rest.iter().copied().chain([whole]).map(key).collect(),
                })
            }
            _ => Ok(Self {
                first: key(whole),
                others: Vec::new(),
            }),
        }
    }

    /// How many secrets there are.
    pub fn count(&self) -> usize {
        // The last of the others is all lines together.
        self.others.len().max(1)
    }

    /// What a token claims that one of the secrets has signed and that hasn't expired at `now`.
    ///
    /// # Errors
    /// [`TokenError::NoKey`] for one of another version, [`Signature`](TokenError::Signature), and what is wrong with its
    /// claims.
    pub fn verify(&self, token: &Token<'_>, now: SystemTime) -> Result<Claims, TokenError> {
        let Proof::Mac(mac) = &token.proof else {
            return Err(TokenError::NoKey);
        };
        let message = token.message();
        let mut keys = [&self.first].into_iter().chain(&self.others);
        // Each in constant time.
        if !keys.any(|key| hmac::verify(key, &message, mac).is_ok()) {
            return Err(TokenError::Signature);
        }
        token.verified_claims(now)
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// The claims bind more than v1 can.
    pub fn mint(&self, claims: &Claims) -> Result<String, MintError> {
        if !Scope::is_plain(&claims.scope) {
            return Err(MintError::Binds);
        }
        minted("v1", &claims.encode(), |message| {
            hmac::sign(&self.first, message).as_ref().to_vec()
        })
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.count())
    }
}

/// Without the white space around it, as Go's `bytes.TrimSpace` understands it: Unicode's, in bytes that needn't be text.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let leading = bytes.utf8_chunks().next().map_or(0, |chunk| {
        let text = chunk.valid();
        text.len() - text.trim_start().len()
    });
    let bytes = bytes.split_at(leading).1;
    let trailing = bytes.utf8_chunks().last().filter(|chunk| chunk.invalid().is_empty());
    let trailing = trailing.map_or(0, |chunk| {
        let text = chunk.valid();
        text.len() - text.trim_end().len()
    });
    bytes.split_at(bytes.len() - trailing).0
}
