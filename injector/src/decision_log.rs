//! One line per answered review.

use crate::decide::Operation;
use crate::pod::{Pod, text_at};
use crate::review::{MAX_MESSAGE, Review};
use sandgate_mesh::telemetry::{LONGEST_TEXT, cut, timestamp};
use serde::Serialize;
use std::borrow::Cow;

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

/// The line. What a pod's author chooses is cut: a line that finds no room in the log is lost.
#[derive(Debug, Serialize)]
pub(crate) struct DecisionLine<'a> {
    time: String,
    log: &'static str,
    webhook: &'static str,
    decision: &'static str,
    reason: &'static str,
    message: Option<Cow<'a, str>>,
    patch_operations: usize,
    operation: Operation,
    resource: Cow<'a, str>,
    namespace: Cow<'a, str>,
    name: Option<Cow<'a, str>>,
    generate_name: Option<Cow<'a, str>>,
    owner: Option<Cow<'a, str>>,
    user: Cow<'a, str>,
    uid: Cow<'a, str>,
    dry_run: bool,
}

impl<'a> DecisionLine<'a> {
    pub(crate) fn new(webhook: &'static str, review: &'a Review, outcome: &'a Outcome) -> Self {
        let object = review.object.as_ref();
        let pod = object.and_then(|object| Pod::read(object).ok());
        let owner = pod
            .and_then(Pod::owner)
            .map(|(kind, name)| format!("{}/{}", short(kind), short(name)).into());
        let given = Some(review.name.as_str()).filter(|name| !name.is_empty());
        let resource = short(&review.resource.resource);
        Self {
            time: timestamp(),
            log: "admission",
            webhook,
            decision: outcome.decision,
            reason: outcome.reason,
            message: outcome.message.as_ref().map(|message| cut(message, MAX_MESSAGE)),
            patch_operations: outcome.operations,
            operation: review.operation,
            resource: match review.sub_resource.as_str() {
                "" => resource,
                sub_resource => format!("{resource}/{}", short(sub_resource)).into(),
            },
            namespace: short(&review.namespace),
            name: given.or_else(|| text_at(object?, &["metadata", "name"])).map(short),
            generate_name: object
                .and_then(|object| text_at(object, &["metadata", "generateName"]))
                .map(short),
            owner,
            user: short(&review.user_info.username),
            uid: short(&review.uid),
            dry_run: review.dry_run.unwrap_or(false),
        }
    }
}

fn short(text: &str) -> Cow<'_, str> {
    cut(text, LONGEST_TEXT)
}
