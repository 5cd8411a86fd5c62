//! Many creations at once. An API server opens a connection for each call that is under way.

use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::{Cluster, runner::Test, tests};
use tokio::task::JoinSet;

// Webhook configurations are for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone as_many_creations_at_once_as_an_api_server_takes_all_get_their_gates,
];

/// What an API server has under way at most, by its defaults: `--max-requests-inflight` and
/// `--max-mutating-requests-inflight` together.
const AT_ONCE: usize = 600;

async fn as_many_creations_at_once_as_an_api_server_takes_all_get_their_gates(cluster: Cluster) {
    let (system, sandboxes) = (
        System::install(&cluster).await,
        cluster.namespace(&[("sandgate.dev/inject", "enabled")]).await,
    );
    let chart = Chart::render(&[]);
    let replica = system.start(&chart, |_, _| {});
    system.configure(&chart, replica.webhook.port()).await;
    sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    let mut creations = JoinSet::new();
    for number in 0..AT_ONCE {
        let (sandboxes, pod) = (sandboxes.clone(), sandbox_pod(&format!("burst-{number}")));
        creations.spawn_local(async move { sandboxes.dry_run(&pod).await });
    }
    let answers = creations.join_all().await;
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(
        failed.is_empty(),
        "{} of {AT_ONCE} failed: {:?}",
        failed.len(),
        failed.first()
    );
    assert!(answers.iter().flatten().all(has_gate));
    let refused = replica.metric("sandgate_injector_refused_connections_total").await;
    assert_eq!(refused, 0);
}
