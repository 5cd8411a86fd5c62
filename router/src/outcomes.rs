//! What a gate says of itself beside its answer, and what that means for the router.

use crate::error::RouterError;
use crate::forward::{Errand, UNANSWERED};
use crate::metrics::Reason;
use crate::worker::Worker;
use http::Response;
use hyper::body::Incoming;
use sandgate_mesh::contract::X_SANDGATE_OUTCOME;
use sandgate_mesh::outcome::Outcome;

/// What the gate said of itself, if the `response` is a gate's, belongs to the log and the metrics; the caller gets the answer
/// without it.
///
/// # Errors
/// The gate refused this router, and not the caller: that is for the router to answer.
pub(crate) fn heed(
    worker: &Worker,
    errand: Errand<'_>,
    response: Option<&Response<Incoming>>,
) -> Result<(), RouterError> {
    let said = response.and_then(|response| {
        Some((
            Outcome::from_header(response.headers().get(X_SANDGATE_OUTCOME)?)?,
            response,
        ))
    });
    if !matches!(said, Some((Outcome::Denied, _))) {
        worker.metrics.allowed(&errand.route.sandbox.namespace);
    }
    let Some((outcome, response)) = said else { return Ok(()) };
    let (sandbox, request_id, reason) = (&errand.route.sandbox, errand.id(), outcome.as_str());
    let count = |reason| worker.metrics.error(&sandbox.namespace, reason);
    match outcome {
        Outcome::Dial => count(Reason::Dial),
        Outcome::Timeout => count(Reason::Timeout),
        Outcome::Broken => count(Reason::Eof),
        Outcome::BadAnswer | Outcome::NotReady | Outcome::Overloaded => count(Reason::Other),
        Outcome::Denied => worker.metrics.denied(Some(&sandbox.namespace)),
        Outcome::Malformed | Outcome::Upload => {}
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
    let status = response.status().as_u16();
    tracing::info!(target: UNANSWERED, %sandbox, request_id, reason, status, "the gate answered itself");
    Ok(())
}
