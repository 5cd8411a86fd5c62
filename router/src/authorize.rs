//! Whether the API server lets a caller connect to a sandbox (`SubjectAccessReview`), where the operator wants it asked. It
//! comes before the gate's own policy, and in its place nowhere: both must allow.

use crate::api_server::ApiServer;
use crate::authenticate::Authenticated;
use crate::error::RouterError;
use crate::limits::Who;
use crate::metrics::Metrics;
use crate::reviews::{Answer, Key, Outcome, Reviews, Verdict};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use sandgate_mesh::caller::{Caller, Groups};
use sandgate_mesh::sandbox::{SandboxKey, SandboxName};
use sandgate_mesh::telemetry::{LONGEST_TEXT, chain, cut};
use std::time::Duration;

/// How long what is allowed is believed: a right that was taken away counts for as long.
const BELIEVED: Duration = Duration::from_secs(10);
/// Pairs of a caller and a sandbox that are remembered.
const REMEMBERED: usize = 8192;

/// Rights at the API server.
#[derive(Debug)]
pub(crate) struct AccessReviews {
    api: Api<SubjectAccessReview>,
    reviews: Reviews<()>,
}

impl AccessReviews {
    /// # Errors
    /// No way to an API server is configured.
    pub(crate) async fn new(api_server: &ApiServer, metrics: &Metrics) -> anyhow::Result<Self> {
        Ok(Self {
            api: Api::all(api_server.client().await?),
            reviews: Reviews::new("access", BELIEVED, REMEMBERED, metrics.reviews("access")),
        })
    }

    /// Whether this caller, whose requests are counted as those of `who`, may connect to this sandbox.
    pub(crate) fn check<'a>(
        &'a self,
        caller: &'a Authenticated,
        sandbox: &'a SandboxKey,
        who: impl FnOnce() -> Who,
    ) -> Verdict<'a, ()> {
        let SandboxKey { namespace, name } = sandbox;
        // An assertion has one spelling for each caller, groups included. Neither it nor these names hold a line break, and JSON holds none.
        let [namespace, id] = [namespace.as_str(), name.as_str()].map(str::as_bytes);
        let attributes = caller.attributes.as_ref().map_or("", |attributes| &attributes.json);
        let asserted = caller.assertion.as_bytes();
        let key = Key::of(&[asserted, b"\n", namespace, b"\n", id, b"\n", attributes.as_bytes()]);
        match self.reviews.find(&key) {
            Some(outcome) => Verdict::Known(may(&outcome, name)),
            None => Verdict::Asked(Box::pin(self.ask(key, who(), caller, sandbox))),
        }
    }

    async fn ask(&self, key: Key, who: Who, caller: &Authenticated, sandbox: &SandboxKey) -> Result<(), RouterError> {
        let question = review(self.api.clone(), question(caller, sandbox));
        may(&self.reviews.ask(key, who, question).await, &sandbox.name)
    }
}

fn may(outcome: &Outcome<()>, sandbox: &SandboxName) -> Result<(), RouterError> {
    match outcome {
        Ok(Answer::Yes(())) => Ok(()),
        Ok(Answer::No) => Err(RouterError::NoAccess(sandbox.clone())),
        Err(unanswered) => Err((*unanswered).into()),
    }
}

/// Asks the API server once. The error is for the log.
async fn review(api: Api<SubjectAccessReview>, question: SubjectAccessReview) -> Result<Answer<()>, String> {
    let answer = api.create(&PostParams::default(), &question).await;
    let answer = answer.map_err(|error| cut(&chain(&error), LONGEST_TEXT).into_owned())?;
    let status = answer.status.unwrap_or_default();
    if status.allowed && status.denied != Some(true) {
        return Ok(Answer::Yes(()));
    }
    let attributes = question.spec.resource_attributes.unwrap_or_default();
    tracing::info!(
        caller = question.spec.user,
        sandbox = attributes.name,
        sandbox_namespace = attributes.namespace,
        reason = &*cut(status.reason.as_deref().unwrap_or_default(), LONGEST_TEXT),
        error = &*cut(status.evaluation_error.as_deref().unwrap_or_default(), LONGEST_TEXT),
        "the API server does not let the caller connect to the sandbox"
    );
    Ok(Answer::No)
}

/// Whether the caller may `connect` to `sandboxes/proxy` of this name.
fn question(caller: &Authenticated, sandbox: &SandboxKey) -> SubjectAccessReview {
    let (user, groups) = subject(&caller.caller);
    let attributes = caller.attributes.as_deref();
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user),
            groups: Some(groups),
            uid: attributes.and_then(|attributes| attributes.uid.clone()),
            extra: attributes.and_then(|attributes| attributes.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some("agents.x-k8s.io".into()),
                resource: Some("sandboxes".into()),
                subresource: Some("proxy".into()),
                verb: Some("connect".into()),
                namespace: Some(sandbox.namespace.as_str().into()),
                name: Some(sandbox.name.as_str().into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

/// The user and groups that rights are given to. Whom the API server didn't name has the name that logs and policies have, and
/// no groups: a right must be given to that very name.
fn subject(caller: &Caller) -> (String, Vec<String>) {
    let all = |groups: &Groups| groups.iter().map(String::from).collect();
    match caller {
        Caller::Anonymous => ("system:anonymous".into(), vec!["system:unauthenticated".into()]),
        Caller::ServiceAccount { groups, .. } | Caller::User { groups, .. } => (caller.to_string(), all(groups)),
        Caller::Static { .. } | Caller::Scoped { .. } | Caller::Spiffe(_) | Caller::Certificate { .. } => {
            (caller.to_string(), Vec::new())
        }
    }
}
