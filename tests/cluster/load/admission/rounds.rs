//! One round: creations at a fixed rate, however long each takes.

use sandgate_cluster_tests::chart::sandbox_pod;
use sandgate_cluster_tests::{Cluster, Namespace};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The API server's own histogram of webhook calls, and its first bound.
const CALLS: &str = "apiserver_admission_webhook_admission_duration_seconds";
const FIRST_BOUND: &str = "le=\"0.005\"";

/// What came of a round.
pub(crate) struct Round {
    /// From the moment at which a creation was due to its answer, sorted. A late start counts.
    pub(crate) took: Vec<Duration>,
    /// Reasons of creations that failed.
    pub(crate) failures: Vec<String>,
    /// What the API server saw of the webhook.
    pub(crate) calls: Calls,
}

impl Round {
    /// The time within which this share of the creations was answered.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among thousands"
        )]
        let rank = (self.took.len() as f64 * share).ceil() as usize;
        self.took[rank.clamp(1, self.took.len()) - 1]
    }
}

/// Calls of webhooks, as the API server counts them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) count: u64,
    /// Of these, those that took 5 ms at most.
    pub(crate) fast: u64,
    pub(crate) seconds: f64,
}

/// Creates so many pods, one each `pause`.
pub(crate) async fn round(namespace: &Namespace, pause: Duration, count: u32) -> Round {
    let before = webhook_calls(namespace.cluster()).await;
    let (start, mut running) = (Instant::now(), JoinSet::new());
    for number in 0..count {
        let due = start + pause * number;
        tokio::time::sleep_until(due).await;
        let (namespace, pod) = (namespace.clone(), sandbox_pod(&format!("load-{number}")));
        running.spawn_local(async move {
            let answer = namespace.dry_run(&pod).await;
            (due.elapsed(), answer.err().map(|status| status.message))
        });
    }
    let (mut took, mut failures) = (Vec::new(), Vec::new());
    for (time, failure) in running.join_all().await {
        took.push(time);
        failures.extend(failure);
    }
    took.sort();
    let after = webhook_calls(namespace.cluster()).await;
    let calls = Calls {
        count: after.count - before.count,
        fast: after.fast - before.fast,
        seconds: after.seconds - before.seconds,
    };
    Round { took, failures, calls }
}

/// All calls of webhooks for creations so far.
pub(crate) async fn webhook_calls(cluster: &Cluster) -> Calls {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = cluster.client().request_text(request).await.unwrap();
    let mut calls = Calls::default();
    let lines = text.lines().filter(|line| line.contains("operation=\"CREATE\""));
    for line in lines {
        let Some((series, value)) = line.strip_prefix(CALLS).and_then(|line| line.rsplit_once(' ')) else {
            continue;
        };
        if series.starts_with("_count") {
            calls.count += value.parse::<u64>().unwrap();
        } else if series.starts_with("_sum") {
            calls.seconds += value.parse::<f64>().unwrap();
        } else if series.contains(FIRST_BOUND) {
            calls.fast += value.parse::<u64>().unwrap();
        }
    }
    calls
}
