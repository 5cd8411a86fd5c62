//! Which source wins, and what is said of each that is wrong.

use super::super::{Config, ConfigError, Mesh};
use super::*;
use std::time::Duration;

/// A file that is gone afterwards.
struct TestFile(PathBuf);

impl TestFile {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let name = format!("sandbox-router-{}-{:016x}.yaml", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What the router makes of a file and flags.
fn with_file(text: impl AsRef<[u8]>, flags: &[&str]) -> Result<Config, ConfigError> {
    let file = TestFile::new(text);
    let mut args = vec!["--config".into(), file.0.clone().into_os_string()];
    args.extend(flags.iter().map(OsString::from));
    Config::from_args(args)
}

/// The problems, with `FILE` for the file's name.
fn problems(text: impl AsRef<[u8]>, flags: &[&str]) -> Vec<String> {
    let file = TestFile::new(text);
    let mut args = vec![OsString::from(format!("--config={}", file.0.display()))];
    args.extend(flags.iter().map(OsString::from));
    let error = Config::from_args(args).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    let ConfigError::Settings { problems, .. } = error else {
        panic!("{error}")
    };
    let name = file.0.display().to_string();
    problems
        .into_iter()
        .map(|problem| problem.replace(&name, "FILE"))
        .collect()
}

const OPEN: &str = "authz-mode: allow-all\n";

#[test]
fn a_file_is_read_as_the_go_router_reads_it() {
    let config = with_file(
        "# The example of its README and of its tests.\n\
         http-bind-address: \":18080\"\n\
         cluster-domain: \"prod.local\"\n\
         proxy-timeout: 45s\n\
         upstream-max-retries: 7\n\
         access-log: false\n\
         mtls-mode: off\n\
         max-request-body-bytes: 1_000_000\n\
         max-connections: 1e3\n\
         max-keepalive-connections: 0x10\n\
         cache-namespace:\n\
         tls-cert-file: \"\"\n\
         allow-loopback-pod-ip: yes\n\
         authz-mode: allow-all\n",
        &[],
    );
    let config = config.unwrap();
    assert_eq!(config.http.unwrap().port(), 18080);
    assert_eq!(config.cluster_domain, "prod.local");
    assert_eq!(config.proxy_timeout, Duration::from_secs(45));
    assert_eq!((config.retries, config.max_request_body), (7, Some(1_000_000)));
    assert_eq!((config.max_connections, config.keepalive), (1000, 16));
    assert!(!config.access_log && config.allow_loopback_pod_ip);
    assert!(config.https.is_none() && config.cache.is_none());
}

#[test]
fn an_empty_file_says_nothing() {
    for empty in ["", "# nothing\n", "---\n", "{}\n", "null\n"] {
        let config = with_file(empty, &["--authz-mode=allow-all"]).unwrap();
        assert_eq!(config.http.unwrap().port(), 8080, "{empty:?}");
    }
    let config = Config::from_args(vec!["--config=".into(), "--authz-mode=allow-all".into()]);
    assert!(config.is_ok());
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let retries = |file: &str, flags: &[&str]| with_file(format!("{OPEN}{file}"), flags).unwrap().retries;
    assert_eq!(retries("", &[]), 3);
    assert_eq!(retries("upstream-max-retries: 5\n", &[]), 5);
    assert_eq!(retries("upstream-max-retries: 5\n", &["-upstream-max-retries", "6"]), 6);
    // Even where it is the default's value.
    assert_eq!(retries("upstream-max-retries: 5\n", &["--upstream-max-retries=3"]), 3);
    let config = with_file("authz-mode: allow-all\naccess-log: false\n", &["--access-log"]).unwrap();
    assert!(config.access_log);
    let config = with_file("authz-mode: allow-all\nmesh: auto\n", &["--mesh=off"]).unwrap();
    assert_eq!(config.mesh, Mesh::Off);
}

#[test]
fn a_flag_that_can_be_repeated_replaces_the_list_of_the_file() {
    let file = "authz-mode: allow-all\nsandbox-endpoint:\n- a/b=10.0.0.1\n- a/c=10.0.0.2\n";
    assert_eq!(with_file(file, &[]).unwrap().sandboxes.len(), 2);
    let config = with_file(file, &["--sandbox-endpoint=a/d=10.0.0.3"]).unwrap();
    assert_eq!(config.sandboxes.len(), 1);
    let one = with_file("authz-mode: allow-all\nsandbox-endpoint: a/b=10.0.0.1\n", &[]).unwrap();
    assert_eq!(one.sandboxes.len(), 1);
}

#[test]
fn unknown_keys_and_all_bad_values_are_said_together_and_where_they_stand() {
    let file = "proxy_timeout: 3s\n\
                bogus: {a: 1}\n\
                config: other.yaml\n\
                version: true\n\
                proxy-timeout: soon\n\
                cluster-domain: [not, a, scalar]\n\
                mesh-key-file: {a: b}\n\
                access-log: perhaps\n\
                sandbox-endpoint: [a/b=10.0.0.1, nowhere]\n\
                upstream-max-retries: -1\n";
    let found = problems(
        file,
        &["--shutdown-timeout=later", "--trusted-proxy-cidrs=10.0.0.0/8,x"],
    );
    let expected = [
        "invalid value 'later' for '--shutdown-timeout <SHUTDOWN_TIMEOUT>': \"later\" is not a duration; write it like 180s, \
         200ms or 1m30s",
        "invalid value '10.0.0.0/8,x' for '--trusted-proxy-cidrs <NETWORKS>': \"x\" is not a network; write it like 10.0.0.0/8 \
         or fd00::/8",
        "unknown key \"proxy_timeout\"; proxy-timeout is one (FILE, line 1)",
        "unknown key \"bogus\": it must be the name of a flag (FILE, line 2)",
        "unknown key \"config\": it must be the name of a flag, and a file can't name another (FILE, line 3)",
        "unknown key \"version\": it must be the name of a flag (FILE, line 4)",
        "invalid value 'soon' for '--proxy-timeout <PROXY_TIMEOUT>': \"soon\" is not a duration; write it like 180s, 200ms or \
         1m30s (FILE, line 5)",
        "cluster-domain: it takes one value, and this is a list (FILE, line 6)",
        "mesh-key-file: it takes one value, and this is a mapping (FILE, line 7)",
        "invalid value 'perhaps' for '--access-log [<ACCESS_LOG>]': write true or false (FILE, line 8)",
        "invalid value 'nowhere' for '--sandbox-endpoint <SANDBOX>': \"nowhere\": no '='; write it like \
         team-a/alpha=10.0.0.7:14443,uid=8f1c (FILE, line 9)",
        "invalid value '-1' for '--upstream-max-retries <UPSTREAM_MAX_RETRIES>': -1 is not in 0..=4294967295 (FILE, line 10)",
    ];
    assert_eq!(found[..expected.len()], expected);
    // The file's good values count: nothing but the missing decision about callers is left.
    assert_eq!(found.len(), expected.len() + 1, "{found:?}");
    assert!(found[expected.len()].starts_with("nothing says who may call"));
}

#[test]
fn a_mode_of_the_file_that_there_is_not_is_no_missing_decision() {
    for file in ["authz-mode: foo\n", "authz-mode: [tokenreview, allow-all]\n"] {
        let found = problems(file, &[]);
        assert!(
            matches!(&found[..], [one] if one.ends_with("(FILE, line 1)")),
            "{found:?}"
        );
    }
}

#[test]
fn a_bad_value_of_the_file_is_said_even_if_a_flag_overrides_it() {
    let found = problems(format!("{OPEN}proxy-timeout: soon\n"), &["--proxy-timeout=3s"]);
    assert!(
        matches!(&found[..], [one] if one.ends_with("(FILE, line 2)")),
        "{found:?}"
    );
}

#[test]
fn a_file_that_is_no_configuration_is_refused_in_one_sentence() {
    for (text, expected) in [
        (&b"a: 1\na: 2\n"[..], "duplicate"),
        (b"a: [1\n", "FILE"),
        (b"- a\n- b\n", "has no keys with values"),
        (b"just a sentence\n", "has no keys with values"),
        (b"17\n", "has no keys with values"),
        (b"a: 1\n---\nb: 2\n", "document"),
        (b"a: !secret b\n", "tag"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (b"a: &x [*x]\n", "FILE"),
    ] {
        let found = problems(text, &["--authz-mode=allow-all"]);
        assert!(
            matches!(&found[..], [one] if one.starts_with("the configuration file FILE ") && one.contains(expected)),
            "{expected}: {found:?}"
        );
    }
    let long = "#".repeat(1 << 20);
    assert!(with_file(&long, &["--authz-mode=allow-all"]).is_ok());
    let found = problems(long + "#", &["--authz-mode=allow-all"]);
    assert_eq!(found, ["the configuration file FILE is longer than 1024 KiB"]);
    let deep = format!("a: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(problems(deep, &["--authz-mode=allow-all"]).len(), 1);
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]\n";
    assert_eq!(problems(bomb, &["--authz-mode=allow-all"]).len(), 1);

    let gone = vec!["--config=/no/such/file.yaml".into(), "--authz-mode=allow-all".into()];
    let error = Config::from_args(gone).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    let sentence = "the configuration file /no/such/file.yaml can't be read: No such file or directory";
    assert!(error.to_string().contains(sentence), "{error}");
    let folder = vec![format!("--config={}", std::env::temp_dir().display()).into()];
    assert!(
        Config::from_args(folder)
            .unwrap_err()
            .to_string()
            .contains("can't be read: ")
    );
}

#[test]
fn a_token_of_the_file_keeps_every_character_and_is_never_shown() {
    use super::super::Authentication::StaticToken;
    for (written, meant) in [
        ("0123", "0123"),
        ("12345678901234567890123456789012", "12345678901234567890123456789012"),
        ("1e5", "1e5"),
        ("0x10", "0x10"),
        ("1_0", "1_0"),
        ("yes", "yes"),
        ("-1.50", "-1.50"),
        ("\" spaced \"", "spaced"),
        ("'it''s'", "it's"),
        ("&anchor 007", "007"),
        ("!!str 08", "08"),
    ] {
        let config = with_file(format!("# a comment, äöü\nauth-token: {written} # more\n"), &[]).unwrap();
        assert_eq!(config.authentication, StaticToken(meant.into()), "{written}");
        for shown in [
            format!("{config:?}"),
            config.settings.to_string(),
            config.settings.yaml(),
        ] {
            assert!(shown.contains("auth-token") && shown.contains(REDACTED), "{shown}");
            let key = format!("auth-token={meant}");
            assert!(
                !shown.contains(&key) && !shown.contains("1234567890") && !shown.contains("spaced"),
                "{shown}"
            );
        }
    }
    let alias = with_file("cluster-domain: &t 0077\nauth-token: *t\n", &[]).unwrap();
    assert_eq!(alias.authentication, StaticToken("0077".into()));
}

#[test]
fn what_is_wrong_with_a_file_never_shows_its_secrets() {
    for text in [
        "auth-token: [hunter2]\n",
        "auth-token: {hunter2: hunter2}\n",
        "auth-token: hunter2\nauth-token: hunter2\n",
        "auth-token: \"hunter2\n",
        "auth-token: !hunter3 hunter2\n",
        "auth-token: hunter2\nx: [\n",
        "hunter2\n",
    ] {
        let found = problems(text, &[]).concat();
        assert!(!found.contains("hunter2"), "{text}: {found}");
    }
}

#[test]
fn a_redacted_token_is_no_token() {
    let printed = with_file("auth-token: hunter2\n", &["--mesh=off"])
        .unwrap()
        .settings
        .yaml();
    assert!(printed.contains("auth-token: \"<redacted>\" # file\n"), "{printed}");
    let found = problems(&printed, &[]);
    assert!(
        matches!(&found[..], [one] if one.starts_with("auth-token is <redacted>, ") && one.contains("ROUTER_AUTH_TOKEN")),
        "{found:?}"
    );
    let found = problems("", &["--auth-token= <redacted>"]);
    assert!(
        matches!(&found[..], [one] if one.starts_with("auth-token is <redacted>, ")),
        "{found:?}"
    );
    let config = with_file(&printed, &["--auth-token=hunter3"]).unwrap();
    assert_eq!(
        config.authentication,
        super::super::Authentication::StaticToken("hunter3".into())
    );
}

#[test]
fn what_is_printed_is_the_same_configuration_again() {
    let file = "authz-mode: allow-all\nmesh: off\nsandbox-endpoint: [a/b=10.0.0.1, \"a/c=[::1]:1,uid=u\"]\n";
    let flags = [
        "--log-level=info,hyper=debug",
        "--proxy-timeout=1m30s",
        "--cluster-domain=#: \\ 'x' \"y\" \u{fc}",
        "--access-log=F",
        "--workers=010",
        "--cache-enabled",
        "--kubeconfig=/a b/c",
        "--tls-cert-file=",
    ];
    let config = with_file(file, &flags).unwrap();
    let printed = config.settings.yaml();
    for line in [
        "http-bind-address: \":8080\" # default\n",
        "mesh: \"off\" # file\n",
        "sandbox-endpoint: # file\n  - \"a/b=10.0.0.1\"\n  - \"a/c=[::1]:1,uid=u\"\n",
        "proxy-timeout: \"1m30s\" # flag\n",
        "workers: 10 # flag\n",
        "cache-enabled: true # flag\n",
        "# auth-token: not set\n",
        "# tls-cert-file: not set\n",
        "# max-connections-per-peer: not set\n",
    ] {
        assert!(printed.contains(line), "{line}\n{printed}");
    }
    let again = with_file(&printed, &[]).unwrap();
    let bare = |config: Config| {
        format!(
            "{:?}",
            Config {
                settings: Settings::default(),
                ..config
            }
        )
    };
    assert_eq!(bare(again), bare(config));
}

#[test]
fn the_line_for_the_log_is_readable_and_bounded() {
    let config = with_file(OPEN, &["--mesh=off", "--auth-token="]).unwrap();
    let line = config.settings.to_string();
    assert!(
        line.contains("http-bind-address=:8080, https-bind-address=, "),
        "{line}"
    );
    assert!(
        line.contains(", mesh=off (flag), ") && line.contains(", authz-mode=allow-all (file), "),
        "{line}"
    );
    assert!(line.starts_with("config=/") && !line.contains('\n'), "{line}");

    let many: Vec<_> = (0..5000).map(|n| format!("- a/s{n}=10.0.0.1\n")).collect();
    let many = many.concat();
    let config = with_file(
        format!("{OPEN}sandbox-endpoint:\n{many}"),
        &["--cluster-domain", &"x".repeat(100_000)],
    );
    let line = config.unwrap().settings.to_string();
    assert!(line.contains(" a/s15=10.0.0.1 and 4984 more (file), "), "{line}");
    assert!(line.len() < 17_000, "{}", line.len());
}
