//! From when until when a certificate counts, and why it doesn't now.

use super::{CredentialsError, Part};
use crate::telemetry::utc;
use rustls_pki_types::CertificateDer;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a process has no identity that counts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// None has come yet.
    #[error("no identity")]
    Absent,
    /// Its certificate's last second is past.
    #[error("certificate expired at {}", utc(*.0))]
    Expired(SystemTime),
    /// Its certificate's first second is to come.
    #[error("certificate not valid before {}", utc(*.0))]
    NotYetValid(SystemTime),
}

/// From when until when a certificate may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second of it.
    pub not_before: SystemTime,
    /// The last second of it.
    pub not_after: SystemTime,
}

impl Validity {
    /// Whether `time` is within it.
    pub fn contains(&self, time: SystemTime) -> bool {
        self.check(time).is_ok()
    }

    /// Whether `time` is within it, and if not, on which side.
    ///
    /// # Errors
    /// [`Unfit::Expired`] or [`Unfit::NotYetValid`].
    pub fn check(&self, time: SystemTime) -> Result<(), Unfit> {
        if time > self.not_after {
            Err(Unfit::Expired(self.not_after))
        } else if time < self.not_before {
            Err(Unfit::NotYetValid(self.not_before))
        } else {
            Ok(())
        }
    }

    /// Reads a certificate's.
    ///
    /// # Errors
    /// [`CredentialsError::BadCertificate`].
    pub fn of(leaf: &CertificateDer<'_>) -> Result<Self, CredentialsError> {
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| CredentialsError::BadCertificate(Part::Chain))?;
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let validity = parsed.validity();
        Ok(Self {
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }
}
