//! `--authz-mode=oidc`: whoever has a token of the issuer is at the gate whom it names, and nobody else gets through.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_mesh::policy::model::Source;
use sandgate_tests::api_server::ApiServer;
use sandgate_tests::folder::Folder;
use sandgate_tests::issuer::{Issuer, JWKS, SigningKey, seconds_from_now};
use sandgate_tests::{Mesh, PATIENCE, RecordingApp, TOKEN, assert_detail, field, rule, send, status};
use serde_json::{Value, json};
use std::time::Duration;

const MISSING: &str = "Missing or invalid Authorization header.";
const INVALID: &str = "Invalid token.";

/// A request with this token.
fn with(mesh: &Mesh, token: &str) -> String {
    mesh.head("GET /page HTTP/1.1", "").replace(TOKEN, token)
}

async fn everybody() -> Mesh {
    Mesh::open(RecordingApp::polite().await).await
}

#[tokio::test]
async fn a_token_of_each_algorithm_is_taken_and_the_app_does_not_see_it() {
    let keys = [
        SigningKey::rsa("r", 0),
        SigningKey::p256("p"),
        SigningKey::p384("q"),
        SigningKey::ed25519("e"),
    ];
    let issuer = Issuer::start(&keys.each_ref()).await;
    let mesh = everybody().await;
    let router = issuer.run_router(&mesh, &[]);
    for (key, algorithm) in [
        (0, "RS256"),
        (0, "RS384"),
        (0, "RS512"),
        (0, "PS256"),
        (0, "PS384"),
        (0, "PS512"),
        (1, "ES256"),
        (2, "ES384"),
        (3, "EdDSA"),
        (3, "Ed25519"),
    ] {
        let token = keys[key].sign(algorithm, &issuer.claims());
        // Verified, and then remembered.
        for _ in 0..2 {
            let response = send(router, with(&mesh, &token)).await;
            assert_eq!(status(&response), 200, "{algorithm}: {response}");
            let seen = mesh.app.take_only_request().head;
            assert!(!seen.to_ascii_lowercase().contains("authorization"), "{seen}");
            assert!(!seen.contains(&token), "{seen}");
        }
    }
    assert_eq!(issuer.asked(JWKS), 1);
}

#[tokio::test]
async fn the_gate_is_told_the_name_and_the_groups_with_the_issuers_prefix() {
    let named = |name: &str| Some(vec![name.to_owned()]);
    let source = Source::default;
    let key = SigningKey::p256("k");
    let issuer = Issuer::start(&[&key]).await;
    let mut claims = issuer.claims();
    claims["groups"] = json!(["developers", "system:masters"]);
    let token = key.sign("ES256", &claims);
    for (admitted, code) in [
        (
            Source {
                users: named("oidc:alice"),
                ..source()
            },
            200,
        ),
        (
            Source {
                groups: named("oidc:developers"),
                ..source()
            },
            200,
        ),
        (
            Source {
                groups: named("oidc:system:masters"),
                ..source()
            },
            200,
        ),
        // Names without the prefix are somebody else's.
        (
            Source {
                users: named("alice"),
                ..source()
            },
            403,
        ),
        (
            Source {
                groups: named("developers"),
                ..source()
            },
            403,
        ),
        (
            Source {
                groups: named("system:masters"),
                ..source()
            },
            403,
        ),
    ] {
        let context = format!("{admitted:?}");
        let app = RecordingApp::polite().await;
        let mesh = Mesh::start(app, |ports| rule(admitted, ports.app, &[], &[])).await;
        let response = send(issuer.run_router(&mesh, &[]), with(&mesh, &token)).await;
        assert_eq!(status(&response), code, "{context}: {response}");
        match code {
            200 => drop(mesh.app.take_only_request()),
            _ => mesh.app.assert_untouched(&context),
        }
    }
}

#[tokio::test]
async fn every_request_needs_a_token() {
    let key = SigningKey::p256("k");
    let (issuer, mesh) = (Issuer::start(&[&key]).await, everybody().await);
    let router = issuer.run_router(&mesh, &[]);
    let bare = with(&mesh, "x").replace("Authorization: Bearer x\r\n", "");
    let response = send(router, &bare).await;
    assert_detail(&response, 401, MISSING, "no token");
    assert_eq!(field(&response, "www-authenticate"), ["Bearer"]);
    let token = key.sign("ES256", &issuer.claims());
    for given in [
        format!("Basic {token}"),
        token.clone(),
        format!("Bearer {token}\r\nAuthorization: Bearer {token}"),
    ] {
        let head = bare.replace("Host:", &format!("Authorization: {given}\r\nHost:"));
        assert_detail(&send(router, head).await, 401, MISSING, &given);
    }
    mesh.app.assert_untouched("no bearer token");
}

#[tokio::test]
async fn a_remembered_token_is_refused_once_it_has_expired() {
    let key = SigningKey::p256("k");
    let (issuer, mesh) = (Issuer::start(&[&key]).await, everybody().await);
    let router = issuer.run_router(&mesh, &["--authz-oidc-clock-leeway=0s"]);
    let mut claims = issuer.claims();
    claims["exp"] = seconds_from_now(3).into();
    let token = key.sign("ES256", &claims);
    let refused = async {
        loop {
            let response = send(router, with(&mesh, &token)).await;
            if status(&response) != 200 {
                break response;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let response = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert_detail(&response, 401, INVALID, "expired");
    assert!(seconds_from_now(0) >= claims["exp"].as_i64().unwrap());
    mesh.app.forget();
    assert_detail(&send(router, with(&mesh, &token)).await, 401, INVALID, "still");
    mesh.app.assert_untouched("expired");
}

#[tokio::test]
async fn the_api_server_is_asked_about_rights_in_the_name_with_the_prefix() {
    let key = SigningKey::ed25519("k");
    let (issuer, mesh) = (Issuer::start(&[&key]).await, everybody().await);
    let api_server =
        ApiServer::answering(|review| (201, json!({"allowed": review["spec"]["user"] == "oidc:alice"}))).await;
    let router = issuer.run_router(&mesh, &["--authz-subject-access-review", &api_server.flag()]);
    let mut claims = issuer.claims();
    let response = send(router, with(&mesh, &key.sign("EdDSA", &claims))).await;
    assert_eq!(status(&response), 200, "{response}");
    mesh.app.take_only_request();
    claims["sub"] = "bob".into();
    let response = send(router, with(&mesh, &key.sign("EdDSA", &claims))).await;
    assert_detail(&response, 403, "Refused by the access review of alpha.", "bob");
    mesh.app.assert_untouched("bob");
    let asked: Vec<Value> = api_server.seen().iter().map(|review| review["spec"].clone()).collect();
    let subject = |spec: &Value| [spec["user"].clone(), spec["groups"].clone(), spec["uid"].clone()];
    let expected = |name: &str| [json!(name), json!(["oidc:developers"]), json!(null)];
    assert_eq!(
        asked.iter().map(subject).collect::<Vec<_>>(),
        [expected("oidc:alice"), expected("oidc:bob")]
    );
}

#[tokio::test]
async fn a_file_with_the_keys_stands_for_an_issuer_that_is_never_asked() {
    let (old, new) = (SigningKey::p256("old"), SigningKey::p256("new"));
    let issuer = Issuer::start(&[&old, &new]).await;
    let (mesh, folder) = (everybody().await, Folder::new());
    let set = |keys: &[&SigningKey]| {
        let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
        json!({ "keys": keys }).to_string()
    };
    folder.rename_over("keys.json", set(&[&old]));
    let file = format!("--authz-oidc-jwks-file={}", folder.path("keys.json").display());
    let mut flags = issuer.flags();
    flags.retain(|flag| !flag.starts_with("--authz-oidc-ca-file"));
    flags.push(file);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let router = mesh.run_router(&flags);
    let tokens = [&old, &new].map(|key| key.sign("ES256", &issuer.claims()));
    assert_eq!(status(&send(router, with(&mesh, &tokens[0])).await), 200);
    assert_detail(&send(router, with(&mesh, &tokens[1])).await, 401, INVALID, "new");
    // The file is followed, and a key that goes takes its tokens along, remembered or not.
    folder.rename_over("keys.json", set(&[&new]));
    let followed = async {
        while status(&send(router, with(&mesh, &tokens[1])).await) != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, followed).await.unwrap();
    mesh.app.forget();
    assert_detail(&send(router, with(&mesh, &tokens[0])).await, 401, INVALID, "old");
    mesh.app.assert_untouched("old");
    assert_eq!(issuer.asked(JWKS), 0);
}
