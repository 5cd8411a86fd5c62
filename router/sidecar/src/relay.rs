//! Moves one permitted request to the app and its answer back. The app is an attacker here: what it answers is judged
//! before it is relayed. Hides which connection the request went over, and what becomes of that afterwards.

use crate::Gate;
use crate::audit;
use crate::authorize::Permit;
use crate::dial::Key;
use crate::error::{GateError, Refused};
use crate::peer::Peer;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use sandgate_mesh::body::{Answer, BodyEnd, Ending, Upload, UploadWatch};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::exchange::ExchangeError;
use sandgate_mesh::framing::PassThrough;
use sandgate_mesh::headers::{Upgrade, cross_hop, detached, names_too_much, strip_ours};
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::pool::Lease;
use sandgate_mesh::telemetry::chain;
use sandgate_mesh::tunnel::{self, TunnelLimits};
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What it takes to switch protocols for a request that asks for it.
pub(crate) struct Switch {
    pub(crate) upgrade: Upgrade,
    pub(crate) pass_through: PassThrough,
    /// Whose tunnel it is: it takes a place among that peer's connections, and lasts no longer than its certificate.
    pub(crate) peer: Arc<Peer>,
    pub(crate) remaining: Duration,
    pub(crate) draining: Draining,
}

/// Gives the app's connection back once its answer is through.
#[derive(Debug)]
pub(crate) struct Return {
    lease: Lease<Key>,
    request_id: Option<HeaderValue>,
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

/// Relays `request`, which has been authorised and sanitised.
pub(crate) async fn relay(
    gate: &Gate,
    permit: Permit,
    mut request: Box<Request<Incoming>>,
    switch: Option<Switch>,
    request_id: Option<&HeaderValue>,
) -> Result<Response<Answer<Return>>, Refused> {
    let client = switch.is_some().then(|| hyper::upgrade::on(&mut *request));
    let (head, body) = request.into_parts();
    // Without a limit of its own: the router's is the one configured.
    let body = Upload::new(body, None, Instant::now());
    let watch = body.watch();
    let (lease, mut response) = exchange(gate, permit, Box::new(Request::from_parts(head, body))).await?;

    if names_too_much(response.headers()) {
        return Err(GateError::BadAnswer.because("its Connection or Trailer header is too long"));
    }
    strip_ours(response.headers_mut());
    let back = Return {
        lease,
        request_id: request_id.cloned(),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let answered = |switch: &Switch| switch.upgrade.is_answered_by(response.headers());
        let (Some(switch), Some(client)) = (switch.filter(answered), client) else {
            return Err(GateError::BadAnswer.because("it switched protocols as nobody asked"));
        };
        return Ok(tunnel_through(gate, switch, client, response, back)?);
    }
    Ok(finish(gate, back, response, watch))
}

/// Joins client and app once both have switched.
fn tunnel_through(
    gate: &Gate,
    switch: Switch,
    client: OnUpgrade,
    mut response: Response<Incoming>,
    Return { lease, request_id }: Return,
) -> Result<Response<Answer<Return>>, GateError> {
    let Switch {
        upgrade,
        pass_through,
        peer,
        remaining,
        draining,
    } = switch;
    if !pass_through.open() {
        return Err(GateError::EarlyBytes);
    }
    let app = hyper::upgrade::on(&mut response);
    let protocol = upgrade.protocol();
    let limits = if peer.is_router() {
        TunnelLimits::UNLIMITED
    } else {
        gate.settings.caps.tunnels
    };
    let limits = limits.within(remaining);
    let sandbox = gate.settings.sandbox.clone();
    let request_id = request_id.as_ref().map(detached);
    tokio::spawn(async move {
        let ended = tunnel::join_upgraded(client, app, lease, protocol, limits, draining, pending()).await;
        audit::tunnel_ended(&sandbox, request_id.as_ref(), ended);
        // Its place was taken until here.
        drop(peer);
    });
    cross_hop(response.headers_mut(), Some(&upgrade));
    Ok(response.map(|_| Answer::empty()))
}

fn finish(
    gate: &Gate,
    back: Return,
    mut response: Response<Incoming>,
    watch: Option<Arc<UploadWatch>>,
) -> Response<Answer<Return>> {
    cross_hop(response.headers_mut(), None);
    *response.version_mut() = Version::HTTP_11;
    response.map(|body| Answer::relay(body, gate.settings.proxy_timeout, watch, back))
}

/// Sends the request on a kept connection, or on a new one where the kept one turns out to be closed and nothing of the
/// request was sent.
async fn exchange(
    gate: &Gate,
    permit: Permit,
    request: Box<Request<Upload>>,
) -> Result<(Lease<Key>, Response<Incoming>), Refused> {
    let wait = gate.settings.proxy_timeout;
    // The wait for the app begins here, with that for a connection.
    let deadline = request.body().started() + wait;
    let opened = gate.door.open(permit, HttpVersion::of(&request), deadline).await;
    let mut opened = opened.map_err(|error| no_connection(&error))?;
    match opened.upstream().send(request, wait).await {
        Ok(response) => Ok((opened.into_lease(), response)),
        Err(ExchangeError::NotSent(request)) => {
            let replaced = opened.replace(deadline).await;
            let mut lease = replaced.map_err(|error| no_connection(&error))?;
            let sent = lease.upstream.send(request, wait).await;
            let response = sent.map_err(|error| no_answer(&error))?;
            Ok((lease, response))
        }
        Err(error) => Err(no_answer(&error)),
    }
}

fn no_connection(error: &io::Error) -> Refused {
    let reason = if error.kind() == io::ErrorKind::TimedOut {
        GateError::TimedOut
    } else {
        GateError::Dial
    };
    reason.because(format!("can't connect: {}", chain(error)))
}

fn no_answer(error: &ExchangeError) -> Refused {
    let reason = match error {
        ExchangeError::NotSent(_) | ExchangeError::Broken(_) => GateError::Broken,
        ExchangeError::Malformed(_) => GateError::BadAnswer,
        ExchangeError::TimedOut => GateError::TimedOut,
        ExchangeError::Upload(error) => GateError::Upload(*error),
    };
    reason.because(chain(error))
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
