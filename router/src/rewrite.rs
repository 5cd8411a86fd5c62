//! An app's answer as it must be for a browser that sees the app below a path of the router's, or on a host of its own:
//! where it leads, and what it sets, stays with the app. Hides which headers speak of URLs and origins (upstream #1109).

mod visit;

pub(crate) use visit::{Presented, Visit};

use http::header::{ALT_SVC, CONTENT_LOCATION, LOCATION, ORIGIN, SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderName, HeaderValue};
use sandgate_mesh::contract::X_FORWARDED_HOST;
use sandgate_mesh::headers::only;
use sandgate_mesh::sandbox::AppPort;

/// Where an app is mounted, for one request.
#[derive(Debug)]
pub(crate) struct Mount {
    /// The path of the app's root, without its slash; empty on a host of the app's own.
    base: Box<str>,
    port: AppPort,
    /// The host that the app was told the client asked for.
    host: Option<HeaderValue>,
    /// Whether the client asked for the root without its slash. Then a browser takes the path above for that of a cookie
    /// without one (RFC 6265 section 5.1.4).
    is_bare: bool,
    /// How a browser came here.
    pub(crate) visit: Visit,
}

/// Says how far a worker reaches that a page installs: further than below its script (Service Workers section 6.4).
static SERVICE_WORKER_ALLOWED: HeaderName = HeaderName::from_static("service-worker-allowed");

/// What is said for a whole origin, and isn't one sandbox's to say where several share it.
static FOR_AN_ORIGIN: [HeaderName; 5] = [
    STRICT_TRANSPORT_SECURITY,
    ALT_SVC,
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
];

impl Mount {
    /// An app at `base`, which is a path without a final slash; empty where its host leads to nothing else.
    pub(crate) fn new(base: &str, port: AppPort) -> Self {
        Self {
            base: base.into(),
            port,
            host: None,
            is_bare: false,
            visit: Visit::default(),
        }
    }

    /// The same where the client asked for this `path`.
    pub(crate) fn asked_for(mut self, path: &str) -> Self {
        self.is_bare = self.shares_origin() && path == &*self.base;
        self
    }

    /// The path that everything of the app's is below of.
    pub(crate) fn root(&self) -> &str {
        if self.shares_origin() { &self.base } else { "/" }
    }

    /// Notes what the app is told of its host, of which it may make URLs. An `Origin` that is this very host, which leads to
    /// nobody else, goes: an app that compares it with `Host` (Jupyter, Django) would take its own page for a stranger's. Any
    /// other stays, for the app to judge.
    pub(crate) fn told(&mut self, request: &mut HeaderMap) {
        self.host = request.get(X_FORWARDED_HOST).cloned();
        let own = !self.shares_origin() && matches!(only(request, &ORIGIN), Ok(Some(origin)) if self.is_own(origin));
        if own {
            request.remove(ORIGIN);
        }
    }

    /// Rewrites an answer's head.
    pub(crate) fn rewrite(&self, headers: &mut HeaderMap) {
        for (name, value) in headers.iter_mut() {
            let changed = if *name == SET_COOKIE {
                self.cookie(value.as_bytes())
            } else if *name == LOCATION || *name == CONTENT_LOCATION {
                std::str::from_utf8(value.as_bytes())
                    .ok()
                    .and_then(|text| self.reference(text))
            } else if *name == SERVICE_WORKER_ALLOWED && self.shares_origin() {
                // As far as the whole app and no further, however the app's own value would be resolved.
                Some(self.path(b"/"))
            } else {
                None
            };
            if let Some(changed) = changed {
                // Parts of a header value, joined, are one.
                *value = HeaderValue::try_from(changed).unwrap_or(HeaderValue::from_static(""));
            }
        }
        if self.shares_origin() {
            for name in &FOR_AN_ORIGIN {
                headers.remove(name);
            }
        }
    }

    fn shares_origin(&self) -> bool {
        !self.base.is_empty()
    }

    /// A path of the app's as the browser must ask for it. One that is below the base already was made by an app that was
    /// told where it is mounted.
    fn path(&self, path: &[u8]) -> Vec<u8> {
        let below = path.strip_prefix(self.base.as_bytes());
        if below.is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?' | b'#'))) {
            return path.to_vec();
        }
        [self.base.as_bytes(), path].concat()
    }

    /// A URI reference (RFC 3986 section 4.1), or `None` where it leads to the right place as it is: it is relative to where
    /// the browser is, or leads to somewhere else.
    fn reference(&self, text: &str) -> Option<Vec<u8>> {
        if text.starts_with('/') && !text.starts_with("//") {
            return self.shares_origin().then(|| self.path(text.as_bytes()));
        }
        let starts = [("http://", ":80"), ("https://", ":443"), ("//", "")];
        let (scheme, default_port) = starts.into_iter().find(|(scheme, _)| {
            text.get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })?;
        let (scheme, rest) = text.split_at(scheme.len());
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
        let path = if path.starts_with('/') {
            self.path(path.as_bytes())
        } else {
            self.path(format!("/{path}").as_bytes())
        };
        let is = |other: &str| {
            let short = |authority| {
                str::strip_suffix(authority, default_port)
                    .unwrap_or(authority)
                    .to_owned()
            };
            short(authority).eq_ignore_ascii_case(&short(other))
        };
        if is(&format!("127.0.0.1:{}", self.port)) {
            // Nobody but the app knows itself by this name. Without it, what a browser could take for another one must not
            // come first (RFC 3986 section 4.2).
            let other_host = !self.shares_origin() && matches!(path.get(1), Some(b'/' | b'\\' | b'\t'));
            return Some(if other_host {
                [b"/.", path.as_slice()].concat()
            } else {
                path
            });
        }
        let host = self.host.as_ref().filter(|_| self.shares_origin())?;
        let same = host.to_str().is_ok_and(is);
        same.then(|| [scheme.as_bytes(), authority.as_bytes(), &path].concat())
    }

    /// A `Set-Cookie` (RFC 6265 section 5.2), or `None` where it may stay as it is. `Domain` goes: it would give the cookie
    /// to other sandboxes, or to the router. What a browser wouldn't take for a path goes, too: then the path is that of the
    /// request, which is the app's. Of several paths the last counts, and no other is passed: an app could repeat them until
    /// nobody has room for its head.
    fn cookie(&self, text: &[u8]) -> Option<Vec<u8>> {
        let usable = |part| matches!(attribute(part), (name, [b'/', ..]) if name.eq_ignore_ascii_case(b"path"));
        let parts = || text.split(|b| *b == b';').enumerate();
        let attributes = || parts().skip(1);
        let last = attributes().filter(|(_, part)| usable(part)).last().map(|(at, _)| at);
        let mut cookie = parts().next().map_or(&[][..], |(_, first)| first).to_vec();
        let mut changed = false;
        for (at, part) in attributes() {
            let (name, value) = attribute(part);
            if name.eq_ignore_ascii_case(b"domain") {
                changed = true;
            } else if name.eq_ignore_ascii_case(b"path") && self.shares_origin() {
                changed = true;
                if Some(at) == last {
                    cookie.extend_from_slice(b"; Path=");
                    cookie.extend_from_slice(&self.path(value));
                }
            } else {
                cookie.push(b';');
                cookie.extend_from_slice(part);
            }
        }
        if self.is_bare && last.is_none() {
            changed = true;
            cookie.extend_from_slice(b"; Path=");
            cookie.extend_from_slice(&self.path(b"/"));
        }
        changed.then_some(cookie)
    }

    /// Whether `origin` (RFC 6454 section 7) is that of a page of the host that the client asked for.
    pub(crate) fn is_own(&self, origin: &HeaderValue) -> bool {
        let origin = origin.as_bytes();
        let authority = [&b"https://"[..], b"http://"]
            .into_iter()
            .find_map(|scheme| origin.strip_prefix(scheme));
        let host = self.host.as_ref().map(|host| without_default_port(host.as_bytes()));
        authority.zip(host).is_some_and(|(authority, host)| {
            !host.is_empty() && without_default_port(authority).eq_ignore_ascii_case(host)
        })
    }
}

fn without_default_port(authority: &[u8]) -> &[u8] {
    let without = authority
        .strip_suffix(b":443")
        .or_else(|| authority.strip_suffix(b":80"));
    without.unwrap_or(authority)
}

/// Name and value of a cookie's attribute.
fn attribute(part: &[u8]) -> (&[u8], &[u8]) {
    let mut halves = part.splitn(2, |b| *b == b'=').map(<[u8]>::trim_ascii);
    (halves.next().unwrap_or_default(), halves.next().unwrap_or_default())
}

#[cfg(test)]
mod tests;
