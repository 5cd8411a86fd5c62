//! The connection to the API server.

use anyhow::Context;
use kube::{Client, Config};
use std::time::Duration;

/// How long one request may take. Watches have a limit of their own.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A client as `KUBECONFIG` says, or as a pod finds it.
///
/// # Errors
/// There is neither, or it can't be used.
pub(crate) async fn client() -> anyhow::Result<Client> {
    // Several crates of a program may each bring one; which one serves must not depend on that. It is there already
    // where a process runs several injectors.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config::infer().await.context(
        "no way to the API server is configured: run in a pod with a ServiceAccount token, or set KUBECONFIG",
    )?;
    Client::try_from(config).context("the configured way to the API server can't be used")
}

/// A request that took too long, or that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// Nothing came in time.
    #[error("the API server didn't answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
    /// The API server refused, or couldn't be reached.
    #[error(transparent)]
    Kube(#[from] kube::Error),
}

impl RequestError {
    /// Whether the object was there already.
    pub(crate) fn is_already_exists(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.is_already_exists())
    }

    /// Whether the object isn't there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.is_not_found())
    }

    /// Whether somebody else changed the object in the meantime.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.is_conflict())
    }
}

/// Waits for a request, but not for ever.
///
/// # Errors
/// It took too long, or failed.
pub(crate) async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, request).await;
    Ok(answer.map_err(|_| RequestError::TimedOut)??)
}
