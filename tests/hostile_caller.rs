//! The caller is an attacker: what it claims to be is not believed, and wherever it wants to get, it gets to the app or
//! nowhere. At the router, and at the gate for whoever holds a router's certificate.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_mesh::policy::model::{DefaultPolicy, Source};
use sandgate_tests::{
    Mesh, Ports, ROUTER, RecordingApp, Request, Step, TOKEN, default_policy, exchange, rule, status, token_holder,
};
use tokio::net::TcpStream;

/// What the token's holder would like to be.
const ROOT: &str = "static:root";

/// A mesh whose gate lets this user in and nobody else.
async fn only(user: &str) -> Mesh {
    let source = Source {
        users: Some(vec![user.into()]),
        ..Source::default()
    };
    Mesh::start(RecordingApp::polite().await, |ports| rule(source, ports.app, &[], &[])).await
}

/// Nothing of ours, and no credential, in anything that the app got.
fn assert_clean(request: &Request, context: &str) {
    let seen = request.head.to_ascii_lowercase() + &String::from_utf8_lossy(&request.body).to_ascii_lowercase();
    for absent in ["sandgate", "x-sandbox-", "authorization", "v1;", TOKEN] {
        assert!(!seen.contains(absent), "{context}: {absent} in {seen}");
    }
}

/// A request for the gate, as a router writes it.
fn to_gate(request_line: &str, port: impl std::fmt::Display, fields: &str) -> String {
    format!("{request_line}\r\nHost: gate\r\nX-Sandbox-Port: {port}\r\nConnection: close\r\n{fields}\r\n")
}

/// Sends a request to the gate with a router's certificate.
async fn as_router(mesh: &Mesh, bytes: impl AsRef<[u8]>) -> String {
    let leaf = mesh.authority.router(&ROUTER.parse().unwrap()).unwrap();
    mesh.send_to_gate(Some(&leaf), bytes).await
}

#[tokio::test]
async fn identity_headers_that_a_caller_forges_are_neither_believed_nor_passed_on_however_they_are_written() {
    let (closed, open) = (only(ROOT).await, only("static:default").await);
    for forged in [
        "X-Sandgate-Caller: v1;static;root\r\n",
        "x-SANDGATE-cALLER: v1;static;root\r\nX-SANDGATE-CALLER: v1;anonymous\r\n",
        "X-Sandgate-Caller:\tv1;static;root \r\n",
        "X-Sandgate-Caller: v1;static;root\r\nConnection: X-Sandgate-Caller\r\n",
        "Connection: x-sandgate-caller, X-SANDGATE-Outcome, x-sandbox-port\r\n",
        "X-Sandgate-Outcome: denied\r\nX-SandGate-OutCome: not-ready\r\n",
        "x-sandgate-router: 1\r\nX-SANDGATE-: 1\r\nX-Sandgate-Caller-Groups: v1;system:masters\r\n",
    ] {
        let response = closed.send(closed.head("GET / HTTP/1.1", forged)).await;
        assert_eq!(status(&response), 403, "{forged:?}: {response}");
        closed.app.assert_untouched(forged);
        let response = open.send(open.head("GET / HTTP/1.1", forged)).await;
        assert_eq!(status(&response), 200, "{forged:?}: {response}");
        assert_clean(open.app.requests().last().unwrap(), forged);
    }
}

#[tokio::test]
async fn identity_headers_forged_as_trailers_are_neither_believed_nor_passed_on() {
    let chunks = "2\r\nup\r\n0\r\nx-SANDGATE-Caller: v1;static;root\r\nX-Sandgate-Outcome: denied\r\nX-Sandbox-ID: beta\r\n\
                  X-Forwarded-For: 10.0.0.1\r\nAuthorization: Bearer x\r\nX-Kept: yes\r\n\r\n";
    let fields = "Transfer-Encoding: chunked\r\nTrailer: X-Sandgate-Caller, X-Kept\r\n";
    let closed = only(ROOT).await;
    let response = closed.send(closed.head("POST / HTTP/1.1", fields) + chunks).await;
    assert_eq!(status(&response), 403, "{response}");
    let response = as_router(&closed, to_gate("POST / HTTP/1.1", closed.ports.app, fields) + chunks).await;
    assert_eq!(status(&response), 400, "{response}");
    closed.app.assert_untouched("asserted in a trailer");

    let open = only("static:default").await;
    let response = open.send(open.head("POST / HTTP/1.1", fields) + chunks).await;
    assert_eq!(status(&response), 200, "{response}");
    let asserted = format!("X-Sandgate-Caller: v1;static;default\r\n{fields}");
    let response = as_router(&open, to_gate("POST / HTTP/1.1", open.ports.app, &asserted) + chunks).await;
    assert_eq!(status(&response), 200, "{response}");
    for request in open.app.requests() {
        assert_clean(&request, "trailers");
        let body = String::from_utf8(request.body).unwrap().to_ascii_lowercase();
        assert!(body.ends_with("0\r\nx-kept: yes\r\n\r\n"), "{body}");
    }
    assert_eq!(open.app.requests().len(), 2);
}

#[tokio::test]
async fn at_the_gate_an_assertion_is_one_value_of_one_header_and_never_reaches_the_app() {
    let mesh = only("static:default").await;
    for fields in [
        "X-Sandgate-Caller: v1;static;default\r\nx-SANDGATE-caller: v1;static;root\r\n",
        "X-Sandgate-Caller: v1;static;default, v1;static;root\r\n",
        "X-Sandgate-Caller: v1;static;default,\r\n",
        "X-Sandgate-Caller: v1;static;default;\r\n",
        "X-Sandgate-Caller: V1;static;default\r\n",
        "X_Sandgate_Caller: v1;static;default\r\n",
        "X-Sandgate-Callers: v1;static;default\r\n",
    ] {
        let response = as_router(&mesh, to_gate("GET / HTTP/1.1", mesh.ports.app, fields)).await;
        assert_eq!(status(&response), 400, "{fields:?}: {response}");
        mesh.app.assert_untouched(fields);
    }
    for more in [
        "Connection: X-Sandgate-Caller\r\n",
        "X-Sandgate-Outcome: denied\r\nX-Sandgate-Other: 1\r\nX-Sandbox-ID: beta\r\nAuthorization: Bearer x\r\n",
    ] {
        let fields = format!("x-SandGate-CALLER: v1;static;default\r\n{more}");
        let response = as_router(&mesh, to_gate("GET / HTTP/1.1", mesh.ports.app, &fields)).await;
        assert_eq!(status(&response), 200, "{fields:?}: {response}");
        assert_clean(mesh.app.requests().last().unwrap(), &fields);
    }
}

/// Addresses that lead to this machine, or would on some machine, in spellings that some program reads so.
const HINTS: [&str; 28] = [
    "127.0.0.1",
    "127.1",
    "127.255.255.254",
    "0.0.0.0",
    "0",
    "127.0.0.1.",
    "0127.0.0.1",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "2130706433",
    "::1",
    "0:0:0:0:0:0:0:1",
    "[::1]",
    "::",
    "::ffff:127.0.0.1",
    "::FFFF:7f00:0001",
    "::ffff:0.0.0.0",
    "localhost",
    "127.0.0.1:80",
    "127.0.0.1/32",
    "127.0.0.1,127.0.0.1",
    "127.0.0.1@10.0.0.7",
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "fe80::1",
    "fe80::1%lo",
    "127.0.0.1%00",
];

#[tokio::test]
async fn a_hint_at_this_machine_is_never_dialed_however_it_is_written() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let reached = RecordingApp::start(|_| Step::Close(Vec::new())).await;
    // Without gates the port that is dialed is the caller's to choose: the easiest way to somebody else's listener.
    let flags = ["--mesh=off", "--upstream-max-retries=0"];
    let router = mesh.run_router(&flags);
    let ask = |ip: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: unknown\r\nX-Sandbox-Port: {}\r\n\
             X-Sandbox-Pod-IP: {ip}\r\nConnection: close\r\n\r\n",
            reached.port()
        )
    };
    for ip in HINTS {
        let response = exchange(TcpStream::connect(router).await.unwrap(), ask(ip), false).await;
        assert_eq!(status(&response), 400, "{ip}: {response}");
        assert!(response.contains("Invalid target IP address."), "{ip}: {response}");
        assert_eq!(reached.connections().len(), 0, "{ip}");
    }
    mesh.app.assert_untouched("hints");

    // Where an operator allows it, the same hint leads there: the listener would have noticed.
    let open = mesh.run_router(&[flags[0], flags[1], "--allow-loopback-pod-ip"]);
    let response = exchange(TcpStream::connect(open).await.unwrap(), ask("127.0.0.1"), false).await;
    assert_eq!((status(&response), reached.connections().len()), (502, 1), "{response}");
}

/// A mesh whose gate would let everybody use every port here, also its own.
async fn lax() -> Mesh {
    let all = |ports: Ports| default_policy(DefaultPolicy::Anonymous, vec![ports.app, ports.mesh, ports.health]);
    Mesh::start(RecordingApp::polite().await, all).await
}

const ASSERTED: &str = "X-Sandgate-Caller: v1;static;default\r\n";

#[tokio::test]
async fn the_gates_own_ports_are_not_dialed_however_they_are_written_not_even_for_a_router() {
    let mesh = lax().await;
    for port in [mesh.ports.mesh, mesh.ports.health] {
        for (spelling, code) in [
            (format!("{port}"), 403),
            (format!("0{port}"), 403),
            (format!("00000000000{port}"), 403),
            (format!(" {port}\t"), 403),
            (format!("+{port}"), 400),
            (format!("-{port}"), 400),
            (format!("{port}.0"), 400),
            (format!("0x{port:x}"), 400),
            (format!("{}", u32::from(port) + 65_536), 400),
            (format!("{port},{}", mesh.ports.app), 400),
            (format!("{}\r\nX-Sandbox-Port: {port}", mesh.ports.app), 400),
            (format!("{}\r\nx-SANDBOX-port: {port}", mesh.ports.app), 400),
        ] {
            let own = format!("X-Sandbox-Port: {}\r\n", mesh.ports.app);
            let head = mesh.head("GET / HTTP/1.1", "");
            let response = mesh
                .send(head.replace(&own, &format!("X-Sandbox-Port: {spelling}\r\n")))
                .await;
            assert_eq!(status(&response), code, "{spelling:?}: {response}");
            let response = as_router(&mesh, to_gate("GET / HTTP/1.1", &spelling, ASSERTED)).await;
            assert_eq!(status(&response), code, "{spelling:?} at the gate: {response}");
        }
    }
    assert_eq!(mesh.health.connections().len(), 0);
    mesh.app.assert_untouched("own ports");
    let response = as_router(&mesh, to_gate("GET / HTTP/1.1", mesh.ports.app, ASSERTED)).await;
    assert_eq!(status(&response), 200, "{response}");
}

#[tokio::test]
async fn connect_opens_no_tunnel_at_the_router_nor_at_the_gate() {
    let mesh = lax().await;
    let inner = "GET /tunnelled HTTP/1.1\r\nHost: a\r\n\r\n";
    for target in [
        format!("127.0.0.1:{}", mesh.ports.health),
        format!("127.0.0.1:{}", mesh.ports.app),
        format!("localhost:{}", mesh.ports.app),
        "/".into(),
        format!("http://127.0.0.1:{}/", mesh.ports.health),
    ] {
        let line = format!("CONNECT {target} HTTP/1.1");
        for (place, response) in [
            ("router", mesh.send(mesh.head(&line, "") + inner).await),
            (
                "router, with an upgrade",
                mesh.send(mesh.head(&line, "Connection: upgrade\r\nUpgrade: websocket\r\n") + inner)
                    .await,
            ),
            (
                "gate",
                as_router(&mesh, to_gate(&line, mesh.ports.app, ASSERTED) + inner).await,
            ),
        ] {
            assert_eq!(status(&response), 405, "{target} at the {place}: {response}");
            assert_eq!(
                response.matches("HTTP/1.1 ").count(),
                1,
                "{target} at the {place}: {response}"
            );
        }
        mesh.app.assert_untouched(&target);
    }
    assert_eq!(mesh.health.connections().len(), 0);
}

#[tokio::test]
async fn a_target_that_names_an_authority_leads_to_the_app_and_never_to_that_authority() {
    let mesh = lax().await;
    let reached = RecordingApp::start(|_| Step::Close(Vec::new())).await;
    for authority in [
        format!("127.0.0.1:{}", reached.port()),
        format!("user:secret@localhost:{}", reached.port()),
        format!("[::1]:{}", mesh.ports.health),
        "169.254.169.254".into(),
    ] {
        for scheme in ["http", "HTTPS", "ftp"] {
            let line = format!("GET {scheme}://{authority}/page?q HTTP/1.1");
            for response in [
                mesh.send(mesh.head(&line, "")).await,
                as_router(&mesh, to_gate(&line, mesh.ports.app, ASSERTED)).await,
            ] {
                assert_eq!(status(&response), 200, "{line}: {response}");
                let head = mesh.app.heads().pop().unwrap();
                assert!(head.starts_with("GET /page?q HTTP/1.1\r\n"), "{line}: {head}");
                assert!(!head.contains(&authority) && !head.contains("secret"), "{line}: {head}");
                assert_eq!(
                    head.to_ascii_lowercase().matches("\r\nhost: ").count(),
                    1,
                    "{line}: {head}"
                );
            }
        }
    }
    assert_eq!((reached.connections().len(), mesh.health.connections().len()), (0, 0));
}

#[tokio::test]
async fn a_target_without_a_path_is_400_and_reaches_nobody() {
    let mesh = lax().await;
    let own = format!("127.0.0.1:{}", mesh.ports.health);
    for target in [
        own.as_str(),
        "evil.example",
        "evil.example:80",
        "://",
        "//",
        "http://",
        "?q",
    ] {
        let line = format!("GET {target} HTTP/1.1");
        for response in [
            mesh.send(mesh.head(&line, "")).await,
            as_router(&mesh, to_gate(&line, mesh.ports.app, ASSERTED)).await,
        ] {
            // "//" is a path of its own; it stays one.
            let expected = if target == "//" { 200 } else { 400 };
            assert_eq!(status(&response), expected, "{line}: {response}");
        }
    }
    let heads = mesh.app.heads();
    assert!(
        heads.len() == 2 && heads.iter().all(|head| head.starts_with("GET // ")),
        "{heads:?}"
    );
    assert_eq!(mesh.health.connections().len(), 0);
}

#[tokio::test]
async fn nobody_passes_for_the_caller_that_a_rule_names_by_being_of_another_kind() {
    let mesh = Mesh::start(RecordingApp::polite().await, |ports| {
        rule(token_holder(), ports.app, &[], &[])
    })
    .await;
    for asserted in [
        "v1;user;static:default",
        "v1;user;static%3Adefault",
        "v1;spiffe;static:default",
        "v1;anonymous",
        "v1;cert;default",
        "v1;scoped;default",
        "v1;static;Default",
    ] {
        let fields = format!("X-Sandgate-Caller: {asserted}\r\n");
        let response = as_router(&mesh, to_gate("GET / HTTP/1.1", mesh.ports.app, &fields)).await;
        assert!([400, 403].contains(&status(&response)), "{asserted}: {response}");
        mesh.app.assert_untouched(asserted);
    }
}
