//! What the programs promise to whoever starts, stops and watches them: exit codes, sentences, logs without secrets, and
//! a gate whose memory and sockets are closed to its neighbours.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use rustix::process::{Signal, geteuid};
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{
    Left, Process, ProcessMesh, Programs, command, json_lines, router_flags, sidecar_flags, until_ready,
};
use sandgate_tests::{RecordingApp, TOKEN, exchange, programs, status};
use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
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
        let expected = format!("PROXY_TIMEOUT_SECONDS: {bad:?} can't be used; the default is");
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

/// The user that gates run as in pods. Root sees everything of its own processes, so a test that runs as root starts the
/// gate as this one.
const GATE_USER: u32 = 2102;

/// A gate in the place of `mesh`'s own, and the user it runs as.
async fn start_gate(mesh: &mut ProcessMesh) -> (Process, u32) {
    mesh.sidecar.kill().await;
    // Another user may not be able to reach cargo's folder. Not copied by this process: as long as that had the copy open,
    // which any process that it starts meanwhile inherits for a moment, nobody could run it.
    let program = mesh.folder.path("sandbox-sidecar");
    let copied = Command::new("cp").arg(PROGRAMS.sidecar).arg(&program).status().unwrap();
    assert!(copied.success());
    let mut command = command(program.to_str().unwrap(), sidecar_flags(&mesh.folder, mesh.mesh));
    let user = geteuid().as_raw();
    let user = if user == 0 { GATE_USER } else { user };
    if geteuid().is_root() {
        command.uid(user).gid(user);
    }
    let mut gate = Process::start(command);
    let [health] = gate.listens(["health"]).await;
    mesh.sidecar_health.set_port(health.parse().unwrap());
    until_ready(mesh.sidecar_health, (200, "ok")).await;
    (gate, user)
}

#[tokio::test]
async fn the_gates_memory_cannot_be_read_by_its_own_user_and_is_never_dumped() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let (gate, user) = start_gate(&mut mesh).await;
    let file = |name: &str| format!("/proc/{}/{name}", gate.pid());
    let status = std::fs::read_to_string(file("status")).unwrap();
    assert!(status.contains(&format!("\nUid:\t{user}\t{user}\t")), "{status}");
    // The kernel gives the files of a process that must not be dumped to root, and so keeps its own user out.
    for name in ["mem", "environ", "maps", "auxv"] {
        assert_eq!(std::fs::metadata(file(name)).unwrap().uid(), 0, "{name}");
        if !geteuid().is_root() {
            let error = std::fs::read(file(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
        }
    }
    let limits = std::fs::read_to_string(file("limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    let core: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(core, ["0", "0", "bytes"]);
}

/// The rows of one of the kernel's tables of sockets, as words, without the headline.
fn sockets(table: &str) -> Vec<Vec<String>> {
    // A machine without IPv6 lacks the tables of it.
    let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let words = |line: &str| line.split_whitespace().map(String::from).collect();
    text.lines().skip(1).map(words).collect()
}

#[tokio::test]
async fn the_gate_listens_on_its_two_ports_and_on_nothing_else_and_talks_to_loopback_only() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let (gate, _) = start_gate(&mut mesh).await;
    let request = mesh.head("GET /", "Connection: close\r\n");
    let answer = exchange(TcpStream::connect(mesh.http).await.unwrap(), request, false).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let open = match std::fs::read_dir(format!("/proc/{}/fd", gate.pid())) {
        // Only root may look: that is the promise of the test before, and all that others can see of this one.
        Err(error) if !geteuid().is_root() => return assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        found => found.unwrap(),
    };
    let inodes: HashSet<String> = open
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();

    let (mut listening, mut others) = (HashSet::new(), 0);
    for row in ["tcp", "tcp6"].into_iter().flat_map(sockets) {
        let (local, remote, state, inode) = (&row[1], &row[2], &row[3], &row[9]);
        if !inodes.contains(inode) {
            continue;
        }
        // 127.0.0.1 as the kernel writes it on machines whose lowest byte comes first, and on others.
        assert!(
            local.starts_with("0100007F:") || local.starts_with("7F000001:"),
            "{row:?}"
        );
        if state == "0A" {
            listening.insert(u16::from_str_radix(local.split(':').nth(1).unwrap(), 16).unwrap());
        } else {
            assert_eq!(local.split(':').next(), remote.split(':').next(), "{row:?}");
            others += 1;
        }
    }
    assert_eq!(listening, HashSet::from([mesh.mesh.port(), mesh.sidecar_health.port()]));
    assert!(
        others >= 2,
        "the connections from the router and to the app were not seen"
    );
    for row in ["udp", "udp6", "udplite", "raw", "raw6"].into_iter().flat_map(sockets) {
        assert!(!inodes.contains(&row[9]), "{row:?}");
    }
    for row in sockets("packet") {
        assert!(!inodes.contains(&row[8]), "{row:?}");
    }
    // Neither a path nor a name without one (`@`): such sockets can be reached by whoever shares the network.
    for row in sockets("unix").into_iter().filter(|row| inodes.contains(&row[6])) {
        assert_eq!(row.get(7), None, "{row:?}");
    }
}
