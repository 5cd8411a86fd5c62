//! The end of a request: its access line and its metrics, written once, whenever its answer is over.

use crate::error::RouterError;
use crate::limits::Places;
use crate::metrics::{Decision, Metrics, method_label};
use crate::otlp::{self, OpenSpan, Tracer};
use crate::routing::Destination;
use crate::target::Target;
use http::header::USER_AGENT;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use sandgate_mesh::body::{BodyEnd, BodyError, Ending, UploadWatch};
use sandgate_mesh::contract::X_REQUEST_ID;
use sandgate_mesh::pool::Lease;
use sandgate_mesh::telemetry::{LONGEST_METHOD, LONGEST_PATH, LONGEST_TEXT, LineLog, cut, timestamp};
use sandgate_mesh::trace_context::TraceParent;
use serde::Serialize;
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::time::Instant;

/// What an access line says that is known before the answer.
#[derive(Debug)]
struct Line {
    log: LineLog,
    method: Cow<'static, str>,
    path: String,
    client_ip: IpAddr,
    user_agent: Option<String>,
    trace: Option<TraceParent>,
    request_id: String,
    caller: Option<String>,
    upstream: Option<SocketAddr>,
    /// What the answer says, if it is the router's own.
    error: Option<Cow<'static, str>>,
}

/// A request under way. It is counted, and logged if that is wanted, when it is dropped.
#[derive(Debug)]
pub(crate) struct Record {
    metrics: Arc<Metrics>,
    started: Instant,
    method: &'static str,
    to: Option<Arc<Destination>>,
    status: StatusCode,
    upload: Option<Arc<UploadWatch>>,
    /// Beside those of the upload: a tunnel's.
    bytes_in: u64,
    bytes_out: u64,
    line: Option<Box<Line>>,
    /// If the request is traced.
    span: Option<Box<OpenSpan>>,
    broken: bool,
    /// Its places among those of its caller and of its sandbox, where these are limited.
    places: Option<Box<Places>>,
}

#[derive(Serialize)]
struct AccessLine<'a> {
    time: String,
    log: &'static str,
    method: &'a str,
    path: &'a str,
    status: u16,
    duration_ms: f64,
    client_ip: IpAddr,
    sandbox_id: Option<&'a str>,
    sandbox_namespace: Option<&'a str>,
    bytes_in: u64,
    bytes_out: u64,
    user_agent: Option<&'a str>,
    request_id: &'a str,
    caller: Option<&'a str>,
    upstream: Option<SocketAddr>,
    trace_id: Option<String>,
    span_id: Option<String>,
    error: Option<&'a str>,
}

impl Record {
    /// Begins the record of a request. Its line is written to `log`, if there is one, and if the request isn't one of those
    /// that come every few seconds and say nothing.
    pub(crate) fn begin<B>(
        metrics: &Arc<Metrics>,
        log: Option<&LineLog>,
        request: &Request<B>,
        client_ip: IpAddr,
    ) -> Self {
        metrics.inflight.inc();
        let line = log.filter(|_| !is_probe(request.uri().path())).map(|log| {
            Box::new(Line {
                log: log.clone(),
                method: method_text(request.method()),
                path: cut(request.uri().path(), LONGEST_PATH).into_owned(),
                client_ip,
                user_agent: text(request.headers(), &USER_AGENT),
                trace: TraceParent::of(request.headers()),
                request_id: text(request.headers(), &X_REQUEST_ID).unwrap_or_default(),
                caller: None,
                upstream: None,
                error: None,
            })
        });
        Self {
            metrics: Arc::clone(metrics),
            started: Instant::now(),
            method: method_label(request.method()),
            to: None,
            // Stays so only if the client goes away before there is an answer; nginx made the number known.
            status: StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            upload: None,
            bytes_in: 0,
            bytes_out: 0,
            line,
            span: None,
            broken: false,
            places: None,
        }
    }

    /// Traces the request, if `tracer` chooses it; see [`Tracer::begin`].
    pub(crate) fn trace<B>(
        &mut self,
        tracer: &Arc<Tracer>,
        request: &mut Request<B>,
        client: IpAddr,
        scheme: &HeaderValue,
    ) {
        self.span = tracer.begin(request, client, scheme);
        if let Some(line) = &mut self.line {
            line.trace = TraceParent::of(request.headers());
        }
    }

    /// Whether it is traced.
    pub(crate) fn is_traced(&self) -> bool {
        self.span.is_some()
    }

    /// What log lines about the request are written in, so that they name its span. Nothing if it has none.
    pub(crate) fn log_span(&self) -> tracing::Span {
        let Some(span) = &self.span else {
            return tracing::Span::none();
        };
        let context = span.context();
        // Whatever level is logged: a line that is written names it.
        tracing::error_span!("request", trace_id = %context.trace, span_id = %context.span)
    }

    /// Counts whether its caller may make the request. For the one moment at which that is known.
    pub(crate) fn decided(&self, decision: Decision) {
        let namespace = self.to.as_ref().map(|to| &to.route.sandbox.namespace);
        self.metrics.decided(decision, namespace);
    }

    /// Hears what the gate that `target` leads to tells beside its answer.
    pub(crate) fn told<B>(&mut self, target: &Arc<Target>, answer: &Response<B>) {
        if let Some(span) = &mut self.span {
            span.told(target, answer, self.started.elapsed());
        }
    }

    /// Begins the record of a request whose head can't be read in one way, and so not said.
    pub(crate) fn unreadable(metrics: &Arc<Metrics>, log: Option<&LineLog>, client_ip: IpAddr) -> Self {
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(b"-").unwrap_or_default();
        let mut record = Self::begin(metrics, log, &request, client_ip);
        if let Some(line) = &mut record.line {
            "-".clone_into(&mut line.path);
        }
        record
    }

    /// When the request began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn caller(&mut self, caller: &impl ToString) {
        if let Some(line) = &mut self.line {
            line.caller = Some(caller.to_string());
        }
    }

    /// Holds these for as long as the request lasts.
    pub(crate) fn hold(&mut self, places: Box<Places>) {
        self.places = Some(places);
    }

    pub(crate) fn places(&mut self) -> Option<&mut Places> {
        self.places.as_deref_mut()
    }

    pub(crate) fn destination(&mut self, to: &Arc<Destination>) {
        self.to = Some(Arc::clone(to));
    }

    pub(crate) fn upstream(&mut self, upstream: SocketAddr) {
        if let Some(line) = &mut self.line {
            line.upstream = Some(upstream);
        }
    }

    pub(crate) fn upload(&mut self, upload: Option<Arc<UploadWatch>>) {
        self.upload = upload;
    }

    /// Says why the router answers itself.
    pub(crate) fn refused(&mut self, error: &RouterError) {
        if let Some(line) = &mut self.line {
            line.error = Some(error.detail());
        }
    }

    pub(crate) fn status(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// Says that the answer broke off: its status doesn't. Of the request's ID the record knows as much as its line.
    fn broke_off(&mut self, error: BodyError, bytes: u64) {
        self.broken = true;
        let _entered = self.log_span().entered();
        let Some(to) = &self.to else { return };
        let request_id = self.line.as_ref().map(|line| line.request_id.as_str());
        tracing::info!(sandbox = %to.route.sandbox, request_id, %error, bytes, "the answer broke off");
    }

    pub(crate) fn bytes_in(&mut self, bytes: u64) {
        self.bytes_in = bytes;
    }

    pub(crate) fn bytes_out(&mut self, bytes: u64) {
        self.bytes_out = bytes;
    }
}

/// A header as a line has it.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.map(|text| cut(text, LONGEST_TEXT).into_owned())
}

/// Whether a path is that of a probe or of a scraper, also of an app's own: the Go router's log leaves out the same ones.
fn is_probe(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// A method as a line has it: the common ones cost nothing.
fn method_text(method: &Method) -> Cow<'static, str> {
    match method_label(method) {
        label if label == method.as_str() => label.into(),
        _ => cut(method.as_str(), LONGEST_METHOD).into_owned().into(),
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        self.metrics.inflight.dec();
        let sandbox = self.to.as_ref().map(|to| &to.route.sandbox);
        self.metrics.request(
            self.method,
            self.status,
            sandbox.map(|key| &key.namespace),
            elapsed.as_secs_f64(),
        );
        let bytes_in = self.bytes_in + self.upload.as_ref().map_or(0, |upload| upload.bytes());
        if let Some(span) = self.span.take() {
            span.end(otlp::End {
                took: elapsed,
                status: self.status,
                to: self.to.clone(),
                bytes_in,
                bytes_out: self.bytes_out,
                broken: self.broken,
            });
        }
        let Some(line) = &self.line else { return };
        line.log.write(&AccessLine {
            time: timestamp(),
            log: "access",
            method: &line.method,
            path: &line.path,
            status: self.status.as_u16(),
            duration_ms: elapsed.as_secs_f64() * 1e3,
            client_ip: line.client_ip,
            sandbox_id: sandbox.map(|key| key.name.as_str()),
            sandbox_namespace: sandbox.map(|key| key.namespace.as_str()),
            bytes_in,
            bytes_out: self.bytes_out,
            user_agent: line.user_agent.as_deref(),
            request_id: &line.request_id,
            caller: line.caller.as_deref(),
            upstream: line.upstream,
            trace_id: line.trace.map(|parent| parent.trace.to_string()),
            span_id: line.trace.map(|parent| parent.span.to_string()),
            error: line.error.as_deref(),
        });
    }
}

/// What happens when an answer's body is over: the connection goes back, the record is written.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) lease: Lease<Arc<Target>>,
    pub(crate) record: Record,
}

impl BodyEnd for End {
    fn ended(mut self, ending: Ending, bytes: u64) {
        self.record.bytes_out(bytes);
        match ending {
            Ending::Complete => self.lease.give_back(),
            Ending::Broken(error) => self.record.broke_off(error, bytes),
            Ending::Unread => {}
        }
    }
}
