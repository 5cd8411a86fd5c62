//! What happens to a node and to its pods, under a constant stream of requests: none is delivered to another pod than the
//! one it is for, and none fails but for those whose pod is gone.

use crate::install::rolled_out;
use crate::pods::{router_pod, start_sandbox, until_answered, until_ready, until_replaced};
use crate::sandboxes::SOON;
use crate::scene::{Scene, count};
use crate::stream::Answer;
use rustix::process::{Signal, kill_process};
use sandgate_cluster_tests::chart::OWN_NAMESPACE;
use sandgate_cluster_tests::kubectl::kubectl_prints;
use sandgate_cluster_tests::processes::{HeldStill, named, of_pod};
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, tests, until};
use serde_json::json;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = tests![
    @alone a_gate_is_killed,
    @alone the_kubelet_is_restarted,
    @alone the_injector_is_restarted,
    @alone the_leader_of_the_injector_is_lost,
    @alone the_api_server_is_away_for_a_minute,
    @alone a_pod_is_deleted_and_made_again,
];

/// How soon a gate listens that has been started.
const LISTENS_WITHIN: Duration = Duration::from_millis(200);

async fn a_gate_is_killed(cluster: Cluster) {
    let scene = Scene::set(&cluster).await;
    let gates = of_pod("sandbox-sidecar", &scene.pods[0].uid);
    assert_eq!(gates.len(), 1, "{gates:?}");
    let killed = Instant::now();
    kill_process(gates[0], Signal::KILL).unwrap();
    until("the kubelet has started the gate again", async || {
        match of_pod("sandbox-sidecar", &scene.pods[0].uid) {
            now if now.len() == 1 && now != gates => Ok(()),
            now => Err(now),
        }
    })
    .await;
    let back = Instant::now() + LISTENS_WITHIN;
    until_ready(&scene.team, &scene.pods[0].name).await;
    let (pods, answers) = scene.end().await;
    let failed = count("kill -9 of a gate", &answers, &pods);
    note(&format!(
        "{:<28} {:.1} s without a gate",
        "",
        (back - killed).as_secs_f64()
    ));
    // Whatever was within the gate died with it, and may have reached the app, so nobody sends it again. What came then has
    // waited for another gate, and is answered by that, unless the kubelet took longer than the router waits.
    let excused = |answer: &Answer| answer.sandbox == pods[0].name && answer.sent + answer.took < back;
    failed.none_but(excused);
}

async fn the_kubelet_is_restarted(cluster: Cluster) {
    let scene = Scene::set(&cluster).await;
    let before = named("kubelet");
    assert_eq!(before.len(), 1, "{before:?}");
    kill_process(before[0], Signal::KILL).unwrap();
    until("there is another kubelet", async || match named("kubelet") {
        now if now.len() == 1 && now != before => Ok(()),
        now => Err(now),
    })
    .await;
    // It runs pods again.
    let new = start_sandbox(&scene.team, "new").await;
    until_answered(&scene.team, "new", &new).await;
    let (pods, answers) = scene.end().await;
    let failed = count("kill -9 of the kubelet", &answers, &pods);
    failed.none();
}

async fn the_injector_is_restarted(cluster: Cluster) {
    let scene = Scene::set(&cluster).await;
    kubectl_prints(&[
        "rollout",
        "restart",
        "deployment/sandgate-injector",
        "-n",
        OWN_NAMESPACE,
    ])
    .await;
    rolled_out(&cluster, "sandgate-injector").await;
    let new = start_sandbox(&scene.team, "new").await;
    until_answered(&scene.team, "new", &new).await;
    let (pods, answers) = scene.end().await;
    let failed = count("restart of the injector", &answers, &pods);
    failed.none();
}

/// The pod of the replica that holds the Lease.
async fn leader(cluster: &Cluster) -> Option<String> {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "sandgate-injector", "namespace": OWN_NAMESPACE},
    });
    let found = cluster.get(&lease).await.unwrap();
    let holder = found["spec"]["holderIdentity"].as_str()?;
    // A part that differs from one start to the next follows.
    Some(holder.split_once('_')?.0.to_owned())
}

async fn the_leader_of_the_injector_is_lost(cluster: Cluster) {
    let scene = Scene::set(&cluster).await;
    let old = leader(&cluster).await.expect("a leader");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": old, "namespace": OWN_NAMESPACE}});
    let uid = cluster.get(&pod).await.unwrap()["metadata"]["uid"].clone();
    let processes = of_pod("sandbox-injector", uid.as_str().unwrap());
    assert_eq!(processes.len(), 1, "{processes:?}");
    // It can't give the Lease back, as if its machine were gone.
    let held = HeldStill::process(processes[0]);
    let lost = Instant::now();
    kubectl_prints(&[
        "delete",
        "pod",
        &old,
        "-n",
        OWN_NAMESPACE,
        "--grace-period=0",
        "--force",
    ])
    .await;
    let new = until("another replica leads", async || match leader(&cluster).await {
        Some(new) if new != old => Ok(new),
        other => Err(other),
    })
    .await;
    let taken = lost.elapsed();
    let sandbox = start_sandbox(&scene.team, "new").await;
    until_answered(&scene.team, "new", &sandbox).await;
    assert_eq!(leader(&cluster).await, Some(new), "somebody else has enrolled it");
    let (pods, answers) = scene.end().await;
    drop(held);
    let failed = count("loss of the leader", &answers, &pods);
    note(&format!("{:<28} {:.1} s without a leader", "", taken.as_secs_f64()));
    failed.none();
    rolled_out(&cluster, "sandgate-injector").await;
}

async fn the_api_server_is_away_for_a_minute(cluster: Cluster) {
    let scene = Scene::set_at(router_pod().await, &cluster).await;
    let held = HeldStill::new("kube-apiserver");
    tokio::time::sleep(Duration::from_secs(60)).await;
    drop(held);
    // All that it hears afterwards is taken up, such as a new pod.
    let new = start_sandbox(&scene.team, "new").await;
    until_answered(&scene.team, "new", &new).await;
    let (pods, answers) = scene.end().await;
    let failed = count("API server away for 60 s", &answers, &pods);
    failed.none();
}

async fn a_pod_is_deleted_and_made_again(cluster: Cluster) {
    let scene = Scene::set(&cluster).await;
    let old = scene.pods[0].clone();
    let deleted = Instant::now();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": old.name, "namespace": scene.team.name()},
    });
    cluster.delete(&pod).await.unwrap();
    let new = until_replaced(&scene.team, &old).await;
    let ready = Instant::now();
    let answered = until_answered(&scene.team, &new.name, &new).await;
    let (mut pods, answers) = scene.end().await;
    pods.push(new);
    let failed = count("deletion of a pod", &answers, &pods);
    note(&format!(
        "{:<28} {:.1} s without a pod, answered {:.2} s after the new one was Ready",
        "",
        (ready - deleted).as_secs_f64(),
        answered.as_secs_f64()
    ));
    let excused = |answer: &Answer| {
        answer.sandbox == old.name && answer.sent + answer.took > deleted && answer.sent < ready + answered
    };
    failed.none_but(excused);
    assert!(answered < SOON, "{answered:?}");
}
