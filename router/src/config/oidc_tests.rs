use super::super::{Authentication, Config, ConfigError};
use super::*;

const NEEDED: [&str; 5] = [
    "--authz-mode=oidc",
    "--authz-oidc-issuer-url=https://issuer.example/realm/",
    "--authz-oidc-audiences=sandboxes",
    "--authz-oidc-username-prefix=oidc:",
    "--authz-oidc-ca-file=ca.crt",
];

fn read(flags: &[&str]) -> Result<Config, ConfigError> {
    Config::from_args(flags.iter().map(Into::into).collect())
}

fn settings(more: &[&str]) -> OidcSettings {
    match read(&[&NEEDED, more].concat()).unwrap().authentication {
        Authentication::Oidc(settings) => *settings,
        other => panic!("{more:?}: {other:?}"),
    }
}

fn said(flags: &[&str]) -> Vec<String> {
    match read(flags) {
        Err(ConfigError::Settings { problems, .. }) => problems,
        other => panic!("{flags:?}: {other:?}"),
    }
}

fn said_with(more: &[&str]) -> Vec<String> {
    said(&[&NEEDED, more].concat())
}

#[test]
fn defaults_are_those_of_the_api_server_where_it_has_any() {
    let found = settings(&[]);
    let expected = OidcSettings {
        issuer: "https://issuer.example/realm/".into(),
        keys: OidcKeys::Issuer {
            discovery: "https://issuer.example/realm/.well-known/openid-configuration"
                .parse()
                .unwrap(),
            ca_file: "ca.crt".into(),
            refresh: OidcRefresh {
                longest: Duration::from_secs(600),
                shortest: Duration::from_secs(10),
                max_age: Duration::from_secs(86_400),
            },
        },
        audiences: vec!["sandboxes".into()],
        username: ("sub".into(), "oidc:".parse().unwrap()),
        groups: None,
        required: Vec::new(),
        algorithms: vec![SigningAlgorithm::Rs256],
        leeway: Duration::from_secs(30),
    };
    assert_eq!(found, expected);
}

#[test]
fn all_that_is_set_is_taken() {
    let found = settings(&[
        "-authz-oidc-client-id=a, b,",
        "--authz-oidc-username-claim=email",
        "--authz-oidc-groups-claim=groups",
        "--authz-oidc-groups-prefix=company:",
        "--authz-oidc-required-claim=hd=example.org",
        "--authz-oidc-required-claim=tier=",
        "--authz-oidc-signing-algs=ES256, EdDSA",
        "--authz-oidc-clock-leeway=0s",
        "--authz-oidc-refresh-interval=1m",
        "--authz-oidc-min-refresh-interval=1s",
        "--authz-oidc-keys-max-age=1h",
    ]);
    assert_eq!(found.audiences, ["a", "b"]);
    assert_eq!(found.username.0, "email");
    assert_eq!(found.groups, Some(("groups".into(), "company:".parse().unwrap())));
    let required = [("hd", "example.org"), ("tier", "")].map(|(claim, value)| (claim.into(), value.into()));
    assert_eq!(found.required, required);
    assert_eq!(found.algorithms, [SigningAlgorithm::Es256, SigningAlgorithm::EdDsa]);
    assert_eq!(found.leeway, Duration::ZERO);
}

#[test]
fn without_a_way_to_the_issuer_a_file_with_its_keys_does() {
    let flags = [&NEEDED[..4], &["--authz-oidc-jwks-file=keys.json"]].concat();
    let Authentication::Oidc(found) = read(&flags).unwrap().authentication else {
        panic!("no OIDC")
    };
    assert_eq!(found.keys, OidcKeys::File("keys.json".into()));
    let useless = said_with(&["--authz-oidc-jwks-file=keys.json", "--authz-oidc-keys-max-age=1h"]);
    assert_eq!(useless.len(), 2, "{useless:?}");
    assert!(useless[0].starts_with("--authz-oidc-ca-file is for an issuer that is asked"));
}

#[test]
fn what_is_missing_is_said_all_at_once() {
    let all = said(&["--authz-mode=oidc", "--authz-oidc-groups-claim=groups"]);
    for flag in ["issuer-url", "audiences", "username-prefix", "groups-prefix", "ca-file"] {
        let needed = format!("needs --authz-oidc-{flag}");
        assert!(all.iter().any(|text| text.contains(&needed)), "{needed}: {all:?}");
    }
    assert_eq!(all.len(), 5, "{all:?}");
}

#[test]
fn what_would_let_in_too_much_is_refused() {
    for (flag, expected) in [
        (
            "--authz-oidc-issuer-url=http://issuer.example",
            "must begin with https://",
        ),
        (
            "--authz-oidc-issuer-url=https://issuer.example?a=b",
            "must not hold a query",
        ),
        ("--authz-oidc-audiences=, ,", "needs --authz-oidc-audiences"),
        ("--authz-oidc-username-prefix=system:", "`system:`"),
        ("--authz-oidc-username-prefix=system:oidc:", "`system:`"),
        ("--authz-oidc-username-prefix=sys", "`system:`"),
        ("--authz-oidc-username-prefix=static:", "another kind of caller"),
        ("--authz-oidc-username-prefix=cert:", "another kind of caller"),
        ("--authz-oidc-username-prefix=spiffe://x", "another kind of caller"),
        ("--authz-oidc-username-prefix=a\u{7}b", "control characters"),
        ("--authz-oidc-groups-prefix=g:", "needs --authz-oidc-groups-claim"),
        ("--authz-oidc-required-claim=hd", "must be CLAIM=VALUE"),
        ("--authz-oidc-required-claim==x", "must be CLAIM=VALUE"),
        ("--authz-oidc-signing-algs=HS256", "whoever can verify could sign"),
        ("--authz-oidc-signing-algs=RS256,none", "it is no signature"),
        ("--authz-oidc-signing-algs=ES512", "is not known"),
        ("--authz-oidc-signing-algs=,", "names none"),
        ("--authz-oidc-clock-leeway=6m", "must not be longer than 5m"),
        ("--authz-oidc-min-refresh-interval=11m", "is longer than"),
        ("--authz-oidc-keys-max-age=10m", "must be longer than"),
    ] {
        let said = said_with(&[flag]);
        assert!(said.iter().any(|text| text.contains(expected)), "{flag}: {said:?}");
        assert_eq!(said.len(), 1, "{flag}: {said:?}");
    }
}

#[test]
fn what_is_for_another_choice_is_refused() {
    for choice in ["--authz-mode=allow-all", "--auth-token=t"] {
        let all = said(&[&[choice], &NEEDED[1..]].concat());
        let expected = ["issuer-url", "audiences", "username-prefix", "ca-file"];
        assert_eq!(
            all,
            expected.map(|flag| format!("--authz-oidc-{flag} needs --authz-mode=oidc")),
            "{choice}"
        );
    }
    let two = said_with(&["--auth-token=t"]);
    assert_eq!(
        two,
        ["a token is set, but --authz-mode=oidc would ignore it: choose one"]
    );
    // Empty is not set: charts write it so.
    assert!(read(&["--auth-token=t", "--authz-oidc-issuer-url=", "--authz-oidc-ca-file="]).is_ok());
}
