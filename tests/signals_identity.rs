//! What an operator is shown when somebody's identity is at fault: which certificate, since when, whose fault it is, and
//! that it is said once and not for each request. Each program is a process of its own, unless it must misbehave.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::LeafSpec;
use sandgate_mesh::telemetry::utc;
use sandgate_tests::processes::{ProcessMesh, Programs, get, json_lines, metric, until_metric, until_ready};
use sandgate_tests::{
    Mesh, POD_UID, ROUTER, RecordingApp, assert_detail, exchange, field, programs, sandbox, send, status,
};
use serde_json::Value;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const PROGRAMS: Programs = programs!();
const NOT_READY: &str = "Sandbox gate is not ready: alpha";
const NO_IDENTITY: &str = "The router has no valid identity.";
const UNREACHABLE: &str = "Could not connect to the backend sandbox: alpha";
const GATES_END: &str = "sandgate_sidecar_certificate_not_after_seconds";
const ROUTERS_END: &str = "sandbox_router_mesh_certificate_not_after_seconds";
const REFUSED: &str = "sandgate_sidecar_refused_connections_total{reason=\"no-identity\"}";
const HOUR: Duration = Duration::from_secs(3600);

/// Gives a program a certificate for this time.
fn issue(mesh: &ProcessMesh, program: &str, from: SystemTime, to: SystemTime) -> LeafSpec {
    mesh.issue(program, |spec| (spec.not_before, spec.not_after) = (from, to))
}

/// Sends a request on a connection of its own.
async fn ask(mesh: &ProcessMesh) -> String {
    let request = mesh.head("GET /", "Connection: close\r\n");
    exchange(TcpStream::connect(mesh.http).await.unwrap(), request, false).await
}

/// The lines of a log that have this message.
fn told(log: &str, message: &str) -> Vec<Value> {
    let mut lines = json_lines(log);
    lines.retain(|line| line["message"].as_str().is_some_and(|found| found.starts_with(message)));
    lines
}

fn seconds(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        .to_string()
}

/// Fails unless the only line of that message is a warning about this certificate.
fn assert_named(log: &str, message: &str, role: &str, spec: &LeafSpec) {
    let lines = told(log, message);
    assert_eq!(lines.len(), 1, "{message}: {log}");
    let line = &lines[0];
    let (from, to) = (utc(spec.not_before).to_string(), utc(spec.not_after).to_string());
    for (name, expected) in [
        ("level", "WARN"),
        ("what", "mesh certificate"),
        ("role", role),
        ("identity", &spec.uris[0]),
        ("not_before", &from),
        ("not_after", &to),
    ] {
        assert_eq!(line[name], expected, "{name} of {line}");
    }
}

/// Lives of certificates that don't hold `now`: from, to, what the log says, and how the reason begins.
fn lives_elsewhere(now: SystemTime) -> [(SystemTime, SystemTime, &'static str, &'static str); 2] {
    let expired = "the mesh certificate has expired";
    let early = "the mesh certificate is not yet valid";
    [
        (now - 2 * HOUR, now - HOUR, expired, "expired at"),
        (now + HOUR, now + 2 * HOUR, early, "not valid before"),
    ]
}

#[tokio::test]
async fn a_gate_without_a_valid_certificate_names_it_and_counts_whom_it_refuses() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let now = SystemTime::now();
    for (from, to, message, reason) in lives_elsewhere(now) {
        mesh.sidecar.kill().await;
        let spec = issue(&mesh, "sidecar", from, to);
        mesh.restart_sidecar().await;
        mesh.sidecar.logs(message, 1).await;
        let when = if from > now { from } else { to };
        let reason = format!("certificate {reason} {}", utc(when));
        until_ready(mesh.sidecar_health, (503, &reason)).await;
        until_metric(mesh.sidecar_health, GATES_END, &seconds(to)).await;
        for _ in 0..3 {
            assert_detail(&ask(&mesh).await, 503, NOT_READY, message);
        }
        until_metric(mesh.sidecar_health, REFUSED, "3").await;
        mesh.sidecar.logs("mesh connections are refused", 1).await;
        let log = mesh.sidecar.stderr();
        assert_named(&log, message, "sidecar", &spec);
        let refusals = told(&log, "mesh connections are refused");
        assert_eq!(refusals.len(), 1, "{log}");
        assert_eq!(refusals[0]["reason"], reason);

        let spec = issue(&mesh, "sidecar", now - HOUR, now + 100 * HOUR);
        until_ready(mesh.sidecar_health, (200, "ok")).await;
        until_metric(mesh.sidecar_health, GATES_END, &seconds(spec.not_after)).await;
    }
    app.assert_untouched("no valid certificate");
    assert_eq!(status(&ask(&mesh).await), 200);
}

#[tokio::test]
async fn a_gate_that_waits_for_its_identity_says_so_and_has_no_certificate_to_measure() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    mesh.sidecar.kill().await;
    std::fs::remove_file(mesh.folder.path("sidecar/tls.crt")).unwrap();
    mesh.restart_sidecar().await;
    until_ready(mesh.sidecar_health, (503, "no identity")).await;
    until_metric(mesh.sidecar_health, GATES_END, "0").await;
    for _ in 0..2 {
        assert_detail(&ask(&mesh).await, 503, NOT_READY, "no identity");
    }
    until_metric(mesh.sidecar_health, REFUSED, "2").await;
    mesh.sidecar.logs("mesh connections are refused", 1).await;
    assert_eq!(told(&mesh.sidecar.stderr(), "mesh connections are refused").len(), 1);
    app.assert_untouched("no identity");
}

#[tokio::test]
async fn a_certificate_that_ends_while_it_serves_is_told_once_before_and_once_after() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let now = SystemTime::now();
    let spec = issue(&mesh, "sidecar", now - HOUR, now + Duration::from_secs(4));
    mesh.sidecar.logs("the mesh certificate ends soon", 1).await;
    assert_eq!(get(mesh.sidecar_health, "/readyz").await.0, 200);
    let reason = format!("certificate expired at {}", utc(spec.not_after));
    until_ready(mesh.sidecar_health, (503, &reason)).await;
    mesh.sidecar.logs("the mesh certificate has expired", 1).await;
    issue(&mesh, "sidecar", now - HOUR, now + 100 * HOUR);
    mesh.sidecar.logs("the mesh certificate is in force", 2).await;
    let log = mesh.sidecar.stderr();
    assert_named(&log, "the mesh certificate ends soon", "sidecar", &spec);
    assert_named(&log, "the mesh certificate has expired", "sidecar", &spec);
}

#[tokio::test]
async fn a_router_without_a_valid_certificate_blames_itself_and_dials_no_gate() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let now = SystemTime::now();
    for (from, to, message, reason) in lives_elsewhere(now) {
        mesh.router.kill().await;
        let spec = issue(&mesh, "router", from, to);
        mesh.restart_router().await;
        let when = if from > now { from } else { to };
        let reason = format!("certificate {reason} {}", utc(when));
        until_ready(mesh.router_health, (503, &reason)).await;
        until_metric(mesh.metrics, ROUTERS_END, &seconds(to)).await;
        for _ in 0..2 {
            let refused = ask(&mesh).await;
            assert_detail(&refused, 503, NO_IDENTITY, message);
            assert_eq!(field(&refused, "retry-after"), ["1"], "{refused}");
        }
        mesh.router.logs("can't connect", 2).await;
        let log = mesh.router.stderr();
        assert_named(&log, message, "router", &spec);
        assert!(told(&log, "can't connect").iter().all(|line| {
            let error = line["error"].as_str().unwrap();
            line["reason"] == "tls" && error.ends_with(&reason)
        }));
    }
    for counter in ["handshakes_total", "handshake_failures_total"] {
        let count = metric(mesh.sidecar_health, &format!("sandgate_sidecar_{counter}")).await;
        assert_eq!(count.as_deref(), Some("0"), "{counter}");
    }
    app.assert_untouched("no valid certificate");
}

#[tokio::test]
async fn a_router_uses_no_kept_connection_longer_than_the_certificate_it_was_opened_with() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let health = mesh.sidecar_health;
    let handshakes = async || metric(health, "sandgate_sidecar_handshakes_total").await.unwrap();
    assert_eq!(status(&ask(&mesh).await), 200);
    let now = SystemTime::now();
    let spec = issue(&mesh, "router", now - HOUR, now + Duration::from_secs(6));
    mesh.router.logs("the mesh certificate ends soon", 1).await;
    // Until the connection is one of the new certificate.
    while handshakes().await != "2" {
        assert_eq!(status(&ask(&mesh).await), 200);
        assert!(SystemTime::now() < spec.not_after, "the old connection was kept");
    }
    assert_eq!(status(&ask(&mesh).await), 200);
    assert_eq!(handshakes().await, "2", "no connection was kept");
    let reason = format!("certificate expired at {}", utc(spec.not_after));
    until_ready(mesh.router_health, (503, &reason)).await;
    app.forget();
    for _ in 0..3 {
        assert_detail(&ask(&mesh).await, 503, NO_IDENTITY, "kept");
    }
    app.assert_untouched("expired");
    let log = mesh.sidecar.stderr();
    assert!(!log.contains("The certificate of this connection has expired"), "{log}");
}

#[tokio::test]
async fn another_sandboxs_certificate_is_refused_and_both_identities_are_named() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let (own, other) = (sandbox("alpha", POD_UID), sandbox("beta", POD_UID));
    let message = "the certificate is not this gate's";
    let failures = "sandgate_sidecar_reloads_total{file=\"credentials\",outcome=\"failure\"}";
    mesh.give("sidecar", &mesh.authority.sidecar(&other).unwrap());
    mesh.sidecar.logs(message, 1).await;
    until_metric(mesh.sidecar_health, failures, "1").await;
    let lines = told(&mesh.sidecar.stderr(), message);
    assert_eq!((lines.len(), &lines[0]["level"]), (1, &"ERROR".into()));
    assert_eq!(lines[0]["expected"], own.to_string());
    assert_eq!(lines[0]["found"], other.to_string());
    // The old one serves on.
    until_ready(mesh.sidecar_health, (200, "ok")).await;
    assert_eq!(status(&ask(&mesh).await), 200);

    app.forget();
    mesh.sidecar.kill().await;
    mesh.restart_sidecar().await;
    mesh.sidecar.logs(message, 1).await;
    until_ready(mesh.sidecar_health, (503, "no identity")).await;
    assert_detail(&ask(&mesh).await, 503, NOT_READY, "another's");
    app.assert_untouched("another's certificate");
}

#[tokio::test]
async fn a_gate_that_does_not_know_its_router_is_no_fault_of_the_clients_and_both_logs_say_whose() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    mesh.sidecar.kill().await;
    let mistyped = ROUTER.replace("sandbox-router", "sandbox-ruoter");
    mesh.restart_sidecar_with(|flags| {
        flags.retain(|flag| !flag.starts_with("--router-identity="));
        flags.push(format!("--router-identity={mistyped}"));
    })
    .await;
    until_ready(mesh.sidecar_health, (200, "ok")).await;
    for _ in 0..3 {
        assert_detail(&ask(&mesh).await, 502, UNREACHABLE, "mistyped");
    }
    app.assert_untouched("mistyped");

    let message = "the gate does not accept this router's identity";
    mesh.router.logs(message, 3).await;
    for line in told(&mesh.router.stderr(), message) {
        assert_eq!((&line["level"], &line["identity"]), (&"WARN".into(), &ROUTER.into()));
        assert_eq!(line["sandbox"], "default/alpha");
    }
    mesh.sidecar.logs("Only a router may assert a caller.", 3).await;
    let lines = told(&mesh.sidecar.stderr(), "a peer asserted a caller");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (&lines[0]["level"], &lines[0]["peer"]),
        (&"WARN".into(), &ROUTER.into())
    );
    assert_eq!(lines[0]["accepted"], mistyped);
    let refusals = "sandgate_sidecar_refusals_total{reason=\"not-a-router\"}";
    assert_eq!(metric(mesh.sidecar_health, refusals).await.as_deref(), Some("3"));

    // A connection is judged once: the router must not keep one on which it was refused.
    mesh.sidecar.kill().await;
    mesh.restart_sidecar().await;
    until_ready(mesh.sidecar_health, (200, "ok")).await;
    assert_eq!(status(&ask(&mesh).await), 200);
}

/// A gate of `beta` that answers each request in the same way.
async fn gate_that_says(mesh: &Mesh, answer: String) -> String {
    let issued = mesh.authority.sidecar(&sandbox("beta", POD_UID)).unwrap();
    let acceptor = TlsAcceptor::from(mesh.server_config(&issued));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            sandgate_tests::read_until(&mut stream, b"\r\n\r\n").await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    format!("--sandbox-endpoint=default/beta={address},uid={POD_UID}")
}

#[tokio::test]
async fn what_a_gate_says_of_the_routers_own_certificate_is_not_passed_on_as_the_sandboxs_answer() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let body = r#"{"detail":"about the connection"}"#;
    for (outcome, code, text) in [
        ("peer-expired", 503, NO_IDENTITY),
        ("not-a-router", 502, "Could not connect to the backend sandbox: beta"),
    ] {
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nX-Sandgate-Outcome: {outcome}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let router = mesh.run_router(&[&gate_that_says(&mesh, answer).await]);
        let head = mesh.head("GET / HTTP/1.1", "").replace("ID: alpha", "ID: beta");
        assert_detail(&send(router, head).await, code, text, outcome);
    }
    mesh.app.assert_untouched("beta");
}
