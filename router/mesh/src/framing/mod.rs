//! Hides whether the bytes on an HTTP/1 connection are framed in exactly one way (RFC 9112).
//!
//! hyper does the real parsing, but it repairs: it takes bare LF for a line end, drops a Content-Length beside a
//! Transfer-Encoding, merges equal Content-Lengths, cuts a target at `#`. Every repair is a chance for another hop to
//! have read something else, which is how requests are smuggled. So a guard sits between the socket (or TLS stream) and
//! hyper, and hands on nothing that could be read in two ways: [`RequestGuard`] where requests arrive, [`ResponseGuard`]
//! where responses do. What a guard accepts is a strict subset of what hyper accepts, and means the same to both.
//!
//! A head is judged whole and handed on whole. Usually it arrives in one read: then it is judged where it lies, in
//! hyper's own buffer, and nothing is copied or allocated. Bodies flow through; only their framing is looked at.
//!
//! ```text
//! let (io, pass_through) = RequestGuard::new(stream, Arc::clone(&limits));
//! limits.server_builder().serve_connection(TokioIo::new(io), service).with_upgrades()
//! ```
//!
//! Serving code must build hyper with [`Limits::server_builder`] or [`Limits::client_builder`], or hyper's own limits
//! refuse first, and must ask [`refusal`] about every request before anything else.

mod body;
mod flags;
mod gate;
mod head;
mod http2;
mod request;
mod response;
#[cfg(test)]
mod tests;

pub use flags::LimitFlags;
pub use http2::judge_http2;
pub(crate) use http2::{ExtendedConnect, answer_extended_connect, judge_http2_answer};
pub(crate) use request::Kept;
pub use request::{PassThrough, RequestGuard, judge_request_bytes, refusal};
pub use response::{ExpectResponse, ResponseGuard, judge_response_bytes};

use crate::duration::display;
use http::StatusCode;
use hyper::{client, server};
use std::error::Error;
use std::io;
use std::time::Duration;

/// What hyper's parser holds without asking the allocator.
const HYPER_INLINE_HEADERS: usize = 100;
/// hyper's smallest read buffer, in bytes.
const HYPER_MIN_BUFFER: usize = 8 * 1024;
/// The longest time that a limit may be. A deadline must be a point in time that the system can name.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How much of a peer's message a guard takes before it refuses.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest head, and the longest trailer section, from the first byte to the empty line's last. At most this
    /// many bytes of an unfinished head, plus one read, are held per connection.
    pub head_bytes: usize,
    /// Field lines in a head, and in a trailer section.
    pub headers: usize,
    /// The longest request target, in bytes. hyper takes no more than 65,534.
    pub target_bytes: usize,
    /// From a request head's first byte to its last.
    pub head_time: Duration,
    /// Between requests, without a byte, and in an answer of which the peer takes nothing: at least this long, and at most
    /// twice as long. See [`crate::serve::http1`].
    pub idle_time: Duration,
    /// Informational (1xx) heads before a final one.
    pub informational: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 60 * 1024,
            headers: 100,
            target_bytes: 8 * 1024,
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(180),
            informational: 8,
        }
    }
}

impl Limits {
    /// What is wrong with these limits, by the names of the flags that both programs have for them. Empty if nothing is.
    pub fn problems(&self) -> Vec<String> {
        let counts = [
            ("--max-request-head-bytes", self.head_bytes, 1024..=1024 * 1024),
            ("--max-request-headers", self.headers, 1..=10_000),
            ("--max-request-target-bytes", self.target_bytes, 1..=65_534),
        ];
        let times = [
            ("--request-head-timeout", self.head_time),
            ("--idle-timeout", self.idle_time),
        ];
        let counts = counts
            .into_iter()
            .filter(|(_, value, fitting)| !fitting.contains(value))
            .map(|(flag, value, fitting)| format!("{flag} is {value}, not {} to {}", fitting.start(), fitting.end()));
        let times = times
            .into_iter()
            .filter(|(_, time)| time.is_zero() || *time > LONGEST)
            .map(|(flag, time)| {
                format!(
                    "{flag} is {}, not above 0 and at most {}",
                    display(time),
                    display(LONGEST)
                )
            });
        counts.chain(times).collect()
    }

    /// hyper for a connection behind a [`RequestGuard`], with its limits where the guard's are the first to be met.
    pub fn server_builder(&self) -> server::conn::http1::Builder {
        let mut builder = server::conn::http1::Builder::new();
        builder
            .max_buf_size(self.hyper_buffer())
            .max_header_size(self.hyper_head());
        if self.headers > HYPER_INLINE_HEADERS {
            builder.max_headers(self.headers);
        }
        builder
    }

    /// hyper for a connection behind a [`ResponseGuard`], with its limits where the guard's are the first to be met.
    pub fn client_builder(&self) -> client::conn::http1::Builder {
        let mut builder = client::conn::http1::Builder::new();
        builder
            .max_buf_size(self.hyper_buffer())
            .max_header_size(self.hyper_head());
        if self.headers > HYPER_INLINE_HEADERS {
            builder.max_headers(self.headers);
        }
        builder
    }

    /// hyper refuses a trailer section that reaches its limit, so it needs one byte more.
    fn hyper_head(&self) -> usize {
        self.head_bytes.saturating_add(1)
    }

    /// Room for the longest head and one ordinary read.
    fn hyper_buffer(&self) -> usize {
        self.head_bytes.saturating_add(HYPER_MIN_BUFFER)
    }
}

/// Declares [`Violation`] from one table: what a variant means, the status it is answered with, what the peer is told.
macro_rules! violations {
    ($($(#[$doc:meta])* $variant:ident => $status:ident, $detail:literal;)*) => {
        /// Why a message was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[error("{}", self.detail())]
        pub enum Violation {
            $($(#[$doc])* $variant,)*
        }

        impl Violation {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The status a refused request is answered with. What a refused response means is the caller's to say.
            pub fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)*
                }
            }

            /// One sentence for the peer that sent the message.
            pub fn detail(self) -> &'static str {
                match self {
                    $(Self::$variant => $detail,)*
                }
            }
        }
    };
}

violations! {
    /// The request line isn't `method SP target SP version`.
    RequestLine => BAD_REQUEST, "Request line is malformed.";
    /// The request's method is the one a refused request is shown to the service with.
    ReservedMethod => BAD_REQUEST, "Request method is reserved.";
    /// The request target is no URI, or has a fragment or bytes outside printable ASCII.
    Target => BAD_REQUEST, "Request target is malformed.";
    /// The request target is over [`Limits::target_bytes`].
    TargetTooLong => URI_TOO_LONG, "Request target is too long.";
    /// The message is neither HTTP/1.0 nor HTTP/1.1. HTTP/2's connection preface ends up here where a client may not use it.
    Version => BAD_REQUEST, "HTTP version must be 1.0 or 1.1.";
    /// The status line isn't `version SP status [SP reason]`, or its status isn't 100 to 599.
    StatusLine => BAD_REQUEST, "Status line is malformed.";
    /// A head or trailer section is over [`Limits::head_bytes`].
    HeadTooLarge => REQUEST_HEADER_FIELDS_TOO_LARGE, "Header section is too large.";
    /// A head or trailer section has more lines than [`Limits::headers`].
    TooManyHeaders => REQUEST_HEADER_FIELDS_TOO_LARGE, "Too many header fields.";
    /// A request head took longer than [`Limits::head_time`].
    SlowHead => REQUEST_TIMEOUT, "Header section did not arrive in time.";
    /// LF without CR.
    BareLineFeed => BAD_REQUEST, "A line ends with LF alone.";
    /// CR without LF.
    BareCarriageReturn => BAD_REQUEST, "A CR is not followed by LF.";
    /// A field line starts with white space (obs-fold).
    FoldedLine => BAD_REQUEST, "A header line starts with white space.";
    /// A field line has no colon.
    MissingColon => BAD_REQUEST, "A header line has no colon.";
    /// White space between a field's name and its colon.
    SpaceBeforeColon => BAD_REQUEST, "White space stands before a header's colon.";
    /// A field's name is empty or not a token.
    FieldName => BAD_REQUEST, "A header name has invalid bytes.";
    /// A control byte other than HTAB in a field's value.
    FieldValue => BAD_REQUEST, "A header value has control bytes.";
    /// A request in HTTP/1.1 without Host.
    HostMissing => BAD_REQUEST, "Host header is missing.";
    /// More than one Host line.
    HostRepeated => BAD_REQUEST, "Host header is repeated.";
    /// Content-Length isn't 1 to 19 digits, or over 2^63 - 1.
    ContentLength => BAD_REQUEST, "Content-Length is not a valid length.";
    /// More than one Content-Length line, equal or not.
    ContentLengthRepeated => BAD_REQUEST, "Content-Length is repeated.";
    /// Transfer-Encoding isn't exactly one line that says `chunked`.
    TransferEncoding => BAD_REQUEST, "Transfer-Encoding must be chunked, once.";
    /// Transfer-Encoding in HTTP/1.0.
    TransferEncodingInHttp10 => BAD_REQUEST, "Transfer-Encoding is not part of HTTP/1.0.";
    /// Both Content-Length and Transfer-Encoding.
    BothFramings => BAD_REQUEST, "Both Content-Length and Transfer-Encoding are present.";
    /// A body announced on a response that can't have one: Transfer-Encoding or a Content-Length other than 0 on 1xx
    /// or 204.
    BodyNotAllowed => BAD_REQUEST, "A body is announced where none can be.";
    /// More 1xx heads than [`Limits::informational`].
    TooManyInformational => BAD_REQUEST, "Too many informational responses.";
    /// A chunk's size isn't 1 to 16 hexadecimal digits, or over 2^63 - 1.
    ChunkSize => BAD_REQUEST, "A chunk size is malformed.";
    /// A control byte other than HTAB in a chunk extension.
    ChunkExtension => BAD_REQUEST, "A chunk extension has control bytes.";
    /// A chunk's size line is over 256 bytes, or a body's chunk extensions are over 16 KiB in all.
    ChunkLineTooLong => BAD_REQUEST, "Chunk extensions are too long.";
    /// A chunk's data isn't followed by CRLF.
    ChunkEnd => BAD_REQUEST, "A chunk does not end with CRLF.";
    /// Content-Length, Transfer-Encoding or Host in a trailer section.
    TrailerField => BAD_REQUEST, "A trailer field may not set the message's framing or host.";
    /// HTTP/2's `:authority` is none, or not what Host says.
    Authority => BAD_REQUEST, "The request's authority is malformed, or is not its Host.";
}

impl From<Violation> for io::Error {
    fn from(violation: Violation) -> Self {
        Self::new(io::ErrorKind::InvalidData, violation)
    }
}

/// Finds the violation behind an error: hyper wraps the `io::Error` that a guard returned for a bad body or response.
pub fn violation(error: &(dyn Error + 'static)) -> Option<Violation> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(violation) = error.downcast_ref::<Violation>() {
            return Some(*violation);
        }
        // An io::Error's source() skips the error it was made of.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
