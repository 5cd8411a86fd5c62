//! Requests that two readers could understand in two ways. The app must never see one that wasn't sent to it.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::{Mesh, RecordingApp, status};

/// A second request, complete with credentials: whoever takes it for one will serve it.
fn smuggled(mesh: &Mesh) -> String {
    mesh.head("GET /smuggled HTTP/1.1", "")
}

fn answers(response: &str) -> usize {
    response.matches("HTTP/1.1 ").count()
}

#[tokio::test]
async fn ambiguous_heads_are_400_the_connection_closes_and_the_app_hears_nothing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let post = |fields: &str| {
        mesh.head("POST / HTTP/1.1", fields)
            .replace("Connection: close\r\n", "")
    };
    let get = |line: &str, fields: &str| mesh.head(line, fields).replace("Connection: close\r\n", "");
    let plain = get("GET / HTTP/1.1", "");
    let table: Vec<(&str, String)> = vec![
        (
            "CL then TE",
            post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n",
        ),
        (
            "TE then CL",
            post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") + "0\r\n\r\n",
        ),
        ("two CL", post("Content-Length: 0\r\nContent-Length: 5\r\n") + "12345"),
        ("two CL in one", post("Content-Length: 0, 5\r\n") + "12345"),
        ("CL with plus", post("Content-Length: +5\r\n") + "12345"),
        ("CL with minus", post("Content-Length: -5\r\n") + "12345"),
        ("CL in hex", post("Content-Length: 0x5\r\n") + "12345"),
        (
            "CL too large",
            post("Content-Length: 18446744073709551621\r\n") + "12345",
        ),
        ("CL empty", post("Content-Length: \r\n") + "12345"),
        (
            "TE gzip, chunked",
            post("Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n",
        ),
        (
            "TE chunked twice",
            post("Transfer-Encoding: chunked, chunked\r\n") + "0\r\n\r\n",
        ),
        (
            "two TE",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n") + "0\r\n\r\n",
        ),
        ("TE identity", post("Transfer-Encoding: identity\r\n") + "0\r\n\r\n"),
        ("TE xchunked", post("Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n"),
        ("TE quoted", post("Transfer-Encoding: \"chunked\"\r\n") + "0\r\n\r\n"),
        (
            "TE with vertical tab",
            post("Transfer-Encoding: \x0bchunked\r\n") + "0\r\n\r\n",
        ),
        (
            "TE on HTTP/1.0",
            get("POST / HTTP/1.0", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n",
        ),
        ("bare LF", plain.replace("\r\n", "\n")),
        ("one bare LF", plain.replacen("\r\n", "\n", 1)),
        ("bare LF in a field", post("X-A: b\nContent-Length: 5\r\n")),
        ("bare CR in a field", post("X-A: b\rContent-Length: 5\r\n")),
        ("obs-fold", post("X-A: b\r\n Content-Length: 5\r\n")),
        ("obs-fold with tab", post("X-A: b\r\n\tc\r\n")),
        ("fold in the first field", plain.replacen("Host:", " Host:", 1)),
        ("space before colon", post("Content-Length : 5\r\n")),
        (
            "tab before colon",
            post("Transfer-Encoding\t: chunked\r\n") + "0\r\n\r\n",
        ),
        ("no colon", post("Content-Length 5\r\n")),
        ("empty name", post(": 5\r\n")),
        ("NUL in a value", post("X-A: b\0c\r\n")),
        ("NUL in a name", post("X-\0A: b\r\n")),
        ("underscored look-alike is no length", post("Content-Length: 1_0\r\n")),
        ("# in the target", get("GET /a#b HTTP/1.1", "")),
        ("space in the target", get("GET /a b HTTP/1.1", "")),
        ("tab in the request line", get("GET\t/ HTTP/1.1", "")),
        ("two spaces", get("GET  / HTTP/1.1", "")),
        ("HTTP/1.2", get("GET / HTTP/1.2", "")),
        ("HTTP/2.0", get("GET / HTTP/2.0", "")),
        ("no version", get("GET /", "")),
        ("no Host", plain.replace("Host: sandbox.example\r\n", "")),
        ("two Hosts", get("GET / HTTP/1.1", "Host: evil.example\r\n")),
    ];
    for (name, request) in table {
        let response = mesh.send(request + &smuggled(&mesh)).await;
        assert_eq!(status(&response), 400, "{name}: {response}");
        assert_eq!(answers(&response), 1, "{name}: {response}");
        mesh.app.assert_untouched(name);
    }
    let response = mesh.send(mesh.head("GET /honest HTTP/1.1", "")).await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(mesh.app.only_request().head.starts_with("GET /honest "));
}

#[tokio::test]
async fn badly_framed_chunks_never_become_a_request_nor_a_complete_body() {
    for (name, chunks) in [
        ("size overflow", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("size overflow, all ones", "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n"),
        ("negative", "-5\r\nhello\r\n0\r\n\r\n"),
        ("plus", "+5\r\nhello\r\n0\r\n\r\n"),
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("empty size", "\r\nhello\r\n0\r\n\r\n"),
        ("space in the size", "5 0\r\nhello\r\n0\r\n\r\n"),
        ("bare LF behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("bare CR behind the size", "5\rhello\r\n0\r\n\r\n"),
        ("no CRLF behind the data", "5\r\nhello0\r\n\r\n"),
        ("data longer than said", "3\r\nhello\r\n0\r\n\r\n"),
        ("LF behind the data", "5\r\nhello\n0\r\n\r\n"),
        ("LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("bare LF at the end", "5\r\nhello\r\n0\r\n\n"),
        ("bad trailer", "5\r\nhello\r\n0\r\nX-A : b\r\n\r\n"),
    ] {
        let mesh = Mesh::open(RecordingApp::polite().await).await;
        let head = mesh.head("POST /up HTTP/1.1", "Transfer-Encoding: chunked\r\n");
        let response = mesh
            .send(head.replace("Connection: close\r\n", "") + chunks + &smuggled(&mesh))
            .await;
        assert_eq!(status(&response), 400, "{name}: {response}");
        assert_eq!(answers(&response), 1, "{name}: {response}");
        let requests = mesh.app.requests();
        assert!(
            requests.len() <= 1 && requests.iter().all(|request| !request.complete),
            "{name}: {requests:?}"
        );
        let all = mesh.app.connections().concat();
        assert!(!String::from_utf8_lossy(&all).contains("/smuggled"), "{name}");
    }
}

#[tokio::test]
async fn a_request_hidden_in_a_body_stays_a_body() {
    for chunked in [false, true] {
        let mesh = Mesh::open(RecordingApp::polite().await).await;
        let hidden = smuggled(&mesh);
        let request = if chunked {
            let head = mesh.head("POST /up HTTP/1.1", "Transfer-Encoding: chunked\r\n");
            format!("{head}{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len())
        } else {
            mesh.head("POST /up HTTP/1.1", &format!("Content-Length: {}\r\n", hidden.len())) + &hidden
        };
        let response = mesh.send(request).await;
        assert_eq!((status(&response), answers(&response)), (200, 1), "{response}");
        let request = mesh.app.only_request();
        assert!(request.complete && request.data() == hidden.as_bytes(), "{request:?}");
    }
}

#[tokio::test]
async fn a_pipelined_request_needs_a_credential_of_its_own() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let first = mesh
        .head("GET /first HTTP/1.1", "")
        .replace("Connection: close\r\n", "");
    let second = smuggled(&mesh).replace(&format!("Authorization: Bearer {}\r\n", sandgate_tests::TOKEN), "");
    let response = mesh.send(first + &second).await;
    assert_eq!((status(&response), answers(&response)), (200, 2), "{response}");
    assert!(response.contains("HTTP/1.1 401 "), "{response}");
    assert!(mesh.app.only_request().head.starts_with("GET /first "));
}

#[tokio::test]
async fn the_authority_of_an_absolute_target_does_not_reach_the_app() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let response = mesh
        .send(mesh.head("GET http://evil.example/page?q HTTP/1.1", ""))
        .await;
    assert_eq!(status(&response), 200, "{response}");
    let head = mesh.app.only_request().head;
    assert!(head.starts_with("GET /page?q HTTP/1.1\r\n"), "{head}");
    assert!(!head.contains("evil.example"), "{head}");
}

#[tokio::test]
async fn the_smuggled_request_of_these_tests_is_served_where_it_is_really_sent() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let first = mesh
        .head("GET /first HTTP/1.1", "")
        .replace("Connection: close\r\n", "");
    let response = mesh.send(first + &smuggled(&mesh)).await;
    assert_eq!((status(&response), answers(&response)), (200, 2), "{response}");
    let heads = mesh.app.heads();
    assert_eq!(heads.len(), 2, "{heads:?}");
    assert!(heads.iter().any(|head| head.starts_with("GET /smuggled ")), "{heads:?}");
}
