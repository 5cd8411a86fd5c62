mod key_files;

use super::*;
use crate::sandbox::SandboxKey;
use std::time::Duration;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
/// Of a secret that is no text, with a line feed in it.
const BINARY_SECRET: &[u8] = b"\xff\x00 binary \n secret of more than 32 bytes \xc2";
/// The private key of RFC 8037 appendix A.1.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
";
/// Its public half, and its thumbprint, as appendices A.2 and A.3 have them.
const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
/// When the tokens below end, but for [`V1_BINARY`].
const END: u64 = 1_900_000_000;

// Made with Python's hmac and its package cryptography, from upstream's description of the format.
const V1: &str =
    "v1.eyJucyI6InRlYW0tYSIsIm5hbWUiOiJib3gtYSIsImV4cCI6MTkwMDAwMDAwMH0.cvOz8Xgm1HsuWJsIdIXCXBirtkOXIPsU5DZu3Xz7NXo";
const V1_BINARY: &str =
    "v1.eyJucyI6ImRlZmF1bHQiLCJuYW1lIjoiYWxwaGEiLCJleHAiOjF9.miAf2vbiLPtfaWF97P7qb_1kWyNtx-0UCjNrBRMXJTk";
const V2: &str = "v2.kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k.eyJucyI6InRlYW0tYSIsIm5hbWUiOiJib3gtYSIsInVpZCI6IjRmNzM3ZTRiLTIyZGMtNGE2MS1hMmRiLWM3NjVmZTI4Zjk2NyIsInBvcnQiOjkwOTAsIm1ldGhvZCI6IlBPU1QiLCJwYXRoIjoiL2V4ZWMvYSUyRmIiLCJleHAiOjE5MDAwMDAwMDB9.l6QJUv_VUcXFfA0fF8mWu3l-kJZdNIMBj3rI0kBZ0RuWxQk8SGYeeN338USrYGJ1SYd0ZGkp4QznyHx5ageGAg";
const V2_PLAIN: &str = "v2.kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k.eyJucyI6InRlYW0tYSIsIm5hbWUiOiJib3gtYSIsImV4cCI6MTkwMDAwMDAwMH0.-D9aztbhysAsDVSeird1hJ-ifLft--hyUTCLS1OtlICWLPTYIuZno8DBd_k5uVhZQnwK68F9tIJ0hbvgKJGwAg";

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn secrets(content: &[u8]) -> Secrets {
    Secrets::parse(content).unwrap()
}

fn keys() -> PublicKeys {
    PublicKeys::parse(PUBLIC.as_bytes()).unwrap()
}

fn private() -> SigningKey {
    SigningKey::parse(PRIVATE.as_bytes(), None).unwrap()
}

/// The claims of [`V1`] and [`V2_PLAIN`].
fn plain() -> Claims {
    Claims {
        scope: Scope {
            sandbox: SandboxKey {
                namespace: "team-a".parse().unwrap(),
                name: "box-a".parse().unwrap(),
            },
            uid: None,
            port: None,
            method: None,
            path: None,
        },
        expires: END,
    }
}

/// Those of [`V2`].
fn bound() -> Claims {
    let mut claims = plain();
    claims.scope.uid = Some("4f737e4b-22dc-4a61-a2db-c765fe28f967".parse().unwrap());
    claims.scope.port = Some("9090".parse().unwrap());
    claims.scope.method = Some("POST".parse().unwrap());
    claims.scope.path = Some("/exec/a%2Fb".parse().unwrap());
    claims
}

/// What becomes of a token a second before [`END`] at a router that takes both versions.
fn judged(token: &str) -> Result<Claims, TokenError> {
    let token = Token::parse(token)?;
    match token.version() {
        Version::V1 => secrets(SECRET).verify(&token, at(END - 1)),
        Version::V2 => Ok(keys().verify(&token, at(END - 1))?.1),
    }
}

/// Tokens with these claims that the keys' holders have signed, whatever the claims are.
fn signed(claims: &[u8]) -> [String; 2] {
    let claims = BASE64URL.encode(claims);
    let sign = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET);
    let pair = rustls_pki_types::pem::PemObject::from_pem_slice(PRIVATE.as_bytes());
    let pair: rustls_pki_types::PrivatePkcs8KeyDer<'_> = pair.unwrap();
    let pair = ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(pair.secret_pkcs8_der()).unwrap();
    [
        minted("v1", &claims, |message| {
            ring::hmac::sign(&sign, message).as_ref().to_vec()
        })
        .unwrap(),
        minted(&format!("v2.{THUMBPRINT}"), &claims, |message| {
            pair.sign(message).as_ref().to_vec()
        })
        .unwrap(),
    ]
}

#[test]
fn tokens_that_others_made_are_read_and_made_the_same() {
    for (token, claims) in [(V1, plain()), (V2, bound()), (V2_PLAIN, plain())] {
        assert_eq!(judged(token), Ok(claims), "{token}");
    }
    let token = Token::parse(V1_BINARY).unwrap();
    let found = secrets(BINARY_SECRET).verify(&token, at(0)).unwrap();
    assert_eq!(
        (found.scope.sandbox.to_string().as_str(), found.expires),
        ("default/alpha", 1)
    );

    assert_eq!(secrets(SECRET).mint(&plain()).unwrap(), V1);
    assert_eq!(private().mint(&bound()).unwrap(), V2);
    assert_eq!(private().mint(&plain()).unwrap(), V2_PLAIN);
}

#[test]
fn a_token_is_good_until_the_second_of_its_end() {
    for (now, expected) in [
        (0, None),
        (END - 1, None),
        (END, Some(TokenError::Expired)),
        (u64::MAX / 4, Some(TokenError::Expired)),
    ] {
        let token = Token::parse(V1).unwrap();
        assert_eq!(secrets(SECRET).verify(&token, at(now)).err(), expected, "{now}");
        let token = Token::parse(V2).unwrap();
        assert_eq!(keys().verify(&token, at(now)).err(), expected, "{now}");
    }
}

#[test]
fn a_token_with_any_bit_changed_is_refused() {
    for token in [V1, V2] {
        for place in 0..token.len() {
            for bit in 0..7 {
                let mut bytes = token.as_bytes().to_vec();
                bytes[place] ^= 1 << bit;
                let changed = String::from_utf8(bytes).unwrap();
                assert!(judged(&changed).is_err(), "{changed}");
            }
        }
    }
}

#[test]
fn a_token_has_one_spelling() {
    for token in [V1, V2] {
        let (signed, proof) = token.rsplit_once('.').unwrap();
        let (head, claims) = signed.rsplit_once('.').unwrap();
        for other in [
            format!("{token}="),
            format!("{token}=="),
            format!("{token}."),
            format!(".{token}"),
            format!("{token} "),
            format!("{token}\n"),
            format!("{token}.{proof}"),
            format!("{head}.{claims}=.{proof}"),
            format!("{head}.{claims}.{}", &proof[..proof.len() - 1]),
            format!("{head}.{claims}."),
            format!("{head}..{proof}"),
            format!("{head}.{claims}.\n{proof}"),
            // The alphabet of plain base64.
            format!("{head}.{claims}.{}", proof.replace(['-', '_'], "+")),
            token.replacen('v', "V", 1),
            token.replacen("v1.", "", 1).replacen("v2.", "", 1),
        ] {
            if other != token {
                assert!(judged(&other).is_err(), "{other}");
            }
        }
    }
    // Bits behind the last byte: 43 characters hold 256 bits and two more.
    let last = V1.chars().last().unwrap();
    let mut sloppy = 0;
    for letter in ('a'..='z')
        .chain('A'..='Z')
        .chain('0'..='9')
        .chain(['-', '_'])
        .filter(|letter| *letter != last)
    {
        let other = format!("{}{letter}", &V1[..V1.len() - 1]);
        let refused = judged(&other).unwrap_err();
        sloppy += usize::from(refused == TokenError::Encoding);
    }
    assert_eq!(sloppy, 48, "three quarters have such bits");
}

#[test]
fn versions_are_not_taken_for_each_other() {
    let parts = |token: &str| token.split('.').map(String::from).collect::<Vec<_>>();
    let ([_, claims, mac], [_, id, v2_claims, signature]) = (&parts(V1)[..], &parts(V2_PLAIN)[..]) else {
        panic!()
    };
    for (token, expected) in [
        (format!("v1.{v2_claims}.{signature}"), TokenError::Encoding),
        (format!("v2.{id}.{claims}.{mac}"), TokenError::Encoding),
        (format!("v1.{id}.{claims}.{mac}"), TokenError::Parts),
        (format!("v2.{claims}.{signature}"), TokenError::Parts),
        (format!("v3.{claims}.{mac}"), TokenError::Version),
        (format!("v10.{claims}.{mac}"), TokenError::Version),
        (format!("{claims}.{mac}"), TokenError::Version),
        ("v1".into(), TokenError::Version),
        ("v1.".into(), TokenError::Parts),
        (String::new(), TokenError::Version),
        // A JWT (RFC 7519) is none.
        (format!("eyJhbGciOiJub25lIn0.{claims}."), TokenError::Version),
    ] {
        assert_eq!(judged(&token), Err(expected), "{token}");
    }
    let (v1, v2) = (Token::parse(V1).unwrap(), Token::parse(V2).unwrap());
    assert_eq!(keys().verify(&v1, at(0)).err(), Some(TokenError::NoKey));
    assert_eq!(secrets(SECRET).verify(&v2, at(0)).err(), Some(TokenError::NoKey));
}

#[test]
fn a_key_is_chosen_by_the_id_that_is_signed() {
    let set = format!(r#"{{"keys":[{{"kid":"a","publicKey":"{X}"}},{{"kid":"b","publicKey":"{X}"}}]}}"#);
    let keys = PublicKeys::parse(set.as_bytes()).unwrap();
    let by = |id: &str| {
        SigningKey::parse(PRIVATE.as_bytes(), Some(id.parse().unwrap()))
            .unwrap()
            .mint(&plain())
            .unwrap()
    };
    let judged = |token: &str| {
        keys.verify(&Token::parse(token).unwrap(), at(0))
            .map(|(id, _)| id.to_string())
    };
    assert_eq!(judged(&by("a")), Ok("a".into()));
    assert_eq!(judged(&by("a").replacen(".a.", ".b.", 1)), Err(TokenError::Signature));
    for unknown in ["c", "A", "", "v1", "a b"] {
        let token = by("a").replacen(".a.", &format!(".{unknown}."), 1);
        assert_eq!(judged(&token), Err(TokenError::UnknownKey), "{unknown:?}");
    }
}

#[test]
fn claims_that_a_key_holder_signed_and_that_mean_nothing_or_two_things_are_refused() {
    let long = "a".repeat(64);
    for claims in [
        "",
        "null",
        "[]",
        "{}",
        // serde would take an array for an object.
        r#"["team-a","box-a",1900000000]"#,
        r#"{"ns":"team-a","name":"box-a"}"#,
        r#"{"ns":"team-a","exp":1900000000}"#,
        r#"{"name":"box-a","exp":1900000000}"#,
        r#"{"ns":"","name":"box-a","exp":1900000000}"#,
        r#"{"ns":"team-a","name":null,"exp":1900000000}"#,
        r#"{"ns":"team-a","name":7,"exp":1900000000}"#,
        r#"{"ns":"Team-A","name":"box-a","exp":1900000000}"#,
        r#"{"ns":"team-a/x","name":"box-a","exp":1900000000}"#,
        &format!(r#"{{"ns":"{long}","name":"box-a","exp":1900000000}}"#),
        // Twice, with whichever meaning.
        r#"{"ns":"team-a","ns":"team-b","name":"box-a","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","exp":1900000000,"exp":1900000001}"#,
        r#"{"ns":"team-a","name":"box-a","n\u0061me":"box-b","exp":1900000000}"#,
        // A restriction that isn't known would not hold.
        r#"{"ns":"team-a","name":"box-a","exp":1900000000,"nbf":1}"#,
        r#"{"NS":"team-a","name":"box-a","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","exp":"1900000000"}"#,
        r#"{"ns":"team-a","name":"box-a","exp":1.9e9}"#,
        r#"{"ns":"team-a","name":"box-a","exp":1900000000.5}"#,
        r#"{"ns":"team-a","name":"box-a","exp":-1}"#,
        r#"{"ns":"team-a","name":"box-a","exp":99999999999999999999}"#,
        r#"{"ns":"team-a","name":"box-a","exp":1900000000} "x""#,
        r#"{"ns":"team-a","name":"box-a","exp":1900000000"#,
        " {\"ns\":\"team-a\",\"name\":\"box-a\",\"exp\":1900000000}",
        // Bound to nothing is said by leaving it out.
        r#"{"ns":"team-a","name":"box-a","uid":null,"exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","uid":"","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","uid":"a b","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","port":0,"exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","port":65536,"exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","port":"80","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","method":"","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","method":"GE T","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","path":"","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","path":"exec","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","path":"/exec?a","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","path":"/exec#a","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","path":"/a b","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","path":"/\u00e4","exp":1900000000}"#,
        r#"{"ns":"team-a","name":"box-a","path":7,"exp":1900000000}"#,
    ] {
        for token in signed(claims.as_bytes()) {
            assert_eq!(judged(&token), Err(TokenError::Claims), "{claims}");
        }
    }
    for token in signed(b"{\"ns\":\"team-a\",\"name\":\"\xff\",\"exp\":1900000000}") {
        assert_eq!(judged(&token), Err(TokenError::Claims));
    }
    // What these tokens have in common with good ones: order and white space inside the object carry no meaning.
    for token in signed(br#"{ "exp" :1900000000, "name":"box-a","n\u0073":"team-a"}"#) {
        assert_eq!(judged(&token), Ok(plain()));
    }
    // v1 has no more than its three claims.
    let more = br#"{"ns":"team-a","name":"box-a","port":80,"exp":1900000000}"#;
    let [v1, v2] =
        signed(more).map(|token| judged(&token).map(|claims| claims.scope.port.map(crate::sandbox::AppPort::get)));
    assert_eq!((v1, v2), (Err(TokenError::Claims), Ok(Some(80))));
}

#[test]
fn a_token_that_is_too_long_is_neither_read_nor_made() {
    let mut claims = plain();
    let path = |length: usize| Some(format!("/{}", "a".repeat(length)).parse().unwrap());
    claims.scope.path = path(2_800);
    let token = private().mint(&claims).unwrap();
    assert!(token.len() <= MAX_TOKEN_BYTES);
    assert_eq!(judged(&token), Ok(claims.clone()));
    claims.scope.path = path(3_000);
    assert_eq!(private().mint(&claims), Err(MintError::TooLong));
    let long = format!("v1.{}.{}", "A".repeat(MAX_TOKEN_BYTES), "A".repeat(43));
    assert_eq!(judged(&long), Err(TokenError::TooLong));
}

#[test]
fn v1_mints_nothing_that_it_cannot_bind() {
    assert_eq!(secrets(SECRET).mint(&bound()), Err(MintError::Binds));
}

#[test]
fn whoever_knows_the_public_key_can_mint_nothing() {
    let raw = BASE64URL.decode(X.as_bytes()).unwrap();
    for known in [
        raw.as_slice(),
        X.as_bytes(),
        PUBLIC.trim().as_bytes(),
        PUBLIC.as_bytes(),
    ] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, known);
        let claims = plain().encode();
        let sign = |message: &[u8]| ring::hmac::sign(&key, message).as_ref().to_vec();
        for head in [
            "v1".to_owned(),
            "v2".to_owned(),
            format!("v2.{THUMBPRINT}"),
            format!("v1.{THUMBPRINT}"),
        ] {
            assert!(judged(&minted(&head, &claims, sign).unwrap()).is_err(), "{head}");
        }
    }
    // Nor is it ever taken for a secret where the same file is given for both.
    let jwk = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{X}"}}]}}"#);
    let upstream = format!(r#"{{"keys":[{{"kid":"a","publicKey":"{X}"}}]}}"#);
    for public in [PUBLIC, &jwk, &upstream, &format!("\n{PUBLIC}\n{PUBLIC}")] {
        let refused = Secrets::parse(public.as_bytes()).err();
        assert!(
            matches!(refused, Some(SecretsError::Public)) || public.starts_with('\n'),
            "{refused:?}"
        );
    }
}
