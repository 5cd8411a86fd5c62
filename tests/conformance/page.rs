//! docs/migration.md: its tables are written from the tables of these tests.
//!
//! `UPDATE_GOLDEN=1 cargo test -p sandgate-tests --test conformance page` writes them anew.

use crate::decisions::ALL;
use crate::manifests::{UNKNOWN_FLAGS, UNKNOWN_VARIABLES};
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
