//! The old variables. They keep their lenient rule: a bad value warns and falls back.

use ipnet::IpNet;
use sandgate_mesh::duration;
use sandgate_mesh::tunnel::TunnelLimits;
use std::net::IpAddr;
use std::time::Duration;

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn lenient<T>(name: &str, warnings: &mut Vec<String>, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let text = text(name).filter(|text| !text.trim().is_empty())?;
    let value = parse(text.trim());
    if value.is_none() {
        warnings.push(format!("{name}: {text:?} can't be used; the default is"));
    }
    value
}

fn seconds(name: &str, warnings: &mut Vec<String>) -> Option<Duration> {
    lenient(name, warnings, |text| duration::from_seconds(text.parse().ok()?))
}

pub(super) fn allow_unauthenticated() -> bool {
    text("ALLOW_UNAUTHENTICATED_ROUTER")
        .is_some_and(|text| ["1", "true", "t", "yes", "y", "on"].contains(&text.trim().to_ascii_lowercase().as_str()))
}

pub(super) fn cluster_domain() -> Option<String> {
    text("CLUSTER_DOMAIN")
}

pub(super) fn proxy_timeout(warnings: &mut Vec<String>) -> Option<Duration> {
    lenient("PROXY_TIMEOUT_SECONDS", warnings, |text| {
        duration::from_seconds(text.parse().ok()?).filter(|timeout| !timeout.is_zero())
    })
}

pub(super) fn max_keepalive_connections(warnings: &mut Vec<String>) -> Option<usize> {
    lenient("MAX_KEEPALIVE_CONNECTIONS", warnings, |text| text.parse().ok())
}

pub(super) fn tunnels(warnings: &mut Vec<String>) -> TunnelLimits {
    let default = TunnelLimits::default();
    TunnelLimits {
        idle: seconds("WEBSOCKET_IDLE_TIMEOUT_SECONDS", warnings).unwrap_or(default.idle),
        lifetime: seconds("WEBSOCKET_MAX_LIFETIME_SECONDS", warnings).unwrap_or(default.lifetime),
    }
}

/// The flag's text, or else the variable's: networks, of which bad ones are skipped.
pub(super) fn trusted_proxies(flag: Option<String>, warnings: &mut Vec<String>) -> Vec<IpNet> {
    let text = flag.or_else(|| text("TRUSTED_PROXY_CIDRS")).unwrap_or_default();
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .filter_map(|entry| {
            let network = entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from)).ok();
            if network.is_none() {
                warnings.push(format!("trusted proxies: {entry:?} is not a network; skipped"));
            }
            network
        })
        .collect()
}
