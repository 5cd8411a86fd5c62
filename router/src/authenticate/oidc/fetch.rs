//! One document over HTTPS: bounded in size and time, and from nowhere but where it was asked for.

use crate::config::HttpsUrl;
use crate::outbound::{Cause, Outbound};
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, HOST, HeaderMap};
use http::{Request, StatusCode};
use http_body_util::Empty;
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::tls::{HandshakeError, TlsError};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::RootCertStore;

/// Longest document in bytes. Large issuers' key sets have some 20 KiB.
const MAX_BODY: usize = 512 * 1024;

/// A document, and how long it may be kept, where its server says so.
pub(super) struct Document {
    pub(super) body: Bytes,
    pub(super) max_age: Option<Duration>,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no connection to {0}: {1}; a NetworkPolicy may be in the way")]
    Connect(String, std::io::Error),
    #[error("{0}: {1}; compare with --authz-oidc-ca-file")]
    Tls(String, HandshakeError),
    #[error("{0} answers with a redirect, which is not followed")]
    Redirect(String),
    #[error("{0} answers with status {1}")]
    Status(String, StatusCode),
    #[error("{0} broke off: {1}")]
    Broken(String, String),
    #[error("{0} answers with more than 512 KiB, or breaks off")]
    Body(String),
    #[error("{0} can't be asked for: {1}")]
    Request(String, http::Error),
    #[error("{0} can't be asked for: {1}")]
    Unasked(String, TlsError),
}

/// Gets a document. Whoever asks sets the time limit.
pub(super) async fn get(url: &HttpsUrl, roots: Arc<RootCertStore>) -> Result<Document, FetchError> {
    let text = || url.to_string();
    let request = Request::get(url.uri().clone())
        .header(HOST, url.authority())
        .header(ACCEPT, "application/json")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| FetchError::Request(text(), error))?;
    let outbound = Outbound::new(HttpVersion::Http1, roots, MAX_BODY);
    let outbound = outbound.map_err(|error| FetchError::Unasked(text(), error))?;
    let answer = outbound.ask(request).await;
    let answer = answer.map_err(|error| match error.into() {
        Cause::Connect(error) => FetchError::Connect(text(), error),
        Cause::Tls(error) => FetchError::Tls(text(), error),
        Cause::Broken(error) => FetchError::Broken(text(), error),
    })?;
    let (head, body) = answer.into_parts();
    match head.status {
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(FetchError::Redirect(text())),
        status => return Err(FetchError::Status(text(), status)),
    }
    let body = outbound.read(body).await;
    Ok(Document {
        body: body.map_err(|_| FetchError::Body(text()))?,
        max_age: max_age(&head.headers),
    })
}

/// `max-age` of `Cache-Control` (RFC 9111 section 5.2.2.1).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let fields = headers
        .get_all(CACHE_CONTROL)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let mut directives = fields.flat_map(|field| field.split(',')).map(str::trim);
    let seconds = directives.find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        name.eq_ignore_ascii_case("max-age")
            .then(|| value.trim_matches('"').parse().ok())?
    });
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_document_may_be_kept_is_what_its_server_says() {
        let of = |fields: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(CACHE_CONTROL, http::HeaderValue::from_static(field));
            }
            max_age(&headers).map(|age| age.as_secs())
        };
        assert_eq!(of(&["public, max-age=3600, must-revalidate"]), Some(3600));
        assert_eq!(of(&["public", "Max-Age=\"5\""]), Some(5));
        for none in [
            &[][..],
            &["no-store"],
            &["max-age=soon"],
            &["max-age=-1"],
            &["s-maxage=9"],
        ] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
