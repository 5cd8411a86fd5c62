//! Handshakes over real loopback sockets, one per promise or attack.

mod choices;
mod control;
mod control_router;
mod front;
mod leafs;
mod protocol;

use super::*;
use crate::authority::{Authority, Issued, LeafSpec, Usage};
use crate::contract::ALPN_CONTROL;
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
    let credentials = credentials(Role::Router, &issued, authority);
    router_client_config(HttpVersion::Http1, &credentials, &expected(sandbox)).unwrap()
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

/// A gate's half that has one configuration, whatever the peer asks for.
async fn accept_requests(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<(server::TlsStream<TcpStream>, MeshPeer), HandshakeError> {
    let (stream, peer, _) = accept_mesh(stream, |_| Some(config)).await?;
    Ok((stream, peer))
}

type Halves = (Result<PeerId, HandshakeError>, Result<io::Result<u8>, HandshakeError>);

/// What the gate makes of the router, and the router of the gate; once connected, the router waits for one byte.
async fn meet(gate: &Arc<ServerConfig>, router: &Arc<ClientConfig>) -> Halves {
    let (near, far) = sockets().await;
    let accepted = async {
        let (mut stream, peer) = accept_requests(far, Arc::clone(gate)).await?;
        stream.write_u8(7).await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(peer.id)
    };
    let connected = async { Ok(connect_mesh(near, Arc::clone(router)).await?.0.read_u8().await) };
    tokio::join!(accepted, connected)
}

/// Why the gate refuses `router`, having checked that the router can't take that for a connection.
async fn gate_refuses(gate: &Arc<ServerConfig>, router: &Arc<ClientConfig>) -> HandshakeError {
    let (accepted, connected) = meet(gate, router).await;
    // TLS 1.3: the client believes to be connected until it reads.
    if let Ok(read) = connected {
        let error = read.unwrap_err();
        assert!(
            matches!(tls_error(&error), Some(rustls::Error::AlertReceived(_))),
            "the router must learn that it was refused: {error}"
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
