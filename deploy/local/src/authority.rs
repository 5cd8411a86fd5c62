//! A certificate authority in memory. It signs whatever it is asked to, also leaves that no gate accepts: tests need
//! those. The key never leaves the process, so a restart makes a new mesh.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use sandgate_mesh::identity::{SandboxIdentity, WorkloadIdentity};
use std::time::{Duration, SystemTime};

/// How long a leaf lives.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How far `NotBefore` lies in the past, for peers whose clock is behind.
pub const BACKDATED: Duration = Duration::from_secs(60);
/// The authority's own certificate lives so long.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What a leaf says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafSpec {
    /// The subject. It must differ from the authority's, or verifiers take the leaf for self-signed.
    pub common_name: String,
    /// URI subject alternative names.
    pub uris: Vec<String>,
    /// DNS subject alternative names.
    pub dns: Vec<String>,
    /// Extended key usages; none leaves the extension out.
    pub usages: Vec<Usage>,
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// Whether it claims to be an authority itself.
    pub is_ca: bool,
}

/// An extended key usage (RFC 5280 section 4.2.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// `id-kp-serverAuth`.
    Server,
    /// `id-kp-clientAuth`.
    Client,
}

impl LeafSpec {
    /// A leaf that is valid from a minute ago for [`LIFETIME`], with one URI and one usage.
    pub fn new(common_name: impl Into<String>, uri: impl Into<String>, usage: Usage) -> Self {
        let now = SystemTime::now();
        Self {
            common_name: common_name.into(),
            uris: vec![uri.into()],
            dns: Vec::new(),
            usages: vec![usage],
            not_before: now - BACKDATED,
            not_after: now + LIFETIME,
            is_ca: false,
        }
    }

    fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(&self.common_name);
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(self.not_before);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(self.not_after);
        for uri in &self.uris {
            params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
        }
        for name in &self.dns {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.extended_key_usages = self.usages.iter().map(|usage| usage.purpose()).collect();
        if self.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        } else {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

impl Usage {
    fn purpose(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

/// A leaf and its key.
pub struct Issued {
    /// The leaf in PEM. It is the whole chain: the authority signs directly.
    pub chain_pem: String,
    /// Its private key, PKCS#8 in PEM.
    pub key_pem: String,
    /// The chain in DER, leaf first.
    pub chain_der: Vec<Vec<u8>>,
    /// Its private key, PKCS#8 in DER.
    pub key_der: Vec<u8>,
}

/// A self-signed root and its key, ECDSA P-256.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    root_der: Vec<u8>,
}

impl Authority {
    /// A new authority with a fresh key, called `common_name`.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new(common_name: &str) -> Result<Self, rcgen::Error> {
        let now = SystemTime::now();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(common_name);
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(now - BACKDATED);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(now + ROOT_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key)?;
        let (root_pem, root_der) = (root.pem(), root.der().to_vec());
        Ok(Self {
            issuer: Issuer::new(params, key),
            root_pem,
            root_der,
        })
    }

    /// The root certificate in PEM: the trust bundle.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root certificate in DER.
    pub fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    /// Signs a leaf with a fresh P-256 key. Its serial number is a hash of that key, so it is as random.
    ///
    /// # Errors
    /// A name in `spec` isn't ASCII, or the system gives no randomness.
    pub fn issue(&self, spec: &LeafSpec) -> Result<Issued, rcgen::Error> {
        self.issue_for(spec, &KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?)
    }

    /// Signs a leaf for `key`, of whatever kind it is.
    ///
    /// # Errors
    /// A name in `spec` isn't ASCII.
    pub fn issue_for(&self, spec: &LeafSpec, key: &KeyPair) -> Result<Issued, rcgen::Error> {
        let leaf = spec.params()?.signed_by(key, &self.issuer)?;
        Ok(Issued {
            chain_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
            chain_der: vec![leaf.der().to_vec()],
            key_der: key.serialize_der(),
        })
    }

    /// Signs a leaf for the key of a PKCS#10 request, and returns it in PEM. What else the request says doesn't count.
    ///
    /// # Errors
    /// The request can't be read, or isn't signed with its key; or a name in `spec` isn't ASCII.
    pub fn sign(&self, spec: &LeafSpec, request_pem: &str) -> Result<String, rcgen::Error> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)?;
        Ok(spec.params()?.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    /// A gate's leaf: serverAuth, valid for [`LIFETIME`].
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn sidecar(&self, identity: &SandboxIdentity) -> Result<Issued, rcgen::Error> {
        self.issue(&LeafSpec::new("sandgate sidecar", identity.to_string(), Usage::Server))
    }

    /// A router's leaf: clientAuth, valid for [`LIFETIME`].
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn router(&self, identity: &WorkloadIdentity) -> Result<Issued, rcgen::Error> {
        self.issue(&LeafSpec::new("sandgate router", identity.to_string(), Usage::Client))
    }
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// How long after 1970 `time` is: rcgen's own time type can't be named here, but a duration can be added to one.
fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
