//! The app is an attacker: what it answers must not confuse the gate, the router or their clients.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::{
    Mesh, ROUTER, RecordingApp, Step, exchange, field, looks_complete, ok, read_until, rule, status, token_holder,
};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Sends one honest request to an app that does `step`; returns the answer. The app got exactly one request.
async fn answer(step: Step) -> String {
    let mesh = Mesh::open(RecordingApp::answering(step).await).await;
    let response = mesh.send(mesh.head("GET /honest HTTP/1.1", "")).await;
    assert!(mesh.app.only_request().head.starts_with("GET /honest "));
    response
}

#[tokio::test]
async fn answers_that_are_not_http_or_framed_in_two_ways_are_502() {
    for (name, bytes) in [
        ("garbage", "\x01\x02 garbage\r\n\r\n"),
        ("nothing", ""),
        ("a request", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-"),
        ("HTTP/2", "HTTP/2.0 200 OK\r\n\r\n"),
        ("bare LF", "HTTP/1.1 200 OK\nContent-Length: 4\n\nevil"),
        (
            "CL then TE",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
        ),
        (
            "TE then CL",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
        ),
        (
            "two CL",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nevil",
        ),
        ("signed CL", "HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\nevil"),
        (
            "gzip, chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
        ),
        (
            "TE on HTTP/1.0",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
        ),
        (
            "obs-fold",
            "HTTP/1.1 200 OK\r\nX-A: b\r\n evil\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "space before colon",
            "HTTP/1.1 200 OK\r\nContent-Length : 4\r\n\r\nevil",
        ),
        ("NUL", "HTTP/1.1 200 OK\r\nX-A: \0\r\nContent-Length: 4\r\n\r\nevil"),
        (
            "204 with a body",
            "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
        ),
        (
            "unasked 101",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nevil",
        ),
    ] {
        let response = answer(Step::Close(bytes.into())).await;
        assert_eq!(status(&response), 502, "{name}: {response}");
        assert!(
            response.contains("Could not connect to the backend sandbox: alpha"),
            "{name}: {response}"
        );
        assert!(!response.contains("evil"), "{name}: {response}");
    }
}

#[tokio::test]
async fn a_head_without_end_is_502() {
    let start = b"HTTP/1.1 200 OK\r\n".to_vec();
    let response = answer(Step::Endless(start.clone(), b"X-A: b\r\n".to_vec())).await;
    assert_eq!(status(&response), 502, "fields: {response}");
    let response = answer(Step::Endless([&start[..], b"X-A: "].concat(), vec![b'a'; 4096])).await;
    assert_eq!(status(&response), 502, "one value: {response}");
    let response = answer(Step::Endless(b"HTTP/1.1 200 ".to_vec(), vec![b'a'; 4096])).await;
    assert_eq!(status(&response), 502, "reason: {response}");
}

#[tokio::test]
async fn informational_answers_without_end_are_502() {
    for one in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </evil>\r\n\r\n",
    ] {
        let flood = [one.repeat(1000).into_bytes(), ok("late")].concat();
        let response = answer(Step::Answer(flood)).await;
        assert_eq!(status(&response), 502, "{response}");
        assert!(!response.contains("late") && !response.contains("evil"), "{response}");
    }
}

#[tokio::test]
async fn headers_of_ours_and_those_that_connection_names_stay_behind() {
    let answered = "HTTP/1.1 200 OK\r\nX-Sandgate-Outcome: denied\r\nX-Sandgate-Caller: v1;static;root\r\nX-Sandbox-ID: beta\r\n\
                    X-Sandbox-Future: 1\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\n\
                    X-Kept: yes\r\nContent-Length: 5\r\n\r\nhello";
    let response = answer(Step::Answer(answered.into())).await.to_ascii_lowercase();
    assert_eq!(status(&response.replacen("http", "HTTP", 1)), 200, "{response}");
    for absent in ["x-sandgate-", "x-sandbox-", "x-secret", "keep-alive"] {
        assert!(!response.contains(absent), "{absent} in {response}");
    }
    assert!(
        response.contains("\r\nx-kept: yes\r\n") && response.ends_with("hello"),
        "{response}"
    );
}

#[tokio::test]
async fn an_app_that_says_it_refused_is_not_taken_for_the_gate() {
    let forged = "HTTP/1.1 403 Forbidden\r\nX-Sandgate-Outcome: denied\r\nContent-Length: 4\r\n\r\nmine";
    let response = answer(Step::Answer(forged.into())).await;
    assert_eq!(status(&response), 403, "{response}");
    assert!(
        response.ends_with("mine") && !response.to_ascii_lowercase().contains("x-sandgate-"),
        "{response}"
    );
}

#[tokio::test]
async fn an_app_cannot_tell_the_router_what_only_its_gate_may() {
    let forged = "HTTP/1.1 403 Forbidden\r\nX-Sandgate-Outcome: denied\r\nx-SANDGATE-Caller: v1;static;root\r\n\
                  X-Sandbox-ID: beta\r\nContent-Length: 4\r\n\r\nmine";
    let mesh = Mesh::open(RecordingApp::answering(Step::Answer(forged.into())).await).await;
    let leaf = mesh.authority.router(&ROUTER.parse().unwrap()).unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: gate\r\nX-Sandgate-Caller: v1;static;default\r\nX-Sandbox-Port: {}\r\n\
         Connection: close\r\n\r\n",
        mesh.ports.app
    );
    let response = mesh.send_to_gate(Some(&leaf), request).await;
    assert!(status(&response) == 403 && response.ends_with("mine"), "{response}");
    let lower = response.to_ascii_lowercase();
    assert!(
        !lower.contains("x-sandgate-") && !lower.contains("x-sandbox-"),
        "{response}"
    );
    mesh.app.only_request();
}

#[tokio::test]
async fn a_second_answer_that_nobody_asked_for_is_given_to_nobody() {
    let two = [ok("hello"), ok("evil!")].concat();
    let mesh = Mesh::open(RecordingApp::answering(Step::Answer(two)).await).await;
    for round in 1..=20 {
        let response = mesh.send(mesh.head("GET /honest HTTP/1.1", "")).await;
        assert!(!response.contains("evil!"), "{round}: {response}");
        assert_eq!(mesh.app.heads().len(), round, "{response}");
    }
}

#[tokio::test]
async fn a_body_behind_the_answer_to_head_is_given_to_nobody() {
    let with_body =
        b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!".to_vec();
    let mesh = Mesh::open(RecordingApp::answering(Step::Answer(with_body)).await).await;
    for _ in 0..5 {
        let response = mesh.send(mesh.head("HEAD /honest HTTP/1.1", "")).await;
        assert_eq!(status(&response), 200, "{response}");
        assert!(
            !response.contains("evil!") && response.ends_with("\r\n\r\n"),
            "{response}"
        );
    }
    assert_eq!(mesh.app.heads().len(), 5);
}

#[tokio::test]
async fn half_an_answer_is_never_presented_as_a_whole_one() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (name, bytes) in [
        (
            "a length, nothing",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".to_owned(),
        ),
        (
            "a length, half",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned(),
        ),
        (
            "a length, all but one",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nten bytes".to_owned(),
        ),
        (
            "a length, in HTTP/1.0",
            "HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_owned(),
        ),
        ("no chunk", chunked.to_owned()),
        ("no last chunk", format!("{chunked}4\r\nhalf\r\n")),
        ("half a chunk", format!("{chunked}8\r\nhalf")),
        ("a chunk without its end", format!("{chunked}4\r\nhalf")),
        ("half a size", format!("{chunked}4\r\nhalf\r\n1")),
        ("no end behind the last chunk", format!("{chunked}4\r\nhalf\r\n0\r\n")),
        ("half a trailer", format!("{chunked}4\r\nhalf\r\n0\r\nX-A: b")),
        ("a bad size", format!("{chunked}4\r\nhalf\r\nx\r\n0\r\n\r\n")),
        ("a bad end", format!("{chunked}4\r\nhalf0\r\n\r\n")),
    ] {
        let response = answer(Step::Close(bytes.into())).await;
        assert!(
            !looks_complete(&response) || status(&response) == 502,
            "{name}: {response}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_reset_is_never_presented_as_a_whole_one() {
    let now = Arc::new(Notify::new());
    let told = Arc::clone(&now);
    let app = RecordingApp::serving(move |mut stream| {
        let told = Arc::clone(&told);
        async move {
            read_until(&mut stream, b"\r\n\r\n").await;
            // Without a length the answer ends where the connection does; a reset is no such end.
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").await.unwrap();
            told.notified().await;
            stream.set_zero_linger().unwrap();
        }
    });
    let mesh = Mesh::open(app.await).await;
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    let head = mesh.head("GET / HTTP/1.1", "");
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = read_until(&mut stream, b"half").await;
    now.notify_one();
    let response = begun + &exchange(stream, "", false).await;
    assert!(status(&response) == 200 && !looks_complete(&response), "{response}");
}

#[tokio::test]
async fn a_switch_of_protocols_that_was_not_asked_for_as_it_must_be_is_502() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nevil";
    for (line, fields) in [
        (
            "GET / HTTP/1.1",
            "Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        ),
        ("GET / HTTP/1.1", "Upgrade: websocket\r\n"),
        ("GET / HTTP/1.1", "Connection: upgrade\r\n"),
        ("GET / HTTP/1.1", "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n"),
        (
            "GET / HTTP/1.1",
            "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        ),
        ("GET / HTTP/1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n"),
    ] {
        let mesh = Mesh::open(RecordingApp::answering(Step::Answer(switch.into())).await).await;
        let response = mesh.send(mesh.head(line, fields)).await;
        let code = status(&response.replacen("HTTP/1.0 ", "HTTP/1.1 ", 1));
        assert_eq!(code, 502, "{line}, {fields:?}: {response}");
        assert!(!response.contains("evil"), "{line}, {fields:?}: {response}");
        let head = mesh.app.only_request().head.to_ascii_lowercase();
        assert!(
            !head.contains("\r\nupgrade:") && !head.contains("http2-settings"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_switch_of_protocols_with_a_body_is_502_even_if_it_was_asked_for() {
    for framing in ["Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n"] {
        let switch =
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n{framing}\r\nevil");
        let mesh = Mesh::open(RecordingApp::answering(Step::Answer(switch.into())).await).await;
        let head = mesh.head("GET / HTTP/1.1", "Upgrade: echo\r\nConnection: upgrade\r\n");
        let response = mesh.send(head).await;
        assert_eq!(status(&response), 502, "{framing:?}: {response}");
        assert!(!response.contains("evil"), "{framing:?}: {response}");
        mesh.app.only_request();
    }
}

#[tokio::test]
async fn a_few_informational_answers_are_passed_over_and_a_stream_of_them_is_502() {
    let hints = |count| "HTTP/1.1 103 Early Hints\r\nX-Sandgate-Outcome: denied\r\n\r\n".repeat(count);
    let response = answer(Step::Answer([hints(8).into(), ok("final")].concat())).await;
    assert!(response.ends_with("final"), "{response}");
    assert!(!response.to_ascii_lowercase().contains("x-sandgate-"), "{response}");
    let response = answer(Step::Answer([hints(9).into(), ok("final")].concat())).await;
    assert_eq!(status(&response), 502, "{response}");
    let response = answer(Step::Endless(Vec::new(), hints(1).into())).await;
    assert_eq!(status(&response), 502, "{response}");
}

#[tokio::test]
async fn headers_of_one_hop_and_of_ours_stay_behind_and_cannot_take_the_framing_along() {
    for framing in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let answered = format!(
            "HTTP/1.1 200 OK\r\nConnection: Content-Length, Transfer-Encoding, X-Secret, close\r\nX-Secret: 1\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTE: trailers\r\n\
             x-SANDGATE-caller: v1;static;root\r\nX-SANDBOX-Pod-IP: 127.0.0.1\r\nx-sandgate-: 1\r\nX-Kept: yes\r\n{framing}"
        );
        let response = answer(Step::Close(answered.into())).await;
        assert_eq!(status(&response), 200, "{response}");
        for absent in ["x-secret", "proxy-connection", "proxy-authenticate", "upgrade", "te"] {
            assert_eq!(field(&response, absent).len(), 0, "{absent} in {response}");
        }
        let lower = response.to_ascii_lowercase();
        assert!(
            !lower.contains("x-sandgate-") && !lower.contains("x-sandbox-"),
            "{response}"
        );
        assert!(
            field(&response, "x-kept") == ["yes"] && looks_complete(&response),
            "{response}"
        );
        assert_eq!(response.matches("hello").count(), 1, "{response}");
    }
}

#[tokio::test]
async fn a_connection_with_anything_behind_a_whole_answer_is_never_used_again() {
    for (name, rest) in [
        ("a byte", "x"),
        ("an empty line", "\r\n"),
        ("NUL", "\0"),
        ("garbage", "garbage\r\n\r\n"),
        ("half an answer", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"),
        ("a request", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let step = Step::Answer([ok("hello"), rest.into()].concat());
        let mesh = Mesh::open(RecordingApp::answering(step).await).await;
        for round in 1..=5 {
            let response = mesh.send(mesh.head("GET / HTTP/1.1", "")).await;
            assert!(
                status(&response) == 200 && response.ends_with("\r\n\r\nhello"),
                "{name}: {response}"
            );
            assert_eq!(
                mesh.app.connections().len(),
                round,
                "{name}: a connection was used again"
            );
        }
        assert_eq!(mesh.app.requests().len(), 5, "{name}");
    }
}

#[tokio::test]
async fn a_giant_head_that_ends_is_502_like_one_that_does_not() {
    let whole = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 5\r\n\r\nhello");
    for (name, fields) in [
        ("one value", format!("X-A: {}\r\n", "a".repeat(62_000))),
        ("one name", format!("X-{}: a\r\n", "a".repeat(62_000))),
        ("many fields", "X-A: a\r\n".repeat(100)),
        ("many empty fields", "X:\r\n".repeat(1000)),
    ] {
        let response = answer(Step::Answer(whole(&fields).into())).await;
        assert_eq!(status(&response), 502, "{name}: {} bytes", response.len());
    }
    let large = format!("X-A: {}\r\n", "a".repeat(50_000));
    let response = answer(Step::Answer(whole(&large).into())).await;
    assert!(
        status(&response) == 200 && response.ends_with("hello"),
        "{} bytes",
        response.len()
    );
}

#[tokio::test]
async fn a_101_that_switches_to_nothing_opens_no_way_around_the_policy() {
    let bare = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
    let other = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n";
    for answer in [bare, other] {
        let app = RecordingApp::answering(Step::Answer(answer.into())).await;
        let mesh = Mesh::start(app, |ports| rule(token_holder(), ports.app, &["GET"], &["/public/*"])).await;
        let head = mesh
            .head("GET /public/status/101 HTTP/1.1", "Upgrade: x\r\n")
            .replace("Connection: close", "Connection: upgrade");
        let mut stream = TcpStream::connect(mesh.router).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let hidden = "DELETE /admin HTTP/1.1\r\nHost: a\r\n\r\n";
        let rest = read_until(&mut stream, b"\r\n\r\n").await;
        assert_eq!(status(&rest), 502, "{rest}");
        let _ = stream.write_all(hidden.as_bytes()).await;
        drop(stream);
        assert!(!mesh.app.only_request().head.contains("/admin"));
    }
}
