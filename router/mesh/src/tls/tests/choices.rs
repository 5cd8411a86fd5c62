//! The choices that all configurations share, whatever rustls' defaults are.

use super::*;

/// The extensions of the `ClientHello` that `config` sends, in ascending order.
fn hello_extensions(config: Arc<ClientConfig>) -> Vec<(u16, Vec<u8>)> {
    let mut hello = Vec::new();
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    rustls::ClientConnection::new(config, name)
        .unwrap()
        .write_tls(&mut hello)
        .unwrap();
    let number = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
    let after_session = 5 + 4 + 2 + 32 + 1 + usize::from(hello[5 + 4 + 2 + 32]);
    let after_suites = after_session + 2 + number(after_session);
    let mut at = after_suites + 1 + usize::from(hello[after_suites]) + 2;
    let mut found = Vec::new();
    while at < hello.len() {
        let end = at + 4 + number(at + 2);
        found.push((u16::try_from(number(at)).unwrap(), hello[at + 4..end].to_vec()));
        at = end;
    }
    found.sort();
    found
}

#[test]
fn a_clients_hello_offers_these_extensions_and_no_other() {
    let (_, control) = control::configurations();
    assert_hello(Mesh::new().router, b"\x00\x0e\x0dsandgate-h1/1");
    assert_hello(Arc::new(control), b"\x00\x13\x12sandgate-control/1");
}

fn assert_hello(config: Arc<ClientConfig>, alpn: &[u8]) {
    let found = hello_extensions(config);
    let value = |wanted: u16| {
        found
            .iter()
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value.as_slice())
    };
    // No server_name (0), session_ticket (35), pre_shared_key (41), early_data (42) or compress_certificate (27).
    let kinds: Vec<u16> = found.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(
        kinds,
        [5, 10, 11, 13, 16, 23, 43, 45, 51],
        "status_request to key_share"
    );
    assert_eq!(
        value(10),
        Some([0, 6, 0, 0x1d, 0, 0x17, 0, 0x18].as_slice()),
        "X25519, P-256, P-384"
    );
    assert_eq!(value(13), Some([0, 2, 4, 3].as_slice()), "ecdsa_secp256r1_sha256");
    assert_eq!(value(16), Some(alpn));
    assert_eq!(value(43), Some([2, 3, 4].as_slice()), "TLS 1.3");
}

#[test]
fn the_choices_are_these_whatever_the_defaults_are() {
    let provider = provider();
    let suites: Vec<_> = provider
        .cipher_suites
        .iter()
        .map(|suite| format!("{:?}", suite.suite()))
        .collect();
    assert_eq!(
        suites,
        [
            "TLS13_AES_128_GCM_SHA256",
            "TLS13_AES_256_GCM_SHA384",
            "TLS13_CHACHA20_POLY1305_SHA256"
        ]
    );
    let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
    assert_eq!(
        groups,
        [NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1]
    );

    let mesh = Mesh::new();
    let (front, _) = front::server(&mesh.authority, MtlsMode::Required);
    let issued = mesh
        .authority
        .issue(&LeafSpec::new("webhook", "https://webhook.test", Usage::Server))
        .unwrap();
    let webhook = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    let webhook = webhook_server_config(&webhook).unwrap();
    let (control, control_client) = control::configurations();
    for (config, alpn) in [
        (&mesh.gate, &[ALPN_MESH_HTTP1, ALPN_MESH_HTTP2][..]),
        (&control, &[ALPN_CONTROL]),
        (&front, &[ALPN_HTTP2, ALPN_HTTP1]),
        (&webhook, &[ALPN_HTTP2, ALPN_HTTP1]),
    ] {
        assert!(Arc::ptr_eq(config.crypto_provider(), &provider));
        assert_eq!(config.alpn_protocols, alpn);
        assert!(!config.session_storage.can_cache() && !config.ticketer.enabled());
        assert_eq!(
            (
                config.send_tls13_tickets,
                config.max_tls13_tickets,
                config.max_early_data_size
            ),
            (0, 0, 0)
        );
        assert!(!config.send_half_rtt_data && !config.enable_secret_extraction && !config.key_log.will_log("any"));
        assert_eq!(config.max_fragment_size, None);
        assert!(config.cert_compressors.is_empty() && config.cert_decompressors.is_empty());
    }
    for client in [&*mesh.router, &control_client] {
        assert!(Arc::ptr_eq(client.crypto_provider(), &provider));
        assert!(!client.enable_early_data && !client.enable_sni && client.check_selected_alpn);
        assert!(!client.enable_secret_extraction && !client.key_log.will_log("any"));
        assert_eq!(client.max_fragment_size, None);
    }
}

#[test]
fn credentials_of_the_other_role_make_no_configuration() {
    let authority = Authority::new("mesh").unwrap();
    let issue = |uri: &str, usage| authority.issue(&LeafSpec::new("x", uri, usage)).unwrap();
    let router = credentials(Role::Router, &issue(ROUTER, Usage::Client), &authority);
    let sidecar = credentials(Role::Sidecar, &issue(SANDBOX, Usage::Server), &authority);
    assert!(matches!(
        sidecar_server_config(&router),
        Err(TlsError::WrongRole { .. })
    ));
    assert!(matches!(
        router_client_config(HttpVersion::Http1, &sidecar, &expected(SANDBOX)),
        Err(TlsError::WrongRole { .. })
    ));
}
