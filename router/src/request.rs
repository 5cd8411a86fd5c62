//! THE PATH of a request through the router: authenticate, parse, sanitise, resolve, forward, answer.

use crate::access::{End, Record};
use crate::authenticate::Authenticated;
use crate::browser::Page;
use crate::client::{Client, forwarded};
use crate::error::RouterError;
use crate::forward::Errand;
use crate::limits::Who;
use crate::metrics::Decision;
use crate::outcomes::{heed, said};
use crate::rewrite::Mount;
use crate::routing::{Destination, Way};
use crate::scope::narrow;
use crate::target::Target;
use crate::tunnels::Tunnel;
use crate::upgrades::{UpgradeSlot, client_address};
use crate::worker::Worker;
use http::header::{EXPECT, HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use sandgate_mesh::admin;
use sandgate_mesh::body::{Answer, BodyError, Upload, UploadWatch, discard};
use sandgate_mesh::contract::{X_REQUEST_ID, X_SANDBOX_PORT, X_SANDGATE_CALLER, X_SANDGATE_TRACE};
use sandgate_mesh::framing::{PassThrough, refusal};
use sandgate_mesh::headers::{
    Upgrade, cross_hop, ensure_request_id, names_too_much, requested_upgrade, sanitise_request, strip_ours,
};
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::pool::Lease;
use sandgate_mesh::trace_context;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;

/// Handles one request.
pub(crate) async fn handle(
    worker: &Worker,
    client: &Arc<Client>,
    mut request: Box<Request<Incoming>>,
    switch: PassThrough,
) -> Response<Answer<End>> {
    if let Some(violation) = refusal(&request) {
        let record = Record::unreadable(&worker.metrics, worker.access.as_ref(), client.ip);
        return answer_error(&RouterError::Framing(violation), record);
    }
    if request.uri().path() == "/healthz" && matches!(*request.method(), Method::GET | Method::HEAD) {
        return admin::healthy().map(Answer::Own);
    }
    ensure_request_id(request.headers_mut());
    let mut record = Record::begin(&worker.metrics, worker.access.as_ref(), &request, client.ip);
    if let Some(tracer) = &worker.tracer {
        record.trace(tracer, &mut request, client.ip, &client.scheme);
    }
    if record.is_traced() {
        let span = record.log_span();
        return Box::pin(answer(worker, client, request, record, switch).instrument(span)).await;
    }
    answer(worker, client, request, record, switch).await
}

/// Answers one request that can be read.
async fn answer(
    worker: &Worker,
    client: &Arc<Client>,
    mut request: Box<Request<Incoming>>,
    mut record: Record,
    switch: PassThrough,
) -> Response<Answer<End>> {
    // Looked at before the app's copy of the head is made, which doesn't say it.
    let is_sending = !request.headers().contains_key(EXPECT);
    let (trip, target) = match set_out(worker, client, &mut request, &mut record).await {
        Ok(found) => found,
        // Whoever refused the request, it is still whole. Its body is read as far as it goes, within bounds, or closing the
        // connection could overtake the answer; but nobody is told to send one for that.
        Err(error) => {
            if is_sending {
                Box::pin(discard(request.into_body())).await;
            }
            return answer_error(&error, record);
        }
    };
    match pass(worker, trip, target, request, &mut record, switch).await {
        Ok(Passed::Answered(lease, response, watch, silence)) => {
            response.map(|body| Answer::relay(body, silence, watch, End { lease, record }))
        }
        Ok(Passed::Switched(response, tunnel)) => {
            let metrics = Arc::clone(&worker.metrics);
            tokio::spawn(tunnel.run(
                Arc::clone(client),
                client.tunnels(worker.config.tunnels),
                metrics,
                record,
            ));
            response.map(|()| Answer::empty())
        }
        Err(error) => answer_error(&error, record),
    }
}

fn answer_error(error: &RouterError, mut record: Record) -> Response<Answer<End>> {
    let response = error.response();
    record.refused(error);
    record.status(response.status());
    let length = response.body().size_hint().lower();
    record.bytes_out(length);
    response.map(Answer::Own)
}

/// Authenticates, then parses: who isn't known learns nothing about routing. Then asks whether the caller may go there, if
/// the API server is to be asked.
async fn admit(
    worker: &Worker,
    client: &Client,
    request: &mut Request<Incoming>,
    record: &mut Record,
) -> Result<(Authenticated, Way), RouterError> {
    // Shed before the kernel ends everybody's requests.
    if worker.memory.is_exhausted() {
        return Err(RouterError::Overloaded);
    }
    if request.method() == Method::CONNECT {
        return Err(RouterError::Connect);
    }
    if names_too_much(request.headers()) {
        return Err(RouterError::BadRoute("Connection or Trailer header is too long."));
    }
    // Requests may still come when the connection has been told to end.
    if let Err(over) = client.check() {
        return Err(RouterError::CertificateOver(over));
    }
    let config = &worker.config;
    let find = |request: &Request<Incoming>| {
        let urls = config.url_routing.as_ref();
        Way::find(urls, config.allow_loopback_pod_ip, &client.last, request)
    };
    // What a browser presents counts only where its URL leads to an app, so the way is looked for first: what comes of that is
    // still for those alone who are known.
    let found = match &config.browser {
        None => None,
        Some(browser) => {
            let mut way = find(request);
            browser.take(request, &mut way)?;
            Some(way)
        }
    };
    let address = || client_address(config, client.ip, request.headers());
    let verdict = worker
        .authenticator
        .authenticate(request.headers(), client.certificate.as_ref(), address);
    let caller = verdict.get().await?;
    record.caller(&caller.caller);
    let who = || Who::of(&caller.caller, address);
    if let Some(limits) = &worker.limits {
        record.hold(limits.enter(who())?);
    }
    let mut way = found.unwrap_or_else(|| find(request))?;
    record.destination(&way.to);
    if let Some(scope) = caller.scope.as_deref() {
        narrow(scope, request, &mut way)?;
    }
    let declared = request.body().size_hint().lower();
    if config.max_request_body.is_some_and(|limit| declared > limit) {
        return Err(RouterError::Upload(BodyError::TooLarge));
    }
    if let Some(reviews) = &worker.access_reviews {
        reviews.check(&caller, &way.to.route.sandbox, who).get().await?;
    }
    Ok((caller, way))
}

/// A request that was let in, and how it travels.
struct Trip {
    to: Arc<Destination>,
    /// Where the client sees the app, if its URL led here.
    mount: Option<Box<Mount>>,
    /// What the client wants to switch to, and its place among its upgraded connections.
    upgrade: Option<Upgrade>,
    slot: Option<UpgradeSlot>,
    request_id: Option<HeaderValue>,
    /// The version of HTTP in which it travels.
    over: HttpVersion,
    /// How long the wait for an answer may last, and each silence of it.
    budget: Duration,
}

impl Trip {
    fn errand(&self) -> Errand<'_> {
        Errand {
            route: &self.to.route,
            request_id: self.request_id.as_ref(),
            over: self.over,
        }
    }
}

/// All that happens before the request is sent. Its body stays where it is.
async fn set_out(
    worker: &Worker,
    client: &Client,
    request: &mut Request<Incoming>,
    record: &mut Record,
) -> Result<(Trip, Arc<Target>), RouterError> {
    let let_in = let_in(worker, client, request, record).await;
    let (caller, trip) = let_in.inspect_err(|error| {
        if error.is_of_caller() {
            record.decided(Decision::Deny);
        }
    })?;
    let target = find(worker, &trip, record).await?;
    if target.expected.is_some() {
        tell_gate(&trip, &caller, record.is_traced(), request.headers_mut());
    }
    Ok((trip, target))
}

/// Whoever may not make the request is refused here.
async fn let_in(
    worker: &Worker,
    client: &Client,
    request: &mut Request<Incoming>,
    record: &mut Record,
) -> Result<(Authenticated, Trip), RouterError> {
    let (caller, way) = admit(worker, client, request, record).await?;
    let trip = make_ready(worker, client, way, request)?;
    Ok((caller, trip))
}

/// Leaves in the head what any next hop may see. Judges the page that it comes from before anything is looked up for it.
fn make_ready(
    worker: &Worker,
    client: &Client,
    way: Way,
    request: &mut Request<Incoming>,
) -> Result<Trip, RouterError> {
    let Way { to, rest, mut mount } = way;
    let upgrade = requested_upgrade(request);
    let slot = match worker.upgrades.as_ref().filter(|_| upgrade.is_some()) {
        Some(upgrades) => Some(upgrades.enter(client.ip, request.headers())?),
        None => None,
    };
    let over = HttpVersion::needed_by(request);
    // Both read before the app's copy of the head is made, which has no `Origin`.
    let request_id = request.headers().get(X_REQUEST_ID).cloned();
    let page = mount
        .as_deref()
        .and_then(|mount| Page::behind(request, mount, upgrade.is_some(), client.certificate.is_some()));
    sanitise(client, &to, rest, request, upgrade.as_ref())?;
    if let Some(mount) = &mut mount {
        mount.told(request.headers_mut());
        page.map_or(Ok(()), |page| page.may_act(mount, worker.config.browser.as_ref()))?;
    }
    // HTTP/1.1, unless the request has to stay what it came in.
    if over == HttpVersion::Http1 {
        *request.version_mut() = Version::HTTP_11;
    }
    let longest = worker.config.proxy_timeout;
    Ok(Trip {
        budget: to.route.timeout.map_or(longest, |wanted| wanted.min(longest)),
        to,
        mount,
        upgrade,
        slot,
        request_id,
        over,
    })
}

/// Finds the sandbox, and a place at it. The identity that must answer is part of the target: decided before anything is
/// dialed.
async fn find(worker: &Worker, trip: &Trip, record: &mut Record) -> Result<Arc<Target>, RouterError> {
    let errand = trip.errand();
    let resolved = worker.resolver.resolve(errand.route, trip.budget).await;
    let target = resolved.map_err(|error| worker.forwarder.unresolved(&error, errand))?;
    record.upstream(target.endpoint);
    if let Some((limits, places)) = worker.limits.as_ref().zip(record.places()) {
        limits.enter_sandbox(places, &errand.route.sandbox.name, target.whither())?;
    }
    Ok(target)
}

/// What became of a request that was let in.
enum Passed {
    Answered(
        Lease<Arc<Target>>,
        Response<Incoming>,
        Option<Arc<UploadWatch>>,
        Duration,
    ),
    Switched(Response<()>, Tunnel),
}

/// Sends the request, and makes its answer ready for the client.
async fn pass(
    worker: &Worker,
    mut trip: Trip,
    target: Arc<Target>,
    mut request: Box<Request<Incoming>>,
    record: &mut Record,
    switch: PassThrough,
) -> Result<Passed, RouterError> {
    let upgrade = trip.upgrade.take();
    let downstream = upgrade.is_some().then(|| hyper::upgrade::on(&mut *request));
    let (head, body) = request.into_parts();
    let body = Upload::new(body, worker.config.max_request_body, record.started());
    let watch = body.watch();
    record.upload(watch.clone());
    let request = Box::new(Request::from_parts(head, body));

    let (lease, mut response) = forward(worker, &trip, target, request, record).await?;

    strip_ours(response.headers_mut());
    if let Some(mount) = &trip.mount {
        mount.rewrite(response.headers_mut());
    }
    if let Some(browser) = &worker.config.browser {
        browser.answer(trip.mount.as_deref(), response.headers_mut());
    }
    record.status(response.status());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (asked, slot) = (downstream.zip(upgrade), trip.slot.take());
        let errand = trip.errand();
        let (response, tunnel) = Tunnel::dig(&worker.metrics, errand, asked, switch, slot, lease, response)?;
        return Ok(Passed::Switched(response, tunnel));
    }
    if upgrade.is_some_and(|upgrade| upgrade.is_feigned_by(response.status())) {
        return Err(RouterError::Broken(trip.to.route.sandbox.name.clone()));
    }
    cross_hop(response.headers_mut(), None);
    *response.version_mut() = Version::HTTP_11;
    Ok(Passed::Answered(lease, response, watch, trip.budget))
}

/// Sends it, and hears what the gate says of itself beside its answer.
async fn forward(
    worker: &Worker,
    trip: &Trip,
    target: Arc<Target>,
    request: Box<Request<Upload>>,
    record: &mut Record,
) -> Result<(Lease<Arc<Target>>, Response<Incoming>), RouterError> {
    let errand = trip.errand();
    let through_gate = target.expected.is_some();
    let shows_namespace = worker.resolver.shows_namespace(errand.route, &target);
    let sent = worker
        .forwarder
        .forward(&worker.resolver, errand, target, request, trip.budget)
        .await;
    // A namespace is worth a label where more than a caller's word says that there is one.
    if sent.is_ok() && shows_namespace && trip.to.answers_first() {
        worker.metrics.learn(&trip.to.route.sandbox.namespace);
    }
    let answer = sent.as_ref().ok().filter(|_| through_gate);
    let said = answer.and_then(|(_, response)| said(response));
    record.decided(match said {
        Some(Outcome::Denied) => Decision::Deny,
        _ => Decision::Allow,
    });
    let (lease, response) = sent?;
    if through_gate {
        record.told(lease.key(), &response);
    }
    if let Some(outcome) = said {
        heed(worker, errand, outcome, response.status())?;
    }
    Ok((lease, response))
}

/// Leaves in the head what the next hop may see. The app is asked for `rest`, or for all that the router was asked for.
fn sanitise(
    client: &Client,
    to: &Destination,
    rest: Option<Box<PathAndQuery>>,
    request: &mut Request<Incoming>,
    upgrade: Option<&Upgrade>,
) -> Result<(), RouterError> {
    let target = match rest {
        Some(rest) => Some(*rest),
        None => request.uri().path_and_query().cloned(),
    };
    let target = target.ok_or(RouterError::BadRoute("Invalid request target."))?;
    let headers = request.headers_mut();
    sanitise_request(headers, upgrade);
    let asked_for = headers.insert(HOST, to.host.clone());
    forwarded(client, asked_for, headers);
    // Origin form, whatever form it came in.
    *request.uri_mut() = Uri::from(target);
    Ok(())
}

/// Adds to the head what a gate must know: the port and who calls, and whether its part of the trace is wanted.
fn tell_gate(trip: &Trip, caller: &Authenticated, is_traced: bool, headers: &mut HeaderMap) {
    headers.insert(X_SANDBOX_PORT, trip.to.port.clone());
    headers.insert(X_SANDGATE_CALLER, caller.assertion.clone());
    if is_traced {
        headers.insert(X_SANDGATE_TRACE, trace_context::ask());
    }
}
