//! THE PATH of a request through the gate: identify the peer, parse, authorise, sanitise, dial, relay. Hides in which
//! order a request is judged, and what the app sees of its head.

use crate::Gate;
use crate::audit;
use crate::authorize::{RequestFacts, authorize};
use crate::error::{GateError, Refused};
use crate::peer::Peer;
use crate::relay::{self, Return, Switch};
use crate::span::Span;
use http::header::{HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use sandgate_mesh::body::{Answer, discard};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::contract::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID, X_SANDBOX_PORT};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::framing::{PassThrough, refusal};
use sandgate_mesh::headers::{
    Upgrade, ensure_request_id, names_too_much, only, requested_upgrade, sanitise_request, strip_forwarded,
};
use sandgate_mesh::sandbox::AppPort;
use std::sync::Arc;

/// A request that names a caller, a port and a path.
struct Parsed {
    caller: Arc<Caller>,
    port: AppPort,
    target: PathAndQuery,
}

/// Handles one request of `peer`.
pub(crate) async fn handle(
    gate: &Gate,
    peer: &Arc<Peer>,
    mut request: Box<Request<Incoming>>,
    switch: PassThrough,
    draining: Draining,
) -> Response<Answer<Return>> {
    let span = Span::begin(peer, &mut request);
    let mut response = match pass(gate, peer, request, switch, draining).await {
        Ok(response) => response,
        Err(refused) => {
            gate.metrics.count(refused.error.outcome());
            refused.error.response(&gate.settings.sandbox.name).map(Answer::Own)
        }
    };
    if let Some(span) = span {
        span.end(response.headers_mut());
    }
    response
}

async fn pass(
    gate: &Gate,
    peer: &Arc<Peer>,
    mut request: Box<Request<Incoming>>,
    switch: PassThrough,
    draining: Draining,
) -> Result<Response<Answer<Return>>, Refused> {
    if let Some(violation) = refusal(&request) {
        let error = GateError::Framing(violation);
        audit::unread::<()>(gate, peer, None, error);
        return Err(error.into());
    }
    // Connections outlive certificates, and a stolen key must not outlive its own.
    let Some(remaining) = peer.remaining() else {
        audit::unread(gate, peer, Some(&request), GateError::PeerExpired);
        return Err(reject(request, GateError::PeerExpired).await);
    };
    // Shed before the kernel ends everybody's requests.
    if gate.memory.is_exhausted() {
        audit::unread(gate, peer, Some(&request), GateError::OutOfMemory);
        return Err(GateError::OutOfMemory.into());
    }

    let parsed = match parse(peer, &request) {
        Ok(parsed) => parsed,
        Err(error) => {
            audit::unread(gate, peer, Some(&request), error);
            if error == GateError::NotARouter {
                gate.strangers.tell(&peer.id, &gate.settings.routers);
            }
            return Err(reject(request, error).await);
        }
    };

    // On every request: connections outlive policies.
    let facts = RequestFacts {
        direct: !peer.is_router(),
        port: parsed.port,
        method: request.method(),
        path: parsed.target.path(),
    };
    let snapshot = gate.policy.borrow().clone();
    let decision = authorize(&parsed.caller, &facts, snapshot.as_deref(), &gate.settings.own_ports);
    audit::decided(gate, peer, &parsed.caller, &facts, &request, decision.as_ref());
    let permit = match decision {
        Ok(permit) => permit,
        Err(denied) => return Err(reject(request, GateError::Denied(denied)).await),
    };
    gate.metrics.allowed.inc();

    let upgrade = requested_upgrade(&request);
    if !peer.is_router() {
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
    relay::relay(gate, permit, request, upgrade, request_id.as_ref())
        .await
        .inspect_err(|refused| audit::unanswered(gate, parsed.port, request_id.as_ref(), refused))
}

/// Takes a bounded rest of the body first, or closing the connection could overtake the answer.
async fn reject(request: Box<Request<Incoming>>, error: GateError) -> Refused {
    if !request.headers().contains_key(http::header::EXPECT) {
        Box::pin(discard(request.into_body())).await;
    }
    error.into()
}

fn parse<B>(peer: &Peer, request: &Request<B>) -> Result<Parsed, GateError> {
    if names_too_much(request.headers()) {
        return Err(GateError::NamesTooMuch);
    }
    let caller = peer.caller(request)?;
    let port = match only(request.headers(), &X_SANDBOX_PORT) {
        Err(_) => return Err(GateError::RepeatedPort),
        Ok(None) => AppPort::DEFAULT,
        Ok(Some(value)) if value.is_empty() => AppPort::DEFAULT,
        Ok(Some(value)) => value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(GateError::Port)?,
    };
    if request.method() == Method::CONNECT {
        return Err(GateError::Connect);
    }
    let target = request.uri().path_and_query().cloned().ok_or(GateError::Target)?;
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
}

/// Leaves in the head what the app may see.
fn sanitise<B>(
    request: &mut Request<B>,
    target: PathAndQuery,
    port: AppPort,
    upgrade: Option<&Upgrade>,
) -> Result<(), GateError> {
    let headers = request.headers_mut();
    sanitise_request(headers, upgrade);
    let host = HeaderValue::from_str(&format!("127.0.0.1:{port}")).map_err(|_| GateError::Internal)?;
    headers.insert(HOST, host);
    // What came over HTTP/2 goes on so; the rest is HTTP/1.1 from here.
    if request.version() != Version::HTTP_2 {
        *request.version_mut() = Version::HTTP_11;
    }
    // Origin form, whatever form it came in: an absolute target's authority must not reach the app as a second Host.
    *request.uri_mut() = Uri::from(target);
    Ok(())
}
