//! CONTRACT section 4, row by row: what a client is told when there is no answer from the app, in exactly which words, and
//! what the app saw of it. Where a gate makes no difference to clients, each row is tried with and without one.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::future::join_all;
use sandgate_local::authority::{LeafSpec, Usage};
use sandgate_mesh::framing::{Limits, Violation};
use sandgate_tests::{
    Mesh, POD_UID, ROUTER, RecordingApp, Step, TOKEN, WORKLOAD, assert_detail, closed_port, exchange, field, head_to,
    read_until, rule, send, send_whole, status, token_holder,
};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const TIMED_OUT: &str = "Timed out waiting for the backend sandbox: alpha";
const NOT_READY: &str = "Sandbox gate is not ready: alpha";
const TOO_LARGE: &str = "Request body is too large.";

async fn polite() -> Mesh {
    Mesh::open(RecordingApp::polite().await).await
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_502() {
    let mesh = polite().await;
    // A label has at most 63 bytes: no resolver asks a server for this name.
    let domain = format!("--cluster-domain={}", "x".repeat(64));
    for router in mesh.run_both(&[&domain]) {
        let head = mesh.head("GET / HTTP/1.1", "").replace("ID: alpha", "ID: nobody");
        let text = "Could not connect to the backend sandbox: nobody";
        assert_detail(&send(router, head).await, 502, text, "no such name");
    }
    mesh.app.assert_untouched("no such name");
}

/// Longer than what the sockets between the two hold, so that closing the connection without a look at it resets that.
const LONG_BODY: usize = 1_000_000;

#[tokio::test]
async fn whoever_sends_a_long_body_to_a_name_that_does_not_resolve_gets_the_whole_answer() {
    let mesh = polite().await;
    let domain = format!("--cluster-domain={}", "x".repeat(64));
    let text = "Could not connect to the backend sandbox: nobody";
    for router in mesh.run_both(&[&domain]) {
        for (framing, upload) in uploads(&mesh, LONG_BODY) {
            let upload = upload.replace("ID: alpha", "ID: nobody");
            assert_detail(&send_whole(router, upload).await, 502, text, framing);
        }
        // Who asks before it sends isn't told to send what nobody will get.
        let head = mesh.head("POST /up HTTP/1.1", "Content-Length: 4\r\nExpect: 100-continue\r\n");
        let head = head.replace("ID: alpha", "ID: nobody");
        assert_detail(&send(router, head).await, 502, text, "Expect");
    }
    mesh.app.assert_untouched("no such name");
}

#[tokio::test]
async fn a_port_that_does_not_answer_a_connection_attempt_is_504() {
    let (socket, port) = closed_port();
    let listener = socket.listen(1).unwrap();
    // A full queue of connections that nobody takes: the kernel drops further attempts.
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(("127.0.0.1", port))).await {
        queued.push(stream.unwrap());
    }
    let mesh = Mesh::open_with(RecordingApp::polite().await, &[port]).await;
    for router in mesh.run_both(&[]) {
        let head = head_to(port, "GET / HTTP/1.1", "X-Sandbox-Timeout: 0.5\r\n");
        assert_detail(&send(router, head).await, 504, TIMED_OUT, "a full queue");
    }
    mesh.app.assert_untouched("another port");
    drop(listener);
}

#[tokio::test]
async fn no_response_head_in_time_is_504_and_the_app_is_asked_once() {
    let row = async |flag: &str, fields: &str, unfinished: &'static [u8], gate: bool| {
        let app = RecordingApp::answering(Step::Answer(unfinished.into()));
        let mesh = Mesh::open(app.await).await;
        let router = mesh.run_both(&[flag])[usize::from(gate)];
        let response = send(router, mesh.head("GET /slow HTTP/1.1", fields)).await;
        assert_detail(&response, 504, TIMED_OUT, flag);
        assert!(mesh.app.only_request().head.starts_with("GET /slow "));
    };
    let mut rows = Vec::new();
    for (flag, fields) in [
        ("--proxy-timeout=180s", "X-Sandbox-Timeout: 1\r\n"),
        ("--proxy-timeout=1s", ""),
        ("--response-header-timeout=1s", ""),
        ("--response-header-timeout=1s", "X-Sandbox-Timeout: 60\r\n"),
    ] {
        // Neither silence nor a head without end nor an informational one is an answer.
        for unfinished in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nX-Rest: ",
            b"HTTP/1.1 103 Early Hints\r\n\r\n",
        ] {
            rows.push(row(flag, fields, unfinished, true));
            rows.push(row(flag, fields, unfinished, false));
        }
    }
    join_all(rows).await;
}

/// One upload of this many bytes, sized and chunked.
fn uploads(mesh: &Mesh, length: usize) -> [(&'static str, String); 2] {
    let data = "d".repeat(length);
    let sized = mesh.head("POST /up HTTP/1.1", &format!("Content-Length: {length}\r\n")) + &data;
    let chunk = |data: &[u8]| format!("{:x}\r\n{}\r\n", data.len(), "d".repeat(data.len()));
    let chunks: String = data.as_bytes().chunks(300).map(chunk).collect();
    let head = mesh.head("POST /up HTTP/1.1", "Transfer-Encoding: chunked\r\n");
    [("sized", sized), ("chunked", head + &chunks + "0\r\n\r\n")]
}

#[tokio::test]
async fn a_request_body_over_the_limit_is_413_and_never_whole() {
    let limited = |mesh: &Mesh| mesh.run_both(&["--max-request-body-bytes=1000"]);
    let mesh = polite().await;
    for router in limited(&mesh) {
        for length in [0, 1, 1000] {
            for (framing, upload) in uploads(&mesh, length) {
                let response = send(router, upload).await;
                assert_eq!(status(&response), 200, "{framing} {length}: {response}");
                assert_eq!(mesh.app.take_only_request().data().len(), length, "{framing} {length}");
            }
        }
        // Who asks before it sends is told at once.
        let head = mesh.head("POST /up HTTP/1.1", "Content-Length: 1001\r\nExpect: 100-continue\r\n");
        assert_detail(&send(router, head).await, 413, TOO_LARGE, "Expect");
        mesh.app.assert_untouched("Expect");
    }
    for length in [1001, 4_000_000] {
        for (gate, index) in [("through the gate", 0), ("without a gate", 1)] {
            let mesh = polite().await;
            for (framing, upload) in uploads(&mesh, length) {
                let context = format!("{framing} {length} {gate}");
                assert_detail(&send(limited(&mesh)[index], upload).await, 413, TOO_LARGE, &context);
                if framing == "sized" {
                    mesh.app.assert_untouched(&context);
                }
            }
            let seen = mesh.app.requests();
            assert!(
                seen.len() <= 1 && seen.iter().all(|request| !request.complete),
                "{length} {gate}"
            );
        }
    }
}

#[tokio::test]
async fn no_credential_and_a_bad_one_are_401_with_a_challenge() {
    let mesh = polite().await;
    let good = format!("Authorization: Bearer {TOKEN}\r\n");
    let (missing, bad) = ("Missing or invalid Authorization header.", "Invalid token.");
    for router in mesh.run_both(&[]) {
        for (given, text) in [
            (String::new(), missing),
            ("Authorization:\r\n".into(), missing),
            ("Authorization: Bearer\r\n".into(), missing),
            (format!("Authorization: {TOKEN}\r\n"), missing),
            (format!("Authorization: Basic {TOKEN}\r\n"), missing),
            (format!("Authorization: Bearer{TOKEN}\r\n"), missing),
            (format!("{good}{good}"), missing),
            (format!("Proxy-{good}"), missing),
            (format!("Cookie: Authorization=Bearer {TOKEN}\r\n"), missing),
            ("Authorization: Bearer wrong\r\n".into(), bad),
            (format!("Authorization: Bearer {TOKEN}x\r\n"), bad),
            (format!("Authorization: Bearer {}\r\n", &TOKEN[1..]), bad),
            (format!("Authorization: Bearer {}\r\n", TOKEN.to_uppercase()), bad),
            (format!("Authorization: Bearer {TOKEN} {TOKEN}\r\n"), bad),
            (format!("Authorization: Bearer {TOKEN}, Bearer {TOKEN}\r\n"), bad),
        ] {
            for (line, body) in [("GET /?token=x HTTP/1.1", ""), ("POST / HTTP/1.1", "body")] {
                let fields = format!("Content-Length: {}\r\n", body.len());
                let response = send(router, mesh.head(line, &fields).replace(&good, &given) + body).await;
                assert_detail(&response, 401, text, &given);
                assert_eq!(field(&response, "www-authenticate"), ["Bearer"], "{given}");
            }
        }
    }
    mesh.app.assert_untouched("no credential");
}

#[tokio::test]
async fn what_policy_refuses_is_403_and_never_what_clients_try_again() {
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| rule(token_holder(), ports.app, &["GET"], &["/public/*"])).await;
    for line in ["GET /secret HTTP/1.1", "POST /public/a HTTP/1.1", "OPTIONS * HTTP/1.1"] {
        let response = mesh.send(mesh.head(line, "Content-Length: 4\r\n") + "body").await;
        assert_detail(&response, 403, "Refused by the sandbox policy of alpha.", line);
        assert_eq!(field(&response, "retry-after").len(), 0, "{response}");
    }
    mesh.app.assert_untouched("refused");
}

#[tokio::test]
async fn a_gate_or_a_router_that_is_not_ready_is_503_and_says_when_to_come_again() {
    let assert_not_ready = |response: &str, text: &str| {
        assert_detail(response, 503, text, "not ready");
        assert_eq!(field(response, "retry-after"), ["1"], "{response}");
    };
    let mesh = polite().await;
    // On a new connection and on one that served before.
    let mut kept = TcpStream::connect(mesh.router).await.unwrap();
    let head = mesh.head("GET / HTTP/1.1", "");
    kept.write_all(head.replace("Connection: close\r\n", "").as_bytes())
        .await
        .unwrap();
    assert_eq!(status(&read_until(&mut kept, b"hello").await), 200);
    mesh.app.take_only_request();
    mesh.forget_policy();
    assert_not_ready(&exchange(kept, &head, false).await, NOT_READY);
    assert_not_ready(&mesh.send(&head).await, NOT_READY);
    mesh.app.assert_untouched("no policy");

    let mesh = polite().await;
    mesh.forget_router_identity();
    // No gate is to blame.
    let text = "The router has no valid identity.";
    assert_not_ready(&mesh.send(mesh.head("GET / HTTP/1.1", "")).await, text);
    mesh.app.assert_untouched("no identity");

    let mesh = polite().await;
    tokio::spawn(mesh.gate_memory.clone().watch(0, || 1));
    while !mesh.gate_memory.is_exhausted() {
        tokio::task::yield_now().await;
    }
    let text = "The sandbox gate is short of memory; try again.";
    assert_not_ready(&mesh.send(mesh.head("GET / HTTP/1.1", "")).await, text);
    mesh.app.assert_untouched("no memory");
}

#[tokio::test]
async fn a_gate_of_another_sandbox_or_another_authority_is_502() {
    let mesh = polite().await;
    let stranger = polite().await;
    let other_pod = "11111111-2222-4333-8444-555555555555";
    let to_stranger = format!("--sandbox-endpoint=default/alpha=127.0.0.1:{}", stranger.ports.mesh);
    for (context, router, id) in [
        ("another name", mesh.another_router("default/beta", POD_UID), "beta"),
        ("another pod", mesh.another_router("default/alpha", other_pod), "alpha"),
        ("another authority", mesh.run_router(&[&to_stranger]), "alpha"),
    ] {
        let head = mesh
            .head("GET / HTTP/1.1", "")
            .replace("ID: alpha", &format!("ID: {id}"));
        let text = format!("Could not connect to the backend sandbox: {id}");
        assert_detail(&send(router, head).await, 502, &text, context);
        mesh.app.assert_untouched(context);
        stranger.app.assert_untouched(context);
    }
}

/// Sends a request to the gate as its router does.
async fn to_gate(mesh: &Mesh, request: &str) -> String {
    let leaf = mesh.authority.router(&ROUTER.parse().unwrap()).unwrap();
    let token = format!("Authorization: Bearer {TOKEN}");
    let asserted = request.replace(&token, "X-Sandgate-Caller: v1;static;default");
    mesh.send_to_gate(Some(&leaf), asserted).await
}

#[tokio::test]
async fn connect_is_405() {
    let mesh = polite().await;
    let text = "CONNECT is not supported.";
    for target in ["127.0.0.1:80", "sandbox.example:443"] {
        let head = mesh.head(&format!("CONNECT {target} HTTP/1.1"), "");
        for router in mesh.run_both(&[]) {
            let response = send(router, &head).await;
            assert_detail(&response, 405, text, target);
            assert!(!field(&response, "allow").join(",").contains("CONNECT"), "{response}");
        }
        assert_eq!(status(&to_gate(&mesh, &head).await), 405);
    }
    mesh.app.assert_untouched("CONNECT");
}

/// A request whose head has this many bytes, this many header lines and a target of this length, where they are more
/// than it has anyway.
fn sized_head(mesh: &Mesh, [bytes, lines, target]: [usize; 3]) -> String {
    let target = "t".repeat(target.saturating_sub(1));
    let head = |fields: &str| mesh.head(&format!("GET /{target} HTTP/1.1"), fields);
    let usual_lines = head("").matches("\r\n").count() - 2;
    let mut fields = "a: b\r\n".repeat(lines.saturating_sub(usual_lines));
    if let Some(padding @ 1..) = bytes.checked_sub(head(&fields).len() + "p: \r\n".len()) {
        fields += &["p: ", &"p".repeat(padding), "\r\n"].concat();
    }
    head(&fields)
}

#[tokio::test]
async fn heads_over_a_cap_are_431_and_targets_414_at_the_router_and_at_the_gate() {
    let mesh = polite().await;
    let caps = Limits::default();
    assert_eq!(
        (caps.head_bytes, caps.headers, caps.target_bytes),
        (60 * 1024, 100, 8 * 1024)
    );
    let [gated, plain] = mesh.run_both(&[]);
    let workload = mesh
        .authority
        .issue(&LeafSpec::new("worker", WORKLOAD, Usage::Client))
        .unwrap();
    for (cap, code, over, violation) in [
        ([caps.head_bytes, 0, 0], 431, [1, 0, 0], Violation::HeadTooLarge),
        ([0, caps.headers, 0], 431, [0, 1, 0], Violation::TooManyHeaders),
        ([0, 0, caps.target_bytes], 414, [0, 0, 1], Violation::TargetTooLong),
    ] {
        let text = violation.detail();
        let fitting = sized_head(&mesh, cap);
        let over = sized_head(&mesh, std::array::from_fn(|index| cap[index] + over[index]));
        for router in [gated, plain] {
            assert_detail(&send(router, &over).await, code, text, text);
        }
        // A caller of its own, or the router would be the first to refuse. At the cap it is policy that does.
        let response = mesh.send_to_gate(Some(&workload), &over).await;
        assert!(
            status(&response) == code && response.contains(text),
            "{text}: {response}"
        );
        assert_eq!(
            status(&mesh.send_to_gate(Some(&workload), &fitting).await),
            403,
            "{text}"
        );
        mesh.app.assert_untouched(text);
        let response = send(plain, &fitting).await;
        assert_eq!(status(&response), 200, "{text}: {response}");
        mesh.app.take_only_request();
    }
}
