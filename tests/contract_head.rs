//! CONTRACT section 3: what of a request's head the app sees, with a gate and without one, and what of the answer's head
//! the client sees.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::{Mesh, RecordingApp, Step, TOKEN, assert_detail, exchange, field, ok, read_until, send, status};
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// The head as the app got it of a request with these fields, through a gate and, which must be the same, without one.
async fn seen(mesh: &Mesh, routers: [SocketAddr; 2], fields: &str) -> String {
    let mut seen = Vec::new();
    for router in routers {
        let response = send(router, mesh.head("GET /page HTTP/1.1", fields)).await;
        assert_eq!(status(&response), 200, "{fields:?}: {response}");
        seen.push(mesh.app.take_only_request().head);
    }
    assert_eq!(without_id(&seen[0]), without_id(&seen[1]), "{fields:?}");
    seen.remove(0)
}

/// The lines of a head in order of their names, without the request ID that is made anew for each request.
fn without_id(head: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = head
        .split("\r\n")
        .filter(|line| !line.to_ascii_lowercase().starts_with("x-request-id"))
        .collect();
    lines.sort_by_key(|line| line.split(':').next().map(str::to_ascii_lowercase));
    lines
}

async fn polite() -> (Mesh, [SocketAddr; 2]) {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let routers = mesh.run_both(&[]);
    (mesh, routers)
}

#[tokio::test]
async fn the_app_sees_these_headers_and_no_others() {
    let (mesh, routers) = polite().await;
    let fields = "Accept: */*\r\nCookie: a=1; b=2\r\nKeep-Alive: timeout=5\r\nProxy-Authorization: Basic eA==\r\n\
                  Proxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\nTE: gzip\r\nTrailer: Authorization\r\n\
                  Upgrade: websocket\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nX-Sandgate-Caller: v1;static;root\r\n\
                  X-Sandgate-Future: 1\r\nX-Sandbox-Future: 1\r\nX-Sandboxed: kept\r\n";
    let head = seen(&mesh, routers, fields).await.to_ascii_lowercase();
    let mut names: Vec<&str> = head
        .split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "cookie",
        "host",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-request-id",
        "x-sandboxed",
    ];
    assert_eq!(names, expected, "{head}");
    assert!(!head.contains(TOKEN), "{head}");
    assert_eq!(field(&head, "host"), [format!("127.0.0.1:{}", mesh.ports.app)]);
    assert_eq!(field(&head, "cookie"), ["a=1; b=2"]);
}

#[tokio::test]
async fn what_connection_names_stays_behind_except_what_frames_and_attributes() {
    let (mesh, routers) = polite().await;
    let connection = "close, X-Secret, Host, Authorization, Content-Length, Transfer-Encoding, X-Forwarded-For, \
                      X-Forwarded-Host, X-Forwarded-Proto";
    for router in routers {
        let upload = mesh
            .head("POST /up HTTP/1.1", "Content-Length: 4\r\nX-Secret: 1\r\nX-Kept: 1\r\n")
            .replace("Connection: close", &format!("Connection: {connection}"));
        let response = send(router, upload + "body").await;
        assert_eq!(status(&response), 200, "{response}");
        let request = mesh.app.take_only_request();
        let head = request.head;
        assert!(request.complete && request.body == b"body", "{head}");
        assert_eq!(field(&head, "content-length"), ["4"]);
        assert_eq!(field(&head, "host"), [format!("127.0.0.1:{}", mesh.ports.app)]);
        assert_eq!(field(&head, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(field(&head, "x-forwarded-host"), ["sandbox.example"]);
        assert_eq!(field(&head, "x-forwarded-proto"), ["http"]);
        assert_eq!(field(&head, "x-kept"), ["1"]);
        for absent in ["x-secret", "authorization", "connection"] {
            assert_eq!(field(&head, absent).len(), 0, "{head}");
        }
    }
}

/// What a client says of those before it.
const FORWARDED: &str = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Host: public.example\r\n\
                         X-Forwarded-Proto: https\r\n";

#[tokio::test]
async fn what_an_untrusted_client_says_of_those_before_it_is_overwritten() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let elsewhere = "--trusted-proxy-cidrs=10.0.0.0/8,127.0.0.2/32,::1/128";
    for routers in [mesh.run_both(&[]), mesh.run_both(&[elsewhere])] {
        for fields in ["", FORWARDED] {
            let head = seen(&mesh, routers, fields).await;
            assert_eq!(field(&head, "x-forwarded-for"), ["127.0.0.1"], "{fields:?}");
            assert_eq!(field(&head, "x-forwarded-host"), ["sandbox.example"], "{fields:?}");
            assert_eq!(field(&head, "x-forwarded-proto"), ["http"], "{fields:?}");
        }
        let more = "Forwarded: for=203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Prefix: /a\r\n";
        let head = seen(&mesh, routers, more).await;
        assert!(!head.contains("203.0.113.9") && !head.contains("-port: 443"), "{head}");
        assert!(!head.to_ascii_lowercase().contains("prefix"), "{head}");
    }
}

#[tokio::test]
async fn what_a_trusted_proxy_says_of_those_before_it_is_kept_and_its_own_address_added() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for trusted in ["127.0.0.0/8", "10.0.0.0/8, 127.0.0.1", "fd00::/8,127.0.0.1/32,"] {
        let routers = mesh.run_both(&[&format!("--trusted-proxy-cidrs={trusted}")]);
        let head = seen(&mesh, routers, FORWARDED).await;
        let chain = ["203.0.113.9, 198.51.100.7, 127.0.0.1"];
        assert_eq!(field(&head, "x-forwarded-for"), chain, "{trusted}");
        assert_eq!(field(&head, "x-forwarded-host"), ["public.example"], "{trusted}");
        assert_eq!(field(&head, "x-forwarded-proto"), ["https"], "{trusted}");
        let head = seen(&mesh, routers, "").await;
        assert_eq!(field(&head, "x-forwarded-for"), ["127.0.0.1"], "{trusted}");
        assert_eq!(field(&head, "x-forwarded-host"), ["sandbox.example"], "{trusted}");
        assert_eq!(field(&head, "x-forwarded-proto"), ["http"], "{trusted}");
    }
}

#[tokio::test]
async fn a_sane_request_id_is_kept_and_any_other_replaced_by_a_fresh_one() {
    let (mesh, routers) = polite().await;
    let longest = "i".repeat(128);
    for id in [
        "a",
        "0d8f3c7a-52b1-4c7e-9f60-1f2e3d4c5b6a",
        "Root=1-67891233:a_b.c+d/e=",
        &longest,
    ] {
        let head = seen(&mesh, routers, &format!("X-Request-ID: {id}\r\n")).await;
        assert_eq!(field(&head, "x-request-id"), [id]);
    }
    let mut made = Vec::new();
    let too_long = "i".repeat(129);
    for id in [
        "", " ", "a b", "a,b", "a;b", "{a}", "\"a\"", "a\u{e4}", "<script>", "${a}", &too_long,
    ] {
        let head = seen(&mesh, routers, &format!("X-Request-ID: {id}\r\n")).await;
        made.push(field(&head, "x-request-id").join("|"));
    }
    // Two readers could take different ones.
    let head = seen(&mesh, routers, "X-Request-ID: first\r\nX-Request-ID: second\r\n").await;
    made.push(field(&head, "x-request-id").join("|"));
    let head = seen(&mesh, routers, "").await;
    made.push(field(&head, "x-request-id").join("|"));
    for id in &made {
        assert!(
            id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{made:?}"
        );
        assert_eq!(made.iter().filter(|other| *other == id).count(), 1, "{made:?}");
    }
}

#[tokio::test]
async fn a_traceparent_passes_and_two_of_them_do_not() {
    let (mesh, routers) = polite().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let fields = format!("traceparent: {trace}\r\ntracestate: a=1,b=2\r\ntracestate: c=3\r\n");
    let head = seen(&mesh, routers, &fields).await;
    assert_eq!(field(&head, "traceparent"), [trace]);
    assert_eq!(field(&head, "tracestate"), ["a=1,b=2", "c=3"]);
    let head = seen(&mesh, routers, &format!("{fields}traceparent: {trace}\r\n")).await;
    assert_eq!(field(&head, "traceparent").len(), 0, "{head}");
}

#[tokio::test]
async fn headers_that_occur_several_times_stay_separate_and_in_order_both_ways() {
    let cookies = ["a=1; Path=/; Expires=Wed, 21 Oct 2026 07:28:00 GMT", "b=2", "a=3"];
    let lines: String = cookies.map(|cookie| format!("Set-Cookie: {cookie}\r\n")).concat();
    let answer = format!("HTTP/1.1 200 OK\r\n{lines}Vary: a\r\nVary: b\r\nContent-Length: 0\r\n\r\n");
    let mesh = Mesh::open(RecordingApp::answering(Step::Answer(answer.into())).await).await;
    for router in mesh.run_both(&[]) {
        let fields = "X-Many: 1\r\nX-Other: x\r\nX-Many: 2, 3\r\nx-many: \r\nCookie: a=1\r\nCookie: b=2\r\n";
        let response = send(router, mesh.head("GET / HTTP/1.1", fields)).await;
        assert_eq!(status(&response), 200, "{response}");
        assert_eq!(field(&response, "set-cookie"), cookies);
        assert_eq!(field(&response, "vary"), ["a", "b"]);
        let head = mesh.app.take_only_request().head;
        assert_eq!(field(&head, "x-many"), ["1", "2, 3", ""]);
        assert_eq!(field(&head, "cookie"), ["a=1", "b=2"]);
    }
}

#[tokio::test]
async fn origin_stays_behind_on_upgrades_only() {
    let (mesh, routers) = polite().await;
    let origin = "Origin: https://notebook.example\r\n";
    // h2c is no upgrade that is ever made; neither is one that Connection doesn't name.
    for fields in ["", "Upgrade: websocket\r\n"] {
        let head = seen(&mesh, routers, &format!("{origin}{fields}")).await;
        assert_eq!(field(&head, "origin"), ["https://notebook.example"], "{fields:?}");
        assert_eq!(field(&head, "upgrade").len(), 0, "{head}");
    }
    for (protocol, kept) in [
        ("h2c", 1),
        ("H2C", 1),
        ("websocket, h2c", 1),
        // Without a key it is no opening handshake (RFC 6455 section 4.1).
        ("websocket", 1),
        ("websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", 0),
        ("echo", 0),
    ] {
        for router in routers {
            let head = mesh
                .head("GET /socket HTTP/1.1", &format!("{origin}Upgrade: {protocol}\r\n"))
                .replace("Connection: close", "Connection: close, Upgrade");
            // An app may decline an upgrade by an ordinary answer.
            let response = send(router, head).await;
            assert_eq!(status(&response), 200, "{protocol}: {response}");
            let head = mesh.app.take_only_request().head;
            assert_eq!(field(&head, "origin").len(), kept, "{protocol}: {head}");
            assert_eq!(field(&head, "upgrade").len(), 1 - kept, "{protocol}: {head}");
        }
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_an_answer_that_it_can_read() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for answer in [ok("hello"), chunked.into()] {
        let mesh = Mesh::open(RecordingApp::answering(Step::Answer(answer)).await).await;
        for router in mesh.run_both(&[]) {
            let head = format!(
                "GET /old HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: alpha\r\nX-Sandbox-Port: {}\r\n\
                 Connection: upgrade\r\nUpgrade: websocket\r\nOrigin: https://a.example\r\n\r\n",
                mesh.ports.app
            );
            let response = send(router, head).await;
            assert!(response.starts_with("HTTP/1.0 200 OK\r\n"), "{response}");
            assert!(response.ends_with("\r\n\r\nhello"), "{response}");
            assert_eq!(field(&response, "transfer-encoding").len(), 0, "{response}");
            let head = mesh.app.take_only_request().head;
            assert!(head.starts_with("GET /old HTTP/1.1\r\n"), "{head}");
            assert_eq!(field(&head, "host"), [format!("127.0.0.1:{}", mesh.ports.app)]);
            // Asked for in HTTP/1.0, an upgrade is ignored; and without Host there is none to tell the app of.
            assert_eq!(field(&head, "upgrade").len(), 0, "{head}");
            assert_eq!(field(&head, "origin"), ["https://a.example"]);
            assert_eq!(field(&head, "x-forwarded-host").len(), 0, "{head}");
        }
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_refused_in_its_own_version() {
    let (mesh, [router, _]) = polite().await;
    let response = send(router, "GET / HTTP/1.0\r\n\r\n").await;
    let text = "Missing or invalid Authorization header.";
    assert!(response.starts_with("HTTP/1.0 401 "), "{response}");
    assert_detail(&response.replacen("HTTP/1.0", "HTTP/1.1", 1), 401, text, "HTTP/1.0");
    mesh.app.assert_untouched("HTTP/1.0");
}

#[tokio::test]
async fn a_kept_connection_of_http_1_0_serves_a_second_request() {
    let (mesh, routers) = polite().await;
    for router in routers {
        let head = mesh
            .head("GET / HTTP/1.0", "")
            .replace("Connection: close", "Connection: keep-alive");
        let mut stream = TcpStream::connect(router).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let response = read_until(&mut stream, b"hello").await;
        assert!(response.starts_with("HTTP/1.0 200 OK\r\n"), "{response}");
        assert_eq!(field(&response, "connection"), ["keep-alive"]);
        mesh.app.take_only_request();
        let response = exchange(stream, mesh.head("GET / HTTP/1.0", ""), false).await;
        assert!(response.starts_with("HTTP/1.0 200 OK\r\n"), "{response}");
        mesh.app.take_only_request();
    }
}

#[tokio::test]
async fn every_method_arrives_as_it_was_sent() {
    let (mesh, routers) = polite().await;
    let methods =
        "GET POST PUT PATCH DELETE OPTIONS TRACE PROPFIND MKCOL LOCK QUERY PURGE get Post M-SEARCH X!#$%&'*+.^_`|~0";
    for method in methods.split(' ') {
        for router in routers {
            let response = send(router, mesh.head(&format!("{method} /page?q HTTP/1.1"), "")).await;
            assert_eq!(status(&response), 200, "{method}: {response}");
            let head = mesh.app.take_only_request().head;
            assert!(
                head.starts_with(&format!("{method} /page?q HTTP/1.1\r\n")),
                "{method}: {head}"
            );
        }
    }
    for router in routers {
        // The app's own answer to HEAD, without its body.
        let response = send(router, mesh.head("HEAD /page HTTP/1.1", "")).await;
        assert_eq!(status(&response), 200, "{response}");
        assert!(response.ends_with("\r\n\r\n"), "{response}");
        assert!(mesh.app.take_only_request().head.starts_with("HEAD /page HTTP/1.1\r\n"));
        // A server's options, not those of a resource.
        let response = send(router, mesh.head("OPTIONS * HTTP/1.1", "")).await;
        assert_eq!(status(&response), 200, "{response}");
        assert!(mesh.app.take_only_request().head.starts_with("OPTIONS * HTTP/1.1\r\n"));
    }
}

#[tokio::test]
async fn healthz_is_the_routers_own_for_get_and_head_and_the_apps_for_every_other_method() {
    let (mesh, routers) = polite().await;
    for router in routers {
        for target in ["/healthz", "/healthz?verbose", "http://router.example/healthz"] {
            for fields in ["", "X-Sandbox-ID: alpha\r\nAuthorization: Bearer wrong\r\n"] {
                let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n");
                let response = send(router, &head).await;
                assert_eq!(status(&response), 200, "{target}: {response}");
                assert!(
                    response.ends_with("\r\n\r\n{\"status\":\"ok\"}"),
                    "{target}: {response}"
                );
                assert_eq!(field(&response, "content-type"), ["application/json"]);
                let response = send(router, head.replacen("GET", "HEAD", 1)).await;
                assert_eq!(status(&response), 200, "{target}: {response}");
                assert!(response.ends_with("\r\n\r\n"), "{target}: {response}");
                assert_eq!(field(&response, "content-length"), ["15"]);
            }
        }
        mesh.app.assert_untouched("healthz");
        for line in [
            "POST /healthz HTTP/1.1",
            "OPTIONS /healthz HTTP/1.1",
            "PROBE /healthz HTTP/1.1",
            "GET /healthz/ HTTP/1.1",
            "GET /Healthz HTTP/1.1",
            "GET /%68ealthz HTTP/1.1",
            "GET //healthz HTTP/1.1",
        ] {
            let response = send(router, mesh.head(line, "")).await;
            assert!(
                status(&response) == 200 && response.ends_with("hello"),
                "{line}: {response}"
            );
            assert!(mesh.app.take_only_request().head.starts_with(line), "{line}");
            let stranger = format!("{line}\r\nHost: a\r\nConnection: close\r\n\r\n");
            let text = "Missing or invalid Authorization header.";
            assert_detail(&send(router, stranger).await, 401, text, line);
            mesh.app.assert_untouched(line);
        }
    }
}
