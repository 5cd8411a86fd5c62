//! Runs cases against a router: one process for all that have the same settings.

use crate::case::Case;
use crate::check::Check;
use crate::observe::{Seen, observe};
use crate::routers::{Router, Settings, Started};
use futures_util::stream::{StreamExt, iter};
use sandgate_local::authority::Authority;
use sandgate_tests::folder::Folder;
use sandgate_tests::front;
use std::collections::HashMap;

/// Cases at one router at a time.
const CASES: usize = 8;
/// Routers at a time.
const ROUTERS: usize = 4;

/// What comes of each case at a router, in the order of the cases.
pub(crate) async fn watch(router: &Router, cases: &[Case]) -> Vec<Seen> {
    let folder = files();
    let mut groups: HashMap<&Settings, Vec<usize>> = HashMap::new();
    for (number, case) in cases.iter().enumerate() {
        groups.entry(&case.settings).or_default().push(number);
    }
    let groups = iter(groups).map(|(settings, numbers)| group(router, settings, numbers, cases, &folder));
    let mut seen: Vec<(usize, Seen)> = groups.buffer_unordered(ROUTERS).map(iter).flatten().collect().await;
    seen.sort_by_key(|(number, _)| *number);
    seen.into_iter().map(|(_, seen)| seen).collect()
}

/// The cases of one router's settings.
async fn group(
    router: &Router,
    settings: &Settings,
    numbers: Vec<usize>,
    cases: &[Case],
    folder: &Folder,
) -> Vec<(usize, Seen)> {
    let running = match router.start(settings, folder).await {
        Started::Runs(running) => running,
        Started::Ended(left) => {
            let ended = |number| {
                let left = Some(left.clone());
                (
                    number,
                    Seen {
                        left,
                        ..Seen::default()
                    },
                )
            };
            return numbers.into_iter().map(ended).collect();
        }
    };
    let running = &running;
    let observed = iter(numbers).map(|number| async move { (number, observe(&cases[number], running).await) });
    observed.buffer_unordered(CASES).collect().await
}

/// The checks that don't hold, if any.
pub(crate) fn failures(checks: &[Check], seen: &Seen) -> Option<String> {
    let failed: Vec<String> = checks
        .iter()
        .filter(|check| !check.holds(seen))
        .map(|check| format!("{check:?}"))
        .collect();
    (!failed.is_empty()).then(|| failed.join(", "))
}

/// A certificate for an HTTPS listener.
fn files() -> Folder {
    let (authority, folder) = (Authority::new("conformance").unwrap(), Folder::new());
    let issued = front::server(&authority);
    folder.rename_over("tls.crt", &issued.chain_pem);
    folder.rename_over("tls.key", &issued.key_pem);
    folder.rename_over("ca.crt", authority.root_pem());
    folder
}

/// Fails with what is wrong with some of so many cases, if anything.
pub(crate) fn assert_none_wrong(wrong: &[String], cases: usize) {
    assert!(
        wrong.is_empty(),
        "{} of {cases} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
