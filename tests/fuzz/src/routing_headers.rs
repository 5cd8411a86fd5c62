//! Routing headers, and what of a head crosses a hop.

use super::is_dns_label;
use http::{HeaderMap, HeaderName, HeaderValue};
use sandbox_router::{Route, RouterError};
use sandgate_mesh::headers::{sanitise_request, sanitise_trailers, strip_forwarded, strip_ours};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ROUTING: [&str; 6] = [
    "x-sandbox-id",
    "x-sandbox-namespace",
    "x-sandbox-port",
    "x-sandbox-pod-ip",
    "x-sandbox-uid",
    "x-sandbox-timeout",
];

/// A route names one sandbox, a port, and at most one address that can be a pod's; and nothing of ours, no credential
/// and no hop's own business crosses a hop. The input is a head: lines of `name:value`.
pub fn routing_headers(data: &[u8]) -> bool {
    let head: HeaderMap = data.split(|byte| *byte == b'\n').filter_map(field).collect();
    hop(&head);
    let route = Route::parse(&head, false);
    let on_one_machine = Route::parse(&head, true);
    if head
        .keys()
        .any(|name| ROUTING.contains(&name.as_str()) && head.get_all(name).iter().count() > 1)
    {
        assert!(
            route.is_err() && on_one_machine.is_err(),
            "two readers could take different values"
        );
    }
    let only_routing: HeaderMap = head
        .iter()
        .filter(|(name, _)| ROUTING.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    assert_eq!(Route::parse(&only_routing, false), route, "other headers don't count");
    match &route {
        Ok(route) => {
            assert_eq!(on_one_machine.as_ref(), Ok(route));
            accepted(route, &head);
        }
        Err(error) => {
            let worded = matches!(error, RouterError::BadRoute(_) | RouterError::Duplicate(_));
            assert!(worded, "{error:?}");
            if let Ok(route) = on_one_machine {
                assert!(route.pod_ip.is_some_and(|ip| ip.is_loopback()), "{route:?}");
            }
        }
    }
    route.is_ok()
}

fn field(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    Some((name, HeaderValue::from_bytes(&line[colon + 1..]).ok()?))
}

fn accepted(route: &Route, head: &HeaderMap) {
    let said = |name: &str| {
        head.get(name)
            .map(|value| value.to_str().unwrap_or_default())
            .filter(|text| !text.is_empty())
    };
    let (namespace, name) = (route.sandbox.namespace.as_str(), route.sandbox.name.as_str());
    assert!(is_dns_label(namespace) && is_dns_label(name), "{route:?}");
    assert_eq!(said("x-sandbox-id"), Some(name));
    assert_eq!(said("x-sandbox-namespace").unwrap_or("default"), namespace);

    assert_ne!(route.port.get(), 0);
    let digits = said("x-sandbox-port").unwrap_or("8888");
    assert!(digits.chars().all(|c| c.is_ascii_digit()), "{digits:?}");
    assert_eq!(digits.trim_start_matches('0'), route.port.get().to_string());

    assert_eq!(
        route.pod_ip.is_some(),
        said("x-sandbox-pod-ip").is_some(),
        "a hint is taken or refused, never lost"
    );
    if let Some(ip) = route.pod_ip {
        assert!(can_be_a_pods(ip), "{ip}");
        every_spelling(ip, head);
    }
    assert!(route.timeout.is_none_or(|timeout| !timeout.is_zero()));
}

/// By the bytes, not by the standard library's names for them.
fn can_be_a_pods(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !matches!(
            ip.octets(),
            [127 | 224..=239, ..] | [169, 254, ..] | [0, 0, 0, 0] | [255, 255, 255, 255]
        ),
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            let short = octets[..15] == [0; 15] && octets[15] <= 1;
            let mapped = octets[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            let link_local = octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
            !short && !mapped && !link_local && octets[0] != 0xff
        }
    }
}

/// However an address is written, it is the same address.
fn every_spelling(ip: IpAddr, head: &HeaderMap) {
    let with = |text: &str| {
        let mut head = head.clone();
        head.insert("x-sandbox-pod-ip", text.parse().unwrap());
        Route::parse(&head, false).map(|route| route.pod_ip)
    };
    let spellings = match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            vec![
                format!("::ffff:{ip}"),
                format!("::FFFF:{a:02x}{b:02x}:{c:02x}{d:02x}"),
                format!("0:0:0:0:0:ffff:{ip}"),
            ]
        }
        IpAddr::V6(ip) => vec![ip.segments().map(|part| format!("{part:04X}")).join(":")],
    };
    for spelling in spellings {
        assert_eq!(with(&spelling), Ok(Some(ip)), "{spelling}");
    }
    // The nearest forbidden addresses, in both families.
    let last = match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    for v4 in [
        Ipv4Addr::new(127, last, 0, last),
        Ipv4Addr::new(169, 254, last, last),
        Ipv4Addr::new(224 + last % 16, 0, last, 1),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
    ] {
        for spelling in [v4.to_string(), v4.to_ipv6_mapped().to_string()] {
            assert!(with(&spelling).is_err(), "{spelling}");
        }
    }
    let v6 = |first: u16| Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last.into());
    for ip in [
        v6(0xfe80 | u16::from(last) & 0x3f),
        v6(0xff00 | u16::from(last)),
        Ipv6Addr::LOCALHOST,
        Ipv6Addr::UNSPECIFIED,
    ] {
        assert!(with(&ip.to_string()).is_err(), "{ip}");
    }
}

fn ours(name: &str) -> bool {
    let name = as_a_variable(name);
    name.starts_with("x-sandbox-") || name.starts_with("x-sandgate-")
}

fn forwarded(name: &str) -> bool {
    let name = as_a_variable(name);
    name.starts_with("x-forwarded-") || name == "forwarded" || name == "x-real-ip"
}

/// Where headers become variables, hyphens and underscores are the same.
fn as_a_variable(name: &str) -> String {
    name.replace('_', "-")
}

fn none_is(headers: &HeaderMap, gone: impl Fn(&str) -> bool) {
    assert!(!headers.keys().any(|name| gone(name.as_str())), "{headers:?}");
}

/// Nothing of ours, no credential and no hop's own business is left.
fn hop(head: &HeaderMap) {
    stripped(head, strip_ours, ours);
    stripped(head, strip_forwarded, forwarded);

    let mut request = head.clone();
    sanitise_request(&mut request, None);
    none_is(&request, |name| {
        ours(name)
            || [
                "authorization",
                "expect",
                "http2-settings",
                "keep-alive",
                "proxy-authenticate",
                "proxy-authorization",
                "proxy-connection",
                "transfer-encoding",
                "upgrade",
            ]
            .contains(&name)
    });
    let re_made = [("connection", "te"), ("te", "trailers")];
    for (name, value) in re_made {
        assert!(request.get_all(name).iter().all(|found| found == value), "{request:?}");
    }
    for framing in ["host", "content-length"] {
        assert!(
            request.get_all(framing).iter().eq(head.get_all(framing).iter()),
            "Connection can't drop {framing}"
        );
    }
    let mut again = request.clone();
    sanitise_request(&mut again, None);
    assert_eq!(again, request, "a second hop finds nothing to take off");
    trailers(head);
}

/// `strip` removes what is `gone`, and nothing else.
fn stripped(head: &HeaderMap, strip: fn(&mut HeaderMap), gone: fn(&str) -> bool) {
    let mut stripped = head.clone();
    strip(&mut stripped);
    none_is(&stripped, gone);
    let others = head.iter().filter(|(name, _)| !gone(name.as_str()));
    let others: HeaderMap = others.map(|(name, value)| (name.clone(), value.clone())).collect();
    assert_eq!(stripped, others, "nothing else goes");
}

/// A trailer section, in which the same may be written as in a head.
fn trailers(section: &HeaderMap) {
    let mut trailers = section.clone();
    sanitise_trailers(&mut trailers);
    none_is(&trailers, |name| {
        ours(name)
            || forwarded(name)
            || [
                "host",
                "authorization",
                "content-length",
                "transfer-encoding",
                "connection",
                "cookie",
                "set-cookie",
            ]
            .contains(&name)
    });
}
