//! THE PATH of a request through the gate: identify the peer, parse, authorise, sanitise, dial, relay.

use crate::Gate;
use crate::authorize::{Denied, Permit, RequestFacts, authorize};
use crate::dial::Key;
use crate::relay;
use bytes::Bytes;
use http::header::{HOST, HeaderValue, RETRY_AFTER};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use sandgate_mesh::body::{Answer, BodyEnd, detail, discard};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::contract::{X_REQUEST_ID, X_SANDBOX_PORT, X_SANDGATE_CALLER, X_SANDGATE_OUTCOME};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::framing::{PassThrough, refusal};
use sandgate_mesh::headers::{only, requested_upgrade, sanitise_request};
use sandgate_mesh::identity::PeerId;
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::policy::Basis;
use sandgate_mesh::pool::Lease;
use sandgate_mesh::sandbox::AppPort;
use sandgate_mesh::telemetry::timestamp;
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};

/// Whom a mesh connection comes from.
#[derive(Debug)]
pub struct Peer {
    id: PeerId,
    /// The peer as a caller, unless it is a router, which speaks for others.
    direct: Option<Arc<Caller>>,
    last: Mutex<Option<(HeaderValue, Arc<Caller>)>>,
}

/// Gives the app's connection back once its answer is through.
#[derive(Debug)]
pub struct Return(pub(crate) Lease<Key>);

impl BodyEnd for Return {
    fn ended(self, complete: bool, _bytes: u64) {
        if complete {
            self.0.give_back();
        }
    }
}

/// A refusal by the gate itself.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    pub(crate) outcome: Outcome,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            outcome,
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = detail(self.status, &self.detail);
        response
            .headers_mut()
            .insert(X_SANDGATE_OUTCOME, self.outcome.to_header());
        if matches!(self.outcome, Outcome::NotReady | Outcome::Overloaded) {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A request that names a caller, a port and a path.
struct Parsed {
    caller: Arc<Caller>,
    port: AppPort,
    target: PathAndQuery,
}

impl Peer {
    pub(crate) fn new(id: PeerId, is_router: bool) -> Self {
        let direct = (!is_router).then(|| Arc::new(Caller::Spiffe(id.to_spiffe_id())));
        Self {
            id,
            direct,
            last: Mutex::new(None),
        }
    }

    /// Who calls: whom a router asserts, or the peer itself. An assertion by anybody but a router is an attack.
    fn caller<B>(&self, request: &Request<B>) -> Result<Arc<Caller>, Refused> {
        let bad = |text: &str| Refused::new(StatusCode::BAD_REQUEST, Outcome::Malformed, text);
        let assertion = only(request.headers(), &X_SANDGATE_CALLER).map_err(|_| bad("Repeated caller assertion."))?;
        match (&self.direct, assertion) {
            (Some(_), Some(_)) => Err(bad("Only a router may assert a caller.")),
            (Some(direct), None) => Ok(Arc::clone(direct)),
            (None, None) => Err(bad("A router must assert the caller.")),
            (None, Some(assertion)) => self
                .asserted(assertion)
                .ok_or_else(|| bad("Malformed caller assertion.")),
        }
    }

    // Routers send the same few callers again and again over one connection.
    fn asserted(&self, assertion: &HeaderValue) -> Option<Arc<Caller>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, caller)) = last.as_ref().filter(|(value, _)| value == assertion) {
            return Some(Arc::clone(caller));
        }
        let caller = Arc::new(Caller::from_assertion(assertion.as_bytes()).ok()?);
        *last = Some((assertion.clone(), Arc::clone(&caller)));
        Some(caller)
    }
}

/// Handles one request of `peer`.
pub async fn handle(
    gate: &Gate,
    peer: &Peer,
    request: Box<Request<Incoming>>,
    switch: PassThrough,
    draining: Draining,
) -> Response<Answer<Return>> {
    match pass(gate, peer, request, switch, draining).await {
        Ok(response) => response,
        Err(refused) => {
            gate.metrics.count(refused.outcome);
            refused.into_response().map(Answer::Own)
        }
    }
}

async fn pass(
    gate: &Gate,
    peer: &Peer,
    mut request: Box<Request<Incoming>>,
    switch: PassThrough,
    draining: Draining,
) -> Result<Response<Answer<Return>>, Refused> {
    if let Some(violation) = refusal(&request) {
        return Err(Refused::new(violation.status(), Outcome::Malformed, violation.detail()));
    }
    // Shed before the kernel ends everybody's requests.
    if gate.memory.is_exhausted() {
        let text = "The sandbox gate is short of memory; try again.";
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, Outcome::Overloaded, text));
    }

    let parsed = match parse(peer, &request) {
        Ok(parsed) => parsed,
        Err(refused) => return Err(reject(request, refused).await),
    };

    // On every request: connections outlive policies.
    let facts = RequestFacts {
        direct: peer.direct.is_some(),
        port: parsed.port,
        method: request.method(),
        path: parsed.target.path(),
    };
    let snapshot = gate.policy.borrow().clone();
    let decision = authorize(&parsed.caller, &facts, snapshot.as_deref(), &gate.settings.own_ports);
    audit(gate, peer, &parsed, &request, decision.as_ref());
    let permit = match decision {
        Ok(permit) => permit,
        Err(denied) => {
            let outcome = if denied == Denied::NoSnapshot {
                Outcome::NotReady
            } else {
                Outcome::Denied
            };
            let refused = Refused::new(denied.status(), outcome, denied.detail(&gate.settings.sandbox.name));
            return Err(reject(request, refused).await);
        }
    };
    gate.metrics.allowed.inc();

    let upgrade = requested_upgrade(&request);
    sanitise(&mut request, parsed.target, parsed.port, upgrade.clone())?;
    relay::relay(gate, &permit, &parsed.caller, request, upgrade, switch, draining).await
}

/// Takes a bounded rest of the body first, or closing the connection could overtake the answer.
async fn reject(request: Box<Request<Incoming>>, refused: Refused) -> Refused {
    if !request.headers().contains_key(http::header::EXPECT) {
        Box::pin(discard(request.into_body())).await;
    }
    refused
}

fn parse<B>(peer: &Peer, request: &Request<B>) -> Result<Parsed, Refused> {
    let bad = |text: &str| Refused::new(StatusCode::BAD_REQUEST, Outcome::Malformed, text);
    let caller = peer.caller(request)?;
    let port = match only(request.headers(), &X_SANDBOX_PORT) {
        Err(_) => return Err(bad("Duplicate X-Sandbox-Port header.")),
        Ok(None) => AppPort::DEFAULT,
        Ok(Some(value)) if value.is_empty() => AppPort::DEFAULT,
        Ok(Some(value)) => value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| bad("Invalid port format."))?,
    };
    if request.method() == Method::CONNECT {
        return Err(Refused::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Outcome::Malformed,
            "CONNECT is not supported.",
        ));
    }
    let target = request
        .uri()
        .path_and_query()
        .cloned()
        .ok_or_else(|| bad("Invalid request target."))?;
    Ok(Parsed { caller, port, target })
}

/// Leaves in the head what the app may see.
fn sanitise<B>(
    request: &mut Request<B>,
    target: PathAndQuery,
    port: AppPort,
    upgrade: Option<HeaderValue>,
) -> Result<(), Refused> {
    let headers = request.headers_mut();
    sanitise_request(headers, upgrade);
    let host = HeaderValue::from_str(&format!("127.0.0.1:{port}"))
        .map_err(|_| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, Outcome::Malformed, INTERNAL))?;
    headers.insert(HOST, host);
    *request.version_mut() = Version::HTTP_11;
    // Origin form, whatever form it came in: an absolute target's authority must not reach the app as a second Host.
    *request.uri_mut() = Uri::from(target);
    Ok(())
}

/// What a caller is told of a fault of ours.
pub(crate) const INTERNAL: &str = "An internal error occurred in the proxy.";

#[derive(Serialize)]
struct AuditLine<'a> {
    time: String,
    log: &'static str,
    decision: &'static str,
    layer: &'static str,
    policy: Option<&'a str>,
    rule: Option<usize>,
    reason: Option<String>,
    caller: String,
    router: Option<String>,
    pod_uid: &'a str,
    port: u16,
    method: &'a str,
    path: &'a str,
    request_id: Option<&'a str>,
}

fn audit<B>(gate: &Gate, peer: &Peer, parsed: &Parsed, request: &Request<B>, decision: Result<&Permit, &Denied>) {
    let Some(log) = &gate.audit else { return };
    let (policy, rule) = match decision.map(Permit::basis) {
        Ok(Basis::Rule { policy, rule }) => (Some(policy.as_ref()), Some(*rule)),
        Ok(Basis::Default) => (Some("default"), None),
        Err(_) => (None, None),
    };
    log.write(&AuditLine {
        time: timestamp(),
        log: "audit",
        decision: if decision.is_ok() { "allow" } else { "deny" },
        layer: "sandbox policy",
        policy,
        rule,
        reason: decision.err().map(ToString::to_string),
        caller: parsed.caller.to_string(),
        router: peer.direct.is_none().then(|| peer.id.to_string()),
        pod_uid: gate.settings.pod_uid.as_str(),
        port: parsed.port.get(),
        method: request.method().as_str(),
        path: parsed.target.path(),
        request_id: request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok()),
    });
}
