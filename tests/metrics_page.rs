//! docs/metrics.md and deploy/dashboards against the sources. That the page's rows are those that the programs register is
//! tested beside each program's metrics; what those tests don't know of is found here.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const PREFIXES: [&str; 3] = ["sandbox_router_", "sandgate_sidecar_", "sandgate_injector_"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The metrics of the page, each with its labels.
fn page() -> BTreeMap<String, BTreeSet<String>> {
    let page = read("docs/metrics.md");
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let rows = rows.filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
    let metric = |row: &str| {
        let (name, labels) = row.split_once('{').unwrap_or((row, ""));
        let labels = labels
            .trim_end_matches('}')
            .split(',')
            .filter(|label| !label.is_empty());
        (name.to_owned(), labels.map(String::from).collect())
    };
    rows.map(metric).collect()
}

/// Every file of Rust below a folder, but for tests.
fn sources(folder: &Path, texts: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" {
            sources(&path, texts);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !name.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            texts.push(text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned());
        }
    }
}

#[test]
fn every_name_of_a_metric_in_the_sources_is_on_the_page() {
    let mut texts = Vec::new();
    for folder in ["router", "injector"] {
        sources(&root().join(folder), &mut texts);
    }
    let is_name = |text: &&str| {
        let is_word = text.bytes().all(|b| b == b'_' || b.is_ascii_lowercase());
        is_word && PREFIXES.iter().any(|prefix| text.starts_with(prefix))
    };
    let literals = texts.iter().flat_map(|text| text.split('"').skip(1)).filter(is_name);
    let named: BTreeSet<String> = literals.map(String::from).collect();
    assert!(named.len() > 60, "only {} were found", named.len());
    let page: BTreeSet<String> = page().into_keys().collect();
    assert_eq!(page, named, "docs/metrics.md on the left");
}

#[test]
fn every_row_says_its_unit_and_what_it_means() {
    for line in read("docs/metrics.md").lines() {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        if !PREFIXES
            .iter()
            .any(|prefix| cells[0].starts_with(&format!("`{prefix}")))
        {
            continue;
        }
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "{line}");
        assert_eq!(cells[0].contains("_seconds"), cells[2].starts_with("seconds"), "{line}");
    }
}

/// The expressions of the dashboard and of the alerts, and the names of these.
fn expressions() -> (Vec<String>, BTreeSet<String>) {
    let dashboard: Value = serde_json::from_str(&read("deploy/dashboards/sandgate.json")).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter();
    let targets = targets.flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut expressions: Vec<String> = targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    let rules: Value = serde_saphyr::from_str(&read("deploy/dashboards/alerts.yaml")).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    let mut alerts = BTreeSet::new();
    for rule in groups.flat_map(|group| group["rules"].as_array().unwrap()) {
        expressions.push(rule["expr"].as_str().unwrap().to_owned());
        let name = rule["alert"].as_str().unwrap();
        assert!(alerts.insert(name.to_owned()), "{name} is there twice");
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
    }
    (expressions, alerts)
}

/// The metrics of ours that an expression asks for, each with the labels that it is narrowed by.
fn asked_for(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_word = |c: char| c == '_' || c.is_ascii_alphanumeric();
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = PREFIXES.iter().filter_map(|prefix| rest.find(prefix)).min() {
        rest = &rest[at..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        let selected = behind.strip_prefix('{').and_then(|behind| behind.split('}').next());
        let labels = selected
            .into_iter()
            .flat_map(|selected| selected.split(','))
            .filter_map(|pair| pair.split(['=', '!']).next());
        found.push((
            name.strip_suffix("_bucket").unwrap_or(name).to_owned(),
            labels.map(String::from).collect(),
        ));
        rest = behind;
    }
    found
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_and_labels_that_exist() {
    let page = page();
    let mut asked = BTreeSet::new();
    for expression in expressions().0 {
        for (name, labels) in asked_for(&expression) {
            let known = page
                .get(&name)
                .unwrap_or_else(|| panic!("{name} doesn't exist: {expression}"));
            for label in labels {
                assert!(known.contains(&label), "{name} has no label {label}: {expression}");
            }
            asked.insert(name);
        }
    }
    // What tells of callers that nobody can vouch for, of files that aren't taken, and of connections that are turned away.
    for name in [
        "reviews_total",
        "cert_reloads_total",
        "scoped_token_reloads_total",
        "cache_watch_failures_total",
        "refused_connections_total",
    ] {
        assert!(
            asked.contains(&format!("sandbox_router_{name}")),
            "nobody watches {name}"
        );
    }
}

#[test]
fn every_alert_is_on_the_page_and_no_other() {
    let page = read("docs/metrics.md");
    let code = page.split('`').skip(1).step_by(2);
    let named: BTreeSet<String> = code
        .filter(|code| code.starts_with("Sandgate") && code.bytes().all(|b| b.is_ascii_alphabetic()))
        .map(String::from)
        .collect();
    assert_eq!(named, expressions().1, "docs/metrics.md on the left");
}

#[test]
fn the_latency_on_the_dashboard_is_not_that_of_websockets() {
    let durations = expressions().0;
    let durations = durations
        .iter()
        .filter(|expression| expression.contains("sandbox_router_request_duration_seconds"));
    let durations: Vec<_> = durations.collect();
    assert!(!durations.is_empty());
    for expression in durations {
        assert!(expression.contains(r#"{code!="101"}"#), "{expression}");
    }
}

#[test]
fn what_an_expression_asks_for_is_found_in_it() {
    let found = asked_for(
        r#"sum by (le) (rate(sandbox_router_x_seconds_bucket{code!="101",a=~"b|c"}[5m])) / sandgate_injector_y"#,
    );
    let expected = [
        (
            "sandbox_router_x_seconds".to_owned(),
            vec!["code".to_owned(), "a".to_owned()],
        ),
        ("sandgate_injector_y".to_owned(), vec![]),
    ];
    assert_eq!(found, expected);
}
