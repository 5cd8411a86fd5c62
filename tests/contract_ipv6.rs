//! IPv6 wherever an address can stand: the client's, the host it asks for, a hint, a sandbox's endpoint.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::{Mesh, POD_UID, RecordingApp, assert_detail, field, send, status};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};

const LISTEN: &str = "--http-bind-address=[::1]:0";

/// Takes connections on `::1` and passes them on to this port of `127.0.0.1`.
async fn relay(to: u16) -> u16 {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    port
}

async fn seen(mesh: &Mesh, router: SocketAddr, request: String) -> String {
    let response = send(router, &request).await;
    assert_eq!(status(&response), 200, "{request}{response}");
    mesh.app.take_only_request().head
}

#[tokio::test]
async fn a_clients_address_and_the_host_it_asks_for_arrive_at_the_app() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let said = "X-Forwarded-For: 2001:db8::9\r\nX-Forwarded-Host: [2001:db8::1]\r\n";
    for (trusted, chain, host) in [
        ("--trusted-proxy-cidrs=", "::1", "[::1]:8080"),
        ("--trusted-proxy-cidrs=fd00::/8,127.0.0.1", "::1", "[::1]:8080"),
        ("--trusted-proxy-cidrs=::1", "2001:db8::9, ::1", "[2001:db8::1]"),
        ("--trusted-proxy-cidrs=::/0", "2001:db8::9, ::1", "[2001:db8::1]"),
    ] {
        let urls = ["--host-routing-domain=sandboxes.example", "--path-routing-prefix=/p"];
        for urls in [&urls[..], &[]] {
            let router = mesh.run_router(&[&[LISTEN, trusted], urls].concat());
            assert!(router.is_ipv6());
            let request = mesh
                .head("GET / HTTP/1.1", said)
                .replace("sandbox.example", "[::1]:8080");
            let head = seen(&mesh, router, request).await;
            assert_eq!(field(&head, "x-forwarded-for"), [chain], "{trusted}");
            assert_eq!(field(&head, "x-forwarded-host"), [host], "{trusted}");
        }
    }
}

#[tokio::test]
async fn a_client_over_ipv4_has_its_own_address_where_the_listener_is_for_both() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = mesh.run_router(&["--http-bind-address=[::]:0", "--trusted-proxy-cidrs=127.0.0.0/8"]);
    let router = SocketAddr::from(([127, 0, 0, 1], router.port()));
    let request = mesh.head("GET / HTTP/1.1", "X-Forwarded-For: 203.0.113.9\r\n");
    let head = seen(&mesh, router, request).await;
    assert_eq!(field(&head, "x-forwarded-for"), ["203.0.113.9, 127.0.0.1"]);
}

#[tokio::test]
async fn a_sandbox_at_an_ipv6_address_is_reached_through_its_gate_and_without_one() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let gate = relay(mesh.ports.mesh).await;
    let at_gate = format!("--sandbox-endpoint=default/alpha=[::1]:{gate},uid={POD_UID}");
    seen(&mesh, mesh.run_router(&[&at_gate]), mesh.head("GET / HTTP/1.1", "")).await;

    let app = relay(mesh.ports.app).await;
    let head = mesh.head("GET / HTTP/1.1", "");
    let head = head.replace(&format!("Port: {}", mesh.ports.app), &format!("Port: {app}"));
    let to_app = mesh.run_router(&["--mesh=off", "--sandbox-endpoint=default/alpha=::1"]);
    let head = seen(&mesh, to_app, head).await;
    assert_eq!(field(&head, "host"), [format!("127.0.0.1:{app}")]);
}

#[tokio::test]
async fn another_gate_at_an_ipv6_address_gets_nothing() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let gate = relay(mesh.ports.mesh).await;
    let endpoint = format!("--sandbox-endpoint=default/beta=[::1]:{gate}");
    let router = mesh.run_router(&[&endpoint, "--upstream-max-retries=0"]);
    let request = mesh.head("GET / HTTP/1.1", "").replace("ID: alpha", "ID: beta");
    let text = "Could not connect to the backend sandbox: beta";
    assert_detail(&send(router, request).await, 502, text, "another's gate");
    mesh.app.assert_untouched("another's gate");
}

#[tokio::test]
async fn an_ipv6_hint_is_dialed_in_every_spelling() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let app = relay(mesh.ports.app).await;
    let no_domain = format!("--cluster-domain={}", "x".repeat(64));
    let router = mesh.run_router(&["--mesh=off", &no_domain, "--allow-loopback-pod-ip"]);
    for ip in ["::1", "0:0:0:0:0:0:0:1", "0000::0001"] {
        let head = mesh.head("GET / HTTP/1.1", &format!("X-Sandbox-Pod-IP: {ip}\r\n"));
        let head = head.replace("ID: alpha", "ID: unknown");
        let head = head.replace(&format!("Port: {}", mesh.ports.app), &format!("Port: {app}"));
        seen(&mesh, router, head).await;
    }
}
