//! A request as a span. Hides what of it is recorded, and when: nothing is, of a request that isn't sampled.

use crate::config::Sampler;
use crate::metrics::method_label;
use crate::routing::Destination;
use crate::target::Target;
use http::header::USER_AGENT;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use prometheus::IntCounter;
use sandgate_mesh::contract::{TRACEPARENT, TRACESTATE, X_SANDGATE_OUTCOME, X_SANDGATE_SPAN};
use sandgate_mesh::headers::only;
use sandgate_mesh::outcome::Outcome;
use sandgate_mesh::telemetry::{LONGEST_METHOD, LONGEST_PATH, LONGEST_TEXT, cut};
use sandgate_mesh::trace_context::{GateSpan, SpanId, TraceParent};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// Longest `tracestate` that is exported, in bytes: what W3C Trace Context section 3.3.1.5 asks everybody to carry.
const LONGEST_STATE: usize = 512;

/// Makes spans of requests.
#[derive(Debug)]
pub(crate) struct Tracer {
    sampler: Sampler,
    queue: mpsc::Sender<Ended>,
    /// Spans for which the queue had no room.
    dropped: IntCounter,
}

/// What is known of a request before its answer.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) context: TraceParent,
    pub(super) parent: Option<SpanId>,
    pub(super) state: String,
    pub(super) at: SystemTime,
    /// One of the common methods, or `other`.
    pub(super) method: &'static str,
    /// The method as it was sent, if it is none of these.
    pub(super) other_method: Option<String>,
    pub(super) path: String,
    pub(super) scheme: HeaderValue,
    pub(super) version: Version,
    pub(super) client: IpAddr,
    pub(super) user_agent: Option<String>,
}

/// What a gate told of its part.
#[derive(Debug)]
pub(super) struct AtGate {
    pub(super) span: GateSpan,
    /// From the request's beginning until its answer's head was here.
    pub(super) answered: Duration,
    pub(super) status: StatusCode,
    pub(super) outcome: Option<Outcome>,
    pub(super) gate: Arc<Target>,
}

/// What is known of a request at its end.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) took: Duration,
    pub(crate) status: StatusCode,
    pub(crate) to: Option<Arc<Destination>>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Whether the answer broke off.
    pub(crate) broken: bool,
}

/// All of that.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) begun: Begun,
    pub(super) gate: Option<AtGate>,
    pub(super) end: End,
}

/// The span of a request that isn't over.
#[derive(Debug)]
pub(crate) struct OpenSpan {
    tracer: Arc<Tracer>,
    begun: Begun,
    gate: Option<AtGate>,
}

impl Tracer {
    pub(super) fn new(sampler: Sampler, queue: mpsc::Sender<Ended>, dropped: IntCounter) -> Self {
        Self {
            sampler,
            queue,
            dropped,
        }
    }

    /// Begins the span of a request, in the trace that its client names if it names one, and names it to whoever gets the
    /// request next. `None` if nothing is to be recorded.
    pub(crate) fn begin<B>(
        self: &Arc<Self>,
        request: &mut Request<B>,
        client: IpAddr,
        scheme: &HeaderValue,
    ) -> Option<Box<OpenSpan>> {
        let parent = TraceParent::of(request.headers());
        let mut context = parent.map_or_else(|| TraceParent::root(false), |parent| parent.child(false));
        context.sampled = self.sampler.samples(parent.as_ref(), context.trace);
        // What the client says holds already.
        if !context.sampled && parent.is_some_and(|parent| !parent.sampled) {
            return None;
        }
        let headers = request.headers_mut();
        headers.insert(TRACEPARENT, context.to_header());
        if parent.is_none() {
            // What vendors said of a trace that can't be read (W3C Trace Context section 3.3).
            headers.remove(TRACESTATE);
        }
        context.sampled.then(|| {
            Box::new(OpenSpan {
                tracer: Arc::clone(self),
                begun: Begun::new(context, parent, request, client, scheme),
                gate: None,
            })
        })
    }
}

impl Begun {
    fn new<B>(
        context: TraceParent,
        parent: Option<TraceParent>,
        request: &Request<B>,
        client: IpAddr,
        scheme: &HeaderValue,
    ) -> Self {
        let method = method_label(request.method());
        let sent = request.method().as_str();
        let user_agent = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
        Self {
            context,
            parent: parent.map(|parent| parent.span),
            state: state(request.headers()),
            at: SystemTime::now(),
            method,
            other_method: (method != sent).then(|| cut(sent, LONGEST_METHOD).into_owned()),
            path: cut(request.uri().path(), LONGEST_PATH).into_owned(),
            scheme: scheme.clone(),
            version: request.version(),
            client,
            user_agent: user_agent.map(|text| cut(text, LONGEST_TEXT).into_owned()),
        }
    }
}

/// What vendors say, if it is short enough and said once.
fn state(headers: &HeaderMap) -> String {
    let state = only(headers, &TRACESTATE).ok().flatten();
    let state = state.and_then(|state| state.to_str().ok());
    state
        .filter(|state| state.len() <= LONGEST_STATE)
        .unwrap_or_default()
        .to_owned()
}

impl OpenSpan {
    /// Its place in the trace.
    pub(crate) fn context(&self) -> TraceParent {
        self.begun.context
    }

    /// Hears what the gate that `gate` leads to, and that has proven itself, tells of its part, `after` the request began.
    pub(crate) fn told<B>(&mut self, gate: &Arc<Target>, answer: &Response<B>, after: Duration) {
        let header = only(answer.headers(), &X_SANDGATE_SPAN).ok().flatten();
        let Some(span) = header.and_then(GateSpan::from_header) else {
            return;
        };
        // Spans of one trace are told apart by their IDs.
        if span.span == self.begun.context.span || Some(span.span) == self.begun.parent {
            return;
        }
        self.gate = Some(AtGate {
            span,
            answered: after,
            status: answer.status(),
            outcome: answer.headers().get(X_SANDGATE_OUTCOME).and_then(Outcome::from_header),
            gate: Arc::clone(gate),
        });
    }

    /// Ends it. Never blocks: what the queue has no room for is counted.
    pub(crate) fn end(self: Box<Self>, end: End) {
        let Self { tracer, begun, gate } = *self;
        let spans = 1 + u64::from(gate.is_some());
        if tracer.queue.try_send(Ended { begun, gate, end }).is_err() {
            tracer.dropped.inc_by(spans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_blocks_nobody_and_is_counted() {
        let (sender, mut queue) = mpsc::channel(2);
        let dropped = IntCounter::new("dropped_total", "dropped").unwrap();
        let tracer = Arc::new(Tracer::new(Sampler::default(), sender, dropped.clone()));
        for _ in 0..5 {
            let mut request = Request::new(());
            let span = tracer.begin(&mut request, [127, 0, 0, 1].into(), &HeaderValue::from_static("http"));
            let span = span.unwrap();
            assert_eq!(TraceParent::of(request.headers()), Some(span.context()));
            span.end(End {
                took: Duration::from_secs(1),
                status: StatusCode::OK,
                to: None,
                bytes_in: 0,
                bytes_out: 0,
                broken: false,
            });
        }
        assert_eq!(dropped.get(), 3);
        assert!(queue.try_recv().is_ok() && queue.try_recv().is_ok() && queue.try_recv().is_err());
    }

    #[test]
    fn what_is_not_sampled_says_so_to_the_next_and_is_not_recorded() {
        let (sender, _queue) = mpsc::channel(1);
        let dropped = IntCounter::new("dropped_total", "dropped").unwrap();
        let off = Sampler::parse("always_off", "").unwrap();
        let tracer = Arc::new(Tracer::new(off, sender, dropped));
        let sampled = TraceParent::root(true);
        for parent in [None, Some(sampled)] {
            let mut request = Request::new(());
            if let Some(parent) = parent {
                request.headers_mut().insert(TRACEPARENT, parent.to_header());
            }
            let span = tracer.begin(&mut request, [127, 0, 0, 1].into(), &HeaderValue::from_static("http"));
            assert!(span.is_none());
            let told = TraceParent::of(request.headers()).unwrap();
            assert!(!told.sampled);
            assert!(parent.is_none_or(|parent| parent.trace == told.trace && parent.span != told.span));
        }
    }
}
