//! The cookie that holds a token (RFC 6265). Hides in which ways a cookie of that name can be written.

use data_encoding::BASE64URL_NOPAD;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use sandgate_mesh::telemetry::seconds_since_1970;
use std::fmt::{self, Write};
use std::str::FromStr;
use std::time::SystemTime;

/// Longest name and value together that browsers take, in bytes (RFC 6265bis section 5.6).
const LONGEST: usize = 4096;
/// Longest name, in bytes: it leaves room for any token that the API server issues.
const LONGEST_NAME: usize = 64;

/// The cookie's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieName(Box<str>);

/// Why a text can't be the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CookieNameError {
    /// It isn't a token (RFC 9110 section 5.6.2) of a sensible length.
    #[error("must be a cookie's name: 1 to 64 letters, digits, \"-\", \"_\", \".\" and the like, no spaces")]
    NotAName,
}

impl FromStr for CookieName {
    type Err = CookieNameError;
    fn from_str(text: &str) -> Result<Self, CookieNameError> {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(is_token) {
            Ok(Self(text.into()))
        } else {
            Err(CookieNameError::NotAName)
        }
    }
}

impl fmt::Display for CookieName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which pages of other sites a browser sends a cookie for (RFC 6265bis section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SameSite {
    /// Those that lead the browser itself there.
    #[default]
    Lax,
    /// None.
    Strict,
    /// All.
    None,
}

impl SameSite {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Lax => "Lax",
            Self::Strict => "Strict",
            Self::None => "None",
        }
    }
}

impl CookieName {
    /// Whether browsers take a cookie of that name only if it is for all of a host and for no other host.
    pub fn is_bound_to_host(&self) -> bool {
        self.starts_with("__Host-")
    }

    /// Whether browsers take a cookie of that name only over TLS.
    pub fn is_bound_to_tls(&self) -> bool {
        ["__Host-", "__Secure-", "__Http-"]
            .iter()
            .any(|prefix| self.starts_with(prefix))
    }

    /// Browsers compare these in any case.
    fn starts_with(&self, prefix: &str) -> bool {
        let start = self.0.get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    }

    /// The token, if a browser would keep it and send it back as it is.
    pub(super) fn can_hold(&self, token: &[u8]) -> Option<HeaderValue> {
        if !is_cookie_value(token) || self.0.len() + token.len() > LONGEST {
            tracing::info!(
                bytes = token.len(),
                "no cookie can hold the token that came in an address"
            );
            return None;
        }
        let mut token = HeaderValue::from_bytes(token).ok()?;
        token.set_sensitive(true);
        Some(token)
    }

    /// What sets the cookie for everything below `path`, for as long as the token is good. Whoever has verified the token
    /// knows when it ends, which it says itself.
    pub(super) fn to_set(
        &self,
        token: &HeaderValue,
        path: &str,
        secure: bool,
        same_site: SameSite,
        now: SystemTime,
    ) -> Option<HeaderValue> {
        let text = token.to_str().ok()?;
        let mut cookie = format!("{self}={text}; Path={path}; HttpOnly; SameSite={}", same_site.as_str());
        if secure {
            cookie += "; Secure";
        }
        if let Some(end) = end(text) {
            let left = end.checked_sub(seconds_since_1970(now)).filter(|left| *left > 0)?;
            let _ = write!(cookie, "; Max-Age={left}");
        }
        let mut cookie = HeaderValue::try_from(cookie).ok()?;
        cookie.set_sensitive(true);
        Some(cookie)
    }
}

/// Whether a cookie can have this value (RFC 6265 section 4.1.1): there is no escape in which all servers agree.
pub(crate) fn is_cookie_value(value: &[u8]) -> bool {
    let is_octet = |b: &u8| b.is_ascii_graphic() && !b"\",;\\".contains(b);
    !value.is_empty() && value.iter().all(is_octet)
}

/// The second, counted from 1970, in which a token ends that says so: a JWT (RFC 7519 section 4.1.4) and scoped tokens have
/// their claims before the last dot.
fn end(token: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: u64,
    }
    let claims = token.rsplit('.').nth(1)?;
    let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).ok()?;
    serde_json::from_slice(&claims).ok().map(|Claims { exp }| exp)
}

/// Name and value of a cookie. One without a name is sent as its value alone, which may then look like any other cookie.
fn halves(pair: &[u8]) -> (&[u8], &[u8]) {
    let start = pair.iter().position(|b| !b"= \t".contains(b)).unwrap_or(pair.len());
    let mut halves = pair
        .get(start..)
        .unwrap_or_default()
        .splitn(2, |b| *b == b'=')
        .map(<[u8]>::trim_ascii);
    (halves.next().unwrap_or_default(), halves.next().unwrap_or_default())
}

/// Takes the cookie out of a request, wherever it stands, and leaves every other byte. Returns its values.
pub(super) fn take(headers: &mut HeaderMap, name: &CookieName) -> Vec<Vec<u8>> {
    let is_it = |pair: &&[u8]| halves(pair).0 == name.0.as_bytes();
    let mut values = Vec::new();
    for line in headers.get_all(COOKIE) {
        let its = line.as_bytes().split(|b| *b == b';').filter(is_it);
        values.extend(its.map(|pair| halves(pair).1.to_vec()));
    }
    if values.is_empty() {
        return values;
    }
    let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    for line in lines {
        let others = line.as_bytes().split(|b| *b == b';').filter(|pair| !is_it(pair));
        let others = others.collect::<Vec<_>>().join(&b';');
        let others = others.trim_ascii_start();
        // A part of a header value is one.
        if let Some(line) = HeaderValue::from_bytes(others).ok().filter(|line| !line.is_empty()) {
            headers.append(COOKIE, line);
        }
    }
    values
}

/// Removes what would set the cookie, in any spelling in which a browser could send it back, or take it for the same.
pub(super) fn disown(headers: &mut HeaderMap, name: &CookieName) {
    let sets_it = |line: &HeaderValue| {
        let pair = line.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
        halves(pair).0.eq_ignore_ascii_case(name.0.as_bytes())
    };
    if !headers.get_all(SET_COOKIE).iter().any(sets_it) {
        return;
    }
    let lines: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().cloned().collect();
    headers.remove(SET_COOKIE);
    for line in lines.into_iter().filter(|line| !sets_it(line)) {
        headers.append(SET_COOKIE, line);
    }
}

#[cfg(test)]
#[path = "cookie_tests.rs"]
mod tests;
