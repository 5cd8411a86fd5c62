//! Handshakes over real loopback sockets, one per promise or attack.

use super::*;
use crate::authority::{Authority, Issued, LeafSpec, Usage};
use crate::credentials::roots_from_pem;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::sign::{Signer, SigningKey};
use rustls::{HandshakeKind, NamedGroup, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::PrivateKeyDer;
use std::io;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const SANDBOX: &str = "spiffe://cluster.local/ns/team-a/sandbox/alpha/pod/u1";
const ROUTER: &str = "spiffe://cluster.local/ns/system/sa/router";

/// An authority, and the configurations of one honest gate and one honest router under it.
struct Mesh {
    authority: Authority,
    gate: Arc<ServerConfig>,
    router: Arc<ClientConfig>,
}

impl Mesh {
    fn new() -> Self {
        Self::named("mesh")
    }

    fn named(authority: &str) -> Self {
        let authority = Authority::new(authority).unwrap();
        let sidecar = authority.issue(&LeafSpec::new("gate", SANDBOX, Usage::Server)).unwrap();
        let gate = sidecar_server_config(&credentials(Role::Sidecar, &sidecar, &authority)).unwrap();
        let router = router_dialing(&authority, SANDBOX);
        Self {
            authority,
            gate,
            router,
        }
    }

    fn gate_with(&self, leaf: &LeafSpec) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.gate);
        config.cert_resolver = Arc::new(signer(&self.authority.issue(leaf).unwrap()));
        Arc::new(config)
    }

    fn router_with(&self, leaf: &LeafSpec) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.router);
        config.client_auth_cert_resolver = Arc::new(signer(&self.authority.issue(leaf).unwrap()));
        Arc::new(config)
    }
}

fn credentials(role: Role, issued: &Issued, authority: &Authority) -> MeshCredentials {
    let (chain, key, bundle) = (
        issued.chain_pem.as_bytes(),
        issued.key_pem.as_bytes(),
        authority.root_pem(),
    );
    MeshCredentials::from_pem(role, chain, key, bundle.as_bytes(), &"cluster.local".parse().unwrap()).unwrap()
}

fn router_dialing(authority: &Authority, sandbox: &str) -> Arc<ClientConfig> {
    let issued = authority
        .issue(&LeafSpec::new("router", ROUTER, Usage::Client))
        .unwrap();
    router_client_config(&credentials(Role::Router, &issued, authority), &expected(sandbox)).unwrap()
}

fn expected(sandbox: &str) -> ExpectedSandbox {
    let PeerId::Sandbox(id) = sandbox.parse().unwrap() else {
        panic!("{sandbox} is no sandbox")
    };
    ExpectedSandbox {
        trust_domain: id.trust_domain,
        sandbox: id.sandbox,
        pod_uid: Some(id.pod_uid),
    }
}

/// Presents any certificate, also those that no credentials would be built from.
fn signer(issued: &Issued) -> SingleCertAndKey {
    let key = PrivateKeyDer::try_from(issued.key_der.clone()).unwrap();
    let chain = issued.chain_der.iter().map(|der| der.clone().into()).collect();
    CertifiedKey::new(chain, any_supported_type(&key).unwrap()).into()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

type Halves = (Result<PeerId, HandshakeError>, Result<io::Result<u8>, HandshakeError>);

/// What the gate makes of the router, and the router of the gate; once connected, the router waits for one byte.
async fn meet(gate: &Arc<ServerConfig>, router: &Arc<ClientConfig>) -> Halves {
    let (near, far) = sockets().await;
    let accepted = async {
        let (mut stream, peer) = accept_mesh(far, Arc::clone(gate)).await?;
        stream.write_u8(7).await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(peer.id)
    };
    let connected = async { Ok(connect_mesh(near, Arc::clone(router)).await?.read_u8().await) };
    tokio::join!(accepted, connected)
}

/// Why the gate refuses `router`, having checked that the router can't take that for a connection.
async fn gate_refuses(gate: &Arc<ServerConfig>, router: &Arc<ClientConfig>) -> HandshakeError {
    let (accepted, connected) = meet(gate, router).await;
    // TLS 1.3: the client believes to be connected until it reads.
    if let Ok(read) = connected {
        assert!(
            peer_alert(&read.unwrap_err()).is_some(),
            "the router must learn that it was refused"
        );
    }
    accepted.unwrap_err()
}

/// Why the router refuses `gate`, having checked that the gate doesn't take it for connected.
async fn router_refuses(gate: &Arc<ServerConfig>, router: &Arc<ClientConfig>) -> HandshakeError {
    let (accepted, connected) = meet(gate, router).await;
    assert!(accepted.is_err());
    connected.unwrap_err()
}

#[tokio::test]
async fn a_router_reaches_the_sandbox_it_means() {
    let mesh = Mesh::new();
    let (accepted, connected) = meet(&mesh.gate, &mesh.router).await;
    assert_eq!(accepted.unwrap().to_string(), ROUTER);
    assert_eq!(connected.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn another_sandbox_or_another_incarnation_is_refused_by_name() {
    let mesh = Mesh::new();
    for other in [
        "spiffe://cluster.local/ns/team-a/sandbox/alpha/pod/u2",
        "spiffe://cluster.local/ns/team-a/sandbox/beta/pod/u1",
        "spiffe://cluster.local/ns/team-b/sandbox/alpha/pod/u1",
        "spiffe://other.local/ns/team-a/sandbox/alpha/pod/u1",
    ] {
        let refusal = router_refuses(&mesh.gate, &router_dialing(&mesh.authority, other)).await;
        let HandshakeError::PeerIdentity(PeerRejected::OtherSandbox { found, .. }) = refusal else {
            panic!("{refusal}")
        };
        assert_eq!(found.to_string(), SANDBOX);
    }
}

#[tokio::test]
async fn an_unknown_authority_is_refused_at_both_ends() {
    // A stranger can call its authority what it likes.
    for (name, verdict) in [
        ("other", CertificateError::UnknownIssuer),
        ("mesh", CertificateError::BadSignature),
    ] {
        let (mesh, stranger) = (Mesh::named("mesh"), Mesh::named(name));
        let refusal = router_refuses(&stranger.gate, &mesh.router).await;
        assert!(
            matches!(&refusal, HandshakeError::PeerCertificate(cause) if *cause == verdict),
            "{refusal}"
        );
        // This stranger trusts our gate, so that its own certificate is what is judged.
        let mut trusting = ClientConfig::clone(&mesh.router);
        trusting.client_auth_cert_resolver = Arc::clone(&stranger.router.client_auth_cert_resolver);
        let refusal = gate_refuses(&mesh.gate, &Arc::new(trusting)).await;
        assert!(
            matches!(&refusal, HandshakeError::PeerCertificate(cause) if *cause == verdict),
            "{refusal}"
        );
    }
}

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
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_missing_or_other_alpn_is_refused_at_both_ends() {
    let mesh = Mesh::new();
    for protocols in [vec![], vec![b"http/1.1".to_vec()], vec![b"sandgate-h1/2".to_vec()]] {
        let mut router = ClientConfig::clone(&mesh.router);
        router.alpn_protocols.clone_from(&protocols);
        let refusal = meet(&mesh.gate, &Arc::new(router)).await.0.unwrap_err();
        assert!(matches!(refusal, HandshakeError::Alpn), "{refusal}");
        let mut gate = ServerConfig::clone(&mesh.gate);
        gate.alpn_protocols = protocols;
        let refusal = router_refuses(&Arc::new(gate), &mesh.router).await;
        assert!(matches!(refusal, HandshakeError::Alpn), "{refusal}");
    }
}

/// What the gate answers to `bytes`, and why it refused them.
async fn send_raw(bytes: &[u8]) -> (Vec<u8>, HandshakeError) {
    let mesh = Mesh::new();
    let (mut near, far) = sockets().await;
    near.write_all(bytes).await.unwrap();
    let refusal = accept_mesh(far, mesh.gate).await.unwrap_err();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    (answer, refusal)
}

#[tokio::test]
async fn tls_1_2_is_refused_with_protocol_version() {
    let extensions = [
        [0, 0x0a, 0, 4, 0, 2, 0, 0x17].as_slice(), // supported_groups: P-256
        &[0, 0x0b, 0, 2, 1, 0],                    // ec_point_formats: uncompressed
        &[0, 0x0d, 0, 4, 0, 2, 4, 3],              // signature_algorithms: ecdsa_secp256r1_sha256
    ]
    .concat();
    let body = [
        [3, 3].as_slice(),
        &[0x5a; 32],         // random
        &[0],                // no session
        &[0, 2, 0xc0, 0x2b], // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        &[1, 0],             // no compression
        &[0, u8::try_from(extensions.len()).unwrap()],
        &extensions,
    ]
    .concat();
    let length = u8::try_from(body.len()).unwrap();
    let hello = [[0x16, 3, 1, 0, length + 4].as_slice(), &[1, 0, 0, length], &body].concat();
    let (answer, refusal) = send_raw(&hello).await;
    assert_eq!(
        answer,
        [0x15, 3, 3, 0, 2, 2, 70],
        "a fatal alert, protocol_version; {refusal}"
    );
    assert!(
        matches!(refusal, HandshakeError::Tls(rustls::Error::PeerIncompatible(_))),
        "{refusal}"
    );
}

#[tokio::test]
async fn plaintext_is_refused_and_named() {
    let (_, refusal) = send_raw(b"GET / HTTP/1.1\r\nHost: alpha\r\n\r\n").await;
    assert!(matches!(refusal, HandshakeError::NotTls), "{refusal}");

    let mesh = Mesh::new();
    let (near, mut far) = sockets().await;
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let refusal = connect_mesh(near, mesh.router).await.unwrap_err();
    assert!(matches!(refusal, HandshakeError::NotTls), "{refusal}");
}

#[tokio::test]
async fn a_peer_that_stalls_is_given_up_at_both_ends() {
    let mesh = Mesh::new();
    let ((_quiet, far), (near, _silent)) = (sockets().await, sockets().await);
    let started = Instant::now();
    let (accepted, connected) = tokio::join!(accept_mesh(far, mesh.gate), connect_mesh(near, mesh.router));
    assert!(matches!(accepted.unwrap_err(), HandshakeError::TimedOut));
    assert!(matches!(connected.unwrap_err(), HandshakeError::TimedOut));
    assert!((HANDSHAKE_TIMEOUT..2 * HANDSHAKE_TIMEOUT).contains(&started.elapsed()));
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_an_io_error() {
    let mesh = Mesh::new();
    let (near, far) = sockets().await;
    drop(near);
    let refusal = accept_mesh(far, mesh.gate).await.unwrap_err();
    assert!(matches!(refusal, HandshakeError::Io(_)), "{refusal}");
}

#[tokio::test]
async fn nothing_is_ever_resumed_even_if_the_peer_would() {
    let mesh = Mesh::new();
    let mut eager_gate = ServerConfig::clone(&mesh.gate);
    eager_gate.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    eager_gate.send_tls13_tickets = 2;
    let mut eager_router = ClientConfig::clone(&mesh.router);
    eager_router.resumption = Resumption::in_memory_sessions(8);
    let (eager_gate, eager_router) = (Arc::new(eager_gate), Arc::new(eager_router));
    assert_eq!(
        second_handshake(&eager_gate, &eager_router).await,
        HandshakeKind::Resumed,
        "two such would"
    );
    assert_eq!(second_handshake(&mesh.gate, &eager_router).await, HandshakeKind::Full);
    assert_eq!(second_handshake(&eager_gate, &mesh.router).await, HandshakeKind::Full);
}

async fn second_handshake(gate: &Arc<ServerConfig>, router: &Arc<ClientConfig>) -> HandshakeKind {
    let mut kind = None;
    for _ in 0..2 {
        let (near, far) = sockets().await;
        let gate = async {
            let (mut stream, _) = accept_mesh(far, Arc::clone(gate)).await.unwrap();
            stream.write_u8(7).await.unwrap();
        };
        let router = async {
            let mut stream = connect_mesh(near, Arc::clone(router)).await.unwrap();
            stream.read_u8().await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        kind = tokio::join!(gate, router).1;
    }
    kind.unwrap()
}

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
fn the_routers_hello_offers_these_extensions_and_no_other() {
    let found = hello_extensions(Mesh::new().router);
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
    assert_eq!(value(16), Some(b"\x00\x0e\x0dsandgate-h1/1".as_slice()));
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
    let (front, _) = front(&mesh.authority, MtlsMode::Required);
    let issued = mesh
        .authority
        .issue(&LeafSpec::new("webhook", "https://webhook.test", Usage::Server))
        .unwrap();
    let webhook = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    let webhook = webhook_server_config(&webhook).unwrap();
    for (config, alpn) in [
        (&mesh.gate, &[ALPN_MESH_HTTP1][..]),
        (&front, &[ALPN_HTTP1]),
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
    let client = &mesh.router;
    assert!(Arc::ptr_eq(client.crypto_provider(), &provider));
    assert!(!client.enable_early_data && !client.enable_sni && client.check_selected_alpn);
    assert!(!client.enable_secret_extraction && !client.key_log.will_log("any"));
    assert_eq!(client.max_fragment_size, None);
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
        router_client_config(&sidecar, &expected(SANDBOX)),
        Err(TlsError::WrongRole { .. })
    ));
}

fn front(authority: &Authority, mode: MtlsMode) -> (Arc<ServerConfig>, Arc<RootCertStore>) {
    let mut leaf = LeafSpec::new("front", "", Usage::Server);
    (leaf.uris, leaf.dns) = (vec![], vec!["router.test".into()]);
    let issued = authority.issue(&leaf).unwrap();
    let front = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    let roots = roots_from_pem(authority.root_pem().as_bytes()).unwrap();
    (front_server_config(&front, Some(&roots), mode).unwrap(), roots)
}

/// What the router's own listener makes of a client that presents `leaf`.
async fn call_front(mode: MtlsMode, leaf: Option<&LeafSpec>) -> Result<Option<FrontPeer>, HandshakeError> {
    let authority = Authority::new("front").unwrap();
    let (server, roots) = front(&authority, mode);
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
    let authority = Authority::new("front").unwrap();
    let issued = authority
        .issue(&LeafSpec::new("front", "https://router.test", Usage::Server))
        .unwrap();
    let front = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    assert!(matches!(
        front_server_config(&front, None, MtlsMode::Optional),
        Err(TlsError::NoClientCa)
    ));
}
