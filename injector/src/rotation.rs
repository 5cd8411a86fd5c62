//! The replacement of the root: three steps, each of which is one write of the authority's Secret. So whoever is stopped
//! between two of them, or in the middle of one, is followed by somebody who reads where it was.
//!
//! | step | signs | trusted | goes on when |
//! |---|---|---|---|
//! | distribute | the old root | both | everybody knows the new one |
//! | switch | the new one | both | nobody shows a leaf under the old one, and no pod knows that one only |
//! | retire | the new one | the new one | nobody believes the old one any more |
//!
//! | module | hides |
//! |---|---|
//! | [`steps`] | what each step writes |
//! | [`blockers`] | what a step waits for |
//! | [`status`] | how that is told |
//! | [`command`] | the commands of whoever operates it |

pub(crate) mod blockers;
pub(crate) mod command;
pub(crate) mod status;
pub(crate) mod steps;

use crate::authority::{Root, RootId};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, SystemTime};

/// Where a replacement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    /// The new root goes to everybody; the old one signs.
    Distribute,
    /// The new one signs; both are trusted.
    Switch,
    /// The old one has left the Secret, and leaves everybody.
    Retire,
    /// It is over. What is left says which roots are never to be trusted again.
    Done,
}

impl Step {
    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Distribute => "distribute",
            Self::Switch => "switch",
            Self::Retire => "retire",
            Self::Done => "done",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a root is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cause {
    /// It is as old as it may be.
    Age,
    /// Somebody said so.
    Command,
    /// Somebody else has its key.
    Leak,
    /// Files hold another.
    Files,
}

impl Cause {
    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Command => "command",
            Self::Leak => "leak",
            Self::Files => "files",
        }
    }
}

/// How many roots and keys of earlier replacements are kept in mind: more than a century of them.
const MOST_FORMER: usize = 64;

/// A replacement, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Rotation {
    pub(crate) step: Step,
    /// When the step began, in seconds since 1970. For whoever looks: nothing is decided by it, since clocks differ.
    pub(crate) since: u64,
    pub(crate) cause: Cause,
    /// The roots that leave: one, and in an emergency also the one that was to follow it.
    pub(crate) from: Vec<RootId>,
    /// The one that takes their place.
    pub(crate) to: RootId,
    /// The roots that left in earlier replacements, and the keys of those that left because somebody else has them; the latest
    /// last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) former: Vec<RootId>,
    /// Whether somebody has said in this step that what nobody here can see has followed.
    #[serde(default)]
    pub(crate) confirmed: bool,
}

impl Rotation {
    /// Whether there is still something to do.
    pub(crate) fn is_under_way(&self) -> bool {
        self.step != Step::Done
    }

    /// Whether it is the same step of the same replacement.
    pub(crate) fn is_same_step(&self, other: &Self) -> bool {
        self.step == other.step && self.since == other.since && self.to == other.to
    }

    /// Whether a root isn't to be taken from anywhere: it was replaced before, or its key leaked.
    pub(crate) fn has_left(&self, root: &Root) -> bool {
        let before = self.former.iter().chain(self.left());
        before.into_iter().any(|left| [root.id(), root.key_id()].contains(left))
    }

    /// What the next replacement has to keep in mind of those before it.
    pub(crate) fn formerly(&self) -> Vec<RootId> {
        let mut all: Vec<_> = self.former.iter().chain(&self.from).copied().collect();
        all.split_off(all.len().saturating_sub(MOST_FORMER))
    }

    /// The roots that are never to be trusted again.
    pub(crate) fn left(&self) -> &[RootId] {
        match self.step {
            Step::Distribute | Step::Switch => &[],
            Step::Retire | Step::Done => &self.from,
        }
    }
}

/// When a root is replaced by itself, and what counts as confirmed without anybody saying so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// How old a root may be at most; none for any age.
    pub max_age: Option<Duration>,
    /// How soon routers, and whoever else is given roots by hand, have followed a step; none if somebody says so each time.
    pub routers_follow_within: Option<Duration>,
}

impl Schedule {
    /// Whether a root of this life is to be replaced at `now`: at its greatest age, and not later than at half of its life.
    pub(crate) fn is_due(&self, not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> bool {
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let age = now.duration_since(not_before).unwrap_or_default();
        self.max_age.is_some_and(|most| age >= most.min(life / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_due_at_its_greatest_age_or_at_half_of_its_life_and_never_where_no_age_is_given() {
        const DAY: Duration = Duration::from_secs(86_400);
        let born = SystemTime::UNIX_EPOCH + 10_000 * DAY;
        let due = |max_age: Option<Duration>, life: u32, age: u32| {
            let schedule = Schedule {
                max_age,
                routers_follow_within: None,
            };
            schedule.is_due(born, born + life * DAY, born + age * DAY)
        };
        assert!(!due(Some(100 * DAY), 1000, 99) && due(Some(100 * DAY), 1000, 100));
        assert!(
            !due(Some(100 * DAY), 90, 44) && due(Some(100 * DAY), 90, 45),
            "it ends before"
        );
        assert!(!due(None, 90, 89));
    }
}
