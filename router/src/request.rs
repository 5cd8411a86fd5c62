//! THE PATH of a request through the router: authenticate, parse, resolve, sanitise, forward, answer.

use crate::access::{End, Record};
use crate::authenticate::{Authenticated, Authenticator};
use crate::config::{Config, Mesh};
use crate::error::RouterError;
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::resolve::Resolver;
use crate::routing::Route;
use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sandgate_mesh::body::{Answer, Download, Upload, discard};
use sandgate_mesh::contract::{
    TRACEPARENT, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID, X_SANDBOX_PORT, X_SANDGATE_CALLER,
    X_SANDGATE_OUTCOME,
};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::framing::{Limits, PassThrough, refusal};
use sandgate_mesh::headers::{cross_hop, requested_upgrade, sanitise_request, strip_ours};
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::telemetry::LineLog;
use sandgate_mesh::{admin, tunnel};
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest request ID that is kept, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// What one worker thread needs to serve requests.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    pub(crate) framing: Arc<Limits>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) forwarder: Forwarder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access: Option<LineLog>,
    pub(crate) ids: RequestIds,
}

/// The client connection that a request came over.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) ip: IpAddr,
    pub(crate) scheme: &'static str,
    pub(crate) certificate: Option<Authenticated>,
}

/// Makes request IDs that don't repeat and don't tell how many there were.
#[derive(Debug, Default)]
pub(crate) struct RequestIds {
    seed: RandomState,
    next: AtomicU64,
}

impl RequestIds {
    fn next(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut id = String::with_capacity(32);
        let _ = write!(
            id,
            "{:016x}{:016x}",
            self.seed.hash_one(number),
            self.seed.hash_one((number, 1))
        );
        id
    }
}

/// Handles one request.
pub(crate) async fn handle(
    worker: &Worker,
    client: &Client,
    mut request: Request<Incoming>,
    switch: PassThrough,
    draining: Draining,
) -> Response<Answer<End>> {
    if let Some(violation) = refusal(&request) {
        return RouterError::Framing(violation).response().map(Answer::Own);
    }
    if request.uri().path() == "/healthz" && matches!(*request.method(), Method::GET | Method::HEAD) {
        return admin::healthy().map(Answer::Own);
    }
    let request_id = request_id(worker, &mut request);
    let shown = request_id.to_str().unwrap_or_default();
    let mut record = Record::begin(&worker.metrics, worker.access.as_ref(), &request, client.ip, shown);

    let (caller, route) = match admit(worker, client, &request, &mut record) {
        Ok(admitted) => admitted,
        Err(error) => {
            // A bounded rest of the body first, or closing the connection could overtake the answer.
            if !request.headers().contains_key(EXPECT) {
                Box::pin(discard(request.into_body())).await;
            }
            return answer_error(&error, record);
        }
    };
    match pass(worker, client, &caller, &route, request, &mut record, switch, draining).await {
        Ok(Passed::Answered(lease, response, watch, silence)) => {
            response.map(|body| Answer::Relayed(Download::new(body, silence, Some(watch), End { lease, record })))
        }
        Ok(Passed::Switched(response)) => response.map(|()| Answer::empty()),
        Err(error) => answer_error(&error, record),
    }
}

fn answer_error(error: &RouterError, mut record: Record) -> Response<Answer<End>> {
    let response = error.response();
    record.status(response.status());
    let length = http_body::Body::size_hint(response.body()).lower();
    record.bytes_out(length);
    response.map(Answer::Own)
}

/// Authenticates, then parses: who isn't known learns nothing about routing.
fn admit(
    worker: &Worker,
    client: &Client,
    request: &Request<Incoming>,
    record: &mut Record,
) -> Result<(Authenticated, Route), RouterError> {
    if request.method() == Method::CONNECT {
        return Err(RouterError::Connect);
    }
    let caller = worker
        .authenticator
        .authenticate(request.headers(), client.certificate.as_ref())
        .inspect_err(|_| worker.metrics.decision(None, "deny"))?;
    record.caller(&caller.caller);
    let route = Route::parse(request.headers(), worker.config.allow_loopback_pod_ip)?;
    record.sandbox(&route.sandbox);
    Ok((caller, route))
}

/// What became of a request that was let in.
enum Passed {
    Answered(
        sandgate_mesh::pool::Lease<Arc<crate::resolve::Target>>,
        Response<Incoming>,
        Arc<sandgate_mesh::body::UploadWatch>,
        std::time::Duration,
    ),
    Switched(Response<()>),
}

#[allow(clippy::too_many_arguments)] // each phase of the path needs another of them
async fn pass(
    worker: &Worker,
    client: &Client,
    caller: &Authenticated,
    route: &Route,
    mut request: Request<Incoming>,
    record: &mut Record,
    switch: PassThrough,
    draining: Draining,
) -> Result<Passed, RouterError> {
    let name = &route.sandbox.name;
    let budget = route.timeout.map_or(worker.config.proxy_timeout, |wanted| {
        wanted.min(worker.config.proxy_timeout)
    });

    // The identity that must answer is part of the target: decided before anything is dialed.
    let resolved = worker.resolver.resolve(route, budget).await;
    let target = resolved.ok_or_else(|| {
        worker.metrics.error(&route.sandbox.namespace, "dial");
        RouterError::Unreachable(name.clone())
    })?;
    record.upstream(target.endpoint);

    let upgrade = requested_upgrade(&request);
    sanitise(worker, client, caller, route, &mut request, upgrade.clone())?;
    let downstream = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let body = Upload::new(body, worker.config.max_request_body).map_err(RouterError::Upload)?;
    let watch = body.watch();
    record.upload(&watch);

    let request = Request::from_parts(head, body);
    let (lease, mut response) = worker
        .forwarder
        .forward(&worker.resolver, route, target, request, budget)
        .await?;
    worker.metrics.learn(&route.sandbox.namespace);
    note_outcome(worker, route, &response);

    strip_ours(response.headers_mut());
    record.status(response.status());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let downstream = downstream.ok_or_else(|| RouterError::Broken(name.clone()))?;
        if !switch.open() {
            return Err(RouterError::EarlyBytes);
        }
        let upstream = hyper::upgrade::on(&mut response);
        let limits = worker.config.tunnels;
        tokio::spawn(async move {
            // Kept until the tunnel ends: the connection's driver needs its sender.
            let _lease = lease;
            if let Ok((downstream, upstream)) = tokio::try_join!(downstream, upstream) {
                tunnel::join(TokioIo::new(downstream), TokioIo::new(upstream), limits, draining).await;
            }
        });
        cross_hop(response.headers_mut(), upgrade);
        return Ok(Passed::Switched(response.map(|_| ())));
    }
    cross_hop(response.headers_mut(), None);
    *response.version_mut() = Version::HTTP_11;
    Ok(Passed::Answered(lease, response, watch, budget))
}

/// What the gate said of itself belongs to the metrics; the caller gets the answer without it.
fn note_outcome(worker: &Worker, route: &Route, response: &Response<Incoming>) {
    let outcome = response
        .headers()
        .get(X_SANDGATE_OUTCOME)
        .and_then(Outcome::from_header);
    let namespace = &route.sandbox.namespace;
    match outcome {
        Some(Outcome::Dial) => worker.metrics.error(namespace, "dial"),
        Some(Outcome::Timeout) => worker.metrics.error(namespace, "timeout"),
        Some(Outcome::Broken) => worker.metrics.error(namespace, "eof"),
        Some(Outcome::BadAnswer | Outcome::NotReady | Outcome::Overloaded) => worker.metrics.error(namespace, "other"),
        Some(Outcome::Denied) => worker.metrics.decision(Some(namespace), "deny"),
        Some(Outcome::Malformed | Outcome::Upload) | None => {}
    }
}

/// Keeps a sane request ID of the client's, or makes one.
fn request_id(worker: &Worker, request: &mut Request<Incoming>) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        (1..=MAX_REQUEST_ID).contains(&value.len())
            && value
                .as_bytes()
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=".contains(b))
    };
    if let Some(value) = request.headers().get(X_REQUEST_ID).filter(sane) {
        return value.clone();
    }
    let made = HeaderValue::from_str(&worker.ids.next()).unwrap_or(HeaderValue::from_static("unknown"));
    request.headers_mut().insert(X_REQUEST_ID, made.clone());
    made
}

/// Leaves in the head what the next hop may see, and adds what it must.
fn sanitise(
    worker: &Worker,
    client: &Client,
    caller: &Authenticated,
    route: &Route,
    request: &mut Request<Incoming>,
    upgrade: Option<HeaderValue>,
) -> Result<(), RouterError> {
    let target = request
        .uri()
        .path_and_query()
        .cloned()
        .ok_or(RouterError::BadRoute("Invalid request target."))?;
    let headers = request.headers_mut();
    sanitise_request(headers, upgrade);
    forwarded(worker, client, headers);
    if headers.get_all(TRACEPARENT).iter().nth(1).is_some() {
        headers.remove(TRACEPARENT);
    }
    let internal = |_| RouterError::BadRoute("Invalid request target.");
    headers.insert(
        HOST,
        HeaderValue::from_str(&format!("127.0.0.1:{}", route.port)).map_err(internal)?,
    );
    if worker.config.mesh == Mesh::Required {
        headers.insert(X_SANDBOX_PORT, HeaderValue::from(route.port.get()));
        headers.insert(X_SANDGATE_CALLER, caller.assertion.clone());
    }
    debug_assert!(headers.get_all(CONTENT_LENGTH).iter().count() <= 1);
    *request.version_mut() = Version::HTTP_11;
    // Origin form, whatever form it came in.
    *request.uri_mut() = Uri::from(target);
    Ok(())
}

/// Sets `X-Forwarded-*`. What a client says of itself counts only if it is a trusted proxy.
fn forwarded(worker: &Worker, client: &Client, headers: &mut HeaderMap) {
    let trusted = worker
        .config
        .trusted_proxies
        .iter()
        .any(|network| network.contains(&client.ip));
    let mut chain = String::new();
    if trusted {
        for value in headers
            .get_all(X_FORWARDED_FOR)
            .iter()
            .filter_map(|value| value.to_str().ok())
        {
            let _ = write!(chain, "{value}, ");
        }
    } else {
        headers.remove(X_FORWARDED_HOST);
        headers.remove(X_FORWARDED_PROTO);
    }
    let _ = write!(chain, "{}", client.ip);
    if let Ok(chain) = HeaderValue::from_str(&chain) {
        headers.insert(X_FORWARDED_FOR, chain);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme));
    }
    if !headers.contains_key(X_FORWARDED_HOST)
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}
