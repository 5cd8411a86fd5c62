//! Who stands where the router expects a gate. It gets no byte of a request unless it is that gate.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::{Authority, LeafSpec, Usage};
use sandgate_mesh::identity::SandboxIdentity;
use sandgate_mesh::tls;
use sandgate_tests::impostor::impostor;
use sandgate_tests::{Mesh, POD_UID, ROUTER, RecordingApp, WORKLOAD, read_until, sandbox, send, status};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;

/// Asks a router that expects the gate of `beta` at this address.
async fn ask_beta(mesh: &Mesh, address: SocketAddr) -> String {
    ask_beta_with(mesh, address, "").await
}

/// The same with these fields, too.
async fn ask_beta_with(mesh: &Mesh, address: SocketAddr, fields: &str) -> String {
    let endpoint = format!("--sandbox-endpoint=default/beta={address},uid={POD_UID}");
    let router = mesh.run_router(&[&endpoint, "--upstream-max-retries=0"]);
    let head = mesh.head("GET /secret HTTP/1.1", &format!("X-Secret: 1\r\n{fields}"));
    send(router, head.replace("X-Sandbox-ID: alpha", "X-Sandbox-ID: beta")).await
}

#[tokio::test]
async fn no_byte_of_a_request_goes_to_an_impostor_in_a_gates_place() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let beta = sandbox("beta", POD_UID);
    let issue = |change: &dyn Fn(&mut LeafSpec)| {
        let mut spec = LeafSpec::new("gate", beta.to_string(), Usage::Server);
        change(&mut spec);
        mesh.authority.issue(&spec).unwrap()
    };
    let sidecar = |change: &dyn Fn(&mut SandboxIdentity)| {
        let mut identity = beta.clone();
        change(&mut identity);
        mesh.authority.sidecar(&identity).unwrap()
    };
    let stranger = Authority::new("sandgate-tests").unwrap();
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let another_uid = "11111111-2222-4333-8444-555555555555";
    for (name, leaf) in [
        (
            "the router's own leaf",
            mesh.authority.router(&ROUTER.parse().unwrap()).unwrap(),
        ),
        (
            "a router's name for servers",
            issue(&|spec| spec.uris = vec![ROUTER.into()]),
        ),
        (
            "a workload's name for servers",
            issue(&|spec| spec.uris = vec![WORKLOAD.into()]),
        ),
        (
            "the gate's name for clients",
            issue(&|spec| spec.usages = vec![Usage::Client]),
        ),
        (
            "the gate's name for both",
            issue(&|spec| spec.usages = vec![Usage::Server, Usage::Client]),
        ),
        ("the gate's name for anything", issue(&|spec| spec.usages.clear())),
        ("another authority", stranger.sidecar(&beta).unwrap()),
        (
            "another sandbox",
            sidecar(&|id| id.sandbox.name = "alpha".parse().unwrap()),
        ),
        (
            "another namespace",
            sidecar(&|id| id.sandbox.namespace = "team-b".parse().unwrap()),
        ),
        ("another pod", sidecar(&|id| id.pod_uid = another_uid.parse().unwrap())),
        (
            "another trust domain",
            sidecar(&|id| id.trust_domain = "evil.example".parse().unwrap()),
        ),
        (
            "two names",
            issue(&|spec| spec.uris.push(sandbox("alpha", POD_UID).to_string())),
        ),
        ("a DNS name, too", issue(&|spec| spec.dns.push("beta.example".into()))),
        ("an authority itself", issue(&|spec| spec.is_ca = true)),
        (
            "expired",
            issue(&|spec| (spec.not_before, spec.not_after) = (now - 2 * hour, now - hour)),
        ),
        ("not yet valid", issue(&|spec| spec.not_before = now + hour)),
    ] {
        let (address, heard) = impostor(Some(mesh.server_config(&leaf))).await;
        let response = ask_beta(&mesh, address).await;
        assert_eq!(status(&response), 502, "{name}: {response}");
        assert!(
            response.contains("Could not connect to the backend sandbox: beta"),
            "{response}"
        );
        assert_eq!(heard.lock().unwrap().len(), 0, "{name}");
    }
    // The impostor does take what it is given: from a router that finds what it expects.
    let (address, heard) = impostor(Some(mesh.server_config(&mesh.authority.sidecar(&beta).unwrap()))).await;
    let response = ask_beta(&mesh, address).await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(heard.lock().unwrap().starts_with(b"GET /secret HTTP/1.1\r\n"));
    mesh.app.assert_untouched("impostors");
}

#[tokio::test]
async fn no_byte_of_a_request_goes_over_a_kept_connection_to_a_gate_whose_certificate_has_ended() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let mut spec = LeafSpec::new("gate", sandbox("beta", POD_UID).to_string(), Usage::Server);
    spec.not_after = SystemTime::now() + Duration::from_secs(5);
    let config = mesh.server_config(&mesh.authority.issue(&spec).unwrap());
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!(
        "--sandbox-endpoint=default/beta={},uid={POD_UID}",
        gate.local_addr().unwrap()
    );
    let router = mesh.run_router(&[&endpoint, "--upstream-max-retries=0"]);
    let request = mesh.head("GET / HTTP/1.1", "").replace("alpha", "beta");

    let first = tokio::spawn(send(router, request.clone()));
    let (stream, _) = gate.accept().await.unwrap();
    let accepted = tls::accept_mesh(stream, |_| Some(Arc::clone(&config))).await;
    let (mut kept, ..) = accepted.unwrap();
    read_until(&mut kept, b"\r\n\r\n").await;
    kept.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert_eq!(status(&first.await.unwrap()), 204);

    // Certificates count whole seconds, and the last one in full.
    while SystemTime::now() <= spec.not_after + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let second = tokio::spawn(send(router, request));
    let (stream, _) = gate.accept().await.unwrap();
    let accepted = tls::accept_mesh(stream, |_| Some(config)).await;
    assert!(accepted.is_err(), "the certificate counts");
    assert_eq!(status(&second.await.unwrap()), 502);
    assert_eq!(kept.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn no_byte_of_a_request_goes_to_a_gate_that_speaks_another_protocol() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let genuine = mesh.server_config(&mesh.authority.sidecar(&sandbox("beta", POD_UID)).unwrap());
    for protocols in [vec![], vec![b"http/1.1".to_vec()], vec![b"sandgate-h1/2".to_vec()]] {
        let mut config = ServerConfig::clone(&genuine);
        config.alpn_protocols = protocols.clone();
        let (address, heard) = impostor(Some(Arc::new(config))).await;
        let response = ask_beta(&mesh, address).await;
        assert_eq!(status(&response), 502, "{protocols:?}: {response}");
        assert_eq!(heard.lock().unwrap().len(), 0, "{protocols:?}");
    }
    let (address, heard) = impostor(None).await;
    let response = ask_beta(&mesh, address).await;
    assert_eq!(status(&response), 502, "{response}");
    assert!(!response.contains("impostor"), "{response}");
    let clear = heard.lock().unwrap().clone();
    assert!(!String::from_utf8_lossy(&clear).contains("secret"), "{clear:?}");
    mesh.app.assert_untouched("another protocol");
}

#[tokio::test]
async fn a_gate_that_stalls_the_handshake_is_504_within_the_callers_time() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut patient = pin!(ask_beta(&mesh, address));
    let _silent = tokio::select! {
        accepted = listener.accept() => accepted.unwrap(),
        response = &mut patient => panic!("who has more time heard first: {response}"),
    };
    let response = tokio::select! {
        response = ask_beta_with(&mesh, address, "X-Sandbox-Timeout: 1\r\n") => response,
        response = &mut patient => panic!("who has more time heard first: {response}"),
    };
    assert_eq!(status(&response), 504, "{response}");
    assert!(
        response.contains("Timed out waiting for the backend sandbox: beta"),
        "{response}"
    );
    // Another sandbox's requests don't wait for that one.
    let response = mesh.send(mesh.head("GET / HTTP/1.1", "")).await;
    assert_eq!(status(&response), 200, "{response}");
}
