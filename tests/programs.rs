//! What the programs promise to whoever starts, stops and watches them: exit codes, sentences, logs without secrets.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use rustix::process::Signal;
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{
    Left, Process, ProcessMesh, Programs, command, json_lines, router_flags, sidecar_flags,
};
use sandgate_tests::{RecordingApp, TOKEN, closed_port, exchange, programs, status};
use tokio::net::{TcpListener, TcpStream};

const PROGRAMS: Programs = programs!();

async fn run(path: &str, args: &[&str]) -> Left {
    Process::start(command(path, args)).ended().await
}

#[tokio::test]
async fn a_router_that_cannot_start_says_everything_that_is_wrong_at_once() {
    let left = run(
        PROGRAMS.router,
        &[
            "--proxy-timeout=soon",
            "-http-bind-address",
            "here",
            "--mtls-mode=required",
            "--tls-cert-file=front.crt",
            "--sandbox-endpoint=team-a/alpha=10.0.0.7",
            "--sandbox-endpoint=team-a/alpha=10.0.0.8,uid=8f1c",
        ],
    )
    .await;
    assert_eq!((left.code, left.stdout.as_str()), (Some(64), ""));
    for problem in [
        "'--proxy-timeout <PROXY_TIMEOUT>': \"soon\" is not a duration",
        "'--http-bind-address <HTTP_BIND_ADDRESS>': \"here\" is not an address",
        "--mtls-mode needs the HTTPS listener",
        "--tls-cert-file needs the HTTPS listener: set --https-bind-address",
        "--sandbox-endpoint: team-a/alpha is given more than once",
        "--mesh-cert-file, --mesh-key-file and --mesh-trust-bundle-file",
        // The choices about callers.
        "ROUTER_AUTH_TOKEN (or --auth-token)",
        "--authz-mode=allow-all or ALLOW_UNAUTHENTICATED_ROUTER=true",
    ] {
        assert!(left.stderr.contains(problem), "{problem}: {}", left.stderr);
    }

    let left = run(
        PROGRAMS.router,
        &["--authz-mode=allow-all", "--mesh=off", "--log-level=a=b=c"],
    )
    .await;
    assert_eq!(left.code, Some(64));
    assert!(left.stderr.contains("--log-level: "), "{}", left.stderr);
}

#[tokio::test]
async fn bad_old_variables_are_said_to_be_ignored() {
    for bad in ["1e300", "0"] {
        let mut command = command(PROGRAMS.router, ["--mesh=off", "--http-bind-address=192.0.2.1:1"]);
        command
            .env("ALLOW_UNAUTHENTICATED_ROUTER", "yes")
            .env("PROXY_TIMEOUT_SECONDS", bad);
        let left = Process::start(command).ended().await;
        // 192.0.2.1 is nobody's address, so the router ends by itself.
        assert_eq!(left.code, Some(1));
        let lines = json_lines(&left.stderr);
        let warning = lines.iter().find(|line| line["level"] == "WARN");
        let warning = warning.unwrap_or_else(|| panic!("nothing is said about {bad}: {}", left.stderr));
        let expected = format!(
            "PROXY_TIMEOUT_SECONDS: {bad:?} can't be used: write a number of seconds above 0, like 180 or 1.5, without a \
             unit. 180s is used, the default"
        );
        assert_eq!(warning["message"], expected);
    }
}

#[tokio::test]
async fn a_gate_that_cannot_start_says_why() {
    let left = run(PROGRAMS.sidecar, &["--tls-cert-file=c", "--sandbox=alpha"]).await;
    assert_eq!((left.code, left.stdout.as_str()), (Some(64), ""));
    for flag in [
        "--namespace",
        "--pod-uid",
        "--router-identity",
        "--tls-key-file",
        "--policy-file",
    ] {
        assert!(left.stderr.contains(flag), "{flag}: {}", left.stderr);
    }
    let mut flags = sidecar_flags(&Folder::new(), "127.0.0.1:0".parse().unwrap());
    flags.push("--log-level=a=b=c".into());
    let left = Process::start(command(PROGRAMS.sidecar, flags)).ended().await;
    assert_eq!(left.code, Some(64));
    assert!(left.stderr.contains("--log-level: "), "{}", left.stderr);
}

#[tokio::test]
async fn a_gate_with_bad_values_says_all_of_them_at_once_also_those_of_variables() {
    let flags = ["--sandbox", "Alpha", "--proxy-timeout=0", "--max-request-headers=0"];
    let mut command = command(PROGRAMS.sidecar, flags);
    command
        .env("SANDGATE_NAMESPACE", "A")
        .env("SANDGATE_POD_UID", "8f1c")
        .env("SANDGATE_APP_PROBES", "{");
    let left = Process::start(command).ended().await;
    assert_eq!((left.code, left.stdout.as_str()), (Some(64), ""));
    let mut lines = left.stderr.lines();
    assert_eq!(lines.next(), Some("sandbox-sidecar can't start:"));
    let problems = [
        "invalid value 'Alpha' for '--sandbox <SANDBOX>': ",
        "invalid value '0' for '--proxy-timeout <PROXY_TIMEOUT>': must be above 0",
        "--max-request-headers is 0, ",
        "invalid value 'A' for '--namespace <NAMESPACE>': ",
        "invalid value '{' for '--app-probes <APP_PROBES>': ",
        "--router-identity <ROUTER_IDENTITY> is not given",
        "no way to an identity and a policy is given: --tls-cert-file, ",
    ];
    for problem in problems {
        let said = |line: &str| line.strip_prefix("  - ").is_some_and(|line| line.starts_with(problem));
        assert!(left.stderr.lines().any(said), "{problem}: {}", left.stderr);
    }
    assert_eq!(lines.count(), problems.len(), "{}", left.stderr);
}

#[tokio::test]
async fn a_taken_port_is_named_in_one_sentence() {
    let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = held.local_addr().unwrap();
    let folder = Folder::new();
    let sentence = format!("can't listen on {address}: Address already in use (os error 98)");
    let sidecar = command(PROGRAMS.sidecar, sidecar_flags(&folder, address));
    let bind = |flag: &str| format!("--{flag}={address}");
    let open = ["--authz-mode=allow-all".to_owned(), "--mesh=off".to_owned()];
    let router = |flag| {
        let flags = [router_flags(&folder, address), open.to_vec(), vec![bind(flag)]];
        command(PROGRAMS.router, flags.concat())
    };
    for command in [
        sidecar,
        router("http-bind-address"),
        router("metrics-bind-address"),
        router("health-probe-bind-address"),
    ] {
        let name = format!("{command:?}");
        let left = Process::start(command).ended().await;
        assert_eq!((left.code, left.stdout.as_str()), (Some(1), ""), "{name}");
        let lines = json_lines(&left.stderr);
        let last = lines.last().unwrap();
        assert_eq!(
            (&last["level"], &last["error"]),
            (&"ERROR".into(), &sentence.as_str().into()),
            "{name}"
        );
    }
}

/// What nobody may find in any output: in a token, a cookie, a query string, a body.
const SECRETS: [&str; 6] = [
    TOKEN,
    "wrong-horse",
    "query-secret",
    "cookie-secret",
    "body-secret",
    "proxy-secret",
];

#[tokio::test]
async fn no_secret_of_any_request_is_logged_at_any_level_and_every_log_line_is_json() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &["--log-level=trace"]).await;
    let secrets = "Cookie: session=cookie-secret\r\nProxy-Authorization: Basic proxy-secret\r\n\
                   Referer: http://a/?t=query-secret\r\nConnection: close\r\n";
    let line = "GET /page?token=query-secret";
    let good = mesh.head(line, secrets);
    let upload = mesh.head(
        "POST /page?token=query-secret",
        &format!("{secrets}Content-Length: 11\r\n"),
    );
    let absolute = mesh.head("GET http://user:proxy-secret@a/page?token=query-secret", secrets);
    for (request, expected) in [
        (good.clone(), 200),
        (format!("{upload}body-secret"), 200),
        (absolute, 200),
        (good.replace(TOKEN, "wrong-horse"), 401),
        (good.replace("Bearer", "Basic"), 401),
        (good.replace("ID: alpha", "ID: query-secret="), 400),
        (good.replace(&format!("Port: {}", app.port()), "Port: 9"), 403),
        (good.replace("GET /page", "GET /page\x01"), 400),
        (good.replace("Referer: ", "Referer : "), 400),
        (good.replace("GET", "CONNECT"), 405),
    ] {
        let answer = exchange(TcpStream::connect(mesh.http).await.unwrap(), &request, false).await;
        assert_eq!(status(&answer), expected, "{request}{answer}");
        assert!(!SECRETS.iter().any(|secret| answer.contains(secret)), "{answer}");
    }
    mesh.sidecar.kill().await;
    let answer = exchange(TcpStream::connect(mesh.http).await.unwrap(), &good, false).await;
    assert_eq!(status(&answer), 502, "{answer}");

    let gate_log = mesh.sidecar.stderr();
    mesh.router.signal(Signal::TERM);
    let left = mesh.router.ended().await;
    assert_eq!(left.code, Some(0));
    for output in [&left.stderr, &left.stdout, &gate_log, &mesh.sidecar.stdout()] {
        for secret in SECRETS {
            assert!(!output.contains(secret), "{secret}: {output}");
        }
    }
    assert_eq!((left.stdout.as_str(), mesh.sidecar.stdout().as_str()), ("", ""));
    for (log, kind) in [(&left.stderr, "access"), (&gate_log, "audit")] {
        let lines = json_lines(log);
        let paths = lines
            .iter()
            .filter(|line| line["log"] == kind && line["path"] == "/page");
        assert!(paths.count() >= 3, "{log}");
    }
}

#[tokio::test]
async fn a_program_without_its_api_server_says_why_there_is_no_connection() {
    let (_held, port) = closed_port();
    let folder = Folder::new();
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    folder.rename_over("kubeconfig", config.to_string());
    let kubeconfig = format!("--kubeconfig={}", folder.path("kubeconfig").display());
    let addresses = ["http", "metrics", "health-probe"].map(|which| format!("--{which}-bind-address=127.0.0.1:0"));
    let flags = ["--mesh=off", "--authz-mode=allow-all", "--cache-enabled", &kubeconfig];
    let args = flags.into_iter().chain(addresses.iter().map(String::as_str));
    let mut router = Process::start(command(PROGRAMS.router, args));
    let text = "can't follow the API server";
    router.logs(text, 1).await;
    let log = router.stderr();
    let line = log.lines().find(|line| line.contains(text)).unwrap();
    assert!(line.contains("Connection refused"), "{line}");
}
