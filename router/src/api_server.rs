//! The way to the API server. Hides how it is found: there is one client for whoever asks, made when somebody first does.

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::PathBuf;
use tokio::sync::OnceCell;

/// The API server, as a kubeconfig file names it; without one, as a pod finds it, or as `KUBECONFIG` says.
pub(crate) struct ApiServer {
    kubeconfig: Option<PathBuf>,
    client: OnceCell<Client>,
}

impl ApiServer {
    pub(crate) fn new(kubeconfig: Option<PathBuf>) -> Self {
        Self {
            kubeconfig,
            client: OnceCell::new(),
        }
    }

    /// A client of it. That it doesn't answer is no error yet.
    ///
    /// # Errors
    /// No way to it is configured, or one that can't be used.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        self.client.get_or_try_init(|| self.connect()).await.cloned()
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        // Several crates of a program may each bring one; which one serves must not depend on that. It is there already
        // where a process runs several routers.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path);
                let read = read.with_context(|| format!("--kubeconfig: {} can't be used", path.display()))?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                    .await
                    .with_context(|| format!("--kubeconfig: {} can't be used", path.display()))?
            }
            None => Config::infer().await.context(
                "no way to the API server is configured, which the pod cache and reviews of callers need: run in a pod with a \
                 ServiceAccount token, or set --kubeconfig",
            )?,
        };
        // Watches come again by themselves, and so do clients that wait for a review.
        config.default_retry = false;
        Client::try_from(config).context("the configured way to the API server can't be used")
    }
}
