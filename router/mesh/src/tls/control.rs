//! Handshakes of the control API, which gates and routers serve, and the choice between the two uses of a mesh port.

use super::verify::{AnyGate, MeshCallerVerifier, PeerRejected, SandboxVerifier, reason};
use super::{
    HandshakeError, MeshPeer, TlsError, check_role, client_config, connect, end_of_validity, mesh_peer, peer_leaf,
    server_config,
};
use crate::contract::{ALPN_CONTROL, ALPN_MESH_HTTP1, ALPN_MESH_HTTP2, HANDSHAKE_TIMEOUT};
use crate::credentials::{MeshCredentials, Role};
use crate::identity::{ExpectedSandbox, ExtendedKeyUsage, PeerId, TrustDomain, WorkloadIdentity};
use rustls::server::Acceptor;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::{Error, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::{LazyConfigAcceptor, client, server};

/// What a connection to a mesh port is for, as its first message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Requests to the app.
    Requests,
    /// The control API.
    Control,
}

impl Purpose {
    /// Its names in handshakes. Requests come in one of two versions of HTTP.
    pub const fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Requests => &[ALPN_MESH_HTTP1, ALPN_MESH_HTTP2],
            Self::Control => &[ALPN_CONTROL],
        }
    }
}

/// Roots of a control plane as they are now; `None` before the first are known.
pub type Anchors = watch::Receiver<Option<Arc<RootCertStore>>>;

/// Whom a gate or a router takes for its control plane, and what it says to one while it has no identity.
#[derive(Debug, Clone)]
pub struct ControlTrust {
    /// Which of the two it is.
    pub role: Role,
    /// Roots that count while there is no identity that is valid.
    pub anchors: Anchors,
    /// The control planes. Nobody else gets through the handshake.
    pub control_planes: Vec<WorkloadIdentity>,
    /// The trust domain of everybody.
    pub trust_domain: TrustDomain,
    /// A key and a certificate of its own making.
    pub stand_in: Arc<CertifiedKey>,
}

/// The end of the control API at `now` that is dialed. It demands a control plane's certificate, and presents `identity`.
///
/// While that is valid, nothing counts but its bundle: a root that has left it is nobody's any more. One that isn't can't be
/// renewed by whoever is under the bundle alone, if the roots have moved on meanwhile. So the anchors count beside it then, as
/// they do without any identity, and what stands in for it is presented.
///
/// # Errors
/// `identity` is of another role, there are no roots, or rustls refuses the key.
pub fn control_server_config(
    trust: &ControlTrust,
    identity: Option<&MeshCredentials>,
    now: SystemTime,
) -> Result<Arc<ServerConfig>, TlsError> {
    let (verifier, key) = believing(trust, identity, now)?;
    server_config(Arc::new(verifier), key, &[ALPN_CONTROL])
}

/// Whether it would still believe at `now` whoever it accepted with this chain, leaf first. Connections outlive
/// certificates, and roots that leave.
pub fn is_still_control_plane(
    trust: &ControlTrust,
    identity: Option<&MeshCredentials>,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> bool {
    let (Some((leaf, intermediates)), Ok((verifier, _))) = (chain.split_first(), believing(trust, identity, now))
    else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    verifier.verify_client_cert(leaf, intermediates, now).is_ok()
}

/// Whom it believes at `now`, and what it proves itself with.
fn believing<'a>(
    trust: &'a ControlTrust,
    identity: Option<&'a MeshCredentials>,
    now: SystemTime,
) -> Result<(MeshCallerVerifier, &'a Arc<CertifiedKey>), TlsError> {
    if let Some(identity) = identity {
        check_role(identity, trust.role)?;
    }
    let anchors = trust.anchors.borrow().clone();
    let anchors = anchors.unwrap_or_else(|| Arc::new(RootCertStore::empty()));
    let (roots, key) = match identity {
        None => (anchors, &trust.stand_in),
        Some(identity) if identity.valid_at(now) => (Arc::clone(identity.roots()), identity.certified_key()),
        Some(identity) => {
            let mut roots = Arc::unwrap_or_clone(anchors);
            roots.extend(identity.roots().roots.iter().cloned());
            (Arc::new(roots), &trust.stand_in)
        }
    };
    let verifier = MeshCallerVerifier::new(&roots, &trust.trust_domain)?.only(&trust.control_planes);
    Ok((verifier, key))
}

/// The half of a handshake on a mesh port that is dialed, for whichever purpose the peer names. `choose` gives the configuration
/// for it, and none where nothing can be served. The peer is who it says when this returns, and nobody else's bytes follow.
///
/// # Errors
/// The peer took too long, isn't of this mesh, speaks another protocol, or asked for what isn't served.
pub async fn accept_mesh<S>(
    stream: S,
    choose: impl FnOnce(Purpose) -> Option<Arc<ServerConfig>>,
) -> Result<(server::TlsStream<S>, MeshPeer, Purpose), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = async {
        let started = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let asks_for_control = started
            .client_hello()
            .alpn()
            .is_some_and(|mut names| names.any(|name| name == ALPN_CONTROL));
        // Who names several gets the one configuration, and no protocol of the other.
        let purpose = if asks_for_control {
            Purpose::Control
        } else {
            Purpose::Requests
        };
        let config = choose(purpose).ok_or(HandshakeError::Unserved)?;
        let stream = started.into_stream(config).await?;
        Ok::<_, HandshakeError>((stream, purpose))
    };
    let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    let (stream, purpose) = accepted.map_err(|_| HandshakeError::TimedOut)??;
    let peer = mesh_peer(stream.get_ref().1, purpose.protocols())?;
    Ok((stream, peer, purpose))
}

/// Whom a control plane means to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialed {
    /// The gate of this sandbox, in this pod.
    Gate(ExpectedSandbox),
    /// A router. Of several with one identity, each holds a key of its own.
    Router(WorkloadIdentity),
}

impl From<ExpectedSandbox> for Dialed {
    fn from(expected: ExpectedSandbox) -> Self {
        Self::Gate(expected)
    }
}

/// What a gate or a router has proven to the control plane that dialed it.
#[derive(Debug, Clone, PartialEq)]
pub enum DialedStanding {
    /// It presented the leaf that it was enrolled with.
    Enrolled {
        /// The end of that leaf's validity.
        until: SystemTime,
    },
    /// It presented something else. Whoever it is may be told what is no secret, and must prove itself otherwise.
    Unproven(NotEnrolled),
}

/// Why what was presented doesn't prove that whoever was dialed is enrolled.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NotEnrolled {
    /// Another identity of this mesh.
    #[error("{0}")]
    Identity(#[from] PeerRejected),
    /// Nothing that verifies: made by itself, expired, or signed by a root that has left.
    #[error("its certificate does not verify: {0}")]
    Unverified(Error),
}

/// The control plane's half: who was dialed believes `credentials`, or the first read says that it doesn't. What it has
/// proven in return is told, compared with `expected`.
///
/// # Errors
/// The credentials aren't a control plane's, the handshake took too long, or the other end speaks another protocol.
pub async fn connect_control<S>(
    stream: S,
    credentials: &MeshCredentials,
    expected: &Dialed,
) -> Result<(client::TlsStream<S>, DialedStanding), ControlDialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    check_role(credentials, Role::ControlPlane)?;
    let config = client_config(Arc::new(AnyGate::new()), credentials, ALPN_CONTROL)?;
    let stream = connect(stream, config, ALPN_CONTROL).await?;
    let connection = stream.get_ref().1;
    let leaf = peer_leaf(connection)?;
    let intermediates = connection.peer_certificates().and_then(|chain| chain.get(1..));
    let standing = match check_dialed(credentials, expected, leaf, intermediates.unwrap_or_default()) {
        Ok(()) => DialedStanding::Enrolled {
            until: end_of_validity(leaf),
        },
        Err(error) => DialedStanding::Unproven(match reason::<PeerRejected>(&error) {
            Some(rejected) => NotEnrolled::Identity(rejected.clone()),
            None => NotEnrolled::Unverified(error),
        }),
    };
    Ok((stream, standing))
}

/// Whether this chain is of whom a control plane means to reach.
fn check_dialed(
    credentials: &MeshCredentials,
    expected: &Dialed,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), Error> {
    let now = UnixTime::now();
    match expected {
        Dialed::Gate(sandbox) => SandboxVerifier::new(credentials, sandbox).check(leaf, intermediates, now),
        Dialed::Router(identity) => {
            let caller = MeshCallerVerifier::new(credentials.roots(), credentials.trust_domain())
                .map_err(|error| Error::General(error.to_string()))?;
            caller.verify_client_cert(leaf, intermediates, now)?;
            match PeerId::from_leaf(leaf, ExtendedKeyUsage::ClientAuth).map_err(PeerRejected::from)? {
                PeerId::Workload(found) if found == *identity => Ok(()),
                found => Err(PeerRejected::OtherRouter {
                    expected: Box::new(identity.clone()),
                    found: Box::new(found),
                }
                .into()),
            }
        }
    }
}

/// Why a control API can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum ControlDialError {
    /// The configuration can't be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}
