use super::*;
use crate::config::{NamePrefix, OidcKeys, SigningAlgorithm};
use sandgate_mesh::caller::CallerError;
use serde_json::json;
use std::time::Duration;

const NOW: u64 = 1_900_000_000;

fn settings() -> OidcSettings {
    let prefix = |text: &str| text.parse::<NamePrefix>().unwrap();
    OidcSettings {
        issuer: "https://issuer.example".into(),
        keys: OidcKeys::File("keys.json".into()),
        audiences: vec!["sandboxes".into(), "others".into()],
        username: ("sub".into(), prefix("oidc:")),
        groups: Some(("groups".into(), prefix("team:"))),
        required: vec![("hd".into(), "example.org".into())],
        algorithms: vec![SigningAlgorithm::Rs256],
        leeway: Duration::from_secs(30),
    }
}

fn good() -> Value {
    json!({
        "iss": "https://issuer.example", "aud": "sandboxes", "sub": "alice", "groups": ["b", "a"], "hd": "example.org",
        "exp": NOW + 60, "nbf": NOW, "iat": NOW,
    })
}

fn read_with(claims: &Value, settings: &OidcSettings) -> Result<(Caller, u64), Refused> {
    let claims: Object = serde_json::from_value(claims.clone()).unwrap();
    caller(&claims, settings, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
}

fn read(claims: &Value) -> Result<(Caller, u64), Refused> {
    read_with(claims, &settings())
}

/// Good claims in which one has another value, or isn't there.
fn with(claim: &str, value: Value) -> Value {
    let mut claims = good();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(claim);
    } else {
        claims[claim] = value;
    }
    claims
}

#[test]
fn a_caller_has_the_issuers_prefixes_on_its_name_and_groups() {
    let (caller, expires) = read(&good()).unwrap();
    assert_eq!(caller.to_string(), "oidc:alice");
    let Caller::User { groups, .. } = &caller else {
        panic!("{caller:?}")
    };
    assert_eq!(groups.iter().collect::<Vec<_>>(), ["team:a", "team:b"]);
    assert_eq!(expires, NOW + 90);
    // Whatever the issuer calls somebody, that is no name of Kubernetes' own, and no other kind of caller.
    for name in [
        "system:masters",
        "system:serviceaccount:a:b",
        "static:default",
        "anonymous",
    ] {
        let (caller, _) = read(&with("sub", json!(name))).unwrap();
        assert_eq!(caller.to_string(), format!("oidc:{name}"));
        assert!(matches!(caller, Caller::User { .. }));
        let (caller, _) = read(&with("groups", json!([name]))).unwrap();
        let Caller::User { groups, .. } = caller else { panic!() };
        assert_eq!(groups.iter().collect::<Vec<_>>(), [format!("team:{name}")]);
    }
}

#[test]
fn what_a_token_need_not_say_may_be_missing() {
    for claim in ["groups", "nbf", "iat"] {
        assert!(read(&with(claim, Value::Null)).is_ok(), "{claim}");
    }
    for (claim, value) in [
        ("groups", json!([])),
        ("groups", json!("a")),
        ("aud", json!(["x", "others"])),
        ("exp", json!(NOW - 29)),
        ("exp", json!(1.9e9 + 60.5)),
        ("nbf", json!(NOW + 30)),
        ("iat", json!(NOW + 30)),
    ] {
        assert!(read(&with(claim, value.clone())).is_ok(), "{claim}: {value}");
    }
}

#[test]
fn a_claim_that_is_missing_wrong_or_of_another_form_makes_no_caller() {
    let many: Vec<_> = (0..129).map(|number| number.to_string()).collect();
    for (claim, value, expected) in [
        ("iss", json!(null), Refused::Issuer),
        ("iss", json!("https://issuer.example/"), Refused::Issuer),
        ("iss", json!("https://evil.example"), Refused::Issuer),
        ("iss", json!(["https://issuer.example"]), Refused::Malformed("a text")),
        ("aud", json!(null), Refused::Audience),
        ("aud", json!([]), Refused::Audience),
        ("aud", json!("sandbox"), Refused::Audience),
        ("aud", json!("sandboxes,x"), Refused::Audience),
        ("aud", json!([["sandboxes"]]), Refused::Malformed("aud")),
        ("aud", json!(["sandboxes", 7]), Refused::Malformed("aud")),
        ("aud", json!({"sandboxes": true}), Refused::Malformed("aud")),
        ("exp", json!(null), Refused::NoEnd),
        ("exp", json!(NOW - 30), Refused::Expired),
        ("exp", json!("9999999999"), Refused::Malformed("exp")),
        ("exp", json!(1e300), Refused::Malformed("exp")),
        ("exp", json!(-1), Refused::Malformed("exp")),
        ("nbf", json!(NOW + 31), Refused::TooEarly),
        ("nbf", json!("0"), Refused::Malformed("nbf")),
        ("iat", json!(NOW + 31), Refused::FromTheFuture),
        ("iat", json!(true), Refused::Malformed("iat")),
        ("hd", json!(null), Refused::Required),
        ("hd", json!("example.com"), Refused::Required),
        ("hd", json!(["example.org"]), Refused::Malformed("a text")),
        ("sub", json!(null), Refused::NoName),
        ("sub", json!(""), Refused::NoName),
        ("sub", json!(7), Refused::Malformed("a text")),
        ("sub", json!("a\nb"), Refused::Name(CallerError::ControlCharacter)),
        ("sub", json!("a".repeat(252)), Refused::Name(CallerError::TooLong)),
        ("groups", json!([""]), Refused::Malformed("groups")),
        ("groups", json!(""), Refused::Malformed("groups")),
        ("groups", json!([["a"]]), Refused::Malformed("groups")),
        ("groups", json!({"a": 1}), Refused::Malformed("groups")),
        ("groups", json!(7), Refused::Malformed("groups")),
        (
            "groups",
            json!(["a\u{0}"]),
            Refused::Name(CallerError::ControlCharacter),
        ),
        ("groups", json!(many), Refused::Name(CallerError::TooManyGroups)),
    ] {
        assert_eq!(
            read(&with(claim, value.clone())).err(),
            Some(expected),
            "{claim}: {value}"
        );
    }
}

#[test]
fn an_address_that_is_not_verified_is_nobodys_name() {
    let mut settings = settings();
    settings.username.0 = "email".into();
    let mut claims = with("email", json!("alice@example.org"));
    assert_eq!(
        read_with(&claims, &settings).unwrap().0.to_string(),
        "oidc:alice@example.org"
    );
    for (verified, good) in [(json!(true), true), (json!(false), false), (json!("true"), false)] {
        claims["email_verified"] = verified.clone();
        let found = read_with(&claims, &settings).map(|_| ());
        assert_eq!(
            found,
            if good { Ok(()) } else { Err(Refused::Unverified) },
            "{verified}"
        );
    }
}

#[test]
fn a_prefix_that_with_a_name_makes_another_kind_of_caller_makes_none() {
    let mut settings = settings();
    settings.username.1 = "st".parse().unwrap();
    let found = read_with(&with("sub", json!("atic:default")), &settings);
    assert_eq!(found.err(), Some(Refused::Name(CallerError::Reserved)));
}
