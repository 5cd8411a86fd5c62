//! The router's own listener.

use super::*;

pub(super) fn server(authority: &Authority, mode: MtlsMode) -> (Arc<ServerConfig>, Arc<RootCertStore>) {
    let mut leaf = LeafSpec::new("front", "", Usage::Server);
    (leaf.uris, leaf.dns) = (vec![], vec!["router.test".into()]);
    let issued = authority.issue(&leaf).unwrap();
    let front = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    let roots = roots_from_pem(authority.root_pem().as_bytes()).unwrap();
    let clients = FrontClients::new(Some(&roots), mode).unwrap();
    (front_server_config(&front, &clients).unwrap(), roots)
}

/// What the router's own listener makes of a client that presents `leaf`.
async fn call_front(mode: MtlsMode, leaf: Option<&LeafSpec>) -> Result<Option<FrontPeer>, HandshakeError> {
    let authority = Authority::new("front").unwrap();
    let (server, roots) = server(&authority, mode);
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .unwrap();
    let mut client = builder.with_root_certificates(roots).with_no_client_auth();
    if let Some(leaf) = leaf {
        client.client_auth_cert_resolver = Arc::new(signer(&authority.issue(leaf).unwrap()));
    }
    let (near, far) = sockets().await;
    let connecting = TlsConnector::from(Arc::new(client)).connect("router.test".try_into().unwrap(), near);
    let (accepted, _connected) = tokio::join!(accept_front(far, server), connecting);
    accepted.map(|(_, peer)| peer)
}

#[tokio::test]
async fn a_front_client_is_its_spiffe_id_or_its_common_name() {
    let leaf = LeafSpec::new("alice", "spiffe://example.org/alice", Usage::Client);
    let named = LeafSpec {
        uris: vec!["https://example.org/alice".into()],
        ..leaf.clone()
    };
    for mode in [MtlsMode::Optional, MtlsMode::Required] {
        let spiffe = call_front(mode, Some(&leaf)).await.unwrap();
        assert_eq!(
            spiffe,
            Some(FrontPeer::Spiffe("spiffe://example.org/alice".parse().unwrap()))
        );
        let common = call_front(mode, Some(&named)).await.unwrap();
        assert_eq!(common, Some(FrontPeer::CommonName("alice".into())));
    }
}

#[tokio::test]
async fn a_front_certificate_that_identifies_nobody_is_refused_and_never_anonymous() {
    let good = LeafSpec::new("alice", "spiffe://example.org/alice", Usage::Client);
    let uris = |uris: &[&str]| LeafSpec {
        uris: uris.iter().map(|uri| (*uri).into()).collect(),
        ..good.clone()
    };
    for leaf in [
        uris(&["spiffe://example.org/alice", "spiffe://example.org/bob"]),
        uris(&["https://example.org", "spiffe://example.org/bob"]),
        uris(&["spiffe://example.org/../bob"]),
        uris(&["SPIFFE://example.org/bob"]),
        LeafSpec {
            common_name: String::new(),
            ..uris(&[])
        },
        LeafSpec {
            common_name: "a\nb".into(),
            ..uris(&[])
        },
        LeafSpec {
            common_name: "x".repeat(65),
            ..uris(&[])
        },
    ] {
        let refusal = call_front(MtlsMode::Optional, Some(&leaf)).await.unwrap_err();
        assert!(matches!(refusal, HandshakeError::FrontPeer(_)), "{leaf:?}: {refusal}");
    }
    let server_only = LeafSpec {
        usages: vec![Usage::Server],
        ..good
    };
    let refusal = call_front(MtlsMode::Optional, Some(&server_only)).await.unwrap_err();
    assert!(matches!(refusal, HandshakeError::PeerCertificate(_)), "{refusal}");
}

#[tokio::test]
async fn a_front_client_without_a_certificate_needs_a_mode_that_lets_it_in() {
    assert_eq!(call_front(MtlsMode::Off, None).await.unwrap(), None);
    assert_eq!(call_front(MtlsMode::Optional, None).await.unwrap(), None);
    assert!(matches!(
        call_front(MtlsMode::Required, None).await,
        Err(HandshakeError::NoPeerCertificate)
    ));
    assert!(matches!(
        FrontClients::new(None, MtlsMode::Optional),
        Err(TlsError::NoClientCa)
    ));
}
