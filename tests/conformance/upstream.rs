//! What needs agent-sandbox's own files: its Go router beside ours, its manifests, its flags and variables.
//! `tests/conformance/run` builds that router and says where both are.

use crate::case::Case;
use crate::cases;
use crate::decisions::ALL;
use crate::observe::Seen;
use crate::routers::Router;
use crate::run::{assert_none_wrong, failures, watch};

/// What `tests/conformance/run` says in a variable.
pub(crate) fn told(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: start this with tests/conformance/run"))
}

/// Where the Go router is.
pub(crate) fn router() -> String {
    told("SANDGATE_UPSTREAM_ROUTER")
}

#[tokio::test]
#[ignore = "needs the Go router: start it with tests/conformance/run"]
async fn upstreams_router_differs_only_where_the_contract_says() {
    let cases = cases::all();
    let ours = watch(&Router::Ours, &cases).await;
    let theirs = watch(&Router::Upstream(router()), &cases).await;
    print_differences(&cases, &ours, &theirs);
    let wrong: Vec<String> = cases
        .iter()
        .zip(ours.iter().zip(&theirs))
        .filter_map(|(case, (ours, theirs))| {
            let problem = problem(case, ours, theirs)?;
            Some(format!(
                "section {}: {}: {problem}\n    ours:   {ours}\n    theirs: {theirs}",
                case.section, case.name
            ))
        })
        .collect();
    assert_none_wrong(&wrong, cases.len());
}

/// What is wrong with a case, if anything.
fn problem(case: &Case, ours: &Seen, theirs: &Seen) -> Option<String> {
    if let Some(failed) = failures(&case.expect, ours) {
        return Some(format!("ours breaks the contract: {failed}"));
    }
    match (&case.differs, failures(&case.expect, theirs)) {
        (None, None) => None,
        (None, Some(failed)) => Some(format!("theirs differs, and the table has no reason: {failed}")),
        (Some((why, _)), None) => Some(format!("theirs does not differ, and the table says: {}", why.theirs)),
        (Some((_, expected)), Some(_)) => failures(expected, theirs)
            .map(|failed| format!("theirs differs in another way than the table says: {failed}")),
    }
}

/// The table of differences, by what theirs does: each with the sentence of the contract that decides it, if there is one.
#[allow(clippy::print_stdout, reason = "it is what the command is for")]
fn print_differences(cases: &[Case], ours: &[Seen], theirs: &[Seen]) {
    let mut count = 0;
    for decision in ALL {
        println!("\nsection {}: {}", decision.section, decision.theirs);
        match decision.sentence {
            Some(sentence) => println!("  decided: \"{sentence}\""),
            None => println!("  the contract says nothing; ours: {}", decision.ours),
        }
        for (case, (ours, theirs)) in cases.iter().zip(ours.iter().zip(theirs)) {
            if !matches!(case.differs, Some((why, _)) if why == *decision) {
                continue;
            }
            count += 1;
            println!("  - {}\n      ours:   {ours}\n      theirs: {theirs}", case.name);
            if let Some(failed) = failures(&case.expect, theirs) {
                println!("              not {failed}");
            }
        }
    }
    println!("\n{} cases at both routers, {count} differences", cases.len());
}
