//! Whom a handshake lets in: the chain first, as rustls and webpki verify it, then the leaf, strictly.
//!
//! webpki alone isn't strict enough here. It takes a leaf without extended key usage for one of any use, and it looks
//! at no URI. So each verifier reads the identity itself, and a bad one fails the handshake, before any request.

use super::provider;
use crate::credentials::MeshCredentials;
use crate::identity::{
    ExpectedSandbox, ExtendedKeyUsage, IdentityError, PeerId, SpiffeId, TrustDomain, WorkloadIdentity,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// The one signature that mesh peers may make: their keys are ECDSA P-256 (TLS 1.3 binds the curve to the scheme).
const MESH_SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
/// Upper bound of a common name, in characters (X.520 `ub-common-name`).
const MAX_COMMON_NAME: usize = 64;

/// Why a peer whose chain verified is refused all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRejected {
    /// A gate, or something else, of the same authority answered in the sandbox's place.
    #[error("expected {expected}, but {found} answered; the address may belong to another pod by now")]
    OtherSandbox {
        /// Whom the router meant to reach.
        expected: Box<ExpectedSandbox>,
        /// Who answered.
        found: Box<PeerId>,
    },
    /// Somebody else of the same authority answered in a router's place.
    #[error("expected {expected}, but {found} answered; the address may belong to another pod by now")]
    OtherRouter {
        /// Whom the control plane meant to reach.
        expected: Box<WorkloadIdentity>,
        /// Who answered.
        found: Box<PeerId>,
    },
    /// The leaf identifies nobody.
    #[error("the peer's certificate is not one of this mesh: {0}")]
    Nobody(#[from] IdentityError),
    /// The leaf is of another trust domain than this process.
    #[error("{found} is not in the trust domain {own}; the trust bundle may hold another mesh's authority")]
    ForeignTrustDomain {
        /// This process's trust domain.
        own: TrustDomain,
        /// Who called.
        found: Box<PeerId>,
    },
    /// A sandbox's identity on a certificate for clients.
    #[error("{0} is a sandbox, and sandboxes do not call others; its certificate should not be for clients")]
    SandboxCalls(Box<PeerId>),
    /// Somebody else of this mesh asks for the control API.
    #[error("{0} is no control plane of this program; if it is one, correct --control-identity")]
    NoControlPlane(Box<PeerId>),
}

/// What a verifier of this module gave as its reason, if `error` holds a reason of that type.
pub(super) fn reason<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
        _ => None,
    }
}

impl From<PeerRejected> for Error {
    fn from(rejected: PeerRejected) -> Self {
        CertificateError::Other(OtherError(Arc::new(rejected))).into()
    }
}

/// Only reached by TLS 1.2, which isn't compiled in.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
}

fn verify_mesh_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    if signed.scheme != MESH_SCHEME {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    verify_tls13_signature(message, certificate, signed, algorithms)
}

/// The lower half of each verifier of the mesh: which signatures count. They differ in whom they let in, and in nothing else.
macro_rules! mesh_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            no_tls12()
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_mesh_signature(message, certificate, signed, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![MESH_SCHEME]
        }
    };
}

/// The router's: admits exactly the sandbox it dials.
#[derive(Debug)]
pub(super) struct SandboxVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    expected: ExpectedSandbox,
}

impl SandboxVerifier {
    /// Admits `expected` under the roots of `credentials`.
    pub(super) fn new(credentials: &MeshCredentials, expected: &ExpectedSandbox) -> Self {
        Self {
            roots: Arc::clone(credentials.roots()),
            algorithms: provider().signature_verification_algorithms,
            expected: expected.clone(),
        }
    }

    /// Whether the sandbox that is expected is who presents this chain.
    pub(super) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, self.algorithms.all)?;
        let found = PeerId::from_leaf(end_entity, ExtendedKeyUsage::ServerAuth).map_err(PeerRejected::from)?;
        if self.expected.admits(&found) {
            return Ok(());
        }
        Err(PeerRejected::OtherSandbox {
            expected: Box::new(self.expected.clone()),
            found: Box::new(found),
        }
        .into())
    }
}

impl ServerCertVerifier for SandboxVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // Sandboxes have no DNS names: the expected identity takes the server name's place.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    mesh_signatures!();
}

/// The control plane's: lets everybody finish the handshake who holds the key of what it presents. What that proves is
/// looked at afterwards: a gate that isn't enrolled has nothing to present but a certificate that it made itself.
#[derive(Debug)]
pub(super) struct AnyGate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyGate {
    pub(super) fn new() -> Self {
        Self {
            algorithms: provider().signature_verification_algorithms,
        }
    }
}

impl ServerCertVerifier for AnyGate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    mesh_signatures!();
}

/// The sidecar's: admits callers of its own trust domain. Which of them may do what is the policy's business, but for the
/// control API, which is for control planes only.
#[derive(Debug)]
pub(super) struct MeshCallerVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: TrustDomain,
    /// Nobody but these, if there are any.
    only: Option<Box<[WorkloadIdentity]>>,
}

impl MeshCallerVerifier {
    /// Admits callers of `trust_domain` under `roots`.
    pub(super) fn new(roots: &Arc<RootCertStore>, trust_domain: &TrustDomain) -> Result<Self, VerifierBuilderError> {
        Ok(Self {
            chain: WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider()).build()?,
            algorithms: provider().signature_verification_algorithms,
            trust_domain: trust_domain.clone(),
            only: None,
        })
    }

    /// The same for these callers and nobody else.
    pub(super) fn only(mut self, callers: &[WorkloadIdentity]) -> Self {
        self.only = Some(callers.into());
        self
    }
}

impl ClientCertVerifier for MeshCallerVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Mesh clients have one certificate each, so a hint would choose nothing.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let found = mesh_caller(end_entity, &self.trust_domain)?;
        match (&self.only, &found) {
            (None, _) => Ok(verified),
            (Some(only), PeerId::Workload(id)) if only.contains(id) => Ok(verified),
            (Some(_), _) => Err(PeerRejected::NoControlPlane(Box::new(found)).into()),
        }
    }

    mesh_signatures!();
}

fn mesh_caller(leaf: &CertificateDer<'_>, own: &TrustDomain) -> Result<PeerId, PeerRejected> {
    let found = PeerId::from_leaf(leaf, ExtendedKeyUsage::ClientAuth)?;
    let foreign = match &found {
        PeerId::Sandbox(_) => return Err(PeerRejected::SandboxCalls(Box::new(found))),
        PeerId::Workload(id) => id.trust_domain != *own,
        PeerId::Other(id) => !id.is_in(own),
    };
    if foreign {
        return Err(PeerRejected::ForeignTrustDomain {
            own: own.clone(),
            found: Box::new(found),
        });
    }
    Ok(found)
}

/// Whom a client certificate on the router's own listener identifies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FrontPeer {
    /// Its one URI name, a SPIFFE ID.
    Spiffe(SpiffeId),
    /// The common name of a certificate that claims no SPIFFE ID.
    CommonName(Box<str>),
}

/// Why a verified client certificate on the router's own listener identifies nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrontPeerError {
    /// The certificate's DER or one of its extensions couldn't be parsed.
    #[error("the client's certificate is not valid DER")]
    Der,
    /// A SPIFFE ID beside other URIs, or a malformed one. Never taken for its common name instead.
    #[error("the client's certificate claims a SPIFFE ID, but not exactly one well-formed one and no other URI")]
    BadSpiffeId,
    /// Neither a SPIFFE ID nor a usable common name.
    #[error("the client's certificate has neither a SPIFFE ID nor exactly one common name of 1 to 64 characters")]
    Nameless,
}

impl FrontPeer {
    /// Reads the identity of a leaf whose chain has been verified already.
    ///
    /// # Errors
    /// The leaf claims a SPIFFE ID in a way the standard forbids, or has no name at all.
    pub fn from_leaf(der: &[u8]) -> Result<Self, FrontPeerError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| FrontPeerError::Der)?;
        let mut uris = Vec::new();
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    uris.extend(names.general_names.iter().filter_map(uri));
                }
                ParsedExtension::ParseError { .. } => return Err(FrontPeerError::Der),
                _ => {}
            }
        }
        if uris.iter().any(|uri| uri.to_ascii_lowercase().starts_with("spiffe:")) {
            let [only] = uris.as_slice() else {
                return Err(FrontPeerError::BadSpiffeId);
            };
            return only.parse().map(Self::Spiffe).map_err(|_| FrontPeerError::BadSpiffeId);
        }
        common_name(&certificate)
            .map(Self::CommonName)
            .ok_or(FrontPeerError::Nameless)
    }
}

fn uri<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::URI(uri) => Some(uri),
        _ => None,
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<Box<str>> {
    let mut names = certificate.subject().iter_common_name();
    let (name, None) = (names.next()?.as_str().ok()?, names.next()) else {
        return None;
    };
    let fits = (1..=MAX_COMMON_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    fits.then(|| name.into())
}

/// The router's own listener's: any client of the configured authority that has a name.
#[derive(Debug)]
pub(super) struct FrontCallerVerifier {
    pub(super) chain: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for FrontCallerVerifier {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        FrontPeer::from_leaf(end_entity).map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
