//! The running injector: listeners, the webhook's certificate, what is looked after beside it, and its end.

use crate::admin_thread;
use crate::anchors::Anchors;
use crate::authority_files::{self, External};
use crate::authority_keeper::{Authority, AuthorityKeeper, Fresh};
use crate::authority_secret::AuthoritySecret;
use crate::ca_bundle::{CaBundle, Confirmed, Trusted};
use crate::config::serve::{CertificateSource, Config};
use crate::enrol;
use crate::enrol::events::Events;
use crate::enrol::report::Report;
use crate::enrol::rotate::RotationContext;
use crate::enrol::rotate_report::RotationReport;
use crate::https::{Failing, Https};
use crate::inbound::Bodies;
use crate::kubernetes;
use crate::metrics::Metrics;
use crate::network_policy::reconcile::{Context, Reconciler};
use crate::root_changes::RootChanges;
use crate::serving::{Issuer, Served, Timing, from_files};
use crate::webhook::Webhook;
use futures_util::FutureExt;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use kube::Client;
use sandgate_mesh::admin::{Admin, Readiness};
use sandgate_mesh::drain::{self, DrainState, Draining};
use sandgate_mesh::listener::bind;
use sandgate_mesh::telemetry::LineLog;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

/// How long to wait before a background task starts again that panicked.
const RESTART: Duration = Duration::from_secs(5);

/// An injector whose addresses are taken and that serves nobody yet.
pub struct Injector {
    config: Config,
    webhook: TcpListener,
    admin: TcpListener,
    client: Client,
    timing: Timing,
    metrics: Arc<Metrics>,
    log: LineLog,
}

/// What is known of the authority's Secret.
struct Kept {
    authority: Authority,
    trusted: watch::Receiver<Trusted>,
    anchors: watch::Receiver<Option<Arc<Anchors>>>,
    fresh: Fresh,
    /// What files hold, where somebody else makes the authority.
    external: Option<External>,
}

/// The webhook's certificate, and what the webhook configurations hold; nothing of them where somebody else looks after those.
struct Webhooks {
    served: Served,
    confirmed: Vec<watch::Receiver<Confirmed>>,
}

/// Runs an injector until `shutdown` completes.
///
/// # Errors
/// It can't start: an address is taken, a file can't be used, no API server is configured.
pub async fn serve(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let (client, log) = (kubernetes::client().await?, LineLog::stderr()?);
    Injector::bind(config, client, Timing::default(), log)?
        .run(shutdown)
        .await
}

impl Injector {
    /// Takes the addresses. Decisions are written to `log`.
    ///
    /// # Errors
    /// An address is taken.
    pub fn bind(config: Config, client: Client, timing: Timing, log: LineLog) -> anyhow::Result<Self> {
        let metrics = Metrics::new()?;
        log.register(&metrics.registry, "sandgate_injector_dropped_log_lines_total")?;
        Ok(Self {
            webhook: bind(config.webhook)?,
            admin: bind(config.admin)?,
            client,
            timing,
            metrics: Arc::new(metrics),
            log,
            config,
        })
    }

    /// Where the webhook listens.
    pub fn webhook_address(&self) -> SocketAddr {
        self.webhook.local_addr().unwrap_or(self.config.webhook)
    }

    /// Where health and metrics are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.local_addr().unwrap_or(self.config.admin)
    }

    /// Serves until `shutdown` completes. Then it isn't ready any more, and still answers until API servers have gone
    /// elsewhere.
    ///
    /// # Errors
    /// A certificate file can't be used.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        tracing::info!(config = ?self.config, "effective configuration");
        let (drain, draining) = drain::channel();
        let (leave, leaving) = drain::channel();
        // Probes and scrapers are answered until the very end.
        let (admin_drain, admin_draining) = drain::channel();

        let kept = self.keep_authority(&draining);
        let webhooks = self.certificate(&kept, &draining)?;
        self.look_after_gates(&kept, &webhooks, &leaving, &draining)?;
        let (served, anchors) = (webhooks.served, kept.anchors);
        let readiness = readiness(&served, &anchors, leave.state());
        self.metrics.follow_readiness(Arc::clone(&readiness))?;
        let admin = Admin {
            readiness: Some(readiness),
            metrics: Some(self.metrics.registry.clone()),
            ..Admin::default()
        };
        tracing::info!(webhook = %self.webhook_address(), admin = %self.admin_address(), "listening");
        admin_thread::start(admin, self.admin, admin_draining)?;
        let webhook = Webhook {
            settings: self.config.settings.clone(),
            anchors,
            restrict_connect: self.config.restrict_connect,
            metrics: Arc::clone(&self.metrics),
            log: self.log.clone(),
            bodies: Bodies::new(),
        };
        let https = Https {
            routes: Arc::new(webhook).routes(),
            served,
            leaving: leave.state(),
            metrics: Arc::clone(&self.metrics),
            failing: Failing::default(),
        };
        tokio::spawn(https.serve(self.webhook, draining));
        let context = Context {
            client: self.client,
            settings: self.config.settings,
            webhook_configuration: self.config.webhook_configuration,
            enabled: self.config.network_policy,
            metrics: Arc::clone(&self.metrics),
        };
        // When a release is uninstalled, its policies go while this process is still draining: they must not come back.
        keep_running("network_policy", &self.metrics, leaving, move || {
            Reconciler::run(context.clone())
        });

        shutdown.await;
        tracing::info!("draining");
        leave.start();
        tokio::time::sleep(self.config.drain_delay).await;
        if !drain.finish(self.config.shutdown_timeout).await {
            tracing::warn!("reviews were still under way when the shutdown budget ended");
        }
        drop(admin_drain);
        self.log.flush();
        Ok(())
    }

    /// Starts what follows the authority's Secret. Gates are given its roots, whoever issues the webhook's certificate.
    fn keep_authority(&self, draining: &Draining) -> Kept {
        let (tell, authority) = watch::channel(None);
        let (trust, trusted) = watch::channel(Trusted::default());
        let (give, anchors) = watch::channel(None);
        let (ask, looked) = (Arc::<Notify>::default(), watch::Sender::new(None));
        let fresh = Fresh::new(&ask, &looked);
        let (client, namespace) = (self.client.clone(), self.config.settings.own_namespace.clone());
        let (secret, timing) = (self.config.authority_secret.clone(), self.timing);
        let metrics = Arc::clone(&self.metrics);
        let external = self.config.authority_files.clone().map(|files| {
            let own = self.config.settings.control_identity.clone();
            authority_files::follow(files, own, &self.metrics)
        });
        let from_files = external.clone();
        keep_running("authority", &self.metrics, draining.clone(), move || {
            let keeper = AuthorityKeeper {
                secret: AuthoritySecret::new(client.clone(), namespace.as_str(), &secret),
                external: from_files.clone(),
                check: timing.check,
                retry: timing.retry,
                authority: tell.clone(),
                trusted: trust.clone(),
                anchors: give.clone(),
                changes: RootChanges::new(timing.replicas()),
                leaving: timing.leaving(),
                ask: Arc::clone(&ask),
                looked: looked.clone(),
                metrics: Arc::clone(&metrics),
            };
            keeper.run()
        });
        Kept {
            authority,
            trusted,
            anchors,
            fresh,
            external,
        }
    }

    /// Starts what gives gates their identities and policies.
    fn look_after_gates(
        &self,
        kept: &Kept,
        webhooks: &Webhooks,
        leaving: &Draining,
        draining: &Draining,
    ) -> anyhow::Result<()> {
        let rotation = RotationContext {
            schedule: self.config.schedule,
            external: kept.external.clone(),
            waits: self.timing.waits(),
            tell_every: self.timing.check,
            confirmed: webhooks.confirmed.clone(),
            served: webhooks.served.clone(),
            fresh: kept.fresh.clone(),
            report: RotationReport::new(&self.metrics.registry)?,
        };
        let (events, publisher) = Events::new(&self.metrics.registry, self.client.clone())?;
        let mut ending = draining.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ending.started() => {}
                () = publisher.run() => {}
            }
        });
        let context = enrol::Context {
            client: self.client.clone(),
            settings: self.config.settings.clone(),
            default_policy: self.config.default_policy,
            authority: kept.authority.clone(),
            anchors: kept.anchors.clone(),
            secret: self.config.authority_secret.clone(),
            roots_config_map: self.config.roots_config_map.clone(),
            signs_pod_certificates: self.config.signs_pod_certificates,
            lifetime: self.config.gate_certificate_lifetime,
            lease: self.timing.lease,
            rotation,
            report: Report::new(&self.metrics.registry, self.log.clone(), events)?,
            metrics: Arc::clone(&self.metrics),
        };
        // It is told to leave ahead of its end, so that another replica takes over meanwhile.
        let leaving = leaving.clone();
        keep_running("enrolment", &self.metrics, draining.clone(), move || {
            enrol::run(context.clone(), leaving.clone())
        });
        Ok(())
    }

    /// Starts what looks after the webhook's certificate and the webhook configurations.
    fn certificate(&self, kept: &Kept, draining: &Draining) -> anyhow::Result<Webhooks> {
        let metrics = &self.metrics;
        let (names, manage_ca_bundle) = match &self.config.certificate {
            CertificateSource::Files { chain, key } => {
                self.follow_configurations(None, draining);
                let served = from_files(chain.clone(), key.clone(), metrics)?;
                let confirmed = Vec::new();
                return Ok(Webhooks { served, confirmed });
            }
            CertificateSource::Issued {
                names,
                manage_ca_bundle,
            } => (names.clone(), *manage_ca_bundle),
        };
        let (serve, served) = watch::channel(None);
        let trusted = manage_ca_bundle.then(|| kept.trusted.clone());
        let confirmed = self.follow_configurations(trusted, draining);
        let (timing, issuer_metrics) = (self.timing, Arc::clone(metrics));
        let (authority, told) = (kept.authority.clone(), confirmed.clone());
        keep_running("certificate", metrics, draining.clone(), move || {
            let issuer = Issuer {
                authority: authority.clone(),
                names: names.clone(),
                timing,
                confirmed: told.clone(),
                served: serve.clone(),
                metrics: Arc::clone(&issuer_metrics),
                current: None,
            };
            issuer.run()
        });
        Ok(Webhooks { served, confirmed })
    }

    /// Starts what looks after the webhook configurations. It returns what tells which of these roots each of them holds;
    /// nothing where somebody else looks after their bundles.
    fn follow_configurations(
        &self,
        trusted: Option<watch::Receiver<Trusted>>,
        draining: &Draining,
    ) -> Vec<watch::Receiver<Confirmed>> {
        let managed = trusted.is_some();
        // With no root ever, nothing is put into a bundle.
        let trusted = trusted.unwrap_or_else(|| watch::channel(Trusted::default()).1);
        let mut confirmed = Vec::new();
        let mut bundle = || {
            let (confirm, receiver) = watch::channel(Confirmed::default());
            confirmed.push(receiver);
            CaBundle {
                client: self.client.clone(),
                name: self.config.webhook_configuration.clone(),
                trusted: trusted.clone(),
                confirmed: confirm,
                metrics: Arc::clone(&self.metrics),
                resync: self.timing.resync,
            }
        };
        let (mutating, validating) = (bundle(), bundle());
        keep_running("ca_bundle", &self.metrics, draining.clone(), move || {
            mutating.clone().run::<MutatingWebhookConfiguration>()
        });
        keep_running("ca_bundle", &self.metrics, draining.clone(), move || {
            validating.clone().run::<ValidatingWebhookConfiguration>()
        });
        if managed { confirmed } else { Vec::new() }
    }
}

/// Runs a background task until the drain starts: whatever it is doing then, a later process does again. A panic costs
/// its present work, not the task and not the process.
fn keep_running<F: Future<Output = ()> + Send>(
    task: &'static str,
    metrics: &Arc<Metrics>,
    mut draining: Draining,
    run: impl Fn() -> F + Send + 'static,
) {
    let metrics = Arc::clone(metrics);
    let keep = async move {
        while AssertUnwindSafe(run()).catch_unwind().await.is_err() {
            metrics.failed(task);
            tracing::error!(task, "a background task panicked and starts again");
            tokio::time::sleep(RESTART).await;
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = draining.started() => {}
            () = keep => {}
        }
    });
}

/// Ready with a certificate that is valid now, and roots for gates, until the process is about to end.
fn readiness(served: &Served, anchors: &watch::Receiver<Option<Arc<Anchors>>>, leaving: DrainState) -> Readiness {
    let (served, anchors) = (served.clone(), anchors.clone());
    Arc::new(move || {
        if leaving.has_started() {
            return Err("draining".into());
        }
        let valid = served
            .borrow()
            .as_ref()
            .is_some_and(|served| served.valid_at(SystemTime::now()));
        if !valid {
            Err("no valid serving certificate".into())
        } else if anchors.borrow().is_none() {
            Err("no root certificate for gates".into())
        } else {
            Ok(())
        }
    })
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
