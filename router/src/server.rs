//! Listeners, worker threads, readiness and drain.

use crate::acceptor::Acceptor;
use crate::api_server::ApiServer;
use crate::authenticate::Authenticator;
use crate::authorize::AccessReviews;
use crate::breaker::Breakers;
use crate::certificates::{FrontTls, front_tls, mesh_identity};
use crate::config::{Config, Mesh};
use crate::connections;
use crate::enrolment::EnrolmentListener;
use crate::forward::Forwarder;
use crate::limits::RequestCounts;
use crate::metrics::Metrics;
use crate::otlp::Otlp;
use crate::pods::{self, PodCache};
use crate::resolve::Resolver;
use crate::upgrades::UpgradeCount;
use crate::worker::Worker;
use sandgate_mesh::admin::{Admin, Readiness};
use sandgate_mesh::credentials::{Credentials, Unfit};
use sandgate_mesh::drain::{self, Drain, Draining};
use sandgate_mesh::listener;
use sandgate_mesh::memory::MemoryBudget;
use sandgate_mesh::standing::{IdentityWatch, fit};
use sandgate_mesh::telemetry::LineLog;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;

/// Why a router isn't ready that nobody can bring its identity yet.
const NO_ANCHORS: &str = "no identity, and no roots yet by which to know who brings it";
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
        let readiness = self.readiness(leaving.state(), &authenticator);
        let access = self.config.access_log.then(LineLog::stderr).transpose()?;
        let acceptor = self.start_workers(&authenticator, access_reviews.as_ref(), access.as_ref(), &draining)?;

        answer_probes(self.health, readiness, admin_draining.clone());
        answer_scrapers(self.metrics_listener, &self.metrics, admin_draining);
        if let Some(enrolment) = self.enrolment {
            tokio::spawn(enrolment.serve(draining.clone()));
        }
        let watcher = self.identity.map(|identity| tokio::spawn(identity.run(|| {})));
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
        leave(&self.config, &leaving, drain).await;
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

    /// Starts the worker threads, and what hands them connections.
    fn start_workers(
        &self,
        authenticator: &Arc<Authenticator>,
        access_reviews: Option<&Arc<AccessReviews>>,
        access: Option<&LineLog>,
        draining: &Draining,
    ) -> anyhow::Result<Acceptor> {
        let framing = Arc::clone(&self.config.framing);
        let upgrades = UpgradeCount::new(&self.config).map(Arc::new);
        let limits = RequestCounts::new(self.config.request_limits, &self.metrics).map(Arc::new);
        let breakers = Breakers::of(self.config.breaker, &self.metrics)?.map(Arc::new);
        let mut workers = Vec::new();
        for number in 0..self.config.workers {
            let worker = Worker {
                config: Arc::clone(&self.config),
                framing: Arc::clone(&framing),
                authenticator: Arc::clone(authenticator),
                access_reviews: access_reviews.cloned(),
                resolver: Arc::clone(&self.resolver),
                forwarder: Forwarder::new(
                    &self.config,
                    &framing,
                    self.credentials.clone(),
                    &self.metrics,
                    breakers.clone(),
                ),
                metrics: Arc::clone(&self.metrics),
                access: access.cloned(),
                memory: self.memory.clone(),
                upgrades: upgrades.clone(),
                tracer: self.otlp.as_ref().and_then(Otlp::tracer),
                limits: limits.clone(),
            };
            workers.push(connections::start(number, worker, draining.clone())?);
        }
        Ok(Acceptor::new(workers, &self.config, self.memory.clone(), &self.metrics))
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

fn answer_probes(listener: TcpListener, readiness: Readiness, draining: Draining) {
    let health = Admin {
        readiness: Some(readiness),
        ..Admin::default()
    };
    tokio::spawn(health.serve(listener, draining));
}

fn answer_scrapers(listener: TcpListener, metrics: &Metrics, draining: Draining) {
    let scraped = Admin {
        metrics: Some(metrics.registry.clone()),
        ..Admin::default()
    };
    tokio::spawn(scraped.serve(listener, draining));
}

/// Says that the router is leaving, serves who comes until that is known, and lets requests finish.
async fn leave(config: &Config, leaving: &Drain, drain: Drain) {
    tracing::info!(delay = ?config.drain_delay, "draining");
    leaving.start();
    tokio::time::sleep(config.drain_delay).await;
    let budget = config.shutdown_timeout.saturating_sub(config.drain_delay);
    if !drain.finish(budget).await {
        tracing::warn!("requests were still under way when the shutdown budget ended");
    }
}
