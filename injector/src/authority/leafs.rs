//! The leafs that a root vouches for: the webhook's, the control plane's own, and those of gates and routers.

use super::request::{self, RequestError};
use super::{Authority, params};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use sandgate_mesh::identity::{SandboxIdentity, WorkloadIdentity};
use sandgate_mesh::telemetry::seconds_since_1970;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// How long the webhook's certificate lives.
pub const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The subject of the injector's own certificates. Not the root's, or verifiers take them for self-signed.
const INJECTOR_NAME: &str = "sandbox-injector";
/// The subject of every gate's. It identifies nobody: the SPIFFE ID does.
const GATE_NAME: &str = "sandbox-sidecar";
/// The same of every router's.
const ROUTER_NAME: &str = "sandbox-router";

/// A DNS name or an address by which the API server reaches the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServingName {
    /// `sandgate-injector.agent-sandbox-system.svc`
    Dns(String),
    /// Where it is called by a URL.
    Ip(IpAddr),
}

impl FromStr for ServingName {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let label = |label: &str| {
            let ends_well = !label.starts_with('-') && !label.ends_with('-');
            (1..=63).contains(&label.len()) && ends_well && label.bytes().all(inner)
        };
        if text.len() <= 253 && text.split('.').all(label) {
            Ok(Self::Dns(text.to_owned()))
        } else {
            Err("neither a DNS name in lower case nor an IP address")
        }
    }
}

impl fmt::Display for ServingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// A leaf and its key.
pub struct Issued {
    /// The leaf in PEM. It is the whole chain: the root signs directly.
    pub chain_pem: String,
    /// Its key, PKCS#8 in PEM.
    pub key_pem: String,
    /// The last second in which it may be used.
    pub not_after: SystemTime,
}

/// A leaf for a key that somebody else holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The leaf in PEM. It is the whole chain: the root signs directly.
    pub chain_pem: String,
    /// The last second in which it may be used.
    pub not_after: SystemTime,
}

/// Why a gate or a router gets no leaf.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// What was sent is no request for a key of the mesh.
    #[error("the certificate request: {0}")]
    Request(#[from] RequestError),
    /// A leaf would be worthless.
    #[error("the root certificate isn't valid now; it may have expired, or this machine's clock is wrong")]
    RootNotValid,
    /// Signing failed.
    #[error("the leaf can't be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl Authority {
    /// A certificate for the webhook with a fresh key, valid from a minute ago for `lifetime`, and not longer than the
    /// root.
    ///
    /// # Errors
    /// A name that isn't ASCII, or the system gives no randomness.
    pub fn serving(&self, names: &[ServingName], lifetime: Duration) -> Result<Issued, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_after = self.end_of(lifetime);
        let mut params = leaf(INJECTOR_NAME, ExtendedKeyUsagePurpose::ServerAuth, not_after);
        for name in names {
            params.subject_alt_names.push(match name {
                ServingName::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
                ServingName::Ip(address) => SanType::IpAddress(*address),
            });
        }
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
            not_after,
        })
    }

    /// A leaf for the key of a gate's PKCS#10 request (RFC 2986), which says that it is this sandbox. Of the request only
    /// the key counts, once its signature has proven that whoever made it holds the key.
    ///
    /// # Errors
    /// A request that can't be read, isn't signed with its own key, or is for another kind of key than ECDSA P-256; a
    /// root that isn't valid now.
    pub fn sign_gate(
        &self,
        csr_pem: &str,
        identity: &SandboxIdentity,
        lifetime: Duration,
    ) -> Result<Signed, SignError> {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        self.sign(csr_pem, GATE_NAME, usage, identity.to_string(), lifetime)
    }

    /// The same for a router, which is a client.
    ///
    /// # Errors
    /// The same.
    pub fn sign_router(
        &self,
        csr_pem: &str,
        identity: &WorkloadIdentity,
        lifetime: Duration,
    ) -> Result<Signed, SignError> {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.sign(csr_pem, ROUTER_NAME, usage, identity.to_string(), lifetime)
    }

    fn sign(
        &self,
        csr_pem: &str,
        common_name: &str,
        usage: ExtendedKeyUsagePurpose,
        identity: String,
        lifetime: Duration,
    ) -> Result<Signed, SignError> {
        if !self.root.valid_at(SystemTime::now()) {
            return Err(SignError::RootNotValid);
        }
        let key = request::public_key(csr_pem)?;
        let not_after = self.end_of(lifetime);
        let mut params = leaf(common_name, usage, not_after);
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Signed {
            chain_pem: leaf.pem(),
            not_after,
        })
    }

    /// A certificate by which gates know the control plane, with a fresh key.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn client_leaf(&self, identity: &WorkloadIdentity, lifetime: Duration) -> Result<Issued, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let not_after = self.end_of(lifetime);
        let mut params = leaf(INJECTOR_NAME, ExtendedKeyUsagePurpose::ClientAuth, not_after);
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
            not_after,
        })
    }

    /// The end of a leaf that is issued now. It doesn't outlive the root, and is a whole second, as certificates have it.
    fn end_of(&self, lifetime: Duration) -> SystemTime {
        let end = (SystemTime::now() + lifetime).min(self.root.not_after);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds_since_1970(end))
    }
}

/// What all leafs have in common: they sign handshakes and nothing else.
fn leaf(common_name: &str, usage: ExtendedKeyUsagePurpose, not_after: SystemTime) -> CertificateParams {
    let mut params = params(common_name, not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}

#[cfg(test)]
#[path = "leafs_tests.rs"]
mod tests;
