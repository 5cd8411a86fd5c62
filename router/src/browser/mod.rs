//! Credentials of browsers (upstream #1446): a token in the address, which the answer turns into a cookie, and that cookie.
//! Hides how a browser presents a token: to whoever authenticates it stands in `Authorization`, whatever kind of token it is.

mod cookie;
mod page;
mod query;

pub(crate) use cookie::is_cookie_value;
pub use cookie::{CookieName, SameSite};
pub use page::Origin;
pub(crate) use page::Page;
pub use query::ParameterName;

use crate::error::RouterError;
use crate::rewrite::{Mount, Presented, Visit};
use crate::routing::Way;
use http::header::{AUTHORIZATION, CACHE_CONTROL, REFERRER_POLICY, SET_COOKIE, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request};
use std::time::SystemTime;

/// What a browser may present in place of `Authorization` where a URL leads to an app, and how it is told to keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrowserCredentials {
    /// The cookie that holds the token.
    pub cookie: CookieName,
    /// The query parameter that holds one, too.
    pub parameter: Option<ParameterName>,
    /// Which pages of other sites a browser sends the cookie for.
    pub same_site: SameSite,
    /// Whether a browser sends the cookie over TLS only.
    pub secure: bool,
    /// Whose pages may act with the cookie, beside those of the host itself.
    pub allowed_origins: Vec<Origin>,
}

impl BrowserCredentials {
    /// Takes what is the router's own out of a request: the cookie, and where its URL leads to an app the parameter. What of
    /// it counts becomes the request's `Authorization`. To be called before anybody looks for a credential.
    ///
    /// # Errors
    /// [`RouterError::NoCredential`] for one that occurs twice: two readers could take different ones.
    pub(crate) fn take<B>(
        &self,
        request: &mut Request<B>,
        way: &mut Result<Way, RouterError>,
    ) -> Result<(), RouterError> {
        let cookies = cookie::take(request.headers_mut(), &self.cookie);
        if let Some(parameter) = &self.parameter {
            query::clean_referer(request.headers_mut(), parameter);
        }
        let mount = match way {
            // Routing headers are set by scripts, and those can set `Authorization` as well.
            Ok(Way { mount: None, .. }) => return Ok(()),
            Ok(Way { mount, .. }) => mount.as_deref_mut(),
            // It will be refused; by what, only those learn who are known.
            Err(_) => None,
        };
        let found = match (&self.parameter, request.uri().query()) {
            (Some(parameter), Some(query)) => query::take(query, parameter),
            _ => None,
        };
        let values = found.as_ref().map(|found| found.values.as_slice()).unwrap_or_default();
        let (presented, token) = if request.headers().contains_key(AUTHORIZATION) {
            (Presented::Otherwise, None)
        } else if let Some(token) = single(values)? {
            (Presented::InAddress, Some(token))
        } else if let Some(token) = single(&cookies)? {
            (Presented::InCookie, Some(token))
        } else {
            (Presented::Otherwise, None)
        };
        if let Some(mount) = mount {
            let opens_a_page = *request.method() == Method::GET && !request.headers().contains_key(UPGRADE);
            let keeps = presented == Presented::InAddress && opens_a_page;
            mount.visit = Visit {
                presented,
                told_by_address: found.is_some(),
                kept: token.filter(|_| keeps).and_then(|token| self.cookie.can_hold(token)),
            };
        }
        let bearer = token.map(bearer).transpose()?;
        if let (Some(found), Ok(way)) = (&found, way) {
            let path = way.path(request);
            let rest = found
                .without(path)
                .map_err(|_| RouterError::BadRoute("Invalid request target."))?;
            way.rest = Some(Box::new(rest));
        }
        if let Some(bearer) = bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer);
        }
        Ok(())
    }

    /// Makes an answer's head what it must be for the browser: the app neither sets the cookie nor keeps it in a cache, and
    /// a token from the address goes into the cookie and no further.
    pub(crate) fn answer(&self, mount: Option<&Mount>, headers: &mut HeaderMap) {
        cookie::disown(headers, &self.cookie);
        let Some(mount) = mount else { return };
        let visit = &mount.visit;
        if visit.told_by_address {
            headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        } else if visit.presented == Presented::InCookie {
            keep_private(headers);
        }
        let cookie = visit.kept.as_ref().and_then(|token| {
            self.cookie
                .to_set(token, mount.root(), self.secure, self.same_site, SystemTime::now())
        });
        if let Some(cookie) = cookie {
            headers.append(SET_COOKIE, cookie);
        }
    }
}

fn single(values: &[Vec<u8>]) -> Result<Option<&[u8]>, RouterError> {
    match values {
        [] => Ok(None),
        [value] => Ok(Some(value)),
        _ => Err(RouterError::NoCredential),
    }
}

fn bearer(token: &[u8]) -> Result<HeaderValue, RouterError> {
    let mut value = HeaderValue::try_from([b"Bearer ", token].concat()).map_err(|_| RouterError::BadCredential)?;
    value.set_sensitive(true);
    Ok(value)
}

/// No shared cache stores an answer to a request with `Authorization` unless the answer says that it may; to those caches a
/// cookie is nothing (RFC 9111 section 3.5). So the answer has to say what the request can't.
fn keep_private(headers: &mut HeaderMap) {
    let lines = headers.get_all(CACHE_CONTROL);
    let lines = lines.iter().filter_map(|line| line.to_str().ok());
    let mut directives = lines
        .flat_map(|line| line.split(','))
        .filter_map(|directive| directive.split('=').next())
        .map(str::trim);
    let decides = |directive: &str| {
        ["public", "s-maxage", "must-revalidate", "private", "no-store"]
            .iter()
            .any(|decisive| directive.eq_ignore_ascii_case(decisive))
    };
    if !directives.any(decides) {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
}

#[cfg(test)]
mod tests;
