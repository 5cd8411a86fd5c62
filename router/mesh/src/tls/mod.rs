//! Every TLS choice of every program: nothing else in the workspace builds a configuration.
//!
//! | choice | value | why |
//! |---|---|---|
//! | version | TLS 1.3 only; 1.2 isn't compiled in | no downgrade, no renegotiation |
//! | cipher suites | AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305 | all of TLS 1.3's that matter, cheapest first |
//! | key exchange | X25519, P-256, P-384 | what *ring* has |
//! | mesh signatures | ECDSA P-256 | the one kind of key the mesh issues |
//! | resumption, early data | none | each connection proves who is there, with today's roots; nothing is replayable |
//! | client certificate | always, on the mesh | see [`crate::identity`] |
//! | a gate's certificate | the expected sandbox's; to a control plane any, and it says what that proves | a gate that isn't enrolled has nothing but what it made itself |
//! | a router's certificate, to a control plane | likewise; its leaf for clients, which nobody else takes for a server's | a router serves nobody else |
//! | ALPN | one name per purpose, required on the mesh | a stranger's handshake can't be taken for the mesh's |
//! | SNI | never sent by the router | sandboxes have no DNS names, and an observer learns none |
//!
//! Defaults are stated again where they matter; a test fails when one drifts.
//!
//! Revocation isn't supported: leafs live a day and are renewed at half of it, so that a lost key dies soon by itself.
//! Before that, an identity is cut off by taking it out of the policy, which counts from the next request, and an
//! authority by taking it out of the bundle, which counts from the next handshake. Neither ends what is under way. Clients of
//! the router's own listener are looked at once more when its bundle changes: see [`FrontClients`].

mod control;
mod server_tls;
mod verify;
mod web;

#[cfg(test)]
mod tests;

pub use control::{
    Anchors, ControlDialError, ControlTrust, Dialed, DialedStanding, NotEnrolled, Purpose, accept_mesh,
    connect_control, control_server_config, is_still_control_plane,
};
pub use server_tls::ServerTls;
pub use verify::{FrontPeer, FrontPeerError, PeerRejected};
pub use web::web_client_config;

use crate::contract::{ALPN_HTTP1, ALPN_HTTP2, ALPN_MESH_HTTP1, ALPN_MESH_HTTP2, HANDSHAKE_TIMEOUT};
use crate::credentials::{FrontCredentials, MeshCredentials, Role, Validity};
use crate::http2::HttpVersion;
use crate::identity::{ExpectedSandbox, ExtendedKeyUsage, PeerId};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::compress::CompressionCache;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite, kx_group};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConnection, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use verify::{FrontCallerVerifier, MeshCallerVerifier, SandboxVerifier, reason};

const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..ring::default_provider()
    })
});

/// The cryptography that all configurations here use. No process-wide default needs to be installed.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// Why a TLS configuration can't be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Credentials for the other end.
    #[error("these credentials are a {found}'s, and a {needed}'s are needed; check which files are configured")]
    WrongRole {
        /// The role the configuration is for.
        needed: Role,
        /// The role of the credentials.
        found: Role,
    },
    /// Client certificates are asked for, but nobody who could have issued them is trusted.
    #[error("client certificates are switched on without a client CA bundle; configure one")]
    NoClientCa,
    /// The trust bundle makes no verifier.
    #[error("the trust bundle cannot verify client certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// rustls refuses the configuration.
    #[error("rustls refuses the TLS configuration: {0}")]
    Config(#[from] rustls::Error),
}

/// The gate's end of the mesh: it demands a certificate of its own mesh from everybody.
///
/// # Errors
/// The credentials aren't a sidecar's, or rustls refuses them.
pub fn sidecar_server_config(credentials: &MeshCredentials) -> Result<Arc<ServerConfig>, TlsError> {
    check_role(credentials, Role::Sidecar)?;
    let verifier = MeshCallerVerifier::new(credentials.roots(), credentials.trust_domain())?;
    server_config(
        Arc::new(verifier),
        credentials.certified_key(),
        &[ALPN_MESH_HTTP1, ALPN_MESH_HTTP2],
    )
}

/// The router's end of the mesh, for one dial and requests in this `version` of HTTP: it accepts the expected sandbox and
/// nobody else.
///
/// # Errors
/// The credentials aren't a router's, or rustls refuses them.
pub fn router_client_config(
    version: HttpVersion,
    credentials: &MeshCredentials,
    expected: &ExpectedSandbox,
) -> Result<Arc<ClientConfig>, TlsError> {
    check_role(credentials, Role::Router)?;
    let verifier = Arc::new(SandboxVerifier::new(credentials, expected));
    client_config(verifier, credentials, version.mesh_alpn())
}

/// A client's configuration, for one dial.
fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    credentials: &MeshCredentials,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, TlsError> {
    let key = SingleCertAndKey::from(Arc::clone(credentials.certified_key()));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.check_selected_alpn = true;
    config.resumption = Resumption::disabled();
    config.send_ticket_request = None;
    config.enable_early_data = false;
    config.enable_sni = false;
    config.enable_secret_extraction = false;
    config.max_fragment_size = None;
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    config.cert_compression_cache = Arc::new(CompressionCache::Disabled);
    Ok(Arc::new(config))
}

/// Whether the router's own listener asks clients for certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsMode {
    /// It doesn't.
    Off,
    /// It asks, and lets clients in that have none. A bad one is refused all the same.
    Optional,
    /// No certificate, no connection.
    Required,
}

/// Whose certificates the router's own listener takes.
#[derive(Debug)]
pub struct FrontClients(Arc<FrontCallerVerifier>);

impl FrontClients {
    /// Those of the authorities in `client_ca`, if `mode` asks for any.
    ///
    /// # Errors
    /// `mode` asks for certificates without `client_ca`.
    pub fn new(client_ca: Option<&Arc<RootCertStore>>, mode: MtlsMode) -> Result<Self, TlsError> {
        let webpki = || {
            let roots = client_ca.ok_or(TlsError::NoClientCa)?;
            Ok::<_, TlsError>(WebPkiClientVerifier::builder_with_provider(
                Arc::clone(roots),
                provider(),
            ))
        };
        let chain = match mode {
            MtlsMode::Off => WebPkiClientVerifier::no_client_auth(),
            MtlsMode::Optional => webpki()?.allow_unauthenticated().build()?,
            MtlsMode::Required => webpki()?.build()?,
        };
        Ok(Self(Arc::new(FrontCallerVerifier { chain })))
    }

    /// Whether a client that presented this chain, leaf first, would be let in now.
    pub fn admit(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return false;
        };
        self.0.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
    }
}

/// The router's own listener, for clients of all sorts.
///
/// # Errors
/// rustls refuses the credentials.
pub fn front_server_config(
    credentials: &FrontCredentials,
    clients: &FrontClients,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = Arc::clone(&clients.0);
    server_config(verifier, credentials.certified_key(), &[ALPN_HTTP2, ALPN_HTTP1])
}

/// The injector's listener for the API server, which it doesn't ask for a certificate: what is said there is no secret,
/// and an answer does nothing but to whoever asked.
///
/// # Errors
/// rustls refuses the credentials.
pub fn webhook_server_config(credentials: &FrontCredentials) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = WebPkiClientVerifier::no_client_auth();
    server_config(
        Arc::new(FrontCallerVerifier { chain }),
        credentials.certified_key(),
        &[ALPN_HTTP2, ALPN_HTTP1],
    )
}

fn check_role(credentials: &MeshCredentials, needed: Role) -> Result<(), TlsError> {
    let found = credentials.role();
    if found == needed {
        Ok(())
    } else {
        Err(TlsError::WrongRole { needed, found })
    }
}

fn server_config(
    verifier: Arc<dyn ClientCertVerifier>,
    key: &Arc<CertifiedKey>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config.enable_secret_extraction = false;
    config.max_fragment_size = None;
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    config.cert_compression_cache = Arc::new(CompressionCache::Disabled);
    Ok(Arc::new(config))
}

/// Why a connection ended in its handshake.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Nothing, or not enough, came within [`HANDSHAKE_TIMEOUT`].
    #[error("TLS handshake took longer than 5 s; the peer may be stalled, overloaded or not speaking TLS")]
    TimedOut,
    /// The peer's chain verified, but it isn't who it must be.
    #[error("TLS handshake refused: {0}")]
    PeerIdentity(PeerRejected),
    /// The peer's certificate doesn't verify.
    #[error("TLS handshake refused: the peer's certificate does not verify: {0}; compare the trust bundles and clocks")]
    PeerCertificate(CertificateError),
    /// The peer has no certificate.
    #[error("TLS handshake refused: the peer presented no certificate, and one is required")]
    NoPeerCertificate,
    /// A client certificate on the router's own listener without a usable name.
    #[error("TLS handshake refused: {0}")]
    FrontPeer(#[from] FrontPeerError),
    /// The peer closed the handshake with an alert.
    #[error("the peer refused the TLS handshake with alert {0:?}; its log says why")]
    RefusedByPeer(AlertDescription),
    /// The peers didn't agree on the application protocol.
    #[error(
        "the peer does not speak this mesh's protocol (ALPN); it may be another program or an incompatible version"
    )]
    Alpn,
    /// The bytes aren't TLS.
    #[error("the peer does not speak TLS; it may be a program that expects plain HTTP")]
    NotTls,
    /// Nothing is served that the peer asked for: there is no identity yet to prove, or no control plane is believed.
    #[error("nothing is served here yet for what the peer asked for")]
    Unserved,
    /// Some other failure of TLS.
    #[error("TLS handshake failed: {0}")]
    Tls(rustls::Error),
    /// The connection broke.
    #[error("the connection broke during the TLS handshake: {0}; the peer may have crashed or refused it")]
    Io(std::io::Error),
}

impl From<std::io::Error> for HandshakeError {
    fn from(error: std::io::Error) -> Self {
        match tls_error(&error) {
            Some(tls) => Self::from_tls(tls),
            None => Self::Io(error),
        }
    }
}

impl HandshakeError {
    fn from_tls(error: &rustls::Error) -> Self {
        if let Some(rejected) = reason::<PeerRejected>(error) {
            return Self::PeerIdentity(rejected.clone());
        }
        if let Some(nameless) = reason::<FrontPeerError>(error) {
            return Self::FrontPeer(nameless.clone());
        }
        match error {
            rustls::Error::InvalidCertificate(cause) => Self::PeerCertificate(cause.clone()),
            rustls::Error::NoCertificatesPresented => Self::NoPeerCertificate,
            rustls::Error::NoApplicationProtocol
            | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Self::Alpn,
            rustls::Error::AlertReceived(alert) => Self::RefusedByPeer(*alert),
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            other => Self::Tls(other.clone()),
        }
    }
}

fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Who a peer of the mesh has proven to be, and how long that holds. A connection can outlive it.
#[derive(Debug, Clone)]
pub struct MeshPeer {
    /// Who it is.
    pub id: PeerId,
    /// The end of its leaf's validity.
    pub until: SystemTime,
}

/// Whom an accepted connection of the mesh leads to, if it is for one of `protocols`.
fn mesh_peer(connection: &CommonState, protocols: &[&[u8]]) -> Result<MeshPeer, HandshakeError> {
    check_alpn(connection, protocols)?;
    let leaf = peer_leaf(connection)?;
    // The verifier has read the same leaf in the same way: this only gets at what it found.
    let id = PeerId::from_leaf(leaf, ExtendedKeyUsage::ClientAuth)
        .map_err(|error| HandshakeError::PeerIdentity(error.into()))?;
    let until = end_of_validity(leaf);
    Ok(MeshPeer { id, until })
}

fn peer_leaf(connection: &CommonState) -> Result<&CertificateDer<'static>, HandshakeError> {
    let chain = connection.peer_certificates();
    chain.and_then(<[_]>::first).ok_or(HandshakeError::NoPeerCertificate)
}

/// The end of a verified leaf's validity; long ago for one of which it can't be read.
fn end_of_validity(leaf: &CertificateDer<'_>) -> SystemTime {
    Validity::of(leaf).map_or(SystemTime::UNIX_EPOCH, |validity| validity.not_after)
}

/// The router's half of a mesh handshake. The peer is the sandbox that `config` was made for when this returns, and that
/// holds until the end of its leaf's validity, which is returned, too. A connection can outlive it.
///
/// In TLS 1.3 the client is done before the server has looked at its certificate. So a gate's refusal of the router shows
/// later: the first read or write fails with an alert, or with a reset that overtook it.
///
/// # Errors
/// The peer took too long, isn't that sandbox, or speaks another protocol.
pub async fn connect_mesh<S>(
    stream: S,
    config: Arc<ClientConfig>,
) -> Result<(client::TlsStream<S>, SystemTime), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // What a configuration was made for is the one protocol that it names.
    let protocol = config.alpn_protocols.first().cloned();
    let stream = connect(stream, config, protocol.as_deref().unwrap_or(ALPN_MESH_HTTP1)).await?;
    let until = end_of_validity(peer_leaf(stream.get_ref().1)?);
    Ok((stream, until))
}

async fn connect<S>(stream: S, config: Arc<ClientConfig>, alpn: &[u8]) -> Result<client::TlsStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // rustls wants a name. It is neither sent (an address never is) nor compared: the verifier knows whom it expects.
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let handshake = TlsConnector::from(config).connect(name, stream);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| HandshakeError::TimedOut)??;
    check_alpn(stream.get_ref().1, &[alpn])?;
    Ok(stream)
}

/// The handshake on the router's own listener. `None` is a client without a certificate.
///
/// # Errors
/// The client took too long, or its certificate is missing or bad.
pub async fn accept_front<S>(
    stream: S,
    config: Arc<ServerConfig>,
) -> Result<(server::TlsStream<S>, Option<FrontPeer>), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = accept(stream, config).await?;
    let peer = front_peer(stream.get_ref().1)?;
    Ok((stream, peer))
}

/// Whom the client certificate of an established connection identifies. `None` means that there is none, and nothing
/// else: a certificate that identifies nobody is an error, lest it be taken for an anonymous caller.
///
/// # Errors
/// The certificate identifies nobody.
pub fn front_peer(connection: &ServerConnection) -> Result<Option<FrontPeer>, FrontPeerError> {
    connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .map(|leaf| FrontPeer::from_leaf(leaf))
        .transpose()
}

/// The chain that the client of an established connection has presented, leaf first, and until when the leaf counts. `None`
/// means that there is none.
pub fn front_peer_chain(connection: &ServerConnection) -> Option<(Box<[CertificateDer<'static>]>, SystemTime)> {
    let chain = connection.peer_certificates()?;
    let until = end_of_validity(chain.first()?);
    Some((chain.into(), until))
}

async fn accept<S>(stream: S, config: Arc<ServerConfig>) -> Result<server::TlsStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(config).accept(stream);
    Ok(tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| HandshakeError::TimedOut)??)
}

/// rustls lets peers pass that name no protocol at all.
fn check_alpn(connection: &CommonState, needed: &[&[u8]]) -> Result<(), HandshakeError> {
    match connection.alpn_protocol() {
        Some(agreed) if needed.contains(&agreed) => Ok(()),
        _ => Err(HandshakeError::Alpn),
    }
}

/// Which HTTP an established connection is for, as its ends have agreed on. A client that named no protocol means
/// HTTP/1.1.
pub fn agreed_version(connection: &CommonState) -> HttpVersion {
    match connection.alpn_protocol() {
        Some(ALPN_HTTP2 | ALPN_MESH_HTTP2) => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    }
}
