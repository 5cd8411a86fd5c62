//! `<port>-<id>--<namespace>.<domain>` in `Host` -> the app that is meant: each app has an origin of its own. Hides how a
//! host is read.

use super::NamedApp;
use crate::error::RouterError;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Uri};
use sandgate_mesh::sandbox::{SandboxKey, is_subdomain};
use std::str::FromStr;

/// The domain under which every host is an app's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDomain {
    /// In lower case, after a dot.
    suffix: Box<str>,
}

/// Why a text can't be the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostDomainError {
    /// It isn't a DNS name, or one under which no long label fits.
    #[error("must be a DNS name of at most 189 characters, without scheme, port or wildcard")]
    NotADomain,
    /// Its last label is a number, so hosts under it are taken for IPv4 addresses.
    #[error("must not end with a number, as hosts under it would be taken for IP addresses")]
    Address,
}

/// Longest DNS label, in bytes (RFC 1035 section 2.3.4).
const LONGEST_LABEL: usize = 63;
/// Longest domain, in bytes: a DNS name has at most 253, and a label and a dot come before it.
const LONGEST_DOMAIN: usize = 253 - LONGEST_LABEL - 1;

impl FromStr for HostDomain {
    type Err = HostDomainError;
    fn from_str(text: &str) -> Result<Self, HostDomainError> {
        let name = text.to_ascii_lowercase();
        let last = name.rsplit('.').next().unwrap_or_default();
        if name.len() > LONGEST_DOMAIN || !is_subdomain(&name) {
            return Err(HostDomainError::NotADomain);
        }
        if last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(HostDomainError::Address);
        }
        Ok(Self {
            suffix: format!(".{name}").into(),
        })
    }
}

const MALFORMED: RouterError =
    RouterError::BadRoute("Host-routed request must have the form <port>-<id>--<namespace>.<domain>");
const TWO_HOSTS: RouterError = RouterError::BadRoute("Request target and Host header name different hosts.");

impl HostDomain {
    /// The app that a request's host names. In absolute form the target names a host, too (RFC 9112 section 3.2.2): where
    /// one of the two is an app's, the other must be the same app's.
    pub(super) fn find(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<NamedApp>, RouterError> {
        let target = uri.authority().map(|authority| Authority::as_str(authority).as_bytes());
        let header = headers.get(HOST).map(HeaderValue::as_bytes);
        match (target, header) {
            (None, None) => Ok(None),
            (Some(host), None) | (None, Some(host)) => self.parse(host),
            (Some(target), Some(header)) => {
                let place = self.parse(target)?;
                if self.parse(header)? == place {
                    Ok(place)
                } else {
                    Err(TWO_HOSTS)
                }
            }
        }
    }

    /// The app that a host names, in any case, with or without a port and a final dot; `None` for a host that isn't under
    /// the domain. The domain itself isn't.
    ///
    /// # Errors
    /// [`RouterError::BadRoute`].
    pub fn parse(&self, host: &[u8]) -> Result<Option<NamedApp>, RouterError> {
        let after_user = host.rsplit(|b| *b == b'@').next().unwrap_or_default();
        let mut parts = after_user.splitn(2, |b| *b == b':');
        let (name, port) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let name = name.strip_suffix(b".").unwrap_or(name);
        let Some((label, suffix)) = name
            .len()
            .checked_sub(self.suffix.len())
            .and_then(|length| name.split_at_checked(length))
        else {
            return Ok(None);
        };
        if !suffix.eq_ignore_ascii_case(self.suffix.as_bytes()) {
            return Ok(None);
        }
        let label = std::str::from_utf8(label).unwrap_or_default().to_ascii_lowercase();
        let well_formed = after_user.len() == host.len() && port.iter().all(u8::is_ascii_digit);
        place(&label).filter(|_| well_formed).map(Some).ok_or(MALFORMED)
    }
}

/// Reads `<port>-<id>--<namespace>`. An ID may have `--` in it, but not at its end, and a namespace doesn't start with `-`:
/// so it is the last `--` that separates them, and a namespace with `--` in it has no label. A port has one spelling, or
/// one app would have several origins.
fn place(label: &str) -> Option<NamedApp> {
    if label.len() > LONGEST_LABEL {
        return None;
    }
    let (port, sandbox) = label.split_once('-')?;
    let (id, namespace) = sandbox.rsplit_once("--")?;
    if port.starts_with('0') {
        return None;
    }
    Some(NamedApp {
        sandbox: SandboxKey {
            namespace: namespace.parse().ok()?,
            name: id.parse().ok()?,
        },
        port: port.parse().ok()?,
    })
}

#[cfg(test)]
mod tests;
