//! Certificates that prove too little, or something else.

use super::*;

/// What makes a fine leaf of the right authority unusable.
type Flaw = (&'static str, fn(&mut LeafSpec));

const FLAWS: [Flaw; 13] = [
    ("two URIs", |leaf| {
        leaf.uris.push("spiffe://cluster.local/ns/x/sa/y".into());
    }),
    ("the same URI twice", |leaf| leaf.uris.extend_from_within(..)),
    ("no name", |leaf| leaf.uris.clear()),
    ("a DNS name instead", |leaf| {
        (leaf.uris, leaf.dns) = (vec![], vec!["alpha".into()]);
    }),
    ("a DNS name besides", |leaf| leaf.dns.push("alpha".into())),
    ("no SPIFFE ID", |leaf| {
        leaf.uris[0] = leaf.uris[0].replace("spiffe", "https");
    }),
    ("a malformed SPIFFE ID", |leaf| leaf.uris[0] += "/../y"),
    ("the other end's usage", |leaf| {
        leaf.usages[0] = if leaf.usages == [Usage::Client] {
            Usage::Server
        } else {
            Usage::Client
        }
    }),
    ("both usages", |leaf| leaf.usages = vec![Usage::Server, Usage::Client]),
    ("no usage", |leaf| leaf.usages.clear()),
    ("an authority's flag", |leaf| leaf.is_ca = true),
    ("expired", |leaf| {
        leaf.not_after = SystemTime::now() - Duration::from_secs(30);
    }),
    ("not yet valid", |leaf| {
        leaf.not_before = SystemTime::now() + Duration::from_secs(30);
    }),
];

fn about_leaf(refusal: &HandshakeError) -> bool {
    matches!(
        refusal,
        HandshakeError::PeerIdentity(_) | HandshakeError::PeerCertificate(_)
    )
}

#[tokio::test]
async fn a_gate_refuses_every_unusable_leaf() {
    let mesh = Mesh::new();
    let good = LeafSpec::new("router", ROUTER, Usage::Client);
    assert!(
        meet(&mesh.gate, &mesh.router_with(&good)).await.0.is_ok(),
        "the leaf they are made from is fine"
    );
    for (name, flaw) in FLAWS {
        let mut leaf = good.clone();
        flaw(&mut leaf);
        let refusal = gate_refuses(&mesh.gate, &mesh.router_with(&leaf)).await;
        assert!(about_leaf(&refusal), "{name}: {refusal}");
    }
}

#[tokio::test]
async fn a_router_refuses_every_unusable_leaf() {
    let mesh = Mesh::new();
    let good = LeafSpec::new("gate", SANDBOX, Usage::Server);
    assert!(
        meet(&mesh.gate_with(&good), &mesh.router).await.1.is_ok(),
        "the leaf they are made from is fine"
    );
    for (name, flaw) in FLAWS {
        let mut leaf = good.clone();
        flaw(&mut leaf);
        let refusal = router_refuses(&mesh.gate_with(&leaf), &mesh.router).await;
        assert!(about_leaf(&refusal), "{name}: {refusal}");
    }
}

#[tokio::test]
async fn a_leaf_for_the_other_end_of_the_mesh_is_useless() {
    let mesh = Mesh::new();
    let stolen = mesh.router_with(&LeafSpec::new("gate", SANDBOX, Usage::Server));
    let refusal = gate_refuses(&mesh.gate, &stolen).await;
    assert!(
        matches!(refusal, HandshakeError::PeerCertificate(_)),
        "a gate's as a client: {refusal}"
    );
    let stolen = mesh.gate_with(&LeafSpec::new("router", ROUTER, Usage::Client));
    let refusal = router_refuses(&stolen, &mesh.router).await;
    assert!(
        matches!(refusal, HandshakeError::PeerCertificate(_)),
        "a router's as a server: {refusal}"
    );
    let impersonating = mesh.gate_with(&LeafSpec::new("router", ROUTER, Usage::Server));
    let refusal = router_refuses(&impersonating, &mesh.router).await;
    assert!(
        matches!(refusal, HandshakeError::PeerIdentity(PeerRejected::OtherSandbox { .. })),
        "{refusal}"
    );
}

#[tokio::test]
async fn callers_of_another_trust_domain_and_sandboxes_are_refused() {
    let mesh = Mesh::new();
    for foreign in [
        "spiffe://other.local/ns/system/sa/router",
        "spiffe://other.local/batch",
        "spiffe://other.local",
    ] {
        let refusal = gate_refuses(
            &mesh.gate,
            &mesh.router_with(&LeafSpec::new("x", foreign, Usage::Client)),
        )
        .await;
        let foreign = matches!(
            refusal,
            HandshakeError::PeerIdentity(PeerRejected::ForeignTrustDomain { .. })
        );
        assert!(foreign, "{refusal}");
    }
    let refusal = gate_refuses(
        &mesh.gate,
        &mesh.router_with(&LeafSpec::new("x", SANDBOX, Usage::Client)),
    )
    .await;
    assert!(
        matches!(refusal, HandshakeError::PeerIdentity(PeerRejected::SandboxCalls(_))),
        "{refusal}"
    );
    let outside = mesh.router_with(&LeafSpec::new(
        "x",
        "spiffe://cluster.local/batch/nightly",
        Usage::Client,
    ));
    assert!(
        meet(&mesh.gate, &outside).await.0.is_ok(),
        "whether it may do anything is the policy's business"
    );
}

/// Signs as it can, whatever the peer has asked for.
#[derive(Debug)]
struct Stubborn(Arc<dyn SigningKey>);

impl SigningKey for Stubborn {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.0.choose_scheme(&[SignatureScheme::ECDSA_NISTP384_SHA384])
    }
    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[tokio::test]
async fn a_key_of_another_kind_is_refused_at_both_ends() {
    let mesh = Mesh::new();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let stubborn = |leaf: &LeafSpec| {
        let issued = mesh.authority.issue_for(leaf, &p384).unwrap();
        let key = any_supported_type(&PrivateKeyDer::try_from(issued.key_der).unwrap()).unwrap();
        let chain = issued.chain_der.into_iter().map(Into::into).collect();
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(
            chain,
            Arc::new(Stubborn(key)),
        )))
    };
    let mut router = ClientConfig::clone(&mesh.router);
    router.client_auth_cert_resolver = stubborn(&LeafSpec::new("router", ROUTER, Usage::Client));
    let refusal = gate_refuses(&mesh.gate, &Arc::new(router)).await;
    assert!(
        matches!(refusal, HandshakeError::Tls(rustls::Error::PeerMisbehaved(_))),
        "{refusal}"
    );
    let mut gate = ServerConfig::clone(&mesh.gate);
    gate.cert_resolver = stubborn(&LeafSpec::new("gate", SANDBOX, Usage::Server));
    let refusal = router_refuses(&Arc::new(gate), &mesh.router).await;
    assert!(
        matches!(refusal, HandshakeError::Tls(rustls::Error::PeerMisbehaved(_))),
        "{refusal}"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let mut anonymous = ClientConfig::clone(&mesh.router);
    anonymous.client_auth_cert_resolver = Arc::new(NoCertificate);
    let refusal = gate_refuses(&mesh.gate, &Arc::new(anonymous)).await;
    assert!(matches!(refusal, HandshakeError::NoPeerCertificate), "{refusal}");
}

#[derive(Debug)]
pub(super) struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}
