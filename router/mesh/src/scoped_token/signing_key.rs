//! v2: the private key of whoever mints. No program of the mesh needs one to serve.

use super::public_keys::{SPKI, key_id_of};
use super::{Claims, KeyId, KeyIdError, MintError, minted};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use std::fmt;

/// How DER has an Ed25519 private key in its first form (RFC 8410 section 7), which all tools read, up to the key's own bytes.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Why there is no private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// Not one `PRIVATE KEY` block.
    #[error("it must hold exactly one PEM block `PRIVATE KEY` (PKCS#8)")]
    Pem,
    /// Of another algorithm, or malformed.
    #[error("it holds no Ed25519 private key; make one with `sandbox-router token keygen`")]
    NotEd25519,
    /// The system has no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// None in practice.
    #[error("{0}")]
    KeyId(#[from] KeyIdError),
}

/// The private key of v2 tokens.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    id: KeyId,
}

impl SigningKey {
    /// Reads the content of a PEM file (PKCS#8). Its ID is that which [`PublicKeys`](super::PublicKeys) gives its public half,
    /// unless `id` is another.
    ///
    /// # Errors
    /// Not one Ed25519 key.
    pub fn parse(pem: &[u8], id: Option<KeyId>) -> Result<Self, SigningKeyError> {
        let mut keys = PrivatePkcs8KeyDer::pem_slice_iter(pem);
        let (Some(Ok(key)), None) = (keys.next(), keys.next()) else {
            return Err(SigningKeyError::Pem);
        };
        Self::from_der(key.secret_pkcs8_der(), id)
    }

    fn from_der(der: &[u8], id: Option<KeyId>) -> Result<Self, SigningKeyError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| SigningKeyError::NotEd25519)?;
        let id = match id {
            Some(id) => id,
            None => key_id_of(&public(&pair)?)?,
        };
        Ok(Self { pair, id })
    }

    /// A new key, and its PEM.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<(Self, String), SigningKeyError> {
        let mut seed = [0; 32];
        SystemRandom::new()
            .fill(&mut seed)
            .map_err(|_| SigningKeyError::Random)?;
        let der = [&PKCS8[..], &seed].concat();
        Ok((Self::from_der(&der, None)?, pem("PRIVATE KEY", &der)))
    }

    /// Its ID.
    pub const fn id(&self) -> &KeyId {
        &self.id
    }

    /// Its public half, as PEM.
    pub fn public_pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI, self.pair.public_key().as_ref()].concat())
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// It would be too long.
    pub fn mint(&self, claims: &Claims) -> Result<String, MintError> {
        minted(&format!("v2.{}", self.id), &claims.encode(), |message| {
            self.pair.sign(message).as_ref().to_vec()
        })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "private key {}", self.id)
    }
}

fn public(pair: &Ed25519KeyPair) -> Result<[u8; 32], SigningKeyError> {
    let key = pair.public_key().as_ref();
    key.try_into().map_err(|_| SigningKeyError::NotEd25519)
}

/// One block (RFC 7468). These keys fit one line.
fn pem(label: &str, der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}
