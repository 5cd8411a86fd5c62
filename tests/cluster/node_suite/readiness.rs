//! What a gate costs a pod that starts.

use crate::pods::{app, stored, team};
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, Namespace, tests};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = tests![@alone a_gated_pod_is_ready_soon];

/// How many pods are started with a gate, and how many without.
const PODS: usize = 20;
/// The most that a gate may add. Pods with and without one take turns, so however busy the machine is, it is for both.
const MOST_ADDED: Duration = Duration::from_millis(1500);
/// How exactly times are taken.
const INTERVAL: Duration = Duration::from_millis(20);

async fn a_gated_pod_is_ready_soon(cluster: Cluster) {
    let (gated, plain) = (team(&cluster).await, cluster.namespace(&[]).await);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for number in 0..PODS {
        with.push(time_to_ready(&gated, number).await);
        without.push(time_to_ready(&plain, number).await);
    }
    let (with, without) = (median(with), median(without));
    note(&format!(
        "from scheduled to Ready, medians of {PODS}: {:.2} s with a gate, {:.2} s without",
        with.as_secs_f64(),
        without.as_secs_f64()
    ));
    assert!(
        with <= without + MOST_ADDED,
        "{with:?} with a gate, {without:?} without"
    );
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// How long a pod takes from the moment that it has a node until it is Ready. It is gone afterwards.
async fn time_to_ready(namespace: &Namespace, number: usize) -> Duration {
    let mut spec = app();
    // The kubelet would ask once a second, and that is what would be measured.
    spec["containers"][0].as_object_mut().unwrap().remove("readinessProbe");
    spec["terminationGracePeriodSeconds"] = 0.into();
    let name = format!("pod-{number}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace.name(), "labels": {"sandgate.dev/inject": "enabled"}},
        "spec": spec,
    });
    namespace.admitted(&pod).await;
    let scheduled = until_seen(namespace, &name, |pod| pod["spec"]["nodeName"].is_string()).await;
    let ready = until_seen(namespace, &name, |pod| crate::pods::running(pod).is_some()).await;
    namespace.cluster().delete(&pod).await.unwrap();
    ready - scheduled
}

async fn until_seen(namespace: &Namespace, name: &str, seen: impl Fn(&Value) -> bool) -> Instant {
    while !stored(namespace, name).await.is_some_and(|pod| seen(&pod)) {
        tokio::time::sleep(INTERVAL).await;
    }
    Instant::now()
}
