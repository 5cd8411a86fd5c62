//! `traceparent`, and what a gate tells of its span.

use http::{HeaderMap, HeaderValue};
use sandgate_mesh::contract::TRACEPARENT;
use sandgate_mesh::trace_context::{GateSpan, TraceParent};

/// A span is named in one way. The input is the value of either header.
pub fn trace_context(data: &[u8]) -> bool {
    let Ok(value) = HeaderValue::from_bytes(data) else {
        return false;
    };
    let (parent, told) = (parent(&value), GateSpan::from_header(&value));
    if let Some(told) = told {
        assert_eq!(told.to_header(), value, "one spelling");
        assert!(value.len() <= 64);
    }
    assert!(parent.is_none() || told.is_none());
    parent.is_some() || told.is_some()
}

fn parent(value: &HeaderValue) -> Option<TraceParent> {
    let mut headers = HeaderMap::new();
    headers.append(TRACEPARENT, value.clone());
    let parent = TraceParent::of(&headers)?;
    // Of another version or with other flags it may be; trace and span are where they always are.
    // Behind these, a later version may have any bytes.
    let (written, read) = (parent.to_header(), value.as_bytes());
    assert_eq!(written.as_bytes()[2..53], read[2..53]);
    assert!(!read.starts_with(b"ff"));
    let child = parent.child(!parent.sampled);
    assert_eq!((child.trace, child.sampled), (parent.trace, !parent.sampled));
    headers.insert(TRACEPARENT, written);
    assert_eq!(
        TraceParent::of(&headers),
        Some(parent),
        "what is sent is read as what was meant"
    );
    headers.append(TRACEPARENT, value.clone());
    assert_eq!(TraceParent::of(&headers), None, "two are none");
    Some(parent)
}
