//! The whole mesh on loopback, for tests: an app that records every byte, a gate in front of it, a router in front of
//! that, and clients that send whatever they are told.

// A harness has nobody to report to: a panic is how it fails the test that uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::missing_panics_doc)]

pub mod api_server;
mod app;
pub mod browser;
pub mod collector;
pub mod control;
pub mod enrolled;
pub mod enrolled_router;
pub mod folder;
pub mod front;
pub mod http2;
pub mod impostor;
pub mod issuer;
pub mod kubelet;
pub mod load;
pub mod processes;
pub mod strangers;
pub mod websocket;
mod wire;

pub use app::{RecordingApp, Request, Step, closed_port, ok};
pub use wire::{
    assert_detail, exchange, exchange_without_end, field, looks_complete, read_until, send, send_whole, status, until,
};

use sandbox_router::Router;
use sandbox_router::config::Config;
use sandbox_sidecar::authorize::OwnPorts;
use sandbox_sidecar::{Caps, Gate, Settings};
use sandgate_local::authority::{Authority, Issued};
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::drain::{self, Drain};
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::identity::{ExpectedSandbox, SandboxIdentity, TrustDomain, WorkloadIdentity};
use sandgate_mesh::memory::MemoryBudget;
use sandgate_mesh::policy::{PolicySnapshot, model};
use sandgate_mesh::tls;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ClientConfig, ServerConfig, SignatureScheme};

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
pub const PATIENCE: Duration = Duration::from_secs(10);

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
    gate_credentials: watch::Sender<Option<Arc<MeshCredentials>>>,
    policy: watch::Sender<Option<Arc<PolicySnapshot>>>,
    /// Above it the gate sheds requests. Nothing watches it.
    pub gate_memory: MemoryBudget,
    /// Ends the gate.
    pub gate_drain: Drain,
}

impl Mesh {
    /// A mesh whose gate lets everybody with a credential use the app's port.
    pub async fn open(app: RecordingApp) -> Self {
        Self::open_with(app, &[]).await
    }

    /// A mesh whose gate lets everybody with a credential use the app's port and `others`.
    pub async fn open_with(app: RecordingApp, others: &[u16]) -> Self {
        Self::start(app, |ports| {
            default_policy(model::DefaultPolicy::Authenticated, [&[ports.app], others].concat())
        })
        .await
    }

    /// A mesh whose gate enforces `policy`.
    pub async fn start(app: RecordingApp, policy: impl FnOnce(Ports) -> model::Snapshot) -> Self {
        Self::start_with(app, policy, |_| {}).await
    }

    /// A mesh whose gate enforces `policy` and is set as `change` leaves its settings.
    pub async fn start_with(
        app: RecordingApp,
        policy: impl FnOnce(Ports) -> model::Snapshot,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
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
        let mut settings = Settings {
            sandbox: identity.sandbox.clone(),
            pod_uid: identity.pod_uid.clone(),
            routers: vec![ROUTER.parse().unwrap()],
            own_ports: OwnPorts {
                mesh: ports.mesh,
                health: ports.health,
            },
            caps: Caps::default(),
            framing: Arc::default(),
            proxy_timeout: PATIENCE,
            audit: false,
        };
        change(&mut settings);
        let gate = Gate::new(settings, gate_credentials, policy).unwrap();
        let (drain, draining) = drain::channel();
        let gate_memory = gate.memory();
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
            gate_credentials: gate_sender,
            policy: policy_sender,
            gate_memory,
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

    /// One more router for `alpha`, with `more` flags.
    pub fn run_router(&self, more: &[&str]) -> SocketAddr {
        let router = self.bind_router("default/alpha", POD_UID, more);
        let address = router.http_address();
        tokio::spawn(router.run(std::future::pending()));
        address
    }

    /// Two more routers for `alpha` with `more` flags: one that goes through the gate, and one that dials the app itself.
    pub fn run_both(&self, more: &[&str]) -> [SocketAddr; 2] {
        [
            self.run_router(more),
            self.run_router(&[more, &["--mesh=off"]].concat()),
        ]
    }

    /// A router of this mesh with `more` flags, which serves when it is run. It leads to this mesh's gate, unless `more`
    /// leads the sandbox elsewhere.
    pub fn bind_router(&self, sandbox: &str, uid: &str, more: &[&str]) -> Router {
        self.bind_router_with(sandbox, uid, more, |_| {})
    }

    /// The same router, set as `change` leaves its configuration: not everything has a flag.
    pub fn bind_router_with(
        &self,
        sandbox: &str,
        uid: &str,
        more: &[&str],
        change: impl FnOnce(&mut Config),
    ) -> Router {
        let mut flags = vec![
            "--http-bind-address=127.0.0.1:0".into(),
            "--metrics-bind-address=127.0.0.1:0".into(),
            "--health-probe-bind-address=127.0.0.1:0".into(),
            "--workers=1".into(),
            "--access-log=false".into(),
            "--drain-delay=0s".into(),
            format!("--auth-token={TOKEN}"),
        ];
        let endpoint = format!("--sandbox-endpoint={sandbox}=");
        if !more.iter().any(|flag| flag.starts_with(&endpoint)) {
            flags.push(format!("{endpoint}127.0.0.1:{},uid={uid}", self.ports.mesh));
        }
        flags.extend(more.iter().copied().map(String::from));
        let mut config = Config::from_args(flags.iter().map(Into::into).collect()).unwrap();
        change(&mut config);
        Router::bind(config, Some(self.router_credentials.subscribe())).unwrap()
    }

    /// Takes the gate's policy away, as if none had come yet.
    pub fn forget_policy(&self) {
        self.policy.send_replace(None);
    }

    /// Takes the routers' identity away, as if none had come yet.
    pub fn forget_router_identity(&self) {
        self.router_credentials.send_replace(None);
    }

    /// The head of a request with everything it needs to get to the app, `Connection: close`, and `fields` (each ended
    /// with CRLF).
    pub fn head(&self, request_line: &str, fields: &str) -> String {
        head_to(self.ports.app, request_line, fields)
    }

    /// Sends bytes to the router; see [`exchange`].
    pub async fn send(&self, bytes: impl AsRef<[u8]>) -> String {
        send(self.router, bytes).await
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
            Ok((stream, _)) => exchange(stream, bytes, false).await,
            Err(_) => String::new(),
        }
    }

    /// The TLS configuration of a gate, in which only the certificate is another.
    pub fn server_config(&self, certificate: &Issued) -> Arc<ServerConfig> {
        let gate = self.gate_credentials.borrow().clone().unwrap();
        let mut config = ServerConfig::clone(&tls::sidecar_server_config(&gate).unwrap());
        config.cert_resolver = Arc::new(signer(certificate));
        Arc::new(config)
    }

    /// A router's TLS configuration in which only the certificate is another.
    pub fn client_config(&self, certificate: Option<&Issued>) -> Arc<ClientConfig> {
        let router = self.router_credentials.borrow().clone().unwrap();
        let expected = ExpectedSandbox {
            trust_domain: self.identity.trust_domain.clone(),
            sandbox: self.identity.sandbox.clone(),
            pod_uid: None,
        };
        let mut config =
            ClientConfig::clone(&tls::router_client_config(HttpVersion::Http1, &router, &expected).unwrap());
        config.client_auth_cert_resolver = match certificate {
            None => Arc::new(NoCertificate),
            Some(issued) => Arc::new(signer(issued)),
        };
        Arc::new(config)
    }
}

/// Presents this certificate, whatever it is worth.
pub fn signer(issued: &Issued) -> SingleCertAndKey {
    let key = PrivateKeyDer::try_from(issued.key_der.clone()).unwrap();
    let key = tls::provider().key_provider.load_private_key(key).unwrap();
    let chain = issued.chain_der.iter().cloned().map(Into::into).collect();
    SingleCertAndKey::from(CertifiedKey::new(chain, key))
}

/// The head of a request with everything it needs to get to this port of `alpha`; see [`Mesh::head`].
pub fn head_to(port: u16, request_line: &str, fields: &str) -> String {
    format!(
        "{request_line}\r\nHost: sandbox.example\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: alpha\r\n\
         X-Sandbox-Port: {port}\r\nConnection: close\r\n{fields}\r\n"
    )
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

/// The first bytes of a client that speaks nothing above TLS 1.2: a whole `ClientHello`.
pub fn tls_1_2_hello() -> Vec<u8> {
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
    [[0x16, 3, 1, 0, length + 4].as_slice(), &[1, 0, 0, length], &body].concat()
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
