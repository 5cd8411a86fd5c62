//! `--authz-mode=tokenreview`: who the API server says has a token is who calls at the gate, and nobody else gets through.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_mesh::policy::model::Source;
use sandgate_tests::api_server::{ApiServer, failure, nobody, user};
use sandgate_tests::processes::get;
use sandgate_tests::{Mesh, POD_UID, RecordingApp, TOKEN, assert_detail, field, rule, send, status};
use serde_json::{Value, json};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MISSING: &str = "Missing or invalid Authorization header.";
const INVALID: &str = "Invalid token.";
const UNVERIFIED: &str = "Callers can't be verified at the moment; try again.";
const ACCOUNT: &str = "system:serviceaccount:team-a:runner";
const ACCOUNT_GROUPS: [&str; 3] = [
    "system:serviceaccounts",
    "system:serviceaccounts:team-a",
    "system:authenticated",
];

/// The flags of a router that has tokens reviewed there, beside others.
fn flags<'a>(kubeconfig: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--auth-token=", "--authz-mode=tokenreview", kubeconfig], more].concat()
}

fn run(mesh: &Mesh, api_server: &ApiServer, more: &[&str]) -> SocketAddr {
    mesh.run_router(&flags(&api_server.flag(), more))
}

/// A request with this token.
fn with(mesh: &Mesh, token: &str) -> String {
    mesh.head("GET /page HTTP/1.1", "").replace(TOKEN, token)
}

async fn everybody() -> Mesh {
    Mesh::open(RecordingApp::polite().await).await
}

/// A mesh whose gate admits these and nobody else.
async fn only(source: Source) -> Mesh {
    let app = RecordingApp::polite().await;
    Mesh::start(app, |ports| rule(source, ports.app, &[], &[])).await
}

/// An API server that knows a ServiceAccount, a user, and nobody else.
async fn two() -> ApiServer {
    ApiServer::answering(|review| match review["spec"]["token"].as_str() {
        Some("account") => user(ACCOUNT, &ACCOUNT_GROUPS),
        Some("alice") => user("alice@example.org", &["developers", "system:authenticated"]),
        _ => nobody(),
    })
    .await
}

#[tokio::test]
async fn the_holder_of_a_token_is_at_the_gate_who_the_api_server_says() {
    let named = |name: &str| Some(vec![name.to_owned()]);
    let source = Source::default;
    for (admitted, token, other) in [
        (
            Source {
                service_accounts: named("team-a/runner"),
                ..source()
            },
            "account",
            "alice",
        ),
        (
            Source {
                users: named("alice@example.org"),
                ..source()
            },
            "alice",
            "account",
        ),
        (
            Source {
                groups: named("developers"),
                ..source()
            },
            "alice",
            "account",
        ),
        (
            Source {
                groups: named("system:serviceaccounts:team-a"),
                ..source()
            },
            "account",
            "alice",
        ),
    ] {
        let (mesh, api_server) = (only(admitted.clone()).await, two().await);
        let router = run(&mesh, &api_server, &[]);
        let response = send(router, with(&mesh, token)).await;
        assert_eq!(status(&response), 200, "{admitted:?}: {response}");
        let seen = mesh.app.take_only_request().head.to_ascii_lowercase();
        assert!(!seen.contains("authorization") && !seen.contains(token), "{seen}");
        let response = send(router, with(&mesh, other)).await;
        assert_detail(&response, 403, "Refused by the sandbox policy of alpha.", other);
        mesh.app.assert_untouched(other);
    }
}

#[tokio::test]
async fn what_the_api_server_does_not_say_of_a_token_is_401_and_the_app_sees_nothing() {
    let many: Vec<String> = (0..129).map(|number| format!("group-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = "x".repeat(257);
    for answer in [
        nobody(),
        (201, json!({})),
        (201, json!(null)),
        (201, json!({"user": {"username": "alice"}})),
        (201, json!({"authenticated": false, "user": {"username": "alice"}})),
        (201, json!({"authenticated": true})),
        // Names that no caller can have, and names of other kinds of callers.
        user("", &[]),
        user(&long, &[]),
        user("a\nb", &[]),
        user("static:default", &[]),
        user("anonymous", &[]),
        user("cert:admin", &[]),
        user("spiffe://cluster.local/ns/a/sa/b", &[]),
        user("system:anonymous", &["system:unauthenticated"]),
        user("system:serviceaccount:team-a", &[]),
        user("system:serviceaccount:team-a:", &[]),
        user("system:serviceaccount:Team:runner", &[]),
        user("system:serviceaccount:team-a:runner:x", &[]),
        user("alice", &many),
        user("alice", &[""]),
        user("alice", &[&long]),
    ] {
        let text = answer.1.to_string();
        let (mesh, api_server) = (everybody().await, ApiServer::answering(move |_| answer.clone()).await);
        let response = send(run(&mesh, &api_server, &[]), with(&mesh, "token")).await;
        assert_detail(&response, 401, INVALID, &text);
        assert_eq!(field(&response, "www-authenticate"), ["Bearer"], "{text}");
        mesh.app.assert_untouched(&text);
        assert_eq!(api_server.seen().len(), 1, "{text}");
    }
}

#[tokio::test]
async fn a_token_must_be_for_one_of_the_audiences_and_the_api_server_must_say_so() {
    let mesh = everybody().await;
    for (confirmed, code) in [
        (json!(["sandboxes"]), 200),
        (json!(["other", "also"]), 200),
        (json!(["other"]), 401),
        (json!([]), 401),
        // One that knows no audiences.
        (json!(null), 401),
    ] {
        let (_, mut answer) = user(ACCOUNT, &ACCOUNT_GROUPS);
        answer["audiences"] = confirmed.clone();
        let api_server = ApiServer::answering(move |_| (201, answer.clone())).await;
        let router = run(&mesh, &api_server, &["--authz-tokenreview-audiences=sandboxes, also"]);
        assert_eq!(status(&send(router, with(&mesh, "token")).await), code, "{confirmed}");
        let asked = &api_server.seen()[0]["spec"];
        assert_eq!(*asked, json!({"token": "token", "audiences": ["sandboxes", "also"]}));
    }
    assert_eq!(mesh.app.requests().len(), 2);
    let api_server = two().await;
    send(run(&mesh, &api_server, &[]), with(&mesh, "account")).await;
    assert_eq!(api_server.seen()[0]["spec"], json!({"token": "account"}));
}

#[tokio::test]
async fn without_a_token_nobody_in_particular_calls_unless_one_is_required() {
    let (mesh, api_server) = (everybody().await, two().await);
    let bare = with(&mesh, "x").replace("Authorization: Bearer x\r\n", "");
    // The gate lets only those in whom the router knows.
    let response = send(run(&mesh, &api_server, &[]), &bare).await;
    assert_detail(&response, 403, "Refused by the sandbox policy of alpha.", "anonymous");
    let required = run(&mesh, &api_server, &["--authz-tokenreview-require-token"]);
    assert_detail(&send(required, &bare).await, 401, MISSING, "required");
    mesh.app.assert_untouched("no token");
    let direct = run(&mesh, &api_server, &["--mesh=off"]);
    assert_eq!(status(&send(direct, &bare).await), 200);
    mesh.app.take_only_request();
    // What is there and can't be read is no absence.
    for given in [
        "Basic account",
        "Bearer",
        "account",
        "Bearer account\r\nAuthorization: Bearer account",
    ] {
        for router in [direct, required] {
            let head = bare.replace("Host:", &format!("Authorization: {given}\r\nHost:"));
            assert_detail(&send(router, head).await, 401, MISSING, given);
        }
    }
    mesh.app.assert_untouched("no bearer token");
    assert_eq!(api_server.seen(), Vec::<Value>::new());
}

#[tokio::test]
async fn whose_a_token_is_is_asked_again_when_it_is_believed_no_longer() {
    let mesh = everybody().await;
    let revoked = Arc::new(AtomicBool::new(false));
    let is_revoked = Arc::clone(&revoked);
    let api_server = ApiServer::answering(move |_| {
        if is_revoked.load(Ordering::Relaxed) {
            nobody()
        } else {
            user(ACCOUNT, &ACCOUNT_GROUPS)
        }
    });
    let api_server = api_server.await;
    let router = run(&mesh, &api_server, &["--authz-tokenreview-ttl=1s"]);
    assert_eq!(status(&send(router, with(&mesh, "token")).await), 200);
    revoked.store(true, Ordering::Relaxed);
    let refused = async {
        loop {
            let response = send(router, with(&mesh, "token")).await;
            if status(&response) != 200 {
                break response;
            }
        }
    };
    let response = tokio::time::timeout(sandgate_tests::PATIENCE, refused).await.unwrap();
    assert_detail(&response, 401, INVALID, "revoked");
    // Believed for a while, and then asked once.
    assert_eq!(api_server.seen().len(), 2);
}

#[tokio::test]
async fn without_the_api_server_nobody_new_is_let_in_and_whoever_is_known_stays() {
    let mesh = everybody().await;
    let mut api_server = two().await;
    let router = run(&mesh, &api_server, &["--authz-tokenreview-ttl=1h"]);
    assert_eq!(status(&send(router, with(&mesh, "account")).await), 200);
    api_server.stop().await;
    let response = send(router, with(&mesh, "alice")).await;
    assert_detail(&response, 503, UNVERIFIED, "away");
    assert_eq!(field(&response, "retry-after"), ["1"], "{response}");
    assert_eq!(status(&send(router, with(&mesh, "account")).await), 200);
    assert_eq!(mesh.app.requests().len(), 2);
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_the_question_lets_nobody_in_and_refuses_nobody() {
    let forbidden = "tokenreviews.authentication.k8s.io is forbidden: User cannot create resource";
    for answer in [
        Some(failure(403, forbidden)),
        Some(failure(401, "Unauthorized")),
        Some(failure(429, "too many")),
        Some(failure(500, "broken")),
        Some(failure(503, "later")),
        Some((200, json!({"kind": "Status"}))),
        Some((200, json!("nothing"))),
        None,
    ] {
        let text = format!("{answer:?}");
        let api_server = ApiServer::start(move |_| {
            let answer = answer.clone();
            Box::pin(async move {
                match answer {
                    Some(answer) => answer,
                    None => pending().await,
                }
            })
        });
        let (mesh, api_server) = (everybody().await, api_server.await);
        let router = run(&mesh, &api_server, &[]);
        let response = send(router, with(&mesh, "account")).await;
        assert_detail(&response, 503, UNVERIFIED, &text);
        assert_eq!(field(&response, "retry-after"), ["1"], "{text}");
        mesh.app.assert_untouched(&text);
        assert_eq!(api_server.seen().len(), 1, "{text}");
    }
}

#[tokio::test]
async fn metrics_tell_what_came_of_reviews_and_of_nobodys_token() {
    let (mesh, api_server) = (everybody().await, two().await);
    let kubeconfig = api_server.flag();
    let router = mesh.bind_router("default/alpha", POD_UID, &flags(&kubeconfig, &[]));
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(pending()));
    for (token, code) in [("account", 200), ("account", 200), ("guessed", 401), ("guessed", 401)] {
        assert_eq!(status(&send(http, with(&mesh, token)).await), code, "{token}");
    }
    let (_, text) = get(metrics, "/metrics").await;
    for counted in [
        r#"reviews_total{outcome="allowed",review="token"} 1"#,
        r#"reviews_total{outcome="refused",review="token"} 1"#,
        r#"reviews_total{outcome="cached",review="token"} 2"#,
        r#"reviews_total{outcome="failed",review="token"} 0"#,
        r#"review_duration_seconds_count{review="token"} 2"#,
        r#"authz_decisions_total{decision="deny",sandbox_namespace="other"} 2"#,
    ] {
        assert!(
            text.contains(&format!("\nsandbox_router_{counted}\n")),
            "{counted}: {text}"
        );
    }
    for said in ["guessed", "account", "team-a", "runner"] {
        assert!(!text.contains(said), "{said}: {text}");
    }
}
