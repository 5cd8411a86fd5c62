//! THE PATH of a request through the gate: identify the peer, parse, authorise, sanitise, dial, relay.

use crate::Gate;
use crate::audit;
use crate::authorize::{Denied, RequestFacts, authorize};
use crate::dial::Key;
use crate::relay::{self, Switch};
use bytes::Bytes;
use http::header::{HOST, HeaderValue, RETRY_AFTER};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use sandgate_mesh::body::{Answer, BodyEnd, Ending, detail, discard};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::contract::{
    TRACEPARENT, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID, X_SANDBOX_PORT, X_SANDGATE_CALLER,
    X_SANDGATE_OUTCOME,
};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::framing::{PassThrough, refusal};
use sandgate_mesh::headers::{
    Upgrade, ensure_request_id, names_too_much, only, requested_upgrade, sanitise_request, strip_forwarded,
};
use sandgate_mesh::identity::PeerId;
use sandgate_mesh::listener::ConnectionSlot;
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::pool::Lease;
use sandgate_mesh::sandbox::AppPort;
use sandgate_mesh::tls::MeshPeer;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Whom a mesh connection comes from.
#[derive(Debug)]
pub struct Peer {
    pub(crate) id: PeerId,
    ip: IpAddr,
    /// Until when its leaf proves that it is who it is.
    until: SystemTime,
    /// Its place among the connections: held for as long as anything of it lasts, tunnels too.
    _slot: ConnectionSlot,
    /// The peer as a caller, unless it is a router, which speaks for others.
    pub(crate) direct: Option<Arc<Caller>>,
    last: Mutex<Option<(HeaderValue, Arc<Caller>)>>,
}

/// Gives the app's connection back once its answer is through.
#[derive(Debug)]
pub struct Return {
    pub(crate) lease: Lease<Key>,
    pub(crate) request_id: Option<HeaderValue>,
}

impl BodyEnd for Return {
    fn ended(self, ending: Ending, bytes: u64) {
        match ending {
            Ending::Complete => self.lease.give_back(),
            Ending::Broken(error) => audit::broke_off(self.request_id.as_ref(), error, bytes),
            Ending::Unread => {}
        }
    }
}

/// A refusal by the gate itself.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) detail: String,
    pub(crate) outcome: Outcome,
    /// What the log is told beside, and the caller isn't.
    pub(crate) cause: Option<String>,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            outcome,
            cause: None,
        }
    }

    /// The same, with what the log is told of why.
    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = detail(self.status, &self.detail);
        response
            .headers_mut()
            .insert(X_SANDGATE_OUTCOME, self.outcome.to_header());
        if matches!(
            self.outcome,
            Outcome::NotReady | Outcome::PeerExpired | Outcome::Overloaded
        ) {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A request that names a caller, a port and a path.
pub(crate) struct Parsed {
    pub(crate) caller: Arc<Caller>,
    pub(crate) port: AppPort,
    pub(crate) target: PathAndQuery,
}

impl Peer {
    pub(crate) fn new(peer: MeshPeer, is_router: bool, ip: IpAddr, slot: ConnectionSlot) -> Self {
        let direct = (!is_router).then(|| Arc::new(Caller::Spiffe(peer.id.to_spiffe_id())));
        Self {
            id: peer.id,
            ip,
            until: peer.until,
            _slot: slot,
            direct,
            last: Mutex::new(None),
        }
    }

    /// How long what it proved still holds; `None` if it no longer does.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.until.duration_since(SystemTime::now()).ok()
    }

    /// Who calls: whom a router asserts, or the peer itself. An assertion by anybody but a router is an attack.
    fn caller<B>(&self, request: &Request<B>) -> Result<Arc<Caller>, Refused> {
        let bad = |text: &str| Refused::new(StatusCode::BAD_REQUEST, Outcome::Malformed, text);
        let assertion = only(request.headers(), &X_SANDGATE_CALLER).map_err(|_| bad("Repeated caller assertion."))?;
        match (&self.direct, assertion) {
            (Some(_), Some(_)) => {
                let text = "Only a router may assert a caller.";
                Err(Refused::new(StatusCode::BAD_REQUEST, Outcome::NotARouter, text))
            }
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
    peer: &Arc<Peer>,
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
    peer: &Arc<Peer>,
    mut request: Box<Request<Incoming>>,
    switch: PassThrough,
    draining: Draining,
) -> Result<Response<Answer<Return>>, Refused> {
    if let Some(violation) = refusal(&request) {
        audit::unread::<()>(gate, peer, None, violation.detail());
        return Err(Refused::new(violation.status(), Outcome::Malformed, violation.detail()));
    }
    // Connections outlive certificates, and a stolen key must not outlive its own.
    let Some(remaining) = peer.remaining() else {
        let text = "The certificate of this connection has expired; open another.";
        audit::unread(gate, peer, Some(&request), text);
        return Err(reject(
            request,
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, Outcome::PeerExpired, text),
        )
        .await);
    };
    // Shed before the kernel ends everybody's requests.
    if gate.memory.is_exhausted() {
        let text = "The sandbox gate is short of memory; try again.";
        audit::unread(gate, peer, Some(&request), text);
        return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, Outcome::Overloaded, text));
    }

    let parsed = match parse(peer, &request) {
        Ok(parsed) => parsed,
        Err(refused) => {
            audit::unread(gate, peer, Some(&request), &refused.detail);
            if refused.outcome == Outcome::NotARouter {
                gate.strangers.tell(&peer.id, &gate.settings.routers);
            }
            return Err(reject(request, refused).await);
        }
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
    audit::decided(gate, peer, &parsed, &request, decision.as_ref());
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
    if peer.direct.is_some() {
        attribute(peer, request.headers_mut());
    }
    sanitise(&mut request, parsed.target, parsed.port, upgrade.as_ref())?;
    let upgrade = upgrade.map(|upgrade| Switch {
        upgrade,
        pass_through: switch,
        peer: Arc::clone(peer),
        remaining,
        draining,
    });
    let request_id = request.headers().get(X_REQUEST_ID).cloned();
    relay::relay(gate, &permit, &parsed.caller, request, upgrade, request_id.as_ref())
        .await
        .inspect_err(|refused| audit::unanswered(gate, parsed.port, request_id.as_ref(), refused))
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
    if names_too_much(request.headers()) {
        return Err(bad("Connection or Trailer header is too long."));
    }
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

/// Says where a request came from that no router brought: what the peer says of that itself counts for nothing.
fn attribute(peer: &Peer, headers: &mut HeaderMap) {
    let host = headers.get(HOST).cloned();
    strip_forwarded(headers);
    ensure_request_id(headers);
    if let Ok(ip) = HeaderValue::try_from(peer.ip.to_string()) {
        headers.insert(X_FORWARDED_FOR, ip);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if headers.get_all(TRACEPARENT).iter().nth(1).is_some() {
        headers.remove(TRACEPARENT);
    }
}

/// Leaves in the head what the app may see.
fn sanitise<B>(
    request: &mut Request<B>,
    target: PathAndQuery,
    port: AppPort,
    upgrade: Option<&Upgrade>,
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
