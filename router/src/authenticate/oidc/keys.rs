//! An issuer's public keys: a JWK set (RFC 7517), and what is signed with one of them.

use super::Refused;
use super::jwt::Jwt;
use crate::authenticate::verified::Verified;
use crate::config::SigningAlgorithm as Algorithm;
use data_encoding::BASE64URL_NOPAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde_json::Value;

/// Most keys that a set may have.
const MAX_KEYS: usize = 64;
/// Shorter RSA keys are no longer safe (RFC 7518 section 3.3), and *ring* takes none that is longer than the other.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// Why a document is no set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeysError {
    #[error("it is no JWK set")]
    Form,
    #[error("it holds more than {MAX_KEYS} keys")]
    TooMany,
    #[error("it holds no key that tokens could be verified with: RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519")]
    None,
}

/// The public half of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PublicKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// A point, uncompressed.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    /// The one algorithm that its issuer uses it with, where that says so.
    algorithm: Option<Algorithm>,
    public: PublicKey,
}

/// Keys, and the tokens that were verified under just these.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    pub(super) verified: Verified,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a JWK set. Keys that are of no use here are left out, as RFC 7517 section 5 has it.
    pub(super) fn parse(document: &[u8]) -> Result<Self, KeysError> {
        let set: Jwks = serde_json::from_slice(document).map_err(|_| KeysError::Form)?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeysError::TooMany);
        }
        let read = |key| Key::read(serde_json::from_value(key).ok()?);
        let keys: Vec<Key> = set.keys.into_iter().filter_map(read).collect();
        if keys.is_empty() {
            return Err(KeysError::None);
        }
        Ok(Self {
            keys,
            verified: Verified::default(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn has_same_keys(&self, other: &Self) -> bool {
        self.keys == other.keys
    }

    /// Whether the token was signed with the key that it names, or with the only one that could be meant.
    pub(super) fn verify(&self, jwt: &Jwt<'_>) -> Result<(), Refused> {
        let named = |key: &&Key| jwt.key_id.is_none() || key.id == jwt.key_id;
        let mut keys = self.keys.iter().filter(named).peekable();
        if keys.peek().is_none() {
            return Err(Refused::UnknownKey);
        }
        let mut keys = keys.filter(|key| key.fits(jwt.algorithm));
        let key = keys.next().ok_or(Refused::OtherKey)?;
        // With several keys, the token must say which (OpenID Connect Core 1.0 section 10.1).
        if keys.next().is_some() {
            return Err(Refused::WhichKey);
        }
        key.verify(jwt).then_some(()).ok_or(Refused::Signature)
    }
}

impl Key {
    fn read(jwk: Jwk) -> Option<Self> {
        let for_signatures = jwk.r#use.is_none_or(|used| used == "sig")
            && jwk.key_ops.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !for_signatures {
            return None;
        }
        let bytes = |text: Option<String>| BASE64URL_NOPAD.decode(text?.as_bytes()).ok();
        let point = |x: Option<String>, y: Option<String>, size: usize| {
            let (x, y) = (bytes(x)?, bytes(y)?);
            (x.len() == size && y.len() == size).then(|| [&[4], &x[..], &y].concat())
        };
        let public = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let modulus = without_leading_zeros(bytes(jwk.n)?);
                let exponent = without_leading_zeros(bytes(jwk.e)?);
                let fits = RSA_MODULUS_BYTES.contains(&modulus.len());
                fits.then_some(PublicKey::Rsa { modulus, exponent })?
            }
            ("EC", Some("P-256")) => PublicKey::P256(point(jwk.x, jwk.y, 32)?),
            ("EC", Some("P-384")) => PublicKey::P384(point(jwk.x, jwk.y, 48)?),
            ("OKP", Some("Ed25519")) => PublicKey::Ed25519(bytes(jwk.x).filter(|key| key.len() == 32)?),
            _ => return None,
        };
        let algorithm = jwk.alg.map(|name| name.parse().ok());
        let key = Self {
            id: jwk.kid,
            // One that is for something else, such as encryption, is for nothing here.
            algorithm: match algorithm {
                Some(None) => return None,
                Some(algorithm) => algorithm,
                None => None,
            },
            public,
        };
        key.algorithm.is_none_or(|algorithm| key.fits(algorithm)).then_some(key)
    }

    /// Whether tokens of this algorithm are signed with a key like this. A token doesn't decide what a key is.
    fn fits(&self, algorithm: Algorithm) -> bool {
        let is_intended = self.algorithm.is_none_or(|intended| intended == algorithm);
        is_intended && self.verifier(algorithm).is_some()
    }

    fn verifier(&self, algorithm: Algorithm) -> Option<Verifier<'_>> {
        let plain = |algorithm, key| Some(Verifier::Plain(algorithm, key));
        match &self.public {
            PublicKey::Rsa { modulus, exponent } => {
                let key = RsaPublicKeyComponents {
                    n: &modulus[..],
                    e: &exponent[..],
                };
                rsa(algorithm).map(|parameters| Verifier::Rsa(parameters, key))
            }
            PublicKey::P256(point) if algorithm == Algorithm::Es256 => {
                plain(&signature::ECDSA_P256_SHA256_FIXED, point)
            }
            PublicKey::P384(point) if algorithm == Algorithm::Es384 => {
                plain(&signature::ECDSA_P384_SHA384_FIXED, point)
            }
            PublicKey::Ed25519(key) if algorithm == Algorithm::EdDsa => plain(&signature::ED25519, key),
            PublicKey::P256(_) | PublicKey::P384(_) | PublicKey::Ed25519(_) => None,
        }
    }

    fn verify(&self, jwt: &Jwt<'_>) -> bool {
        match self.verifier(jwt.algorithm) {
            Some(Verifier::Rsa(parameters, key)) => key.verify(parameters, jwt.signed, &jwt.signature).is_ok(),
            Some(Verifier::Plain(algorithm, key)) => UnparsedPublicKey::new(algorithm, key)
                .verify(jwt.signed, &jwt.signature)
                .is_ok(),
            None => false,
        }
    }
}

/// A key as *ring* takes it.
enum Verifier<'a> {
    Rsa(&'static RsaParameters, RsaPublicKeyComponents<&'a [u8]>),
    Plain(&'static dyn VerificationAlgorithm, &'a [u8]),
}

fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return None,
    })
}

/// Some issuers write a sign byte that RFC 7518 section 6.3.1.1 forbids.
fn without_leading_zeros(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().skip_while(|byte| *byte == 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn count(keys: &Value) -> Result<usize, KeysError> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).map(|set| set.len())
    }

    fn bytes(length: usize) -> String {
        BASE64URL_NOPAD.encode(&vec![0xa5; length])
    }

    #[test]
    fn keys_of_no_use_are_left_out_and_a_set_without_any_is_none() {
        let good = json!({"kty": "EC", "crv": "P-256", "x": bytes(32), "y": bytes(32)});
        let with = |name: &str, value: Value| {
            let mut key = good.clone();
            key[name] = value;
            key
        };
        assert_eq!(count(&json!([good])), Ok(1));
        assert_eq!(
            count(&json!([with("use", json!("sig")), with("alg", json!("ES256"))])),
            Ok(2)
        );
        for bad in [
            with("use", json!("enc")),
            with("key_ops", json!(["sign"])),
            with("alg", json!("RS256")),
            with("alg", json!("ECDH-ES")),
            with("crv", json!("P-521")),
            with("crv", json!("P-384")),
            with("x", json!(bytes(31))),
            with("x", json!("=")),
            with("kid", json!(7)),
            json!({"kty": "oct", "k": bytes(32)}),
            json!({"kty": "RSA", "n": bytes(255), "e": "AQAB"}),
            json!({"kty": "RSA", "n": bytes(1025), "e": "AQAB"}),
            json!({"kty": "RSA", "e": "AQAB"}),
            json!({"kty": "OKP", "crv": "X25519", "x": bytes(32)}),
            json!("key"),
            json!(null),
        ] {
            assert_eq!(count(&json!([bad])), Err(KeysError::None), "{bad}");
            assert_eq!(count(&json!([bad, good])), Ok(1), "{bad}");
        }
        assert_eq!(count(&json!([])), Err(KeysError::None));
        assert_eq!(count(&json!(vec![good; 65])), Err(KeysError::TooMany));
        for text in ["", "{}", "[]", r#"{"keys":{}}"#, "<html>"] {
            assert_eq!(KeySet::parse(text.as_bytes()).err(), Some(KeysError::Form), "{text}");
        }
    }
}
