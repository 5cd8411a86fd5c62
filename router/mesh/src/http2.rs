//! HTTP/2 (RFC 9113) at both ends of a hop: the settings of every connection, and what crosses between the two versions.
//! Hides hyper's and h2's builders: nothing else in the workspace makes an HTTP/2 connection for requests.
//!
//! | setting | value | why |
//! |---|---|---|
//! | streams at once | [`MAX_STREAMS`] | what one connection may make a program hold |
//! | header list | the limits' head, and a little above it | what is over is refused with our own words |
//! | `CONTINUATION` frames | as many as such a header list needs | a flood of them is `ENHANCE_YOUR_CALM` |
//! | streams reset before they are looked at | [`MAX_UNSEEN_RESETS`] | a rapid reset is `ENHANCE_YOUR_CALM` |
//! | streams that we reset ourselves | [`MAX_OWN_RESETS`] | a peer that goes on sending what is malformed is one, too |
//! | heads of one answer | the limits' informational ones, its own and its trailers | `heads.rs`; h2 would keep any number |
//! | answer held per stream | [`SEND_BUFFER`] | a peer that takes nothing of an answer costs no more |
//! | server push | off | nobody here pushes |
//! | pings | every [`PING_EVERY`], at the end that accepts | a peer that is gone must not hold its streams |
//!
//! Toward an upstream one connection carries one stream at a time and is kept for the next: what a connection says of who
//! is at its ends holds for exactly one request, as over HTTP/1.1, and no stream waits for another one's window.

mod heads;
mod reset;

pub(crate) use heads::CountedHeads;
pub use reset::Reset;

use crate::contract::{ALPN_MESH_HTTP1, ALPN_MESH_HTTP2};
use crate::framing::Limits;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, TE};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Uri, Version};
use hyper::{client, server};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

/// Streams that a peer may have open on one connection.
pub const MAX_STREAMS: u32 = 100;
/// Streams that a peer may have reset before the service has seen them.
pub const MAX_UNSEEN_RESETS: usize = 20;
/// Streams on one connection that may have to be reset for what their peer sent.
pub const MAX_OWN_RESETS: usize = 128;
/// Bytes of an answer that are held for one stream whose peer doesn't take them.
pub const SEND_BUFFER: usize = 32 * 1024;
/// How often a quiet peer is asked whether it is still there.
pub const PING_EVERY: Duration = Duration::from_secs(60);
/// How long its answer may take.
pub const PING_PATIENCE: Duration = Duration::from_secs(20);
/// The longest frame that is taken, in bytes: the least that RFC 9113 section 4.2 allows.
const MAX_FRAME: u32 = 16 * 1024;
/// What RFC 9113 section 6.5.2 adds for each field of a header list.
const FIELD_OVERHEAD: usize = 32;
/// How far over the limit a head may be and still get an answer that says so; one that is longer gets h2's bare 431.
const HEAD_MARGIN: usize = 8 * 1024;

/// The version of HTTP that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl HttpVersion {
    /// Its name in handshakes on the mesh port.
    pub const fn mesh_alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => ALPN_MESH_HTTP1,
            Self::Http2 => ALPN_MESH_HTTP2,
        }
    }

    /// The version that a request came in.
    pub fn of<B>(request: &Request<B>) -> Self {
        if request.version() == Version::HTTP_2 {
            Self::Http2
        } else {
            Self::Http1
        }
    }

    /// The version that a request has to travel in to its app. A call of gRPC that came over HTTP/2 needs it all the way;
    /// everything else goes in HTTP/1.1, which every app speaks. (gRPC-Web is made for HTTP/1.1.)
    pub fn needed_by<B>(request: &Request<B>) -> Self {
        let content_type = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let is_grpc = || {
            let (name, rest) = content_type?.split_at_checked(GRPC.len())?;
            Some(name.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
        };
        if request.version() == Version::HTTP_2 && request.method() == Method::POST && is_grpc() == Some(true) {
            Self::Http2
        } else {
            Self::Http1
        }
    }
}

/// The media type of gRPC's calls.
const GRPC: &[u8] = b"application/grpc";

/// How much a peer may send ahead of who reads it, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    stream: u32,
    connection: u32,
}

impl Windows {
    /// For clients that may be far away. Whoever may connect may have a router hold as much for each stream: requests that were
    /// let in aren't shed any more when memory is short. So it is about what a request has in buffers toward its sandbox. A
    /// connection has room for all of its streams: one that comes from a proxy is that of many callers, and whoever sends to an
    /// app that doesn't read keeps none of the others waiting.
    pub const FRONT: Self = Self {
        stream: 128 * 1024,
        connection: MAX_STREAMS * 128 * 1024,
    };
    /// For peers in the same cluster or pod. The gate holds little.
    pub const MESH: Self = Self {
        stream: 64 * 1024,
        connection: 128 * 1024,
    };
}

/// The largest header list that h2 takes. In HTTP/1.1 a head within the limits has fewer bytes.
fn header_list(limits: &Limits) -> u32 {
    let fields = limits.headers.saturating_mul(FIELD_OVERHEAD);
    let list = limits.head_bytes.saturating_add(fields).saturating_add(HEAD_MARGIN);
    u32::try_from(list).unwrap_or(u32::MAX)
}

/// hyper's server for a connection whose requests are judged by [`crate::framing::judge_http2`], and whose streams `executor` runs.
pub(crate) fn server_builder<E: Clone>(
    limits: &Limits,
    windows: Windows,
    executor: E,
) -> server::conn::http2::Builder<E> {
    let mut builder = server::conn::http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(header_list(limits))
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_local_error_reset_streams(MAX_OWN_RESETS)
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .adaptive_window(false)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE);
    builder
}

/// hyper's client for one stream at a time. It sends no pings: servers of gRPC close connections for too many of them,
/// and how long an answer may be silent is limited anyway.
pub(crate) fn client_builder(limits: &Limits) -> client::conn::http2::Builder<TokioExecutor> {
    let mut builder = client::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(header_list(limits))
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_local_error_reset_streams(MAX_OWN_RESETS)
        .initial_stream_window_size(Windows::MESH.stream)
        .initial_connection_window_size(Windows::MESH.connection)
        .adaptive_window(false)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

/// Gives a sanitised request the form in which hyper sends it over HTTP/2: its host as `:authority`, no header that concerns
/// one hop, and `te: trailers`, which servers of gRPC insist on. A second time it changes nothing.
pub(crate) fn to_http2<B>(request: &mut Request<B>) {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(CONNECTION);
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let host = request.headers_mut().remove(HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let Some(authority) = authority else { return };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    // All three parts are there, as `Uri` demands.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
#[path = "http2/tests.rs"]
mod tests;
