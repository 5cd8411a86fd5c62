//! The gate in a sandbox pod: mTLS in, that sandbox's own policy on every request, loopback out and nothing else.
//!
//! [`request`] is the way of a request, top to bottom; [`authorize`] decides; [`dial`] is the only door out. Beside it,
//! [`sandgate_mesh::control`] is how the gate gets its identity and its policy where they aren't files, [`held_ports`] keeps the
//! app from starting before the gate, [`lockdown`] closes the ways around it, and [`probe`] keeps the kubelet's one open.

mod audit;
pub mod authorize;
pub mod cli;
pub mod dial;
mod error;
#[cfg(test)]
mod flood_tests;
mod grpc;
pub mod held_ports;
pub mod lockdown;
mod metrics;
mod netlink;
mod peer;
pub mod probe;
mod relay;
mod request;
mod span;
mod strangers;

// Tests of enrolment need certificates; the one authority that issues them outside a cluster is sandgate-local's.
#[cfg(test)]
#[path = "../../../deploy/local/src/authority.rs"]
pub mod authority;

use crate::authorize::OwnPorts;
use crate::dial::Door;
use crate::error::too_many_connections;
use crate::metrics::{File, Metrics};
use crate::peer::Peer;
use crate::strangers::Strangers;
use sandgate_mesh::admin::Readiness;
use sandgate_mesh::control::server::Control;
use sandgate_mesh::credentials::{Credentials, MeshCredentials, Unfit};
use sandgate_mesh::drain::{DrainState, Draining};
use sandgate_mesh::framing::Limits;
use sandgate_mesh::http2::{HttpVersion, Windows};
use sandgate_mesh::identity::{PeerId, WorkloadIdentity};
use sandgate_mesh::listener::{self, ConnectionCount, ConnectionLimits, Newcomer, Newcomers};
use sandgate_mesh::memory::MemoryBudget;
use sandgate_mesh::overflow::{Overflow, Refusal};
use sandgate_mesh::policy::PolicySnapshot;
use sandgate_mesh::polled::Reload;
use sandgate_mesh::pool::LINGER;
use sandgate_mesh::sandbox::{PodUid, SandboxKey};
use sandgate_mesh::serve::ExtendedConnects;
use sandgate_mesh::standing::{IdentityWatch, fit};
use sandgate_mesh::telemetry::LineLog;
use sandgate_mesh::tls::{HandshakeError, MeshPeer, Purpose, ServerTls};
use sandgate_mesh::tunnel::TunnelLimits;
use sandgate_mesh::{serve, tls};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// How much peers may make the gate hold.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Connections in the handshake; one more ends the oldest of the address that has the most.
    pub handshakes: usize,
    /// Open mesh connections behind the handshake, in all and from one address. Routers may have them all.
    pub connections: ConnectionLimits,
    /// Idle connections to the app, in all.
    pub idle_upstream: usize,
    /// Of upgraded connections of workloads that call for themselves. What comes through a router has the router's limits.
    pub tunnels: TunnelLimits,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            handshakes: 256,
            connections: ConnectionLimits {
                total: 1024,
                per_peer: 256,
            },
            idle_upstream: 64,
            tunnels: TunnelLimits {
                message: 0,
                ..TunnelLimits::default()
            },
        }
    }
}

/// Whom a gate guards, whom it listens to and how much it takes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The sandbox behind the gate.
    pub sandbox: SandboxKey,
    /// This incarnation of it.
    pub pod_uid: PodUid,
    /// Peers whose caller assertions are believed.
    pub routers: Vec<WorkloadIdentity>,
    /// Ports that are never dialed.
    pub own_ports: OwnPorts,
    /// Bounds on what peers can make the gate hold.
    pub caps: Caps,
    /// Bounds on the heads of requests and of the app's answers, and on idle connections.
    pub framing: Arc<Limits>,
    /// Wait for a response head, and for each silence between body chunks.
    pub proxy_timeout: Duration,
    /// Whether to write one audit line per decision.
    pub audit: bool,
}

/// A running gate.
#[derive(Debug)]
pub struct Gate {
    pub(crate) settings: Settings,
    credentials: Credentials,
    pub(crate) policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
    control: Option<Arc<Control>>,
    pub(crate) door: Door,
    pub(crate) audit: Option<LineLog>,
    pub(crate) metrics: Metrics,
    memory: MemoryBudget,
    newcomers: Newcomers,
    overflow: Overflow,
    too_many: Refusal,
    connections: ConnectionCount,
    tls: ServerTls,
    pub(crate) strangers: Strangers,
    /// Whether the log was told that connections are refused for want of an identity, since that last changed.
    told_of_refusals: AtomicBool,
}

/// A peer being served, to its end.
type Serving = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Gate {
    /// A gate that takes its identity and its policy from whatever feeds the two receivers.
    ///
    /// # Errors
    /// The audit log's thread or a metric couldn't be made.
    pub fn new(
        settings: Settings,
        credentials: Credentials,
        policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
    ) -> anyhow::Result<Arc<Self>> {
        Self::build(settings, credentials, policy, None)
    }

    /// A gate that takes them from its control planes.
    ///
    /// # Errors
    /// The same.
    pub fn controlled(settings: Settings, control: Control) -> anyhow::Result<Arc<Self>> {
        let (credentials, policy) = (control.credentials(), control.policy());
        Self::build(settings, credentials, policy, Some(Arc::new(control)))
    }

    fn build(
        settings: Settings,
        credentials: Credentials,
        policy: watch::Receiver<Option<Arc<PolicySnapshot>>>,
        control: Option<Arc<Control>>,
    ) -> anyhow::Result<Arc<Self>> {
        let metrics = Metrics::new()?;
        LineLog::stderr()?.register(&metrics.registry, "sandgate_sidecar_dropped_log_lines_total")?;
        Ok(Arc::new(Self {
            door: Door::new(Arc::clone(&settings.framing), settings.caps.idle_upstream),
            audit: settings.audit.then(LineLog::stderr).transpose()?,
            metrics,
            memory: MemoryBudget::default(),
            newcomers: Newcomers::new(settings.caps.handshakes),
            overflow: Overflow::default(),
            too_many: too_many_connections(),
            connections: ConnectionCount::new(settings.caps.connections),
            tls: ServerTls::default(),
            strangers: Strangers::default(),
            told_of_refusals: AtomicBool::new(false),
            settings,
            credentials,
            policy,
            control,
        }))
    }

    /// The budget above which requests are shed; the program that owns the process feeds it.
    pub fn memory(&self) -> MemoryBudget {
        self.memory.clone()
    }

    /// The gate's metrics.
    pub fn registry(&self) -> prometheus::Registry {
        self.metrics.registry.clone()
    }

    /// Ready with an identity that is valid now and a policy snapshot, until the drain starts; not while requests are shed.
    pub fn readiness(self: &Arc<Self>, drain: DrainState) -> Readiness {
        let gate = Arc::clone(self);
        Arc::new(move || {
            if drain.has_started() {
                Err("draining".into())
            } else if let Err(unfit) = gate.valid_credentials() {
                Err(gate.explain(unfit).into())
            } else if gate.policy.borrow().is_none() {
                Err("no policy snapshot".into())
            } else if gate.memory.is_exhausted() {
                Err("short of memory".into())
            } else {
                Ok(())
            }
        })
    }

    /// Writes out what the audit log still holds.
    pub fn flush(&self) {
        if let Some(audit) = &self.audit {
            audit.flush();
        }
    }

    /// What counts attempts to load the files of the gate's identity.
    pub fn on_credentials(&self) -> impl Fn(Reload) + Send + use<> {
        self.metrics.on_reload(File::Credentials)
    }

    /// What counts attempts to load the gate's policy.
    pub fn on_policy(&self) -> impl Fn(Reload) + Send + use<> {
        self.metrics.on_reload(File::Policy)
    }

    fn valid_credentials(&self) -> Result<Arc<MeshCredentials>, Unfit> {
        fit(&self.credentials, SystemTime::now())
    }

    /// Why the gate has no identity that counts, as whoever looks for the cause needs it.
    fn explain(&self, unfit: Unfit) -> String {
        let control = self.control.as_ref();
        control.map_or_else(
            || unfit.to_string(),
            |control| control.explain(unfit, SystemTime::now()),
        )
    }

    /// Counts a connection that the gate can't prove itself on, and tells of the first.
    fn refuse_for(&self, unfit: Unfit) {
        self.metrics.refused.no_identity.inc();
        if !self.told_of_refusals.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason = %unfit, "mesh connections are refused until the gate has a valid identity");
        }
    }

    /// What a connection for this purpose is served with. Without an identity nothing can be said that a peer of requests
    /// could believe.
    fn tls_for(&self, purpose: Purpose) -> Option<Arc<ServerConfig>> {
        let Some(control) = self.control.as_ref().filter(|_| purpose == Purpose::Control) else {
            return self.server_tls();
        };
        control
            .server_tls()
            .inspect_err(|error| tracing::error!(%error, "the control API can't be served"))
            .ok()
    }

    fn server_tls(&self) -> Option<Arc<ServerConfig>> {
        let credentials = self.valid_credentials().inspect_err(|unfit| self.refuse_for(*unfit));
        let credentials = credentials.ok()?;
        let make = || tls::sidecar_server_config(&credentials);
        let config = self.tls.get(Some(&credentials), None, SystemTime::now(), make);
        config
            .inspect_err(|error| tracing::error!(%error, "identity can't be used"))
            .ok()
    }

    /// Serves the mesh port until the drain starts.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut draining: Draining) {
        let sweeper = tokio::spawn(Arc::clone(&self).sweep());
        let identity = IdentityWatch::new(self.credentials.clone(), self.metrics.certificate_not_after.clone());
        let gate = Arc::clone(&self);
        let watcher = tokio::spawn(identity.run(move || gate.told_of_refusals.store(false, Ordering::Relaxed)));
        while let Some((stream, address)) = listener::accept(&listener, &mut draining).await {
            self.meet(stream, address, &draining);
        }
        sweeper.abort();
        watcher.abort();
    }

    /// Gives a connection its place, and lets it go on by itself.
    fn meet(self: &Arc<Self>, stream: TcpStream, address: SocketAddr, draining: &Draining) {
        let (gate, draining, newcomer) = (Arc::clone(self), draining.clone(), self.newcomers.enter(address.ip()));
        tokio::spawn(async move {
            // Each in a box of its own: what a handshake needs is gone when serving begins.
            let serving = Box::pin(gate.greet(stream, address, newcomer, draining)).await;
            if let Some(serving) = serving {
                serving.await;
            }
        });
    }

    async fn sweep(self: Arc<Self>) {
        loop {
            self.metrics.in_force(self.policy.borrow().as_deref());
            tokio::time::sleep(LINGER).await;
            self.door.sweep();
        }
    }

    /// The handshake, and then how the peer is served, if it is one.
    async fn greet(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        mut newcomer: Newcomer,
        mut draining: Draining,
    ) -> Option<Serving> {
        // Who is of no use to anybody needs no first message to be told so.
        if self.control.is_none() {
            self.server_tls()?;
        }
        let mut asked = Purpose::Requests;
        let choose = |purpose| {
            asked = purpose;
            self.tls_for(purpose)
        };
        let accepted = tokio::select! {
            accepted = tls::accept_mesh(stream, choose) => accepted,
            () = newcomer.displaced() => {
                self.metrics.refused.handshakes.inc();
                return None;
            }
            () = draining.started() => return None,
        };
        let (stream, peer, purpose) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.refused(address, asked, &error);
                return None;
            }
        };
        self.metrics.handshakes.inc();
        drop(newcomer);
        let control = self.control.clone();
        match (control, purpose) {
            (Some(control), Purpose::Control) => {
                let metrics = self.metrics.control.clone();
                Some(Box::pin(control.serve(metrics, stream, peer, address, draining)))
            }
            (Some(control), Purpose::Requests) if control.is_control_plane(&peer.id) => {
                self.metrics.refused.control.inc();
                tracing::warn!(peer = %peer.id, %address, "a control plane asked for the app, and was refused");
                None
            }
            _ => Some(Box::pin(self.serve_peer(stream, peer, address, draining))),
        }
    }

    /// Counts and tells of a handshake that came to nothing.
    fn refused(&self, address: SocketAddr, asked: Purpose, error: &HandshakeError) {
        // Without an identity, which was counted and told already.
        if matches!(error, HandshakeError::Unserved) {
            return;
        }
        self.metrics.handshake_failures.inc();
        if self.control.is_some() && asked == Purpose::Control {
            self.metrics.refused.control.inc();
        }
        tracing::info!(peer = %address, %error, "handshake refused");
    }

    async fn serve_peer(
        self: Arc<Self>,
        stream: TlsStream<TcpStream>,
        peer: MeshPeer,
        address: SocketAddr,
        draining: Draining,
    ) {
        let is_router = matches!(&peer.id, PeerId::Workload(id) if self.settings.routers.contains(id));
        // A router speaks for many callers, and comes from one address.
        let slot = if is_router {
            self.connections.enter_trusted(address.ip())
        } else {
            self.connections.enter(address.ip())
        };
        let Ok(slot) = slot else {
            self.metrics.refused.connections.inc();
            self.overflow.answer(stream, &self.too_many);
            return;
        };
        let peer = Arc::new(Peer::new(peer, is_router, address.ip(), slot));
        let (gate, framing) = (Arc::clone(&self), Arc::clone(&self.settings.framing));
        let tunnels = draining.clone();
        let version = tls::agreed_version(stream.get_ref().1);
        let handle = move |request, switch| {
            let (gate, peer, draining) = (Arc::clone(&gate), Arc::clone(&peer), tunnels.clone());
            // Boxed, or each future that it passes through would have room for it.
            let request = Box::new(request);
            async move { request::handle(&gate, &peer, request, switch, draining).await }
        };
        match version {
            HttpVersion::Http1 => serve::http1(stream, &framing, draining, handle).await,
            HttpVersion::Http2 => {
                let mesh = (Windows::MESH, ExtendedConnects::Refused);
                Box::pin(serve::http2(stream, &framing, mesh, draining, handle)).await;
            }
        }
    }
}
