//! The place of a request in a trace: W3C Trace Context's `traceparent`, and what a gate tells the router of its own part.
//! Hides both spellings. Whatever isn't spelled exactly so is nothing.

use crate::contract::{TRACEPARENT, X_SANDGATE_TRACE};
use crate::headers::only;
use http::{HeaderMap, HeaderValue};
use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::time::Duration;

/// Length of a `traceparent` of version 00 in bytes.
const LENGTH: usize = 55;
/// The flag that says that a span is recorded.
const SAMPLED: u8 = 1;
/// How the router asks for a gate's span, and how the gate's answer begins.
const VERSION: &str = "v1";
/// Longest answer of a gate in bytes.
const LONGEST_ANSWER: usize = 64;

/// What all spans of a trace have in common. Its text is 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// One span of a trace. Its text is 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    /// As it is sent.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }

    fn random() -> Self {
        Self(NonZeroU128::new(fastrand::u128(1..)).unwrap_or(NonZeroU128::MIN))
    }
}

impl SpanId {
    /// As it is sent.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }

    fn random() -> Self {
        Self(NonZeroU64::new(fastrand::u64(1..)).unwrap_or(NonZeroU64::MIN))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A span as `traceparent` names it (W3C Trace Context section 3.2). Of its flags only `sampled` is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The span in it.
    pub span: SpanId,
    /// Whether that span is recorded.
    pub sampled: bool,
}

impl TraceParent {
    /// The span that a head names as the one that it was sent in. None if there is none, several or a malformed one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(only(headers, &TRACEPARENT).ok().flatten()?.as_bytes())
    }

    /// The first span of a new trace.
    pub fn root(sampled: bool) -> Self {
        Self {
            trace: TraceId::random(),
            span: SpanId::random(),
            sampled,
        }
    }

    /// A new span in the same trace.
    #[must_use]
    pub fn child(self, sampled: bool) -> Self {
        Self {
            span: SpanId::random(),
            sampled,
            ..self
        }
    }

    /// The value of the header.
    pub fn to_header(self) -> HeaderValue {
        let flags = if self.sampled { SAMPLED } else { 0 };
        let text = format!("00-{}-{}-{flags:02x}", self.trace, self.span);
        // Digits and hyphens are a header value.
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
    }

    /// A later version may append fields, which follow a hyphen; what version 00 has is the same there.
    fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(LENGTH)?;
        let mut parts = head.split(|byte| *byte == b'-');
        let mut next = |length: usize| parts.next().filter(|part| part.len() == length).and_then(hexadecimal);
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let complete = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => matches!(rest, [] | [b'-', ..]),
        };
        complete.then_some(())?;
        Some(Self {
            trace: TraceId(NonZeroU128::new(trace)?),
            span: SpanId(u64::try_from(span).ok().and_then(NonZeroU64::new)?),
            sampled: flags & u128::from(SAMPLED) != 0,
        })
    }
}

/// At most 32 lower-case digits: upper-case ones are malformed.
fn hexadecimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// The value of [`X_SANDGATE_TRACE`], with which a router asks for the gate's span.
pub fn ask() -> HeaderValue {
    HeaderValue::from_static(VERSION)
}

/// Whether a head asks for the gate's span.
pub fn is_asked(headers: &HeaderMap) -> bool {
    only(headers, &X_SANDGATE_TRACE).is_ok_and(|value| value.is_some_and(|value| value == VERSION))
}

/// What a gate tells of its part of a trace, in [`X_SANDGATE_SPAN`](crate::contract::X_SANDGATE_SPAN). It tells no time of
/// day: clocks differ, and the router knows between which moments it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateSpan {
    /// Its span, a child of the router's.
    pub span: SpanId,
    /// From the request's head to the answer's, in whole microseconds.
    pub took: Duration,
}

impl GateSpan {
    /// The value of the header.
    pub fn to_header(self) -> HeaderValue {
        let text = format!("{VERSION};{};{}", self.span, self.took.as_micros());
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
    }

    /// What a gate's answer tells. None if nothing, or anything but what [`to_header`](Self::to_header) writes.
    pub fn from_header(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok().filter(|text| text.len() <= LONGEST_ANSWER)?;
        let mut parts = text.strip_prefix(VERSION)?.strip_prefix(';')?.split(';');
        let (span, took) = (parts.next()?, parts.next()?);
        let span = u64::try_from(hexadecimal(span.as_bytes())?).ok()?;
        let read = Self {
            span: SpanId(NonZeroU64::new(span)?),
            took: Duration::from_micros(took.parse().ok()?),
        };
        // So each has one spelling.
        (read.to_header() == *value).then_some(read)
    }
}

#[cfg(test)]
#[path = "trace_context_tests.rs"]
mod tests;
