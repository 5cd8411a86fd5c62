//! THE PATH of a request through the router: authenticate, parse, resolve, sanitise, forward, answer.

use crate::access::{End, Record};
use crate::authenticate::{Authenticated, Authenticator};
use crate::authorize::AccessReviews;
use crate::browser::Page;
use crate::config::Config;
use crate::error::RouterError;
use crate::forward::{Errand, Forwarder, UNANSWERED, id_text};
use crate::limits::{Limits as RequestLimits, Who};
use crate::metrics::{Metrics, Reason};
use crate::otlp::Tracer;
use crate::resolve::{Resolver, Target};
use crate::routing::{Destination, LastDestination, Way};
use crate::scope::narrow;
use crate::upgrades::{UpgradeCount, UpgradeSlot, client_address};
use http::header::{EXPECT, HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use sandgate_mesh::admin;
use sandgate_mesh::body::{Answer, BodyError, Upload, UploadWatch, discard};
use sandgate_mesh::contract::{
    X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID, X_SANDBOX_PORT, X_SANDGATE_CALLER,
    X_SANDGATE_OUTCOME, X_SANDGATE_TRACE,
};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::framing::{Limits, PassThrough, refusal};
use sandgate_mesh::headers::{
    Upgrade, cross_hop, detached, ensure_request_id, names_too_much, requested_upgrade, sanitise_request,
    strip_forwarded, strip_ours,
};
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::listener::ConnectionSlot;
use sandgate_mesh::memory::MemoryBudget;
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::pool::Lease;
use sandgate_mesh::sandbox::SandboxKey;
use sandgate_mesh::telemetry::{LineLog, chain};
use sandgate_mesh::trace_context;
use sandgate_mesh::tunnel::{Ended, Protocol, TunnelLimits, join_upgraded};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;

/// What one worker thread needs to serve requests.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    pub(crate) framing: Arc<Limits>,
    pub(crate) authenticator: Arc<Authenticator>,
    /// Who may connect where, if the API server is asked.
    pub(crate) access_reviews: Option<Arc<AccessReviews>>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) forwarder: Forwarder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access: Option<LineLog>,
    pub(crate) memory: MemoryBudget,
    /// Of all workers; `None` where there is no limit.
    pub(crate) upgrades: Option<Arc<UpgradeCount>>,
    /// What traces requests, if any are.
    pub(crate) tracer: Option<Arc<Tracer>>,
    /// Of all workers; `None` where neither callers nor sandboxes are limited.
    pub(crate) limits: Option<Arc<RequestLimits>>,
}

/// The client connection that a request came over.
#[derive(Debug)]
pub(crate) struct Client {
    ip: IpAddr,
    /// The address as `X-Forwarded-For` has it, made once for all requests.
    ip_text: HeaderValue,
    scheme: HeaderValue,
    certificate: Option<Authenticated>,
    last: LastDestination,
    /// Its place among the connections: held for as long as anything of it lasts, tunnels too.
    _slot: ConnectionSlot,
    /// For tunnels, which outlive the connection's own task.
    draining: Draining,
    /// Whether what it says of those before it counts.
    trusted_proxy: bool,
}

impl Client {
    /// The client at `ip`, over `scheme`, with the name its certificate gave it.
    pub(crate) fn new(
        config: &Config,
        ip: IpAddr,
        scheme: &'static str,
        certificate: Option<Authenticated>,
        slot: ConnectionSlot,
        draining: Draining,
    ) -> Self {
        Self {
            ip,
            // An address is made of characters that a header value may have.
            ip_text: HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown")),
            scheme: HeaderValue::from_static(scheme),
            certificate,
            last: LastDestination::default(),
            _slot: slot,
            draining,
            trusted_proxy: config.trusts(ip),
        }
    }
}

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
    let (caller, way) = match admit(worker, client, &mut request, &mut record).await {
        Ok(admitted) => admitted,
        Err(error) => {
            hear_out(request).await;
            return answer_error(&error, record);
        }
    };
    match pass(worker, client, &caller, way, request, &mut record, switch).await {
        Ok(Passed::Answered(lease, response, watch, silence)) => {
            response.map(|body| Answer::relay(body, silence, watch, End { lease, record }))
        }
        Ok(Passed::Switched(response, tunnel)) => {
            let metrics = Arc::clone(&worker.metrics);
            tokio::spawn(tunnel.run(Arc::clone(client), worker.config.tunnels, metrics, record));
            response.map(|()| Answer::empty())
        }
        Err(error) => answer_error(&error, record),
    }
}

/// Reads a bounded rest of a refused request's body, or closing the connection could overtake the answer.
async fn hear_out(request: Box<Request<Incoming>>) {
    if !request.headers().contains_key(EXPECT) {
        Box::pin(discard(request.into_body())).await;
    }
}

fn answer_error(error: &RouterError, mut record: Record) -> Response<Answer<End>> {
    let response = error.response();
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
    // What a browser presents counts only where its URL leads to an app, so the way is looked for first: what comes of that is
    // still for those alone who are known.
    let found = match &worker.config.browser {
        None => None,
        Some(browser) => {
            let mut way = Way::find(&worker.config, &client.last, request);
            let taken = browser.take(request, &mut way);
            taken.inspect_err(|_| worker.metrics.denied(None))?;
            Some(way)
        }
    };
    let address = || client_address(&worker.config, client.ip, request.headers());
    let verdict = worker
        .authenticator
        .authenticate(request.headers(), client.certificate.as_ref(), address);
    let caller = verdict.get().await.inspect_err(|_| worker.metrics.denied(None))?;
    record.caller(&caller.caller);
    let who = || Who::of(&caller.caller, address);
    if let Some(limits) = &worker.limits {
        record.hold(limits.enter(who())?);
    }
    let mut way = found.unwrap_or_else(|| Way::find(&worker.config, &client.last, request))?;
    record.destination(&way.to);
    if let Some(scope) = caller.scope.as_deref() {
        narrow(scope, request, &mut way)
            .inspect_err(|_| worker.metrics.denied(Some(&way.to.route.sandbox.namespace)))?;
    }
    let declared = request.body().size_hint().lower();
    if worker.config.max_request_body.is_some_and(|limit| declared > limit) {
        return Err(RouterError::Upload(BodyError::TooLarge));
    }
    if let Some(reviews) = &worker.access_reviews {
        let sandbox = &way.to.route.sandbox;
        let verdict = reviews.check(&caller, sandbox, who).get().await;
        verdict.inspect_err(|_| worker.metrics.denied(Some(&sandbox.namespace)))?;
    }
    Ok((caller, way))
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

/// Two connections that have switched protocols.
struct Tunnel {
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    protocol: Protocol,
    /// The client's place among its upgraded connections, until the tunnel ends.
    slot: Option<UpgradeSlot>,
    lease: Lease<Arc<Target>>,
    sandbox: SandboxKey,
    request_id: Option<HeaderValue>,
}

impl Tunnel {
    /// Joins the two until one of them ends. The request lasts as long, and so does the client's place.
    async fn run(self, client: Arc<Client>, limits: TunnelLimits, metrics: Arc<Metrics>, mut record: Record) {
        let Self {
            downstream,
            upstream,
            protocol,
            slot,
            lease,
            sandbox,
            request_id,
        } = self;
        let (request_id, span) = (id_text(request_id.as_ref()), record.log_span());
        metrics.open_tunnels.inc();
        let draining = client.draining.clone();
        let ended = join_upgraded(downstream, upstream, lease, protocol, limits, draining).await;
        metrics.open_tunnels.dec();
        metrics.tunnel_ended(ended.as_ref().ok().map(|ended| ended.end));
        let _entered = span.enter();
        match ended {
            Ok(Ended { end, up, down }) => {
                record.bytes_in(up);
                record.bytes_out(down);
                tracing::info!(%sandbox, request_id, end = end.as_str(), up, down, "the tunnel ended");
            }
            Err(error) => tracing::info!(%sandbox, request_id, error = chain(&error), "the tunnel did not open"),
        }
        drop(slot);
    }
}

#[allow(clippy::too_many_arguments)] // each phase of the path needs another of them
async fn pass(
    worker: &Worker,
    client: &Arc<Client>,
    caller: &Authenticated,
    way: Way,
    mut request: Box<Request<Incoming>>,
    record: &mut Record,
    switch: PassThrough,
) -> Result<Passed, RouterError> {
    let Way { to, rest, mut mount } = way;
    let route = &to.route;
    let budget = route.timeout.map_or(worker.config.proxy_timeout, |wanted| {
        wanted.min(worker.config.proxy_timeout)
    });

    let upgrade = requested_upgrade(&request);
    let slot = match worker.upgrades.as_ref().filter(|_| upgrade.is_some()) {
        Some(upgrades) => Some(upgrades.enter(client.ip, request.headers())?),
        None => None,
    };

    // Read before the app's copy of the head is made, which has no `Origin`.
    let page = mount
        .as_deref()
        .and_then(|mount| Page::behind(&request, mount, upgrade.is_some()));

    // The identity that must answer is part of the target: decided before anything is dialed.
    let request_id = request.headers().get(X_REQUEST_ID).cloned();
    let errand = Errand {
        route,
        request_id: request_id.as_ref(),
        over: HttpVersion::needed_by(&request),
    };
    let resolved = worker.resolver.resolve(route, budget).await;
    let target = resolved.map_err(|error| worker.forwarder.unresolved(&error, errand))?;
    record.upstream(target.endpoint);
    if let Some((limits, places)) = worker.limits.as_ref().zip(record.places())
        && let Err(error) = limits.enter_sandbox(places, route, &target)
    {
        hear_out(request).await;
        return Err(error);
    }

    let through_gate = target.expected.is_some();
    let shows_namespace = worker.resolver.shows_namespace(route, &target);
    let assertion = through_gate.then(|| caller.assertion.clone());
    sanitise(client, assertion, &to, rest, &mut request, upgrade.as_ref())?;
    if through_gate && record.is_traced() {
        request.headers_mut().insert(X_SANDGATE_TRACE, trace_context::ask());
    }
    // HTTP/1.1, unless the request has to stay what it came in.
    if errand.over == HttpVersion::Http1 {
        *request.version_mut() = Version::HTTP_11;
    }
    if let Some(mount) = &mut mount {
        mount.told(request.headers_mut());
        let may_act = page.map_or(Ok(()), |page| page.may_act(mount, worker.config.browser.as_ref()));
        may_act.inspect_err(|_| worker.metrics.denied(Some(&route.sandbox.namespace)))?;
    }
    let downstream = upgrade.is_some().then(|| hyper::upgrade::on(&mut *request));
    let (head, body) = request.into_parts();
    let body = Upload::new(body, worker.config.max_request_body, record.started());
    let watch = body.watch();
    record.upload(watch.clone());

    let request = Box::new(Request::from_parts(head, body));
    let (lease, mut response) = worker
        .forwarder
        .forward(&worker.resolver, errand, target, request, budget)
        .await
        .inspect_err(|_| worker.metrics.allowed(&route.sandbox.namespace))?;
    if through_gate {
        record.told(lease.key(), &response);
    }
    // A namespace is worth a label where more than a caller's word says that there is one.
    if shows_namespace && to.answers_first() {
        worker.metrics.learn(&route.sandbox.namespace);
    }
    heed_outcome(worker, errand, through_gate.then_some(&response))?;

    strip_ours(response.headers_mut());
    if let Some(mount) = &mount {
        mount.rewrite(response.headers_mut());
    }
    if let Some(browser) = &worker.config.browser {
        browser.answer(mount.as_deref(), response.headers_mut());
    }
    record.status(response.status());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let switches = upgrade
            .as_ref()
            .is_some_and(|upgrade| upgrade.is_answered_by(response.headers()));
        let Some((downstream, upgrade)) = downstream.zip(upgrade).filter(|_| switches) else {
            let sandbox = &route.sandbox;
            let reason = Reason::Other;
            tracing::info!(
                target: UNANSWERED, %sandbox, request_id = errand.id(), reason = reason.as_str(),
                "protocols were switched as nobody asked"
            );
            worker.metrics.error(&sandbox.namespace, reason);
            return Err(RouterError::Broken(sandbox.name.clone()));
        };
        if !switch.open() {
            return Err(RouterError::EarlyBytes);
        }
        let tunnel = Tunnel {
            downstream,
            upstream: hyper::upgrade::on(&mut response),
            protocol: upgrade.protocol(),
            slot,
            lease,
            sandbox: route.sandbox.clone(),
            request_id: request_id.as_ref().map(detached),
        };
        cross_hop(response.headers_mut(), Some(&upgrade));
        return Ok(Passed::Switched(response.map(|_| ()), tunnel));
    }
    if upgrade.is_some_and(|upgrade| upgrade.is_feigned_by(response.status())) {
        return Err(RouterError::Broken(route.sandbox.name.clone()));
    }
    cross_hop(response.headers_mut(), None);
    *response.version_mut() = Version::HTTP_11;
    Ok(Passed::Answered(lease, response, watch, budget))
}

/// What the gate said of itself, if the `response` is a gate's, belongs to the log and the metrics; the caller gets the answer
/// without it.
///
/// # Errors
/// The gate refused this router, and not the caller: that is for the router to answer.
fn heed_outcome(worker: &Worker, errand: Errand<'_>, response: Option<&Response<Incoming>>) -> Result<(), RouterError> {
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

/// Leaves in the head what the next hop may see, and adds what it must: to a gate, the port and the `assertion` of who calls.
/// The app is asked for `rest`, or for all that the router was asked for.
fn sanitise(
    client: &Client,
    assertion: Option<HeaderValue>,
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
    if let Some(assertion) = assertion {
        headers.insert(X_SANDBOX_PORT, to.port.clone());
        headers.insert(X_SANDGATE_CALLER, assertion);
    }
    // Origin form, whatever form it came in.
    *request.uri_mut() = Uri::from(target);
    Ok(())
}

/// Sets `X-Forwarded-*`, with the `host` that the client asked for. What a client says of itself counts only if it is a trusted proxy.
fn forwarded(client: &Client, host: Option<HeaderValue>, headers: &mut HeaderMap) {
    if client.trusted_proxy {
        forwarded_by_proxy(client, host, headers);
        return;
    }
    strip_forwarded(headers);
    headers.insert(X_FORWARDED_FOR, client.ip_text.clone());
    headers.insert(X_FORWARDED_PROTO, client.scheme.clone());
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// Adds the proxy to the chain, and keeps what it says of its own client.
fn forwarded_by_proxy(client: &Client, host: Option<HeaderValue>, headers: &mut HeaderMap) {
    let mut chain = Vec::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(client.ip_text.as_bytes());
    // Joined header values are a header value.
    if let Ok(chain) = HeaderValue::try_from(chain) {
        headers.insert(X_FORWARDED_FOR, chain);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, client.scheme.clone());
    }
    if !headers.contains_key(X_FORWARDED_HOST)
        && let Some(host) = host
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}
