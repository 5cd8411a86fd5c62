//! Where a request wants to go (CONTRACT section 2). Its host says so, or else its path, or else its routing headers:
//! whichever speaks first is the only one that is heard, so that no two readers can follow different ones.

mod headers;
mod host;
mod path;

pub(crate) use headers::{LastDestination, may_be_a_pod};
pub use host::HostDomain;
pub use path::PathPrefix;

use crate::error::RouterError;
use crate::rewrite::Mount;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request};
use sandgate_mesh::sandbox::{AppPort, SandboxKey};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where a request wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which sandbox.
    pub sandbox: SandboxKey,
    /// The app's port.
    pub port: AppPort,
    /// A hint: the UID of the Sandbox, by which one is found that nobody has claimed.
    pub uid: Option<Box<str>>,
    /// Whether only the Sandbox with that UID will do: then it is no hint.
    pub uid_is_binding: bool,
    /// A hint: the pod's address, in canonical form, and one that a pod can have.
    pub pod_ip: Option<IpAddr>,
    /// How long the client will wait. It can only shorten the configured limit.
    pub timeout: Option<Duration>,
}

/// A route, and what is written into each request that takes it.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) route: Route,
    /// The port's digits.
    pub(crate) port: HeaderValue,
    /// `Host` as the app gets it.
    pub(crate) host: HeaderValue,
    answered: AtomicBool,
}

impl Destination {
    fn new(route: Route) -> Self {
        let port = route.port.to_string();
        // Digits, dots and a colon are what a header value may have.
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        Self {
            port: value(&port),
            host: value(&format!("127.0.0.1:{port}")),
            answered: AtomicBool::new(false),
            route,
        }
    }

    /// The same for nobody but the Sandbox with this UID.
    pub(crate) fn only(&self, uid: &str) -> Self {
        Self::new(Route {
            uid: Some(uid.into()),
            uid_is_binding: true,
            ..self.route.clone()
        })
    }

    /// Whether this is the first answer from there.
    pub(crate) fn answers_first(&self) -> bool {
        !self.answered.load(Ordering::Relaxed) && !self.answered.swap(true, Ordering::Relaxed)
    }
}

/// An app, as far as a URL can name one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedApp {
    /// Which sandbox.
    pub sandbox: SandboxKey,
    /// The app's port.
    pub port: AppPort,
}

/// The URLs that lead to an app without routing headers, which a browser can't set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlRouting {
    /// Below which path.
    pub path: Option<PathPrefix>,
    /// Under which domain.
    pub host: Option<HostDomain>,
}

/// One request's way to an app, and its answer's back.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) to: Arc<Destination>,
    /// What of the target is for the app, where that isn't all of it.
    pub(crate) rest: Option<Box<PathAndQuery>>,
    /// Where the client sees the app, if its URL led here.
    pub(crate) mount: Option<Box<Mount>>,
}

impl Way {
    /// Finds it, by `urls` if any lead to apps. A hint at this very machine counts only with `allow_loopback`.
    ///
    /// # Errors
    /// [`RouterError::BadRoute`] or [`RouterError::Duplicate`].
    pub(crate) fn find<B>(
        urls: Option<&UrlRouting>,
        allow_loopback: bool,
        last: &LastDestination,
        request: &Request<B>,
    ) -> Result<Self, RouterError> {
        if let Some(urls) = urls
            && let Some(way) = urls.way(request)?
        {
            return Ok(way);
        }
        Ok(Self {
            to: last.parse(request.headers(), allow_loopback)?,
            rest: None,
            mount: None,
        })
    }

    /// The path of `request` as the app will get it.
    pub(crate) fn path<'a, B>(&'a self, request: &'a Request<B>) -> &'a str {
        self.rest
            .as_deref()
            .map_or_else(|| request.uri().path(), PathAndQuery::path)
    }
}

impl UrlRouting {
    /// The way that a request's URL shows, if it shows any. Routing headers beside it are not even read, but for the time
    /// that the client will wait.
    fn way<B>(&self, request: &Request<B>) -> Result<Option<Way>, RouterError> {
        let (uri, headers) = (request.uri(), request.headers());
        let by_host = match &self.host {
            Some(domain) => domain.find(uri, headers)?,
            None => None,
        };
        let (place, base) = if let Some(place) = by_host {
            (place, "")
        } else if let Some(prefix) = &self.path
            && let Some(found) = prefix.find(uri.path())?
        {
            found
        } else {
            return Ok(None);
        };
        let rest = match uri.path_and_query() {
            Some(asked_for) if !base.is_empty() => Some(Box::new(below(asked_for, base)?)),
            _ => None,
        };
        let NamedApp { sandbox, port } = place;
        let route = Route {
            sandbox,
            port,
            uid: None,
            uid_is_binding: false,
            pod_ip: None,
            timeout: headers::timeout(headers)?,
        };
        Ok(Some(Way {
            to: Arc::new(Destination::new(route)),
            rest,
            mount: Some(Box::new(Mount::new(base, port).asked_for(uri.path()))),
        }))
    }
}

/// What follows `base`, byte for byte; the root where nothing does.
fn below(asked_for: &PathAndQuery, base: &str) -> Result<PathAndQuery, RouterError> {
    let rest = asked_for.as_str().strip_prefix(base).unwrap_or_default();
    let rest = if rest.starts_with('/') {
        PathAndQuery::try_from(rest)
    } else {
        PathAndQuery::try_from(format!("/{rest}"))
    };
    rest.map_err(|_| RouterError::BadRoute("Invalid request target."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    fn urls() -> UrlRouting {
        UrlRouting {
            path: Some("/p".parse().unwrap()),
            host: Some("sandboxes.example".parse().unwrap()),
        }
    }

    fn way(target: &str, headers: &[(&'static str, &str)]) -> Result<Option<Way>, RouterError> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        urls().way(&request.body(()).unwrap())
    }

    fn leads(target: &str, headers: &[(&'static str, &str)]) -> String {
        match way(target, headers) {
            Ok(None) => "headers".into(),
            Ok(Some(Way { to, rest, .. })) => {
                let rest = rest.map_or_else(|| "same".into(), |rest| rest.to_string());
                format!("{}:{} {rest}", to.route.sandbox, to.route.port)
            }
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn what_follows_the_port_is_passed_on_byte_for_byte() {
        for (asked_for, passed_on) in [
            ("", "/"),
            ("/", "/"),
            ("?", "/?"),
            ("?a=/p/x/y/1/", "/?a=/p/x/y/1/"),
            ("/?q", "/?q"),
            ("//", "//"),
            ("//evil.example/x", "//evil.example/x"),
            ("/a%2Fb%2e%2E%00%zz", "/a%2Fb%2e%2E%00%zz"),
            ("/../../../p/b/c/1/", "/../../../p/b/c/1/"),
            ("/./a;b=c/\\d|e/*", "/./a;b=c/\\d|e/*"),
            ("/p/b/c/1/x", "/p/b/c/1/x"),
        ] {
            let target = format!("/p/a/b/80{asked_for}");
            assert_eq!(leads(&target, &[]), format!("a/b:80 {passed_on}"), "{target}");
            let absolute = format!("http://router.example{target}");
            assert_eq!(leads(&absolute, &[]), format!("a/b:80 {passed_on}"), "{absolute}");
        }
    }

    #[test]
    fn the_host_is_heard_before_the_path_and_both_before_headers() {
        let (under, beside) = (("host", "81-c--d.sandboxes.example"), ("host", "sandboxes.example"));
        let contradicting = [
            ("x-sandbox-id", "e"),
            ("x-sandbox-id", "F"),
            ("x-sandbox-port", "0"),
            ("x-sandbox-pod-ip", "127.0.0.1"),
            ("x-sandbox-uid", "u"),
        ];
        for headers in [&[][..], &contradicting] {
            let with = |host| [&[host], headers].concat();
            assert_eq!(leads("/p/a/b/80/x", &with(under)), "d/c:81 same");
            assert_eq!(leads("/p/a/b/80/x", &with(beside)), "a/b:80 /x");
            assert_eq!(leads("/x", &with(under)), "d/c:81 same");
            assert_eq!(leads("*", &with(under)), "d/c:81 same");
            assert_eq!(leads("/x", &with(beside)), "headers");
        }
        let hints = way("/p/a/b/80/x", &[&[beside][..], &contradicting].concat());
        let route = &hints.unwrap().unwrap().to.route;
        assert!(route.pod_ip.is_none() && route.uid.is_none());
    }

    #[test]
    fn only_the_time_that_the_client_will_wait_is_read_of_routing_headers() {
        let timeout =
            |headers: &[(&'static str, &str)]| way("/p/a/b/80/", headers).map(|way| way.unwrap().to.route.timeout);
        assert_eq!(timeout(&[]), Ok(None));
        let one = ("x-sandbox-timeout", "1.5");
        assert_eq!(timeout(&[one]), Ok(Some(Duration::from_millis(1_500))));
        assert_eq!(timeout(&[("x-sandbox-timeout", "soon")]), Ok(None));
        assert_eq!(timeout(&[one, one]), Err(RouterError::Duplicate("X-Sandbox-Timeout")));
    }

    #[test]
    fn without_urls_of_its_own_everything_is_for_the_headers() {
        let none = UrlRouting { path: None, host: None };
        let request = Request::builder()
            .uri("/p/a/b/80/")
            .header("host", "81-c--d.sandboxes.example");
        assert!(none.way(&request.body(()).unwrap()).unwrap().is_none());
        assert_eq!(headers::timeout(&HeaderMap::new()), Ok(None));
    }
}
