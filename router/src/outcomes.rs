//! What a gate says of itself beside its answer, and what that means for the router.

use crate::error::RouterError;
use crate::forward::{Errand, UNANSWERED};
use crate::metrics::Reason;
use crate::worker::Worker;
use http::{Response, StatusCode};
use sandgate_mesh::contract::X_SANDGATE_OUTCOME;
use sandgate_mesh::outcome::Outcome;

/// What a gate's answer says of itself, if it is the gate's own and not the app's.
pub(crate) fn said<B>(answer: &Response<B>) -> Option<Outcome> {
    Outcome::from_header(answer.headers().get(X_SANDGATE_OUTCOME)?)
}

/// What the gate said of itself belongs to the log and the metrics; the caller gets the answer without it.
///
/// # Errors
/// The gate refused this router, and not the caller: that is for the router to answer.
pub(crate) fn heed(
    worker: &Worker,
    errand: Errand<'_>,
    outcome: Outcome,
    status: StatusCode,
) -> Result<(), RouterError> {
    let (sandbox, request_id, reason) = (&errand.route.sandbox, errand.id(), outcome.as_str());
    let count = |reason| worker.metrics.error(&sandbox.namespace, reason);
    match outcome {
        Outcome::Dial => count(Reason::Dial),
        Outcome::Timeout => count(Reason::Timeout),
        Outcome::Broken => count(Reason::Eof),
        Outcome::BadAnswer | Outcome::NotReady | Outcome::Overloaded => count(Reason::Other),
        Outcome::Denied | Outcome::Malformed | Outcome::Upload => {}
        Outcome::NotARouter => {
            count(Reason::Tls);
            let (identity, text) = (
                worker.forwarder.identity(),
                "the gate does not accept this router's identity; name it in the gate's --router-identity",
            );
            tracing::warn!(target: UNANSWERED, %sandbox, request_id, reason, identity, "{text}");
            return Err(RouterError::Unreachable(sandbox.name.clone()));
        }
        Outcome::PeerExpired => {
            count(Reason::Tls);
            let text = "the gate takes the certificate of this router's connection for expired; compare the clocks";
            tracing::warn!(target: UNANSWERED, %sandbox, request_id, reason, "{text}");
            return Err(RouterError::NoIdentity);
        }
    }
    let status = status.as_u16();
    tracing::info!(target: UNANSWERED, %sandbox, request_id, reason, status, "the gate answered itself");
    Ok(())
}
