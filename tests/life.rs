//! What becomes of requests when one of the programs is killed or told to end, and of the gate and the router when their
//! policy or their identity changes under them. Each program is a process of its own.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use rustix::process::Signal;
use sandgate_mesh::policy::model;
use sandgate_mesh::telemetry::utc;
use sandgate_tests::processes::{Process, ProcessMesh, Programs, command, get, until_ready};
use sandgate_tests::{
    RecordingApp, assert_detail, default_policy, exchange, ok, programs, read_until, rule, status, token_holder,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

const PROGRAMS: Programs = programs!();
/// No wait of these tests takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// Every request makes a connection, and so a handshake, of its own.
const NO_KEEPALIVE: &str = "--max-keepalive-connections=0";
const UNREACHABLE: &str = "Could not connect to the backend sandbox: alpha";
const NOT_READY: &str = "Sandbox gate is not ready: alpha";
const NO_IDENTITY: &str = "The router has no valid identity.";

/// A mesh in front of an app that is a process, too.
struct Scene {
    app: Process,
    port: u16,
    mesh: ProcessMesh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    App,
    Sidecar,
    Router,
}

impl Scene {
    async fn start() -> Self {
        let (app, port) = start_app(0).await;
        let mesh = ProcessMesh::start(PROGRAMS, port, &[]).await;
        Self { app, port, mesh }
    }

    async fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::App => self.app.kill().await,
            Victim::Sidecar => self.mesh.sidecar.kill().await,
            Victim::Router => self.mesh.router.kill().await,
        }
    }

    async fn restart(&mut self, victim: Victim) {
        match victim {
            Victim::App => self.app = start_app(self.port).await.0,
            Victim::Sidecar => {
                self.mesh.restart_sidecar().await;
                until_ready(self.mesh.sidecar_health, (200, "ok")).await;
            }
            Victim::Router => self.mesh.restart_router().await,
        }
    }

    /// Sends a request and waits until the app has its head and `begun` of the answer has come.
    async fn begin(&mut self, request: &str, begun: &str) -> TcpStream {
        let line = request.lines().next().unwrap().to_owned();
        let times = self.app.stdout().matches(&line).count() + 1;
        let mut client = TcpStream::connect(self.mesh.http).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        self.app.says(&line, times).await;
        if !begun.is_empty() {
            read_until(&mut client, begun.as_bytes()).await;
        }
        client
    }

    /// Fails unless a request is served, at the first attempt.
    async fn assert_serves(&self, context: &str) {
        let request = self.mesh.head("GET /", "Connection: close\r\n");
        let answer = exchange(TcpStream::connect(self.mesh.http).await.unwrap(), request, false).await;
        assert_eq!(status(&answer), 200, "{context}: {answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{context}: {answer}");
    }
}

async fn start_app(port: u16) -> (Process, u16) {
    let mut app = Process::start(command(PROGRAMS.app, [port.to_string()]));
    app.says("port ", 1).await;
    let port = app.stdout().trim().strip_prefix("port ").unwrap().parse().unwrap();
    (app, port)
}

/// What comes until the connection ends. A reset is an end, too.
async fn rest(mut client: TcpStream) -> String {
    let mut bytes = Vec::new();
    let reading = async { while let Ok(1..) = client.read_buf(&mut bytes).await {} };
    timeout(PATIENCE, reading).await.expect("the connection stays open");
    String::from_utf8(bytes).unwrap()
}

/// Kills one program in the middle of requests that are before their answer, in the middle of it, or still being sent.
/// Nobody may take what comes for a whole answer, nothing is sent to the app twice, and all works again once the
/// program does.
async fn nothing_is_completed_that_was_cut_off(victim: Victim) {
    let mut scene = Scene::start().await;
    for (line, upload, begun) in [
        ("GET /hang", "", ""),
        ("POST /upload", "Content-Length: 10\r\n\r\nabc", ""),
        ("GET /chunks", "", "begun\r\n"),
        ("GET /length", "", "begun"),
    ] {
        // So that there are kept connections whose other end will be gone.
        scene.assert_serves(line).await;
        let asked = format!("asked {line}");
        let ended = scene.app.stdout().matches("ended").count() + 1;
        let fields = format!("Connection: close\r\n{upload}");
        let client = scene.begin(&scene.mesh.head(line, &fields), begun).await;
        scene.kill(victim).await;
        let rest = rest(client).await;
        if begun.is_empty() && victim != Victim::Router {
            assert_detail(&rest, 502, UNREACHABLE, line);
        } else {
            assert_eq!(rest, "", "{line}");
        }
        if victim != Victim::App {
            scene.app.says("ended", ended).await;
        }
        scene.restart(victim).await;
        scene.assert_serves(line).await;
        // A new app hears of none that was before it.
        let times = usize::from(victim != Victim::App);
        assert_eq!(
            scene.app.stdout().matches(&asked).count(),
            times,
            "{line} was sent again"
        );
    }
}

#[tokio::test]
async fn requests_through_a_gate_that_is_killed_end_in_502_or_break_off() {
    nothing_is_completed_that_was_cut_off(Victim::Sidecar).await;
}

#[tokio::test]
async fn requests_to_an_app_that_is_killed_end_in_502_or_break_off() {
    nothing_is_completed_that_was_cut_off(Victim::App).await;
}

#[tokio::test]
async fn requests_through_a_router_that_is_killed_break_off_and_end_at_the_app() {
    nothing_is_completed_that_was_cut_off(Victim::Router).await;
}

/// An app that answers when it is told to: tells that a request came, and waits for its turn.
async fn patient_app() -> (RecordingApp, Arc<Notify>, Arc<Notify>) {
    let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, turn) = (Arc::clone(&asked), Arc::clone(&answer));
    let app = RecordingApp::serving(move |mut stream| {
        let (tell, turn) = (Arc::clone(&tell), Arc::clone(&turn));
        async move {
            read_until(&mut stream, b"\r\n\r\n").await;
            tell.notify_one();
            turn.notified().await;
            stream.write_all(&ok("whole")).await.unwrap();
        }
    });
    (app.await, asked, answer)
}

/// A request of which the app knows.
async fn under_way(mesh: &ProcessMesh, asked: &Notify) -> TcpStream {
    let mut client = TcpStream::connect(mesh.http).await.unwrap();
    let request = mesh.head("GET /", "Connection: close\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    timeout(PATIENCE, asked.notified()).await.unwrap();
    client
}

#[tokio::test]
async fn a_program_that_is_told_to_end_finishes_what_is_under_way_and_exits_with_0() {
    for (victim, signal) in [
        (Victim::Router, Signal::TERM),
        (Victim::Router, Signal::INT),
        (Victim::Sidecar, Signal::TERM),
        (Victim::Sidecar, Signal::INT),
    ] {
        let (app, asked, answer) = patient_app().await;
        let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
        let client = under_way(&mesh, &asked).await;
        let (process, health) = match victim {
            Victim::Sidecar => (mesh.sidecar, mesh.sidecar_health),
            _ => (mesh.router, mesh.router_health),
        };
        process.signal(signal);
        until_ready(health, (503, "draining")).await;
        answer.notify_one();
        let answer = rest(client).await;
        assert_eq!(status(&answer), 200, "{victim:?}: {answer}");
        assert!(answer.ends_with("\r\n\r\nwhole"), "{victim:?}: {answer}");
        let left = process.ended().await;
        assert_eq!(left.code, Some(0), "{victim:?}: {}", left.stderr);
        assert!(!left.stderr.contains("still under way"), "{}", left.stderr);
    }
}

#[tokio::test]
async fn a_program_that_is_told_to_end_exits_with_0_when_its_budget_is_spent() {
    let (app, asked, _answer) = patient_app().await;
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &["--shutdown-timeout=50ms"]).await;
    let client = under_way(&mesh, &asked).await;
    mesh.router.signal(Signal::TERM);
    let left = mesh.router.ended().await;
    assert_eq!(left.code, Some(0));
    assert!(left.stderr.contains("requests were still under way"), "{}", left.stderr);
    assert_eq!(rest(client).await, "");
}

#[tokio::test]
async fn a_router_that_is_told_twice_to_end_does_so_at_once() {
    let (app, asked, _answer) = patient_app().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &["--drain-delay=1h", "--shutdown-timeout=2h"]).await;
    let client = under_way(&mesh, &asked).await;
    mesh.router.signal(Signal::TERM);
    mesh.router.logs("draining", 1).await;
    mesh.router.signal(Signal::TERM);
    let left = mesh.router.ended().await;
    assert_eq!(left.code, Some(1), "{}", left.stderr);
    let said = "a second signal came before all requests were done";
    assert!(left.stderr.contains(said), "{}", left.stderr);
    assert_eq!(rest(client).await, "");
}

/// Sends a request on a connection of its own.
async fn ask(mesh: &ProcessMesh, line: &str) -> String {
    let request = mesh.head(line, "Connection: close\r\n");
    exchange(TcpStream::connect(mesh.http).await.unwrap(), request, false).await
}

/// Asks until the answer has this status. Any other must be `before`.
async fn until_answered(mesh: &ProcessMesh, line: &str, before: u16, expected: u16) -> String {
    let asking = async {
        loop {
            let answer = ask(mesh, line).await;
            if status(&answer) == expected {
                return answer;
            }
            assert_eq!(status(&answer), before, "{answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answered = timeout(PATIENCE, asking).await;
    answered.unwrap_or_else(|_| panic!("{line} never was {expected}"))
}

fn write_policy(mesh: &ProcessMesh, snapshot: &model::Snapshot) {
    let text = serde_json::to_vec(snapshot).unwrap();
    mesh.folder.rename_over("policy.json", text);
}

#[tokio::test]
async fn a_changed_policy_file_is_enforced_while_running_and_a_bad_one_changes_nothing() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    assert_eq!(status(&ask(&mesh, "GET /secret").await), 200);

    write_policy(&mesh, &rule(token_holder(), app.port(), &["GET"], &["/public/*"]));
    let refused = until_answered(&mesh, "GET /secret", 200, 403).await;
    assert_detail(&refused, 403, "Refused by the sandbox policy of alpha.", "narrowed");
    assert_eq!(status(&ask(&mesh, "GET /public/page").await), 200);

    let seen = app.requests().len();
    let unusable = "\"consequence\":\"the previous one stays in force\"";
    mesh.folder
        .rename_over("policy.json", r#"{"version":1,"defaultPolicy":"anonymous"}"#);
    mesh.sidecar.logs(unusable, 1).await;
    assert_eq!(status(&ask(&mesh, "GET /secret").await), 403);
    std::fs::remove_file(mesh.folder.path("policy.json")).unwrap();
    mesh.sidecar.logs(unusable, 2).await;
    assert_eq!(status(&ask(&mesh, "GET /secret").await), 403);
    let mut older = default_policy(model::DefaultPolicy::Authenticated, vec![app.port()]);
    older.generation.epoch = 0;
    write_policy(&mesh, &older);
    mesh.sidecar.logs("its generation is lower", 1).await;
    assert_eq!(status(&ask(&mesh, "GET /secret").await), 403);
    assert_eq!(app.requests().len(), seen, "the app saw what was refused");
    assert_eq!(status(&ask(&mesh, "GET /public/page").await), 200);
    until_ready(mesh.sidecar_health, (200, "ok")).await;
    let log = mesh.sidecar.stderr();
    assert!(log.contains("missing field `generation`"), "{log}");
    assert!(log.contains("policy.json does not exist"), "{log}");

    write_policy(
        &mesh,
        &default_policy(model::DefaultPolicy::Authenticated, vec![app.port()]),
    );
    until_answered(&mesh, "GET /secret", 403, 200).await;
}

#[tokio::test]
async fn a_gate_without_a_policy_file_refuses_everything_and_is_not_ready_until_there_is_one() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    std::fs::remove_file(mesh.folder.path("policy.json")).unwrap();
    mesh.sidecar.kill().await;
    mesh.restart_sidecar().await;
    until_ready(mesh.sidecar_health, (503, "no policy snapshot")).await;
    assert_eq!(get(mesh.sidecar_health, "/healthz").await.0, 200);
    let refused = ask(&mesh, "GET /").await;
    assert_detail(&refused, 503, NOT_READY, "no policy file");
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    app.assert_untouched("no policy file");

    write_policy(
        &mesh,
        &default_policy(model::DefaultPolicy::Authenticated, vec![app.port()]),
    );
    until_ready(mesh.sidecar_health, (200, "ok")).await;
    assert_eq!(status(&ask(&mesh, "GET /").await), 200);
}

/// Gives a program a certificate that ends in so many seconds, and returns what `/readyz` says afterwards.
fn expire(mesh: &ProcessMesh, program: &str, seconds: u64) -> String {
    let end = SystemTime::now() + Duration::from_secs(seconds);
    mesh.issue(program, |spec| spec.not_after = end);
    format!("certificate expired at {}", utc(end))
}

#[tokio::test]
async fn a_gate_whose_identity_has_expired_is_not_ready_and_serves_no_new_connection() {
    let app = RecordingApp::polite().await;
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[NO_KEEPALIVE]).await;
    let expired = expire(&mesh, "sidecar", 3);
    until_ready(mesh.sidecar_health, (503, &expired)).await;
    let refused = ask(&mesh, "GET /").await;
    assert_detail(&refused, 503, NOT_READY, "expired");
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    app.assert_untouched("expired");
    mesh.issue("sidecar", |_| {});
    until_ready(mesh.sidecar_health, (200, "ok")).await;
    assert_eq!(status(&ask(&mesh, "GET /").await), 200);
}

#[tokio::test]
async fn a_router_whose_identity_has_expired_is_not_ready_and_says_so_to_callers() {
    let app = RecordingApp::polite().await;
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[NO_KEEPALIVE]).await;
    let expired = expire(&mesh, "router", 3);
    until_ready(mesh.router_health, (503, &expired)).await;
    let refused = ask(&mesh, "GET /").await;
    assert_detail(&refused, 503, NO_IDENTITY, "expired");
    assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    app.assert_untouched("expired");
    mesh.issue("router", |_| {});
    until_ready(mesh.router_health, (200, "ok")).await;
    assert_eq!(status(&ask(&mesh, "GET /").await), 200);
}

#[tokio::test]
async fn an_expired_certificate_does_not_take_the_place_of_one_that_serves() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[NO_KEEPALIVE]).await;
    expire(&mesh, "sidecar", 0);
    mesh.sidecar.logs("can't be used (certificate expired at ", 1).await;
    assert_eq!(get(mesh.sidecar_health, "/readyz").await, (200, "ok".to_owned()));
    assert_eq!(status(&ask(&mesh, "GET /").await), 200);
}
