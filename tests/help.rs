//! What the programs say of themselves to whoever asks.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::processes::{Left, Process, Programs, command};
use sandgate_tests::programs;
use std::collections::HashSet;
use std::path::Path;

const PROGRAMS: Programs = programs!();

async fn run(path: &str, args: &[&str]) -> Left {
    Process::start(command(path, args)).ended().await
}

#[tokio::test]
async fn help_and_version_go_to_standard_output_and_are_no_failure() {
    for (path, name) in [
        (PROGRAMS.router, "sandbox-router"),
        (PROGRAMS.sidecar, "sandbox-sidecar"),
        (PROGRAMS.local, "sandgate-local"),
    ] {
        let left = run(path, &["--version"]).await;
        assert_eq!((left.code, left.stderr.as_str()), (Some(0), ""), "{name}");
        assert_eq!(left.stdout, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        let left = run(path, &["--help"]).await;
        assert_eq!((left.code, left.stderr.as_str()), (Some(0), ""), "{name}");
        assert!(
            left.stdout.contains("Usage: ") && left.stdout.contains("--help"),
            "{name}"
        );

        let left = run(path, &["--no-such-flag"]).await;
        assert_eq!((left.code, left.stdout.as_str()), (Some(2), ""), "{name}");
        assert!(
            left.stderr.contains("unexpected argument '--no-such-flag'"),
            "{}",
            left.stderr
        );
    }
}

#[tokio::test]
async fn the_help_of_the_router_says_what_each_command_does_and_not_what_the_router_does() {
    let manifest = include_str!("../router/Cargo.toml");
    let line = manifest.lines().find(|line| line.starts_with("description = "));
    let description = line.unwrap().split('"').nth(1).unwrap();
    let help = run(PROGRAMS.router, &["--help"]).await.stdout;
    let (_, commands) = help.split_once("Commands, instead of flags:\n").unwrap();
    let lines: Vec<_> = commands.lines().take_while(|line| !line.is_empty()).collect();
    let mut names = HashSet::new();
    for line in lines {
        let (name, about) = line.trim().split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        assert!(names.insert(name) && !about.trim().is_empty(), "{line:?}");
        assert!(!about.contains(description), "{line:?}");
    }
    assert!(
        names.is_superset(&HashSet::from(["config", "token", "completions", "version"])),
        "{names:?}"
    );
    let validate = run(PROGRAMS.router, &["config", "validate", "--help"]).await.stdout;
    let validate = validate.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(validate.contains("files that they name aren't opened"), "{validate}");
}

/// Every file of Rust below a folder of this repository.
fn sources(folder: &str) -> Vec<String> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    sources
}

/// The variables that a program reads beside those that clap reads, and names in the help, itself: a file that reads any
/// writes their names as they are.
fn variables(folder: &str) -> HashSet<String> {
    let sources = sources(folder);
    // One of these is read by tests beside the code only.
    let reading = |source: &&String| source.contains("env::var") && !source.contains("\"UPDATE_GOLDEN\"");
    let reading = sources.iter().filter(reading);
    let texts = reading.flat_map(|source| source.split('"').skip(1).step_by(2));
    let is_name = |text: &&str| {
        let allowed = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        text.contains('_') && text.bytes().all(allowed)
    };
    texts.filter(is_name).map(String::from).collect()
}

#[tokio::test]
async fn the_help_names_every_variable_that_is_read() {
    for (path, folder, expected) in [
        (PROGRAMS.router, "router/src", 8),
        (PROGRAMS.sidecar, "router/sidecar/src", 0),
        (PROGRAMS.local, "deploy/local/src", 1),
    ] {
        let variables = variables(folder);
        assert!(variables.len() >= expected, "{folder}: only {variables:?} were found");
        let help = run(path, &["--help"]).await.stdout;
        for variable in variables {
            // What a flag's own value is called says nothing about a variable.
            let help = help.replace(&format!("<{variable}>"), "");
            assert!(help.contains(&variable), "{folder}: {variable} is missing:\n{help}");
        }
    }
    let gate = run(PROGRAMS.sidecar, &["--help"]).await.stdout;
    for variable in [
        "SANDGATE_NAMESPACE",
        "SANDGATE_SANDBOX",
        "SANDGATE_POD_UID",
        "SANDGATE_APP_PROBES",
        "SANDGATE_TRUST_ANCHORS",
    ] {
        assert!(gate.contains(&format!("[env: {variable}")), "{variable}:\n{gate}");
    }
    // What all programs share reads none, nor does the injector: neither has a help of its own here.
    for folder in ["router/mesh/src", "injector/src"] {
        assert_eq!(variables(folder), HashSet::new(), "{folder}");
    }
}
