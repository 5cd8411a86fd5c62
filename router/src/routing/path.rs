//! `<prefix>/<namespace>/<id>/<port>/<rest>` -> the app that is meant (upstream #1413). Hides where in a path the app's own
//! path begins.

use super::NamedApp;
use crate::error::RouterError;
use sandgate_mesh::sandbox::SandboxKey;
use std::str::FromStr;

/// The path under which everything is routed by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPrefix(Box<str>);

/// Why a text can't be the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathPrefixError {
    /// It isn't an absolute path.
    #[error("must start with \"/\"")]
    NotAbsolute,
    /// It ends with a slash; `/` alone would claim every path.
    #[error("must not end with \"/\"; \"/\" alone would leave no path for routing headers")]
    EndsWithSlash,
    /// A segment that proxies and browsers rewrite, or that a cookie's path can't have.
    #[error(
        "must have segments of letters, digits, \"-\", \".\", \"_\" and \"~\", none empty and none \".\" or \"..\""
    )]
    Segment,
}

impl FromStr for PathPrefix {
    type Err = PathPrefixError;
    fn from_str(text: &str) -> Result<Self, PathPrefixError> {
        let segments = text.strip_prefix('/').ok_or(PathPrefixError::NotAbsolute)?;
        if text.ends_with('/') {
            return Err(PathPrefixError::EndsWithSlash);
        }
        // RFC 3986's unreserved characters: whoever is in between leaves them as they are.
        let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        let stays = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(unreserved);
        if segments.split('/').all(stays) {
            Ok(Self(text.into()))
        } else {
            Err(PathPrefixError::Segment)
        }
    }
}

const MALFORMED: RouterError =
    RouterError::BadRoute("Path-routed request must have the form <prefix>/<namespace>/<id>/<port>/...");

impl PathPrefix {
    /// The app that a path names, and the part of the path that names it; `None` for a path that isn't under the prefix.
    /// The prefix itself, without a slash, isn't. The three segments have one spelling: no percent-escapes.
    ///
    /// # Errors
    /// [`RouterError::BadRoute`].
    pub fn find<'a>(&self, path: &'a str) -> Result<Option<(NamedApp, &'a str)>, RouterError> {
        let below = path.strip_prefix(&*self.0).and_then(|rest| rest.strip_prefix('/'));
        let Some(below) = below else { return Ok(None) };
        let mut segments = below.split('/');
        let mut segment = || {
            let plain = |segment: &&str| !segment.is_empty() && !segment.contains('%');
            segments.next().filter(plain).ok_or(MALFORMED)
        };
        let (namespace, id, port) = (segment()?, segment()?, segment()?);
        let length = self.0.len()
            + [namespace, id, port]
                .map(|segment| 1 + segment.len())
                .iter()
                .sum::<usize>();
        let bad = RouterError::BadRoute;
        let place = NamedApp {
            sandbox: SandboxKey {
                namespace: namespace.parse().map_err(|_| bad("Invalid namespace format."))?,
                name: id.parse().map_err(|_| bad("Invalid sandbox ID format."))?,
            },
            // Digits of no use would be repeated in each path that an answer has.
            port: Some(port)
                .filter(|port| port.len() <= 5)
                .and_then(|port| port.parse().ok())
                .ok_or(bad("Invalid port format."))?,
        };
        Ok(Some((place, path.get(..length).unwrap_or(path))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_somebody_in_between_could_rewrite_is_refused() {
        use PathPrefixError::{EndsWithSlash, NotAbsolute, Segment};
        for good in ["/p", "/sandboxes/v1", "/a-b._~C9", "/...", "/.well-known"] {
            assert_eq!(good.parse(), Ok(PathPrefix(good.into())), "{good}");
        }
        for (bad, error) in [
            ("", NotAbsolute),
            ("p", NotAbsolute),
            ("\t/p", NotAbsolute),
            ("http://a/p", NotAbsolute),
            ("/", EndsWithSlash),
            ("/p/", EndsWithSlash),
            ("//p", Segment),
            ("/p//q", Segment),
            ("/./p", Segment),
            ("/p/..", Segment),
            ("/p q", Segment),
            ("/p\n", Segment),
            ("/p%2f", Segment),
            ("/p?", Segment),
            ("/p#", Segment),
            ("/p;", Segment),
            ("/p\\q", Segment),
            ("/\u{e4}", Segment),
        ] {
            assert_eq!(bad.parse::<PathPrefix>(), Err(error), "{bad:?}");
        }
    }

    fn find(path: &str) -> String {
        let prefix: PathPrefix = "/p".parse().unwrap();
        match prefix.find(path) {
            Ok(None) => "headers".into(),
            Ok(Some((place, base))) => format!("{}:{} {base}", place.sandbox, place.port),
            Err(RouterError::BadRoute(text)) => text.into(),
            Err(error) => panic!("{error:?}"),
        }
    }

    #[test]
    fn a_path_under_the_prefix_names_an_app() {
        for rest in ["", "/", "/x", "//", "/..", "/%2F", "/p/c/d/1"] {
            assert_eq!(find(&format!("/p/a/b/80{rest}")), "a/b:80 /p/a/b/80", "{rest}");
        }
        // The cookie's path must be the one that the browser asks for.
        assert_eq!(find("/p/a/b/0080/x"), "a/b:80 /p/a/b/0080");
        assert_eq!(find("/p/p/p/1/p"), "p/p:1 /p/p/p/1");
    }

    #[test]
    fn a_path_beside_the_prefix_is_for_the_headers() {
        for path in [
            "/",
            "*",
            "/p",
            "/P/a/b/80/",
            "/pa/b/80/",
            "/p%2Fa/b/80/",
            "/%70/a/b/80/",
            "//p/a/b/80/",
            "/./p/a/b/80/",
            "/x/p/a/b/80/",
            "/p;/a/b/80/",
        ] {
            assert_eq!(find(path), "headers", "{path}");
        }
    }

    #[test]
    fn a_path_under_the_prefix_that_names_none_is_refused_in_upstreams_words() {
        let form = "Path-routed request must have the form <prefix>/<namespace>/<id>/<port>/...";
        let (namespace, id, port) = (
            "Invalid namespace format.",
            "Invalid sandbox ID format.",
            "Invalid port format.",
        );
        for (path, text) in [
            ("/p/", form),
            ("/p/a", form),
            ("/p/a/", form),
            ("/p/a/b", form),
            ("/p/a/b/", form),
            ("/p/a/b//", form),
            ("/p//b/80/", form),
            ("/p//a/b/80/", form),
            ("/p/a//80/", form),
            // One spelling only, also where the escape would be read as something that fits.
            ("/p/%61/b/80/", form),
            ("/p/a/%62/80/", form),
            ("/p/a/b/%380/", form),
            ("/p/a%2Fb/80/x", form),
            ("/p/a/b%2F80/x/", form),
            ("/p/a/b/80%2F/x", form),
            ("/p/a/b/80%", form),
            ("/p/A/b/80/", namespace),
            ("/p/../b/80/", namespace),
            ("/p/a;x/b/80/", namespace),
            ("/p/a/B/80/", id),
            ("/p/a/../80/", id),
            ("/p/a/b-/80/", id),
            ("/p/a/b/0/", port),
            ("/p/a/b/+80/", port),
            ("/p/a/b/65536/", port),
            ("/p/a/b/000080/", port),
            ("/p/a/b/http/", port),
            ("/p/a/b/../", port),
        ] {
            assert_eq!(find(path), text, "{path}");
        }
    }
}
