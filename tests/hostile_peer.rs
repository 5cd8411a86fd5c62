//! Who comes to the gate's mesh port without being a peer of the mesh, or as another than it is; and gates that are not
//! the one the router looks for.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use sandgate_tests::{
    Mesh, POD_UID, ROUTER, RecordingApp, TOKEN_HOLDER, WORKLOAD, exchange, rule, sandbox, send, status, tls_1_2_hello,
    token_holder,
};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ClientConnection;
use tokio_rustls::rustls::pki_types::ServerName;

fn workload() -> LeafSpec {
    LeafSpec::new("worker", WORKLOAD, Usage::Client)
}

fn to_gate(mesh: &Mesh, fields: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: gate\r\nX-Sandbox-Port: {}\r\nConnection: close\r\n{fields}\r\n",
        mesh.ports.app
    )
}

/// A policy whose only rule admits one SPIFFE ID to one port.
fn naming(spiffe_id: &str, port: u16) -> sandgate_mesh::policy::model::Snapshot {
    serde_json::from_value(serde_json::json!({
        "version": 1, "generation": { "epoch": 1, "counter": 1 }, "defaultPolicy": "deny", "ports": [port],
        "policies": [{ "name": "direct", "rules": [{ "from": [{ "spiffeIDs": [spiffe_id] }], "to": [{ "ports": [port] }] }] }],
    }))
    .unwrap()
}

#[tokio::test]
async fn a_workload_that_no_policy_names_is_refused_even_where_the_default_admits_everybody() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let leaf = mesh.authority.issue(&workload()).unwrap();
    let response = mesh.send_to_gate(Some(&leaf), to_gate(&mesh, "")).await;
    assert_eq!(status(&response), 403, "{response}");
    mesh.app.assert_untouched("not named");
}

#[tokio::test]
async fn a_workload_of_the_mesh_that_a_policy_names_is_let_in_as_itself() {
    let mesh = Mesh::start(RecordingApp::polite().await, |ports| naming(WORKLOAD, ports.app)).await;
    let leaf = mesh.authority.issue(&workload()).unwrap();
    let response = mesh.send_to_gate(Some(&leaf), to_gate(&mesh, "")).await;
    assert_eq!(status(&response), 200, "{response}");
    mesh.app.only_request();
}

#[tokio::test]
async fn certificates_that_identify_no_peer_of_this_mesh_end_in_the_handshake() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let issue = |change: &dyn Fn(&mut LeafSpec)| -> Issued {
        let mut spec = workload();
        change(&mut spec);
        mesh.authority.issue(&spec).unwrap()
    };
    let stranger = Authority::new("sandgate-tests").unwrap();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let table: Vec<(&str, Option<Issued>)> = vec![
        ("no certificate", None),
        ("another authority", Some(stranger.issue(&workload()).unwrap())),
        (
            "another authority's router",
            Some(stranger.router(&ROUTER.parse().unwrap()).unwrap()),
        ),
        (
            "a gate's certificate",
            Some(mesh.authority.sidecar(&sandbox("alpha", POD_UID)).unwrap()),
        ),
        (
            "expired",
            Some(issue(&|spec| {
                (spec.not_before, spec.not_after) = (now - 2 * hour, now - hour);
            })),
        ),
        ("not yet valid", Some(issue(&|spec| spec.not_before = now + hour))),
        ("two URIs", Some(issue(&|spec| spec.uris.push(ROUTER.into())))),
        (
            "the same URI twice",
            Some(issue(&|spec| spec.uris.push(WORKLOAD.into()))),
        ),
        (
            "a DNS name, too",
            Some(issue(&|spec| spec.dns.push("worker.example".into()))),
        ),
        (
            "only a DNS name",
            Some(issue(&|spec| {
                (spec.uris, spec.dns) = (vec![], vec!["worker.example".into()]);
            })),
        ),
        ("no name", Some(issue(&|spec| spec.uris.clear()))),
        ("for servers", Some(issue(&|spec| spec.usages = vec![Usage::Server]))),
        ("without usage", Some(issue(&|spec| spec.usages.clear()))),
        ("an authority itself", Some(issue(&|spec| spec.is_ca = true))),
        (
            "another trust domain",
            Some(issue(&|spec| {
                spec.uris = vec![WORKLOAD.replace("cluster.local", "evil.example")];
            })),
        ),
        (
            "not SPIFFE",
            Some(issue(&|spec| {
                spec.uris = vec!["https://cluster.local/ns/team-a/sa/worker".into()];
            })),
        ),
    ];
    for (name, leaf) in table {
        let response = mesh.send_to_gate(leaf.as_ref(), to_gate(&mesh, "")).await;
        assert_eq!(response, "", "{name}");
        mesh.app.assert_untouched(name);
    }
}

#[tokio::test]
async fn plain_text_on_the_mesh_port_gets_no_http_answer() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let stream = TcpStream::connect(("127.0.0.1", mesh.ports.mesh)).await.unwrap();
    let response = exchange(
        stream,
        to_gate(&mesh, "X-Sandgate-Caller: v1;static;default\r\n"),
        false,
    )
    .await;
    assert!(!response.contains("HTTP/"), "{response:?}");
    mesh.app.assert_untouched("plain text");
}

#[tokio::test]
async fn only_a_router_may_assert_a_caller() {
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| rule(token_holder(), ports.app, &[], &[])).await;
    assert_eq!(TOKEN_HOLDER, "static:default");
    let leaf = mesh.authority.issue(&workload()).unwrap();
    for fields in [
        "X-Sandgate-Caller: v1;static;default\r\n",
        "X-Sandgate-Caller: v1;static;default\r\nConnection: x-sandgate-caller\r\n",
        "X-Sandgate-Caller: \r\n",
    ] {
        let response = mesh.send_to_gate(Some(&leaf), to_gate(&mesh, fields)).await;
        assert_eq!(status(&response), 400, "{fields:?}: {response}");
    }
    let response = mesh.send_to_gate(Some(&leaf), to_gate(&mesh, "")).await;
    assert_eq!(status(&response), 403, "{response}");
    mesh.app.assert_untouched("asserted by a workload");
}

#[tokio::test]
async fn a_router_must_assert_exactly_one_caller_in_its_one_spelling() {
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| rule(token_holder(), ports.app, &[], &[])).await;
    let leaf = mesh.authority.router(&ROUTER.parse().unwrap()).unwrap();
    for fields in [
        "",
        "X-Sandgate-Caller: \r\n",
        "X-Sandgate-Caller: v1;static;default\r\nX-Sandgate-Caller: v1;static;default\r\n",
        "X-Sandgate-Caller: v1;static;def%61ult\r\n",
        "X-Sandgate-Caller: v2;static;default\r\n",
        "X-Sandgate-Caller: static:default\r\n",
    ] {
        let response = mesh.send_to_gate(Some(&leaf), to_gate(&mesh, fields)).await;
        assert_eq!(status(&response), 400, "{fields:?}: {response}");
    }
    let response = mesh
        .send_to_gate(Some(&leaf), to_gate(&mesh, "X-Sandgate-Caller: v1;static;other\r\n"))
        .await;
    assert_eq!(status(&response), 403, "{response}");
    mesh.app.assert_untouched("no caller");
    let response = mesh
        .send_to_gate(Some(&leaf), to_gate(&mesh, "X-Sandgate-Caller: v1;static;default\r\n"))
        .await;
    assert_eq!(status(&response), 200, "{response}");
    mesh.app.only_request();
}

#[tokio::test]
async fn the_router_talks_to_no_gate_but_the_one_it_looks_for() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for (sandbox, id, namespace, uid) in [
        ("default/beta", "beta", "default", POD_UID),
        ("team-b/alpha", "alpha", "team-b", POD_UID),
        (
            "default/alpha",
            "alpha",
            "default",
            "11111111-2222-4333-8444-555555555555",
        ),
    ] {
        let router = mesh.another_router(sandbox, uid);
        let head = mesh.head("GET / HTTP/1.1", &format!("X-Sandbox-Namespace: {namespace}\r\n"));
        let head = head.replace("X-Sandbox-ID: alpha", &format!("X-Sandbox-ID: {id}"));
        let response = exchange(TcpStream::connect(router).await.unwrap(), head, false).await;
        assert_eq!(status(&response), 502, "{sandbox}: {response}");
        assert!(
            response.contains(&format!("Could not connect to the backend sandbox: {id}")),
            "{response}"
        );
        mesh.app.assert_untouched(sandbox);
    }
}

/// What a router sends first: a whole `ClientHello`.
fn hello(mesh: &Mesh) -> Vec<u8> {
    let leaf = mesh.authority.router(&ROUTER.parse().unwrap()).unwrap();
    let name = ServerName::try_from("gate.test").unwrap();
    let mut client = ClientConnection::new(mesh.client_config(Some(&leaf)), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn handshakes_that_stall_or_fail_keep_nobody_else_from_being_served() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let hello = hello(&mesh);
    let (half, twice) = (&hello[..hello.len() / 2], [&hello[..], &hello[..]].concat());
    let mut stalled = Vec::new();
    // More than the gate keeps, and all from the router's own address.
    for bytes in [&b""[..], &hello[..1], half, &hello, b"\x16\x03\x01\xff\xff"] {
        for _ in 0..80 {
            let mut stream = TcpStream::connect(("127.0.0.1", mesh.ports.mesh)).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stalled.push(stream);
        }
    }
    for (name, bytes) in [
        ("TLS 1.2", tls_1_2_hello()),
        (
            "plain HTTP",
            to_gate(&mesh, "X-Sandgate-Caller: v1;static;default\r\n").into_bytes(),
        ),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("garbage", vec![0xff; 70_000]),
        ("two hellos", twice),
        ("an alert", b"\x15\x03\x03\x00\x02\x02\x28".to_vec()),
    ] {
        let response = send(([127, 0, 0, 1], mesh.ports.mesh).into(), bytes).await;
        assert!(!response.contains("HTTP/"), "{name}: {response:?}");
        if name == "TLS 1.2" {
            assert_eq!(
                response.as_bytes(),
                [0x15, 3, 3, 0, 2, 2, 70],
                "no alert protocol_version"
            );
        }
    }
    assert_eq!(mesh.send_to_gate(None, to_gate(&mesh, "")).await, "");
    mesh.app.assert_untouched("no handshake");
    let response = mesh.send(mesh.head("GET /honest HTTP/1.1", "")).await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(mesh.app.only_request().head.starts_with("GET /honest "));
    drop(stalled);
}
