//! Moves one permitted request to the app and its answer back. The app is an attacker here: what it answers is judged
//! before it is relayed.

use crate::Gate;
use crate::authorize::Permit;
use crate::dial::Key;
use crate::request::{INTERNAL, Peer, Refused, Return};
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sandgate_mesh::body::{Answer, BodyError, Upload, UploadWatch};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::drain::Draining;
use sandgate_mesh::exchange::ExchangeError;
use sandgate_mesh::framing::PassThrough;
use sandgate_mesh::headers::{Upgrade, cross_hop, names_too_much, strip_ours};
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::pool::Lease;
use sandgate_mesh::sandbox::SandboxName;
use sandgate_mesh::telemetry::chain;
use sandgate_mesh::tunnel;
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

/// Relays `request`, which has been authorised and sanitised.
pub(crate) async fn relay(
    gate: &Gate,
    permit: &Permit,
    caller: &Arc<Caller>,
    mut request: Box<Request<Incoming>>,
    switch: Option<Switch>,
    request_id: Option<&HeaderValue>,
) -> Result<Response<Answer<Return>>, Refused> {
    let client = switch.is_some().then(|| hyper::upgrade::on(&mut *request));
    let (head, body) = request.into_parts();
    // Without a limit of its own: the router's is the one configured.
    let body = Upload::new(body, None, Instant::now());
    let watch = body.watch();
    let (lease, mut response) = exchange(gate, permit, caller, Box::new(Request::from_parts(head, body))).await?;

    if names_too_much(response.headers()) {
        return Err(bad_answer(gate, "its Connection or Trailer header is too long"));
    }
    strip_ours(response.headers_mut());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let answered = |switch: &Switch| switch.upgrade.is_answered_by(response.headers());
        let (Some(switch), Some(client)) = (switch.filter(answered), client) else {
            return Err(bad_answer(gate, "it switched protocols as nobody asked"));
        };
        return tunnel_through(gate, switch, client, response, lease);
    }
    let back = Return {
        lease,
        request_id: request_id.cloned(),
    };
    Ok(finish(gate, back, response, watch))
}

/// Joins client and app once both have switched.
fn tunnel_through(
    gate: &Gate,
    switch: Switch,
    client: OnUpgrade,
    mut response: Response<Incoming>,
    lease: Lease<Key>,
) -> Result<Response<Answer<Return>>, Refused> {
    let Switch {
        upgrade,
        pass_through,
        peer,
        remaining,
        draining,
    } = switch;
    if !pass_through.open() {
        let text = "Bytes followed the upgrade request too early.";
        return Err(Refused::new(StatusCode::BAD_REQUEST, Outcome::Malformed, text));
    }
    let app = hyper::upgrade::on(&mut response);
    let limits = gate.settings.caps.tunnels.within(remaining);
    tokio::spawn(async move {
        // Kept until the tunnel ends: the connection's driver needs its sender, and the peer's place is taken.
        let _kept = (lease, peer);
        if let Ok((client, app)) = tokio::try_join!(client, app) {
            tunnel::join(TokioIo::new(client), TokioIo::new(app), limits, draining).await;
        }
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
    permit: &Permit,
    caller: &Arc<Caller>,
    request: Box<Request<Upload>>,
) -> Result<(Lease<Key>, Response<Incoming>), Refused> {
    let name = &gate.settings.sandbox.name;
    let wait = gate.settings.proxy_timeout;
    let mut lease = gate
        .door
        .open(permit, caller)
        .await
        .map_err(|error| no_connection(&error, name))?;
    match lease.upstream.send(request, wait).await {
        Ok(response) => Ok((lease, response)),
        Err(ExchangeError::NotSent(request)) => {
            let mut lease = gate
                .door
                .open_new(permit, caller)
                .await
                .map_err(|error| no_connection(&error, name))?;
            let response = lease
                .upstream
                .send(request, wait)
                .await
                .map_err(|error| explain(&error, name))?;
            Ok((lease, response))
        }
        Err(error) => Err(explain(&error, name)),
    }
}

fn no_connection(error: &io::Error, name: &SandboxName) -> Refused {
    let refused = if error.kind() == io::ErrorKind::TimedOut {
        timed_out(name)
    } else {
        could_not_connect(name, Outcome::Dial)
    };
    refused.because(format!("can't connect: {}", chain(error)))
}

fn could_not_connect(name: &SandboxName, outcome: Outcome) -> Refused {
    Refused::new(
        StatusCode::BAD_GATEWAY,
        outcome,
        format!("Could not connect to the backend sandbox: {name}"),
    )
}

fn bad_answer(gate: &Gate, why: &str) -> Refused {
    could_not_connect(&gate.settings.sandbox.name, Outcome::BadAnswer).because(why)
}

fn timed_out(name: &SandboxName) -> Refused {
    Refused::new(
        StatusCode::GATEWAY_TIMEOUT,
        Outcome::Timeout,
        format!("Timed out waiting for the backend sandbox: {name}"),
    )
}

fn explain(error: &ExchangeError, name: &SandboxName) -> Refused {
    let refused = match error {
        ExchangeError::NotSent(_) | ExchangeError::Broken(_) => could_not_connect(name, Outcome::Broken),
        ExchangeError::Malformed(_) => could_not_connect(name, Outcome::BadAnswer),
        ExchangeError::TimedOut => timed_out(name),
        ExchangeError::Upload(BodyError::Framing(violation)) => {
            Refused::new(violation.status(), Outcome::Upload, violation.detail())
        }
        ExchangeError::Upload(BodyError::TooLarge) => Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Outcome::Upload,
            "Request body is too large.",
        ),
        ExchangeError::Upload(BodyError::Silent) => Refused::new(
            StatusCode::REQUEST_TIMEOUT,
            Outcome::Upload,
            "Timed out waiting for the request body.",
        ),
        // Its sender is gone, so nobody reads this.
        ExchangeError::Upload(BodyError::Broken) => {
            Refused::new(StatusCode::INTERNAL_SERVER_ERROR, Outcome::Upload, INTERNAL)
        }
    };
    refused.because(chain(error))
}
