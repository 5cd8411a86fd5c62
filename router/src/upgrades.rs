//! Who has how many upgraded connections, counted over all workers (CONTRACT section 5).

use crate::config::Config;
use crate::error::RouterError;
use http::HeaderMap;
use sandgate_mesh::contract::X_FORWARDED_FOR;
use sandgate_mesh::listener::{ConnectionCount, ConnectionLimits, ConnectionSlot};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// A place among a client's upgraded connections, free again when dropped.
pub(crate) type UpgradeSlot = ConnectionSlot;

/// How many upgraded connections each client has. It knows only clients that have one.
#[derive(Debug)]
pub(crate) struct UpgradeCount {
    config: Arc<Config>,
    limit: NonZeroUsize,
    open: ConnectionCount,
}

impl UpgradeCount {
    /// A count with nothing open; `None` where there is no limit.
    pub(crate) fn new(config: &Arc<Config>) -> Option<Self> {
        let limit = config.upgrades_per_client?;
        let limits = ConnectionLimits {
            total: usize::MAX,
            per_peer: limit.get(),
        };
        Some(Self {
            config: Arc::clone(config),
            limit,
            open: ConnectionCount::new(limits),
        })
    }

    /// A place for one more of whoever sends these `headers` from `peer`.
    ///
    /// # Errors
    /// [`RouterError::TooManyUpgrades`].
    pub(crate) fn enter(&self, peer: IpAddr, headers: &HeaderMap) -> Result<UpgradeSlot, RouterError> {
        let entered = self.open.enter(client_address(&self.config, peer, headers));
        entered.map_err(|_| RouterError::TooManyUpgrades(self.limit))
    }
}

/// Where whoever sends these `headers` from `peer` is one client among others.
pub(crate) fn client_address(config: &Config, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let trusts = |ip| config.trusts(ip);
    if trusts(peer) {
        behind_proxies(peer, headers, trusts)
    } else {
        peer
    }
}

/// Who is behind the trusted proxy `peer`: the rightmost hop of `X-Forwarded-For` that isn't one, too. A hop that is no
/// address was written by somebody whose word counts for nothing: then it is whoever that came through.
fn behind_proxies(peer: IpAddr, headers: &HeaderMap, trusts: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer;
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for hop in value.as_bytes().rsplit(|byte| *byte == b',') {
            let Some(hop) = address(hop.trim_ascii()) else {
                return client;
            };
            client = hop;
            if !trusts(hop) {
                return client;
            }
        }
    }
    client
}

/// An address as proxies write it: some add the port, and then put IPv6 in brackets.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let address = text.parse::<IpAddr>().or_else(|_| {
        let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        match bracketed {
            Some(text) => text.parse(),
            None => text.parse().map(|address: SocketAddr| address.ip()),
        }
    });
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(chain: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in chain {
            headers.append(X_FORWARDED_FOR, value.parse().unwrap());
        }
        let trusts = |hop: IpAddr| hop.to_string().starts_with("10.");
        behind_proxies(ip("10.0.0.1"), &headers, trusts).to_string()
    }

    #[test]
    fn the_client_is_the_rightmost_hop_that_is_no_trusted_proxy() {
        for (chain, expected) in [
            (&[][..], "10.0.0.1"),
            (&["192.0.2.7"], "192.0.2.7"),
            (&["192.0.2.7, 198.51.100.1"], "198.51.100.1"),
            (&["192.0.2.7,10.0.0.9 ,\t10.0.0.8"], "192.0.2.7"),
            (&["203.0.113.5, 192.0.2.7", "10.0.0.9"], "192.0.2.7"),
            (&["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
            (&["192.0.2.7:4711"], "192.0.2.7"),
            (&["[2001:db8::1]:4711"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["::ffff:192.0.2.7"], "192.0.2.7"),
        ] {
            assert_eq!(client(chain), expected, "{chain:?}");
        }
    }

    #[test]
    fn nobody_gets_places_of_his_own_by_a_hop_that_is_no_address() {
        for (chain, expected) in [
            (&["unknown"][..], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&["192.0.2.7, _hidden, 10.0.0.9"], "10.0.0.9"),
            (&["192.0.2.7, 10.0.0.9:99999"], "10.0.0.1"),
            (&["made-up, 198.51.100.1"], "198.51.100.1"),
            (&["\u{fc}, 10.0.0.9"], "10.0.0.9"),
        ] {
            assert_eq!(client(chain), expected, "{chain:?}");
        }
    }

    #[test]
    fn each_client_has_its_own_places_and_gets_them_back() {
        let flags = ["--authz-mode=allow-all", "--trusted-proxy-cidrs=10.0.0.0/8"];
        let mut config = Config::from_args(flags.map(Into::into).into()).unwrap();
        config.upgrades_per_client = NonZeroUsize::new(2);
        let count = UpgradeCount::new(&Arc::new(config)).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, "192.0.2.1".parse().unwrap());
        // One client, once behind a proxy and once not.
        let (proxy, one, another) = (ip("10.0.0.1"), ip("192.0.2.1"), ip("192.0.2.2"));
        let first = count.enter(proxy, &headers).unwrap();
        let _second = count.enter(one, &HeaderMap::new()).unwrap();
        assert!(count.enter(proxy, &headers).is_err() && count.enter(one, &headers).is_err());
        assert!(count.enter(another, &headers).is_ok());
        drop(first);
        assert!(count.enter(one, &HeaderMap::new()).is_ok());
    }
}
