//! The router's configuration as its users meet it: flags, file and variables of the real program, and its commands.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use rustix::process::Signal;
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{Left, Process, Programs, command, json_lines};
use sandgate_tests::{RecordingApp, exchange, programs, status};
use std::path::PathBuf;
use tokio::net::TcpStream;

const PROGRAMS: Programs = programs!();
const SECRET: &str = "hunter2-correct";
const VALID: &str = "The configuration is valid. Certificates and other files that it names weren't opened.\n";

async fn run(args: &[&str], variables: &[(&str, &str)]) -> Left {
    let mut command = command(PROGRAMS.router, args);
    command.envs(variables.iter().copied());
    Process::start(command).ended().await
}

/// A folder with a file of this text.
fn file(text: &str) -> (Folder, PathBuf) {
    let folder = Folder::new();
    let path = folder.path("router.yaml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// What `config print` writes.
async fn printed(args: &[&str], variables: &[(&str, &str)]) -> String {
    let left = run(&[&["config", "print"], args].concat(), variables).await;
    assert_eq!(
        (left.code, left.stderr.as_str()),
        (Some(0), ""),
        "{args:?} {variables:?}"
    );
    left.stdout
}

#[tokio::test]
async fn a_flag_wins_over_the_file_the_file_over_the_variable_and_that_over_the_default() {
    // The key; its variable with a text and with what that means; the file's and the flag's value; the default.
    let rows = [
        (
            "cluster-domain",
            "CLUSTER_DOMAIN",
            " env.local ",
            "env.local",
            "file.local",
            "flag.local",
            "cluster.local",
        ),
        (
            "proxy-timeout",
            "PROXY_TIMEOUT_SECONDS",
            "2.5",
            "2.5s",
            "3s",
            "4s",
            "180s",
        ),
        (
            "max-keepalive-connections",
            "MAX_KEEPALIVE_CONNECTIONS",
            "21",
            "21",
            "22",
            "23",
            "20",
        ),
        (
            "websocket-idle-timeout",
            "WEBSOCKET_IDLE_TIMEOUT_SECONDS",
            "0",
            "0s",
            "1m",
            "2m",
            "3600s",
        ),
        (
            "websocket-max-lifetime",
            "WEBSOCKET_MAX_LIFETIME_SECONDS",
            "1e3",
            "1000s",
            "1m",
            "2m",
            "86400s",
        ),
        (
            "trusted-proxy-cidrs",
            "TRUSTED_PROXY_CIDRS",
            "10.0.0.0/8, ::1",
            "10.0.0.0/8,::1",
            "192.0.2.0/24",
            "",
            "",
        ),
    ];
    for (key, variable, text, by_variable, by_file, by_flag, default) in rows {
        let (_folder, path) = file(&format!("{key}: {by_file}\n"));
        let config = format!("--config={}", path.display());
        let flag = format!("--{key}={by_flag}");
        let variables = [(variable, text)];
        let cases = [
            (vec![], &[][..], default, "default".to_owned()),
            (vec![], &variables, by_variable, format!("variable {variable}")),
            (vec![&*config], &variables, by_file, "file".into()),
            (vec![&config, &flag], &variables, by_flag, "flag".into()),
            (vec![&flag], &variables, by_flag, "flag".into()),
        ];
        for (args, variables, expected, origin) in cases {
            let args = [vec!["--mesh=off", "--authz-mode=allow-all"], args].concat();
            let text = printed(&args, variables).await;
            let line = text.lines().find(|line| line.starts_with(&format!("{key}: "))).unwrap();
            assert_eq!(
                line.replace('"', ""),
                format!("{key}: {expected} # {origin}"),
                "{args:?} {variables:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_variable_that_cannot_be_used_is_warned_of_only_where_it_would_count() {
    for (variable, bad, key, default) in [
        ("PROXY_TIMEOUT_SECONDS", "0", "proxy-timeout", "180s"),
        ("PROXY_TIMEOUT_SECONDS", "3m", "proxy-timeout", "180s"),
        ("MAX_KEEPALIVE_CONNECTIONS", "-1", "max-keepalive-connections", "20"),
        (
            "WEBSOCKET_IDLE_TIMEOUT_SECONDS",
            "-1",
            "websocket-idle-timeout",
            "3600s",
        ),
        (
            "WEBSOCKET_MAX_LIFETIME_SECONDS",
            "inf",
            "websocket-max-lifetime",
            "86400s",
        ),
        (
            "WEBSOCKET_MAX_CONNECTIONS_PER_CLIENT",
            "1.5",
            "websocket-max-connections-per-client",
            "64",
        ),
        (
            "WEBSOCKET_MAX_MESSAGE_BYTES",
            "16Mi",
            "websocket-max-message-bytes",
            "16777216",
        ),
    ] {
        let open = ["config", "validate", "--mesh=off", "--authz-mode=allow-all"];
        let left = run(&open, &[(variable, bad)]).await;
        let (start, end) = (
            format!("warning: {variable}: {bad:?} can't be used: write a "),
            format!(". {default} is used, the default\n{VALID}"),
        );
        assert_eq!(left.code, Some(0));
        assert!(
            left.stdout.starts_with(&start) && left.stdout.ends_with(&end),
            "{}",
            left.stdout
        );
        let flag = format!("--{key}={default}");
        let left = run(&[&open[..], &[&flag]].concat(), &[(variable, bad)]).await;
        assert_eq!((left.code, left.stdout.as_str()), (Some(0), VALID));
    }
    let left = run(
        &["config", "validate", "--mesh=off"],
        &[
            ("TRUSTED_PROXY_CIDRS", "10.0.0.0/8,here"),
            ("ALLOW_UNAUTHENTICATED_ROUTER", " On "),
        ],
    );
    let left = left.await;
    assert!(
        left.stdout
            .starts_with("warning: TRUSTED_PROXY_CIDRS: \"here\" is not a network"),
        "{}",
        left.stdout
    );
    assert_eq!(left.code, Some(0));
}

#[tokio::test]
async fn everybody_is_let_in_only_by_a_decision_and_a_token_wins_over_the_old_variable() {
    const ALLOW: &str = "ALLOW_UNAUTHENTICATED_ROUTER";
    let off = ["config", "print", "--mesh=off"];
    for no in ["", "0", "false", "no", "nonsense"] {
        let left = run(&off, &[(ALLOW, no)]).await;
        assert_eq!(left.code, Some(64), "{no}");
        assert!(left.stderr.contains("nothing says who may call"), "{}", left.stderr);
    }
    for blank in ["", "  "] {
        let left = run(&off, &[(ALLOW, "true"), ("ROUTER_AUTH_TOKEN", blank)]).await;
        let line = format!("authz-mode: \"allow-all\" # variable {ALLOW}\n");
        assert!(
            left.stdout.contains(&line) && left.stdout.contains("# auth-token: not set\n"),
            "{}",
            left.stdout
        );
    }
    let (_folder, path) = file(&format!("auth-token: {SECRET}\n"));
    let config = format!("--config={}", path.display());
    for (args, variables) in [
        (vec!["--mesh=off"], vec![(ALLOW, "true"), ("ROUTER_AUTH_TOKEN", SECRET)]),
        (vec!["--mesh=off", &config], vec![(ALLOW, "true")]),
    ] {
        let text = printed(&args, &variables).await;
        assert!(
            text.contains("# authz-mode: not set\n") && text.contains("auth-token: \"<redacted>\" # "),
            "{text}"
        );
    }
}

#[tokio::test]
async fn what_config_print_writes_makes_the_same_configuration_and_no_token() {
    let flags = [
        "--mesh=off",
        "--proxy-timeout=90s",
        "--sandbox-endpoint=a/b=10.0.0.1",
        "--access-log=false",
    ];
    let variables = [("ROUTER_AUTH_TOKEN", SECRET), ("MAX_KEEPALIVE_CONNECTIONS", "7")];
    let first = printed(&flags, &variables).await;
    assert!(!first.contains(SECRET), "{first}");
    let (_folder, path) = file(&first);
    let config = format!("--config={}", path.display());

    // Where the token comes from elsewhere, that is the one.
    let second = printed(&[&config], &variables[..1]).await;
    assert!(
        second.contains("auth-token: \"<redacted>\" # variable ROUTER_AUTH_TOKEN\n"),
        "{second}"
    );
    let values = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(values(&second), values(&first));
    assert!(values(&first).len() > 20, "{first}");

    // Where it comes from nowhere, it isn't forgotten, whatever else the environment says.
    for variables in [
        &[][..],
        &[("ALLOW_UNAUTHENTICATED_ROUTER", "true")],
        &[("ROUTER_AUTH_TOKEN", " ")],
    ] {
        for args in [&["config", "validate", &config][..], &[&config]] {
            let left = run(args, variables).await;
            assert_eq!(
                (left.code, left.stdout.as_str()),
                (Some(64), ""),
                "{args:?} {variables:?}"
            );
            assert!(
                left.stderr.contains("  - auth-token is <redacted>, "),
                "{}",
                left.stderr
            );
        }
    }
}

#[tokio::test]
async fn config_validate_says_whether_the_router_would_start() {
    let (_folder, good) = file("mesh: off\nauthz-mode: allow-all\n");
    let good = format!("--config={}", good.display());
    let left = run(&["config", "validate", &good], &[]).await;
    assert_eq!(
        (left.code, left.stdout.as_str(), left.stderr.as_str()),
        (Some(0), VALID, "")
    );

    let (_folder, bad) = file("mesh: off\nauthz-mode: allow-all\n\nbogus-key: x\nproxy-timeout: soon\n");
    let place = bad.display().to_string();
    let bad = format!("--config={place}");
    let variables = [("SANDGATE_POD_UID", "a/b")];
    for args in [
        &["config", "validate", &bad, "-log-level", "a=b=c"][..],
        &[&bad, "--log-level=a=b=c"],
    ] {
        let left = run(args, &variables).await;
        assert_eq!((left.code, left.stdout.as_str()), (Some(64), ""), "{args:?}");
        for problem in [
            format!("  - unknown key \"bogus-key\": it must be the name of a flag ({place}, line 4)\n"),
            format!("({place}, line 5)\n"),
            "  - invalid value 'a/b' for '--pod-uid <POD_UID>': ".into(),
            "(variable SANDGATE_POD_UID)\n".into(),
            "  - --log-level: ".into(),
        ] {
            assert!(left.stderr.contains(&problem), "{problem}: {}", left.stderr);
        }
    }

    for (args, code) in [
        (&["config", "validate", "--no-such-flag"][..], 2),
        (&["config", "validate", "--help"], 0),
        (&["config", "print", "-help"], 0),
        (&["config", "--help"], 0),
        (&["config"], 2),
        (&["config", "forget"], 2),
        // Commands stand first.
        (&["--mesh=off", "config", "validate"], 2),
        (&["no-such-command"], 2),
    ] {
        assert_eq!(run(args, &[]).await.code, Some(code), "{args:?}");
    }
}

#[tokio::test]
async fn the_file_is_named_by_the_flag_or_else_by_the_variable() {
    let (_first, by_flag) = file("cluster-domain: flag.local\n");
    let (_second, by_variable) = file("cluster-domain: variable.local\n");
    let variables = [("SANDBOX_ROUTER_CONFIG", by_variable.to_str().unwrap())];
    let by_flag = by_flag.to_str().unwrap();
    let open = ["--mesh=off", "--authz-mode=allow-all"];
    for (args, variables, expected) in [
        (&["-config", by_flag][..], &variables[..], "flag.local"),
        (&["--config", by_flag], &variables, "flag.local"),
        (&[], &variables, "variable.local"),
        (&["--config="], &variables, "cluster.local"),
        (&[], &[("SANDBOX_ROUTER_CONFIG", "")], "cluster.local"),
    ] {
        let text = printed(&[&open[..], args].concat(), variables).await;
        assert!(
            text.contains(&format!("cluster-domain: \"{expected}\" # ")),
            "{args:?}: {text}"
        );
    }
    let left = run(
        &["--mesh=off", "--authz-mode=allow-all"],
        &[("SANDBOX_ROUTER_CONFIG", "/no/such/file")],
    )
    .await;
    assert_eq!(left.code, Some(64));
    assert!(
        left.stderr
            .contains("the configuration file /no/such/file can't be read: "),
        "{}",
        left.stderr
    );
}

#[tokio::test]
async fn a_router_serves_as_its_file_says_and_logs_its_configuration_once_without_the_token() {
    let app = RecordingApp::polite().await;
    let (_folder, path) = file(
        "http-bind-address: 127.0.0.1:0\nmetrics-bind-address: 127.0.0.1:0\nhealth-probe-bind-address: 127.0.0.1:0\n\
         mesh: off\nallow-loopback-pod-ip: true\nworkers: 1\nlog-level: trace\ndrain-delay: 0s\n",
    );
    let mut command = command(PROGRAMS.router, [format!("--config={}", path.display())]);
    command.env("ROUTER_AUTH_TOKEN", SECRET);
    let mut router = Process::start(command);
    let [http] = router.listens(["http"]).await;
    for (token, expected) in [(SECRET, 200), ("hunter3", 401)] {
        let request = format!(
            "GET /page HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nX-Sandbox-ID: alpha\r\n\
             X-Sandbox-Port: {}\r\nX-Sandbox-Pod-IP: 127.0.0.1\r\nConnection: close\r\n\r\n",
            app.port()
        );
        let answer = exchange(TcpStream::connect(&http).await.unwrap(), &request, false).await;
        assert_eq!(status(&answer), expected, "{answer}");
    }
    router.signal(Signal::TERM);
    let left = router.ended().await;
    assert_eq!(left.code, Some(0));
    assert!(
        !left.stderr.contains(SECRET) && !left.stdout.contains(SECRET),
        "{}",
        left.stderr
    );
    let lines = json_lines(&left.stderr);
    let said: Vec<_> = lines
        .iter()
        .filter(|line| line["message"] == "effective configuration")
        .collect();
    assert_eq!(said.len(), 1);
    let settings = said[0]["settings"].as_str().unwrap();
    for setting in [
        ", auth-token=<redacted> (variable ROUTER_AUTH_TOKEN), ",
        ", mesh=off (file), ",
        ", proxy-timeout=180s, ",
    ] {
        assert!(settings.contains(setting), "{setting}: {settings}");
    }
}

#[tokio::test]
async fn no_command_and_no_error_shows_the_token() {
    let (_folder, path) = file(&format!("auth-token: {SECRET}\nbogus: {SECRET}x\n"));
    let bad = format!("--config={}", path.display());
    let flag = format!("--auth-token={SECRET}");
    for args in [
        &["--help"][..],
        &["-h"],
        &["config", "print", "--help"],
        &["config", "print", "--mesh=off"],
        &["config", "validate", "--mesh=off", &flag],
        &["config", "print", "--mesh=off", &flag],
        &["config", "validate", &bad],
        &["--mesh=off", &bad],
        &["--mesh=off", &flag, "--proxy-timeout=soon"],
        &["--mesh=off", &flag, "--authz-mode=allow-all"],
        &["--mesh=off", &flag, "--no-such-flag"],
        &["completions", "bash"],
        &["version", "-o", "json"],
    ] {
        let left = run(args, &[("ROUTER_AUTH_TOKEN", SECRET)]).await;
        assert!(!left.stdout.contains(SECRET), "{args:?}: {}", left.stdout);
        assert!(!left.stderr.contains(SECRET), "{args:?}: {}", left.stderr);
        assert!(!left.stdout.is_empty() || !left.stderr.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn version_completions_and_help_tell_of_the_commands() {
    let version = env!("CARGO_PKG_VERSION");
    for args in [
        &["version"][..],
        &["--version"],
        &["-version"],
        &["version", "--output=text"],
    ] {
        let left = run(args, &[]).await;
        assert_eq!(
            (left.code, left.stdout),
            (Some(0), format!("sandbox-router {version}\n")),
            "{args:?}"
        );
    }
    let left = run(&["version", "-o", "json"], &[]).await;
    let found: serde_json::Value = serde_json::from_str(&left.stdout).unwrap();
    assert_eq!(
        (&found["name"], &found["version"]),
        (&"sandbox-router".into(), &version.into())
    );
    assert_eq!(run(&["version", "-o", "xml"], &[]).await.code, Some(2));

    let help = run(&["--help"], &[]).await.stdout;
    for command in ["config", "completions", "version"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
    }
    let help = run(&["config", "print", "--help"], &[]).await.stdout;
    assert!(
        help.starts_with("Print the effective configuration ") && help.contains("Usage: sandbox-router config print ")
    );
    assert!(
        help.contains("[env: SANDBOX_ROUTER_CONFIG=]") && help.contains("[env: CLUSTER_DOMAIN]"),
        "{help}"
    );

    for shell in ["bash", "zsh", "fish"] {
        let left = run(&["completions", shell], &[]).await;
        assert_eq!((left.code, left.stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["sandbox-router", "http-bind-address", "completions", "validate"] {
            assert!(left.stdout.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(run(&["completions"], &[]).await.code, Some(2));
    assert_eq!(run(&["completions", "cmd"], &[]).await.code, Some(2));
}
