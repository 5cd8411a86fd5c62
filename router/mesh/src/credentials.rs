//! Certificates and keys, parsed and checked once. What holds for a value of these types needs no second look later:
//! the key belongs to the certificate, the leaf is one its role may use, and its chain ends in the bundle.
//!
//! Expiry is the exception, since it comes with time: expired credentials still parse, so that a restarted process
//! says that they expired instead of refusing to start. See [`crate::standing`].

mod files;
mod validity;

pub use files::{BundleFiles, MeshFiles, poll_bundle, poll_router, poll_sidecar};
pub use validity::{Unfit, Validity};

use crate::control::bundle_digest;
use crate::identity::{ExtendedKeyUsage, IdentityError, PeerId, SandboxIdentity, TrustDomain, WorkloadIdentity};
use crate::tls;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Which end of the mesh a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A sandbox's gate: a server, with a sandbox's identity.
    Sidecar,
    /// A router: a client, with a workload's identity.
    Router,
    /// A control plane: a client, too, of the control API and of nothing else.
    ControlPlane,
}

impl Role {
    const fn usage(self) -> ExtendedKeyUsage {
        match self {
            Self::Sidecar => ExtendedKeyUsage::ServerAuth,
            Self::Router | Self::ControlPlane => ExtendedKeyUsage::ClientAuth,
        }
    }

    /// What it is called in a sentence.
    const fn word(self) -> &'static str {
        match self {
            Self::Sidecar => "gate",
            Self::Router => "router",
            Self::ControlPlane => "control plane",
        }
    }

    const fn form(self) -> &'static str {
        match self {
            Self::Sidecar => "spiffe://<trust domain>/ns/<namespace>/sandbox/<name>/pod/<uid>",
            Self::Router | Self::ControlPlane => "spiffe://<trust domain>/ns/<namespace>/sa/<serviceaccount>",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
            Self::ControlPlane => "control plane",
        })
    }
}

/// Which of the files an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The leaf certificate and its intermediates, leaf first.
    Chain,
    /// The leaf's private key.
    Key,
    /// The certificates of the authorities that are trusted.
    Bundle,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chain => "certificate chain",
            Self::Key => "private key",
            Self::Bundle => "trust bundle",
        })
    }
}

/// Why credentials can't be used. No text repeats bytes of a file: one of them is a private key.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CredentialsError {
    /// Not PEM (RFC 7468).
    #[error("{0} is not valid PEM; it must hold whole BEGIN/END blocks of base64")]
    Pem(Part),
    /// No certificate among the PEM blocks.
    #[error("{0} holds no certificate; it must have at least one BEGIN CERTIFICATE block")]
    NoCertificate(Part),
    /// No private key among the PEM blocks.
    #[error("private key file holds no key; it must have one BEGIN PRIVATE KEY block, not encrypted")]
    NoKey,
    /// More than one private key.
    #[error("private key file holds {0} keys; it must hold exactly the certificate's")]
    SeveralKeys(usize),
    /// A kind of key that can't be loaded, or damaged.
    #[error("private key is damaged or of an unsupported kind; use ECDSA P-256 in PKCS#8")]
    UnsupportedKey,
    /// The mesh uses one kind of key.
    #[error("private key is not ECDSA P-256, the only kind the mesh accepts")]
    NotP256,
    /// The key isn't the leaf's.
    #[error("private key does not belong to the first certificate of the chain; one of the two files may be stale")]
    KeyMismatch,
    /// A certificate that can't be parsed.
    #[error("{0}: a certificate is not valid DER X.509 v3")]
    BadCertificate(Part),
    /// A certificate in the bundle is a leaf.
    #[error("trust bundle holds a certificate that is not a certificate authority's; chain and bundle may be swapped")]
    NotAnAuthority,
    /// The leaf identifies nobody.
    #[error("certificate chain: the first certificate cannot be a {role}'s: {cause}")]
    Identity {
        /// The role it is for.
        role: Role,
        /// What is wrong with it.
        cause: IdentityError,
    },
    /// The leaf identifies something of another kind.
    #[error("certificate chain: {found} is not a {role}'s identity, which is {}", .role.form())]
    WrongKind {
        /// The role it is for.
        role: Role,
        /// Whom it identifies.
        found: Box<PeerId>,
    },
    /// The leaf is of another trust domain than is configured.
    #[error("certificate chain: {found} is not in the configured trust domain {configured}")]
    WrongTrustDomain {
        /// The configured trust domain.
        configured: TrustDomain,
        /// Whom the leaf identifies.
        found: Box<PeerId>,
    },
    /// The leaf is another's than this program's.
    #[error("certificate chain: {found} is not this {}'s identity, which is {expected}", .role.word())]
    WrongIdentity {
        /// The role it is for.
        role: Role,
        /// Who this is.
        expected: Box<PeerId>,
        /// Whom the leaf identifies.
        found: Box<PeerId>,
    },
    /// The chain doesn't end in the bundle.
    #[error("certificate chain does not verify under the trust bundle: {0}; the bundle may be another authority's")]
    Untrusted(rustls::Error),
}

/// What a process of the mesh proves itself with, and whom it believes.
pub struct MeshCredentials {
    role: Role,
    identity: PeerId,
    trust_domain: TrustDomain,
    certified_key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    bundle_digest: Option<String>,
    validity: Validity,
}

impl fmt::Debug for MeshCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            role,
            identity,
            validity,
            ..
        } = self;
        f.debug_struct("MeshCredentials")
            .field("role", role)
            .field("identity", &format_args!("{identity}"))
            .field("validity", validity)
            .finish_non_exhaustive()
    }
}

impl MeshCredentials {
    /// Credentials from the contents of PEM files: the chain (leaf first), its key, and the trusted authorities.
    ///
    /// # Errors
    /// What [`CredentialsError`] lists. Being expired or not yet valid is no error.
    pub fn from_pem(
        role: Role,
        chain: &[u8],
        key: &[u8],
        bundle: &[u8],
        trust_domain: &TrustDomain,
    ) -> Result<Self, CredentialsError> {
        let roots = roots_from_pem(bundle)?;
        let chain = certificates(Part::Chain, chain)?;
        let found = Self::from_der(role, chain, &private_key(key)?, roots, trust_domain)?;
        Ok(Self {
            bundle_digest: std::str::from_utf8(bundle).ok().and_then(bundle_digest),
            ..found
        })
    }

    /// The credentials of the gate of `own`, as [`from_pem`](Self::from_pem) reads them.
    ///
    /// # Errors
    /// Another sandbox's are refused, too: every router would.
    pub fn of_gate(chain: &[u8], key: &[u8], bundle: &[u8], own: &SandboxIdentity) -> Result<Self, CredentialsError> {
        let found = Self::from_pem(Role::Sidecar, chain, key, bundle, &own.trust_domain)?;
        found.only(PeerId::Sandbox(own.clone()))
    }

    /// The credentials of a router that is to be `own`, as [`from_pem`](Self::from_pem) reads them.
    ///
    /// # Errors
    /// Another workload's are refused, too: gates wouldn't know it.
    pub fn of_router(
        chain: &[u8],
        key: &[u8],
        bundle: &[u8],
        own: &WorkloadIdentity,
    ) -> Result<Self, CredentialsError> {
        let found = Self::from_pem(Role::Router, chain, key, bundle, &own.trust_domain)?;
        found.only(PeerId::Workload(own.clone()))
    }

    /// These credentials, if they are those of `expected`.
    fn only(self, expected: PeerId) -> Result<Self, CredentialsError> {
        if self.identity == expected {
            return Ok(self);
        }
        Err(CredentialsError::WrongIdentity {
            role: self.role,
            expected: Box::new(expected),
            found: Box::new(self.identity),
        })
    }

    /// Credentials from decoded certificates and key.
    ///
    /// # Errors
    /// What [`CredentialsError`] lists, save for what concerns PEM.
    pub fn from_der(
        role: Role,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        roots: Arc<RootCertStore>,
        trust_domain: &TrustDomain,
    ) -> Result<Self, CredentialsError> {
        let (certified_key, validity) = certified_key(chain, key)?;
        if certified_key
            .key
            .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])
            .is_none()
        {
            return Err(CredentialsError::NotP256);
        }
        let [leaf, intermediates @ ..] = certified_key.cert.as_slice() else {
            return Err(CredentialsError::NoCertificate(Part::Chain));
        };
        let identity = own_identity(role, leaf, trust_domain)?;
        check_chain(role, leaf, intermediates, &roots, validity).map_err(CredentialsError::Untrusted)?;
        let trust_domain = trust_domain.clone();
        Ok(Self {
            role,
            identity,
            trust_domain,
            certified_key: Arc::new(certified_key),
            roots,
            bundle_digest: None,
            validity,
        })
    }

    /// Which end of the mesh these are for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whom they identify.
    pub fn identity(&self) -> &PeerId {
        &self.identity
    }

    /// The trust domain of this process and of everyone it believes.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The [`bundle_digest`] of the trusted authorities, if they were read from PEM.
    pub fn bundle_digest(&self) -> Option<&str> {
        self.bundle_digest.as_deref()
    }

    /// From when until when the leaf may be used.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Whether the leaf may be used at `time`.
    pub fn valid_at(&self, time: SystemTime) -> bool {
        self.validity.contains(time)
    }

    pub(crate) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified_key
    }

    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

/// Credentials as they are now; `None` before the first.
pub type Credentials = watch::Receiver<Option<Arc<MeshCredentials>>>;

/// What the router's own listener proves itself with to clients: any certificate that clients trust.
pub struct FrontCredentials {
    certified_key: Arc<CertifiedKey>,
    validity: Validity,
}

impl fmt::Debug for FrontCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontCredentials")
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

impl FrontCredentials {
    /// Credentials from the contents of PEM files: the chain, leaf first, and its key.
    ///
    /// # Errors
    /// Bad PEM, no certificate, not exactly one key, a key that isn't supported or isn't the leaf's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CredentialsError> {
        let (certified_key, validity) = certified_key(certificates(Part::Chain, chain)?, &private_key(key)?)?;
        Ok(Self {
            certified_key: Arc::new(certified_key),
            validity,
        })
    }

    /// From when until when the leaf may be used.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    pub(crate) fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified_key
    }
}

/// The authorities in the contents of a PEM file.
///
/// # Errors
/// Bad PEM, no certificate, or one that isn't a certificate authority's.
pub fn roots_from_pem(bundle: &[u8]) -> Result<Arc<RootCertStore>, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(Part::Bundle, bundle)? {
        // The root store takes any certificate and then believes whatever its key signs.
        let is_ca = X509Certificate::from_der(&certificate).is_ok_and(|(_, parsed)| parsed.is_ca());
        if !is_ca {
            return Err(CredentialsError::NotAnAuthority);
        }
        roots
            .add(certificate)
            .map_err(|_| CredentialsError::BadCertificate(Part::Bundle))?;
    }
    Ok(Arc::new(roots))
}

pub(crate) fn certificates(part: Part, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|_| CredentialsError::Pem(part))?;
    if found.is_empty() {
        Err(CredentialsError::NoCertificate(part))
    } else {
        Ok(found)
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let found: Result<Vec<_>, _> = PrivateKeyDer::pem_slice_iter(pem).collect();
    let mut found = found.map_err(|_| CredentialsError::Pem(Part::Key))?;
    match (found.pop(), found.len()) {
        (None, _) => Err(CredentialsError::NoKey),
        (Some(key), 0) => Ok(key),
        (Some(_), others) => Err(CredentialsError::SeveralKeys(others + 1)),
    }
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Result<(CertifiedKey, Validity), CredentialsError> {
    let leaf = chain.first().ok_or(CredentialsError::NoCertificate(Part::Chain))?;
    let validity = Validity::of(leaf)?;
    let key = ring::sign::any_supported_type(key).map_err(|_| CredentialsError::UnsupportedKey)?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => CredentialsError::KeyMismatch,
        _ => CredentialsError::BadCertificate(Part::Chain),
    })?;
    Ok((certified, validity))
}

fn own_identity(role: Role, leaf: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Result<PeerId, CredentialsError> {
    let found = PeerId::from_leaf(leaf, role.usage()).map_err(|cause| CredentialsError::Identity { role, cause })?;
    let domain = match (role, &found) {
        (Role::Sidecar, PeerId::Sandbox(id)) => &id.trust_domain,
        (Role::Router | Role::ControlPlane, PeerId::Workload(id)) => &id.trust_domain,
        _ => {
            return Err(CredentialsError::WrongKind {
                role,
                found: Box::new(found),
            });
        }
    };
    if domain != trust_domain {
        let configured = trust_domain.clone();
        return Err(CredentialsError::WrongTrustDomain {
            configured,
            found: Box::new(found),
        });
    }
    Ok(found)
}

/// Verifies as the peers will, so that a wrong bundle is found at load and not by everyone's failing handshakes.
fn check_chain(
    role: Role,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
    validity: Validity,
) -> Result<(), rustls::Error> {
    let now = SystemTime::now().min(validity.not_after).max(validity.not_before);
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let provider = tls::provider();
    match role {
        Role::Sidecar => {
            let algorithms = provider.signature_verification_algorithms.all;
            let leaf = ParsedCertificate::try_from(leaf)?;
            verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)
        }
        Role::Router | Role::ControlPlane => WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_client_cert(leaf, intermediates, now)
            .map(|_verified| ()),
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
