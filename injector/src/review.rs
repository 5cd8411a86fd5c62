//! `AdmissionReview` v1 in and out
//! (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>).

use crate::decide::{Operation, Request, User};
use crate::deny::Denial;
use crate::inbound::MAX_BODY;
use crate::review_size::{MOST_PER_BYTE, ParsedSize};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use sandgate_mesh::telemetry::{LONGEST_TEXT, cut};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt::Write;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Denials that one message tells; the rest is counted.
const TOLD: usize = 20;
/// Longest sentence of one of them in bytes: it may hold a name that the pod's author made long.
const MAX_SENTENCE: usize = 512;
/// Longest message of a refusal in bytes.
pub(crate) const MAX_MESSAGE: usize = 8 << 10;
/// Longest warning in bytes; the API server cuts longer ones off.
const MAX_WARNING: usize = 256;
/// Warnings in one answer; the API server passes on about as many.
const MAX_WARNINGS: usize = 16;
/// Longest UID, which answers repeat, in bytes. API servers use 36.
const MAX_UID: usize = 128;
/// What a review may take in memory, in bytes.
const MAX_PARSED: usize = 16 << 20;
/// The part of a review that an object may be when it is made or grows: an update's review holds it twice, and room is
/// needed for what others add. What was let in once must not be too much afterwards, or it could not even be deleted.
const SHARE: usize = 3;
/// What an object may take once it is parsed, in bytes.
pub(crate) const MAX_OBJECT_PARSED: usize = MAX_PARSED / SHARE;
/// An object of no more bytes can't take more than its share.
const NEVER_TOO_MUCH: usize = MAX_OBJECT_PARSED / MOST_PER_BYTE;

/// A body that isn't a review that can be answered, or not yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// Not JSON, or not of a review's shape.
    #[error("the body is no AdmissionReview: {0}")]
    NotAReview(String),
    /// One that would take too much memory.
    #[error("the review's objects are made of too many parts: parsed, they take {0} MiB, and at most {limit} are taken", limit = MAX_PARSED >> 20)]
    TooManyParts(usize),
    /// An object of which a review that holds it twice could be too much.
    #[error("the object is too large to be updated or deleted later: it has {0} KiB, which parsed take {1} KiB; at most {bytes} and {parsed} are taken", bytes = MAX_BODY / SHARE / 1024, parsed = MAX_PARSED / SHARE / 1024)]
    TooLarge(usize, usize),
    /// Another version or kind.
    #[error("only {API_VERSION} {KIND} is answered here, this is {0}; set admissionReviewVersions to [v1]")]
    OtherVersion(String),
    /// No request in it.
    #[error("the AdmissionReview holds no request")]
    NoRequest,
    /// A request without a UID, which every answer must repeat.
    #[error("the request has no uid")]
    NoUid,
    /// Not a UID of an API server's.
    #[error("the request's uid is longer than {MAX_UID} bytes")]
    LongUid,
    /// Not about pods.
    #[error("only pods are injected, this request is about {0}; correct the webhook's rules")]
    NotAPod(String),
    /// Nothing to look at.
    #[error("the request holds no pod (its object is missing)")]
    NoObject,
    /// A gate can be given no root yet.
    #[error(
        "the injector hasn't read the root certificate yet, and without it no gate is made; its log says why; try again"
    )]
    NoRoots,
}

/// A request of the API server.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Review {
    /// Repeated in the answer.
    pub uid: String,
    /// What kind of object it is.
    pub kind: Kind,
    /// Under which resource it is asked for.
    pub resource: Resource,
    /// Under which subresource; empty for none.
    #[serde(default)]
    pub sub_resource: String,
    /// The object's name; empty where the API server makes one.
    #[serde(default)]
    pub name: String,
    /// The namespace; an object may not name it yet.
    #[serde(default)]
    pub namespace: String,
    /// What is about to happen.
    pub operation: Operation,
    /// Who asks.
    #[serde(default)]
    pub user_info: User,
    /// The object as it will be.
    #[serde(default)]
    pub object: Option<Value>,
    /// The object as it was.
    #[serde(default)]
    pub old_object: Option<Value>,
    /// Whether the result is thrown away.
    #[serde(default)]
    pub dry_run: Option<bool>,
}

/// A group, version and kind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Kind {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// The version.
    pub version: String,
    /// The kind.
    pub kind: String,
}

/// A group, version and resource.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Resource {
    /// Empty for the core group.
    #[serde(default)]
    pub group: String,
    /// The version.
    pub version: String,
    /// The resource's name in the plural.
    pub resource: String,
}

/// Refuses what would take too much memory, and objects that would do so later.
fn check_sizes(body: &[u8]) -> Result<(), ReviewError> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        request: Option<Objects<'a>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Objects<'a> {
        #[serde(borrow)]
        object: Option<&'a RawValue>,
        #[serde(borrow)]
        old_object: Option<&'a RawValue>,
    }
    let not_a_review = |error: serde_json::Error| ReviewError::NotAReview(error.to_string());
    let ParsedSize(size) = ParsedSize::of(body).map_err(not_a_review)?;
    if size > MAX_PARSED {
        return Err(ReviewError::TooManyParts(size.div_ceil(1 << 20)));
    }
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(not_a_review)?;
    let Some(Objects {
        object: Some(object),
        old_object,
    }) = envelope.request
    else {
        return Ok(());
    };
    let sizes = |object: &RawValue| {
        let text = object.get();
        ParsedSize::of(text.as_bytes()).map(|parsed| (text.len(), parsed.0))
    };
    let (bytes, parsed) = sizes(object).map_err(not_a_review)?;
    let (bytes_before, parsed_before) = old_object.map_or(Ok((0, 0)), sizes).map_err(not_a_review)?;
    let grows_beyond = |now: usize, before: usize, most: usize| now > most / SHARE && now > before;
    if grows_beyond(bytes, bytes_before, MAX_BODY) || grows_beyond(parsed, parsed_before, MAX_PARSED) {
        return Err(ReviewError::TooLarge(bytes.div_ceil(1024), parsed.div_ceil(1024)));
    }
    Ok(())
}

impl Review {
    /// Reads the body of a call.
    ///
    /// # Errors
    /// A sentence that says what the body is instead.
    pub fn parse(body: &[u8]) -> Result<Self, ReviewError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Envelope {
            #[serde(default)]
            api_version: String,
            #[serde(default)]
            kind: String,
            request: Option<Value>,
        }
        let not_a_review = |error: serde_json::Error| ReviewError::NotAReview(error.to_string());
        if body.len() > NEVER_TOO_MUCH {
            check_sizes(body)?;
        }
        let envelope: Envelope = serde_json::from_slice(body).map_err(not_a_review)?;
        if envelope.api_version != API_VERSION || envelope.kind != KIND {
            let found = format!("{:.64} {:.64}", envelope.api_version, envelope.kind);
            return Err(ReviewError::OtherVersion(found));
        }
        let request = envelope.request.ok_or(ReviewError::NoRequest)?;
        let review: Self = serde_json::from_value(request).map_err(not_a_review)?;
        if review.uid.is_empty() {
            return Err(ReviewError::NoUid);
        }
        if review.uid.len() > MAX_UID {
            return Err(ReviewError::LongUid);
        }
        Ok(review)
    }

    /// The pod to decide about.
    ///
    /// # Errors
    /// The request is about something else.
    pub fn pod(&self) -> Result<Request<'_>, ReviewError> {
        let (kind, resource) = (&self.kind, &self.resource);
        let about_pods = resource.group.is_empty() && resource.resource == "pods" && self.sub_resource.is_empty();
        let is_pod = kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod";
        if !about_pods || !is_pod {
            let (kind, resource, sub) = (&kind.kind, &resource.resource, &self.sub_resource);
            return Err(ReviewError::NotAPod(format!("{kind:.64} ({resource:.64}/{sub:.64})")));
        }
        Ok(Request {
            pod: self.object.as_ref().ok_or(ReviewError::NoObject)?,
            operation: self.operation,
            namespace: &self.namespace,
            user: &self.user_info,
        })
    }
}

/// The answer to a review.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    // Both or neither, or the API server refuses the answer.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    patch: Option<EncodedPatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<&'static str, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct EncodedPatch {
    patch: String,
    patch_type: &'static str,
}

impl Answer {
    fn new(uid: &str, allowed: bool) -> Self {
        Self {
            api_version: API_VERSION,
            kind: KIND,
            response: Response {
                uid: uid.to_owned(),
                allowed,
                ..Response::default()
            },
        }
    }

    /// Lets the object through as it is.
    pub fn allow(uid: &str) -> Self {
        Self::new(uid, true)
    }

    /// Lets the object through, patched unless the patch is empty.
    ///
    /// # Errors
    /// The patch can't be written as JSON.
    pub fn patch(uid: &str, patch: &Patch) -> Result<Self, serde_json::Error> {
        let mut answer = Self::new(uid, true);
        if !patch.0.is_empty() {
            answer.response.patch = Some(EncodedPatch {
                patch: STANDARD.encode(serde_json::to_vec(patch)?),
                patch_type: "JSONPatch",
            });
        }
        Ok(answer)
    }

    /// Refuses the object. An over-long message loses its end.
    pub fn deny(uid: &str, message: &str) -> Self {
        let mut answer = Self::new(uid, false);
        answer.response.status = Some(Status {
            code: 403,
            reason: "Forbidden",
            message: cut(message, MAX_MESSAGE).into_owned(),
        });
        answer
    }

    /// Adds a warning, which the API server passes on to whoever asked, unless there are many.
    #[must_use]
    pub fn with_warning(mut self, warning: &str) -> Self {
        if self.response.warnings.len() == MAX_WARNINGS {
            return self;
        }
        let mut end = warning.len().min(MAX_WARNING);
        while !warning.is_char_boundary(end) {
            end -= 1;
        }
        self.response
            .warnings
            .push(warning.get(..end).unwrap_or_default().to_owned());
        self
    }

    /// Adds an annotation to the API server's audit event.
    #[must_use]
    pub fn with_audit(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.response.audit_annotations.insert(name, value.into());
        self
    }
}

/// The message of a refusal: each field, what is wrong with it and what to change.
pub fn message(denials: &[Denial]) -> String {
    let mut message = "this pod can't be admitted with a gate".to_owned();
    for (index, denial) in denials.iter().take(TOLD).enumerate() {
        let denial = Denial {
            reason: denial.reason,
            field: cut(&denial.field, LONGEST_TEXT).into_owned(),
            why: cut(&denial.why, MAX_SENTENCE).into_owned(),
            fix: cut(&denial.fix, MAX_SENTENCE).into_owned(),
        };
        let _ = write!(message, "{} {denial}", if index == 0 { ":" } else { "." });
    }
    if denials.len() > TOLD {
        let _ = write!(message, ". {} more", denials.len() - TOLD);
    }
    message
}

#[cfg(test)]
#[path = "review_tests.rs"]
mod tests;
