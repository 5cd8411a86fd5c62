//! Paths and hosts that name an app.

use super::is_dns_label;
use sandbox_router::{HostDomain, NamedApp, PathPrefix};

/// A path or a host names one app or none, by one spelling of its names, and what is under the prefix or the domain is never
/// taken for something else. The input is two lines: a path and a host.
pub fn url_routing(data: &[u8]) -> bool {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let path = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let host = lines.next().unwrap_or_default();
    let by_path = path_names(&path);
    let by_host = host_names(host);
    by_path || by_host
}

fn names(place: &NamedApp) -> [&str; 2] {
    let names = [place.sandbox.namespace.as_str(), place.sandbox.name.as_str()];
    assert!(names.iter().all(|name| is_dns_label(name)), "{place:?}");
    assert_ne!(place.port.get(), 0);
    names
}

fn path_names(path: &str) -> bool {
    let prefix: PathPrefix = "/p".parse().unwrap();
    let found = prefix.find(path);
    assert_eq!(found == Ok(None), !path.starts_with("/p/"), "{path:?}");
    let Ok(Some((place, base))) = found else { return false };
    let [namespace, id] = names(&place);
    let digits = base.rsplit('/').next().unwrap();
    assert_eq!(base, format!("/p/{namespace}/{id}/{digits}"));
    assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{base}");
    assert_eq!(digits.trim_start_matches('0'), place.port.get().to_string());
    let rest = path.strip_prefix(base).unwrap();
    assert!(rest.is_empty() || rest.starts_with('/'), "{base} {rest}");
    for rest in ["", "/", "/%2F", "//", "/../x", "/p/a/b/1"] {
        let other = format!("{base}{rest}");
        assert_eq!(
            prefix.find(&other),
            Ok(Some((place.clone(), base))),
            "what follows the port says nothing"
        );
    }
    true
}

const DOMAIN: &str = "sandboxes.example";

fn host_names(host: &[u8]) -> bool {
    let domain: HostDomain = DOMAIN.parse().unwrap();
    let found = domain.parse(host);
    let Ok(Some(place)) = found else {
        assert_eq!(
            found.is_err(),
            is_under_domain(host),
            "{:?}",
            String::from_utf8_lossy(host)
        );
        return false;
    };
    let [namespace, id] = names(&place);
    assert!(!namespace.contains("--"), "{namespace} would be read as another one");
    let label = format!("{}-{id}--{namespace}", place.port);
    assert!(label.len() <= 63, "{label}");
    let text = std::str::from_utf8(host).unwrap().to_ascii_lowercase();
    let rest = text.strip_prefix(&format!("{label}.{DOMAIN}")).unwrap();
    let port = rest.strip_prefix('.').unwrap_or(rest);
    assert!(port.is_empty() || port.starts_with(':'), "{text}");
    assert!(port.bytes().skip(1).all(|byte| byte.is_ascii_digit()), "{text}");
    for (host, expected) in [
        (format!("{label}.{DOMAIN}"), Ok(Some(place.clone()))),
        (format!("{label}.{DOMAIN}.:80").to_ascii_uppercase(), Ok(Some(place))),
        (format!("{label}.{DOMAIN}.org"), Ok(None)),
        (format!("{label}{DOMAIN}"), Ok(None)),
    ] {
        assert_eq!(domain.parse(host.as_bytes()), expected, "{host}");
    }
    true
}

/// Whether some label stands before the domain, in what is left of a host without user, port and final dot.
fn is_under_domain(host: &[u8]) -> bool {
    let text = String::from_utf8_lossy(host).to_ascii_lowercase();
    let host = text.rsplit('@').next().unwrap();
    let name = host.split(':').next().unwrap();
    name.strip_suffix('.').unwrap_or(name).ends_with(&format!(".{DOMAIN}"))
}
