//! What tests need that run against a real Kubernetes API server: a connection, namespaces of their own, objects as
//! the JSON that goes over the wire, other users' eyes, admission configurations and upstream's custom resources.
//!
//! `tests/cluster/run` starts the server and runs the tests; `README.md` says how to write one.

// A harness has nobody to report to: a panic is how it fails the test that uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::missing_panics_doc)]
// An `Answer` says itself what its error is.
#![allow(clippy::missing_errors_doc)]

pub mod admission;
pub mod chart;
mod cluster;
pub mod creations;
pub mod former;
mod identity;
pub mod injector;
pub mod inventory;
pub mod kubectl;
mod namespace;
pub mod node;
pub mod process;
pub mod processes;
pub mod router;
pub mod router_pod;
pub mod runbook;
pub mod runner;
pub mod service;
pub mod upstream;
pub mod webhook;

pub use cluster::{Answer, Cluster, documents};
pub use namespace::Namespace;

use std::fmt::Debug;
use std::time::Duration;

/// No wait takes longer, or the test fails. An API server on a busy machine takes a few seconds for what it usually
/// does in one.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often is asked while waiting.
const INTERVAL: Duration = Duration::from_millis(50);

/// Asks until the answer is `Ok`; it has [`PATIENCE`] to come. `what` says what is waited for, and an `Err` how it stands
/// instead: the last one is in the panic.
pub async fn until<T, E: Debug>(what: &str, ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    until_within(PATIENCE, what, ask).await
}

/// The same with a time of its own, for what takes longer than a request: images to start, pods to end.
pub async fn until_within<T, E: Debug>(
    patience: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let mut last = None;
    let asking = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(instead) => last = Some(instead),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let answer = tokio::time::timeout(patience, asking).await;
    answer.unwrap_or_else(|_| panic!("not in {patience:?}: {what}; instead: {last:?}"))
}
