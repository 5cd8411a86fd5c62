//! Listeners, worker threads, readiness and drain.

use crate::api_server::ApiServer;
use crate::authenticate::{Authenticator, certificate_caller};
use crate::authorize::AccessReviews;
use crate::breaker::Breakers;
use crate::certificates::{FrontTls, front_tls, mesh_identity};
use crate::config::{Config, Mesh};
use crate::enrolment::EnrolmentListener;
use crate::forward::Forwarder;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::otlp::Otlp;
use crate::pods::{self, PodCache};
use crate::request::{self, Client, Worker};
use crate::resolve::Resolver;
use crate::upgrades::UpgradeCount;
use anyhow::Context;
use prometheus::IntCounter;
use sandgate_mesh::admin::{Admin, Readiness};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::credentials::{Credentials, Unfit};
use sandgate_mesh::drain::{self, Draining};
use sandgate_mesh::http2::{HttpVersion, Windows};
use sandgate_mesh::listener::{self, ConnectionCount, ConnectionSlot, Full};
use sandgate_mesh::memory::MemoryBudget;
use sandgate_mesh::overflow::{Overflow, Refusal};
use sandgate_mesh::pool::LINGER;
use sandgate_mesh::serve::ExtendedConnects;
use sandgate_mesh::standing::{IdentityWatch, fit};
use sandgate_mesh::telemetry::LineLog;
use sandgate_mesh::{serve, tls};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::rustls::ServerConfig;

/// What a client hears that is one too many.
const TOO_MANY: &str = "The router has too many connections; try again.";
/// What a client hears whose address has one too many.
const TOO_MANY_OF_PEER: &str = "The router has too many connections from this address; try again.";
/// What a client hears that connects while the memory budget is spent.
const SHORT_OF_MEMORY: &str = "The router is short of memory; try again.";
/// Why a router isn't ready that nobody can bring its identity yet.
const NO_ANCHORS: &str = "no identity, and no roots yet by which to know who brings it";
/// Accepted connections that may wait for a worker.
const HANDOVER: usize = 1024;

/// A connection on its way to a worker.
struct Accepted {
    stream: std::net::TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    slot: ConnectionSlot,
}

/// A router whose listeners are bound.
pub struct Router {
    config: Arc<Config>,
    /// There is at least one of these two.
    http: Option<TcpListener>,
    https: Option<(TcpListener, FrontTls)>,
    metrics_listener: TcpListener,
    health: TcpListener,
    credentials: Option<Credentials>,
    /// Where a control plane brings them, if one does.
    enrolment: Option<EnrolmentListener>,
    metrics: Arc<Metrics>,
    resolver: Arc<Resolver>,
    pods: Option<PodCache>,
    memory: MemoryBudget,
    /// Tells how the mesh identity stands.
    identity: Option<IdentityWatch>,
    /// Exports traces and metrics, if that is wanted.
    otlp: Option<Otlp>,
}

impl Router {
    /// Binds the listeners and reads the files. To be called inside a Tokio runtime. `credentials` replaces the files of
    /// the configuration, for a router that lives in another program.
    ///
    /// # Errors
    /// A taken port, or files that can't be used.
    pub fn bind(config: Config, credentials: Option<Credentials>) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new()?);
        LineLog::stderr()?.register(&metrics.registry, "sandbox_router_dropped_log_lines_total")?;
        for sandbox in &config.sandboxes {
            metrics.learn(&sandbox.key.namespace);
        }
        let (credentials, enrolment) = match (credentials, config.mesh) {
            (_, Mesh::Off) => (None, None),
            (Some(credentials), Mesh::Required | Mesh::Auto) => (Some(credentials), None),
            (None, Mesh::Required | Mesh::Auto) => mesh_identity(&config, &metrics)?,
        };
        let watched = |credentials: &Credentials| -> anyhow::Result<_> {
            Ok(IdentityWatch::new(
                credentials.clone(),
                metrics.certificate_not_after()?,
            ))
        };
        let identity = credentials.as_ref().map(watched).transpose()?;
        let https = config
            .https
            .as_ref()
            .map(|https| {
                let tls = front_tls(https, &metrics)?;
                anyhow::Ok((listener::bind(https.address)?, tls))
            })
            .transpose()?;
        let cache = || {
            PodCache::new(
                config.trust_domain.clone(),
                config.allow_loopback_pod_ip,
                &metrics.registry,
            )
        };
        let pods = config.cache.as_ref().map(|_| cache()).transpose()?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!(settings = %config.settings, "effective configuration");
        let otlp = config
            .otlp
            .as_ref()
            .map(|otlp| Otlp::start(otlp, &metrics))
            .transpose()?;
        Ok(Self {
            otlp,
            http: config.http.map(listener::bind).transpose()?,
            https,
            metrics_listener: listener::bind(config.metrics)?,
            health: listener::bind(config.health)?,
            credentials,
            enrolment,
            resolver: Arc::new(Resolver::new(&config, pods.clone())),
            pods,
            memory: MemoryBudget::default(),
            identity,
            metrics,
            config,
        })
    }

    /// The budget above which requests and connections are shed; the program that owns the process feeds it.
    pub fn memory(&self) -> MemoryBudget {
        self.memory.clone()
    }

    /// Where the HTTP listener is. Port 0 if the configuration has none.
    pub fn http_address(&self) -> SocketAddr {
        let nowhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let address = self.http.as_ref().and_then(|listener| listener.local_addr().ok());
        address.or(self.config.http).unwrap_or(nowhere)
    }

    /// Where the HTTPS listener is, if there is one.
    pub fn https_address(&self) -> Option<SocketAddr> {
        self.https.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Where control planes dial, if one brings the router's identity.
    pub fn mesh_address(&self) -> Option<SocketAddr> {
        self.enrolment.as_ref().and_then(EnrolmentListener::address)
    }

    /// Where the health listener is.
    pub fn health_address(&self) -> SocketAddr {
        self.health.local_addr().unwrap_or(self.config.health)
    }

    /// Where the metrics listener is.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_listener.local_addr().unwrap_or(self.config.metrics)
    }

    /// Serves until `shutdown` completes. From then on it isn't ready; new connections are served for the drain delay, and
    /// requests may finish within the shutdown budget.
    ///
    /// # Errors
    /// A worker thread couldn't be started.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        tracing::info!(
            http = self.http.as_ref().map(|_| tracing::field::display(self.http_address())),
            https = self.https_address().map(tracing::field::display),
            metrics = %self.metrics_address(),
            health = %self.health_address(),
            mesh = self.mesh_address().map(tracing::field::display),
            "listening"
        );
        let api_server = ApiServer::new(self.config.kubeconfig.clone());
        if let (Some(source), Some(pods)) = (&self.config.cache, self.pods.clone()) {
            pods::follow(api_server.client().await?, source, self.config.mesh != Mesh::Off, pods);
        }
        let authenticator = Authenticator::new(&self.config.authentication, &api_server, &self.metrics).await?;
        let authenticator = Arc::new(authenticator);
        let access_reviews = if self.config.access_review {
            Some(Arc::new(AccessReviews::new(&api_server, &self.metrics).await?))
        } else {
            None
        };
        let (drain, draining) = drain::channel();
        // Readiness flips first: connections come for as long as it isn't known everywhere.
        let (leaving, _) = drain::channel();
        // Probes and scrapers are answered until the very end.
        let (admin_drain, admin_draining) = drain::channel();
        let health = Admin {
            readiness: Some(self.readiness(leaving.state(), &authenticator)),
            ..Admin::default()
        };
        tokio::spawn(health.serve(self.health, admin_draining.clone()));
        let scraped = Admin {
            metrics: Some(self.metrics.registry.clone()),
            ..Admin::default()
        };
        tokio::spawn(scraped.serve(self.metrics_listener, admin_draining));
        if let Some(enrolment) = self.enrolment {
            tokio::spawn(enrolment.serve(draining.clone()));
        }
        let watcher = self.identity.map(|identity| tokio::spawn(identity.run(|| {})));

        let access = self.config.access_log.then(LineLog::stderr).transpose()?;
        let framing = Arc::clone(&self.config.framing);
        let upgrades = UpgradeCount::new(&self.config).map(Arc::new);
        let limits = Limits::new(self.config.request_limits, &self.metrics).map(Arc::new);
        let breakers = Breakers::of(&self.config, &self.metrics)?.map(Arc::new);
        let mut workers = Vec::new();
        for number in 0..self.config.workers {
            let worker = Worker {
                config: Arc::clone(&self.config),
                framing: Arc::clone(&framing),
                authenticator: Arc::clone(&authenticator),
                access_reviews: access_reviews.clone(),
                resolver: Arc::clone(&self.resolver),
                forwarder: Forwarder::new(
                    &self.config,
                    &framing,
                    self.credentials.clone(),
                    &self.metrics,
                    breakers.clone(),
                ),
                metrics: Arc::clone(&self.metrics),
                access: access.clone(),
                memory: self.memory.clone(),
                upgrades: upgrades.clone(),
                tracer: self.otlp.as_ref().and_then(Otlp::tracer),
                limits: limits.clone(),
            };
            workers.push(start_worker(number, worker, draining.clone())?);
        }
        let acceptor = Acceptor {
            workers: Arc::from(workers),
            next: Arc::default(),
            count: ConnectionCount::new(self.config.connection_limits()),
            overflow: Overflow::default(),
            too_many: Refusal::unavailable(TOO_MANY, None),
            too_many_of_peer: Refusal::too_many(TOO_MANY_OF_PEER),
            short_of_memory: Refusal::unavailable(SHORT_OF_MEMORY, None),
            config: Arc::clone(&self.config),
            memory: self.memory,
            metrics: Arc::clone(&self.metrics),
        };
        if let Some(listener) = self.http {
            tokio::spawn(acceptor.clone().accept(listener, None, draining.clone()));
        }
        if let Some((listener, tls)) = self.https {
            tokio::spawn(acceptor.accept(listener, Some(tls), draining));
        } else {
            drop(acceptor);
            drop(draining);
        }

        shutdown.await;
        tracing::info!(delay = ?self.config.drain_delay, "draining");
        leaving.start();
        tokio::time::sleep(self.config.drain_delay).await;
        if !drain
            .finish(self.config.shutdown_timeout - self.config.drain_delay)
            .await
        {
            tracing::warn!("requests were still under way when the shutdown budget ended");
        }
        if let Some(otlp) = self.otlp {
            otlp.finish().await;
        }
        drop(admin_drain);
        if let Some(watcher) = watcher {
            watcher.abort();
        }
        if let Some(access) = access {
            access.flush();
        }
        Ok(())
    }

    fn readiness(&self, drain: drain::DrainState, authenticator: &Arc<Authenticator>) -> Readiness {
        let authenticator = Arc::clone(authenticator);
        let (credentials, pods) = (self.credentials.clone(), self.pods.clone());
        let anchors = self.enrolment.as_ref().map(EnrolmentListener::anchors);
        Arc::new(move || {
            if drain.has_started() {
                return Err("draining".into());
            }
            if pods.as_ref().is_some_and(|pods| !pods.is_complete()) {
                return Err("the pods of sandboxes are not known yet".into());
            }
            authenticator.readiness()?;
            let stands = |credentials: &Credentials| fit(credentials, SystemTime::now()).map(|_| ());
            let stands = credentials.as_ref().map_or(Ok(()), stands);
            stands.map_err(|unfit| match (&anchors, unfit) {
                (Some(anchors), Unfit::Absent) if anchors.borrow().is_none() => NO_ANCHORS.into(),
                _ => unfit.to_string().into(),
            })
        })
    }
}

/// Hands accepted connections to the workers in turn.
#[derive(Clone)]
struct Acceptor {
    workers: Arc<[mpsc::Sender<Accepted>]>,
    next: Arc<AtomicUsize>,
    count: ConnectionCount,
    overflow: Overflow,
    too_many: Refusal,
    too_many_of_peer: Refusal,
    short_of_memory: Refusal,
    config: Arc<Config>,
    memory: MemoryBudget,
    metrics: Arc<Metrics>,
}

impl Acceptor {
    async fn accept(self, listener: TcpListener, tls: Option<FrontTls>, mut draining: Draining) {
        while let Some((stream, peer)) = listener::accept(&listener, &mut draining).await {
            let slot = match self.admit(peer.ip()) {
                Ok(slot) => slot,
                Err((answer, counter)) => {
                    counter.inc();
                    if tls.is_none() {
                        self.overflow.answer(stream, answer);
                    }
                    continue;
                }
            };
            let tls = match &tls {
                None => None,
                Some(tls) => match tls.borrow().as_deref() {
                    Some(config) => Some(Arc::clone(config)),
                    None => continue,
                },
            };
            let Ok(stream) = stream.into_std() else { continue };
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
            if let Some(worker) = self.workers.get(turn) {
                let _ = worker
                    .send(Accepted {
                        stream,
                        peer,
                        tls,
                        slot,
                    })
                    .await;
            }
        }
    }

    /// A place for a connection from `peer`, or what it hears instead and where that is counted. A trusted proxy may have
    /// all places: it speaks for many.
    fn admit(&self, peer: IpAddr) -> Result<ConnectionSlot, (&Refusal, &IntCounter)> {
        let refused = &self.metrics.refused;
        if self.memory.is_exhausted() {
            return Err((&self.short_of_memory, &refused.memory));
        }
        let entered = if self.config.trusts(peer) {
            self.count.enter_trusted(peer)
        } else {
            self.count.enter(peer)
        };
        entered.map_err(|full| match full {
            Full::Total => (&self.too_many, &refused.connections),
            Full::Peer => (&self.too_many_of_peer, &refused.connections_of_peer),
        })
    }
}

/// Starts a thread that serves connections on a runtime of its own: nothing on a request's way changes threads.
fn start_worker(number: usize, worker: Worker, draining: Draining) -> anyhow::Result<mpsc::Sender<Accepted>> {
    let (sender, mut accepted) = mpsc::channel::<Accepted>(HANDOVER);
    let runtime = serve::runtime()?;
    let work = async move {
        let worker = Arc::new(worker);
        let sweeping = Arc::clone(&worker);
        let sweeper = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LINGER).await;
                sweeping.forwarder.sweep();
            }
        });
        let (inner, inner_draining) = drain::channel();
        let mut outer = draining;
        loop {
            tokio::select! {
                connection = accepted.recv() => match connection {
                    Some(connection) => {
                        let (worker, draining) = (Arc::clone(&worker), inner_draining.clone());
                        tokio::spawn(async move { Box::pin(serve_connection(worker, connection, draining)).await });
                    }
                    None => break,
                },
                () = outer.started() => break,
            }
        }
        drop(inner_draining);
        // The budget is the process's: whoever waits for `outer` ends it.
        inner.finish(Duration::from_secs(86_400)).await;
        sweeper.abort();
        drop(outer);
    };
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || runtime.block_on(work))
        .context("a worker thread can't be started")?;
    Ok(sender)
}

async fn serve_connection(worker: Arc<Worker>, accepted: Accepted, mut draining: Draining) {
    let Accepted {
        stream,
        peer,
        tls,
        slot,
    } = accepted;
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    let first_bytes = tokio::select! {
        first_bytes = listener::first_bytes(&stream, worker.framing.idle_time, worker.framing.head_time) => first_bytes,
        () = draining.started() => None,
    };
    let Some(version) = first_bytes else { return };
    match tls {
        None => {
            let client = Client::new(&worker.config, peer.ip(), "http", None, slot, draining.clone());
            Box::pin(serve_stream(worker, version, stream, client, draining)).await;
        }
        Some(config) => match Box::pin(tls::accept_front(stream, config)).await {
            Ok((stream, certificate)) => {
                let named = certificate.as_ref().map(certificate_caller);
                // A certificate that names nobody must not pass for no certificate.
                if let Some(None) = named {
                    tracing::info!(%peer, "the client certificate's name can't be a caller's");
                    return;
                }
                // Whoever vouches for clients doesn't vouch for the mesh: its own names are the mesh's to give.
                if let Some(Some(caller)) = &named
                    && matches!(&*caller.caller, Caller::Spiffe(id) if id.is_in(&worker.config.trust_domain))
                {
                    tracing::info!(%peer, "the client certificate claims a name in the mesh's own trust domain");
                    return;
                }
                let client = Client::new(
                    &worker.config,
                    peer.ip(),
                    "https",
                    named.flatten(),
                    slot,
                    draining.clone(),
                );
                let version = tls::agreed_version(stream.get_ref().1);
                Box::pin(serve_stream(worker, version, stream, client, draining)).await;
            }
            Err(error) => tracing::info!(%peer, %error, "handshake refused"),
        },
    }
}

async fn serve_stream<S>(worker: Arc<Worker>, version: HttpVersion, stream: S, client: Client, draining: Draining)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (framing, client) = (Arc::clone(&worker.framing), Arc::new(client));
    let handle = move |request, switch| {
        let (worker, client) = (Arc::clone(&worker), Arc::clone(&client));
        // Boxed, or each future that it passes through would have room for it.
        let request = Box::new(request);
        async move { request::handle(&worker, &client, request, switch).await }
    };
    match version {
        HttpVersion::Http1 => serve::http1(stream, &framing, draining, handle).await,
        HttpVersion::Http2 => {
            let front = (Windows::FRONT, ExtendedConnects::Served);
            Box::pin(serve::http2(stream, &framing, front, draining, handle)).await;
        }
    }
}
