use super::*;
use sandgate_mesh::credentials::{FrontCredentials, roots_from_pem};
use std::sync::Arc;

fn authority() -> Authority {
    let root = NewRoot::generate().unwrap();
    read(&root.certificate_pem, &root.key_pem).unwrap()
}

fn read(certificate: &str, key: &str) -> Result<Authority, AuthorityError> {
    Authority::from_pem(certificate.as_bytes(), key.as_bytes(), SystemTime::now())
}

/// A certificate that `change` made different from a root, with its key.
fn unlike_a_root(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = params(ROOT_NAME, SystemTime::now() + ROOT_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_root_reads_back_as_it_was_stored() {
    let stored = NewRoot::generate().unwrap();
    let found = read(&stored.certificate_pem, &stored.key_pem).unwrap();
    assert_eq!(
        Root::from_pem(stored.certificate_pem.as_bytes()).unwrap(),
        *found.root()
    );
    let (_, parsed) = X509Certificate::from_der(found.root().der()).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap().value;
    assert_eq!(constraints.path_len_constraint, Some(0), "it signs nothing that signs");
    let years = found
        .root()
        .not_after()
        .duration_since(SystemTime::now())
        .unwrap()
        .as_secs()
        / (365 * 86_400);
    assert_eq!(years, 9, "ten years less the time this test took");
    let (pem, key) = unlike_a_root(|_| {});
    assert!(
        read(&pem, &key).is_ok(),
        "what the other tests change is what they fail for"
    );
}

#[test]
fn a_root_that_does_not_fit_is_refused_for_what_is_wrong() {
    let (root, other) = (NewRoot::generate().unwrap(), NewRoot::generate().unwrap());
    let refused = |certificate: &str, key: &str| read(certificate, key).unwrap_err();
    assert_eq!(
        refused(&root.certificate_pem, &other.key_pem),
        AuthorityError::KeyMismatch
    );
    assert_eq!(refused(&root.certificate_pem, "x"), AuthorityError::Key);
    assert_eq!(
        refused(&root.certificate_pem, &root.certificate_pem),
        AuthorityError::Key
    );
    assert_eq!(refused("", &root.key_pem), AuthorityError::NotOne(0));
    let two = format!("{}{}", root.certificate_pem, other.certificate_pem);
    assert_eq!(refused(&two, &root.key_pem), AuthorityError::NotOne(2));
    let broken = root.certificate_pem.replace("-----END", "---END");
    assert_eq!(refused(&broken, &root.key_pem), AuthorityError::Pem);
    let (leaf, key) = unlike_a_root(|params| params.is_ca = IsCa::ExplicitNoCa);
    assert_eq!(refused(&leaf, &key), AuthorityError::NotAnAuthority);
    let (no_signer, key) = unlike_a_root(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    assert_eq!(refused(&no_signer, &key), AuthorityError::NotAnAuthority);
    let (foreign, key) = unlike_a_root(|params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "somebody-else");
    });
    assert_eq!(refused(&foreign, &key), AuthorityError::NotOurs);
}

#[test]
fn a_root_out_of_its_time_is_refused() {
    let root = NewRoot::generate().unwrap();
    let at = |now| Authority::from_pem(root.certificate_pem.as_bytes(), root.key_pem.as_bytes(), now);
    let now = SystemTime::now();
    assert!(at(now).is_ok());
    for out in [now - 2 * BACKDATED, now + ROOT_LIFETIME + BACKDATED] {
        assert_eq!(at(out).unwrap_err(), AuthorityError::NotValidNow);
    }
}

#[test]
fn no_error_and_no_debug_text_shows_a_key() {
    let root = NewRoot::generate().unwrap();
    let authority = read(&root.certificate_pem, &root.key_pem).unwrap();
    let error = read(&root.key_pem, &root.key_pem).unwrap_err();
    let secret = root.key_pem.lines().nth(1).unwrap();
    for text in [format!("{authority:?}"), format!("{error} {error:?}")] {
        assert!(!text.contains(&secret[..16]), "{text}");
    }
}

#[test]
fn a_serving_certificate_has_the_names_the_usage_and_the_time_it_must_have() {
    let authority = authority();
    let names = ["a.b.svc", "127.0.0.1", "::1"].map(|name| name.parse().unwrap());
    let issued = authority.serving(&names, Duration::from_secs(3600)).unwrap();
    let front = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    let now = SystemTime::now();
    assert!(
        front.validity().contains(now - BACKDATED / 2),
        "a peer's clock may be behind"
    );
    assert!(front.validity().contains(now + Duration::from_secs(3500)));
    assert!(!front.validity().contains(now + Duration::from_secs(3700)));

    let (_, pem) = x509_parser::pem::parse_x509_pem(issued.chain_pem.as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any);
    let names = format!(
        "{:?}",
        leaf.subject_alternative_name().unwrap().unwrap().value.general_names
    );
    assert_eq!(
        names,
        "[DNSName(\"a.b.svc\"), IPAddress([127, 0, 0, 1]), IPAddress([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])]"
    );
}

#[test]
fn a_serving_certificate_verifies_under_its_root_and_no_other() {
    let (authority, other) = (authority(), authority());
    let issued = authority
        .serving(&["a.svc".parse().unwrap()], SERVING_LIFETIME)
        .unwrap();
    let verify = |root: &Root| {
        let roots = Arc::new({
            let mut roots = rustls::RootCertStore::empty();
            roots.add(root.der().clone()).unwrap();
            roots
        });
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .unwrap();
        let leaf = CertificateDer::from_pem_slice(issued.chain_pem.as_bytes()).unwrap();
        let name = "a.svc".try_into().unwrap();
        let now = rustls_pki_types::UnixTime::now();
        rustls::client::danger::ServerCertVerifier::verify_server_cert(&*verifier, &leaf, &[], &name, &[], now).is_ok()
    };
    assert!(verify(authority.root()));
    assert!(!verify(other.root()));
    let bundle = crate::ca_bundle::pem(&[authority.root().der()]);
    assert!(roots_from_pem(bundle.as_bytes()).is_ok());
}

#[test]
fn a_serving_certificate_never_outlives_its_root() {
    let soon = SystemTime::now() + Duration::from_secs(90);
    let root = NewRoot::valid_until(soon).unwrap();
    let authority = read(&root.certificate_pem, &root.key_pem).unwrap();
    let issued = authority
        .serving(&["a.svc".parse().unwrap()], SERVING_LIFETIME)
        .unwrap();
    assert_eq!(issued.not_after, authority.root().not_after());
}

#[test]
fn names_that_no_certificate_should_have_are_refused() {
    for good in ["a", "sandgate-injector.agent-sandbox-system.svc", "127.0.0.1", "::1"] {
        assert_eq!(good.parse::<ServingName>().unwrap().to_string(), good);
    }
    let long = "a".repeat(64);
    for bad in [
        "",
        ".",
        "a.",
        "*.svc",
        "A.svc",
        "a b",
        "-a",
        "a-",
        "[::1]",
        "127.0.0.1:8443",
        "ä",
        &long,
    ] {
        assert!(bad.parse::<ServingName>().is_err(), "{bad:?}");
    }
}
