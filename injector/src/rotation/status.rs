//! How a replacement stands, as the leader writes it into an annotation of the Secret and `root status` shows it.

use super::blockers::Blocker;
use super::{Rotation, Step};
use crate::authority::Root;
use crate::authority_stored::Stored;
use sandgate_mesh::telemetry::{seconds_since_1970, utc};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// What the leader tells of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    pub(crate) step: Step,
    /// When that step began, in seconds since 1970: it tells a status from one of another replacement.
    pub(crate) since: u64,
    /// When this was told, likewise.
    pub(crate) at: u64,
    /// What the step waits for.
    pub(crate) waits_for: Vec<Blocker>,
}

impl Status {
    pub(crate) fn new(rotation: &Rotation, waits_for: Vec<Blocker>, now: SystemTime) -> Self {
        Self {
            step: rotation.step,
            since: rotation.since,
            at: seconds_since_1970(now),
            waits_for,
        }
    }

    /// Whether it tells of the same step.
    pub(crate) fn is_of_same_step(&self, other: &Self) -> bool {
        self.step == other.step && self.since == other.since
    }

    /// Whether it tells the same, at whatever time.
    pub(crate) fn tells_the_same(&self, other: &Self) -> bool {
        self.is_of_same_step(other) && self.waits_for == other.waits_for
    }
}

/// What an operator is shown: where the replacement is, what it waits for, and the roots.
pub(crate) fn shown(stored: &Stored, told: Option<&str>, now: SystemTime) -> String {
    let mut text = String::new();
    // Writing to a text can't fail.
    let _ = match &stored.rotation {
        Err(misfit) => writeln!(text, "The replacement of the root can't go on: {misfit}"),
        Ok(None) => writeln!(text, "The root has never been replaced by itself."),
        Ok(Some(rotation)) => writeln!(text, "{}", headline(rotation, now)),
    };
    if stored.is_external() {
        let _ = writeln!(text, "It comes from files, and is replaced when they hold another.");
    }
    if let Some(rotation) = stored.under_way() {
        // Of a step that has just begun nobody has told anything.
        let status = told.and_then(|told| serde_json::from_str::<Status>(told).ok());
        let status = status.filter(|status| status.step == rotation.step && status.since == rotation.since);
        let _ = match status {
            None => writeln!(
                text,
                "\nThe leader hasn't told yet what this step waits for. Is a replica the leader?"
            ),
            Some(status) => text.write_str(&waits(&status)),
        };
    }
    let _ = writeln!(text, "\nROOT  USE  MADE  EXPIRES");
    for (root, role) in roles(stored) {
        let (made, ends) = (utc(root.not_before()), utc(root.not_after()));
        let _ = writeln!(text, "{}  {role}  {made}  {ends}", root.id());
    }
    text
}

fn headline(rotation: &Rotation, now: SystemTime) -> String {
    let began = SystemTime::UNIX_EPOCH + Duration::from_secs(rotation.since);
    let (cause, since) = (rotation.cause.as_str(), utc(began));
    let seconds = now.duration_since(began).unwrap_or_default().as_secs();
    match rotation.step {
        Step::Done => format!("The root was replaced ({cause}); that was over at {since}."),
        step => format!("The root is being replaced ({cause}): step {step} since {since}, for {seconds} s."),
    }
}

fn waits(status: &Status) -> String {
    let at = utc(SystemTime::UNIX_EPOCH + Duration::from_secs(status.at));
    let mut text = format!("\nWaits for, unchanged since {at}:\n");
    for blocker in &status.waits_for {
        let (reason, count) = (blocker.reason.as_str(), blocker.count);
        let _ = writeln!(text, "  {reason} ({count}): {}", blocker.reason.sentence(status.step));
        for name in &blocker.names {
            let _ = writeln!(text, "    {name}");
        }
        let more = count.saturating_sub(blocker.names.len());
        if !blocker.names.is_empty() && more > 0 {
            let _ = writeln!(text, "    and {more} more");
        }
    }
    if status.waits_for.is_empty() {
        text.push_str("  nothing; the next step begins within seconds\n");
    }
    text
}

/// Every root that counts, and what for.
fn roles(stored: &Stored) -> impl Iterator<Item = (&Root, &'static str)> {
    let distributed = matches!(stored.under_way(), Some(rotation) if rotation.step == Step::Distribute);
    stored.roots.iter().enumerate().map(move |(place, root)| {
        let role = match place {
            0 => "signs",
            _ if distributed => "trusted, signs next",
            _ => "trusted",
        };
        (root, role)
    })
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
