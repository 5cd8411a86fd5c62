//! A control plane for tests: it dials gates and routers as the real one does, and says whatever it is told.

use crate::{exchange, status};
use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use sandgate_mesh::contract::ALPN_CONTROL;
use sandgate_mesh::control::{ENROLMENT_PATH, Enrolment, IDENTITY_PATH, IdentityGrant, POLICY_PATH, PolicyPush};
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::identity::{ExpectedSandbox, SandboxIdentity, WorkloadIdentity};
use sandgate_mesh::policy::model::{Generation, Snapshot};
use sandgate_mesh::tls::{self, ControlDialError, Dialed, DialedStanding};
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// Whom gates take for a control plane.
pub const CONTROL: &str = "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandgate-injector";

/// A control plane of one gate, or of one router.
#[derive(Debug)]
pub struct ControlPlane {
    credentials: MeshCredentials,
    /// Where the gate or the router is.
    pub gate: SocketAddr,
    /// Who it must be; of a router, its pod.
    pub sandbox: SandboxIdentity,
    /// Who a router must be.
    router: Option<WorkloadIdentity>,
}

impl ControlPlane {
    /// One with a certificate of `authority`, for the gate of `sandbox`.
    pub fn new(authority: &Authority, gate: SocketAddr, sandbox: SandboxIdentity) -> Self {
        Self::known_as(&CONTROL.parse().unwrap(), authority, gate, sandbox)
    }

    /// The same with another identity.
    pub fn known_as(
        identity: &WorkloadIdentity,
        authority: &Authority,
        gate: SocketAddr,
        sandbox: SandboxIdentity,
    ) -> Self {
        let issued = authority
            .issue(&LeafSpec::new("control", identity.to_string(), Usage::Client))
            .unwrap();
        let (chain, key) = (&issued.chain_pem, &issued.key_pem);
        Self::with(identity, [chain, key, authority.root_pem()], gate, sandbox)
    }

    /// The same with a chain, its key and roots that somebody else has made, all in PEM.
    pub fn with(identity: &WorkloadIdentity, pem: [&str; 3], gate: SocketAddr, sandbox: SandboxIdentity) -> Self {
        let ([chain, key, bundle], domain) = (pem.map(str::as_bytes), &identity.trust_domain);
        let credentials = MeshCredentials::from_pem(Role::ControlPlane, chain, key, bundle, domain);
        Self {
            credentials: credentials.unwrap(),
            gate,
            sandbox,
            router: None,
        }
    }

    /// The same for a router of this identity, in the pod that was named.
    #[must_use]
    pub fn of_router(self, identity: WorkloadIdentity) -> Self {
        Self {
            router: Some(identity),
            ..self
        }
    }

    /// A connection, and what the gate has proven on it.
    pub async fn connect(&self) -> (TlsStream<TcpStream>, DialedStanding) {
        self.try_connect().await.unwrap()
    }

    /// The same where it may come to nothing.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn try_connect(&self) -> Result<(TlsStream<TcpStream>, DialedStanding), ControlDialError> {
        let expected = match &self.router {
            Some(identity) => Dialed::Router(identity.clone()),
            None => Dialed::Gate(ExpectedSandbox {
                trust_domain: self.sandbox.trust_domain.clone(),
                sandbox: self.sandbox.sandbox.clone(),
                pod_uid: Some(self.sandbox.pod_uid.clone()),
            }),
        };
        let stream = TcpStream::connect(self.gate).await.unwrap();
        tls::connect_control(stream, &self.credentials, &expected).await
    }

    /// Whether the gate proves to be enrolled.
    pub async fn finds_it_enrolled(&self) -> bool {
        matches!(self.connect().await.1, DialedStanding::Enrolled { .. })
    }

    /// The leaf that the gate or the router shows.
    pub async fn shown(&self) -> Vec<u8> {
        let (stream, _) = self.connect().await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    /// What the gate answers to these bytes, on a connection of their own.
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> String {
        exchange(self.connect().await.0, bytes, false).await
    }

    /// Asks for the enrolment, which must be given.
    pub async fn enrolment(&self) -> Enrolment {
        let answer = self.send(get(ENROLMENT_PATH)).await;
        assert_eq!(status(&answer), 200, "{answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Puts something as JSON.
    pub async fn put(&self, path: &str, body: &impl Serialize) -> String {
        self.send(put(path, serde_json::to_string(body).unwrap())).await
    }

    /// What `authority` grants for the key of this request: a leaf of the gate's or the router's, as `change` leaves it.
    pub fn grant(
        &self,
        authority: &Authority,
        counter: u64,
        csr: &str,
        change: impl FnOnce(&mut LeafSpec),
    ) -> IdentityGrant {
        let mut spec = match &self.router {
            Some(identity) => LeafSpec::new("router", identity.to_string(), Usage::Client),
            None => LeafSpec::new("gate", self.sandbox.to_string(), Usage::Server),
        };
        change(&mut spec);
        IdentityGrant {
            pod_uid: self.sandbox.pod_uid.clone(),
            generation: Generation { epoch: 1, counter },
            chain: authority.sign(&spec, csr).unwrap(),
            bundle: authority.root_pem().into(),
        }
    }

    /// Brings the gate an identity, and returns it.
    pub async fn enrol(&self, authority: &Authority, counter: u64) -> IdentityGrant {
        let grant = self.grant(authority, counter, &self.enrolment().await.csr, |_| {});
        let answer = self.put(IDENTITY_PATH, &grant).await;
        assert_eq!(status(&answer), 204, "{answer}");
        grant
    }

    /// Brings the gate a policy, once it has proven to be enrolled.
    pub async fn push(&self, snapshot: Snapshot) {
        assert!(self.finds_it_enrolled().await);
        let pod_uid = self.sandbox.pod_uid.clone();
        let answer = self.put(POLICY_PATH, &PolicyPush { pod_uid, snapshot }).await;
        assert_eq!(status(&answer), 204, "{answer}");
    }
}

/// A request for something, on a connection that is closed afterwards.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n")
}

/// The same with a body.
pub fn put(path: &str, body: impl AsRef<str>) -> String {
    let body = body.as_ref();
    let length = body.len();
    format!("PUT {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// What comes back to somebody who names these protocols, takes anybody for a gate, and presents this certificate or none.
/// Empty if the gate refuses the handshake: in TLS 1.3 a client only learns of that afterwards.
pub async fn intrude(gate: SocketAddr, protocols: &[&[u8]], certificate: Option<&Issued>, bytes: &str) -> String {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&tokio_rustls::rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(issued) => builder.with_client_cert_resolver(Arc::new(crate::signer(issued))),
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.check_selected_alpn = false;
    let name = ServerName::try_from("gate.example").unwrap();
    let stream = TcpStream::connect(gate).await.unwrap();
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => exchange(stream, bytes, false).await,
        Err(_) => String::new(),
    }
}

/// [`intrude`] for the control API.
pub async fn intrude_control(gate: SocketAddr, certificate: Option<&Issued>, bytes: &str) -> String {
    intrude(gate, &[ALPN_CONTROL], certificate, bytes).await
}

/// Believes everybody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
