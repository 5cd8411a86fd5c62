//! What an honest request meets on its way through router, gate and app, and what a refused one doesn't reach.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_mesh::policy::model::{DefaultPolicy, Source};
use sandgate_tests::{Mesh, RecordingApp, Step, TOKEN, default_policy, field, read_until, rule, status, token_holder};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn an_allowed_request_arrives_once_and_without_credentials_or_routing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let head = mesh.head(
        "GET /page?q=1 HTTP/1.1",
        "X-Sandbox-Future: 1\r\nX-Sandgate-Future: 1\r\nX-Kept: yes\r\n",
    );
    let response = mesh.send(head).await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(response.ends_with("hello"), "{response}");
    let request = mesh.app.only_request();
    let head = request.head.to_ascii_lowercase();
    assert!(head.starts_with("get /page?q=1 http/1.1\r\n"), "{head}");
    for absent in ["\r\nauthorization:", "x-sandbox-", "x-sandgate-", TOKEN] {
        assert!(!head.contains(absent), "{absent} in {head}");
    }
    assert_eq!(field(&head, "host"), [format!("127.0.0.1:{}", mesh.ports.app)]);
    assert_eq!(field(&head, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(field(&head, "x-forwarded-host"), ["sandbox.example"]);
    assert_eq!(field(&head, "x-request-id").len(), 1, "{head}");
    assert_eq!(field(&head, "x-kept"), ["yes"]);
}

#[tokio::test]
async fn encoded_separators_and_dots_arrive_as_they_were_written() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for target in [
        "/a%2Fb",
        "/a/%2E%2E/b",
        "/a/../b",
        "//a",
        "/a;b=%00",
        "/%ff?x=%2F&y=?",
        "/?",
        "/a%2fb%5C..",
    ] {
        let response = mesh.send(mesh.head(&format!("GET {target} HTTP/1.1"), "")).await;
        assert_eq!(status(&response), 200, "{target}: {response}");
        let last = mesh.app.heads().pop().unwrap();
        assert!(
            last.starts_with(&format!("GET {target} HTTP/1.1\r\n")),
            "{target}: {last}"
        );
    }
    assert_eq!(mesh.app.heads().len(), 8);
}

#[tokio::test]
async fn what_the_policy_does_not_allow_is_403_and_the_app_hears_nothing() {
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| rule(token_holder(), ports.app, &["GET"], &["/public/*"])).await;
    for line in [
        "GET /private HTTP/1.1",
        "DELETE /public/page HTTP/1.1",
        "GET / HTTP/1.1",
    ] {
        let response = mesh.send(mesh.head(line, "")).await;
        assert_eq!(status(&response), 403, "{line}: {response}");
        assert!(
            response.contains("Refused by the sandbox policy of alpha."),
            "{response}"
        );
    }
    for line in [
        "GET /public/../private HTTP/1.1",
        "GET /public/%2e%2e/private HTTP/1.1",
        "GET /public%2F..%2Fprivate HTTP/1.1",
    ] {
        let response = mesh.send(mesh.head(line, "")).await;
        assert_eq!(status(&response), 400, "{line}: {response}");
    }
    mesh.app.assert_untouched("denied");
    assert_eq!(
        status(&mesh.send(mesh.head("GET /public/page HTTP/1.1", "")).await),
        200
    );
    mesh.app.only_request();
}

#[tokio::test]
async fn no_token_and_a_wrong_token_are_401_and_the_app_hears_nothing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let good = mesh.head("GET / HTTP/1.1", "");
    let line = format!("Authorization: Bearer {TOKEN}\r\n");
    assert!(good.contains(&line));
    for other in [
        String::new(),
        "Authorization: Bearer wrong\r\n".into(),
        "Authorization: Bearer \r\n".into(),
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        format!("Authorization: Basic {TOKEN}\r\n"),
        format!("Authorization: {TOKEN}\r\n"),
        format!("Proxy-Authorization: Bearer {TOKEN}\r\n"),
    ] {
        let response = mesh.send(good.replace(&line, &other)).await;
        assert_eq!(status(&response), 401, "{other:?}: {response}");
        assert!(
            response.to_ascii_lowercase().contains("\r\nwww-authenticate: bearer"),
            "{response}"
        );
    }
    mesh.app.assert_untouched("unauthenticated");
}

#[tokio::test]
async fn a_routing_header_that_occurs_twice_is_400_and_the_app_hears_nothing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for field in [
        "X-Sandbox-ID: alpha",
        "x-sandbox-id: beta",
        "X-Sandbox-Port: 1",
        "X-Sandbox-Namespace: default\r\nX-Sandbox-Namespace: other",
    ] {
        let response = mesh.send(mesh.head("GET / HTTP/1.1", &format!("{field}\r\n"))).await;
        assert_eq!(status(&response), 400, "{field}: {response}");
        assert!(response.contains("Duplicate X-Sandbox-"), "{response}");
    }
    mesh.app.assert_untouched("duplicate");
}

#[tokio::test]
async fn a_caller_that_a_client_asserts_is_not_believed() {
    let somebody = Source {
        users: Some(vec!["static:root".into()]),
        ..Source::default()
    };
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| rule(somebody, ports.app, &[], &[])).await;
    let forged = mesh.head("GET / HTTP/1.1", "X-Sandgate-Caller: v1;static;root\r\n");
    assert_eq!(status(&mesh.send(&forged).await), 403);
    let named = forged.replace(
        "Connection: close",
        "Connection: close, x-sandgate-caller, x-sandbox-port",
    );
    assert_eq!(status(&mesh.send(named).await), 403);
    mesh.app.assert_untouched("forged");
}

#[tokio::test]
async fn a_forged_assertion_beside_a_good_token_neither_helps_nor_arrives() {
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| rule(token_holder(), ports.app, &[], &[])).await;
    let forged = mesh.head(
        "GET / HTTP/1.1",
        "X-Sandgate-Caller: v1;anonymous\r\nX-Sandgate-Caller: v1;static;root\r\n",
    );
    assert_eq!(status(&mesh.send(forged).await), 200);
    let head = mesh.app.only_request().head.to_ascii_lowercase();
    assert!(!head.contains("sandgate-caller") && !head.contains("v1;"), "{head}");
}

#[tokio::test]
async fn an_app_that_does_not_listen_is_502_in_the_words_clients_know() {
    // Bound and not listening: nobody else gets the port, and nobody answers there.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let down = socket.local_addr().unwrap().port();
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| {
        default_policy(DefaultPolicy::Authenticated, vec![ports.app, down])
    })
    .await;
    let response = mesh.send(to_port(&mesh, down)).await;
    assert_eq!(status(&response), 502, "{response}");
    assert!(
        response.contains("Could not connect to the backend sandbox: alpha"),
        "{response}"
    );
    mesh.app.assert_untouched("another port");
}

fn to_port(mesh: &Mesh, port: u16) -> String {
    let own = format!("X-Sandbox-Port: {}\r\n", mesh.ports.app);
    mesh.head("GET / HTTP/1.1", "")
        .replace(&own, &format!("X-Sandbox-Port: {port}\r\n"))
}

#[tokio::test]
async fn the_gates_own_ports_are_refused_even_if_a_policy_allows_them() {
    let everybody = |ports: sandgate_tests::Ports| {
        default_policy(DefaultPolicy::Anonymous, vec![ports.app, ports.mesh, ports.health])
    };
    let mesh = Mesh::start(RecordingApp::polite().await, everybody).await;
    for port in [mesh.ports.mesh, mesh.ports.health] {
        let response = mesh.send(to_port(&mesh, port)).await;
        assert_eq!(status(&response), 403, "{response}");
    }
    assert_eq!(mesh.health.connections().len(), 0);
    mesh.app.assert_untouched("own ports");
    assert_eq!(status(&mesh.send(to_port(&mesh, mesh.ports.app)).await), 200);
}

#[tokio::test]
async fn a_chunked_upload_arrives_whole() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let mut upload = mesh
        .head("POST /up HTTP/1.1", "Transfer-Encoding: chunked\r\n")
        .into_bytes();
    let data: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for chunk in data.chunks(7_001) {
        upload.extend_from_slice(format!("{:x};ext=1\r\n", chunk.len()).as_bytes());
        upload.extend_from_slice(chunk);
        upload.extend_from_slice(b"\r\n");
    }
    upload.extend_from_slice(b"0\r\n\r\n");
    let response = mesh.send(upload).await;
    assert_eq!(status(&response), 200, "{response}");
    let request = mesh.app.only_request();
    assert!(request.complete && request.data() == data, "{}", request.head);
}

#[tokio::test]
async fn a_truncated_upload_never_looks_complete_to_the_app() {
    for (fields, body) in [
        ("Content-Length: 100\r\n", "ten bytes."),
        ("Transfer-Encoding: chunked\r\n", "a\r\nten bytes.\r\n"),
        ("Transfer-Encoding: chunked\r\n", "a\r\nten bytes.\r\n0\r\n"),
        ("Transfer-Encoding: chunked\r\n", "64\r\nten bytes."),
    ] {
        let mesh = Mesh::open(RecordingApp::polite().await).await;
        let response = mesh.send_and_stop(mesh.head("POST /up HTTP/1.1", fields) + body).await;
        assert_ne!(status(&response), 200, "{body:?}: {response}");
        let requests = mesh.app.requests();
        assert!(
            requests.len() <= 1 && requests.iter().all(|request| !request.complete),
            "{body:?}: {requests:?}"
        );
    }
}

#[tokio::test]
async fn a_body_that_the_app_breaks_off_does_not_look_complete_to_the_client() {
    let half = Step::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec());
    let mesh = Mesh::open(RecordingApp::answering(half).await).await;
    let response = mesh.send(mesh.head("GET / HTTP/1.1", "")).await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    assert!(
        status(&response) == 502 || field(head, "content-length") == ["100"] && body.len() < 100,
        "{response}"
    );
    mesh.app.only_request();

    let half = Step::Close(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec());
    let mesh = Mesh::open(RecordingApp::answering(half).await).await;
    let response = mesh.send(mesh.head("GET / HTTP/1.1", "")).await;
    assert!(
        status(&response) == 502 || !response.ends_with("0\r\n\r\n"),
        "{response}"
    );
    mesh.app.only_request();
}

#[tokio::test]
async fn an_upgrade_that_both_sides_want_tunnels_bytes_both_ways() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    let app = RecordingApp::start(move |bytes| match bytes {
        bytes if bytes.ends_with(b"\r\n\r\n") => Step::Answer(switch.into()),
        bytes if bytes.starts_with(b"ping") => Step::Answer([b"pong", bytes].concat()),
        _ => Step::Wait,
    });
    let mesh = Mesh::open(app.await).await;
    let head = mesh
        .head("GET /socket HTTP/1.1", "Upgrade: echo\r\n")
        .replace("Connection: close", "Connection: upgrade");
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, b"\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    stream
        .write_all(b"ping\r\n\0GET /not-a-request HTTP/1.1\r\n")
        .await
        .unwrap();
    let echoed = read_until(&mut stream, b"HTTP/1.1\r\n").await;
    assert_eq!(echoed, "pongping\r\n\0GET /not-a-request HTTP/1.1\r\n");
    let seen = mesh.app.connections();
    assert_eq!(seen.len(), 1);
    let head = String::from_utf8_lossy(&seen[0]).to_ascii_lowercase();
    assert_eq!(field(&head, "upgrade"), ["echo"]);
    assert!(
        !head.contains("authorization") && !head.contains("x-sandbox-"),
        "{head}"
    );
}
