//! The only code that signs. A root lives in a Secret; what it vouches for lives in memory and for a day.

mod external;
mod leafs;
mod request;
mod root_id;

pub use external::{ExternalAuthority, ExternalError};
pub use leafs::{Issued, SERVING_LIFETIME, ServingName, SignError, Signed};
pub use request::RequestError;
pub use root_id::RootId;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::fmt;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The subject of every root. Among certificates that a webhook configuration holds, it tells ours from others.
pub const ROOT_NAME: &str = "sandgate-authority";
/// How long a root lives.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// The longest root in DER, in bytes: gates get their roots in an environment variable, and there may be two.
const MAX_ROOT: usize = 4 << 10;
/// How far `NotBefore` lies in the past, for peers whose clock is behind.
pub(crate) const BACKDATED: Duration = Duration::from_secs(60);

/// Why a root can't be used. No text repeats bytes of it: one part is a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Not PEM, or not text.
    #[error("the certificate isn't valid PEM")]
    Pem,
    /// No certificate, or several.
    #[error("there must be exactly one certificate, and there are {0}")]
    NotOne(usize),
    /// Not X.509.
    #[error("the certificate isn't valid DER X.509 v3")]
    Certificate,
    /// A certificate that can sign nothing.
    #[error("the certificate isn't an authority's (basicConstraints CA and keyUsage keyCertSign)")]
    NotAnAuthority,
    /// Somebody else's root.
    #[error("the certificate's subject isn't CN={ROOT_NAME}, by which Sandgate knows its roots")]
    NotOurs,
    /// More than a gate can be told.
    #[error("the certificate is longer than {} KiB", MAX_ROOT >> 10)]
    TooLong,
    /// Out of date.
    #[error("the certificate isn't valid now; it may have expired, or this machine's clock is wrong")]
    NotValidNow,
    /// Another kind of key, or none.
    #[error("the private key isn't ECDSA P-256 in PKCS#8 PEM")]
    Key,
    /// The key of another certificate.
    #[error("the private key isn't the certificate's")]
    KeyMismatch,
}

/// A root certificate, without its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    der: CertificateDer<'static>,
    key: RootId,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Root")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Root {
    /// The root in a PEM text that must hold nothing else.
    ///
    /// # Errors
    /// What [`AuthorityError`] says about certificates; being out of date is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, AuthorityError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let mut found = found.map_err(|_| AuthorityError::Pem)?;
        match (found.pop(), found.len()) {
            (Some(one), 0) => Self::from_der(one),
            (_, others) => Err(AuthorityError::NotOne(others + usize::from(others > 0))),
        }
    }

    /// The root in DER.
    ///
    /// # Errors
    /// What [`AuthorityError`] says about certificates; being out of date is none.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, AuthorityError> {
        if der.len() > MAX_ROOT {
            return Err(AuthorityError::TooLong);
        }
        let (rest, parsed) = X509Certificate::from_der(&der).map_err(|_| AuthorityError::Certificate)?;
        if !rest.is_empty() {
            return Err(AuthorityError::Certificate);
        }
        let usage = parsed.key_usage().map_err(|_| AuthorityError::Certificate)?;
        if !parsed.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(AuthorityError::NotAnAuthority);
        }
        let names: Vec<_> = parsed
            .subject()
            .iter_common_name()
            .map(|name| name.as_str().ok())
            .collect();
        if names != [Some(ROOT_NAME)] {
            return Err(AuthorityError::NotOurs);
        }
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        let (not_before, not_after) = (time(not_before.timestamp()), time(not_after.timestamp()));
        let key = RootId::of(parsed.public_key().raw);
        Ok(Self {
            der,
            key,
            not_before,
            not_after,
        })
    }

    /// The certificate in DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its name.
    pub fn id(&self) -> RootId {
        RootId::of(&self.der)
    }

    /// The name of its key, whichever certificate that has: SHA-256 of the `SubjectPublicKeyInfo`.
    pub(crate) fn key_id(&self) -> RootId {
        self.key
    }

    /// Whether it has signed this certificate. Whether that is valid otherwise is another question.
    pub fn has_signed(&self, certificate: &CertificateDer<'_>) -> bool {
        let parsed = X509Certificate::from_der(&self.der).ok();
        let signed = X509Certificate::from_der(certificate).ok();
        let both = parsed.zip(signed);
        both.is_some_and(|((_, root), (_, signed))| signed.verify_signature(Some(root.public_key())).is_ok())
    }

    /// The first second in which it may be used.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last second in which it may be used.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it may be used at `time`.
    pub fn valid_at(&self, time: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&time)
    }
}

/// A new root and its key, as they are stored.
pub struct NewRoot {
    /// The certificate in PEM.
    pub certificate_pem: String,
    /// The key, PKCS#8 in PEM.
    pub key_pem: String,
}

impl NewRoot {
    /// Makes a root with a fresh key.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Self, rcgen::Error> {
        Self::valid_until(SystemTime::now() + ROOT_LIFETIME)
    }

    pub(crate) fn valid_until(not_after: SystemTime) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(ROOT_NAME, not_after);
        // It signs leafs, and nothing that signs.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key)?;
        Ok(Self {
            certificate_pem: root.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// A root with its key.
pub struct Authority {
    root: Root,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority in a root and its key, both PEM, as of `now`.
    ///
    /// # Errors
    /// What [`AuthorityError`] lists.
    pub fn from_pem(certificate: &[u8], key: &[u8], now: SystemTime) -> Result<Self, AuthorityError> {
        let root = Root::from_pem(certificate)?;
        if !root.valid_at(now) {
            return Err(AuthorityError::NotValidNow);
        }
        let key = std::str::from_utf8(key).map_err(|_| AuthorityError::Key)?;
        let key =
            KeyPair::from_pkcs8_pem_and_sign_algo(key, &PKCS_ECDSA_P256_SHA256).map_err(|_| AuthorityError::Key)?;
        let (_, parsed) = X509Certificate::from_der(root.der()).map_err(|_| AuthorityError::Certificate)?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(root.der(), key).map_err(|_| AuthorityError::Certificate)?;
        Ok(Self { root, issuer })
    }

    /// Its root.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

fn params(common_name: &str, not_after: SystemTime) -> CertificateParams {
    // rcgen's own time type can't be named here, but a duration can be added to one.
    let epoch =
        |time: SystemTime| date_time_ymd(1970, 1, 1) + time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = epoch(SystemTime::now() - BACKDATED);
    params.not_after = epoch(not_after);
    params
}

#[cfg(test)]
pub(crate) use external::tests::{external, external_with_key};

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
