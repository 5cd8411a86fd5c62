//! The page that a browser's request comes from. A browser sends a cookie whoever asks, and opens a WebSocket for every page
//! (RFC 6455 section 10.2): where that would let a page act for the user, it has to be a page of the same origin.

use super::BrowserCredentials;
use crate::error::RouterError;
use crate::rewrite::Mount;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Method, Request};
use sandgate_mesh::headers::{Repeated, only};
use std::fmt;
use std::str::FromStr;

/// How a page's origin stands to the one that it asks (Fetch Metadata, section 2.4). No page can set it.
static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// An origin as browsers write it (RFC 6454 section 6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Box<str>);

/// Why a text can't be an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Browsers don't write one like that.
    #[error(
        "is no origin as browsers write it: http:// or https://, a host in small letters, a port only if it isn't the scheme's \
         own, and nothing behind it"
    )]
    NotAnOrigin,
}

impl FromStr for Origin {
    type Err = OriginError;
    fn from_str(text: &str) -> Result<Self, OriginError> {
        let schemes = [("https://", ":443"), ("http://", ":80")];
        let split = schemes
            .into_iter()
            .find_map(|(scheme, port)| Some((text.strip_prefix(scheme)?, port)));
        let (authority, own_port) = split.ok_or(OriginError::NotAnOrigin)?;
        let parsed = authority.parse::<Authority>().map_err(|_| OriginError::NotAnOrigin)?;
        let host = parsed.host();
        let canonical = match parsed.port() {
            Some(port) => format!("{host}:{}", port.as_u16()),
            None => host.to_owned(),
        };
        let in_brackets = host.starts_with('[') && host.ends_with(']');
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        let is_host = in_brackets && !host.bytes().any(|b| b.is_ascii_uppercase()) || host.bytes().all(is_name);
        if !host.is_empty() && is_host && canonical == authority && !authority.ends_with(own_port) {
            Ok(Self(text.into()))
        } else {
            Err(OriginError::NotAnOrigin)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a request says of the page that it comes from, where that matters.
#[derive(Debug)]
pub(crate) struct Page {
    origin: Result<Option<HeaderValue>, Repeated>,
    site: Result<Option<HeaderValue>, Repeated>,
    by_cookie: bool,
    /// The browser has shown it whoever asks, as it does with a cookie; others than browsers have one, too.
    by_certificate: bool,
}

impl Page {
    /// Reads it, if the request changes something with a cookie or `with_certificate` alone, or `switches` protocols. To be
    /// called before the app's copy of the head is made, which has no `Origin`.
    pub(crate) fn behind<B>(
        request: &Request<B>,
        mount: &Mount,
        switches: bool,
        with_certificate: bool,
    ) -> Option<Self> {
        let headers: &HeaderMap = request.headers();
        let by_cookie = mount.visit.is_by_cookie();
        let by_certificate = with_certificate && !headers.contains_key(AUTHORIZATION);
        let reads = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(request.method());
        (switches || (by_cookie || by_certificate) && !reads).then(|| Self {
            origin: only(headers, &ORIGIN).map(Option::<&_>::cloned),
            site: only(headers, &SEC_FETCH_SITE).map(Option::<&_>::cloned),
            by_cookie,
            by_certificate,
        })
    }

    /// Whether it may have the app do what it asks for.
    ///
    /// # Errors
    /// [`RouterError::ForeignPage`] and, for an upgrade without cookie or certificate, [`RouterError::ForeignOrigin`].
    pub(crate) fn may_act(&self, mount: &Mount, browser: Option<&BrowserCredentials>) -> Result<(), RouterError> {
        let says_same = |site: &HeaderValue| matches!(site.as_bytes(), b"same-origin" | b"none");
        let listed = |origin: &HeaderValue| {
            let mut origins = browser.into_iter().flat_map(|browser| &browser.allowed_origins);
            origins.any(|allowed| allowed.0.as_bytes() == origin.as_bytes())
        };
        let may = match (&self.origin, &self.site) {
            (Ok(Some(origin)), _) if listed(origin) => true,
            (Ok(Some(origin)), _) if !self.by_cookie => mount.is_own(origin),
            // The host alone doesn't tell a page that came without TLS.
            (Ok(Some(origin)), Ok(site)) => mount.is_own(origin) && site.as_ref().is_none_or(says_same),
            (Ok(None), _) if !self.by_cookie => true,
            (Ok(None), Ok(Some(site))) => says_same(site),
            (Err(Repeated), _) | (Ok(_), Err(Repeated)) | (Ok(None), Ok(None)) => false,
        };
        match (may, self.by_cookie || self.by_certificate) {
            (true, _) => Ok(()),
            (false, true) => Err(RouterError::ForeignPage),
            (false, false) => Err(RouterError::ForeignOrigin),
        }
    }
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
