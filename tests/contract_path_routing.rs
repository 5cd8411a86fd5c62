//! CONTRACT section 2, path routing: a path under the prefix leads to the app that it names or nowhere, the app gets the
//! rest of it byte for byte, and what the app answers keeps the browser below its path.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::browser::{Browser, echo, open_socket, say};
use sandgate_tests::processes::{ProcessMesh, Programs, json_lines, metric};
use sandgate_tests::{
    Mesh, RecordingApp, Step, TOKEN, assert_detail, field, ok, programs, rule, send, status, token_holder,
};
use std::net::SocketAddr;

const PROGRAMS: Programs = programs!();

const PREFIX: &str = "--path-routing-prefix=/p";
const FORM: &str = "Path-routed request must have the form <prefix>/<namespace>/<id>/<port>/...";

/// A request without routing headers but those in `fields`.
fn get(target: &str, fields: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: Router.example:8443\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n{fields}\r\n"
    )
}

fn request_line(head: &str) -> &str {
    head.split("\r\n").next().unwrap()
}

async fn polite() -> (Mesh, [SocketAddr; 2]) {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let routers = mesh.run_both(&[PREFIX]);
    (mesh, routers)
}

#[tokio::test]
async fn the_app_is_asked_for_what_follows_the_port_byte_for_byte() {
    let (mesh, routers) = polite().await;
    let base = format!("/p/default/alpha/{}", mesh.ports.app);
    for router in routers {
        for (rest, asked_for) in [
            ("", "/"),
            ("?q=1", "/?q=1"),
            ("/", "/"),
            ("/?", "/?"),
            ("/a/b?q=/p/x/y/1/", "/a/b?q=/p/x/y/1/"),
            ("//a//", "//a//"),
            ("/a%2Fb%2e%2E/%00%zz;c=d", "/a%2Fb%2e%2E/%00%zz;c=d"),
            ("/./../../../../x", "/./../../../../x"),
            ("/p/default/beta/1/x", "/p/default/beta/1/x"),
        ] {
            for target in [format!("{base}{rest}"), format!("http://elsewhere.example{base}{rest}")] {
                let response = send(router, get(&target, "")).await;
                assert_eq!(status(&response), 200, "{target}: {response}");
                let head = mesh.app.take_only_request().head;
                assert_eq!(request_line(&head), format!("GET {asked_for} HTTP/1.1"), "{target}");
                assert_eq!(field(&head, "host"), [format!("127.0.0.1:{}", mesh.ports.app)]);
                assert_eq!(field(&head, "x-forwarded-host"), ["Router.example:8443"]);
            }
        }
    }
}

#[tokio::test]
async fn a_path_under_the_prefix_that_names_no_app_is_refused_whatever_the_headers_say() {
    let (mesh, routers) = polite().await;
    let port = mesh.ports.app;
    let good = format!("X-Sandbox-ID: alpha\r\nX-Sandbox-Port: {port}\r\n");
    let (namespace, id, no_port) = (
        "Invalid namespace format.",
        "Invalid sandbox ID format.",
        "Invalid port format.",
    );
    let long = "a".repeat(64);
    for (target, text) in [
        ("/p/".to_owned(), FORM),
        ("/p/?q".into(), FORM),
        ("/p/default".into(), FORM),
        ("/p/default/alpha".into(), FORM),
        ("/p/default/alpha/".into(), FORM),
        ("/p//default/alpha/80/".into(), FORM),
        (format!("/p/default//{port}/"), FORM),
        (format!("/p/%64efault/alpha/{port}/"), FORM),
        (format!("/p/default/alph%61/{port}/"), FORM),
        (format!("/p/default%2Falpha/{port}/x"), FORM),
        ("/p/default/alpha/%38888/".into(), FORM),
        (format!("/p/default/alpha/{port}%2Fx"), FORM),
        (format!("/p/Default/alpha/{port}/"), namespace),
        (format!("/p/../alpha/{port}/"), namespace),
        (format!("/p/{long}/alpha/{port}/"), namespace),
        (format!("/p/default/Alpha/{port}/"), id),
        (format!("/p/default/alpha.other/{port}/"), id),
        (format!("/p/default/{long}/{port}/"), id),
        ("/p/default/alpha/0/".into(), no_port),
        ("/p/default/alpha/65536/".into(), no_port),
        ("/p/default/alpha/http/".into(), no_port),
        (format!("/p/default/alpha/+{port}/"), no_port),
        (format!("http://elsewhere.example/p/default/Alpha/{port}/"), id),
    ] {
        for (router, fields) in [(routers[0], ""), (routers[0], &good), (routers[1], &good)] {
            assert_detail(&send(router, get(&target, fields)).await, 400, text, &target);
            mesh.app.assert_untouched(&target);
        }
    }
    // An app that isn't there is none of the headers' business either.
    let nobody = get(&format!("/p/default/nobody/{port}/"), &good);
    let no_domain = format!("--cluster-domain={}", "x".repeat(64));
    let router = mesh.run_router(&[PREFIX, &no_domain, "--upstream-max-retries=0"]);
    let text = "Could not connect to the backend sandbox: nobody";
    assert_detail(&send(router, nobody).await, 502, text, "nobody");
    mesh.app.assert_untouched("nobody");
}

#[tokio::test]
async fn routing_headers_beside_a_path_lead_nowhere_and_stay_behind() {
    let (mesh, routers) = polite().await;
    let target = format!("/p/default/alpha/{}/x", mesh.ports.app);
    for router in routers {
        for fields in [
            "X-Sandbox-ID: beta\r\nX-Sandbox-Namespace: other\r\nX-Sandbox-Port: 1\r\n",
            "X-Sandbox-ID: No-Label\r\nX-Sandbox-ID: twice\r\n",
            // Hints: of nobody's pod, and of none.
            "X-Sandbox-Pod-IP: 203.0.113.9\r\nX-Sandbox-UID: u\r\n",
            "X-Sandbox-Pod-IP: 127.0.0.1\r\nX-Sandbox-Pod-IP: x\r\n",
            "X-Sandbox-Timeout: 30\r\n",
        ] {
            let response = send(router, get(&target, fields)).await;
            assert_eq!(status(&response), 200, "{fields}: {response}");
            let head = mesh.app.take_only_request().head;
            assert_eq!(request_line(&head), "GET /x HTTP/1.1");
            assert!(!head.to_ascii_lowercase().contains("x-sandbox-"), "{head}");
        }
        let twice = "X-Sandbox-Timeout: 1\r\nX-Sandbox-Timeout: 2\r\n";
        let text = "Duplicate X-Sandbox-Timeout header.";
        assert_detail(&send(router, get(&target, twice)).await, 400, text, "two limits");
        mesh.app.assert_untouched("two limits");
    }
}

#[tokio::test]
async fn the_clients_time_limit_counts_beside_a_path_too() {
    let mesh = Mesh::open(RecordingApp::start(|_| Step::Wait).await).await;
    let target = format!("/p/default/alpha/{}/", mesh.ports.app);
    let response = send(mesh.run_router(&[PREFIX]), get(&target, "X-Sandbox-Timeout: 0.1\r\n")).await;
    let text = "Timed out waiting for the backend sandbox: alpha";
    assert_detail(&response, 504, text, "a short limit");
}

#[tokio::test]
async fn what_is_not_under_the_prefix_is_for_the_headers_and_without_the_flag_nothing_is() {
    let (mesh, [router, _]) = polite().await;
    let port = mesh.ports.app;
    let path = format!("/p/default/alpha/{port}/");
    for (router, target) in [
        (router, "/p".to_owned()),
        (router, "/p?q".into()),
        (router, format!("/P/default/alpha/{port}/")),
        (router, format!("/px/default/alpha/{port}/")),
        (router, format!("/%70/default/alpha/{port}/")),
        (router, format!("//p/default/alpha/{port}/")),
        (router, format!("/./p/default/alpha/{port}/")),
        (mesh.router, path.clone()),
        (mesh.run_router(&["--path-routing-prefix="]), path),
    ] {
        let text = "X-Sandbox-ID header is required.";
        assert_detail(&send(router, get(&target, "")).await, 400, text, &target);
        mesh.app.assert_untouched(&target);
        let headers = format!("X-Sandbox-ID: alpha\r\nX-Sandbox-Port: {port}\r\n");
        assert_eq!(status(&send(router, get(&target, &headers)).await), 200, "{target}");
        let head = mesh.app.take_only_request().head;
        assert_eq!(request_line(&head), format!("GET {target} HTTP/1.1"));
    }
}

#[tokio::test]
async fn who_has_no_credential_learns_nothing_about_paths() {
    let (mesh, [router, _]) = polite().await;
    for target in [
        "/p/",
        "/p/default/Alpha/1/",
        &format!("/p/default/alpha/{}/", mesh.ports.app),
    ] {
        let head = get(target, "").replace(&format!("Authorization: Bearer {TOKEN}\r\n"), "");
        let text = "Missing or invalid Authorization header.";
        assert_detail(&send(router, head).await, 401, text, target);
        mesh.app.assert_untouched(target);
    }
}

#[tokio::test]
async fn a_sandboxs_policy_judges_the_path_that_the_app_gets() {
    let policy = |ports: sandgate_tests::Ports| rule(token_holder(), ports.app, &[], &["/public/*"]);
    let mesh = Mesh::start(RecordingApp::polite().await, policy).await;
    let router = mesh.run_router(&["--path-routing-prefix=/public"]);
    let base = format!("/public/default/alpha/{}", mesh.ports.app);
    let allowed = send(router, get(&format!("{base}/public/page"), "")).await;
    assert_eq!(status(&allowed), 200, "{allowed}");
    assert_eq!(
        request_line(&mesh.app.take_only_request().head),
        "GET /public/page HTTP/1.1"
    );
    for (rest, code, text) in [
        ("", 403, "Refused by the sandbox policy of alpha."),
        ("/private", 403, "Refused by the sandbox policy of alpha."),
        ("/publicity", 403, "Refused by the sandbox policy of alpha."),
    ] {
        let response = send(router, get(&format!("{base}{rest}"), "")).await;
        assert_detail(&response, code, text, rest);
        mesh.app.assert_untouched(rest);
    }
    for rest in ["/public/../private", "//public/page", "/public%2Fpage"] {
        let response = send(router, get(&format!("{base}{rest}"), "")).await;
        assert_eq!(status(&response), 400, "{rest}: {response}");
        assert!(response.contains("Ambiguous path"), "{rest}: {response}");
        mesh.app.assert_untouched(rest);
    }
}

/// An app with a login, as it would be written for a host of its own.
async fn app_with_a_login() -> RecordingApp {
    RecordingApp::start(|bytes| {
        let head = String::from_utf8_lossy(bytes).into_owned();
        if !head.ends_with("\r\n\r\n") {
            return Step::Wait;
        }
        let told = |name| field(&head, name).first().copied().unwrap_or_default().to_owned();
        let redirect = |to: &str, more: &str| {
            let answer = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\n{more}Content-Length: 0\r\n\r\n");
            Step::Answer(answer.into_bytes())
        };
        match head.split(' ').nth(1).unwrap() {
            "/login" => redirect(
                "/from-host?next=%2Fhome",
                "Set-Cookie: session=1; Path=/; HttpOnly\r\nSet-Cookie: wide=1; Domain=router.example; Path=/\r\n\
                 Set-Cookie: deep=1; Path=/home/deep\r\nSet-Cookie: plain=1\r\nService-Worker-Allowed: /\r\n\
                 Clear-Site-Data: \"*\"\r\n",
            ),
            "/from-host?next=%2Fhome" => redirect(&format!("http://{}/from-front", told("host")), ""),
            "/from-front" => redirect(&format!("http://{}/relative/x", told("x-forwarded-host")), ""),
            "/relative/x" => redirect("../home", ""),
            _ => Step::Answer(ok(&format!("cookies: {}", told("cookie")))),
        }
    })
    .await
}

#[tokio::test]
async fn a_browser_follows_an_apps_redirects_and_keeps_its_cookies_below_its_path() {
    let mesh = Mesh::open(app_with_a_login().await).await;
    for router in mesh.run_both(&[PREFIX, "--sandbox-endpoint=default/beta=127.0.0.1"]) {
        let base = format!("/p/default/alpha/{}", mesh.ports.app);
        let mut browser = Browser::new(router, "router.example");
        let (shown, answer) = browser.open(&format!("{base}/login")).await;
        assert_eq!(shown, format!("{base}/home"));
        assert!(
            answer.ends_with("\r\n\r\ncookies: session=1; wide=1; plain=1"),
            "{answer}"
        );
        let mut asked_for: Vec<String> = mesh
            .app
            .heads()
            .iter()
            .map(|head| request_line(head).to_owned())
            .collect();
        asked_for.dedup();
        let pages = [
            "/login",
            "/from-host?next=%2Fhome",
            "/from-front",
            "/relative/x",
            "/home",
        ];
        assert_eq!(asked_for, pages.map(|page| format!("GET {page} HTTP/1.1")));
        assert_eq!(browser.header("service-worker-allowed"), [format!("{base}/")]);
        assert_eq!(browser.header("clear-site-data"), [""; 0]);
        let (_, answer) = browser.open(&format!("{base}/home/deep/")).await;
        assert!(answer.contains("deep=1"), "{answer}");

        // Neither another sandbox nor the router's other users get any of it.
        mesh.app.forget();
        for elsewhere in [
            format!("/p/default/beta/{}/home", mesh.ports.app),
            format!("/p/default/alpha/{}0/home", mesh.ports.app),
            "/home".into(),
        ] {
            assert_eq!(browser.cookies_for(&elsewhere), "", "{elsewhere}");
        }
    }
}

#[tokio::test]
async fn a_websocket_opens_under_the_prefix() {
    let mesh = Mesh::open(RecordingApp::serving(echo).await).await;
    for router in mesh.run_both(&[PREFIX]) {
        let target = format!("/p/default/alpha/{}/socket?a=b", mesh.ports.app);
        let (mut socket, answer) = open_socket(router, "router.example", &target).await.unwrap();
        assert_eq!(say(&mut socket, "over there").await, "/socket?a=b over there");
        // What the app sets with the switch is its own, too.
        let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert_eq!(
            cookies,
            [&format!("socket=1; Path=/p/default/alpha/{}/", mesh.ports.app)]
        );
        let refused = open_socket(router, "router.example", "/p/default/Alpha/1/socket").await;
        assert_eq!(refused.unwrap_err(), 400);
    }
}

#[tokio::test]
async fn log_lines_and_metrics_name_the_sandbox_that_the_path_names() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[PREFIX]).await;
    let target = format!("/p/default/alpha/{}/page?secret", app.port());
    assert_eq!(
        status(&send(mesh.http, get(&target, "X-Sandbox-ID: beta\r\n")).await),
        200
    );
    app.only_request();
    mesh.router.logs("\"log\":\"access\"", 1).await;
    let lines = json_lines(&mesh.router.stderr());
    let line = lines.iter().find(|line| line["log"] == "access").unwrap();
    assert_eq!(line["path"], target.trim_end_matches("?secret"));
    assert_eq!(
        (&line["sandbox_namespace"], &line["sandbox_id"]),
        (&"default".into(), &"alpha".into())
    );
    mesh.sidecar.logs("\"log\":\"audit\"", 1).await;
    let lines = json_lines(&mesh.sidecar.stderr());
    let line = lines.iter().find(|line| line["log"] == "audit").unwrap();
    assert_eq!(line["path"], "/page");
    let counted = r#"sandbox_router_requests_total{code="200",method="GET",sandbox_namespace="default"}"#;
    assert_eq!(metric(mesh.metrics, counted).await.as_deref(), Some("1"));
}
