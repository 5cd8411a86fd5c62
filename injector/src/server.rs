//! The running injector: listeners, the webhook's certificate, what is looked after beside it, and its end.

use crate::admin_thread;
use crate::anchors::Anchors;
use crate::authority::Root;
use crate::authority_keeper::{Authority, AuthorityKeeper};
use crate::authority_secret::AuthoritySecret;
use crate::ca_bundle::{CaBundle, Confirmed};
use crate::config::serve::{CertificateSource, Config};
use crate::enrol;
use crate::enrol::report::Report;
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
use tokio::sync::watch;

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
    roots: watch::Receiver<Vec<Root>>,
    anchors: watch::Receiver<Option<Arc<Anchors>>>,
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

        let Kept {
            authority,
            roots,
            anchors,
        } = self.keep_authority(&draining);
        self.look_after_gates(&authority, &anchors, &leaving, &draining)?;
        let served = self.certificate(authority, roots, &draining)?;
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
        let (trust, roots) = watch::channel(Vec::new());
        let (give, anchors) = watch::channel(None);
        let (client, namespace) = (self.client.clone(), self.config.settings.own_namespace.clone());
        let (secret, timing) = (self.config.authority_secret.clone(), self.timing);
        let metrics = Arc::clone(&self.metrics);
        keep_running("authority", &self.metrics, draining.clone(), move || {
            let keeper = AuthorityKeeper {
                secret: AuthoritySecret::new(client.clone(), namespace.as_str(), &secret),
                check: timing.check,
                retry: timing.retry,
                authority: tell.clone(),
                roots: trust.clone(),
                anchors: give.clone(),
                // Within two looks of theirs, the others know it too.
                changes: RootChanges::new(2 * timing.check),
                metrics: Arc::clone(&metrics),
            };
            keeper.run()
        });
        Kept {
            authority,
            roots,
            anchors,
        }
    }

    /// Starts what gives gates their identities and policies.
    fn look_after_gates(
        &self,
        authority: &Authority,
        anchors: &watch::Receiver<Option<Arc<Anchors>>>,
        leaving: &Draining,
        draining: &Draining,
    ) -> anyhow::Result<()> {
        let context = enrol::Context {
            client: self.client.clone(),
            settings: self.config.settings.clone(),
            default_policy: self.config.default_policy,
            authority: authority.clone(),
            anchors: anchors.clone(),
            secret: self.config.authority_secret.clone(),
            lifetime: self.config.gate_certificate_lifetime,
            lease: self.timing.lease,
            report: Report::new(&self.metrics.registry, self.log.clone())?,
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
    fn certificate(
        &self,
        authority: Authority,
        roots: watch::Receiver<Vec<Root>>,
        draining: &Draining,
    ) -> anyhow::Result<Served> {
        let metrics = &self.metrics;
        let (names, manage_ca_bundle) = match &self.config.certificate {
            CertificateSource::Files { chain, key } => {
                self.follow_configurations(None, draining);
                return Ok(from_files(chain.clone(), key.clone(), metrics)?);
            }
            CertificateSource::Issued {
                names,
                manage_ca_bundle,
            } => (names.clone(), *manage_ca_bundle),
        };
        let (serve, served) = watch::channel(None);
        let confirmed = self.follow_configurations(manage_ca_bundle.then_some(roots), draining);
        let (timing, issuer_metrics) = (self.timing, Arc::clone(metrics));
        keep_running("certificate", metrics, draining.clone(), move || {
            let issuer = Issuer {
                authority: authority.clone(),
                names: names.clone(),
                timing,
                confirmed: confirmed.clone(),
                served: serve.clone(),
                metrics: Arc::clone(&issuer_metrics),
                current: None,
            };
            issuer.run()
        });
        Ok(served)
    }

    /// Starts what looks after the webhook configurations. It returns what tells which of these roots each of them holds;
    /// nothing where somebody else looks after their bundles.
    fn follow_configurations(
        &self,
        roots: Option<watch::Receiver<Vec<Root>>>,
        draining: &Draining,
    ) -> Vec<watch::Receiver<Confirmed>> {
        let managed = roots.is_some();
        // With no root ever, nothing is put into a bundle.
        let roots = roots.unwrap_or_else(|| watch::channel(Vec::new()).1);
        let mut confirmed = Vec::new();
        let mut bundle = || {
            let (confirm, receiver) = watch::channel(Confirmed::default());
            confirmed.push(receiver);
            CaBundle {
                client: self.client.clone(),
                name: self.config.webhook_configuration.clone(),
                roots: roots.clone(),
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
mod tests {
    use super::*;
    use crate::rig::PATIENCE;
    use sandgate_mesh::policy::model::DefaultPolicy;
    use tokio::sync::mpsc;

    #[tokio::test(start_paused = true)]
    async fn a_background_task_that_panics_starts_again_and_ends_with_the_process() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (drain, draining) = drain::channel();
        let (started, mut starts) = mpsc::unbounded_channel();
        keep_running("certificate", &metrics, draining, move || {
            let started = started.clone();
            async move {
                started.send(()).unwrap();
                panic!("a defect");
            }
        });
        for _ in 0..3 {
            tokio::time::timeout(PATIENCE, starts.recv()).await.unwrap().unwrap();
        }
        assert!(drain.finish(PATIENCE).await);
        assert_eq!(starts.recv().await, None);
    }

    #[test]
    fn a_replica_is_ready_with_a_certificate_and_a_root_for_gates_until_it_is_told_to_end() {
        let (serve, served) = watch::channel(None);
        let (give, anchors) = watch::channel(None);
        let (leave, _) = drain::channel();
        let ready = readiness(&served, &anchors, leave.state());
        let metrics = Metrics::new().unwrap();
        metrics.follow_readiness(Arc::clone(&ready)).unwrap();
        let scraped = || {
            let families = metrics.registry.gather();
            let ready = families
                .iter()
                .find(|family| family.name() == "sandgate_injector_ready");
            ready.map(|family| family.get_metric()[0].get_gauge().get_value())
        };
        assert_eq!(ready().unwrap_err(), "no valid serving certificate");
        assert_eq!(scraped(), Some(0.0));
        let stored = crate::authority_secret::Stored::new();
        let issued = stored.authority.serving(&["a.svc".parse().unwrap()], PATIENCE).unwrap();
        let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        let credentials = sandgate_mesh::credentials::FrontCredentials::from_pem(chain, key).unwrap();
        serve.send_replace(Some(Arc::new(crate::serving::Serving::new(&credentials).unwrap())));
        assert_eq!(ready().unwrap_err(), "no root certificate for gates");
        give.send_replace(Some(Arc::new(Anchors::of(&stored.roots).unwrap())));
        assert!(ready().is_ok());
        assert_eq!(scraped(), Some(1.0));
        leave.start();
        assert_eq!(ready().unwrap_err(), "draining");
        assert_eq!(scraped(), Some(0.0));
    }

    #[tokio::test]
    async fn nothing_that_waits_for_the_api_server_holds_up_the_end() {
        let config = Config {
            settings: crate::testing::settings(),
            webhook: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            certificate: CertificateSource::Issued {
                names: vec!["a.svc".parse().unwrap()],
                manage_ca_bundle: true,
            },
            authority_secret: "sandgate-authority".into(),
            default_policy: DefaultPolicy::Deny,
            gate_certificate_lifetime: PATIENCE,
            webhook_configuration: "sandgate-injector".into(),
            restrict_connect: false,
            network_policy: true,
            drain_delay: Duration::ZERO,
            shutdown_timeout: 10 * PATIENCE,
            log_level: "info".into(),
        };
        let log = LineLog::to(std::io::sink()).unwrap();
        let injector = Injector::bind(config, crate::rig::unreachable(), Timing::default(), log).unwrap();
        let running = injector.run(tokio::task::yield_now());
        tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    }
}
