//! `inject`: a file's objects with a gate in every pod and pod template that the webhook would put one into.

use super::{Outcome, documents, find, judge};
use crate::anchors::Anchors;
use crate::decide::Decision;
use crate::patch::patch;
use crate::settings::Settings;

/// Injects every pod in a text, with these roots. If one would be refused, nothing is put out: half a file is worse than none.
///
/// # Errors
/// The text can't be read, or the result not be written.
pub fn inject(
    settings: &Settings,
    anchors: &Anchors,
    namespace: &str,
    text: &str,
    format: documents::Format,
) -> Result<Outcome, String> {
    let mut outcome = Outcome {
        admitted: true,
        ..Outcome::default()
    };
    let mut documents = documents::parse(text)?;
    for document in &mut documents {
        for found in find::pods(document, &mut outcome.notes) {
            let title = format!("{} {}", found.kind, found.name);
            match judge(settings, anchors, namespace, &found) {
                Decision::Inject(plan) => {
                    let place = found
                        .place(document)
                        .ok_or_else(|| format!("{title}: its pod is out of reach"))?;
                    let patch = patch(&plan, place);
                    json_patch::patch(place, &patch).map_err(|error| format!("{title}: {error}"))?;
                    outcome
                        .notes
                        .extend(plan.warnings.into_iter().map(|warning| format!("{title}: {warning}")));
                }
                Decision::Skip(reason) => outcome.notes.push(format!("{title}: passed through: {reason}")),
                Decision::Deny(denials) => {
                    outcome.admitted = false;
                    let refusals = denials.into_iter().map(|denial| format!("{title}: refused: {denial}"));
                    outcome.notes.extend(refusals);
                }
            }
        }
    }
    if outcome.admitted {
        outcome.output = documents::render(&documents, format)?;
    }
    Ok(outcome)
}
