//! SPIFFE identities (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>) and how one is read from a
//! certificate. Strict on purpose: a leaf carries exactly one subject alternative name, a URI, or it identifies nobody.

use crate::sandbox::{Namespace, PodUid, SandboxKey, ServiceAccountName};
use std::fmt;
use std::str::FromStr;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// Longest SPIFFE ID that the standard lets an implementation accept, in bytes.
const MAX_SPIFFE_ID: usize = 2048;
/// Longest trust domain, in bytes.
const MAX_TRUST_DOMAIN: usize = 255;

/// Why a certificate or a text identifies nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The certificate's DER couldn't be parsed.
    #[error("certificate is not valid DER")]
    Der,
    /// The leaf has no subject alternative name, several, or one that isn't a URI.
    #[error("certificate must have exactly one subject alternative name, a URI; it has {0}")]
    NotOneUri(String),
    /// The leaf is a CA certificate.
    #[error("a CA certificate identifies nobody")]
    IsCa,
    /// The leaf's extended key usage isn't exactly the one its role needs.
    #[error("certificate's extended key usage must be exactly {0}")]
    WrongUsage(ExtendedKeyUsage),
    /// Not a SPIFFE ID.
    #[error("not a SPIFFE ID: {0}")]
    NotSpiffe(&'static str),
    /// A SPIFFE ID of another kind than its place needs.
    #[error("not the SPIFFE ID of a {0}")]
    WrongKind(&'static str),
}

/// Which end of a connection a leaf may be used on (RFC 5280 section 4.2.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendedKeyUsage {
    /// `id-kp-serverAuth`, and nothing else.
    ServerAuth,
    /// `id-kp-clientAuth`, and nothing else.
    ClientAuth,
}

impl fmt::Display for ExtendedKeyUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ServerAuth => "serverAuth",
            Self::ClientAuth => "clientAuth",
        })
    }
}

/// A SPIFFE trust domain, for example `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomain(Box<str>);

impl TrustDomain {
    /// The trust domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
            return Err(IdentityError::NotSpiffe(
                "a trust domain holds 1 to 255 of a-z, 0-9, dot, hyphen, underscore",
            ));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sandbox's gate: `spiffe://<td>/ns/<ns>/sandbox/<sandbox>/pod/<pod uid>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SandboxIdentity {
    /// The trust domain that vouches for it.
    pub trust_domain: TrustDomain,
    /// Which sandbox.
    pub sandbox: SandboxKey,
    /// Which incarnation of it.
    pub pod_uid: PodUid,
}

impl fmt::Display for SandboxIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SandboxKey { namespace, name } = &self.sandbox;
        write!(
            f,
            "spiffe://{}/ns/{namespace}/sandbox/{name}/pod/{}",
            self.trust_domain, self.pod_uid
        )
    }
}

/// A router or control plane: `spiffe://<td>/ns/<ns>/sa/<serviceaccount>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadIdentity {
    /// The trust domain that vouches for it.
    pub trust_domain: TrustDomain,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its `ServiceAccount`.
    pub service_account: ServiceAccountName,
}

impl fmt::Display for WorkloadIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for WorkloadIdentity {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        match PeerId::from_str(text)? {
            PeerId::Workload(workload) => Ok(workload),
            PeerId::Sandbox(_) | PeerId::Other(_) => Err(IdentityError::WrongKind(
                "workload (spiffe://<td>/ns/<namespace>/sa/<serviceaccount>)",
            )),
        }
    }
}

/// Any well-formed SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId(Box<str>);

impl SpiffeId {
    /// The whole ID, `spiffe://…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a name in `domain`.
    pub fn is_in(&self, domain: &TrustDomain) -> bool {
        self.trust_domain_and_path().0 == domain.as_str()
    }

    fn trust_domain_and_path(&self) -> (&str, &str) {
        let rest = self.0.get("spiffe://".len()..).unwrap_or_default();
        rest.split_once('/').unwrap_or((rest, ""))
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;
    /// Checks the grammar of SPIFFE-ID section 2: no query, fragment, port, user info, percent-encoding, empty or dot
    /// segments, trailing slash or upper-case trust domain.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_SPIFFE_ID {
            return Err(IdentityError::NotSpiffe("longer than 2048 bytes"));
        }
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or(IdentityError::NotSpiffe("must start with spiffe://"))?;
        let (domain, path) = match rest.split_once('/') {
            Some((domain, path)) => (domain, Some(path)),
            None => (rest, None),
        };
        TrustDomain::from_str(domain)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        for segment in path.into_iter().flat_map(|path| path.split('/')) {
            if matches!(segment, "" | "." | "..") || !segment.bytes().all(allowed) {
                return Err(IdentityError::NotSpiffe(
                    "a path segment is empty, a dot segment or has other characters",
                ));
            }
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom a verified leaf certificate identifies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerId {
    /// A sandbox's gate.
    Sandbox(SandboxIdentity),
    /// A router, a control plane, or a workload that calls directly.
    Workload(WorkloadIdentity),
    /// Some other SPIFFE ID, for example of a workload outside Kubernetes.
    Other(SpiffeId),
}

impl PeerId {
    /// Reads the identity of a leaf whose chain has been verified already, and checks that it is meant for `usage`.
    ///
    /// # Errors
    /// Any certificate with other than exactly one URI SAN, with other than exactly the extended key usage `usage`, or
    /// with the CA flag.
    pub fn from_leaf(der: &[u8], usage: ExtendedKeyUsage) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Der)?;
        if !rest.is_empty() {
            return Err(IdentityError::Der);
        }
        if certificate.is_ca() {
            return Err(IdentityError::IsCa);
        }
        check_usage(&certificate, usage)?;
        only_uri(&certificate)?.parse()
    }

    /// The SPIFFE ID as text.
    pub fn to_spiffe_id(&self) -> SpiffeId {
        SpiffeId(self.to_string().into())
    }
}

fn check_usage(certificate: &X509Certificate<'_>, usage: ExtendedKeyUsage) -> Result<(), IdentityError> {
    let wrong = IdentityError::WrongUsage(usage);
    let found = certificate
        .extended_key_usage()
        .map_err(|_| IdentityError::Der)?
        .ok_or_else(|| wrong.clone())?
        .value;
    let others = found.any
        || found.code_signing
        || found.email_protection
        || found.time_stamping
        || found.ocsp_signing
        || !found.other.is_empty();
    let expected = match usage {
        ExtendedKeyUsage::ServerAuth => (true, false),
        ExtendedKeyUsage::ClientAuth => (false, true),
    };
    if others || (found.server_auth, found.client_auth) != expected {
        Err(wrong)
    } else {
        Ok(())
    }
}

fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let mut names = Vec::new();
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(found) => names.extend(found.general_names.iter()),
            ParsedExtension::ParseError { .. } => return Err(IdentityError::Der),
            _ => {}
        }
    }
    match names.as_slice() {
        [GeneralName::URI(uri)] => Ok(uri),
        [] => Err(IdentityError::NotOneUri("none".into())),
        [_] => Err(IdentityError::NotOneUri("one of another kind".into())),
        many => Err(IdentityError::NotOneUri(format!("{}", many.len()))),
    }
}

impl FromStr for PeerId {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let id = SpiffeId::from_str(text)?;
        let (domain, path) = id.trust_domain_and_path();
        let segments: Vec<&str> = path.split('/').collect();
        // A path that starts like ours but doesn't parse is refused, never taken for somebody else's naming scheme.
        match segments.as_slice() {
            ["ns", namespace, "sandbox", name, "pod", uid] => Ok(Self::Sandbox(SandboxIdentity {
                trust_domain: domain.parse()?,
                sandbox: SandboxKey {
                    namespace: namespace
                        .parse()
                        .map_err(|_| IdentityError::WrongKind("sandbox: bad namespace"))?,
                    name: name
                        .parse()
                        .map_err(|_| IdentityError::WrongKind("sandbox: bad name"))?,
                },
                pod_uid: uid
                    .parse()
                    .map_err(|_| IdentityError::WrongKind("sandbox: bad pod UID"))?,
            })),
            ["ns", namespace, "sa", account] => Ok(Self::Workload(WorkloadIdentity {
                trust_domain: domain.parse()?,
                namespace: namespace
                    .parse()
                    .map_err(|_| IdentityError::WrongKind("workload: bad namespace"))?,
                service_account: account
                    .parse()
                    .map_err(|_| IdentityError::WrongKind("workload: bad service account"))?,
            })),
            ["ns", ..] => Err(IdentityError::WrongKind("sandbox or workload")),
            _ => Ok(Self::Other(id)),
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(id) => id.fmt(f),
            Self::Workload(id) => id.fmt(f),
            Self::Other(id) => id.fmt(f),
        }
    }
}

/// The identity that a router requires of the gate it dials, computed before it dials.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExpectedSandbox {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Which sandbox.
    pub sandbox: SandboxKey,
    /// Which incarnation, where that is known.
    pub pod_uid: Option<PodUid>,
}

impl ExpectedSandbox {
    /// Whether `peer` is exactly that sandbox.
    pub fn admits(&self, peer: &PeerId) -> bool {
        let PeerId::Sandbox(found) = peer else { return false };
        found.trust_domain == self.trust_domain
            && found.sandbox == self.sandbox
            && self.pod_uid.as_ref().is_none_or(|uid| *uid == found.pod_uid)
    }
}

impl fmt::Display for ExpectedSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SandboxKey { namespace, name } = &self.sandbox;
        let uid = self.pod_uid.as_ref().map_or("*", PodUid::as_str);
        write!(
            f,
            "spiffe://{}/ns/{namespace}/sandbox/{name}/pod/{uid}",
            self.trust_domain
        )
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
