//! The app is an attacker: what it answers must not confuse the gate, the router or their clients.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::{Mesh, RecordingApp, Step, ok, status};

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
