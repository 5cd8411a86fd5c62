//! `explain`: what the webhook would decide about each pod of a file, why, and what to change.

use super::{Outcome, documents, find, judge};
use crate::anchors::Anchors;
use crate::authority::NewRoot;
use crate::decide::Decision;
use crate::existing;
use crate::names::{ENABLED, INJECT_LABEL};
use crate::patch::patch;
use crate::pod::Pod;
use crate::settings::Settings;
use serde::Serialize;
use std::fmt::Write;

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What happens to one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Explained {
    kind: String,
    namespace: String,
    name: String,
    decision: &'static str,
    reason: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    denials: Vec<ExplainedDenial>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ExplainedDenial {
    reason: &'static str,
    field: String,
    why: String,
    fix: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    pods: &'a [Explained],
}

/// Explains every pod in a text. Without the cluster's roots, those of a gate that is there aren't compared with any.
///
/// # Errors
/// The text can't be read.
pub fn explain(
    settings: &Settings,
    anchors: Option<&Anchors>,
    namespace: &str,
    text: &str,
    format: Format,
) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    let (mut pods, mut uncompared) = (Vec::new(), false);
    let any = some_root()?;
    for document in documents::parse(text)? {
        for found in find::pods(&document, &mut outcome.notes) {
            let own = Pod::read(&found.pod).ok().and_then(existing::anchors);
            let own = own.and_then(|text| Anchors::from_pem(text.as_bytes()).ok());
            uncompared |= anchors.is_none() && own.is_some();
            let anchors = anchors.or(own.as_ref()).unwrap_or(&any);
            pods.push(explained(settings, anchors, namespace, &found));
        }
    }
    if uncompared {
        let note = "the roots of gates that are there already were compared with none: give --trust-anchors-file";
        outcome.notes.push(note.to_owned());
    }
    outcome.notes.push(match pods.as_slice() {
        [] => "no pod was found: nothing was checked".to_owned(),
        _ => format!("every namespace is taken for one that is labelled {INJECT_LABEL}={ENABLED}"),
    });
    // Whoever checks a file before it is applied must hear that it was the wrong one.
    outcome.admitted = !pods.is_empty() && pods.iter().all(|pod| pod.denials.is_empty());
    outcome.output = match format {
        Format::Table => table(&pods),
        Format::Json => {
            serde_json::to_string_pretty(&Answer { pods: &pods }).map_err(|error| error.to_string())? + "\n"
        }
    };
    Ok(outcome)
}

/// A root that stands for the cluster's where a gate would be added: what it says is shown to nobody.
fn some_root() -> Result<Anchors, String> {
    let root = NewRoot::generate().map_err(|error| error.to_string())?;
    Anchors::from_pem(root.certificate_pem.as_bytes()).map_err(|error| error.to_string())
}

fn explained(settings: &Settings, anchors: &Anchors, namespace: &str, found: &find::Found) -> Explained {
    let decision = judge(settings, anchors, namespace, found);
    let mut explained = Explained {
        kind: found.kind.clone(),
        namespace: found.namespace.as_deref().unwrap_or(namespace).to_owned(),
        name: found.name.clone(),
        decision: decision.as_str(),
        reason: decision.reason(),
        message: String::new(),
        denials: Vec::new(),
        warnings: Vec::new(),
    };
    match decision {
        Decision::Inject(plan) => {
            let done = patch(&plan, &found.pod).0.is_empty();
            let what = if done {
                "its gate is there already"
            } else {
                "a gate is added"
            };
            explained.message = format!("{}: {what}", plan.trigger);
            explained.warnings = plan.warnings;
        }
        Decision::Skip(reason) => explained.message = format!("let through as it is: {reason}"),
        Decision::Deny(denials) => {
            "the pod isn't admitted until each field below is changed".clone_into(&mut explained.message);
            explained.denials = denials
                .into_iter()
                .map(|denial| ExplainedDenial {
                    reason: denial.reason.as_str(),
                    field: denial.field,
                    why: denial.why,
                    fix: denial.fix,
                })
                .collect();
        }
    }
    explained
}

fn table(pods: &[Explained]) -> String {
    let titles: Vec<_> = pods
        .iter()
        .map(|pod| printable(&format!("{} {}/{}", pod.kind, pod.namespace, pod.name)))
        .collect();
    let width = titles
        .iter()
        .map(|title| title.chars().count())
        .max()
        .unwrap_or(0)
        .max("POD".len());
    let mut text = String::new();
    if !pods.is_empty() {
        let _ = writeln!(text, "{:width$}  DECISION  REASON", "POD");
    }
    for (title, pod) in titles.iter().zip(pods) {
        let _ = writeln!(text, "{title:width$}  {:8}  {}", pod.decision, pod.reason);
        let denials = pod.denials.iter().map(|denial| {
            let ExplainedDenial { field, why, fix, .. } = denial;
            format!("{field}: {why}; {fix}")
        });
        for line in [pod.message.clone()]
            .into_iter()
            .chain(denials)
            .chain(pod.warnings.iter().cloned())
        {
            let _ = writeln!(text, "    {}", printable(&line));
        }
    }
    text
}

/// A file's text for a terminal.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}
