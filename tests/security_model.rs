//! docs/security-model.md promises nothing that no test shows: every test that it names is there.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where tests are that the page names by their file's name.
const FOLDERS: [&str; 10] = [
    "tests",
    "tests/browser_credentials",
    "tests/cluster/suite",
    "tests/cluster/node_suite",
    "tests/netns",
    "injector/src",
    "injector/src/enrol",
    "router/mesh/src/control",
    "router/src/pods",
    "router/sidecar/src",
];

/// Every `file::test` that is written as code in the page.
fn named(page: &str) -> BTreeSet<(&str, &str)> {
    let code = page.split('`').skip(1).step_by(2);
    let pairs = code.filter_map(|code| code.split_once("::"));
    pairs
        .filter(|(file, test)| {
            [file, test]
                .iter()
                .all(|name| name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()))
        })
        .collect()
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/security-model.md")).unwrap();
    let named = named(&page);
    assert!(named.len() > 30, "the page names {} tests", named.len());
    let missing: Vec<_> = named
        .into_iter()
        .filter(|(file, test)| {
            let files = FOLDERS
                .iter()
                .map(|folder| root.join(folder).join(format!("{file}.rs")));
            let texts = files.filter_map(|file| fs::read_to_string(file).ok());
            !texts.into_iter().any(|text| text.contains(&format!("fn {test}(")))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_name_is_found_in_the_page_and_other_code_is_not() {
    let page = "`kubectl get pods`, `theft::a_test` and `std::fs::read`; `hostile_gate::another`";
    assert_eq!(
        named(page),
        BTreeSet::from([("hostile_gate", "another"), ("theft", "a_test")])
    );
}
