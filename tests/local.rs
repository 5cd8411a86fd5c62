//! `sandgate-local` as whoever starts it meets it: what it prints, what it serves, how it ends and how it refuses.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use rustix::process::Signal;
use sandgate_mesh::policy::model;
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{Left, Process, Programs, command};
use sandgate_tests::{
    RecordingApp, Step, TOKEN, assert_detail, default_policy, exchange, programs, rule, status, token_holder,
};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

const PROGRAMS: Programs = programs!();
/// No wait of these tests takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// The program in front of an app that runs already.
struct Local {
    process: Process,
    router: SocketAddr,
    app: u16,
}

impl Local {
    async fn start(app: &RecordingApp, more: &[&str]) -> Self {
        let mut process = start(app.port(), more);
        process.says("ready http://", 1).await;
        let ready = process.stdout();
        let router = ready.trim_end().strip_prefix("ready http://").unwrap();
        Self {
            router: router.parse().unwrap(),
            process,
            app: app.port(),
        }
    }

    async fn ask(&self, line: &str) -> String {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: dev\r\n\
             X-Sandbox-Port: {}\r\nConnection: close\r\n",
            self.app
        );
        let body = if line.starts_with("POST ") {
            "Content-Length: 4\r\n\r\nbody"
        } else {
            "\r\n"
        };
        exchange(TcpStream::connect(self.router).await.unwrap(), request + body, false).await
    }

    /// Asks until the answer has this status.
    async fn until(&self, line: &str, expected: u16) -> String {
        let asking = async {
            loop {
                let answer = self.ask(line).await;
                if status(&answer) == expected {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let answered = timeout(PATIENCE, asking).await;
        answered.unwrap_or_else(|_| panic!("{line} never was {expected}"))
    }
}

fn start(app: u16, more: &[&str]) -> Process {
    let sandbox = format!("dev={app}");
    let flags = ["--listen=127.0.0.1:0", "--token", TOKEN, "--sandbox", &sandbox];
    Process::start(command(PROGRAMS.local, flags.iter().chain(more)))
}

#[tokio::test]
async fn one_line_on_standard_output_says_where_it_serves_and_a_signal_ends_it() {
    for signal in [Signal::TERM, Signal::INT] {
        let app = RecordingApp::polite().await;
        let local = Local::start(&app, &[]).await;
        assert_eq!(status(&local.ask("GET /").await), 200);
        assert_eq!(status(&local.ask("DELETE /").await), 200);
        let heads = app.heads();
        assert!(heads.iter().all(|head| !head.contains(TOKEN)), "{heads:?}");
        local.process.signal(signal);
        let left = local.process.ended().await;
        assert_eq!(left.code, Some(0), "{}", left.stderr);
        assert_eq!(left.stdout, format!("ready http://{}\n", local.router));
        assert!(left.stderr.contains(TOKEN), "the token wasn't told: {}", left.stderr);
    }
}

#[tokio::test]
async fn each_decision_of_a_gate_and_each_failure_is_told() {
    let app = RecordingApp::answering(Step::Close(Vec::new())).await;
    let local = Local::start(&app, &[]).await;
    assert_eq!(status(&local.ask("GET /page?secret").await), 502);
    local.process.signal(Signal::TERM);
    let left = local.process.ended().await;
    let audit: Vec<_> = left
        .stderr
        .lines()
        .filter(|line| line.contains("\"log\":\"audit\""))
        .collect();
    assert_eq!(audit.len(), 1, "{}", left.stderr);
    let audit: serde_json::Value = serde_json::from_str(audit[0]).unwrap();
    for (name, expected) in [("decision", "allow"), ("sandbox", "default/dev"), ("path", "/page")] {
        assert_eq!(audit[name], expected, "{audit}");
    }
    let failure = left
        .stderr
        .lines()
        .find(|line| line.contains("the app did not answer the request"));
    let failure = failure.unwrap_or_else(|| panic!("{}", left.stderr));
    assert!(
        failure.contains("reason=\"broken\"") && failure.contains(audit["request_id"].as_str().unwrap()),
        "{failure}"
    );
    assert!(!left.stderr.contains("page?secret"), "{}", left.stderr);
}

#[tokio::test]
async fn a_second_signal_ends_it_in_the_middle_of_a_request() {
    let app = RecordingApp::start(|_| Step::Wait).await;
    let mut local = Local::start(&app, &[]).await;
    let asking = async {
        let answer = local.ask("GET /").await;
        // The gate may be gone a moment before the router.
        assert!(matches!(status(&answer), 0 | 502), "{answer}");
    };
    let ending = async {
        while app.heads().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        local.process.signal(Signal::TERM);
        while !local.process.stderr().contains("draining; Ctrl-C again ends at once") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        local.process.signal(Signal::TERM);
    };
    let both = async { tokio::join!(asking, ending) };
    timeout(PATIENCE, both).await.unwrap();
    local.process.logs("interrupted before all requests were done", 1).await;
    assert_eq!(local.process.ended().await.code, Some(1));
}

#[tokio::test]
async fn without_a_mesh_the_app_gets_requests_from_the_router_itself() {
    let app = RecordingApp::polite().await;
    let mut local = Local::start(&app, &["--mesh", "off"]).await;
    assert_eq!(status(&local.ask("GET /").await), 200);
    let head = app.only_request().head;
    assert!(
        !head.contains(TOKEN) && head.contains("\r\nx-forwarded-for: 127.0.0.1\r\n"),
        "{head}"
    );
    local.process.logs("no gate (--mesh off)", 1).await;
}

#[tokio::test]
async fn flags_after_two_dashes_reach_the_router() {
    let app = RecordingApp::polite().await;
    let local = Local::start(&app, &["--", "--max-request-body-bytes=3", "--access-log"]).await;
    assert_detail(&local.ask("POST /").await, 413, "Request body is too large.", "4 bytes");
    assert_eq!(status(&local.ask("GET /logged").await), 200);
    local.process.signal(Signal::TERM);
    let left = local.process.ended().await;
    let line = |line: &&str| line.contains("\"log\":\"access\"") && line.contains("\"path\":\"/logged\"");
    assert_eq!(left.stderr.lines().filter(line).count(), 1, "{}", left.stderr);
    assert!(!left.stdout.contains("/logged"), "{}", left.stdout);
}

#[tokio::test]
async fn a_policy_file_is_enforced_and_followed_and_a_bad_change_is_not_taken() {
    let (app, folder) = (RecordingApp::polite().await, Folder::new());
    let write = |snapshot: &model::Snapshot| folder.rename_over("policy.json", serde_json::to_vec(snapshot).unwrap());
    write(&rule(token_holder(), app.port(), &["GET"], &["/public/*"]));
    let path = folder.path("policy.json");
    let mut local = Local::start(&app, &["--policy", path.to_str().unwrap()]).await;
    assert_detail(
        &local.ask("GET /").await,
        403,
        "Refused by the sandbox policy of dev.",
        "not public",
    );
    assert_eq!(app.requests().len(), 0);
    assert_eq!(status(&local.ask("GET /public/").await), 200);

    folder.rename_over("policy.json", "{");
    local.process.logs("the previous one stays in force", 1).await;
    assert_eq!(status(&local.ask("GET /").await), 403);
    write(&default_policy(model::DefaultPolicy::Authenticated, vec![app.port()]));
    local.until("GET /", 200).await;
}

/// What is left of a start that fails: `code` and one sentence, and no promise to serve.
fn assert_refused(left: &Left, code: i32, sentence: &str) {
    assert_eq!((left.code, left.stdout.as_str()), (Some(code), ""), "{}", left.stderr);
    assert!(left.stderr.starts_with("sandgate-local: "), "{}", left.stderr);
    assert!(left.stderr.contains(sentence), "{sentence}: {}", left.stderr);
    assert_eq!(left.stderr.lines().count(), 1, "{}", left.stderr);
}

#[tokio::test]
async fn an_app_that_is_not_there_is_named_before_anything_is_served() {
    // Bound, so that nobody else gets the port, and not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    for more in [&[] as &[_], &["--mesh", "off"]] {
        let left = start(port, more).ended().await;
        let sentence = format!(
            "nothing answers on 127.0.0.1:{port}, where the app of sandbox dev should listen; start the app first, or \
             correct --sandbox dev=…"
        );
        assert_refused(&left, 1, &sentence);
    }
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_flag_that_moves_it() {
    let (app, held) = (
        RecordingApp::polite().await,
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let taken = held.local_addr().unwrap();
    let sandbox = format!("dev={}", app.port());
    let flags = [format!("--listen={taken}"), "--sandbox".into(), sandbox];
    let left = Process::start(command(PROGRAMS.local, &flags)).ended().await;
    assert_refused(
        &left,
        1,
        &format!("{taken} is taken; choose another address with --listen"),
    );

    // --listen would be of no use here.
    let left = start(app.port(), &["--", &format!("--metrics-bind-address={taken}")])
        .ended()
        .await;
    assert_refused(&left, 1, &format!("the router can't start: can't listen on {taken}: "));
    assert!(!left.stderr.contains("--listen"), "{}", left.stderr);
}

#[tokio::test]
async fn a_policy_that_cannot_be_used_is_a_bad_configuration() {
    let (app, folder) = (RecordingApp::polite().await, Folder::new());
    folder.rename_over("policy.json", r#"{"version":2}"#);
    let path = folder.path("policy.json");
    let left = start(app.port(), &["--policy", path.to_str().unwrap()]).ended().await;
    assert_refused(&left, 64, &format!("--policy: policy file ({}): ", path.display()));
    let path = folder.path("absent.json");
    let left = start(app.port(), &["--policy", path.to_str().unwrap()]).ended().await;
    assert_refused(
        &left,
        64,
        &format!("--policy: policy file: {} does not exist", path.display()),
    );
}

#[tokio::test]
async fn flags_that_the_router_does_not_know_or_take_are_a_bad_configuration() {
    let app = RecordingApp::polite().await;
    for (flag, sentence) in [
        ("--no-such-flag", "unexpected argument '--no-such-flag'"),
        ("--proxy-timeout=soon", "\"soon\" is not a duration"),
        ("--proxy-timeout=0", "must be above 0"),
    ] {
        let left = start(app.port(), &["--", flag]).ended().await;
        assert_eq!((left.code, left.stdout.as_str()), (Some(64), ""), "{flag}");
        assert!(
            left.stderr.starts_with("sandgate-local: the router's configuration: "),
            "{}",
            left.stderr
        );
        assert!(left.stderr.contains(sentence), "{}", left.stderr);
        assert!(!left.stderr.contains(TOKEN), "{}", left.stderr);
    }
}
