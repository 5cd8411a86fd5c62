//! docs/migration.md: its tables are written from the tables of these tests.
//!
//! `UPDATE_GOLDEN=1 cargo test -p sandgate-tests --test conformance page` writes them anew.

use crate::decisions::ALL;
use crate::manifests::{UNKNOWN_FLAGS, UNKNOWN_VARIABLES, UPSTREAM_FLAGS, UPSTREAM_VARIABLES};
use std::fmt::Write;
use std::path::Path;

/// What differs from the Go router.
fn differences() -> String {
    let mut rows = "| agent-sandbox's Go router | Sandgate |\n|---|---|\n".to_owned();
    for decision in ALL {
        writeln!(rows, "| {} | {} |", decision.theirs, decision.ours).unwrap();
    }
    rows
}

/// What upstream's routers have and ours doesn't.
fn gaps() -> String {
    if UNKNOWN_FLAGS.is_empty() && UNKNOWN_VARIABLES.is_empty() {
        return "Nothing: every flag and variable of both routers is taken.\n".to_owned();
    }
    let mut rows = "| flag or variable | why |\n|---|---|\n".to_owned();
    let flags = UNKNOWN_FLAGS.iter().map(|(flag, why)| (format!("--{flag}"), why));
    let variables = UNKNOWN_VARIABLES
        .iter()
        .map(|(variable, why)| ((*variable).to_owned(), why));
    for (name, why) in flags.chain(variables) {
        writeln!(rows, "| `{name}` | {why} |").unwrap();
    }
    rows
}

/// The page with what stands between the marks of `name` replaced.
fn with_table(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (
        format!("<!-- {name}: written by a test -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}{table}{end}{after}")
}

#[test]
fn the_page_about_migration_has_every_difference_and_every_gap() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let expected = with_table(&with_table(&page, "differences", &differences()), "gaps", &gaps());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "docs/migration.md is not current: run this test with UPDATE_GOLDEN=1, and read the difference"
    );
}

/// What the first cells of a section's table name as code, without the values.
fn named(page: &str, section: &str) -> Vec<String> {
    let (_, rest) = page.split_once(&format!("\n## {section}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let names = cells.flat_map(|cell| cell.split(['`', ',', ' ', '(']));
    let names = names.filter(|name| name.starts_with("--") || name.contains('_') || *name == "KUBECONFIG");
    names
        .filter_map(|name| name.split('=').next())
        .map(String::from)
        .collect()
}

#[test]
fn every_flag_and_variable_of_both_routers_is_in_one_of_the_tables() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/migration.md")).unwrap();
    let taken = ["Flags of the Go router", "Variables of both routers"].map(|section| named(&page, section));
    let (taken, missing) = (taken.concat(), named(&page, "What isn't there"));
    let flags = UPSTREAM_FLAGS.iter().map(|flag| format!("--{flag}"));
    let all: Vec<String> = flags
        .chain(UPSTREAM_VARIABLES.iter().map(|name| (*name).to_owned()))
        .collect();
    for name in &all {
        assert_ne!(
            taken.contains(name),
            missing.contains(name),
            "{name} must be either in a table of what Sandgate takes, or among what isn't there"
        );
    }
}
