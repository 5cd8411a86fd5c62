//! The table: one file for each section of the contract, and two for section 3.

mod endpoint;
mod framing;
mod heads;
mod outcomes;
mod routing;
mod settings;
mod signals;
mod upgrades;

use crate::case::Case;

/// Every case, with its section.
pub(crate) fn all() -> Vec<Case> {
    let sections = [
        (1, endpoint::cases()),
        (2, routing::cases()),
        (3, heads::cases()),
        (3, framing::cases()),
        (4, outcomes::cases()),
        (5, upgrades::cases()),
        (6, settings::cases()),
        (7, signals::cases()),
    ];
    let numbered = sections.into_iter().flat_map(|(section, cases)| {
        let number = move |case| Case { section, ..case };
        cases.into_iter().map(number)
    });
    numbered.collect()
}
