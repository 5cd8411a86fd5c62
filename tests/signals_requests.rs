//! What an operator is shown of a request that failed, and of what a gate enforces: at the gate and at the router, once,
//! with the request's ID and a reason of few words. Each program is a process of its own.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_mesh::policy::model;
use sandgate_tests::processes::{ProcessMesh, Programs, json_lines, metric, until_metric, until_ready};
use sandgate_tests::{
    RecordingApp, Step, assert_detail, closed_port, default_policy, exchange, ok, programs, read_until, send, status,
};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const PROGRAMS: Programs = programs!();

/// The only line that tells of this request beside its access or audit line.
fn only_line(log: &str, id: &str) -> Value {
    let mut lines = json_lines(log);
    lines.retain(|line| line["request_id"] == id && line["message"].is_string());
    assert_eq!(lines.len(), 1, "{id}: {log}");
    lines.remove(0)
}

async fn ask(mesh: &ProcessMesh, id: &str) -> String {
    let request = mesh.head("GET /", &format!("Connection: close\r\nX-Request-ID: {id}\r\n"));
    exchange(TcpStream::connect(mesh.http).await.unwrap(), request, false).await
}

#[tokio::test]
async fn a_request_that_the_app_does_not_answer_is_told_once_with_its_reason_by_gate_and_router() {
    let unreachable = "Could not connect to the backend sandbox: alpha";
    let timed_out = "Timed out waiting for the backend sandbox: alpha";
    let (_socket, closed) = closed_port();
    for (reason, step, code, text, level, cause) in [
        ("dial", None, 502, unreachable, "INFO", "can't connect: "),
        (
            "broken",
            Some(Step::Close(Vec::new())),
            502,
            unreachable,
            "INFO",
            "the connection broke",
        ),
        (
            "bad-answer",
            Some(Step::Answer(b"no HTTP\r\n\r\n".into())),
            502,
            unreachable,
            "WARN",
            "malformed response",
        ),
        (
            "bad-answer",
            Some(Step::Answer(
                b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".into(),
            )),
            502,
            unreachable,
            "WARN",
            "it switched protocols as nobody asked",
        ),
        (
            "timeout",
            Some(Step::Wait),
            504,
            timed_out,
            "INFO",
            "no response head in time",
        ),
    ] {
        let app = match step {
            Some(step) => RecordingApp::answering(step).await,
            None => RecordingApp::polite().await,
        };
        let port = if reason == "dial" { closed } else { app.port() };
        let mut mesh = ProcessMesh::start(PROGRAMS, port, &[]).await;
        mesh.sidecar.kill().await;
        mesh.restart_sidecar_with(|flags| flags.push("--proxy-timeout=500ms".into()))
            .await;
        until_ready(mesh.sidecar_health, (200, "ok")).await;
        assert_detail(&ask(&mesh, "id-1").await, code, text, reason);
        if reason == "dial" {
            app.assert_untouched(reason);
        } else {
            app.only_request();
        }

        // Lines are written in the order in which they came: the access line is the last.
        mesh.router.logs("\"log\":\"access\"", 1).await;
        let line = only_line(&mesh.router.stderr(), "id-1");
        assert_eq!(
            (&line["level"], &line["reason"]),
            (&"INFO".into(), &reason.into()),
            "{line}"
        );
        assert_eq!(line["sandbox"], "default/alpha");
        mesh.sidecar.logs("\"cause\":", 1).await;
        let line = only_line(&mesh.sidecar.stderr(), "id-1");
        assert_eq!(
            (&line["level"], &line["reason"]),
            (&level.into(), &reason.into()),
            "{line}"
        );
        assert_eq!(
            (&line["sandbox"], &line["port"]),
            (&"default/alpha".into(), &port.into()),
            "{line}"
        );
        assert!(line["cause"].as_str().unwrap().contains(cause), "{line}");
        let refusals = format!("sandgate_sidecar_refusals_total{{reason=\"{reason}\"}}");
        assert_eq!(metric(mesh.sidecar_health, &refusals).await.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_told_by_gate_and_router() {
    let app = RecordingApp::answering(Step::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".into()));
    let app = app.await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    assert!(ask(&mesh, "id-2").await.ends_with("\r\n\r\nhalf"));
    mesh.sidecar.logs("broke off", 1).await;
    mesh.router.logs("broke off", 1).await;
    for log in [mesh.sidecar.stderr(), mesh.router.stderr()] {
        let line = only_line(&log, "id-2");
        assert_eq!((&line["level"], &line["bytes"]), (&"INFO".into(), &4.into()), "{line}");
        assert_eq!(line["error"], "body ended early");
    }
    app.only_request();
}

#[tokio::test]
async fn a_client_that_goes_away_is_nobodys_failure() {
    let app = RecordingApp::answering(Step::Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".into()));
    let app = app.await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let mut client = TcpStream::connect(mesh.http).await.unwrap();
    let head = mesh.head("GET /", "X-Request-ID: id-3\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut client, b"half").await;
    drop(client);
    mesh.router.logs("\"log\":\"access\"", 1).await;
    assert!(!mesh.router.stderr().contains("broke off"), "{}", mesh.router.stderr());
}

/// An app that switches protocols, sends every byte back and closes when its client does.
async fn mirror(mut stream: TcpStream) {
    read_until(&mut stream, b"\r\n\r\n").await;
    let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: mirror\r\n\r\n";
    stream.write_all(switched).await.unwrap();
    let (mut from, mut to) = stream.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

#[tokio::test]
async fn a_tunnel_is_under_way_to_its_end_which_router_and_gate_tell_with_its_reason_and_what_moved() {
    let app = RecordingApp::serving(mirror).await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let mut client = TcpStream::connect(mesh.http).await.unwrap();
    let head = mesh.head(
        "GET /",
        "Connection: upgrade\r\nUpgrade: mirror\r\nX-Request-ID: id-5\r\n",
    );
    client.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(status(&read_until(&mut client, b"\r\n\r\n").await), 101);
    client.write_all(b"there and back").await.unwrap();
    read_until(&mut client, b"there and back").await;
    let under_way = metric(mesh.metrics, "sandbox_router_inflight_requests").await;
    assert_eq!(under_way.as_deref(), Some("1"));
    assert!(!mesh.router.stderr().contains("\"log\":\"access\""));

    client.shutdown().await.unwrap();
    for process in [&mut mesh.sidecar, &mut mesh.router] {
        process.logs("the tunnel ended", 1).await;
        let lines = json_lines(&process.stderr());
        let line = lines.iter().find(|line| line["message"] == "the tunnel ended").unwrap();
        assert_eq!(
            (&line["level"], &line["end"], &line["sandbox"], &line["request_id"]),
            (
                &"INFO".into(),
                &"closed".into(),
                &"default/alpha".into(),
                &"id-5".into()
            ),
            "{line}"
        );
        assert_eq!((&line["up"], &line["down"]), (&14.into(), &14.into()), "{line}");
    }
    mesh.router.logs("\"log\":\"access\"", 1).await;
    let lines = json_lines(&mesh.router.stderr());
    let line = lines.iter().find(|line| line["log"] == "access").unwrap();
    assert_eq!(
        (&line["status"], &line["request_id"]),
        (&101.into(), &"id-5".into()),
        "{line}"
    );
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&14.into(), &14.into()),
        "{line}"
    );
    until_metric(mesh.metrics, "sandbox_router_inflight_requests", "0").await;
}

#[tokio::test]
async fn an_unknown_sandbox_is_told_and_counted() {
    let app = RecordingApp::polite().await;
    // A label has at most 63 bytes: no resolver asks a server for this name.
    let domain = format!("--cluster-domain={}", "x".repeat(64));
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[&domain]).await;
    let unknown = mesh.head("GET /", "Connection: close\r\nX-Request-ID: id-4\r\n");
    let answer = send(mesh.http, unknown.replace("ID: alpha", "ID: nobody")).await;
    assert_detail(
        &answer,
        502,
        "Could not connect to the backend sandbox: nobody",
        "unknown",
    );
    mesh.router.logs("\"log\":\"access\"", 1).await;
    let line = only_line(&mesh.router.stderr(), "id-4");
    assert_eq!(
        (&line["level"], &line["message"]),
        (&"INFO".into(), &"unknown sandbox".into())
    );
    assert_eq!(
        (&line["sandbox"], &line["reason"]),
        (&"default/nobody".into(), &"no-such-name".into())
    );
    let counted = "sandbox_router_unresolved_total{reason=\"no-such-name\"}";
    assert_eq!(metric(mesh.metrics, counted).await.as_deref(), Some("1"));
    app.assert_untouched("unknown");
}

#[tokio::test]
async fn what_the_gate_itself_refuses_is_told_from_the_apps_answer_in_the_routers_log() {
    let app = RecordingApp::answering(Step::Answer(
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into(),
    ));
    let app = app.await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    assert_eq!(status(&ask(&mesh, "of-the-app").await), 403);
    app.take_only_request();
    let other = mesh.head("GET /", "Connection: close\r\nX-Request-ID: of-the-gate\r\n");
    let other = other.replace(&format!("X-Sandbox-Port: {}", app.port()), "X-Sandbox-Port: 9");
    assert_eq!(status(&send(mesh.http, other).await), 403);
    app.assert_untouched("another port");
    mesh.router.logs("\"log\":\"access\"", 2).await;
    let log = mesh.router.stderr();
    let line = only_line(&log, "of-the-gate");
    assert_eq!(
        (&line["message"], &line["reason"]),
        (&"the gate answered itself".into(), &"denied".into())
    );
    let others = json_lines(&log);
    assert!(
        !others
            .iter()
            .any(|line| line["request_id"] == "of-the-app" && line["message"].is_string())
    );
}

#[tokio::test]
async fn a_gate_tells_which_policy_is_in_force_and_counts_what_it_loaded() {
    let app = RecordingApp::answering(Step::Answer(ok("hello"))).await;
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let health = mesh.sidecar_health;
    let in_force = async |epoch: &str, counter: &str| {
        until_metric(health, "sandgate_sidecar_policy_generation_epoch", epoch).await;
        until_metric(health, "sandgate_sidecar_policy_generation_counter", counter).await;
    };
    let loads = async |success: &str, failure: &str| {
        for (outcome, count) in [("success", success), ("failure", failure)] {
            let name = format!("sandgate_sidecar_reloads_total{{file=\"policy\",outcome=\"{outcome}\"}}");
            until_metric(health, &name, count).await;
        }
    };
    in_force("1", "1").await;
    loads("1", "0").await;
    let mut policy = default_policy(model::DefaultPolicy::Authenticated, vec![app.port()]);
    (policy.generation.epoch, policy.generation.counter) = (7, 12);
    mesh.folder
        .rename_over("policy.json", serde_json::to_vec(&policy).unwrap());
    loads("2", "0").await;
    in_force("7", "12").await;
    mesh.folder.rename_over("policy.json", "neither JSON nor a policy");
    loads("2", "1").await;
    in_force("7", "12").await;
    let credentials = "sandgate_sidecar_reloads_total{file=\"credentials\",outcome=\"success\"}";
    assert_eq!(metric(health, credentials).await.as_deref(), Some("1"));
}
