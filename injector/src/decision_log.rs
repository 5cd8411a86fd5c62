//! One line per answered review.

use crate::decide::Operation;
use crate::pod::{Pod, text_at};
use crate::review::Review;
use sandgate_mesh::telemetry::timestamp;
use serde::Serialize;

/// What was decided about a review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// `inject`, `skip`, `allow` or `deny`.
    pub(crate) decision: &'static str,
    /// A bounded word for why.
    pub(crate) reason: &'static str,
    /// How many operations the patch has.
    pub(crate) operations: usize,
    /// What whoever asked was told.
    pub(crate) message: Option<String>,
}

/// The line.
#[derive(Debug, Serialize)]
pub(crate) struct DecisionLine<'a> {
    time: String,
    log: &'static str,
    webhook: &'static str,
    decision: &'static str,
    reason: &'static str,
    message: Option<&'a str>,
    patch_operations: usize,
    operation: Operation,
    resource: String,
    namespace: &'a str,
    name: Option<&'a str>,
    generate_name: Option<&'a str>,
    owner: Option<String>,
    user: &'a str,
    uid: &'a str,
    dry_run: bool,
}

impl<'a> DecisionLine<'a> {
    pub(crate) fn new(webhook: &'static str, review: &'a Review, outcome: &'a Outcome) -> Self {
        let object = review.object.as_ref();
        let pod = object.and_then(|object| Pod::read(object).ok());
        let owner = pod.and_then(Pod::owner).map(|(kind, name)| format!("{kind}/{name}"));
        let given = Some(review.name.as_str()).filter(|name| !name.is_empty());
        let resource = &review.resource.resource;
        Self {
            time: timestamp(),
            log: "admission",
            webhook,
            decision: outcome.decision,
            reason: outcome.reason,
            message: outcome.message.as_deref(),
            patch_operations: outcome.operations,
            operation: review.operation,
            resource: match review.sub_resource.as_str() {
                "" => resource.clone(),
                sub_resource => format!("{resource}/{sub_resource}"),
            },
            namespace: &review.namespace,
            name: given.or_else(|| text_at(object?, &["metadata", "name"])),
            generate_name: object.and_then(|object| text_at(object, &["metadata", "generateName"])),
            owner,
            user: &review.user_info.username,
            uid: &review.uid,
            dry_run: review.dry_run.unwrap_or(false),
        }
    }
}
