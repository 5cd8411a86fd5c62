//! Routing by host: a host under the domain leads to the app that it names or nowhere, and what the app answers keeps the
//! browser on that host.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::browser::{Browser, echo, open_socket, say};
use sandgate_tests::processes::{ProcessMesh, Programs, json_lines, metric};
use sandgate_tests::{Mesh, RecordingApp, Step, TOKEN, assert_detail, field, ok, programs, send, status};
use std::net::SocketAddr;

const PROGRAMS: Programs = programs!();

const DOMAIN: &str = "--host-routing-domain=sandboxes.example";
const FORM: &str = "Host-routed request must have the form <port>-<id>--<namespace>.<domain>";

/// A request without routing headers but those in `fields`.
fn get(target: &str, host: &str, fields: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n{fields}\r\n"
    )
}

async fn polite() -> (Mesh, [SocketAddr; 2]) {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let routers = mesh.run_both(&[DOMAIN, "--path-routing-prefix=/p"]);
    (mesh, routers)
}

/// The host of the app.
fn host(mesh: &Mesh) -> String {
    format!("{}-alpha--default.sandboxes.example", mesh.ports.app)
}

async fn assert_asked_for(mesh: &Mesh, router: SocketAddr, request: String, target: &str, host: &str) {
    let response = send(router, &request).await;
    assert_eq!(status(&response), 200, "{request}{response}");
    let head = mesh.app.take_only_request().head;
    assert!(
        head.starts_with(&format!("GET {target} HTTP/1.1\r\n")),
        "{request}{head}"
    );
    assert_eq!(field(&head, "host"), [format!("127.0.0.1:{}", mesh.ports.app)]);
    assert_eq!(field(&head, "x-forwarded-host"), [host]);
    assert!(!head.to_ascii_lowercase().contains("x-sandbox-"), "{head}");
}

#[tokio::test]
async fn a_host_under_the_domain_leads_to_its_app_however_it_is_written() {
    let (mesh, routers) = polite().await;
    let lower = host(&mesh);
    for router in routers {
        for host in [
            lower.clone(),
            lower.to_ascii_uppercase(),
            format!("{lower}."),
            format!("{lower}:8443"),
            format!("{lower}.:8443"),
            format!("{lower}:"),
        ] {
            assert_asked_for(&mesh, router, get("/page?q", &host, ""), "/page?q", &host).await;
        }
        // All paths of such a host are the app's, those under the prefix of others too.
        for target in ["/p/default/beta/1/x", "/p/", "//x", "/..%2F%zz"] {
            assert_asked_for(&mesh, router, get(target, &lower, ""), target, &lower).await;
        }
        let probe = send(router, get("/healthz", &lower, "")).await;
        assert!(probe.ends_with(r#"{"status":"ok"}"#), "{probe}");
        mesh.app.assert_untouched("the router's own probe");
        let absolute = format!("http://{}:8443/page", lower.to_ascii_uppercase());
        assert_asked_for(&mesh, router, get(&absolute, &lower, ""), "/page", &lower).await;
    }
}

#[tokio::test]
async fn a_host_under_the_domain_that_names_no_app_is_refused_whatever_else_the_request_says() {
    let (mesh, routers) = polite().await;
    let port = mesh.ports.app;
    let headers = format!("X-Sandbox-ID: alpha\r\nX-Sandbox-Port: {port}\r\n");
    let long = "a".repeat(60);
    for label in [
        String::new(),
        "www".into(),
        "alpha--default".into(),
        format!("{port}-alpha"),
        format!("{port}-alpha-default"),
        format!("{port}--default"),
        format!("{port}-alpha--"),
        format!("{port}-alpha---default"),
        format!("{port}-alpha----default"),
        format!("0{port}-alpha--default"),
        "0-alpha--default".into(),
        "65536-alpha--default".into(),
        format!("-{port}-alpha--default"),
        format!("{port}-al_pha--default"),
        format!("www.{port}-alpha--default"),
        format!("{port}-alpha--default.www"),
        format!("user@{port}-alpha--default"),
        format!("user:word@{port}-alpha--default"),
        format!("{port}-alpha--default%2e"),
        format!("{port}-alpha--d\u{e4}fault"),
        format!("{port}-{long}--default"),
    ] {
        let host = format!("{label}.sandboxes.example");
        for target in ["/page".to_owned(), format!("/p/default/alpha/{port}/page")] {
            for router in routers {
                assert_detail(&send(router, get(&target, &host, &headers)).await, 400, FORM, &host);
                mesh.app.assert_untouched(&host);
            }
        }
    }
    let host = host(&mesh);
    for port in [":http", ":80:81", ":-1"] {
        let response = send(routers[0], get("/page", &format!("{host}{port}"), &headers)).await;
        assert_detail(&response, 400, FORM, port);
        mesh.app.assert_untouched(port);
    }
}

#[tokio::test]
async fn a_target_and_a_host_header_that_name_different_hosts_lead_nowhere() {
    let (mesh, routers) = polite().await;
    let (host, port) = (host(&mesh), mesh.ports.app);
    let headers = format!("X-Sandbox-ID: alpha\r\nX-Sandbox-Port: {port}\r\n");
    let other = host.replace("alpha", "beta");
    for (target, header) in [
        (host.as_str(), other.as_str()),
        (&other, &host),
        (&host, "router.example"),
        ("router.example", &host),
        (&host, "127.0.0.1"),
    ] {
        for router in routers {
            let request = get(&format!("http://{target}/page"), header, &headers);
            let text = "Request target and Host header name different hosts.";
            assert_detail(&send(router, request).await, 400, text, header);
            mesh.app.assert_untouched(header);
        }
    }
}

#[tokio::test]
async fn routing_headers_beside_a_host_lead_nowhere_but_its_time_limit_counts() {
    let (mesh, routers) = polite().await;
    let host = host(&mesh);
    for router in routers {
        for fields in [
            "X-Sandbox-ID: beta\r\nX-Sandbox-Namespace: other\r\nX-Sandbox-Port: 1\r\n",
            "X-Sandbox-ID: No-Label\r\nX-Sandbox-ID: twice\r\n",
            "X-Sandbox-Pod-IP: 203.0.113.9\r\nX-Sandbox-UID: u\r\n",
            "X-Sandbox-Timeout: 30\r\n",
        ] {
            assert_asked_for(&mesh, router, get("/page", &host, fields), "/page", &host).await;
        }
        let twice = "X-Sandbox-Timeout: 1\r\nX-Sandbox-Timeout: 2\r\n";
        let text = "Duplicate X-Sandbox-Timeout header.";
        assert_detail(&send(router, get("/", &host, twice)).await, 400, text, "two limits");
        mesh.app.assert_untouched("two limits");
    }
    let mesh = Mesh::open(RecordingApp::start(|_| Step::Wait).await).await;
    let host = format!("{}-alpha--default.sandboxes.example", mesh.ports.app);
    let response = send(
        mesh.run_router(&[DOMAIN]),
        get("/", &host, "X-Sandbox-Timeout: 0.1\r\n"),
    )
    .await;
    let text = "Timed out waiting for the backend sandbox: alpha";
    assert_detail(&response, 504, text, "a short limit");
}

#[tokio::test]
async fn a_host_beside_the_domain_is_for_the_path_or_the_headers_and_without_the_flag_every_host_is() {
    let (mesh, [router, _]) = polite().await;
    let port = mesh.ports.app;
    let headers = format!("X-Sandbox-ID: alpha\r\nX-Sandbox-Port: {port}\r\n");
    let own = host(&mesh);
    for (router, host) in [
        (router, "sandboxes.example".to_owned()),
        (router, "SANDBOXES.example.:80".into()),
        (router, own.replace('.', "-")),
        (router, format!("{own}.org")),
        (router, own.replace(".example", ".test")),
        (router, "127.0.0.1:8080".into()),
        (router, "[::1]:8080".into()),
        (mesh.router, own.clone()),
        (mesh.run_router(&["--host-routing-domain="]), own.clone()),
    ] {
        let text = "X-Sandbox-ID header is required.";
        assert_detail(&send(router, get("/page", &host, "")).await, 400, text, &host);
        mesh.app.assert_untouched(&host);
        assert_asked_for(&mesh, router, get("/page", &host, &headers), "/page", &host).await;
    }
    let path = format!("/p/default/alpha/{port}/page");
    assert_asked_for(
        &mesh,
        router,
        get(&path, "sandboxes.example", ""),
        "/page",
        "sandboxes.example",
    )
    .await;
}

#[tokio::test]
async fn who_has_no_credential_learns_nothing_about_hosts() {
    let (mesh, [router, _]) = polite().await;
    for host in [host(&mesh), "www.sandboxes.example".into()] {
        let head = get("/", &host, "").replace(&format!("Authorization: Bearer {TOKEN}\r\n"), "");
        let text = "Missing or invalid Authorization header.";
        assert_detail(&send(router, head).await, 401, text, &host);
        mesh.app.assert_untouched(&host);
    }
}

#[tokio::test]
async fn a_browser_stays_on_the_apps_host_and_its_cookies_do_too() {
    let app = RecordingApp::start(|bytes| {
        let head = String::from_utf8_lossy(bytes).into_owned();
        if !head.ends_with("\r\n\r\n") {
            return Step::Wait;
        }
        let told = |name| field(&head, name).first().copied().unwrap_or_default().to_owned();
        let redirect =
            |to: String| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\n{COOKIES}Content-Length: 0\r\n\r\n");
        Step::Answer(match head.split(' ').nth(1).unwrap() {
            "/login" => redirect(format!("http://{}/from-host", told("host"))).into_bytes(),
            "/from-host" => redirect(format!("http://{}/from-front", told("x-forwarded-host"))).into_bytes(),
            "/from-front" => redirect("/home".into()).into_bytes(),
            _ => ok(&format!("cookies: {}", told("cookie"))),
        })
    })
    .await;
    let mesh = Mesh::open(app).await;
    for router in mesh.run_both(&[DOMAIN]) {
        let mut browser = Browser::new(router, &host(&mesh));
        let (shown, answer) = browser.open("/login").await;
        assert_eq!(shown, "/home");
        assert!(answer.contains("cookies: __Host-session=1; wide=1"), "{answer}");
        assert_eq!(browser.header("strict-transport-security").len(), 3);
    }
}

const COOKIES: &str = "Set-Cookie: __Host-session=1; Secure; Path=/\r\nSet-Cookie: wide=1; Domain=sandboxes.example; Path=/\r\n\
                       Strict-Transport-Security: max-age=1\r\n";

#[tokio::test]
async fn a_websocket_opens_on_the_apps_host() {
    let mesh = Mesh::open(RecordingApp::serving(echo).await).await;
    for router in mesh.run_both(&[DOMAIN]) {
        let (mut socket, answer) = open_socket(router, &host(&mesh), "/socket?a=b").await.unwrap();
        assert_eq!(say(&mut socket, "over there").await, "/socket?a=b over there");
        assert_eq!(answer.headers()["set-cookie"], "socket=1; Path=/");
        let refused = open_socket(router, "www.sandboxes.example", "/socket").await;
        assert_eq!(refused.unwrap_err(), 400);
    }
}

#[tokio::test]
async fn a_page_of_another_origin_opens_no_websocket() {
    let (mesh, routers) = polite().await;
    let own = host(&mesh);
    let upgrade = |origin: &str| {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{origin}"
        )
    };
    let path = format!("/p/default/alpha/{}/socket", mesh.ports.app);
    for router in routers {
        for (target, host) in [("/socket", own.as_str()), (&path, "router.example")] {
            for origin in [
                "Origin: https://80-evil--default.sandboxes.example\r\n".to_owned(),
                "Origin: https://sandboxes.example\r\n".into(),
                "Origin: null\r\n".into(),
                "Origin: \r\n".into(),
                format!("Origin: https://{host}.evil.example\r\n"),
                format!("Origin: https://{host}:8443\r\n"),
                format!("Origin: ftp://{host}\r\n"),
                format!("Origin: https://{host}\r\nOrigin: https://{host}\r\n"),
            ] {
                let response = send(router, get(target, host, &upgrade(&origin))).await;
                assert_detail(
                    &response,
                    403,
                    "Upgrade requests from another origin are refused.",
                    &origin,
                );
                mesh.app.assert_untouched(&origin);
            }
            // The app is asked for its own pages, and by clients that are no browsers. It needn't switch.
            for origin in [
                String::new(),
                format!("Origin: https://{host}\r\n"),
                format!("Origin: http://{}\r\n", host.to_ascii_uppercase()),
            ] {
                let response = send(router, get(target, host, &upgrade(&origin))).await;
                assert_eq!(status(&response), 200, "{origin}{response}");
                let head = mesh.app.take_only_request().head;
                assert!(
                    head.contains("pgrade: websocket") && field(&head, "origin").is_empty(),
                    "{head}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_page_of_the_apps_own_is_no_stranger_to_it_and_every_other_stays_one() {
    let (mesh, routers) = polite().await;
    let own = host(&mesh);
    let path = format!("/p/default/alpha/{}/page", mesh.ports.app);
    for router in routers {
        for origin in [
            format!("https://{own}"),
            format!("http://{}", own.to_ascii_uppercase()),
            format!("https://{own}:443"),
        ] {
            let response = send(router, get("/page", &own, &format!("Origin: {origin}\r\n"))).await;
            assert_eq!(status(&response), 200, "{origin}{response}");
            let head = mesh.app.take_only_request().head;
            assert!(field(&head, "origin").is_empty(), "{origin}: {head}");
        }
        for (target, host, origins) in [
            (
                "/page",
                own.as_str(),
                vec!["https://80-evil--default.sandboxes.example"],
            ),
            ("/page", &own, vec!["https://sandboxes.example"]),
            ("/page", &own, vec!["null"]),
            ("/page", &own, vec![""]),
            ("/page", &own, vec![own.as_str()]),
            ("/page", &own, vec![&format!("https://{own}:8443")]),
            ("/page", &own, vec![&format!("https://{own}.evil.example")]),
            ("/page", &own, vec![&format!("https://{own}"), "https://evil.example"]),
            // By path the origin may be another sandbox's page just as well.
            (&path, "router.example", vec!["https://router.example"]),
        ] {
            // What a client says of the host that it asked for doesn't count.
            let claimed = "X-Forwarded-Host: 80-evil--default.sandboxes.example";
            let fields = format!("{claimed}\r\nOrigin: {}\r\n", origins.join("\r\nOrigin: "));
            let response = send(router, get(target, host, &fields)).await;
            assert_eq!(status(&response), 200, "{fields}{response}");
            let head = mesh.app.take_only_request().head;
            assert_eq!(field(&head, "origin"), origins, "{head}");
        }
    }
}

#[tokio::test]
async fn log_lines_and_metrics_name_the_sandbox_that_the_host_names() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[DOMAIN]).await;
    let host = format!("{}-alpha--default.sandboxes.example", app.port());
    assert_eq!(
        status(&send(mesh.http, get("/page", &host, "X-Sandbox-ID: beta\r\n")).await),
        200
    );
    app.only_request();
    mesh.router.logs("\"log\":\"access\"", 1).await;
    let lines = json_lines(&mesh.router.stderr());
    let line = lines.iter().find(|line| line["log"] == "access").unwrap();
    assert_eq!(line["path"], "/page");
    assert_eq!(
        (&line["sandbox_namespace"], &line["sandbox_id"]),
        (&"default".into(), &"alpha".into())
    );
    let counted = r#"sandbox_router_requests_total{code="200",method="GET",sandbox_namespace="default"}"#;
    assert_eq!(metric(mesh.metrics, counted).await.as_deref(), Some("1"));
}
