//! A gate's or a router's PKCS#10 request (RFC 2986), of which the key is all that counts.
//!
//! Whoever wrote it is believed nothing: names, extensions and attributes in it are never looked at, so none of them can
//! get into a certificate.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::FromDer;

/// The largest request that is read, in bytes of PEM: some ten times what a gate sends.
const MAX_BYTES: usize = 4096;
/// The tag of the one PEM block.
const TAG: &str = "CERTIFICATE REQUEST";
/// A point of P-256 as certificates hold it (SEC 1, uncompressed): a tag and two coordinates.
const POINT_BYTES: usize = 65;

/// Why a request is refused. No text repeats bytes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nothing that big is a request for a key of the mesh.
    #[error("it has {0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
    /// Not PEM, or not one request.
    #[error("it isn't one PEM block CERTIFICATE REQUEST")]
    Pem,
    /// Not a request.
    #[error("it isn't valid DER PKCS#10")]
    Der,
    /// Another kind of key.
    #[error("its key isn't ECDSA P-256, the only kind the mesh accepts")]
    Key,
    /// Made by somebody who doesn't hold the key, or changed since.
    #[error("it isn't signed with its own key")]
    Signature,
}

/// The key in a request whose signature proves that whoever made it holds the key.
pub(super) fn public_key(pem: &str) -> Result<SubjectPublicKeyInfo, RequestError> {
    if pem.len() > MAX_BYTES {
        return Err(RequestError::TooLarge(pem.len()));
    }
    let mut blocks = pem::parse_many(pem).map_err(|_| RequestError::Pem)?;
    let (Some(block), true) = (blocks.pop(), blocks.is_empty()) else {
        return Err(RequestError::Pem);
    };
    if block.tag() != TAG {
        return Err(RequestError::Pem);
    }
    let (rest, request) = X509CertificationRequest::from_der(block.contents()).map_err(|_| RequestError::Der)?;
    if !rest.is_empty() {
        return Err(RequestError::Der);
    }
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
    let point = &key.subject_public_key.data;
    let p256 = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve.is_some_and(|curve| curve == OID_EC_P256);
    if !p256 || point.len() != POINT_BYTES || point.first() != Some(&4) {
        return Err(RequestError::Key);
    }
    // The algorithm is the request's own word, which must not choose another check than the key's.
    if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 || request.verify_signature().is_err() {
        return Err(RequestError::Signature);
    }
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| RequestError::Key)
}
