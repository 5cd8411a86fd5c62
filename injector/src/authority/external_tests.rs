use super::*;
use crate::authority::{BACKDATED, ROOT_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384,
};

const DAY: Duration = Duration::from_secs(86_400);

fn own() -> WorkloadIdentity {
    "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-injector"
        .parse()
        .unwrap()
}

/// A company's root. It signs intermediates for whoever asks.
pub(crate) struct Company {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Company {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "company");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, certificate }
    }

    /// An intermediate as it should be, but for what `change` makes different: its chain and its key.
    pub(crate) fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> [String; 2] {
        self.with_key(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), change)
    }

    fn with_key(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> [String; 2] {
        let mut params = crate::authority::params(ROOT_NAME, SystemTime::now() + 90 * DAY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        let certificate = params.signed_by(key, &self.issuer).unwrap().pem();
        [format!("{certificate}{}", self.certificate), key.serialize_pem()]
    }
}

/// What files hold that a company has signed.
pub(crate) fn external() -> ExternalAuthority {
    let [chain, key] = Company::new().intermediate(|_| {});
    read(&chain, &key).unwrap()
}

/// The same with this key, PEM.
pub(crate) fn external_with_key(key: &str) -> ExternalAuthority {
    let key = KeyPair::from_pem(key).unwrap();
    let [chain, key] = Company::new().with_key(&key, |_| {});
    read(&chain, &key).unwrap()
}

fn read(chain: &str, key: &str) -> Result<ExternalAuthority, ExternalError> {
    ExternalAuthority::from_pem(chain.as_bytes(), key.as_bytes(), &own(), SystemTime::now())
}

fn named(names: &[(DnType, &str)]) -> DistinguishedName {
    let mut found = DistinguishedName::new();
    for (kind, value) in names {
        found.push(kind.clone(), *value);
    }
    found
}

#[test]
fn an_intermediate_is_itself_what_is_trusted_whatever_stands_above_it() {
    let company = Company::new();
    let [chain, key] = company.intermediate(|_| {});
    let found = read(&chain, &key).unwrap();
    assert!(chain.starts_with(&found.certificate_pem()) && !found.certificate_pem().contains(&company.certificate));
    assert_eq!(found.key_pem(), key);
    assert!(!format!("{found:?}").contains("PRIVATE"));
    // Anything that keeps leafs possible: any path length, a longer name, a purpose that covers both, no chain at all.
    for change in [
        (|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)) as fn(&mut CertificateParams),
        |params| {
            params.distinguished_name =
                named(&[(DnType::OrganizationName, "Company"), (DnType::CommonName, ROOT_NAME)]);
        },
        |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        },
    ] {
        let [chain, key] = company.intermediate(change);
        read(&chain, &key).unwrap();
    }
    let alone = chain.strip_suffix(&company.certificate).unwrap();
    assert_eq!(read(alone, &key).unwrap(), found);
    // Or a root, as cert-manager makes with a self-signed issuer.
    let root = crate::authority::NewRoot::generate().unwrap();
    read(&root.certificate_pem, &root.key_pem).unwrap();
}

#[test]
fn what_cannot_serve_as_the_authority_is_refused_for_what_is_wrong() {
    let company = Company::new();
    let refused = |change: fn(&mut CertificateParams)| {
        let [chain, key] = company.intermediate(change);
        read(&chain, &key).unwrap_err()
    };
    let authority = ExternalError::Authority;
    for (change, error) in [
        (
            (|params| params.is_ca = IsCa::ExplicitNoCa) as fn(&mut CertificateParams),
            authority(AuthorityError::NotAnAuthority),
        ),
        (
            |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature],
            authority(AuthorityError::NotAnAuthority),
        ),
        (|params| params.key_usages = Vec::new(), ExternalError::NoKeyUsage),
        (
            |params| params.distinguished_name = named(&[(DnType::CommonName, "company-issuer-7")]),
            authority(AuthorityError::NotOurs),
        ),
        (
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            ExternalError::Purpose,
        ),
        (
            |params| {
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName("company.example".into())],
                    excluded_subtrees: Vec::new(),
                });
            },
            ExternalError::NameConstraints,
        ),
        (
            |params| params.not_after = params.not_before + 6 * DAY,
            ExternalError::EndsSoon,
        ),
        (
            |params| params.not_after = params.not_before + BACKDATED / 2,
            authority(AuthorityError::NotValidNow),
        ),
        (
            |params| params.not_before += DAY,
            authority(AuthorityError::NotValidNow),
        ),
    ] {
        assert_eq!(refused(change), error);
    }
    let odd = refused(|params| {
        let mut odd = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
        odd.set_criticality(true);
        params.custom_extensions = vec![odd];
    });
    assert_eq!(odd, ExternalError::Critical("1.3.6.1.4.1.99999.1".into()));
}

#[test]
fn files_that_do_not_belong_together_are_refused_for_what_is_wrong() {
    let company = Company::new();
    let ([chain, key], [_, other_key]) = (company.intermediate(|_| {}), company.intermediate(|_| {}));
    let wrong = |chain: &str, key: &str| match read(chain, key).unwrap_err() {
        ExternalError::Authority(error) => error,
        other => panic!("{other}"),
    };
    assert_eq!(wrong(&chain, &other_key), AuthorityError::KeyMismatch);
    assert_eq!(wrong(&chain, "junk"), AuthorityError::Key);
    // SEC 1, as cert-manager writes it unless it is told otherwise: what PKCS#8 has inside.
    let whole = ::pem::parse(&key).unwrap().into_contents();
    let inner = whole
        .windows(5)
        .position(|bytes| bytes == [0x30, 0x6b, 2, 1, 1])
        .unwrap();
    let sec1 = ::pem::encode(&::pem::Pem::new("EC PRIVATE KEY", &whole[inner..]));
    assert_eq!(wrong(&chain, &sec1), AuthorityError::Key);
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let [large, large_key] = company.with_key(&p384, |_| {});
    assert_eq!(wrong(&large, &large_key), AuthorityError::Key);
    assert_eq!(wrong("", &key), AuthorityError::NotOne(0));
    assert_eq!(wrong(&key, &chain), AuthorityError::NotOne(0), "swapped");
    assert_eq!(
        wrong(&chain.replacen("-----END", "---END", 1), &key),
        AuthorityError::Pem
    );
    // The company's root first: whoever has put the chain together has it the wrong way round.
    let turned = format!(
        "{}{}",
        company.certificate,
        chain.strip_suffix(&company.certificate).unwrap()
    );
    assert_eq!(wrong(&turned, &key), AuthorityError::NotOurs);
    let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(wrong(&format!("{chain}{junk}"), &key), AuthorityError::Certificate);
}

/// Under the company's root anybody may have one, of the same name and for the same identities.
#[test]
fn what_another_intermediate_of_the_company_signs_is_believed_by_nobody() {
    let company = Company::new();
    let [ours, theirs] = [(); 2].map(|()| {
        let [chain, key] = company.intermediate(|_| {});
        read(&chain, &key).unwrap()
    });
    let bundle = ours.certificate_pem();
    let believed = |by: &ExternalAuthority, above: &str| {
        let (certificate, key) = (by.certificate_pem(), by.key_pem().as_bytes());
        let authority = Authority::from_pem(certificate.as_bytes(), key, SystemTime::now()).unwrap();
        let leaf = authority.client_leaf(&own(), DAY).unwrap();
        let (chain, key) = (format!("{}{above}", leaf.chain_pem), leaf.key_pem.as_bytes());
        let (bundle, domain) = (bundle.as_bytes(), &own().trust_domain);
        MeshCredentials::from_pem(Role::ControlPlane, chain.as_bytes(), key, bundle, domain).is_ok()
    };
    let above = format!("{}{}", theirs.certificate_pem(), company.certificate);
    for above in ["", &theirs.certificate_pem(), &above] {
        assert!(!believed(&theirs, above), "{above}");
    }
    assert!(believed(&ours, "") && believed(&ours, &company.certificate));
}
