//! Files of keys, and what they make of tokens.

use super::*;

#[test]
fn a_file_with_one_secret_is_read_as_upstream_reads_it() {
    let token = Token::parse(V1).unwrap();
    let good = |content: &[u8]| secrets(content).verify(&token, at(0)).is_ok();
    for around in [
        "", "\n", "\r\n", " ", "\t", "\u{b}", "\u{c}", "\u{85}", "\u{a0}", "\u{2003}", "\n\n \n",
    ] {
        let content = [around.as_bytes(), SECRET, around.as_bytes()].concat();
        assert!(good(&content), "{around:?}");
        assert_eq!(secrets(&content).count(), 1);
    }
    for other in [&SECRET[1..], b"", b" \n "] {
        assert!(matches!(Secrets::parse(other), Err(SecretsError::TooShort(length)) if length < 32));
    }
    assert!(!good(&[SECRET, b"0"].concat()));
    assert!(!good(&[b"\xc2", SECRET].concat()), "no white space");

    // One secret of several lines: a short one, or long ones.
    let lines = [
        &[SECRET, SECRET, b"\n0123"].concat(),
        &[SECRET, b"\n", SECRET, SECRET].concat(),
    ];
    for content in lines {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, content);
        let claims = plain().encode();
        let token = minted("v1", &claims, |message| {
            ring::hmac::sign(&key, message).as_ref().to_vec()
        })
        .unwrap();
        let found = secrets(&[content, b"\n".as_slice()].concat()).verify(&Token::parse(&token).unwrap(), at(0));
        assert_eq!(found, Ok(plain()));
    }
}

#[test]
fn of_several_secrets_the_first_mints_and_all_verify() {
    let (old, new) = (SECRET, b"another-secret-of-32-bytes-or-so".as_slice());
    let overlap = secrets(&[new, b"\r\n\n  ", old, b"\n"].concat());
    assert_eq!(overlap.count(), 2);
    let by = |content: &[u8]| secrets(content).mint(&plain()).unwrap();
    assert_eq!(overlap.mint(&plain()).unwrap(), by(new));
    for token in [by(new), by(old)] {
        assert_eq!(overlap.verify(&Token::parse(&token).unwrap(), at(0)), Ok(plain()));
    }
    let stranger = by(b"a-secret-that-nobody-has-put-there");
    assert_eq!(
        overlap.verify(&Token::parse(&stranger).unwrap(), at(0)),
        Err(TokenError::Signature)
    );
    assert_eq!(
        secrets(new).verify(&Token::parse(&by(old)).unwrap(), at(0)),
        Err(TokenError::Signature),
        "what was taken out verifies nothing"
    );
    let many = |count: usize| {
        let lines: Vec<String> = (0..count).map(|number| format!("{number:032}")).collect();
        lines.join("\n")
    };
    assert_eq!(secrets(many(MAX_SECRETS).as_bytes()).count(), MAX_SECRETS);
    assert!(matches!(
        Secrets::parse(many(MAX_SECRETS + 1).as_bytes()),
        Err(SecretsError::TooMany)
    ));
    assert!(!format!("{overlap:?}").contains("another"));
}

#[test]
fn public_keys_are_read_from_pem_a_jwk_set_and_upstreams_set() {
    let ids = |content: &str| -> Vec<String> {
        let keys = PublicKeys::parse(content.as_bytes()).unwrap_or_else(|error| panic!("{content}: {error}"));
        let mut ids: Vec<String> = keys.ids().map(ToString::to_string).collect();
        ids.sort();
        ids
    };
    let (other, _) = SigningKey::generate().unwrap();
    assert_eq!(ids(PUBLIC), [THUMBPRINT]);
    assert_eq!(ids(&format!("a comment\n{PUBLIC}{}", other.public_pem())).len(), 2);
    let jwk = |more: &str| format!(r#" {{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{X}"{more}}}]}}"#);
    assert_eq!(ids(&jwk("")), [THUMBPRINT]);
    assert_eq!(
        ids(&jwk(r#","kid":"k-1_A","use":"sig","alg":"EdDSA","x5t":"y""#)),
        ["k-1_A"]
    );
    assert_eq!(
        ids(&format!(r#"{{"keys":[{{"kid":"current","publicKey":"{X}"}}]}}"#)),
        ["current"]
    );
}

#[test]
fn files_that_hold_no_public_keys_or_others_too_are_refused() {
    let set = |members: &str| format!(r#"{{"keys":[{members}]}}"#);
    let jwk = |more: &str| set(&format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{X}"{more}}}"#));
    let rsa = PUBLIC.replace("MCowBQYDK2VwAyEA", "MCowBQYDK2VuAyEA");
    for (content, expected) in [
        (String::new(), "it is neither PEM"),
        ("0123456789abcdef0123456789abcdef".into(), "it is neither PEM"),
        (PUBLIC.replace("END", "BEGIN"), "it is neither PEM"),
        (PRIVATE.into(), "it holds a private key"),
        (format!("{PUBLIC}{PRIVATE}"), "it holds a private key"),
        (jwk(r#","d":"AA""#), "it holds a private key"),
        (rsa, "key 1 of it is no Ed25519 public key"),
        ("{}".into(), "it is no set of keys"),
        (format!("{} x", jwk("")), "it is no set of keys"),
        (set(""), "it holds no public key"),
        (jwk(r#","use":"enc""#), "key 1 of it is not for signatures"),
        (jwk(r#","alg":"HS256""#), "key 1 of it is not for signatures"),
        (jwk(r#","kid":"a.b""#), "key 1 of it: a key ID must be"),
        (jwk(r#","kid":"v1""#), "key 1 of it: a key ID must be"),
        (
            jwk(&format!(r#","kid":"{}""#, "a".repeat(129))),
            "key 1 of it: a key ID must be",
        ),
        (
            set(r#"{"kty":"oct","k":"AAAA"}"#),
            "key 1 of it is no Ed25519 public key",
        ),
        (
            set(r#"{"kty":"OKP","crv":"X25519","x":"AAAA"}"#),
            "key 1 of it is no Ed25519 public key",
        ),
        (
            set(r#"{"kid":"a","publicKey":"AAAA"}"#),
            "key 1 of it is no Ed25519 public key",
        ),
        (
            set(&format!(r#"{{"kid":"a","publicKey":"{X}="}}"#)),
            "key 1 of it is no Ed25519 public key",
        ),
        (format!("{PUBLIC}{PUBLIC}"), "two keys of it have the ID kPrK"),
    ] {
        let error = PublicKeys::parse(content.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{content}: {error}");
    }
    let many: Vec<String> = (0..65)
        .map(|id| format!(r#"{{"kid":"{id}","publicKey":"{X}"}}"#))
        .collect();
    assert_eq!(
        PublicKeys::parse(set(&many.join(",")).as_bytes()).unwrap_err(),
        PublicKeysError::TooMany
    );
}

#[test]
fn a_new_key_reads_back_and_its_tokens_verify_under_its_public_half() {
    let (key, pem) = SigningKey::generate().unwrap();
    let again = SigningKey::parse(pem.as_bytes(), None).unwrap();
    assert_eq!((again.id(), again.public_pem()), (key.id(), key.public_pem()));
    let keys = PublicKeys::parse(key.public_pem().as_bytes()).unwrap();
    let token = key.mint(&bound()).unwrap();
    let found = keys.verify(&Token::parse(&token).unwrap(), at(0)).unwrap();
    assert_eq!(found, (key.id().clone(), bound()));
    assert!(!format!("{key:?}").contains("PRIVATE"));
    for bad in ["", PUBLIC, &format!("{pem}{pem}"), &PRIVATE.replace("K2Vw", "K2Vu")] {
        assert!(SigningKey::parse(bad.as_bytes(), None).is_err(), "{bad}");
    }
}
