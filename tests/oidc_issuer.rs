//! `--authz-mode=oidc` and its issuer: keys that come and go, and an issuer that is away, slow, or says something else.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::Authority;
use sandgate_tests::issuer::{DISCOVERY, Issuer, JWKS, Reply, SigningKey, certificate, reply};
use sandgate_tests::processes::{get, until_ready};
use sandgate_tests::{Mesh, PATIENCE, POD_UID, RecordingApp, TOKEN, assert_detail, field, send, status};
use serde_json::json;
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinHandle;

const INVALID: &str = "Invalid token.";
const UNVERIFIED: &str = "Callers can't be verified at the moment; try again.";
const NOT_READY: (u16, &str) = (503, "the OIDC issuer's keys are not known yet");
/// So that tests needn't wait.
const OFTEN: [&str; 2] = [
    "--authz-oidc-refresh-interval=300ms",
    "--authz-oidc-min-refresh-interval=100ms",
];
/// So that nothing but a token makes a router ask again.
const ON_DEMAND: [&str; 1] = ["--authz-oidc-min-refresh-interval=50ms"];

struct Running {
    http: SocketAddr,
    health: SocketAddr,
    metrics: SocketAddr,
    serving: JoinHandle<()>,
}

fn run(mesh: &Mesh, issuer: &Issuer, more: &[&str]) -> Running {
    let flags = issuer.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let router = mesh.bind_router("default/alpha", POD_UID, &[&flags, more].concat());
    Running {
        http: router.http_address(),
        health: router.health_address(),
        metrics: router.metrics_address(),
        serving: tokio::spawn(async { drop(router.run(pending()).await) }),
    }
}

fn with(mesh: &Mesh, token: &str) -> String {
    mesh.head("GET /page HTTP/1.1", "").replace(TOKEN, token)
}

async fn everybody() -> Mesh {
    Mesh::open(RecordingApp::polite().await).await
}

async fn failures(metrics: SocketAddr) -> u64 {
    let (_, text) = get(metrics, "/metrics").await;
    let name = r#"sandbox_router_oidc_key_refreshes_total{outcome="failure"} "#;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.parse().unwrap()
}

/// Waits until more questions to the issuer than this have failed.
async fn more_failures_than(count: u64, metrics: SocketAddr) {
    let failed = async {
        while failures(metrics).await <= count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, failed).await.unwrap();
}

/// Sends a request with this token again and again, until the answer has this status.
async fn until(mesh: &Mesh, router: SocketAddr, token: &str, code: u16) -> String {
    let answered = async {
        loop {
            let response = send(router, with(mesh, token)).await;
            if status(&response) == code {
                break response;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answered = tokio::time::timeout(PATIENCE, answered).await;
    answered.unwrap_or_else(|_| panic!("never {code}"))
}

#[tokio::test]
async fn a_new_key_counts_with_the_first_token_that_names_it() {
    let (old, new) = (SigningKey::p256("old"), SigningKey::rsa("new", 0));
    let (issuer, mesh) = (Issuer::start(&[&old]).await, everybody().await);
    let router = run(&mesh, &issuer, &ON_DEMAND);
    let tokens = [old.sign("ES256", &issuer.claims()), new.sign("RS256", &issuer.claims())];
    assert_eq!(status(&send(router.http, with(&mesh, &tokens[0])).await), 200);
    issuer.serve_keys(&[&old, &new]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for token in &tokens {
        let response = send(router.http, with(&mesh, token)).await;
        assert_eq!(status(&response), 200, "{response}");
    }
    assert_eq!(issuer.asked(JWKS), 2);
}

#[tokio::test]
async fn a_key_that_is_taken_back_takes_its_tokens_along() {
    let (old, new) = (SigningKey::p256("old"), SigningKey::p256("new"));
    let (issuer, mesh) = (Issuer::start(&[&old]).await, everybody().await);
    let router = run(&mesh, &issuer, &OFTEN);
    let token = old.sign("ES256", &issuer.claims());
    assert_eq!(status(&send(router.http, with(&mesh, &token)).await), 200);
    issuer.serve_keys(&[&new]);
    assert_detail(
        &until(&mesh, router.http, &token, 401).await,
        401,
        INVALID,
        "taken back",
    );
    mesh.app.forget();
    assert_detail(&send(router.http, with(&mesh, &token)).await, 401, INVALID, "again");
    mesh.app.assert_untouched("taken back");
}

#[tokio::test]
async fn a_router_that_never_heard_of_its_issuer_lets_nobody_in_and_is_not_ready() {
    let key = SigningKey::p256("k");
    let (mut issuer, mesh) = (Issuer::away(&[&key]).await, everybody().await);
    let router = run(&mesh, &issuer, &[]);
    let token = key.sign("ES256", &issuer.claims());
    let response = send(router.http, with(&mesh, &token)).await;
    assert_detail(&response, 503, UNVERIFIED, "away");
    assert_eq!(field(&response, "retry-after"), ["1"], "{response}");
    until_ready(router.health, NOT_READY).await;
    mesh.app.assert_untouched("away");
    issuer.come().await;
    until(&mesh, router.http, &token, 200).await;
    until_ready(router.health, (200, "ok")).await;
}

#[tokio::test]
async fn while_the_issuer_is_away_its_keys_are_used_up_to_their_age_and_then_nobody_is_let_in() {
    let (key, other) = (SigningKey::p256("k"), SigningKey::p256("other"));
    let (mut issuer, mesh) = (Issuer::start(&[&key]).await, everybody().await);
    let router = run(
        &mesh,
        &issuer,
        &[&OFTEN[..], &["--authz-oidc-keys-max-age=6s"]].concat(),
    );
    let token = key.sign("ES256", &issuer.claims());
    assert_eq!(status(&send(router.http, with(&mesh, &token)).await), 200);
    issuer.leave().await;
    assert_eq!(status(&send(router.http, with(&mesh, &token)).await), 200);
    // Nobody can say that a key which isn't known is none of the issuer's.
    let unknown = other.sign("ES256", &issuer.claims());
    assert_detail(
        &until(&mesh, router.http, &unknown, 503).await,
        503,
        UNVERIFIED,
        "unknown",
    );
    let response = until(&mesh, router.http, &token, 503).await;
    assert_detail(&response, 503, UNVERIFIED, "too old");
    mesh.app.forget();
    assert_eq!(status(&send(router.http, with(&mesh, &token)).await), 503);
    mesh.app.assert_untouched("too old");
    // Another router would have no keys either.
    until_ready(router.health, (200, "ok")).await;
    issuer.come().await;
    until(&mesh, router.http, &token, 200).await;
}

#[tokio::test]
async fn what_is_no_answer_of_the_issuer_makes_no_key_good_and_takes_none_away() {
    let (key, evil) = (SigningKey::p256("k"), SigningKey::p256("k"));
    let mesh = everybody().await;
    let evil_keys = json!({"keys": [evil.jwk()]}).to_string();
    let plain = |body: &str| reply(200, "", body);
    let document = |issuer: &str, keys: &str| plain(&json!({"issuer": issuer, "jwks_uri": keys}).to_string());
    let issuer = Issuer::start(&[&key]).await;
    let (url, keys) = (issuer.url.clone(), format!("{}{JWKS}", issuer.url));
    let huge = format!("{evil_keys}{}", " ".repeat(600 * 1024));
    let cut = |reply: Reply| reply.map(|bytes| bytes[..bytes.len() - 5].to_vec());
    let redirect = format!("Location: {keys}\r\n");
    let cases: Vec<(&str, Reply)> = vec![
        (DISCOVERY, document(&format!("{url}/"), &keys)),
        (DISCOVERY, document("https://evil.example", &keys)),
        (DISCOVERY, document(&url, &keys.replace("https://", "http://"))),
        (DISCOVERY, document(&url, "file:///etc/passwd")),
        (DISCOVERY, document(&url, "/keys")),
        (DISCOVERY, plain("{}")),
        (DISCOVERY, plain("<html>")),
        (DISCOVERY, reply(302, &redirect, "")),
        (DISCOVERY, reply(503, "", "{}")),
        (JWKS, reply(301, &redirect, &evil_keys)),
        (JWKS, reply(404, "", &evil_keys)),
        (JWKS, reply(204, "", "")),
        (JWKS, plain("")),
        (JWKS, plain("<html>")),
        (JWKS, plain(r#"{"keys":[]}"#)),
        (JWKS, plain(r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#)),
        (JWKS, plain(&huge)),
        (JWKS, cut(plain(&evil_keys))),
        (JWKS, Some(b"garbage\r\n\r\n".to_vec())),
        (
            JWKS,
            Some(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(100 * 1024)).into_bytes()),
        ),
        (JWKS, Some(Vec::new())),
    ];
    let tokens = [&key, &evil].map(|key| key.sign("ES256", &issuer.claims()));
    let good = [
        (DISCOVERY, document(&url, &keys)),
        (JWKS, plain(&json!({"keys": [key.jwk()]}).to_string())),
    ];
    let known = run(&mesh, &issuer, &OFTEN);
    assert_eq!(status(&send(known.http, with(&mesh, &tokens[0])).await), 200);
    for (path, answer) in cases {
        let shown = String::from_utf8_lossy(answer.as_deref().unwrap_or_default()).into_owned();
        let context = format!("{path}: {shown:.200}");
        let before = failures(known.metrics).await;
        issuer.serve(path, answer);
        // A router that starts has nothing to go by, and one that runs has what it had.
        let fresh = run(&mesh, &issuer, &OFTEN);
        mesh.app.forget();
        for token in &tokens {
            let response = send(fresh.http, with(&mesh, token)).await;
            assert_detail(&response, 503, UNVERIFIED, &context);
        }
        fresh.serving.abort();
        mesh.app.assert_untouched(&context);
        more_failures_than(before, known.metrics).await;
        assert_eq!(
            status(&send(known.http, with(&mesh, &tokens[0])).await),
            200,
            "{context}"
        );
        mesh.app.forget();
        assert_detail(&send(known.http, with(&mesh, &tokens[1])).await, 401, INVALID, &context);
        mesh.app.assert_untouched(&context);
        for (path, answer) in &good {
            issuer.serve(path, answer.clone());
        }
    }
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_holds_up_nobody_who_is_known() {
    let (key, other) = (SigningKey::p256("k"), SigningKey::p256("other"));
    let (issuer, mesh) = (Issuer::start(&[&key]).await, everybody().await);
    let router = run(&mesh, &issuer, &ON_DEMAND);
    let token = key.sign("ES256", &issuer.claims());
    assert_eq!(status(&send(router.http, with(&mesh, &token)).await), 200);
    issuer.asked(JWKS);
    issuer.serve(JWKS, None);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let unknown = with(&mesh, &other.sign("ES256", &issuer.claims()));
    let waiting = tokio::spawn(send(router.http, unknown));
    issuer.until_asked(JWKS).await;
    mesh.app.forget();
    assert_eq!(status(&send(router.http, with(&mesh, &token)).await), 200);
    assert!(!waiting.is_finished());
    mesh.app.take_only_request();
    assert_detail(&waiting.await.unwrap(), 503, UNVERIFIED, "slow");
    mesh.app.assert_untouched("slow");
}

#[tokio::test]
async fn only_a_server_with_the_issuers_certificate_is_believed() {
    let key = SigningKey::p256("k");
    let mesh = everybody().await;
    let mut issuer = Issuer::away(&[&key]).await;
    let token = key.sign("ES256", &issuer.claims());
    // Of another authority, whatever its name; or of the right one, for another host.
    let stranger = Authority::new("issuer").unwrap();
    for shown in [
        certificate(&stranger, "localhost"),
        certificate(&issuer.authority, "evil.example"),
    ] {
        issuer.show_certificate(&shown);
        issuer.come().await;
        let router = run(&mesh, &issuer, &OFTEN);
        let response = send(router.http, with(&mesh, &token)).await;
        assert_detail(&response, 503, UNVERIFIED, &shown.chain_pem);
        issuer.leave().await;
    }
    mesh.app.assert_untouched("a stranger");
    assert_eq!(issuer.asked(DISCOVERY), 0);
}

#[tokio::test]
async fn metrics_tell_how_often_the_issuer_was_asked() {
    let key = SigningKey::p256("k");
    let (mut issuer, mesh) = (Issuer::start(&[&key]).await, everybody().await);
    let router = run(&mesh, &issuer, &[]);
    let token = key.sign("ES256", &issuer.claims());
    assert_eq!(status(&send(router.http, with(&mesh, &token)).await), 200);
    let (_, text) = get(router.metrics, "/metrics").await;
    for counted in [r#"{outcome="success"} 1"#, r#"{outcome="failure"} 0"#] {
        let line = format!("\nsandbox_router_oidc_key_refreshes_total{counted}\n");
        assert!(text.contains(&line), "{line}: {text}");
    }
    issuer.leave().await;
    let asking = run(&mesh, &issuer, &OFTEN);
    more_failures_than(1, asking.metrics).await;
}
