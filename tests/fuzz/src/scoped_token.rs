//! Scoped tokens.

use sandgate_mesh::scoped_token::{Claims, MAX_TOKEN_BYTES, PublicKeys, Secrets, SigningKey, Token, Version};
use std::time::SystemTime;

/// Nobody's secret and key but this file's: no input is signed by them.
const SECRET: &[u8] = b"a secret of this fuzz target and of nobody else";
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIHNhbmRnYXRlIGZ1enogdGFyZ2V0IHNjb3BlZCB0b2tl
-----END PRIVATE KEY-----
";

/// A token that reads has one meaning, which survives being minted, and no other spelling; and it is verified by nobody who
/// didn't sign it. The input is also taken for files of keys, which must be read or refused.
pub fn scoped_token(data: &[u8]) -> bool {
    let _ = (
        Secrets::parse(data),
        PublicKeys::parse(data),
        SigningKey::parse(data, None),
    );
    let Ok(text) = std::str::from_utf8(data) else {
        return false;
    };
    let Ok(token) = Token::parse(text) else { return false };
    let (secrets, key) = (
        Secrets::parse(SECRET).unwrap(),
        SigningKey::parse(PRIVATE.as_bytes(), None).unwrap(),
    );
    let keys = PublicKeys::parse(key.public_pem().as_bytes()).unwrap();
    let born = SystemTime::UNIX_EPOCH;
    assert!(secrets.verify(&token, born).is_err() && keys.verify(&token, born).is_err());
    let Ok(claims) = token.unverified_claims() else {
        return false;
    };
    if token.version() == Version::V2 && token.key_id().is_err() {
        return false;
    }
    assert!(text.len() <= MAX_TOKEN_BYTES && text.is_ascii());
    respelt(text);
    minted(&claims, &token, &secrets, &key, &keys);
    true
}

/// The claims as these keys' holders sign them are the same claims; nobody else takes them.
fn minted(claims: &Claims, token: &Token<'_>, secrets: &Secrets, key: &SigningKey, keys: &PublicKeys) {
    let born = SystemTime::UNIX_EPOCH;
    if let Ok(v1) = secrets.mint(claims) {
        let v1 = Token::parse(&v1).unwrap();
        assert_eq!(secrets.verify(&v1, born).is_ok(), claims.expires > 0);
        assert_eq!(v1.unverified_claims().as_ref(), Ok(claims));
        assert!(keys.verify(&v1, born).is_err());
    } else {
        assert_eq!(token.version(), Version::V2, "v1 binds nothing more");
    }
    if let Ok(v2) = key.mint(claims) {
        let v2 = Token::parse(&v2).unwrap();
        assert_eq!(keys.verify(&v2, born).is_ok(), claims.expires > 0);
        assert_eq!(v2.unverified_claims().as_ref(), Ok(claims));
        assert!(secrets.verify(&v2, born).is_err());
    }
}

fn respelt(text: &str) {
    for more in ["=", " ", "\n", ".", "A", "\0"] {
        for other in [format!("{text}{more}"), format!("{more}{text}")] {
            assert!(Token::parse(&other).is_err(), "{other:?}");
        }
    }
    assert!(Token::parse(&text.replacen('v', "V", 1)).is_err());
}
