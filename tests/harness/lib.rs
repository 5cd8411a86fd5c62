//! The whole mesh on loopback, for tests: an app that records every byte, a gate in front of it, a router in front of
//! that, and clients that send whatever they are told.

// A harness has nobody to report to: a panic is how it fails the test that uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::missing_panics_doc)]

mod app;

pub use app::{RecordingApp, Request, Step, ok};

use sandbox_router::Router;
use sandbox_router::config::Config;
use sandbox_sidecar::authorize::OwnPorts;
use sandbox_sidecar::{Caps, Gate, Settings};
use sandgate_local::authority::{Authority, Issued};
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::drain::{self, Drain};
use sandgate_mesh::identity::{ExpectedSandbox, SandboxIdentity, TrustDomain, WorkloadIdentity};
use sandgate_mesh::policy::{PolicySnapshot, model};
use sandgate_mesh::tls;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ClientConfig, SignatureScheme};

/// The token that the router takes.
pub const TOKEN: &str = "correct-horse";
/// Who presents it, as policies name it.
pub const TOKEN_HOLDER: &str = "static:default";
/// Whom the gate takes for a router.
pub const ROUTER: &str = "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router";
/// A workload of the mesh that is no router.
pub const WORKLOAD: &str = "spiffe://cluster.local/ns/team-a/sa/worker";
/// The trust domain of everybody.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The UID of the pod that the gate is in.
pub const POD_UID: &str = "0d8f3c7a-52b1-4c7e-9f60-1f2e3d4c5b6a";
/// No exchange takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ports that a policy may have to speak of.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The app's.
    pub app: u16,
    /// The gate's own mesh port.
    pub mesh: u16,
    /// The gate's own health port.
    pub health: u16,
}

/// One app behind one gate behind one router.
pub struct Mesh {
    /// The app behind the gate.
    pub app: RecordingApp,
    /// What listens on the port that is configured as the gate's health port.
    pub health: RecordingApp,
    /// Everybody's certificates are from here.
    pub authority: Authority,
    /// The ports on the gate's side.
    pub ports: Ports,
    /// Where the router listens.
    pub router: SocketAddr,
    identity: SandboxIdentity,
    router_credentials: watch::Sender<Option<Arc<MeshCredentials>>>,
    _gate_credentials: watch::Sender<Option<Arc<MeshCredentials>>>,
    _policy: watch::Sender<Option<Arc<PolicySnapshot>>>,
    /// Ends the gate.
    pub gate_drain: Drain,
}

impl Mesh {
    /// A mesh whose gate lets everybody with a credential use the app's port.
    pub async fn open(app: RecordingApp) -> Self {
        Self::start(app, |ports| {
            default_policy(model::DefaultPolicy::Authenticated, vec![ports.app])
        })
        .await
    }

    /// A mesh whose gate enforces `policy`.
    pub async fn start(app: RecordingApp, policy: impl FnOnce(Ports) -> model::Snapshot) -> Self {
        let health = RecordingApp::start(|_| Step::Wait).await;
        let authority = Authority::new("sandgate-tests").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ports = Ports {
            app: app.port(),
            mesh: listener.local_addr().unwrap().port(),
            health: health.port(),
        };
        let identity = sandbox("alpha", POD_UID);
        let issued = authority.sidecar(&identity).unwrap();
        let (gate_sender, gate_credentials) = watch::channel(Some(credentials(Role::Sidecar, &issued, &authority)));
        let snapshot = PolicySnapshot::parse(&serde_json::to_vec(&policy(ports)).unwrap()).unwrap();
        let (policy_sender, policy) = watch::channel(Some(Arc::new(snapshot)));
        let settings = Settings {
            sandbox: identity.sandbox.clone(),
            pod_uid: identity.pod_uid.clone(),
            routers: vec![ROUTER.parse().unwrap()],
            own_ports: OwnPorts {
                mesh: ports.mesh,
                health: ports.health,
            },
            caps: Caps::default(),
            proxy_timeout: PATIENCE,
            audit: false,
        };
        let gate = Gate::new(settings, gate_credentials, policy).unwrap();
        let (drain, draining) = drain::channel();
        tokio::spawn(gate.serve(listener, draining));
        let issued = authority.router(&ROUTER.parse::<WorkloadIdentity>().unwrap()).unwrap();
        let router_credentials = watch::channel(Some(credentials(Role::Router, &issued, &authority))).0;
        let mut mesh = Self {
            app,
            health,
            authority,
            ports,
            router: SocketAddr::from(([127, 0, 0, 1], 0)),
            identity,
            router_credentials,
            _gate_credentials: gate_sender,
            _policy: policy_sender,
            gate_drain: drain,
        };
        mesh.router = mesh.another_router("default/alpha", POD_UID);
        mesh
    }

    /// One more router, which believes that the gate is that of `sandbox` in the pod `uid`.
    pub fn another_router(&self, sandbox: &str, uid: &str) -> SocketAddr {
        let router = self.bind_router(sandbox, uid, &[]);
        let address = router.http_address();
        tokio::spawn(router.run(std::future::pending()));
        address
    }

    /// A router of this mesh with `more` flags, which serves when it is run.
    pub fn bind_router(&self, sandbox: &str, uid: &str, more: &[&str]) -> Router {
        let mut flags = vec![
            "--http-bind-address=127.0.0.1:0".into(),
            "--metrics-bind-address=127.0.0.1:0".into(),
            "--health-probe-bind-address=127.0.0.1:0".into(),
            "--workers=1".into(),
            "--access-log=false".into(),
            format!("--auth-token={TOKEN}"),
            format!("--sandbox-endpoint={sandbox}=127.0.0.1:{},uid={uid}", self.ports.mesh),
        ];
        flags.extend(more.iter().copied().map(String::from));
        let config = Config::from_args(flags.iter().map(Into::into).collect()).unwrap();
        Router::bind(config, Some(self.router_credentials.subscribe())).unwrap()
    }

    /// The head of a request with everything it needs to get to the app, `Connection: close`, and `fields` (each ended
    /// with CRLF).
    pub fn head(&self, request_line: &str, fields: &str) -> String {
        format!(
            "{request_line}\r\nHost: sandbox.example\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: alpha\r\n\
             X-Sandbox-Port: {}\r\nConnection: close\r\n{fields}\r\n",
            self.ports.app
        )
    }

    /// Sends bytes to the router; see [`exchange`].
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> String {
        exchange(TcpStream::connect(self.router).await.unwrap(), bytes, false).await
    }

    /// The same from a client that stops sending after these bytes.
    pub async fn send_and_stop(&self, bytes: impl AsRef<[u8]>) -> String {
        exchange(TcpStream::connect(self.router).await.unwrap(), bytes, true).await
    }

    /// Goes directly to the gate with a certificate, or none, and sends it bytes. What comes back is empty if the gate
    /// refuses the handshake: in TLS 1.3 a client only learns of that afterwards.
    pub async fn send_to_gate(&self, certificate: Option<&Issued>, bytes: impl AsRef<[u8]>) -> String {
        let stream = TcpStream::connect(("127.0.0.1", self.ports.mesh)).await.unwrap();
        match tls::connect_mesh(stream, self.client_config(certificate)).await {
            Ok(stream) => exchange(stream, bytes, false).await,
            Err(_) => String::new(),
        }
    }

    /// A router's TLS configuration in which only the certificate is another.
    fn client_config(&self, certificate: Option<&Issued>) -> Arc<ClientConfig> {
        let router = self.router_credentials.borrow().clone().unwrap();
        let expected = ExpectedSandbox {
            trust_domain: self.identity.trust_domain.clone(),
            sandbox: self.identity.sandbox.clone(),
            pod_uid: None,
        };
        let mut config = ClientConfig::clone(&tls::router_client_config(&router, &expected).unwrap());
        config.client_auth_cert_resolver = match certificate {
            None => Arc::new(NoCertificate),
            Some(issued) => {
                let key = PrivateKeyDer::try_from(issued.key_der.clone()).unwrap();
                let key = tls::provider().key_provider.load_private_key(key).unwrap();
                let chain = issued.chain_der.iter().cloned().map(Into::into).collect();
                Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
            }
        };
        Arc::new(config)
    }
}

/// A client that was given no certificate.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Writes bytes and returns what comes until the peer closes; it must close within 10 s. A reset is a close, too.
pub async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: impl AsRef<[u8]>,
    and_stop: bool,
) -> String {
    let talk = async {
        // A peer that refuses the first bytes may be gone before the last ones.
        let _ = stream.write_all(bytes.as_ref()).await;
        let _ = stream.flush().await;
        if and_stop {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        while let Ok(1..) = stream.read_buf(&mut answer).await {}
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = tokio::time::timeout(PATIENCE, talk).await;
    answer.expect("the peer did not close the connection")
}

/// Reads until `end` is the last that came; it must come within 10 s.
pub async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &[u8]) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while !bytes.ends_with(end) {
            let read = stream.read_u8().await;
            let read = read.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&bytes)));
            bytes.push(read);
        }
    };
    let read = tokio::time::timeout(PATIENCE, reading).await;
    read.unwrap_or_else(|_| panic!("{:?} did not come", String::from_utf8_lossy(end)));
    String::from_utf8(bytes).unwrap()
}

/// The status of a response; 0 if there is none.
pub fn status(response: &str) -> u16 {
    response
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .unwrap_or(0)
}

/// A snapshot without policies.
pub fn default_policy(default_policy: model::DefaultPolicy, ports: Vec<u16>) -> model::Snapshot {
    model::Snapshot {
        version: model::VERSION,
        generation: model::Generation { epoch: 1, counter: 1 },
        default_policy,
        ports,
        policies: Vec::new(),
    }
}

/// A snapshot with one rule: these callers may do `methods` on `paths` of `port`.
pub fn rule(source: model::Source, port: u16, methods: &[&str], paths: &[&str]) -> model::Snapshot {
    let list = |texts: &[&str]| (!texts.is_empty()).then(|| texts.iter().copied().map(String::from).collect());
    let rule = model::Rule {
        from: vec![source],
        to: vec![model::Target {
            ports: vec![port],
            methods: list(methods),
            paths: list(paths),
        }],
    };
    let mut snapshot = default_policy(model::DefaultPolicy::Deny, vec![port]);
    snapshot.policies.push(model::Policy {
        name: "only".into(),
        rules: vec![rule],
    });
    snapshot
}

/// Whoever presents the router's token.
pub fn token_holder() -> model::Source {
    model::Source {
        users: Some(vec![TOKEN_HOLDER.into()]),
        ..model::Source::default()
    }
}

/// The identity of the gate of `default/<name>` in the pod `uid`.
pub fn sandbox(name: &str, uid: &str) -> SandboxIdentity {
    SandboxIdentity {
        trust_domain: trust_domain(),
        sandbox: sandgate_mesh::sandbox::SandboxKey {
            namespace: "default".parse().unwrap(),
            name: name.parse().unwrap(),
        },
        pod_uid: uid.parse().unwrap(),
    }
}

fn trust_domain() -> TrustDomain {
    TRUST_DOMAIN.parse().unwrap()
}

fn credentials(role: Role, issued: &Issued, authority: &Authority) -> Arc<MeshCredentials> {
    let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
    let bundle = authority.root_pem().as_bytes();
    Arc::new(MeshCredentials::from_pem(role, chain, key, bundle, &trust_domain()).unwrap())
}
