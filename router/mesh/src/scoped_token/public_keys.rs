//! v2: the public keys by which a router knows who has signed.

use super::{BASE64URL, Claims, KeyId, KeyIdError, Proof, Token, TokenError};
use ring::digest::{SHA256, digest};
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::SystemTime;

/// How DER has every Ed25519 public key (RFC 8410 section 4), up to the key's own bytes.
pub(super) const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Most keys in one file.
const MAX_KEYS: usize = 64;

/// Why a file holds no public keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeysError {
    /// Neither PEM nor JSON.
    #[error("it is neither PEM with `PUBLIC KEY` blocks nor a JSON object with `keys`")]
    Form,
    /// JSON, but no set of keys.
    #[error("it is no set of keys: {0}")]
    Json(String),
    /// No key.
    #[error("it holds no public key")]
    Empty,
    /// More than 64.
    #[error("it holds more than {MAX_KEYS} keys; remove those whose tokens have expired")]
    TooMany,
    /// A private key.
    #[error("it holds a private key, which is for those who mint: give the router public keys only")]
    Private,
    /// A key of another algorithm, or a malformed one.
    #[error("key {0} of it is no Ed25519 public key")]
    NotEd25519(usize),
    /// A key ID that can't be one.
    #[error("key {0} of it: {1}")]
    KeyId(usize, KeyIdError),
    /// A JWK that isn't for verifying signatures.
    #[error("key {0} of it is not for signatures: its `use` or `alg` says so")]
    Use(usize),
    /// One ID for two keys.
    #[error("two keys of it have the ID {0}")]
    Repeated(KeyId),
}

/// Public keys of v2 tokens by their IDs.
#[derive(Debug)]
pub struct PublicKeys(HashMap<KeyId, [u8; 32]>);

#[derive(Deserialize)]
struct Set {
    keys: Vec<Member>,
}

/// A JWK (RFC 8037), whose unknown members are ignored as RFC 7517 section 4 says; or upstream's `kid` and `publicKey`.
#[derive(Deserialize)]
struct Member {
    kid: Option<String>,
    #[serde(rename = "publicKey")]
    public_key: Option<String>,
    kty: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    d: Option<IgnoredAny>,
    r#use: Option<String>,
    alg: Option<String>,
}

impl PublicKeys {
    /// Reads the content of a file: PEM (`PUBLIC KEY` blocks), a JWK set (RFC 7517) of Ed25519 keys (RFC 8037), or upstream's
    /// `{"keys":[{"kid":…,"publicKey":…}]}`. A key's ID is its `kid`, or else its [thumbprint](key_id_of).
    ///
    /// # Errors
    /// See [`PublicKeysError`].
    pub fn parse(content: &[u8]) -> Result<Self, PublicKeysError> {
        let found = if content.trim_ascii_start().starts_with(b"{") {
            from_json(content)?
        } else {
            from_pem(content)?
        };
        if found.is_empty() {
            return Err(PublicKeysError::Empty);
        }
        if found.len() > MAX_KEYS {
            return Err(PublicKeysError::TooMany);
        }
        let mut keys = HashMap::new();
        for (id, key) in found {
            match keys.entry(id) {
                Entry::Vacant(place) => place.insert(key),
                Entry::Occupied(taken) => return Err(PublicKeysError::Repeated(taken.key().clone())),
            };
        }
        Ok(Self(keys))
    }

    /// The IDs, in no order.
    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.0.keys()
    }

    /// Who has signed a token that hasn't expired at `now`, and what it claims.
    ///
    /// # Errors
    /// [`TokenError::NoKey`] for one of another version, [`UnknownKey`](TokenError::UnknownKey),
    /// [`Signature`](TokenError::Signature), and what is wrong with its claims.
    pub fn verify(&self, token: &Token<'_>, now: SystemTime) -> Result<(KeyId, Claims), TokenError> {
        let Proof::Signature { key_id, signature } = &token.proof else {
            return Err(TokenError::NoKey);
        };
        let id: KeyId = key_id.parse().map_err(|_| TokenError::UnknownKey)?;
        let key = self.0.get(&id).ok_or(TokenError::UnknownKey)?;
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&token.message(), signature)
            .map_err(|_| TokenError::Signature)?;
        Ok((id, token.verified_claims(now)?))
    }
}

/// The ID of a key that was given none: its JWK thumbprint (RFC 7638, as RFC 8037 has it for Ed25519).
///
/// # Errors
/// None in practice: a thumbprint can be a key ID.
pub(super) fn key_id_of(key: &[u8; 32]) -> Result<KeyId, KeyIdError> {
    let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, BASE64URL.encode(key));
    BASE64URL.encode(digest(&SHA256, jwk.as_bytes()).as_ref()).parse()
}

type Found = Vec<(KeyId, [u8; 32])>;

fn from_pem(content: &[u8]) -> Result<Found, PublicKeysError> {
    let mut found = Vec::new();
    for (number, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(content).enumerate() {
        let number = number + 1;
        let key = match section.map_err(|_| PublicKeysError::Form)? {
            (SectionKind::PublicKey, der) => der.strip_prefix(&SPKI).and_then(|key| key.try_into().ok()),
            (SectionKind::PrivateKey | SectionKind::EcPrivateKey | SectionKind::RsaPrivateKey, _) => {
                return Err(PublicKeysError::Private);
            }
            _ => None,
        };
        let key = key.ok_or(PublicKeysError::NotEd25519(number))?;
        let id = key_id_of(&key).map_err(|error| PublicKeysError::KeyId(number, error))?;
        found.push((id, key));
    }
    if found.is_empty() {
        return Err(PublicKeysError::Form);
    }
    Ok(found)
}

fn from_json(content: &[u8]) -> Result<Found, PublicKeysError> {
    let set: Set = serde_json::from_slice(content).map_err(|error| PublicKeysError::Json(error.to_string()))?;
    let keys = set.keys.iter().enumerate();
    keys.map(|(index, member)| member.read(index + 1)).collect()
}

impl Member {
    fn read(&self, number: usize) -> Result<(KeyId, [u8; 32]), PublicKeysError> {
        if self.d.is_some() {
            return Err(PublicKeysError::Private);
        }
        let is = |member: &Option<String>, expected: &[&str]| {
            member.as_deref().is_none_or(|value| expected.contains(&value))
        };
        if !is(&self.r#use, &["sig"]) || !is(&self.alg, &["EdDSA", "Ed25519"]) {
            return Err(PublicKeysError::Use(number));
        }
        let encoded = match (&self.public_key, &self.kty, &self.crv, &self.x) {
            (Some(key), None, None, None) => Some(key),
            (None, Some(kty), Some(crv), Some(key)) if kty == "OKP" && crv == "Ed25519" => Some(key),
            _ => None,
        };
        let key = encoded.and_then(|key| BASE64URL.decode(key.as_bytes()).ok()?.try_into().ok());
        let key = key.ok_or(PublicKeysError::NotEd25519(number))?;
        let id = match &self.kid {
            Some(id) => id.parse(),
            None => key_id_of(&key),
        };
        Ok((id.map_err(|error| PublicKeysError::KeyId(number, error))?, key))
    }
}
