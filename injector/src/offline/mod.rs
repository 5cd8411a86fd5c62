//! The webhook's decisions without a cluster: about files, before they are applied.
//!
//! A file doesn't say how its namespace is labelled, so every namespace counts as opted in.

pub mod documents;
pub mod explain;
pub mod find;
pub mod inject;

use crate::anchors::Anchors;
use crate::decide::{Decision, Operation, Request, User, decide};
use crate::settings::Settings;
use find::Found;

/// What a command has to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output.
    pub output: String,
    /// For standard error, a line each.
    pub notes: Vec<String>,
    /// Whether nothing was refused, and, for `explain`, anything found.
    pub admitted: bool,
}

/// The webhook's decision about a pod that was found in a file.
fn judge(settings: &Settings, anchors: &Anchors, default_namespace: &str, found: &Found) -> Decision {
    let request = Request {
        pod: &found.pod,
        operation: Operation::Create,
        namespace: found.namespace.as_deref().unwrap_or(default_namespace),
        user: &User::default(),
    };
    match decide(settings, anchors, &request) {
        Decision::Deny(denials) => Decision::Deny(denials.with_fields(|field| found.field(field))),
        decision => decision,
    }
}

#[cfg(test)]
mod tests;
