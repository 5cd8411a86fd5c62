//! The way of a review: review -> decide -> plan -> patch -> review, and no call to the API server on it.

use crate::anchors::Anchors;
use crate::decide::{Decision, SkipReason, decide};
use crate::decision_log::{DecisionLine, Outcome};
use crate::inbound::{Bodies, CALL_TIME, CallError, MAX_ANSWER, MAX_ORDINARY};
use crate::inbound_pool::Body;
use crate::metrics::Metrics;
use crate::patch::patch;
use crate::review::{Answer, Review, ReviewError, message};
use crate::settings::Settings;
use crate::validate::{Verdict, validate};
use bytes::Buf;
use futures_util::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use sandgate_mesh::telemetry::{LineLog, cut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;
use warp::{Filter, Rejection, Reply};

/// The longest text of a call that gets no review back, in bytes. It may repeat what was sent.
const MAX_ERROR: usize = 1024;

/// Which of the two webhooks is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Mutate,
    Validate,
}

impl Endpoint {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
        }
    }
}

/// What answers reviews.
pub(crate) struct Webhook {
    pub(crate) settings: Settings,
    /// What gates are given to know the control plane by; none before the Secret with the root was read.
    pub(crate) anchors: watch::Receiver<Option<Arc<Anchors>>>,
    /// Whether nobody gets into pods of opted-in namespaces past their gates.
    pub(crate) restrict_connect: bool,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: LineLog,
    pub(crate) bodies: Bodies,
}

impl Webhook {
    /// `POST /mutate` and `POST /validate`.
    pub(crate) fn routes(
        self: &Arc<Self>,
    ) -> impl Filter<Extract: Reply, Error = Rejection, Future: Send> + Clone + Send + Sync + use<> {
        let webhook = Arc::clone(self);
        let mutate = warp::path("mutate").map(|| Endpoint::Mutate);
        let validate = warp::path("validate").map(|| Endpoint::Validate);
        let content_type = warp::header::value("content-type").map(Some);
        mutate
            .or(validate)
            .unify()
            .and(warp::path::end())
            .and(warp::post())
            .and(content_type.or(warp::any().map(|| None)).unify())
            .and(warp::body::stream())
            .then(move |endpoint, content_type, body| {
                let webhook = Arc::clone(&webhook);
                async move { webhook.call(endpoint, content_type, body).await }
            })
    }

    async fn call(
        self: &Arc<Self>,
        endpoint: Endpoint,
        content_type: Option<HeaderValue>,
        body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    ) -> Response<Vec<u8>> {
        let deadline = Instant::now() + CALL_TIME;
        let answered = match self.bodies.read(deadline, content_type.as_ref(), body).await {
            Ok(body) => {
                let started = Instant::now();
                let answered = self.judge(endpoint, body, deadline).await;
                self.metrics.took(endpoint.as_str(), started.elapsed());
                answered
            }
            Err(error) => Err(error),
        };
        let (status, kind, content) = match answered {
            Ok(answer) => (StatusCode::OK, "application/json", answer),
            Err(error) => {
                let (webhook, reason, text) = (endpoint.as_str(), error.reason(), error.to_string());
                let text = cut(&text, MAX_ERROR).into_owned();
                self.metrics.decided(webhook, "error", reason);
                tracing::warn!(webhook, reason, error = text, "a call got no review back");
                (error.status(), "text/plain; charset=utf-8", text.into_bytes())
            }
        };
        let mut response = Response::new(content);
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }

    /// Judges a review where it keeps no others waiting: a long one on a thread beside those that read and write, and only
    /// when it is its turn.
    async fn judge(self: &Arc<Self>, endpoint: Endpoint, body: Body, deadline: Instant) -> Result<Vec<u8>, CallError> {
        if body.bytes().len() <= MAX_ORDINARY {
            return caught(|| self.answer(endpoint, body.bytes()));
        }
        let turn = self.bodies.turn(deadline).await?;
        let webhook = Arc::clone(self);
        let judging = tokio::task::spawn_blocking(move || {
            // Both are held to the end, also when nobody waits for the answer any more.
            let (_turn, body) = (turn, body);
            caught(|| webhook.answer(endpoint, body.bytes()))
        });
        judging.await.map_err(|_| CallError::Panicked)?
    }

    /// The path itself.
    fn answer(&self, endpoint: Endpoint, body: &[u8]) -> Result<Vec<u8>, CallError> {
        let review = Review::parse(body)?;
        let (answer, outcome) = match endpoint {
            Endpoint::Mutate => self.mutate(&review)?,
            Endpoint::Validate => self.validate(&review)?,
        };
        // The API server's audit log says the same as ours, which may be kept by somebody else.
        let answer = answer
            .with_audit("decision", outcome.decision)
            .with_audit("reason", outcome.reason);
        let json = serde_json::to_vec(&answer)?;
        if json.len() > MAX_ANSWER {
            return Err(CallError::LongAnswer);
        }
        self.metrics
            .decided(endpoint.as_str(), outcome.decision, outcome.reason);
        self.log.write(&DecisionLine::new(endpoint.as_str(), &review, &outcome));
        Ok(json)
    }

    fn mutate(&self, review: &Review) -> Result<(Answer, Outcome), CallError> {
        let request = review.pod()?;

        // The decision, from the settings, the roots and the request alone.
        let anchors = self.anchors.borrow().clone().ok_or(ReviewError::NoRoots)?;
        let decision = decide(&self.settings, &anchors, &request);
        let outcome = |operations, message| Outcome {
            decision: decision.as_str(),
            reason: decision.reason(),
            operations,
            message,
        };
        Ok(match &decision {
            Decision::Inject(plan) => {
                // The plan says what the pod holds in the end; the patch is what of that it lacks.
                let patch = patch(plan, request.pod);
                let answer = Answer::patch(&review.uid, &patch)?;
                let answer = plan
                    .warnings
                    .iter()
                    .fold(answer, |answer, warning| answer.with_warning(warning));
                (answer, outcome(patch.0.len(), None))
            }
            Decision::Skip(reason) => {
                let answer = Answer::allow(&review.uid);
                // Whoever expected a gate learns at once why there is none.
                match reason {
                    SkipReason::NotSelected | SkipReason::OptedOut => {
                        let warning = format!("this pod runs without a gate: {reason}");
                        (answer.with_warning(&warning), outcome(0, Some(warning)))
                    }
                    _ => (answer, outcome(0, None)),
                }
            }
            Decision::Deny(denials) => {
                let message = message(denials);
                (Answer::deny(&review.uid, &message), outcome(0, Some(message)))
            }
        })
    }

    fn validate(&self, review: &Review) -> Result<(Answer, Outcome), CallError> {
        let outcome = |decision, reason, message| Outcome {
            decision,
            reason,
            operations: 0,
            message,
        };
        let anchors = self.anchors.borrow().clone();
        let verdict = validate(&self.settings, anchors.as_deref(), self.restrict_connect, review)?;
        Ok(match verdict {
            Verdict::Allow(reason) => (Answer::allow(&review.uid), outcome("allow", reason, None)),
            Verdict::Deny { reason, message } => {
                let answer = Answer::deny(&review.uid, &message);
                (answer, outcome("deny", reason, Some(message)))
            }
        })
    }
}

/// A panic may end one review and nothing else.
fn caught<T>(work: impl FnOnce() -> Result<T, CallError>) -> Result<T, CallError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(CallError::Panicked))
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
