//! The contract of both upstream routers as a table of cases at the wire, section by section. `cargo test` holds our router
//! against it; `tests/conformance/run` also agent-sandbox's Go router, and fails for any difference that the table doesn't
//! have, and for any that it has and that isn't there.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod answer;
mod app;
mod case;
mod cases;
mod check;
mod decisions;
mod manifests;
mod observe;
mod page;
mod routers;
mod run;
mod upstream;

use case::Case;
use routers::Router;
use run::{assert_none_wrong, failures, watch};
use std::collections::{BTreeMap, HashSet};

/// Holds our router against the cases of a section.
async fn assert_kept(section: u8) {
    let cases: Vec<Case> = cases::all()
        .into_iter()
        .filter(|case| case.section == section)
        .collect();
    let seen = watch(&Router::Ours, &cases).await;
    let wrong: Vec<String> = cases
        .iter()
        .zip(&seen)
        .filter_map(|(case, seen)| {
            failures(&case.expect, seen).map(|failed| format!("{}: {failed}\n    {seen}", case.name))
        })
        .collect();
    assert_none_wrong(&wrong, cases.len());
}

#[tokio::test]
async fn section_1_endpoint() {
    assert_kept(1).await;
}

#[tokio::test]
async fn section_2_routing_headers() {
    assert_kept(2).await;
}

#[tokio::test]
async fn section_3_the_request_on_its_way_up() {
    assert_kept(3).await;
}

#[tokio::test]
async fn section_4_outcomes() {
    assert_kept(4).await;
}

#[tokio::test]
async fn section_5_upgrades() {
    assert_kept(5).await;
}

#[tokio::test]
async fn section_6_environment_and_flags() {
    assert_kept(6).await;
}

#[tokio::test]
async fn section_7_signals() {
    assert_kept(7).await;
}

#[test]
fn the_table_has_at_least_200_cases_in_seven_sections_and_each_has_a_name_of_its_own_and_a_check() {
    let cases = cases::all();
    let mut counts = BTreeMap::new();
    let mut names = HashSet::new();
    for case in &cases {
        *counts.entry(case.section).or_insert(0) += 1;
        assert!(names.insert(&case.name), "{} is there twice", case.name);
        assert!(!case.expect.is_empty(), "{} expects nothing", case.name);
    }
    assert!(cases.len() >= 200, "{}", cases.len());
    assert!(
        counts.keys().copied().eq(1..=7) && counts.values().all(|count| *count >= 15),
        "{counts:?}"
    );
}

#[test]
fn every_decision_is_shown_by_a_case_and_they_are_in_the_order_of_the_contract() {
    let cases = cases::all();
    assert!(decisions::ALL.is_sorted_by_key(|decision| decision.section));
    for decision in decisions::ALL {
        let shown = cases
            .iter()
            .any(|case| matches!(case.differs, Some((why, _)) if why == *decision));
        assert!(shown, "{decision:?}");
    }
}
