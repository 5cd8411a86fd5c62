//! The gate's part of a trace. A gate can't export it: it dials nothing but its app. So it tells the router that asks, beside
//! the answer, and the router exports it in the gate's name. Hides when that is asked.

use crate::peer::Peer;
use http::{HeaderMap, Request};
use sandgate_mesh::contract::{TRACEPARENT, X_SANDGATE_SPAN};
use sandgate_mesh::trace_context::{GateSpan, SpanId, TraceParent, is_asked};
use std::time::Instant;

/// A span that lasts until the answer's head.
#[derive(Debug)]
pub(crate) struct Span {
    id: SpanId,
    began: Instant,
}

impl Span {
    /// Begins a span below the router's, if the router records that and asks for one; to the app, the request is then sent
    /// in this one. Anybody else may send what they like: it is as if they hadn't.
    pub(crate) fn begin<B>(peer: &Peer, request: &mut Request<B>) -> Option<Self> {
        if !peer.is_router() || !is_asked(request.headers()) {
            return None;
        }
        let parent = TraceParent::of(request.headers()).filter(|parent| parent.sampled)?;
        let own = parent.child(true);
        request.headers_mut().insert(TRACEPARENT, own.to_header());
        Some(Self {
            id: own.span,
            began: Instant::now(),
        })
    }

    /// Ends it, in the head of an answer that holds no header of ours but the gate's own.
    pub(crate) fn end(self, answer: &mut HeaderMap) {
        let told = GateSpan {
            span: self.id,
            took: self.began.elapsed(),
        };
        answer.insert(X_SANDGATE_SPAN, told.to_header());
    }
}
