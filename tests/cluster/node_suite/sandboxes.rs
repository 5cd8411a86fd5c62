//! From `helm install` and a label to an answer: a Sandbox, and a claim that takes one from a warm pool.

use crate::install::PATIENCE;
use crate::pods::{Running, app, router, running, start_sandbox, stored, team, until_answered};
use sandgate_cluster_tests::router::ask;
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, Namespace, tests, until_within};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = tests![
    @alone a_sandbox_answers_as_soon_as_it_is_ready,
    @alone a_claim_that_adopts_a_warm_sandbox_answers,
];

/// What is counted here is the router's view of a pod: it hears of readiness as everybody does.
pub(crate) const SOON: Duration = Duration::from_secs(10);

async fn a_sandbox_answers_as_soon_as_it_is_ready(cluster: Cluster) {
    let team = team(&cluster).await;
    let started = Instant::now();
    let pod = start_sandbox(&team, "plain").await;
    let ready = started.elapsed();
    let answered = until_answered(&team, "plain", &pod).await;
    note(&format!(
        "Ready {:.1} s after it was created, answered {:.2} s later",
        ready.as_secs_f64(),
        answered.as_secs_f64()
    ));
    assert!(answered < SOON, "{answered:?}");
    // The gate is what answers: a port that the pod doesn't declare is refused by name.
    let (status, body) = ask(router(&cluster).await, team.name(), "plain", 9999, "").await;
    assert_eq!(status, 403, "{body}");
}

/// A template under upstream's managed NetworkPolicy, and a pool of its sandboxes, all ready.
pub(crate) async fn warm_pool(team: &Namespace, spec: &Value, replicas: usize) {
    let api_version = "extensions.agents.x-k8s.io/v1beta1";
    team.admitted(&json!({
        "apiVersion": api_version, "kind": "SandboxTemplate", "metadata": {"name": "template"},
        "spec": {"podTemplate": {"spec": spec}},
    }))
    .await;
    let pool = team
        .admitted(&json!({
            "apiVersion": api_version, "kind": "SandboxWarmPool", "metadata": {"name": "pool"},
            "spec": {"replicas": replicas, "sandboxTemplateRef": {"name": "template"}},
        }))
        .await;
    until_within(PATIENCE, "the pool is warm", async || {
        let status = team.cluster().get(&pool).await.unwrap()["status"].clone();
        if status["readyReplicas"] == replicas {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
}

/// Claims a sandbox of the pool; its pod, and how long that took to be Ready.
pub(crate) async fn claimed(team: &Namespace, name: &str) -> (Running, Duration) {
    let started = Instant::now();
    let claim = team
        .admitted(&json!({
            "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxClaim", "metadata": {"name": name},
            "spec": {"warmPoolRef": {"name": "pool"}},
        }))
        .await;
    let sandbox = until_within(PATIENCE, "the claim is ready", async || {
        let status = team.cluster().get(&claim).await.unwrap()["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        match status["sandbox"]["name"].as_str() {
            Some(sandbox) if conditions.iter().any(ready) => Ok(sandbox.to_owned()),
            _ => Err(status),
        }
    })
    .await;
    let took = started.elapsed();
    let pod = stored(team, &sandbox).await.unwrap();
    (running(&pod).unwrap(), took)
}

async fn a_claim_that_adopts_a_warm_sandbox_answers(cluster: Cluster) {
    let team = team(&cluster).await;
    warm_pool(&team, &app(), 2).await;
    let (pod, ready) = claimed(&team, "claim").await;
    let answered = until_answered(&team, &pod.name, &pod).await;
    note(&format!(
        "the claim was Ready {:.2} s after it was created, answered {:.2} s later",
        ready.as_secs_f64(),
        answered.as_secs_f64()
    ));
    assert!(answered < SOON, "{answered:?}");
}
