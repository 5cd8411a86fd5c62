//! Holds a request to what its caller's scoped token is bound to. What isn't known before the sandbox is looked for, its UID,
//! goes along with the destination.

use crate::error::{Bound, RouterError};
use crate::forward::{UNANSWERED, id_text};
use crate::routing::Way;
use http::Request;
use sandgate_mesh::contract::X_REQUEST_ID;
use sandgate_mesh::sandbox::SandboxUid;
use sandgate_mesh::scoped_token::{Scope, ScopePath};
use std::sync::Arc;

/// Holds the request's way to what the scope allows. The path is judged as it will be forwarded.
///
/// # Errors
/// [`RouterError::OutOfScope`].
pub(crate) fn narrow<B>(scope: &Scope, request: &Request<B>, way: &mut Way) -> Result<(), RouterError> {
    if let Some(bound) = overstepped(scope, request, way) {
        let request_id = id_text(request.headers().get(X_REQUEST_ID));
        tracing::info!(target: UNANSWERED, sandbox = %way.to.route.sandbox, request_id, ?bound, "the caller's token is bound to something else");
        return Err(RouterError::OutOfScope(bound));
    }
    if let Some(uid) = &scope.uid {
        way.to = Arc::new(way.to.only(uid.as_str()));
    }
    Ok(())
}

/// What the token is bound to and the request isn't for. The sandbox first: who may not ask for it learns nothing else.
fn overstepped<B>(scope: &Scope, request: &Request<B>, way: &Way) -> Option<Bound> {
    let Scope {
        sandbox,
        uid,
        port,
        method,
        path,
    } = scope;
    let route = &way.to.route;
    let wanted_uid = route.uid.as_deref();
    let other_uid = uid
        .as_ref()
        .map(SandboxUid::as_str)
        .zip(wanted_uid)
        .is_some_and(|(bound, wanted)| bound != wanted);
    if *sandbox != route.sandbox || other_uid {
        Some(Bound::Sandbox)
    } else if port.is_some_and(|port| port != route.port) {
        Some(Bound::Port)
    } else if method.as_ref().is_some_and(|method| method != request.method()) {
        Some(Bound::Method)
    } else if path
        .as_ref()
        .map(ScopePath::as_str)
        .is_some_and(|path| path != way.path(request))
    {
        Some(Bound::Path)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Destination, LastDestination};
    use http::Method;
    use sandgate_mesh::sandbox::SandboxKey;

    fn scope() -> Scope {
        Scope {
            sandbox: SandboxKey {
                namespace: "team-a".parse().unwrap(),
                name: "alpha".parse().unwrap(),
            },
            uid: None,
            port: None,
            method: None,
            path: None,
        }
    }

    /// What becomes of a request to `alpha` with `more` headers.
    fn narrowed(scope: &Scope, line: (&str, &str), more: &[(&str, &str)]) -> Result<Arc<Destination>, RouterError> {
        let mut request = Request::builder().method(line.0).uri(line.1).body(()).unwrap();
        let usual = [("x-sandbox-id", "alpha"), ("x-sandbox-namespace", "team-a")];
        for (name, value) in usual.iter().chain(more) {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let to = LastDestination::default().parse(request.headers(), false).unwrap();
        let mut way = Way {
            to,
            rest: None,
            mount: None,
        };
        narrow(scope, &request, &mut way).map(|()| way.to)
    }

    #[test]
    fn what_a_token_does_not_bind_is_free() {
        for line in [("GET", "/"), ("POST", "/execute?a=b"), ("OPTIONS", "*"), ("X", "/a//b")] {
            let more = [
                ("x-sandbox-port", "9"),
                ("x-sandbox-uid", "u"),
                ("x-sandbox-pod-ip", "10.0.0.1"),
            ];
            let to = narrowed(&scope(), line, &more).unwrap();
            assert_eq!((to.route.port.get(), to.route.uid_is_binding), (9, false), "{line:?}");
        }
    }

    #[test]
    fn every_bound_field_is_held_and_the_sandbox_first() {
        let mut bound = scope();
        bound.port = Some("9090".parse().unwrap());
        bound.method = Some(Method::POST);
        bound.path = Some("/exec/a%2Fb".parse().unwrap());
        let (line, port) = (("POST", "/exec/a%2Fb"), ("x-sandbox-port", "9090"));
        assert!(narrowed(&bound, line, &[port]).is_ok());
        assert!(narrowed(&bound, ("POST", "/exec/a%2Fb?any=query"), &[port]).is_ok());
        let elsewhere = ("x-sandbox-id", "beta");
        for (other, more, expected) in [
            (line, &[elsewhere, port][..], Bound::Sandbox),
            (line, &[("x-sandbox-namespace", "default"), port], Bound::Sandbox),
            (line, &[("x-sandbox-namespace", ""), port], Bound::Sandbox),
            (line, &[("x-sandbox-port", "9091")], Bound::Port),
            (line, &[], Bound::Port),
            (("GET", "/exec/a%2Fb"), &[port], Bound::Method),
            (("post", "/exec/a%2Fb"), &[port], Bound::Method),
            (("POST", "/exec/a/b"), &[port], Bound::Path),
            (("POST", "/exec/a%2fb"), &[port], Bound::Path),
            (("POST", "/exec/%61%2Fb"), &[port], Bound::Path),
            (("POST", "/exec/a%2Fb/"), &[port], Bound::Path),
            (("POST", "//exec/a%2Fb"), &[port], Bound::Path),
            (("POST", "/exec/./a%2Fb"), &[port], Bound::Path),
            (("POST", "/exec/a%2Fb;x"), &[port], Bound::Path),
            (("POST", "/Exec/a%2Fb"), &[port], Bound::Path),
            (("POST", "/"), &[port], Bound::Path),
            (("GET", "/other"), &[elsewhere], Bound::Sandbox),
        ] {
            let refused = narrowed(&bound, other, more).map(|_| ());
            assert_eq!(refused, Err(RouterError::OutOfScope(expected)), "{other:?} {more:?}");
        }
    }

    #[test]
    fn a_bound_path_is_the_one_that_is_forwarded_and_not_the_one_that_was_asked_for() {
        let mut bound = scope();
        bound.path = Some("/exec".parse().unwrap());
        let request = Request::builder().uri("/p/team-a/alpha/8888/exec?q").body(()).unwrap();
        let to = narrowed(&scope(), ("GET", "/"), &[]).unwrap();
        for (rest, expected) in [
            ("/exec?q", Ok(())),
            ("/p/team-a/alpha/8888/exec?q", Err(RouterError::OutOfScope(Bound::Path))),
        ] {
            let mut way = Way {
                to: Arc::clone(&to),
                rest: Some(Box::new(rest.parse().unwrap())),
                mount: None,
            };
            assert_eq!(narrow(&bound, &request, &mut way), expected, "{rest}");
        }
    }

    #[test]
    fn a_bound_uid_goes_along_and_no_header_replaces_it() {
        let mut bound = scope();
        bound.uid = Some("uid-1".parse().unwrap());
        for more in [&[][..], &[("x-sandbox-uid", "uid-1")], &[("x-sandbox-uid", "")]] {
            let to = narrowed(&bound, ("GET", "/"), more).unwrap();
            assert_eq!(to.route.uid.as_deref(), Some("uid-1"));
            assert!(to.route.uid_is_binding);
        }
        for other in ["uid-2", "UID-1", "uid-1 uid-2"] {
            let refused = narrowed(&bound, ("GET", "/"), &[("x-sandbox-uid", other)]).map(|_| ());
            assert_eq!(refused, Err(RouterError::OutOfScope(Bound::Sandbox)), "{other}");
        }
    }
}
