//! An authority that somebody else has made: cert-manager's, or an intermediate under a company's root. It takes the place of a
//! root that the injector makes: **it is itself what gates, routers and API servers trust**, and not what stands above it. So
//! whoever has another intermediate of the same company is nobody here.

use super::{Authority, AuthorityError, Root};
use crate::ca_bundle::pem;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::identity::WorkloadIdentity;
use std::fmt;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

/// How long it must still be valid when it is taken. To give it to everybody and to have another take its place later takes
/// as long as pods live.
const LEAST_LEFT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Why files hold no authority. No text repeats bytes of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExternalError {
    /// It could be no root either.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Verifiers that are strict want to see it.
    #[error("the certificate has no keyUsage; an authority's must have keyCertSign")]
    NoKeyUsage,
    /// What it signs is for servers and for clients.
    #[error(
        "the certificate's extendedKeyUsage leaves out serverAuth or clientAuth, and it signs for both; leave the extension out"
    )]
    Purpose,
    /// Verifiers don't agree about them where SPIFFE IDs are concerned.
    #[error("the certificate has nameConstraints, which aren't supported; have it issued without")]
    NameConstraints,
    /// API servers take no certificate with something in it that must be understood and isn't.
    #[error("the certificate has a critical extension that isn't supported, {0}; have it issued without")]
    Critical(String),
    /// There would be no time to replace it.
    #[error("the certificate expires in less than {} days; have it renewed", LEAST_LEFT.as_secs() / 86_400)]
    EndsSoon,
    /// Something else about it doesn't serve.
    #[error("what the certificate signs isn't believed under it: {0}")]
    Disbelieved(String),
}

/// An authority in files: its certificate without what stands above it, and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalAuthority {
    root: Root,
    key_pem: String,
}

impl fmt::Debug for ExternalAuthority {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalAuthority")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl ExternalAuthority {
    /// The authority in the contents of two PEM files: a chain whose first certificate signs, and its key. What follows in the
    /// chain must be certificates and isn't used. `own` is somebody for whom it will sign.
    ///
    /// # Errors
    /// What [`ExternalError`] lists, as of `now`.
    pub fn from_pem(chain: &[u8], key: &[u8], own: &WorkloadIdentity, now: SystemTime) -> Result<Self, ExternalError> {
        let certificate_pem = pem(&[first(chain)?]);
        let authority = Authority::from_pem(certificate_pem.as_bytes(), key, now)?;
        let root = authority.root().clone();
        check_extensions(root.der())?;
        if !root.valid_at(now + LEAST_LEFT) {
            return Err(ExternalError::EndsSoon);
        }
        let signs = authority.client_leaf(own, LEAST_LEFT);
        let signs = signs.map_err(|error| ExternalError::Disbelieved(error.to_string()))?;
        let (leaf, leaf_key) = (signs.chain_pem.as_bytes(), signs.key_pem.as_bytes());
        let bundle = certificate_pem.as_bytes();
        MeshCredentials::from_pem(Role::ControlPlane, leaf, leaf_key, bundle, &own.trust_domain)
            .map_err(|error| ExternalError::Disbelieved(error.to_string()))?;
        let key_pem = String::from_utf8(key.to_vec()).map_err(|_| AuthorityError::Key)?;
        Ok(Self { root, key_pem })
    }

    /// Its certificate, as what is trusted.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The certificate in PEM.
    pub(crate) fn certificate_pem(&self) -> String {
        pem(&[self.root.der()])
    }

    /// The key, PKCS#8 in PEM.
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

fn first(chain: &[u8]) -> Result<CertificateDer<'static>, AuthorityError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(chain) {
        let certificate = certificate.map_err(|_| AuthorityError::Pem)?;
        X509Certificate::from_der(&certificate).map_err(|_| AuthorityError::Certificate)?;
        found.push(certificate);
    }
    found.into_iter().next().ok_or(AuthorityError::NotOne(0))
}

/// What isn't asked of roots that are made here, since they are made so.
fn check_extensions(certificate: &CertificateDer<'_>) -> Result<(), ExternalError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| AuthorityError::Certificate)?;
    let unreadable = |_| AuthorityError::Certificate;
    if parsed.key_usage().map_err(unreadable)?.is_none() {
        return Err(ExternalError::NoKeyUsage);
    }
    if parsed.name_constraints().map_err(unreadable)?.is_some() {
        return Err(ExternalError::NameConstraints);
    }
    let odd = parsed.extensions().iter().find(|extension| {
        let known = matches!(
            extension.parsed_extension(),
            ParsedExtension::BasicConstraints(_) | ParsedExtension::KeyUsage(_) | ParsedExtension::ExtendedKeyUsage(_)
        );
        extension.critical && !known
    });
    if let Some(odd) = odd {
        return Err(ExternalError::Critical(odd.oid.to_id_string()));
    }
    let purpose = parsed.extended_key_usage().map_err(unreadable)?;
    let serves =
        |both: &x509_parser::extensions::ExtendedKeyUsage<'_>| both.any || both.server_auth && both.client_auth;
    if purpose.is_some_and(|purpose| !serves(purpose.value)) {
        return Err(ExternalError::Purpose);
    }
    Ok(())
}

#[cfg(test)]
#[path = "external_tests.rs"]
pub(crate) mod tests;
