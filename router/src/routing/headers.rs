//! Routing headers -> [`Route`].

use super::{Destination, Route};
use crate::error::RouterError;
use http::{HeaderMap, HeaderName, HeaderValue};
use sandgate_mesh::contract::{
    DEFAULT_NAMESPACE, ROUTING_HEADER_PREFIX, X_SANDBOX_ID, X_SANDBOX_NAMESPACE, X_SANDBOX_POD_IP, X_SANDBOX_PORT,
    X_SANDBOX_TIMEOUT, X_SANDBOX_UID,
};
use sandgate_mesh::sandbox::{AppPort, SandboxKey};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The routing headers, each with the name that error texts use.
static NAMES: [(HeaderName, &str); 6] = [
    (X_SANDBOX_ID, "X-Sandbox-ID"),
    (X_SANDBOX_NAMESPACE, "X-Sandbox-Namespace"),
    (X_SANDBOX_PORT, "X-Sandbox-Port"),
    (X_SANDBOX_POD_IP, "X-Sandbox-Pod-IP"),
    (X_SANDBOX_UID, "X-Sandbox-UID"),
    (X_SANDBOX_TIMEOUT, "X-Sandbox-Timeout"),
];

/// A routing header as a head has it.
#[derive(Debug, Clone, Copy)]
enum Given<'a> {
    Absent,
    Once(&'a HeaderValue),
    Repeated,
}

/// The routing headers of a head, found in one pass over it.
fn given(headers: &HeaderMap) -> [Given<'_>; NAMES.len()] {
    let mut given = [Given::Absent; NAMES.len()];
    for (name, value) in headers {
        if !name.as_str().starts_with(ROUTING_HEADER_PREFIX) {
            continue;
        }
        let known = NAMES.iter().zip(&mut given).find(|((known, _), _)| known == name);
        if let Some((_, slot)) = known {
            *slot = match slot {
                Given::Absent => Given::Once(value),
                Given::Once(_) | Given::Repeated => Given::Repeated,
            };
        }
    }
    given
}

impl Route {
    /// Reads the routing headers. `allow_loopback` lets a hint name a loopback address: for sandboxes on one machine.
    ///
    /// # Errors
    /// [`RouterError::BadRoute`] for a header that is missing or malformed, [`RouterError::Duplicate`] for one that
    /// occurs twice. A malformed timeout counts as none.
    pub fn parse(headers: &HeaderMap, allow_loopback: bool) -> Result<Self, RouterError> {
        Self::read(given(headers), allow_loopback)
    }

    fn read(given: [Given<'_>; NAMES.len()], allow_loopback: bool) -> Result<Self, RouterError> {
        let bad = RouterError::BadRoute;
        let [id, namespace, port, pod_ip, uid, timeout] = given;
        let [id_name, namespace_name, port_name, pod_ip_name, uid_name, timeout_name] = &NAMES;
        let id = text(id, id_name)?.ok_or(bad("X-Sandbox-ID header is required."))?;
        let name = id.parse().map_err(|_| bad("Invalid sandbox ID format."))?;
        let namespace = text(namespace, namespace_name)?.unwrap_or(DEFAULT_NAMESPACE);
        let namespace = namespace.parse().map_err(|_| bad("Invalid namespace format."))?;
        let port = match text(port, port_name)? {
            None => AppPort::DEFAULT,
            Some(port) => port.parse().map_err(|_| bad("Invalid port format."))?,
        };
        let pod_ip = match text(pod_ip, pod_ip_name)? {
            None => None,
            Some(ip) => Some(
                ip.parse::<IpAddr>()
                    .ok()
                    .map(|ip| ip.to_canonical())
                    .filter(|ip| may_be_a_pod(*ip, allow_loopback))
                    .ok_or(bad("Invalid target IP address."))?,
            ),
        };
        let uid = text(uid, uid_name)?.map(Into::into);
        let timeout = text(timeout, timeout_name)?.and_then(seconds);
        Ok(Self {
            sandbox: SandboxKey { namespace, name },
            port,
            uid,
            uid_is_binding: false,
            pod_ip,
            timeout,
        })
    }
}

/// How long the client will wait: of the routing headers the only one that says nothing of where to.
///
/// # Errors
/// [`RouterError::Duplicate`].
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, RouterError> {
    let ([.., timeout], [.., name]) = (given(headers), &NAMES);
    Ok(text(timeout, name)?.and_then(seconds))
}

/// Longest routing header that is remembered, in bytes: what is longer names nothing.
const MAX_REMEMBERED: usize = 64;

/// The last destination of one connection: clients send the same routing headers again and again.
#[derive(Debug, Default)]
pub(crate) struct LastDestination(Mutex<Option<Remembered>>);

#[derive(Debug)]
struct Remembered {
    given: [Option<HeaderValue>; NAMES.len()],
    destination: Arc<Destination>,
}

impl LastDestination {
    /// Reads the routing headers; see [`Route::parse`].
    pub(crate) fn parse(&self, headers: &HeaderMap, allow_loopback: bool) -> Result<Arc<Destination>, RouterError> {
        let given = given(headers);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| same(&last.given, &given)) {
            return Ok(Arc::clone(&last.destination));
        }
        let destination = Arc::new(Destination::new(Route::read(given, allow_loopback)?));
        let short = |given: &Given<'_>| !matches!(given, Given::Once(value) if value.len() > MAX_REMEMBERED);
        if !given.iter().all(short) {
            return Ok(destination);
        }
        // Copies: a header's own bytes would keep the whole head that it came in.
        let copy = |given| match given {
            Given::Once(value) => HeaderValue::from_bytes(value.as_bytes()).ok(),
            Given::Absent | Given::Repeated => None,
        };
        *last = Some(Remembered {
            given: given.map(copy),
            destination: Arc::clone(&destination),
        });
        Ok(destination)
    }
}

/// Whether a head has exactly these routing headers, each once.
fn same(remembered: &[Option<HeaderValue>], given: &[Given<'_>]) -> bool {
    remembered.iter().zip(given).all(|pair| match pair {
        (None, Given::Absent) => true,
        (Some(remembered), Given::Once(value)) => remembered == *value,
        _ => false,
    })
}

/// A header's text; absent and empty are the same. What isn't text becomes something no rule accepts.
fn text<'a>(given: Given<'a>, (_, shown): &(HeaderName, &'static str)) -> Result<Option<&'a str>, RouterError> {
    match given {
        Given::Absent => Ok(None),
        Given::Once(value) => Ok(Some(value.to_str().unwrap_or("\u{fffd}")).filter(|text| !text.is_empty())),
        Given::Repeated => Err(RouterError::Duplicate(shown)),
    }
}

fn seconds(text: &str) -> Option<Duration> {
    text.trim()
        .parse::<f64>()
        .ok()
        .filter(|seconds| *seconds > 0.0)
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
}

/// Whether an address can be a pod's. `ip` is canonical: an IPv4-mapped IPv6 address is judged as its IPv4.
pub(crate) fn may_be_a_pod(ip: IpAddr, allow_loopback: bool) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !link_local && !ip.is_multicast() && !ip.is_unspecified() && (allow_loopback || !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    fn route(pairs: &[(&str, &str)]) -> Result<Route, String> {
        Route::parse(&headers(pairs), false).map_err(|error| match error {
            RouterError::BadRoute(text) => text.to_owned(),
            RouterError::Duplicate(name) => format!("Duplicate {name} header."),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_remembered_destination_serves_only_the_very_same_headers() {
        let last = LastDestination::default();
        let of = |pairs: &[(&str, &str)]| {
            let destination = last.parse(&headers(pairs), false)?;
            Ok::<_, RouterError>((destination.route.clone(), destination.host.clone()))
        };
        let (id, namespace, port) = (
            ("x-sandbox-id", "a"),
            ("x-sandbox-namespace", "b"),
            ("x-sandbox-port", "80"),
        );
        for _ in 0..2 {
            let (route, host) = of(&[id, namespace, port]).unwrap();
            assert_eq!(route, Route::parse(&headers(&[id, namespace, port]), false).unwrap());
            assert_eq!(host, "127.0.0.1:80");
            assert_eq!(of(&[id]).unwrap().0, Route::parse(&headers(&[id]), false).unwrap());
            assert_eq!(of(&[id]).unwrap().1, "127.0.0.1:8888");
            let elsewhere = [("x-sandbox-id", "ab"), namespace, port];
            assert_eq!(
                of(&elsewhere).unwrap().0,
                Route::parse(&headers(&elsewhere), false).unwrap()
            );
            assert!(of(&[id, id, namespace, port]).is_err());
            assert!(of(&[id, namespace, ("x-sandbox-port", "0")]).is_err());
            assert!(of(&[namespace, port]).is_err());
            let (uid, hint) = ("z".repeat(1000), ("x-sandbox-pod-ip", "10.0.0.1"));
            let long = [id, hint, ("x-sandbox-uid", uid.as_str())];
            assert_eq!(of(&long).unwrap().0, Route::parse(&headers(&long), false).unwrap());
        }
    }

    #[test]
    fn section_2_defaults() {
        let found = route(&[
            ("x-sandbox-id", "a"),
            ("x-sandbox-namespace", ""),
            ("x-sandbox-port", ""),
        ])
        .unwrap();
        assert_eq!(
            (found.sandbox.to_string().as_str(), found.port.get()),
            ("default/a", 8888)
        );
        assert!(found.pod_ip.is_none() && found.timeout.is_none());
    }

    #[test]
    fn section_2_refusals_are_worded_as_clients_know_them() {
        let id = ("x-sandbox-id", "a");
        for (pairs, text) in [
            (vec![], "X-Sandbox-ID header is required."),
            (vec![("x-sandbox-id", "")], "X-Sandbox-ID header is required."),
            (vec![("x-sandbox-id", "A")], "Invalid sandbox ID format."),
            (vec![("x-sandbox-id", "a.b")], "Invalid sandbox ID format."),
            (vec![id, ("x-sandbox-namespace", "a/b")], "Invalid namespace format."),
            (vec![id, ("x-sandbox-port", "0")], "Invalid port format."),
            (vec![id, ("x-sandbox-port", "+80")], "Invalid port format."),
            (vec![id, ("x-sandbox-port", "65536")], "Invalid port format."),
            (vec![id, id], "Duplicate X-Sandbox-ID header."),
            (
                vec![id, ("x-sandbox-uid", "1"), ("x-sandbox-uid", "2")],
                "Duplicate X-Sandbox-UID header.",
            ),
            (
                vec![id, ("x-sandbox-timeout", "1"), ("x-sandbox-timeout", "1")],
                "Duplicate X-Sandbox-Timeout header.",
            ),
        ] {
            assert_eq!(route(&pairs).unwrap_err(), text, "{pairs:?}");
        }
    }

    #[test]
    fn loopback_and_link_local_hints_are_refused_in_every_spelling() {
        for ip in [
            "127.0.0.1",
            "127.1.2.3",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:7f00:1",
            "169.254.169.254",
            "::ffff:169.254.1.1",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "0.0.0.0",
            "::",
            "::ffff:0.0.0.0",
            "255.255.255.255",
            "localhost",
            "1.2.3",
            "0x7f.0.0.1",
            "2130706433",
            "[::1]",
            "10.0.0.1:80",
            "10.0.0.1/8",
            "fe80::1%eth0",
        ] {
            let error = route(&[("x-sandbox-id", "a"), ("x-sandbox-pod-ip", ip)]).unwrap_err();
            assert_eq!(error, "Invalid target IP address.", "{ip}");
        }
        assert!(
            route(&[("x-sandbox-id", "a"), ("x-sandbox-pod-ip", "10.0.0.7")])
                .unwrap()
                .pod_ip
                .is_some()
        );
    }

    #[test]
    fn a_bad_timeout_is_never_an_error() {
        for (text, millis) in [
            ("1.5", Some(1_500)),
            ("60", Some(60_000)),
            ("0", None),
            ("-1", None),
            ("nan", None),
            ("inf", None),
            ("x", None),
        ] {
            let found = route(&[("x-sandbox-id", "a"), ("x-sandbox-timeout", text)]).unwrap();
            assert_eq!(found.timeout, millis.map(Duration::from_millis), "{text}");
        }
    }
}
