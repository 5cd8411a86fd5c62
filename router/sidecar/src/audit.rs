//! One line for each decision about a request, whoever made it, and for each end that isn't the answer's. Hides what of a
//! request may be logged, and how much of it.

use crate::Gate;
use crate::authorize::{Denied, Permit, RequestFacts};
use crate::error::{GateError, Refused};
use crate::peer::Peer;
use http::{HeaderValue, Method, Request};
use sandgate_mesh::body::BodyError;
use sandgate_mesh::caller::Caller;
use sandgate_mesh::contract::X_REQUEST_ID;
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::policy::Basis;
use sandgate_mesh::sandbox::{AppPort, SandboxKey};
use sandgate_mesh::telemetry::{LONGEST_METHOD, LONGEST_PATH, LONGEST_TEXT, chain, cut, timestamp};
use sandgate_mesh::trace_context::TraceParent;
use sandgate_mesh::tunnel::{Ended, NotSwitched};
use serde::{Serialize, Serializer};
use std::borrow::Cow;

#[derive(Serialize)]
struct AuditLine<'a> {
    time: String,
    log: &'static str,
    decision: &'static str,
    layer: &'static str,
    policy: Option<&'a str>,
    rule: Option<usize>,
    reason: Option<String>,
    caller: Option<String>,
    router: Option<String>,
    peer: Option<String>,
    #[serde(serialize_with = "shown")]
    sandbox: &'a SandboxKey,
    pod_uid: &'a str,
    port: Option<u16>,
    method: Option<Cow<'a, str>>,
    path: Option<Cow<'a, str>>,
    request_id: Option<Cow<'a, str>>,
    trace_id: Option<String>,
    span_id: Option<String>,
}

/// As `Display` has it, without a text of its own.
fn shown<S: Serializer>(sandbox: &SandboxKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(sandbox)
}

fn method(method: &Method) -> Cow<'_, str> {
    cut(method.as_str(), LONGEST_METHOD)
}

fn request_id<B>(request: &Request<B>) -> Option<Cow<'_, str>> {
    request.headers().get(X_REQUEST_ID).and_then(id_text)
}

/// Trace and span that the request was sent in, or is in here; see [`crate::span`].
fn trace<B>(request: &Request<B>) -> [Option<String>; 2] {
    let parent = TraceParent::of(request.headers());
    [
        parent.map(|parent| parent.trace.to_string()),
        parent.map(|parent| parent.span.to_string()),
    ]
}

fn id_text(id: &HeaderValue) -> Option<Cow<'_, str>> {
    id.to_str().ok().map(|id| cut(id, LONGEST_TEXT))
}

/// A decision about a request of `caller`, by these `facts`.
pub(crate) fn decided<B>(
    gate: &Gate,
    peer: &Peer,
    caller: &Caller,
    facts: &RequestFacts<'_>,
    request: &Request<B>,
    decision: Result<&Permit, &Denied>,
) {
    let Some(log) = &gate.audit else { return };
    let (policy, rule) = match decision.map(Permit::basis) {
        Ok(Basis::Rule { policy, rule }) => (Some(policy.as_ref()), Some(*rule)),
        Ok(Basis::Default) => (Some("default"), None),
        Err(_) => (None, None),
    };
    let [trace_id, span_id] = trace(request);
    log.write(&AuditLine {
        time: timestamp(),
        log: "audit",
        decision: if decision.is_ok() { "allow" } else { "deny" },
        layer: "sandbox policy",
        policy,
        rule,
        reason: decision.err().map(ToString::to_string),
        caller: Some(caller.to_string()),
        router: peer.is_router().then(|| peer.id.to_string()),
        peer: None,
        sandbox: &gate.settings.sandbox,
        pod_uid: gate.settings.pod_uid.as_str(),
        port: Some(facts.port.get()),
        method: Some(method(facts.method)),
        path: Some(cut(facts.path, LONGEST_PATH)),
        request_id: request_id(request),
        trace_id,
        span_id,
    });
}

/// What became of a request that was allowed, and that the app didn't answer. One line a request, as for the decision.
pub(crate) fn unanswered(gate: &Gate, port: AppPort, request_id: Option<&HeaderValue>, refused: &Refused) {
    let (sandbox, port, outcome) = (&gate.settings.sandbox, port.get(), refused.error.outcome());
    let (reason, request_id) = (outcome.as_str(), request_id.and_then(id_text).unwrap_or_default());
    let told = refused.error.detail(&sandbox.name);
    let cause = refused.cause.as_deref().unwrap_or(&told);
    // An app that is down or slow is everyday life; one that answers like this needs to be looked at.
    if outcome == Outcome::BadAnswer {
        tracing::warn!(%sandbox, port, %request_id, reason, cause, "the app's answer was dropped");
    } else {
        tracing::info!(%sandbox, port, %request_id, reason, cause, "the app did not answer the request");
    }
}

/// What became of an allowed request whose answer the app began and didn't end.
pub(crate) fn broke_off(request_id: Option<&HeaderValue>, error: BodyError, bytes: u64) {
    let request_id = request_id.and_then(id_text).unwrap_or_default();
    tracing::info!(%request_id, %error, bytes, "the app's answer broke off");
}

/// How a tunnel ended, and how many bytes went up to the app and down; or why it never was.
pub(crate) fn tunnel_ended(sandbox: &SandboxKey, request_id: Option<&HeaderValue>, ended: Result<Ended, NotSwitched>) {
    let request_id = request_id.and_then(id_text).unwrap_or_default();
    match ended {
        Ok(Ended { end, up, down }) => {
            tracing::info!(%sandbox, %request_id, end = end.as_str(), up, down, "the tunnel ended");
        }
        Err(error) => tracing::info!(%sandbox, %request_id, error = chain(&error), "the tunnel did not open"),
    }
}

/// A request that was refused before anybody could be said to have made it: an attack, a fault of the peer's, or a gate
/// that is short of something. `request` is absent where not even its head could be read.
pub(crate) fn unread<B>(gate: &Gate, peer: &Peer, request: Option<&Request<B>>, error: GateError) {
    let Some(log) = &gate.audit else { return };
    let [trace_id, span_id] = request.map(trace).unwrap_or_default();
    log.write(&AuditLine {
        time: timestamp(),
        log: "audit",
        decision: "deny",
        layer: "gate",
        policy: None,
        rule: None,
        reason: Some(error.detail(&gate.settings.sandbox.name).into_owned()),
        caller: None,
        router: None,
        peer: Some(peer.id.to_string()),
        sandbox: &gate.settings.sandbox,
        pod_uid: gate.settings.pod_uid.as_str(),
        port: None,
        method: request.map(|request| method(request.method())),
        path: request.map(|request| cut(request.uri().path(), LONGEST_PATH)),
        request_id: request.and_then(request_id),
        trace_id,
        span_id,
    });
}
