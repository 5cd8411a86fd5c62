//! Handshakes of the control API: who is a gate's control plane, and what a gate has proven to it.

use super::*;
use crate::tls::verify::AnyGate;
use tokio::sync::watch;

const CONTROL: &str = "spiffe://cluster.local/ns/system/sa/injector";

/// A gate and its control plane under one authority.
pub(super) struct Scene {
    pub(super) authority: Authority,
    pub(super) trust: ControlTrust,
}

impl Scene {
    pub(super) fn new() -> Self {
        let authority = Authority::new("mesh").unwrap();
        let own = Authority::new("itself").unwrap();
        let leaf = own.issue(&LeafSpec::new("stand-in", SANDBOX, Usage::Server)).unwrap();
        let trust = ControlTrust {
            role: Role::Sidecar,
            anchors: watch::channel(Some(roots_from_pem(authority.root_pem().as_bytes()).unwrap())).1,
            control_planes: vec![CONTROL.parse().unwrap()],
            trust_domain: "cluster.local".parse().unwrap(),
            // As if somebody had given itself the right name.
            stand_in: certified(&leaf),
        };
        Self { authority, trust }
    }

    fn identity(&self, change: impl FnOnce(&mut LeafSpec)) -> MeshCredentials {
        let mut spec = LeafSpec::new("gate", SANDBOX, Usage::Server);
        change(&mut spec);
        credentials(Role::Sidecar, &self.authority.issue(&spec).unwrap(), &self.authority)
    }

    pub(super) fn control_plane(&self) -> MeshCredentials {
        let issued = self.authority.issue(&LeafSpec::new("control", CONTROL, Usage::Client));
        credentials(Role::ControlPlane, &issued.unwrap(), &self.authority)
    }

    /// A client of the control API that takes anybody for a gate, with any certificate.
    fn client(&self, certificate: &Issued) -> ClientConfig {
        let config = client_config(Arc::new(AnyGate::new()), &self.control_plane(), ALPN_CONTROL);
        let mut config = ClientConfig::clone(&config.unwrap());
        config.client_auth_cert_resolver = Arc::new(signer(certificate));
        config
    }

    fn issue(&self, change: impl FnOnce(&mut LeafSpec)) -> Issued {
        let mut spec = LeafSpec::new("control", CONTROL, Usage::Client);
        change(&mut spec);
        self.authority.issue(&spec).unwrap()
    }
}

fn certified(issued: &Issued) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::try_from(issued.key_der.clone()).unwrap();
    let chain = issued.chain_der.iter().map(|der| der.clone().into()).collect();
    Arc::new(CertifiedKey::new(chain, any_supported_type(&key).unwrap()))
}

type Met = (
    Result<(String, Purpose), HandshakeError>,
    Result<DialedStanding, ControlDialError>,
);

/// A control plane dials a gate that holds this identity.
async fn dial(scene: &Scene, identity: Option<&MeshCredentials>, control_plane: &MeshCredentials) -> Met {
    let (near, far) = sockets().await;
    let config = control_server_config(&scene.trust, identity, SystemTime::now()).unwrap();
    let accepted = async {
        let (_, peer, purpose) = accept_mesh(far, |_| Some(config)).await?;
        Ok((peer.id.to_string(), purpose))
    };
    let connected = async { Ok(connect_control(near, control_plane, &expected(SANDBOX).into()).await?.1) };
    tokio::join!(accepted, connected)
}

/// What a gate makes of a client, which must hear nothing if it is refused.
async fn accept(
    scene: &Scene,
    identity: Option<&MeshCredentials>,
    client: ClientConfig,
) -> Result<(String, Purpose), HandshakeError> {
    let (near, far) = sockets().await;
    let choose = |purpose| match (purpose, identity) {
        (Purpose::Control, _) => Some(control_server_config(&scene.trust, identity, SystemTime::now()).unwrap()),
        (Purpose::Requests, None) => None,
        (Purpose::Requests, Some(identity)) => Some(sidecar_server_config(identity).unwrap()),
    };
    let accepted = async {
        let (mut stream, peer, purpose) = accept_mesh(far, choose).await?;
        stream.write_u8(7).await.unwrap();
        Ok((peer.id.to_string(), purpose))
    };
    let heard = async {
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, near).await?;
        stream.read_u8().await
    };
    let (accepted, heard) = tokio::join!(accepted, heard);
    assert_eq!(heard.ok(), accepted.is_ok().then_some(7));
    accepted
}

#[tokio::test]
async fn a_gate_has_proven_to_be_enrolled_by_the_expected_leaf_only() {
    let scene = Scene::new();
    let control_plane = scene.control_plane();
    let stranger = Scene::new();
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    let good = scene.identity(|_| {});
    let another_pod = scene.identity(|spec| spec.uris = vec![SANDBOX.replace("u1", "u2")]);
    let ended = scene.identity(|spec| (spec.not_before, spec.not_after) = (now - 2 * hour, now - hour));
    let issued = stranger.authority.issue(&LeafSpec::new("gate", SANDBOX, Usage::Server));
    let foreign = with_bundle(&issued.unwrap(), &[&stranger.authority, &scene.authority]);
    for (name, identity, is_enrolled, other_identity) in [
        ("its own", Some(&good), true, false),
        ("none: what it made itself", None, false, false),
        ("ended: the same", Some(&ended), false, false),
        ("another pod's", Some(&another_pod), false, true),
        ("of another authority", Some(&foreign), false, false),
    ] {
        let (accepted, standing) = dial(&scene, identity, &control_plane).await;
        assert_eq!(accepted.unwrap(), (CONTROL.to_owned(), Purpose::Control), "{name}");
        let standing = standing.unwrap();
        let found = match &standing {
            DialedStanding::Enrolled { until } => {
                assert_eq!(*until, good.validity().not_after);
                (true, false)
            }
            DialedStanding::Unproven(NotEnrolled::Identity(PeerRejected::OtherSandbox { .. })) => (false, true),
            DialedStanding::Unproven(NotEnrolled::Identity(other)) => panic!("{name}: {other}"),
            DialedStanding::Unproven(NotEnrolled::Unverified(_)) => (false, false),
        };
        assert_eq!(found, (is_enrolled, other_identity), "{name}: {standing:?}");
    }
}

#[tokio::test]
async fn the_expected_leaf_without_its_key_proves_nothing() {
    let scene = Scene::new();
    let identity = scene.identity(|_| {});
    let leaf = identity.certified_key().cert.clone();
    let stolen = CertifiedKey::new(leaf, Arc::clone(&scene.trust.stand_in.key));
    let mut config =
        ServerConfig::clone(&control_server_config(&scene.trust, Some(&identity), SystemTime::now()).unwrap());
    config.cert_resolver = Arc::new(SingleCertAndKey::from(stolen));
    let (near, far) = sockets().await;
    let (control_plane, sandbox) = (scene.control_plane(), expected(SANDBOX).into());
    let connected = connect_control(near, &control_plane, &sandbox);
    let (accepted, connected) = tokio::join!(accept_mesh(far, |_| Some(Arc::new(config))), connected);
    assert!(accepted.is_err());
    let refusal = connected.err();
    let refused = matches!(
        refusal,
        Some(ControlDialError::Handshake(HandshakeError::PeerCertificate(
            CertificateError::BadSignature
        )))
    );
    assert!(refused, "{refusal:?}");
}

#[tokio::test]
async fn a_gate_hears_nobody_but_its_control_planes_on_the_control_api() {
    let scene = Scene::new();
    let identity = scene.identity(|_| {});
    let stranger = Authority::new("mesh").unwrap();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for identity in [None, Some(&identity)] {
        let accepted = accept(&scene, identity, scene.client(&scene.issue(|_| {}))).await;
        assert_eq!(accepted.unwrap(), (CONTROL.to_owned(), Purpose::Control));

        let refused = |issued: Issued| accept(&scene, identity, scene.client(&issued));
        for (name, uri) in [
            ("its router", ROUTER),
            ("another workload", "spiffe://cluster.local/ns/system/sa/injector2"),
            ("no workload", "spiffe://cluster.local/injector"),
        ] {
            let refusal = refused(scene.issue(|spec| spec.uris = vec![uri.into()]))
                .await
                .unwrap_err();
            let expected = matches!(refusal, HandshakeError::PeerIdentity(PeerRejected::NoControlPlane(_)));
            assert!(expected, "{name}: {refusal}");
        }
        for (name, issued) in [
            ("a sandbox", scene.issue(|spec| spec.uris = vec![SANDBOX.into()])),
            (
                "of another trust domain",
                scene.issue(|spec| spec.uris = vec![CONTROL.replace("cluster.local", "other.local")]),
            ),
            ("two names", scene.issue(|spec| spec.uris.push(CONTROL.into()))),
        ] {
            let refusal = refused(issued).await.unwrap_err();
            assert!(matches!(refusal, HandshakeError::PeerIdentity(_)), "{name}: {refusal}");
        }
        for (name, issued) in [
            ("for servers", scene.issue(|spec| spec.usages = vec![Usage::Server])),
            (
                "ended",
                scene.issue(|spec| (spec.not_before, spec.not_after) = (now - 2 * hour, now - hour)),
            ),
            ("to come", scene.issue(|spec| spec.not_before = now + hour)),
            (
                "of another authority",
                stranger
                    .issue(&LeafSpec::new("control", CONTROL, Usage::Client))
                    .unwrap(),
            ),
        ] {
            let refusal = refused(issued).await.unwrap_err();
            assert!(
                matches!(refusal, HandshakeError::PeerCertificate(_)),
                "{name}: {refusal}"
            );
        }
        let mut anonymous = scene.client(&scene.issue(|_| {}));
        anonymous.client_auth_cert_resolver = Arc::new(leafs::NoCertificate);
        let refusal = accept(&scene, identity, anonymous).await.unwrap_err();
        assert!(matches!(refusal, HandshakeError::NoPeerCertificate), "{refusal}");
    }
}

#[tokio::test]
async fn a_connection_is_for_the_purpose_that_was_named_and_no_other() {
    let scene = Scene::new();
    let identity = scene.identity(|_| {});
    let naming = |protocols: &[&[u8]]| {
        let mut client = scene.client(&scene.issue(|_| {}));
        client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        client.check_selected_alpn = false;
        client
    };
    for (protocols, purpose) in [
        (&[ALPN_MESH_HTTP1][..], Purpose::Requests),
        (&[ALPN_MESH_HTTP2], Purpose::Requests),
        (&[ALPN_MESH_HTTP2, ALPN_CONTROL], Purpose::Control),
        (&[ALPN_CONTROL], Purpose::Control),
        (&[ALPN_MESH_HTTP1, ALPN_CONTROL], Purpose::Control),
        (&[ALPN_CONTROL, ALPN_MESH_HTTP1], Purpose::Control),
    ] {
        let accepted = accept(&scene, Some(&identity), naming(protocols)).await;
        assert_eq!(accepted.unwrap().1, purpose, "{protocols:?}");
    }
    for protocols in [&[][..], &[ALPN_HTTP1], &[b"sandgate-control/2".as_slice()]] {
        let (near, far) = sockets().await;
        let config = sidecar_server_config(&identity).unwrap();
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let client = TlsConnector::from(Arc::new(naming(protocols))).connect(name, near);
        let (accepted, _) = tokio::join!(accept_mesh(far, |_| Some(config)), client);
        assert!(matches!(accepted, Err(HandshakeError::Alpn)), "{protocols:?}");
    }
    // Without an identity there are no requests.
    let refusal = accept(&scene, None, naming(&[ALPN_MESH_HTTP1])).await.unwrap_err();
    assert!(matches!(refusal, HandshakeError::Unserved), "{refusal}");
}

#[tokio::test]
async fn a_router_is_no_control_plane_even_if_it_names_both_purposes() {
    let scene = Scene::new();
    let mut client = scene.client(&scene.issue(|spec| spec.uris = vec![ROUTER.into()]));
    client.alpn_protocols = vec![ALPN_MESH_HTTP1.to_vec(), ALPN_CONTROL.to_vec()];
    let refusal = accept(&scene, Some(&scene.identity(|_| {})), client).await.unwrap_err();
    let expected = matches!(refusal, HandshakeError::PeerIdentity(PeerRejected::NoControlPlane(_)));
    assert!(expected, "{refusal}");
}

#[tokio::test]
async fn a_root_that_has_left_the_bundle_counts_only_without_a_valid_identity() {
    let mut scene = Scene::new();
    let (old, next) = (Authority::new("old").unwrap(), Authority::new("next").unwrap());
    scene.trust.anchors = watch::channel(Some(roots_from_pem(old.root_pem().as_bytes()).unwrap())).1;
    let client = |authority: &Authority| {
        let issued = authority.issue(&LeafSpec::new("control", CONTROL, Usage::Client));
        scene.client(&issued.unwrap())
    };
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let identity = |signer: &Authority, roots: &[&Authority], has_ended: bool| {
        let mut spec = LeafSpec::new("gate", SANDBOX, Usage::Server);
        if has_ended {
            (spec.not_before, spec.not_after) = (now - 2 * hour, now - hour);
        }
        with_bundle(&signer.issue(&spec).unwrap(), roots)
    };
    let (first, both, left) = (
        identity(&old, &[&old], false),
        identity(&old, &[&old, &next], false),
        identity(&next, &[&next], false),
    );
    let (ended, ended_with_both) = (identity(&next, &[&next], true), identity(&old, &[&old, &next], true));
    for (name, identity, old_counts, next_counts) in [
        ("born", None, true, false),
        ("enrolled", Some(&first), true, false),
        ("with both roots", Some(&both), true, true),
        ("after the old one left", Some(&left), false, true),
        ("ended", Some(&ended), true, true),
        ("ended with both roots", Some(&ended_with_both), true, true),
    ] {
        for (root, authority, counts) in [("old", &old, old_counts), ("next", &next, next_counts)] {
            match accept(&scene, identity, client(authority)).await {
                Ok(_) => assert!(counts, "{name}: the {root} root counts"),
                Err(HandshakeError::PeerCertificate(_)) => assert!(!counts, "{name}: the {root} root doesn't count"),
                Err(other) => panic!("{name}, {root}: {other}"),
            }
        }
    }
}

/// A gate's identity that believes these.
fn with_bundle(issued: &Issued, roots: &[&Authority]) -> MeshCredentials {
    let bundle: String = roots.iter().map(|root| root.root_pem()).collect();
    let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
    let domain = "cluster.local".parse().unwrap();
    MeshCredentials::from_pem(Role::Sidecar, chain, key, bundle.as_bytes(), &domain).unwrap()
}

#[tokio::test]
async fn only_a_control_plane_dials_as_one() {
    let scene = Scene::new();
    let issued = scene.issue(|spec| spec.uris = vec![ROUTER.into()]);
    let router = credentials(Role::Router, &issued, &scene.authority);
    let (near, _far) = sockets().await;
    let refusal = connect_control(near, &router, &expected(SANDBOX).into()).await.err();
    assert!(matches!(
        refusal,
        Some(ControlDialError::Tls(TlsError::WrongRole { .. }))
    ));
    let router = control_server_config(&scene.trust, Some(&router), SystemTime::now());
    assert!(matches!(router, Err(TlsError::WrongRole { .. })));
}

/// The configurations of both ends, for the table of choices.
pub(super) fn configurations() -> (Arc<ServerConfig>, ClientConfig) {
    let scene = Scene::new();
    let identity = scene.identity(|_| {});
    let server = control_server_config(&scene.trust, Some(&identity), SystemTime::now()).unwrap();
    (server, scene.client(&scene.issue(|_| {})))
}
