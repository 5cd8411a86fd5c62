//! The client connection of a request: what is known of it, and what `X-Forwarded-*` say of it.

use crate::authenticate::Authenticated;
use crate::config::Config;
use crate::proof::{Over, Proof};
use crate::routing::LastDestination;
use http::HeaderMap;
use http::header::HeaderValue;
use sandgate_mesh::contract::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::headers::strip_forwarded;
use sandgate_mesh::listener::ConnectionSlot;
use sandgate_mesh::tunnel::TunnelLimits;
use std::net::IpAddr;

/// The client connection that a request came over.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) ip: IpAddr,
    /// The address as `X-Forwarded-For` has it, made once for all requests.
    ip_text: HeaderValue,
    pub(crate) scheme: HeaderValue,
    pub(crate) certificate: Option<Authenticated>,
    /// What its certificate proves, if it has shown one.
    pub(crate) proof: Option<Proof>,
    pub(crate) last: LastDestination,
    /// Its place among the connections: held for as long as anything of it lasts, tunnels too.
    _slot: ConnectionSlot,
    /// For tunnels, which outlive the connection's own task.
    pub(crate) draining: Draining,
    /// Whether what it says of those before it counts.
    trusted_proxy: bool,
}

impl Client {
    /// The client at `ip`, over `scheme`, with the name its certificate gave it.
    pub(crate) fn new(
        config: &Config,
        ip: IpAddr,
        scheme: &'static str,
        certificate: Option<Authenticated>,
        slot: ConnectionSlot,
        draining: Draining,
    ) -> Self {
        Self {
            ip,
            // An address is made of characters that a header value may have.
            ip_text: HeaderValue::from_str(&ip.to_string()).unwrap_or(HeaderValue::from_static("unknown")),
            scheme: HeaderValue::from_static(scheme),
            certificate,
            proof: None,
            last: LastDestination::default(),
            _slot: slot,
            draining,
            trusted_proxy: config.trusts(ip),
        }
    }

    /// Whether what its certificate proved holds still, if it has shown one.
    pub(crate) fn check(&self) -> Result<(), Over> {
        self.proof.as_ref().map_or(Ok(()), Proof::check)
    }

    /// Completes when nobody vouches for its certificate any more.
    pub(crate) async fn withdrawn(&self) {
        match &self.proof {
            Some(proof) => proof.withdrawn().await,
            None => std::future::pending().await,
        }
    }

    /// The limits of its tunnels: none outlasts its certificate.
    pub(crate) fn tunnels(&self, limits: TunnelLimits) -> TunnelLimits {
        let remaining = self.proof.as_ref().map(Proof::remaining);
        remaining.map_or(limits, |remaining| limits.within(remaining))
    }
}

/// Sets `X-Forwarded-*`, with the `host` that the client asked for. What a client says of itself counts only if it is a trusted proxy.
pub(crate) fn forwarded(client: &Client, host: Option<HeaderValue>, headers: &mut HeaderMap) {
    if client.trusted_proxy {
        forwarded_by_proxy(client, host, headers);
        return;
    }
    strip_forwarded(headers);
    headers.insert(X_FORWARDED_FOR, client.ip_text.clone());
    headers.insert(X_FORWARDED_PROTO, client.scheme.clone());
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// Adds the proxy to the chain, and keeps what it says of its own client.
fn forwarded_by_proxy(client: &Client, host: Option<HeaderValue>, headers: &mut HeaderMap) {
    let mut chain = Vec::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(client.ip_text.as_bytes());
    // Joined header values are a header value.
    if let Ok(chain) = HeaderValue::try_from(chain) {
        headers.insert(X_FORWARDED_FOR, chain);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, client.scheme.clone());
    }
    if !headers.contains_key(X_FORWARDED_HOST)
        && let Some(host) = host
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}
