//! Judges requests that arrive over HTTP/2. h2 has refused what is malformed by its framing, its pseudo-headers or its body's
//! length; what is left is what HTTP/1.1 would read in another way, and the caps. What passes has the form of HTTP/1.1, so that
//! nobody behind this needs to know of two.

use super::head::is_target;
use super::request::{is_reserved, stand_in_request};
use super::{Limits, Violation};
use crate::headers::only;
use data_encoding::BASE64;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::ext::Protocol;

/// What a request line has beside method and target, and a head beside its lines.
const REQUEST_LINE: usize = b"  HTTP/1.1\r\n\r\n".len();
/// What a field's line has beside name and value.
const FIELD_LINE: usize = b": \r\n".len();

/// Marks the handshake of a WebSocket that came as an extended CONNECT (RFC 8441).
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExtendedConnect;

/// Gives a request that arrived over HTTP/2 the form that it has in HTTP/1.1: origin form, its authority in `Host`, one
/// `Cookie`. An extended CONNECT for a WebSocket becomes the handshake of RFC 6455. One that is refused becomes the stand-in
/// that [`refusal`](super::refusal) recognises.
pub fn judge_http2<B>(mut request: Request<B>, limits: &Limits) -> Request<B> {
    match judge(&mut request, limits) {
        Ok(()) => request,
        Err(violation) => stand_in_request(violation, request.into_body()),
    }
}

fn judge<B>(request: &mut Request<B>, limits: &Limits) -> Result<(), Violation> {
    if is_reserved(request.method()) {
        return Err(Violation::ReservedMethod);
    }
    name_host(request)?;
    let headers = request.headers_mut();
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Violation::ContentLengthRepeated);
    }
    // RFC 9113 section 8.2.1. HTTP/1.1 would drop it, and h2 doesn't look.
    let padded = |value: &HeaderValue| matches!(value.as_bytes(), [b' ' | b'\t', ..] | [.., b' ' | b'\t']);
    if headers.values().any(padded) {
        return Err(Violation::FieldValue);
    }
    join_cookies(headers);
    let connects = request.method() == Method::CONNECT;
    let length = judge_target(request, limits)?;
    judge_size(request, length, limits)?;
    if connects {
        become_handshake(request);
    }
    Ok(())
}

/// Sees to it that `Host` is there, once, and says the same as `:authority` (RFC 9113 section 8.3.1).
fn name_host<B>(request: &mut Request<B>) -> Result<(), Violation> {
    let host = only(request.headers(), &HOST).map_err(|_| Violation::HostRepeated)?;
    let Some(authority) = request.uri().authority().map(http::uri::Authority::as_str) else {
        return host.map(|_| ()).ok_or(Violation::HostMissing);
    };
    if authority.contains('@') {
        return Err(Violation::Authority);
    }
    match host {
        Some(host) if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => Err(Violation::Authority),
        Some(_) => Ok(()),
        None => {
            let host = HeaderValue::from_str(authority).map_err(|_| Violation::Authority)?;
            request.headers_mut().insert(HOST, host);
            Ok(())
        }
    }
}

/// Clients split `Cookie` so that its parts compress well (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Joined header values are a header value.
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookie);
    }
}

/// Leaves of the target what HTTP/1.1 calls its origin form, and returns its length. Of CONNECT without a protocol it stays
/// the authority.
fn judge_target<B>(request: &mut Request<B>, limits: &Limits) -> Result<usize, Violation> {
    let Some(target) = request.uri().path_and_query().cloned() else {
        return Ok(0);
    };
    let text = target.as_str();
    if text.len() > limits.target_bytes {
        return Err(Violation::TargetTooLong);
    }
    let in_form = text.starts_with('/') || text == "*" && *request.method() == Method::OPTIONS;
    if !in_form || !is_target(text.as_bytes()) {
        return Err(Violation::Target);
    }
    let length = text.len();
    *request.uri_mut() = Uri::from(target);
    Ok(length)
}

/// Holds the head to the caps as HTTP/1.1 would write it.
fn judge_size<B>(request: &Request<B>, target: usize, limits: &Limits) -> Result<(), Violation> {
    let headers = request.headers();
    if headers.len() > limits.headers {
        return Err(Violation::TooManyHeaders);
    }
    let line = |(name, value): (&http::HeaderName, &HeaderValue)| name.as_str().len() + value.len() + FIELD_LINE;
    let lines: usize = headers.iter().map(line).sum();
    if request.method().as_str().len() + target + REQUEST_LINE + lines > limits.head_bytes {
        return Err(Violation::HeadTooLarge);
    }
    Ok(())
}

/// Makes the handshake of RFC 6455 of an extended CONNECT for a WebSocket. Any other CONNECT stays one.
fn become_handshake<B>(request: &mut Request<B>) {
    let protocol = request.extensions_mut().remove::<Protocol>();
    if protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
        return;
    }
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    request.extensions_mut().insert(ExtendedConnect);
    let key = BASE64.encode(&fastrand::u128(..).to_be_bytes());
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is text.
    let key = HeaderValue::try_from(key).unwrap_or(HeaderValue::from_static(""));
    headers.insert(SEC_WEBSOCKET_KEY, key);
}

/// What answers an extended CONNECT whose handshake was answered so: success means that the stream is the WebSocket now
/// (RFC 8441 section 5), so nothing else may be one.
pub(crate) fn answer_extended_connect<B>(response: &mut Response<B>) {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *response.status_mut() = StatusCode::OK;
        for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
            response.headers_mut().remove(name);
        }
    } else if response.status().is_success() {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
    }
}

/// Whether an answer that came over HTTP/2 is within the caps.
pub(crate) fn judge_http2_answer<B>(response: &Response<B>, limits: &Limits) -> Result<(), Violation> {
    let headers = response.headers();
    if headers.len() > limits.headers {
        return Err(Violation::TooManyHeaders);
    }
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Violation::ContentLengthRepeated);
    }
    let lines: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD_LINE)
        .sum();
    if lines > limits.head_bytes {
        return Err(Violation::HeadTooLarge);
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests/http2.rs"]
mod tests;
