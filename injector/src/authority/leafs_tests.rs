use super::super::{BACKDATED, NewRoot, Root};
use super::*;
use rcgen::{BasicConstraints, CustomExtension, DnType, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::identity::{ExtendedKeyUsage, PeerId};
use x509_parser::prelude::{FromDer, X509Certificate};

const LIFETIME: Duration = Duration::from_secs(3600);

fn authority_until(not_after: SystemTime) -> Authority {
    let root = NewRoot::valid_until(not_after).unwrap();
    let (certificate, key) = (root.certificate_pem.as_bytes(), root.key_pem.as_bytes());
    Authority::from_pem(certificate, key, SystemTime::now()).unwrap()
}

fn authority() -> Authority {
    authority_until(SystemTime::now() + 1000 * LIFETIME)
}

fn sandbox() -> SandboxIdentity {
    match "spiffe://cluster.local/ns/team-a/sandbox/box/pod/0b1c".parse() {
        Ok(PeerId::Sandbox(identity)) => identity,
        other => panic!("{other:?}"),
    }
}

/// A request for a fresh P-256 key that `change` has made different.
fn csr(change: impl FnOnce(&mut CertificateParams)) -> String {
    signed_with(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), change)
}

fn signed_with(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    change(&mut params);
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn refused(csr: &str) -> RequestError {
    match authority().sign_gate(csr, &sandbox(), LIFETIME) {
        Err(SignError::Request(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// Some bytes of a request replaced by as many others.
fn tampered(csr: &str, from: &[u8], to: &[u8]) -> String {
    let mut block = pem::parse(csr).unwrap().into_contents();
    let place = block.windows(from.len()).position(|window| window == from).unwrap();
    block[place..place + from.len()].copy_from_slice(to);
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", block))
}

#[test]
fn a_gates_leaf_is_that_sandbox_as_a_server_and_as_nothing_else() {
    let authority = authority();
    let signed = authority.sign_gate(&csr(|_| {}), &sandbox(), LIFETIME).unwrap();
    let leaf = der(&signed.chain_pem);
    let id = PeerId::from_leaf(&leaf, ExtendedKeyUsage::ServerAuth).unwrap();
    assert_eq!(id, PeerId::Sandbox(sandbox()));
    assert!(PeerId::from_leaf(&leaf, ExtendedKeyUsage::ClientAuth).is_err());
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    assert!(!parsed.is_ca());
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.flags == 1, "{usage}");
    let not_before = u64::try_from(parsed.validity().not_before.timestamp()).unwrap();
    let backdated = SystemTime::UNIX_EPOCH + Duration::from_secs(not_before) + BACKDATED;
    assert!(backdated <= SystemTime::now(), "a peer's clock may be behind");
    assert!(signed.not_after <= SystemTime::now() + LIFETIME);
}

#[test]
fn the_mesh_takes_a_gates_leaf_for_a_sidecars() {
    let (authority, key) = (authority(), KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    let signed = authority
        .sign_gate(&signed_with(&key, |_| {}), &sandbox(), LIFETIME)
        .unwrap();
    let bundle = crate::ca_bundle::pem(&[authority.root().der()]);
    let credentials = |role| {
        let (chain, key) = (signed.chain_pem.as_bytes(), key.serialize_pem());
        MeshCredentials::from_pem(role, chain, key.as_bytes(), bundle.as_bytes(), &sandbox().trust_domain)
    };
    assert_eq!(
        credentials(Role::Sidecar).unwrap().identity(),
        &PeerId::Sandbox(sandbox())
    );
    assert!(credentials(Role::ControlPlane).is_err());
}

#[test]
fn a_routers_leaf_is_that_workload_as_a_client_and_as_nothing_else() {
    let (authority, key) = (authority(), KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    let identity: WorkloadIdentity = "spiffe://cluster.local/ns/here/sa/sandbox-router".parse().unwrap();
    // Names in the request count for as little as a gate's do.
    let csr = signed_with(&key, |params| {
        params.subject_alt_names = vec![SanType::URI(sandbox().to_string().as_str().try_into().unwrap())];
    });
    let signed = authority.sign_router(&csr, &identity, LIFETIME).unwrap();
    let leaf = der(&signed.chain_pem);
    let id = PeerId::from_leaf(&leaf, ExtendedKeyUsage::ClientAuth).unwrap();
    assert_eq!(id, PeerId::Workload(identity.clone()));
    assert!(PeerId::from_leaf(&leaf, ExtendedKeyUsage::ServerAuth).is_err());
    let bundle = crate::ca_bundle::pem(&[authority.root().der()]);
    let (chain, key) = (signed.chain_pem.as_bytes(), key.serialize_pem());
    let of =
        |identity: &WorkloadIdentity| MeshCredentials::of_router(chain, key.as_bytes(), bundle.as_bytes(), identity);
    assert_eq!(of(&identity).unwrap().validity().not_after, signed.not_after);
    assert!(of(&"spiffe://cluster.local/ns/here/sa/other".parse().unwrap()).is_err());
}

#[test]
fn the_control_planes_leaf_is_that_workload_as_a_client_and_as_nothing_else() {
    let authority = authority();
    let identity: WorkloadIdentity = "spiffe://cluster.local/ns/here/sa/sandbox-injector".parse().unwrap();
    let issued = authority.client_leaf(&identity, LIFETIME).unwrap();
    let bundle = crate::ca_bundle::pem(&[authority.root().der()]);
    let credentials = |role| {
        let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        MeshCredentials::from_pem(role, chain, key, bundle.as_bytes(), &identity.trust_domain)
    };
    let found = credentials(Role::ControlPlane).unwrap();
    assert_eq!(found.identity(), &PeerId::Workload(identity.clone()));
    assert!(credentials(Role::Sidecar).is_err());
    let other = authority.client_leaf(&identity, LIFETIME).unwrap();
    assert_ne!(other.key_pem, issued.key_pem, "a fresh key each time");
}

#[test]
fn nothing_that_a_request_asks_for_gets_into_the_leaf() {
    let greedy = csr(|params| {
        params.distinguished_name.push(DnType::CommonName, "sandgate-authority");
        params.subject_alt_names = vec![
            SanType::URI("spiffe://cluster.local/ns/here/sa/sandbox-router".try_into().unwrap()),
            SanType::DnsName("sandgate-injector.here.svc".try_into().unwrap()),
        ];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Any];
        // One that no reader of certificates knows.
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    });
    let signed = authority().sign_gate(&greedy, &sandbox(), LIFETIME).unwrap();
    let leaf = der(&signed.chain_pem);
    let id = PeerId::from_leaf(&leaf, ExtendedKeyUsage::ServerAuth).unwrap();
    assert_eq!(id, PeerId::Sandbox(sandbox()));
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    assert!(!parsed.is_ca() && !parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(parsed.subject().to_string(), "CN=sandbox-sidecar");
    assert!(
        !parsed
            .extensions()
            .iter()
            .any(|extension| extension.oid.to_id_string() == "1.2.3.4")
    );
}

#[test]
fn who_does_not_hold_the_key_gets_no_leaf_for_it() {
    let (own, stolen) = (
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
    );
    let request = signed_with(&own, |params| {
        params.distinguished_name.push(DnType::OrganizationName, "before");
    });
    let (own, stolen) = (own.public_key_raw(), stolen.public_key_raw());
    assert_eq!(refused(&tampered(&request, own, stolen)), RequestError::Signature);
    assert_eq!(
        refused(&tampered(&request, b"before", b"behind")),
        RequestError::Signature
    );
}

#[test]
fn keys_of_other_kinds_are_refused() {
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(refused(&signed_with(&key, |_| {})), RequestError::Key, "{algorithm:?}");
    }
    // Made with `openssl req -new`; the second has points as long as those of P-256.
    assert_eq!(refused(include_str!("testdata/rsa.csr.pem")), RequestError::Key);
    assert_eq!(refused(include_str!("testdata/secp256k1.csr.pem")), RequestError::Key);
}

#[test]
fn what_is_no_request_is_refused() {
    let good = csr(|_| {});
    assert_eq!(refused(""), RequestError::Pem);
    assert_eq!(refused("-----BEGIN CERTIFICATE REQUEST-----\n"), RequestError::Pem);
    assert_eq!(refused(&format!("{good}{good}")), RequestError::Pem);
    let root = crate::ca_bundle::pem(&[authority().root().der()]);
    assert_eq!(refused(&root), RequestError::Pem);
    let junk = |bytes: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes));
    assert_eq!(refused(&junk(b"junk")), RequestError::Der);
    let mut longer = pem::parse(&good).unwrap().into_contents();
    for length in 0..longer.len() {
        assert_eq!(
            refused(&junk(&longer[..length])),
            RequestError::Der,
            "the first {length} bytes"
        );
    }
    longer.push(0);
    assert_eq!(refused(&junk(&longer)), RequestError::Der);
    let long = good.replace("-----END", &format!("{}\n-----END", "A".repeat(5000)));
    assert_eq!(refused(&long), RequestError::TooLarge(long.len()));
}

#[test]
fn no_leaf_outlives_its_root() {
    let authority = authority_until(SystemTime::now() + LIFETIME);
    let signed = authority.sign_gate(&csr(|_| {}), &sandbox(), SERVING_LIFETIME).unwrap();
    assert_eq!(signed.not_after, authority.root().not_after());
    let identity = "spiffe://cluster.local/ns/here/sa/sandbox-injector".parse().unwrap();
    let issued = authority.client_leaf(&identity, SERVING_LIFETIME).unwrap();
    assert_eq!(issued.not_after, authority.root().not_after());
}

#[test]
fn a_root_that_has_expired_signs_no_gate() {
    let mut authority = authority();
    authority.root = Root {
        not_after: SystemTime::now() - BACKDATED,
        ..authority.root.clone()
    };
    let answer = authority.sign_gate(&csr(|_| {}), &sandbox(), LIFETIME);
    assert!(matches!(answer, Err(SignError::RootNotValid)), "{answer:?}");
}
