//! Whoever makes up tokens gets nothing, costs others nothing, and learns nothing; and no token is told to anybody.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::future::join_all;
use sandgate_tests::api_server::{ApiServer, failure, nobody, user};
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{Process, Programs, command, get};
use sandgate_tests::{
    Mesh, PATIENCE, POD_UID, RecordingApp, TOKEN, assert_detail, field, programs, send, status, until,
};
use serde_json::Value;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::watch;

const PROGRAMS: Programs = programs!();

const INVALID: &str = "Invalid token.";
const UNVERIFIED: &str = "Callers can't be verified at the moment; try again.";
const GOOD: &str = "good-token";
const TOO_MANY: &str = "Too many concurrent reviews at the API server for this caller (limit: 32).";
/// Reviews that a router has under way at once at most; docs/callers.md says so.
const PLACES: usize = 64;
/// Of these, what one address may have.
const SHARE: usize = 32;

fn run(mesh: &Mesh, api_server: &ApiServer, more: &[&str]) -> SocketAddr {
    let kubeconfig = api_server.flag();
    let flags = ["--auth-token=", "--authz-mode=tokenreview", &kubeconfig];
    mesh.run_router(&[&flags, more].concat())
}

fn with(mesh: &Mesh, token: &str) -> String {
    mesh.head("GET /page HTTP/1.1", "").replace(TOKEN, token)
}

/// The same from one of many addresses behind a proxy.
fn from(mesh: &Mesh, token: &str, number: u32) -> String {
    let fields = format!("X-Forwarded-For: {}\r\n", Ipv4Addr::from(0xc000_0200 + number));
    mesh.head("GET /page HTTP/1.1", &fields).replace(TOKEN, token)
}

/// An API server that knows one token, and whose word on all others comes when it is told to.
async fn slow_on_others() -> (ApiServer, watch::Sender<bool>) {
    let (told, telling) = watch::channel(false);
    let api_server = ApiServer::start(move |review| {
        let mut telling = telling.clone();
        let is_good = review["spec"]["token"] == GOOD;
        Box::pin(async move {
            if is_good {
                return user("alice", &[]);
            }
            let _ = telling.wait_for(|told| *told).await;
            nobody()
        })
    });
    (api_server.await, told)
}

#[tokio::test]
async fn a_thousand_made_up_tokens_take_neither_the_good_ones_place_nor_all_of_the_api_server() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let (api_server, tell) = slow_on_others().await;
    // Room for hardly any.
    let flags = [
        "--authz-tokenreview-cache-size=2",
        "--authz-tokenreview-ttl=1h",
        "--trusted-proxy-cidrs=127.0.0.0/8",
    ];
    let router = run(&mesh, &api_server, &flags);
    assert_eq!(status(&send(router, with(&mesh, GOOD)).await), 200);
    api_server.seen();
    let garbage = (0..1000).map(|number| {
        let request = from(&mesh, &format!("garbage-{number}"), number);
        tokio::spawn(async move { send(router, request).await })
    });
    let garbage: Vec<_> = garbage.collect();
    until("all places are taken", || api_server.under_way() == PLACES).await;
    // Whoever is known is served meanwhile, and asked about no more.
    assert_eq!(status(&send(router, with(&mesh, GOOD)).await), 200);
    tell.send_replace(true);
    let mut unverified = 0;
    for response in join_all(garbage).await {
        let response = response.unwrap();
        if status(&response) == 401 {
            assert_detail(&response, 401, INVALID, "reviewed");
        } else {
            assert_detail(&response, 503, UNVERIFIED, "not reviewed");
            unverified += 1;
        }
    }
    assert!(unverified > 0, "there was a place for each");
    assert_eq!(api_server.most_under_way(), PLACES);
    assert_eq!(status(&send(router, with(&mesh, GOOD)).await), 200);
    let asked = api_server.seen();
    assert!(asked.iter().all(|review| review["spec"]["token"] != GOOD));
    assert_eq!(mesh.app.requests().len(), 3);
}

#[tokio::test]
async fn whoever_makes_up_tokens_at_one_address_leaves_half_of_the_api_server_to_others() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let (api_server, tell) = slow_on_others().await;
    let router = run(&mesh, &api_server, &["--trusted-proxy-cidrs=127.0.0.0/8"]);
    let garbage = (0..500).map(|number| {
        let request = from(&mesh, &format!("garbage-{number}"), 1);
        tokio::spawn(async move { send(router, request).await })
    });
    let garbage: Vec<_> = garbage.collect();
    until("his places are taken", || api_server.under_way() == SHARE).await;
    // Somebody else, of whom nothing is known yet.
    assert_eq!(status(&send(router, from(&mesh, GOOD, 2)).await), 200);
    let over = async {
        while garbage.iter().filter(|request| !request.is_finished()).count() > SHARE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.unwrap();
    tell.send_replace(true);
    let mut refused = 0;
    for response in join_all(garbage).await {
        let response = response.unwrap();
        match status(&response) {
            401 => assert_detail(&response, 401, INVALID, "reviewed"),
            // This has taken longer than the API server may.
            503 => assert_detail(&response, 503, UNVERIFIED, "not reviewed in time"),
            _ => {
                assert_detail(&response, 429, TOO_MANY, "over his share");
                assert_eq!(field(&response, "retry-after"), ["1"]);
                refused += 1;
            }
        }
    }
    assert!(refused >= 500 / 2, "{refused}");
    assert_eq!(mesh.app.requests().len(), 1);
}

#[tokio::test]
async fn a_token_whose_review_is_pending_is_not_reviewed_twice() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let (api_server, tell) = slow_on_others().await;
    let kubeconfig = api_server.flag();
    let flags = ["--auth-token=", "--authz-mode=tokenreview", "--workers=2", &kubeconfig];
    let router = mesh.bind_router("default/alpha", POD_UID, &flags);
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(pending()));
    let requests = (0..20).map(|_| {
        let request = with(&mesh, "pending");
        tokio::spawn(async move { send(http, request).await })
    });
    let requests: Vec<_> = requests.collect();
    let all_wait = async {
        let joined = r#"sandbox_router_reviews_total{outcome="joined",review="token"} 19"#;
        while !get(metrics, "/metrics").await.1.contains(joined) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_wait).await.unwrap();
    tell.send_replace(true);
    for response in join_all(requests).await {
        assert_detail(&response.unwrap(), 401, INVALID, "pending");
    }
    assert_eq!(api_server.seen().len(), 1);
    mesh.app.assert_untouched("pending");
}

#[tokio::test]
async fn what_nobody_issues_is_refused_without_asking() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let api_server = ApiServer::answering(|_| user("alice", &[])).await;
    let router = run(&mesh, &api_server, &[]);
    let long = "x".repeat(16 * 1024);
    for token in [
        format!("{long}x"),
        "two words".into(),
        "a\tb".into(),
        "tökén".into(),
        "a\u{1f}b".into(),
    ] {
        let response = send(router, with(&mesh, &token)).await;
        // A control character is refused before anybody asks what it means.
        assert!([400, 401].contains(&status(&response)), "{token:?}: {response}");
    }
    mesh.app.assert_untouched("no token");
    assert_eq!(api_server.seen(), Vec::<Value>::new());
    assert_eq!(status(&send(router, with(&mesh, &long)).await), 200);
}

#[tokio::test]
async fn whoever_is_not_known_learns_nothing_about_routing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let api_server = ApiServer::answering(|_| nobody()).await;
    let router = run(&mesh, &api_server, &[]);
    for (from, to) in [
        ("X-Sandbox-ID: alpha", "X-Sandbox-ID: Alpha"),
        ("X-Sandbox-ID: alpha", "X-Sandbox-ID: nobody"),
        ("X-Sandbox-ID: alpha\r\n", ""),
        ("X-Sandbox-Port: ", "X-Sandbox-Port: x"),
    ] {
        let response = send(router, with(&mesh, "guessed").replace(from, to)).await;
        assert_detail(&response, 401, INVALID, to);
    }
    mesh.app.assert_untouched("not known");
}

/// The API server repeats the token in all that it says.
#[tokio::test]
async fn no_log_line_holds_a_token_whatever_the_api_server_says() {
    let app = RecordingApp::polite().await;
    let api_server = ApiServer::answering(|review| {
        let token = review["spec"]["token"].as_str().unwrap();
        match token {
            "secret-refused" => {
                let (code, mut answer) = nobody();
                answer["error"] = format!("can't read {token}").into();
                (code, answer)
            }
            "secret-failed" => failure(403, &format!("may not review {token}")),
            _ => user("alice", &[]),
        }
    })
    .await;
    let folder = Folder::new();
    let (port, kubeconfig) = (app.port(), api_server.flag());
    let flags = [
        "--mesh=off",
        "--http-bind-address=127.0.0.1:0",
        "--metrics-bind-address=127.0.0.1:0",
        "--health-probe-bind-address=127.0.0.1:0",
        "--sandbox-endpoint=default/alpha=127.0.0.1",
        "--allow-loopback-pod-ip",
        "--authz-mode=tokenreview",
        "--log-level=trace",
        &kubeconfig,
    ];
    let mut process = command(PROGRAMS.router, flags);
    process.current_dir(folder.path(""));
    let mut router = Process::start(process);
    let [http] = router.listens(["http"]).await;
    let http: SocketAddr = http.parse().unwrap();
    for (number, (token, code)) in (1..).zip([("secret-good", 200), ("secret-refused", 401), ("secret-failed", 503)]) {
        let head = sandgate_tests::head_to(port, "GET / HTTP/1.1", "").replace(TOKEN, token);
        let response = send(http, head).await;
        assert_eq!(status(&response), code, "{token}: {response}");
        assert!(!response.contains("secret"), "{response}");
        router.logs("\"log\":\"access\"", number).await;
    }
    router.logs("a caller's token was refused", 1).await;
    router.logs("no answer from the API server", 1).await;
    router.logs("may not review …", 1).await;
    let log = router.stderr();
    assert_eq!(log.lines().find(|line| line.contains("secret")), None);
    app.only_request();
}
