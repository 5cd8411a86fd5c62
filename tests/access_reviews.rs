//! `--authz-subject-access-review`: what the API server is asked about a caller and a sandbox, and what its answer is worth.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::future::join_all;
use sandgate_tests::api_server::{ApiServer, failure, nobody, user};
use sandgate_tests::front::{Front, client, everybody};
use sandgate_tests::processes::get;
use sandgate_tests::{Mesh, PATIENCE, POD_UID, RecordingApp, TOKEN, assert_detail, field, send, status};
use serde_json::{Value, json};
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;

const REFUSED: &str = "Refused by the access review of alpha.";
const UNVERIFIED: &str = "Callers can't be verified at the moment; try again.";
const ASKED: &str = "--authz-subject-access-review";

/// An API server that knows everybody by his token, and lets those connect to `alpha` whom it is given.
async fn lets(allowed: &'static [&'static str]) -> ApiServer {
    ApiServer::answering(move |review| {
        if review["kind"] == "TokenReview" {
            return user(review["spec"]["token"].as_str().unwrap(), &["developers"]);
        }
        let attributes = &review["spec"]["resourceAttributes"];
        let may = allowed.contains(&review["spec"]["user"].as_str().unwrap()) && attributes["name"] == "alpha";
        (201, json!({"allowed": may, "reason": "as the test says"}))
    })
    .await
}

async fn polite() -> Mesh {
    Mesh::open(RecordingApp::polite().await).await
}

/// A router that has tokens and rights reviewed there.
fn run(mesh: &Mesh, api_server: &ApiServer) -> SocketAddr {
    mesh.run_router(&["--auth-token=", "--authz-mode=tokenreview", ASKED, &api_server.flag()])
}

fn with(mesh: &Mesh, token: &str) -> String {
    mesh.head("GET / HTTP/1.1", "").replace(TOKEN, token)
}

/// What was asked about access, since it was last looked at.
fn questions(api_server: &ApiServer) -> Vec<Value> {
    let mut seen = api_server.seen();
    seen.retain(|review| review["kind"] == "SubjectAccessReview");
    seen.into_iter().map(|mut review| review["spec"].take()).collect()
}

#[tokio::test]
async fn who_may_connect_gets_through_and_who_may_not_is_told_by_which_layer() {
    let (mesh, api_server) = (polite().await, lets(&["alice"]).await);
    let router = run(&mesh, &api_server);
    for _ in 0..2 {
        assert_eq!(status(&send(router, with(&mesh, "alice")).await), 200);
        mesh.app.take_only_request();
        let response = send(router, with(&mesh, "bob")).await;
        assert_detail(&response, 403, REFUSED, "bob");
        assert_eq!(field(&response, "retry-after").len(), 0, "{response}");
        mesh.app.assert_untouched("bob");
    }
    // Each was asked once, in the words that rights are written in.
    let attributes = json!({
        "group": "agents.x-k8s.io", "resource": "sandboxes", "subresource": "proxy", "verb": "connect",
        "namespace": "default", "name": "alpha",
    });
    let question =
        |name: &str| json!({"user": name, "uid": "u-1", "groups": ["developers"], "resourceAttributes": attributes});
    assert_eq!(questions(&api_server), [question("alice"), question("bob")]);
}

/// An authorizer may narrow a token by what the API server said of it beside name and groups (`OpenShift`'s scoped tokens do).
#[tokio::test]
async fn what_narrows_one_token_of_a_user_is_asked_about_and_counts_for_no_other() {
    let mesh = polite().await;
    let api_server = ApiServer::answering(|review| {
        if review["kind"] == "TokenReview" {
            let (status, mut answer) = user("alice", &["developers"]);
            match review["spec"]["token"].as_str().unwrap() {
                "whole" => {}
                "narrow" => answer["user"]["extra"] = json!({"scopes.example.org": ["user:info"]}),
                "other" => answer["user"]["uid"] = "u-2".into(),
                _ => answer["user"]["extra"] = json!({"scopes.example.org": ["x".repeat(17 * 1024)]}),
            }
            return (status, answer);
        }
        let spec = &review["spec"];
        (201, json!({"allowed": spec["extra"].is_null() && spec["uid"] == "u-1"}))
    })
    .await;
    let router = run(&mesh, &api_server);
    for _ in 0..2 {
        assert_eq!(status(&send(router, with(&mesh, "whole")).await), 200);
        mesh.app.take_only_request();
        for token in ["narrow", "other"] {
            assert_detail(&send(router, with(&mesh, token)).await, 403, REFUSED, token);
            mesh.app.assert_untouched(token);
        }
    }
    let asked = questions(&api_server);
    let extra = json!({"scopes.example.org": ["user:info"]});
    let asked: Vec<_> = asked
        .iter()
        .map(|question| [&question["uid"], &question["extra"]])
        .collect();
    assert_eq!(
        asked,
        [
            [&json!("u-1"), &json!(null)],
            [&json!("u-1"), &extra],
            [&json!("u-2"), &json!(null)]
        ]
    );
    // Nobody keeps as much for each token.
    assert_detail(
        &send(router, with(&mesh, "endless")).await,
        401,
        "Invalid token.",
        "endless",
    );
    mesh.app.assert_untouched("endless");
}

#[tokio::test]
async fn a_right_to_one_sandbox_is_none_to_another_whatever_hints_say() {
    let (mesh, api_server) = (polite().await, lets(&["alice"]).await);
    let router = run(&mesh, &api_server);
    assert_eq!(status(&send(router, with(&mesh, "alice")).await), 200);
    mesh.app.take_only_request();
    for hint in [
        "",
        "\r\nX-Sandbox-Pod-IP: 10.0.0.1",
        "\r\nX-Sandbox-UID: alpha",
        "\r\nX-Sandbox-Namespace: default",
    ] {
        let beta = format!("ID: beta{hint}");
        let response = send(router, with(&mesh, "alice").replace("ID: alpha", &beta)).await;
        assert_detail(&response, 403, "Refused by the access review of beta.", hint);
    }
    // Another namespace's sandbox of that name is another sandbox.
    let elsewhere = with(&mesh, "alice").replace("ID: alpha", "ID: alpha\r\nX-Sandbox-Namespace: team-b");
    send(router, elsewhere).await;
    let asked = questions(&api_server);
    let names = |question: &Value| {
        let attributes = &question["resourceAttributes"];
        [&attributes["namespace"], &attributes["name"]].map(|name| name.as_str().unwrap().to_owned())
    };
    let asked: Vec<_> = asked.iter().map(names).collect();
    assert_eq!(asked, [["default", "alpha"], ["default", "beta"], ["team-b", "alpha"]]);
    mesh.app.assert_untouched("another sandbox");
}

/// Asks as somebody without a token of the API server's, and returns the user and the groups that were asked about.
async fn asked_as(router: SocketAddr, mesh: &Mesh, api_server: &ApiServer, expected: (u16, &str)) -> (Value, Value) {
    let response = send(router, with(mesh, TOKEN)).await;
    assert_eq!(status(&response), expected.0, "{response}");
    assert!(response.contains(expected.1), "{response}");
    let [question] = &questions(api_server)[..] else {
        panic!("not asked once")
    };
    (question["user"].clone(), question["groups"].clone())
}

#[tokio::test]
async fn each_kind_of_caller_has_a_name_that_rights_can_be_given_to() {
    let mesh = polite().await;
    let api_server = lets(&["static:default"]).await;
    let router = mesh.run_router(&[ASKED, &api_server.flag()]);
    let asked = asked_as(router, &mesh, &api_server, (200, "hello")).await;
    assert_eq!(asked, (json!("static:default"), json!([])));
    mesh.app.take_only_request();

    // The gate's own policy comes on top, and lets nobody in whom the router doesn't know.
    let api_server = lets(&["system:anonymous"]).await;
    let router = mesh.run_router(&["--auth-token=", "--authz-mode=allow-all", ASKED, &api_server.flag()]);
    let asked = asked_as(
        router,
        &mesh,
        &api_server,
        (403, "Refused by the sandbox policy of alpha."),
    )
    .await;
    assert_eq!(asked, (json!("system:anonymous"), json!(["system:unauthenticated"])));
    mesh.app.assert_untouched("anonymous");

    let api_server = lets(&["cert:build"]).await;
    let flags = ["--auth-token=", "--authz-mode=allow-all", ASKED, &api_server.flag()];
    let front = Front::start_with("optional", &flags, everybody).await;
    for (name, code) in [("build", 200), ("other", 403)] {
        let certificate = client(&front.authority, name, &[]);
        let response = front
            .send(Some(&certificate), front.mesh.head("GET / HTTP/1.1", ""))
            .await;
        assert_eq!(status(&response), code, "{name}: {response}");
    }
    front.mesh.app.take_only_request();
    let users: Vec<_> = questions(&api_server)
        .iter()
        .map(|question| question["user"].clone())
        .collect();
    assert_eq!(users, ["cert:build", "cert:other"]);
}

#[tokio::test]
async fn what_is_no_plain_yes_lets_nobody_through() {
    for (answer, code, text) in [
        ((201, json!({"allowed": false})), 403, REFUSED),
        ((201, json!({"allowed": true, "denied": true})), 403, REFUSED),
        (
            (201, json!({"allowed": false, "evaluationError": "role not found"})),
            403,
            REFUSED,
        ),
        ((201, json!(null)), 403, REFUSED),
        ((201, json!({})), 403, REFUSED),
        (failure(403, "is forbidden"), 503, UNVERIFIED),
        (failure(500, "broken"), 503, UNVERIFIED),
        ((200, json!("nothing")), 503, UNVERIFIED),
    ] {
        let context = answer.1.to_string();
        let (mesh, api_server) = (polite().await, ApiServer::answering(move |_| answer.clone()).await);
        let router = mesh.run_router(&[ASKED, &api_server.flag()]);
        assert_detail(&send(router, with(&mesh, TOKEN)).await, code, text, &context);
        mesh.app.assert_untouched(&context);
    }
}

#[tokio::test]
async fn nothing_is_asked_about_whom_nobody_knows_or_about_no_sandbox() {
    let mesh = polite().await;
    let api_server = ApiServer::answering(|_| nobody()).await;
    let response = send(run(&mesh, &api_server), with(&mesh, "guessed")).await;
    assert_eq!(status(&response), 401, "{response}");
    assert_eq!(questions(&api_server), Vec::<Value>::new());
    let api_server = lets(&[]).await;
    let router = run(&mesh, &api_server);
    for (from, to) in [("ID: alpha", "ID: Alpha"), ("Sandbox-Port: ", "Sandbox-Port: x")] {
        let response = send(router, with(&mesh, "alice").replace(from, to)).await;
        assert_eq!(status(&response), 400, "{to}: {response}");
    }
    assert_eq!(questions(&api_server), Vec::<Value>::new());
    mesh.app.assert_untouched("nobody, and no sandbox");
}

#[tokio::test]
async fn metrics_tell_refusals_from_questions_without_an_answer() {
    let (mesh, api_server) = (polite().await, lets(&["alice"]).await);
    let flags = ["--auth-token=", "--authz-mode=tokenreview", ASKED, &api_server.flag()];
    let router = mesh.bind_router("default/alpha", POD_UID, &flags);
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(pending()));
    for (token, code) in [("bob", 403), ("alice", 200), ("alice", 200)] {
        assert_eq!(status(&send(http, with(&mesh, token)).await), code, "{token}");
    }
    let (_, text) = get(metrics, "/metrics").await;
    for counted in [
        r#"reviews_total{outcome="allowed",review="access"} 1"#,
        r#"reviews_total{outcome="refused",review="access"} 1"#,
        r#"reviews_total{outcome="cached",review="access"} 1"#,
        r#"reviews_total{outcome="failed",review="access"} 0"#,
        r#"review_duration_seconds_count{review="access"} 2"#,
        r#"authz_decisions_total{decision="deny",sandbox_namespace="default"} 1"#,
    ] {
        assert!(
            text.contains(&format!("\nsandbox_router_{counted}\n")),
            "{counted}: {text}"
        );
    }
}

#[tokio::test]
async fn a_caller_who_asks_for_ever_new_sandboxes_leaves_half_of_the_api_server_to_others() {
    const SHARE: usize = 32;
    let mesh = polite().await;
    let (told, telling) = watch::channel(false);
    let api_server = ApiServer::start(move |review| {
        let mut telling = telling.clone();
        let (is_access, user_name) = (review["kind"] == "SubjectAccessReview", review["spec"]["user"].clone());
        let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
        Box::pin(async move {
            if !is_access {
                return user(&token, &[]);
            }
            if user_name == "mallory" {
                let _ = telling.wait_for(|told| *told).await;
            }
            (201, json!({"allowed": user_name == "alice"}))
        })
    });
    let api_server = api_server.await;
    let router = run(&mesh, &api_server);
    let made_up = (0..200).map(|number| {
        let request = with(&mesh, "mallory").replace("ID: alpha", &format!("ID: made-up-{number}"));
        tokio::spawn(send(router, request))
    });
    let made_up: Vec<_> = made_up.collect();
    let over = async {
        while made_up.iter().filter(|request| !request.is_finished()).count() > SHARE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.unwrap();
    assert_eq!(status(&send(router, with(&mesh, "alice")).await), 200);
    told.send_replace(true);
    let mut refused = 0;
    for response in join_all(made_up).await {
        let response = response.unwrap();
        if status(&response) == 429 {
            let text = "Too many concurrent reviews at the API server for this caller (limit: 32).";
            assert_detail(&response, 429, text, "over his share");
            refused += 1;
        } else {
            // Or 503, where this has taken longer than the API server may.
            assert!([403, 503].contains(&status(&response)), "{response}");
        }
    }
    assert!(refused >= 200 / 2, "{refused}");
    assert_eq!(mesh.app.requests().len(), 1);
}
