//! `sandbox-router token` as a program, and what a running router makes of the keys and tokens that come from it.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{Process, ProcessMesh, Programs, command, until_metric};
use sandgate_tests::{PATIENCE, RecordingApp, programs, send, status};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

const PROGRAMS: Programs = programs!();
const OLD: &str = "the-old-secret-0123456789abcdef0123456789";
const NEW: &str = "the-new-secret-0123456789abcdef0123456789";
const RELOADS: &str = "sandbox_router_scoped_token_reloads_total";

/// Runs `sandbox-router token` with what is in `stdin`.
fn token(args: &[&str], stdin: &Path) -> Output {
    let mut command = command(PROGRAMS.router, [&["token"], args].concat());
    command.stdin(File::open(stdin).unwrap()).output().unwrap()
}

fn nothing() -> PathBuf {
    "/dev/null".into()
}

/// What it prints where it must succeed.
fn printed(args: &[&str]) -> String {
    let done = token(args, &nothing());
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert_eq!((done.status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// A token for `default/alpha` from the key in this flag, and nothing around it.
fn minted(key: &str, more: &[&str]) -> String {
    let printed = printed(&[&["mint", key, "--namespace=default", "--name=alpha", "--ttl=1h"], more].concat());
    let token = printed.strip_suffix('\n').unwrap();
    assert!(!token.contains(char::is_whitespace), "{token}");
    token.to_owned()
}

fn flag(name: &str, folder: &Folder, file: &str) -> String {
    format!("--{name}={}", folder.path(file).display())
}

/// What `inspect` says of what is in `file`, and its exit code.
fn inspected(folder: &Folder, file: &str, more: &[&str]) -> (Option<i32>, String) {
    let done = token(&[&["inspect"], more].concat(), &folder.path(file));
    let stderr = String::from_utf8(done.stderr).unwrap();
    (done.status.code(), String::from_utf8(done.stdout).unwrap() + &stderr)
}

#[test]
fn a_minted_token_is_explained_and_verified() {
    let folder = Folder::new();
    folder.rename_over("secret", NEW);
    folder.rename_over("other", OLD);
    let private = flag("private-key-file", &folder, "key.pem");
    let public = printed(&["keygen", &private]);
    folder.rename_over("public.pem", &public);
    let mode = std::fs::metadata(folder.path("key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may read it");
    let again = token(&["keygen", &private], &nothing());
    assert_eq!(again.status.code(), Some(1), "it replaces no key");

    let secret = flag("secret-file", &folder, "secret");
    folder.rename_over("v1", minted(&secret, &[]) + "\n");
    let (code, text) = inspected(&folder, "v1", &[&secret]);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "version:    v1",
        "namespace:  default",
        "name:       alpha",
        "(in 59m ",
        "verified:   yes",
    ] {
        assert!(
            text.contains(line) || (line == "(in 59m " && text.contains("(in 1h 0m")),
            "{line}: {text}"
        );
    }
    assert!(!text.contains("path:"), "v1 has none: {text}");
    let (code, text) = inspected(&folder, "v1", &[]);
    assert!(code == Some(0) && text.contains("verified:   no: not tried"), "{text}");
    let (code, text) = inspected(&folder, "v1", &[&flag("secret-file", &folder, "other")]);
    assert!(
        code == Some(1) && text.contains("verified:   no: its MAC or signature"),
        "{text}"
    );

    let bound = ["--uid=u-1", "--port=9", "--method=PUT", "--path=/a%2Fb"];
    folder.rename_over("v2", minted(&private, &bound));
    let keys = flag("public-keys-file", &folder, "public.pem");
    let (code, text) = inspected(&folder, "v2", &[&keys, &secret]);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "UID:        u-1",
        "port:       9",
        "method:     PUT",
        "path:       /a%2Fb",
        "verified:   yes",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    // A router with that file only refuses it.
    let (code, text) = inspected(&folder, "v2", &[&secret]);
    assert!(
        code == Some(1) && text.contains("verified:   no: there is no key for tokens of its version"),
        "{text}"
    );
    let id = public.lines().next().unwrap().strip_prefix("key ID: ").unwrap();
    assert!(text.contains(&format!("key ID:     {id}")), "{text}");
    folder.rename_over("plain", minted(&private, &["--key-id=another"]));
    let (code, text) = inspected(&folder, "plain", &[&keys]);
    assert!(code == Some(1) && text.contains("UID:        not bound"), "{text}");
    assert!(text.contains("verified:   no: no public key has its key ID"), "{text}");
}

#[test]
fn what_is_no_good_token_fails_and_arguments_are_warned_of() {
    let folder = Folder::new();
    // Of the vectors of the parser's own tests, with another end.
    let expired = "v1.eyJucyI6ImRlZmF1bHQiLCJuYW1lIjoiYWxwaGEiLCJleHAiOjF9.miAf2vbiLPtfaWF97P7qb_1kWyNtx-0UCjNrBRMXJTk";
    folder.rename_over("expired", expired);
    let (code, text) = inspected(&folder, "expired", &[]);
    assert!(
        code == Some(1) && text.contains("1970-01-01T00:00:01Z (expired "),
        "{text}"
    );
    for bad in ["", "s3cret", "v1.e30.AA", "v2.\u{1b}[31m.e30.AA", &"v".repeat(100_000)] {
        folder.rename_over("bad", bad);
        let (code, text) = inspected(&folder, "bad", &[]);
        assert!(
            code == Some(1) && text.starts_with("error: no scoped token: "),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
    }
    let done = token(&["inspect", expired], &nothing());
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert!(stderr.contains("warning: a token among the arguments"), "{stderr}");
}

#[test]
fn files_that_hold_no_key_are_named_with_the_reason() {
    let folder = Folder::new();
    folder.rename_over("short", "0123456789");
    for (name, file, reason) in [
        (
            "secret-file",
            "short",
            "at least 32 bytes without the white space around it, and this has 10",
        ),
        ("secret-file", "absent", "absent does not exist"),
        ("private-key-file", "short", "exactly one PEM block `PRIVATE KEY`"),
    ] {
        let key = flag(name, &folder, file);
        let done = token(&["mint", &key, "--namespace=a", "--name=b", "--ttl=1m"], &nothing());
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert_eq!(
            (done.status.code(), done.stdout.as_slice()),
            (Some(64), &b""[..]),
            "{stderr}"
        );
        assert!(stderr.contains(reason), "{stderr}");
    }
}

#[tokio::test]
async fn a_router_does_not_start_with_a_file_that_holds_no_key() {
    let folder = Folder::new();
    folder.rename_over("short", "0123456789");
    folder.rename_over(
        "public.pem",
        printed(&["keygen", &flag("private-key-file", &folder, "key.pem")]),
    );
    for (name, file, reason) in [
        ("secret-file", "short", "at least 32 bytes"),
        (
            "secret-file",
            "public.pem",
            "it holds public keys, with which anybody could mint",
        ),
        ("secret-file", "absent", "absent does not exist"),
        (
            "public-keys-file",
            "key.pem",
            "it holds a private key, which is for those who mint",
        ),
        ("public-keys-file", "short", "neither PEM"),
    ] {
        let flags = [
            "--mesh=off".to_owned(),
            "--http-bind-address=127.0.0.1:0".into(),
            "--metrics-bind-address=127.0.0.1:0".into(),
            "--health-probe-bind-address=127.0.0.1:0".into(),
            "--authz-mode=scoped-token".into(),
            flag(&format!("authz-scoped-token-{name}"), &folder, file),
        ];
        let left = Process::start(command(PROGRAMS.router, flags)).ended().await;
        assert_eq!(left.code, Some(64), "{name}={file}: {}", left.stderr);
        assert!(
            left.stderr.contains(reason) && left.stderr.contains(file),
            "{}",
            left.stderr
        );
    }
}

/// Asks until the router has followed its files: they are looked at once a second.
async fn until_answered(mesh: &ProcessMesh, token: &str, expected: u16) {
    let asking = async {
        while answer(mesh, token).await != expected {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let answered = tokio::time::timeout(PATIENCE, asking).await;
    assert!(answered.is_ok(), "never {expected}: {}", mesh.router.stderr());
}

async fn answer(mesh: &ProcessMesh, token: &str) -> u16 {
    let head = mesh.head("GET /", "Connection: close\r\n");
    let head = head.replace(sandgate_tests::TOKEN, token);
    status(&send(mesh.http, head).await)
}

#[tokio::test]
async fn keys_are_rotated_without_a_restart_and_a_bad_file_keeps_the_old_ones() {
    let (app, folder) = (RecordingApp::polite().await, Folder::new());
    let private = ["one.pem", "two.pem"].map(|file| flag("private-key-file", &folder, file));
    let public = private.each_ref().map(|file| printed(&["keygen", file]));
    folder.rename_over("old", OLD);
    folder.rename_over("new", NEW);
    folder.rename_over("secrets", OLD);
    folder.rename_over("keys", &public[0]);
    let flags = [
        "--auth-token=".to_owned(),
        "--authz-mode=scoped-token".into(),
        flag("authz-scoped-token-secret-file", &folder, "secrets"),
        flag("authz-scoped-token-public-keys-file", &folder, "keys"),
    ];
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &flags.each_ref().map(String::as_str)).await;
    let old = [
        minted(&flag("secret-file", &folder, "old"), &[]),
        minted(&private[0], &[]),
    ];
    let new = [
        minted(&flag("secret-file", &folder, "new"), &[]),
        minted(&private[1], &[]),
    ];
    for (old, new) in old.iter().zip(&new) {
        assert_eq!([answer(&mesh, old).await, answer(&mesh, new).await], [200, 401]);
    }
    folder.rename_over("secrets", format!("{NEW}\n{OLD}\n"));
    folder.rename_over("keys", public.concat());
    for (old, new) in old.iter().zip(&new) {
        until_answered(&mesh, new, 200).await;
        assert_eq!(answer(&mesh, old).await, 200, "both count");
    }
    // The command mints with the first.
    assert_eq!(
        answer(&mesh, &minted(&flag("secret-file", &folder, "secrets"), &[])).await,
        200
    );
    folder.rename_over("secrets", NEW);
    folder.rename_over("keys", &public[1]);
    for (old, new) in old.iter().zip(&new) {
        until_answered(&mesh, old, 401).await;
        assert_eq!(answer(&mesh, new).await, 200);
    }
    app.forget();

    folder.rename_over("secrets", "too short");
    folder.rename_over("keys", std::fs::read(folder.path("one.pem")).unwrap());
    until_metric(mesh.metrics, &format!("{RELOADS}{{outcome=\"failure\"}}"), "2").await;
    mesh.router.logs("changed files are not usable", 2).await;
    for (old, new) in old.iter().zip(&new) {
        assert_eq!([answer(&mesh, old).await, answer(&mesh, new).await], [401, 200]);
    }
    assert_eq!(app.requests().len(), 2);

    let log = mesh.router.stderr();
    let private = std::fs::read_to_string(folder.path("one.pem")).unwrap();
    let mut secret: Vec<&str> = [OLD, NEW, "too short"].into();
    secret.extend(old.iter().chain(&new).map(String::as_str));
    secret.extend(private.lines().filter(|line| !line.starts_with('-')));
    for secret in secret {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
    assert!(log.contains("\"caller\":\"scoped:v1\""), "{log}");
}
