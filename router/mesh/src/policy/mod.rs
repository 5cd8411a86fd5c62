//! The policy snapshot: what one sandbox's gate enforces, complete and by itself.
//!
//! Allow-only and additive. A request is allowed if some rule of some policy has a `from` entry that lists the caller
//! and a `to` entry that covers port, method and path; the order of policies and rules means nothing. While there is no
//! policy, the default holds. [`model`] is the written form; [`PolicySnapshot`] is checked and compiled once, and
//! evaluated for every request. Each of its structs is taken apart in full where it is evaluated, so that no field can be
//! forgotten there.

mod compile;
pub mod model;
mod path;
mod sources;
mod texts;

use crate::caller::Caller;
use crate::sandbox::AppPort;
use http::Method;
use model::{DefaultPolicy, Generation};
use path::Paths;
use serde::Deserialize;
use sources::Sources;
use std::cell::LazyCell;
use std::fmt;
use std::sync::Arc;

/// Largest snapshot that is read, in bytes.
pub const MAX_SNAPSHOT_BYTES: usize = 1024 * 1024;

/// Why a snapshot is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Larger than [`MAX_SNAPSHOT_BYTES`].
    #[error("policy snapshot has {0} bytes, more than 1 MiB")]
    TooLarge(usize),
    /// Written for another release.
    #[error("policy snapshot has version {0}, this release reads version 1")]
    Version(u64),
    /// Not JSON, or not the format's fields; the text names line and column.
    #[error("policy snapshot isn't JSON of the version 1 format: {0}")]
    Format(serde_json::Error),
    /// A value that can't be enforced.
    #[error("policy snapshot: {place}: {problem}")]
    Invalid {
        /// Where, for example `policies[0].rules[2].to[0].ports[1]`.
        place: String,
        /// What is wrong there.
        problem: String,
    },
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Let it pass, and say why in the audit line.
    Allowed(Basis),
    /// No rule allows it: 403.
    Denied,
    /// No rule allows it, but one covers caller, port and method and can't judge a path that programs read in different
    /// ways: 400.
    AmbiguousPath,
}

/// What allowed a request: for the audit line, never for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Basis {
    /// The default, as no policy selects the sandbox.
    Default,
    /// A rule.
    Rule {
        /// Its policy's name.
        policy: Arc<str>,
        /// Its place in the policy, from 0.
        rule: usize,
    },
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Rule { policy, rule } => write!(f, "{policy}[{rule}]"),
        }
    }
}

/// A snapshot in force: checked, bounded, and quick to ask.
#[derive(Debug)]
pub struct PolicySnapshot {
    generation: Generation,
    default_policy: DefaultPolicy,
    default_ports: Box<[AppPort]>,
    policies: Box<[Policy]>,
}

#[derive(Debug)]
struct Policy {
    name: Arc<str>,
    rules: Box<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    sources: Sources,
    targets: Box<[Target]>,
}

#[derive(Debug)]
struct Target {
    ports: Box<[AppPort]>,
    methods: Option<Box<[Method]>>,
    paths: Option<Paths>,
}

/// How far a request gets with one rule.
enum Reach {
    Allowed,
    /// Only the path, which is ambiguous, stands in the way.
    NeedsPath,
    No,
}

impl PolicySnapshot {
    /// Reads a snapshot (`docs/policy-snapshot.md`). All of it counts, or none.
    ///
    /// # Errors
    /// Anything unknown, missing, doubled, out of bounds or without effect. The text says where.
    pub fn parse(json: &[u8]) -> Result<Self, SnapshotError> {
        if json.len() > MAX_SNAPSHOT_BYTES {
            return Err(SnapshotError::TooLarge(json.len()));
        }
        let written: model::Snapshot = serde_json::from_slice(json).map_err(|error| why_unreadable(json, error))?;
        if written.version != model::VERSION {
            return Err(SnapshotError::Version(written.version.into()));
        }
        compile::snapshot(&written)
            .map_err(|compile::Flaw { place, problem }| SnapshotError::Invalid { place, problem })
    }

    /// Whether `newer` may take this one's place: never one of a lower generation, which could let in callers that were
    /// shut out since.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn may_give_way_to(&self, newer: &Self) -> Result<(), String> {
        if newer.generation < self.generation {
            Err("its generation is lower than that of the snapshot in force; raise it".into())
        } else {
            Ok(())
        }
    }

    /// Which snapshot this is; a higher one replaces it, a lower one never does.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Judges one request. `path` is the path, without query, in exactly the bytes that will be forwarded.
    ///
    /// Costs no allocation: it runs for every request, also for each one that is refused.
    pub fn evaluate(&self, caller: &Caller, port: AppPort, method: &Method, path: &str) -> Verdict {
        let Self {
            generation: _,
            default_policy,
            default_ports,
            policies,
        } = self;
        if policies.is_empty() {
            return if default_policy.admits(caller) && default_ports.contains(&port) {
                Verdict::Allowed(Basis::Default)
            } else {
                Verdict::Denied
            };
        }
        // Most rules have no paths; only those that do need this known.
        let path = LazyCell::new(|| path::is_unambiguous(path).then_some(path));
        let mut refusal = Verdict::Denied;
        for Policy { name, rules } in policies {
            for (index, rule) in rules.iter().enumerate() {
                match rule.reach(caller, port, method, || *path) {
                    Reach::Allowed => {
                        return Verdict::Allowed(Basis::Rule {
                            policy: Arc::clone(name),
                            rule: index,
                        });
                    }
                    Reach::NeedsPath => refusal = Verdict::AmbiguousPath,
                    Reach::No => {}
                }
            }
        }
        refusal
    }
}

impl DefaultPolicy {
    fn admits(self, caller: &Caller) -> bool {
        match self {
            Self::Deny => false,
            Self::Authenticated => !caller.is_anonymous(),
            Self::Anonymous => true,
        }
    }
}

impl Rule {
    /// `path` gives the path if it is unambiguous.
    fn reach<'a>(&self, caller: &Caller, port: AppPort, method: &Method, path: impl Fn() -> Option<&'a str>) -> Reach {
        let Self { sources, targets } = self;
        // Ports first: they cost least and rule out most.
        let mut covered = targets
            .iter()
            .filter_map(|target| target.cover(port, method))
            .peekable();
        if covered.peek().is_none() || !sources.admit(caller) {
            return Reach::No;
        }
        let mut reach = Reach::No;
        for paths in covered {
            let Some(paths) = paths else {
                return Reach::Allowed;
            };
            match path() {
                Some(path) if paths.cover(path) => return Reach::Allowed,
                Some(_) => {}
                None => reach = Reach::NeedsPath,
            }
        }
        reach
    }
}

impl Target {
    /// Which paths it covers, if it covers port and method.
    fn cover(&self, port: AppPort, method: &Method) -> Option<&Option<Paths>> {
        let Self { ports, methods, paths } = self;
        let covered = ports.contains(&port) && methods.as_ref().is_none_or(|methods| methods.contains(method));
        covered.then_some(paths)
    }
}

/// A newer format fails on its new fields first: then the version is what its reader must be told.
fn why_unreadable(json: &[u8], error: serde_json::Error) -> SnapshotError {
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    match serde_json::from_slice(json) {
        Ok(Versioned { version }) if version != u64::from(model::VERSION) => SnapshotError::Version(version),
        _ => SnapshotError::Format(error),
    }
}

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod path_tests;
#[cfg(test)]
mod tests;
