//! SPIFFE IDs and the certificates that carry them.

use super::is_dns_label;
use sandgate_mesh::identity::{
    ExpectedSandbox, ExtendedKeyUsage, PeerId, SandboxIdentity, SpiffeId, TrustDomain, WorkloadIdentity,
};
use sandgate_mesh::tls::FrontPeer;

/// A SPIFFE ID means one thing and is spelt in one way; so does the leaf that carries it. The input is either.
pub fn identity(data: &[u8]) -> bool {
    let in_leaf = leaf(data);
    let in_text = std::str::from_utf8(data).is_ok_and(text);
    in_leaf || in_text
}

fn text(text: &str) -> bool {
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
        assert!(is_trust_domain(text), "{text:?}");
    }
    let Ok(peer) = text.parse::<PeerId>() else {
        assert!(text.parse::<WorkloadIdentity>().is_err());
        return false;
    };
    assert_eq!(peer.to_string(), text, "one spelling");
    assert_eq!(peer.to_string().parse::<PeerId>().as_ref(), Ok(&peer));
    assert_eq!(peer.to_spiffe_id().as_str(), text);
    assert_eq!(text.parse::<SpiffeId>().unwrap(), peer.to_spiffe_id());
    is_spiffe_id(text);
    kind(&peer, text);
    nothing_more(text);
    true
}

fn is_trust_domain(text: &str) -> bool {
    let fits = |c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    (1..=255).contains(&text.len()) && text.chars().all(fits)
}

/// SPIFFE-ID section 2.
fn is_spiffe_id(text: &str) {
    assert!(text.len() <= 2048);
    let rest = text.strip_prefix("spiffe://").unwrap();
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(d, p)| (d, Some(p)));
    assert!(is_trust_domain(domain), "{text:?}");
    for segment in path.into_iter().flat_map(|path| path.split('/')) {
        assert!(!["", ".", ".."].contains(&segment), "{text:?}");
        let fits = |c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_');
        assert!(segment.chars().all(fits), "{text:?}");
    }
}

/// The parts are the text's own, and nothing that looks like ours is somebody else's.
fn kind(peer: &PeerId, text: &str) {
    let parts: Vec<&str> = text.split('/').skip(2).collect();
    match peer {
        PeerId::Sandbox(found) => {
            let (key, uid) = (&found.sandbox, found.pod_uid.as_str());
            let rebuilt = ["ns", key.namespace.as_str(), "sandbox", key.name.as_str(), "pod", uid];
            assert_eq!(parts[0], found.trust_domain.as_str());
            assert_eq!(parts[1..], rebuilt);
            assert!(is_dns_label(key.namespace.as_str()) && is_dns_label(key.name.as_str()));
            assert!((1..=63).contains(&uid.len()) && uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
            assert!(text.parse::<WorkloadIdentity>().is_err());
            expected(found, peer);
        }
        PeerId::Workload(found) => {
            let (namespace, account) = (found.namespace.as_str(), found.service_account.as_str());
            assert_eq!(parts[0], found.trust_domain.as_str());
            assert_eq!(parts[1..], ["ns", namespace, "sa", account]);
            assert!(is_dns_label(namespace) && account.len() <= 253 && account.split('.').all(is_dns_label));
            assert_eq!(text.parse::<WorkloadIdentity>().as_ref(), Ok(found));
        }
        PeerId::Other(_) => {
            assert_ne!(parts.get(1), Some(&"ns"), "{text:?}");
            assert!(text.parse::<WorkloadIdentity>().is_err());
        }
    }
}

/// A router that expects this sandbox takes this sandbox, and no other.
fn expected(found: &SandboxIdentity, peer: &PeerId) {
    let exactly = ExpectedSandbox {
        trust_domain: found.trust_domain.clone(),
        sandbox: found.sandbox.clone(),
        pod_uid: Some(found.pod_uid.clone()),
    };
    let any_incarnation = ExpectedSandbox {
        pod_uid: None,
        ..exactly.clone()
    };
    assert!(exactly.admits(peer) && any_incarnation.admits(peer));
    let other = |change: &dyn Fn(&mut SandboxIdentity)| {
        let mut other = found.clone();
        change(&mut other);
        if other == *found {
            None
        } else {
            Some(PeerId::Sandbox(other))
        }
    };
    let strangers = [
        other(&|id| id.sandbox.name = "other".parse().unwrap()),
        other(&|id| id.sandbox.namespace = "other".parse().unwrap()),
        other(&|id| id.trust_domain = "other".parse().unwrap()),
    ];
    for stranger in strangers.into_iter().flatten() {
        assert!(!exactly.admits(&stranger) && !any_incarnation.admits(&stranger));
    }
    if let Some(reincarnated) = other(&|id| id.pod_uid = "other".parse().unwrap()) {
        assert!(!exactly.admits(&reincarnated) && any_incarnation.admits(&reincarnated));
    }
}

/// Whatever else a URI can have makes an ID none.
fn nothing_more(text: &str) {
    let id = text.strip_prefix("spiffe://").unwrap();
    let (domain, rest) = id.split_at(id.find('/').unwrap_or(id.len()));
    let behind = [
        "?", "?a=b", "#", "#a", "/", "/.", "/..", "//a", "%41", " ", "\t", "\0", "\n", "\u{e4}", ";a", "*",
    ];
    let around = [
        format!("spiffe://user@{domain}{rest}"),
        format!("spiffe://{domain}:443{rest}"),
        format!("spiffe:///{domain}{rest}"),
        format!("SPIFFE://{domain}{rest}"),
        format!("https://{domain}{rest}"),
        format!("spiffe://{domain}%2e{rest}"),
        format!("spiffe://A{domain}{rest}"),
        format!("spiffe://{domain}/{rest}/"),
        format!(" {text}"),
    ];
    for more in behind.into_iter().map(|more| format!("{text}{more}")).chain(around) {
        assert!(more.parse::<PeerId>().is_err(), "{more:?}");
        assert!(more.parse::<SpiffeId>().is_err(), "{more:?}");
    }
}

fn leaf(der: &[u8]) -> bool {
    let as_server = PeerId::from_leaf(der, ExtendedKeyUsage::ServerAuth);
    let as_client = PeerId::from_leaf(der, ExtendedKeyUsage::ClientAuth);
    assert!(
        as_server.is_err() || as_client.is_err(),
        "a leaf of the mesh serves one end"
    );
    let front = FrontPeer::from_leaf(der);
    if let Ok(FrontPeer::CommonName(name)) = &front {
        assert!((1..=64).contains(&name.chars().count()) && !name.contains(char::is_control));
    }
    if let Ok(FrontPeer::Spiffe(id)) = &front {
        assert!(text(id.as_str()) || id.as_str().contains("/ns"), "{id}");
    }
    let Ok(peer) = as_server.as_ref().or(as_client.as_ref()) else {
        return front.is_ok();
    };
    assert!(text(&peer.to_string()));
    // Both listeners read the same certificate alike.
    assert_eq!(front, Ok(FrontPeer::Spiffe(peer.to_spiffe_id())));
    for usage in [ExtendedKeyUsage::ServerAuth, ExtendedKeyUsage::ClientAuth] {
        assert!(
            PeerId::from_leaf(&[der, &[0]].concat(), usage).is_err(),
            "bytes behind the certificate"
        );
        assert!(
            PeerId::from_leaf(&der[..der.len() - 1], usage).is_err(),
            "a cut certificate"
        );
    }
    true
}
