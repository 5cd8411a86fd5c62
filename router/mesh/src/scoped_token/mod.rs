//! Scoped tokens: bearer tokens that are good for one sandbox. `docs/scoped-tokens.md` is the format for people.
//!
//! - v1, `v1.<claims>.<MAC>`: HMAC-SHA256 with a secret that minter and router share ([`Secrets`]). Binds the sandbox.
//! - v2, `v2.<key ID>.<claims>.<signature>`: Ed25519 (RFC 8032), of which the router holds the public half only
//!   ([`PublicKeys`]). May also bind the Sandbox's UID, the port, the method and the path.
//!
//! Both are upstream's (kubernetes-sigs/agent-sandbox #1243 and #1497), byte for byte. Claims, MAC and signature are base64url
//! without padding (RFC 4648 section 5). What is signed is a fixed context and the token up to its last dot, as it stands:
//! so no signature is one of the other version, of another key ID, or of another protocol's.
//!
//! A token has one spelling, and nothing in it is ignored: whatever a minter meant to restrict, holds or is refused.

mod claims;
mod key_id;
mod public_keys;
mod secrets;
mod signing_key;

pub use claims::{Claims, PathError, Scope, ScopePath};
pub use key_id::{KeyId, KeyIdError, V1_HOLDER};
pub use public_keys::{PublicKeys, PublicKeysError};
pub use secrets::{MAX_SECRETS, MIN_SECRET_BYTES, Secrets, SecretsError};
pub use signing_key::{SigningKey, SigningKeyError};

use data_encoding::{BASE64URL_NOPAD, Encoding};
use std::time::SystemTime;

/// Longest token that is read or minted, in bytes.
pub const MAX_TOKEN_BYTES: usize = 4096;
/// What no other protocol signs.
const CONTEXT: &str = "agent-sandbox/scoped-token/";
/// The encoding of everything in a token. It refuses padding, white space and set bits behind the last byte.
const BASE64URL: Encoding = BASE64URL_NOPAD;

/// Why a token isn't good. It doesn't repeat the token: that is a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("it is longer than 4096 bytes")]
    TooLong,
    /// Neither `v1.…` nor `v2.…`.
    #[error("it is of no version that is known: it begins with neither `v1.` nor `v2.`")]
    Version,
    /// Too few or too many parts.
    #[error("it has not the parts of its version: v1.CLAIMS.MAC or v2.KEYID.CLAIMS.SIGNATURE")]
    Parts,
    /// A part isn't base64url in its one spelling, or of the wrong length.
    #[error("a part of it is not base64url without padding, or not of its length")]
    Encoding,
    /// The claims aren't those of its version.
    #[error("its claims are not those of its version: one that is missing, unknown, repeated or malformed")]
    Claims,
    /// There is no key for its version.
    #[error("there is no key for tokens of its version")]
    NoKey,
    /// No public key has that key ID.
    #[error("no public key has its key ID")]
    UnknownKey,
    /// The MAC or signature is of another key or of other bytes.
    #[error("its MAC or signature is of another key, or of something else")]
    Signature,
    /// The end has come.
    #[error("it has expired")]
    Expired,
}

/// A token whose form is right. Nobody has verified it.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// Up to the last dot.
    signed: &'a str,
    claims: &'a str,
    proof: Proof<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Proof<'a> {
    Mac([u8; 32]),
    Signature { key_id: &'a str, signature: [u8; 64] },
}

/// The version of a token's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// With a shared secret.
    V1,
    /// With a key pair.
    V2,
}

impl<'a> Token<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`TokenError::TooLong`], [`Version`](TokenError::Version), [`Parts`](TokenError::Parts) and
    /// [`Encoding`](TokenError::Encoding) of MAC and signature; the claims are for whoever has verified it.
    pub fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let (signed, proof) = token.rsplit_once('.').ok_or(TokenError::Version)?;
        let mut parts = signed.split('.');
        let version = parts.next().unwrap_or_default();
        let (claims, proof) = match (version, parts.next(), parts.next(), parts.next()) {
            ("v1", Some(claims), None, _) => (claims, Proof::Mac(decoded(proof)?)),
            ("v2", Some(key_id), Some(claims), None) => {
                let signature = decoded(proof)?;
                (claims, Proof::Signature { key_id, signature })
            }
            ("v1" | "v2", ..) => return Err(TokenError::Parts),
            _ => return Err(TokenError::Version),
        };
        Ok(Self { signed, claims, proof })
    }

    /// Its version.
    pub const fn version(&self) -> Version {
        match self.proof {
            Proof::Mac(_) => Version::V1,
            Proof::Signature { .. } => Version::V2,
        }
    }

    /// What it says of its key, if it is of [`Version::V2`].
    ///
    /// # Errors
    /// No key can have that ID.
    pub fn key_id(&self) -> Result<Option<KeyId>, KeyIdError> {
        match self.proof {
            Proof::Mac(_) => Ok(None),
            Proof::Signature { key_id, .. } => key_id.parse().map(Some),
        }
    }

    /// What it claims, which anybody can write: for people who look at a token, and nothing else.
    ///
    /// # Errors
    /// [`TokenError::Encoding`] and [`TokenError::Claims`].
    pub fn unverified_claims(&self) -> Result<Claims, TokenError> {
        Claims::decode(self.version(), self.claims)
    }

    /// What is signed.
    fn message(&self) -> Vec<u8> {
        message(self.signed)
    }

    /// The claims of a token that its key's holder has signed.
    fn verified_claims(&self, now: SystemTime) -> Result<Claims, TokenError> {
        let claims = self.unverified_claims()?;
        if claims.has_expired(now) {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }
}

fn message(signed: &str) -> Vec<u8> {
    [CONTEXT, signed].concat().into_bytes()
}

fn decoded<const N: usize>(part: &str) -> Result<[u8; N], TokenError> {
    let bytes = BASE64URL.decode(part.as_bytes()).map_err(|_| TokenError::Encoding)?;
    bytes.try_into().map_err(|_| TokenError::Encoding)
}

/// Why there is no such token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// It binds what only v2 can.
    #[error("a v1 token binds a namespace and a name only")]
    Binds,
    /// It would be longer than [`MAX_TOKEN_BYTES`].
    #[error("the token would be longer than 4096 bytes, and refused; bind a shorter path")]
    TooLong,
}

/// `head`, with the claims and what `sign` makes of both.
fn minted(head: &str, claims: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<String, MintError> {
    let signed = format!("{head}.{claims}");
    let proof = BASE64URL.encode(&sign(&message(&signed)));
    let token = format!("{signed}.{proof}");
    if token.len() > MAX_TOKEN_BYTES {
        return Err(MintError::TooLong);
    }
    Ok(token)
}

#[cfg(test)]
mod tests;
