//! The running injector: listeners, certificate, what is looked after, and its end.

use crate::authority_secret::AuthoritySecret;
use crate::ca_bundle::{CaBundles, Confirmed};
use crate::config::serve::{CertificateSource, Config};
use crate::https::Https;
use crate::inbound::Bodies;
use crate::kubernetes;
use crate::metrics::Metrics;
use crate::network_policy::reconcile::{Plan, Reconciler};
use crate::serving::{self, Issuer, Served, Timing};
use crate::webhook::Webhook;
use kube::Client;
use sandgate_mesh::admin::{Admin, Readiness};
use sandgate_mesh::drain::{self, DrainState, Draining};
use sandgate_mesh::listener::bind;
use sandgate_mesh::telemetry::LineLog;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// An injector whose addresses are taken and that serves nobody yet.
pub struct Injector {
    config: Config,
    webhook: TcpListener,
    admin: TcpListener,
    client: Option<Client>,
    metrics: Arc<Metrics>,
    log: LineLog,
}

/// Runs an injector until `shutdown` completes.
///
/// # Errors
/// It can't start: an address is taken, a file can't be used, no API server is configured.
pub async fn serve(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    Injector::bind(config).await?.run(shutdown).await
}

impl Injector {
    /// Takes the addresses and finds the API server.
    ///
    /// # Errors
    /// An address is taken, or no API server is configured and one is needed.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        // With a certificate from files and without NetworkPolicies there is nothing to ask an API server for, save
        // that a policy of an earlier run may have to go.
        let client = Some(kubernetes::client().await?);
        Ok(Self {
            webhook: bind(config.webhook)?,
            admin: bind(config.admin)?,
            client,
            metrics: Arc::new(Metrics::new()?),
            log: LineLog::stderr()?,
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
}
