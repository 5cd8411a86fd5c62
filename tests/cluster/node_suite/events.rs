//! What happens to a node and to its pods, under a constant stream of requests: none is delivered to another pod than the
//! one it is for, and none fails but for those whose pod is gone.

use crate::install::{PATIENCE, rolled_out};
use crate::pods::{Running, router, router_pod, running, start_sandbox, stored, team, until_answered, until_ready};
use crate::stream::{Answer, Stream};
use rustix::process::{Signal, kill_process};
use sandgate_cluster_tests::chart::OWN_NAMESPACE;
use sandgate_cluster_tests::kubectl::kubectl_prints;
use sandgate_cluster_tests::processes::{HeldStill, named, of_pod};
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, Namespace, tests, until, until_within};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = tests![
    @alone a_gate_is_killed,
    @alone the_kubelet_is_restarted,
    @alone the_injector_is_restarted,
    @alone the_api_server_is_away_for_a_minute,
    @alone a_pod_is_deleted_and_made_again,
];

/// How long the stream flows before an event and after it.
const CALM: Duration = Duration::from_secs(3);
/// How soon a gate listens that has been started.
const LISTENS_WITHIN: Duration = Duration::from_millis(200);
/// No request takes longer, also one whose pod has just gone.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Sandboxes with a stream of requests to them.
struct Scene {
    team: Namespace,
    pods: Vec<Running>,
    stream: Stream,
}

impl Scene {
    async fn set(cluster: &Cluster) -> Self {
        Self::set_at(router(cluster).await, cluster).await
    }

    async fn set_at(router: SocketAddr, cluster: &Cluster) -> Self {
        let team = team(cluster).await;
        let mut pods = Vec::new();
        for name in ["first", "second", "third"] {
            let pod = start_sandbox(&team, name).await;
            until_answered(&team, name, &pod).await;
            pods.push(pod);
        }
        let stream = Stream::start(router, team.name(), &pods.iter().collect::<Vec<_>>());
        tokio::time::sleep(CALM).await;
        Self { team, pods, stream }
    }

    /// Lets the stream flow on for a while and returns what became of all requests.
    async fn end(self) -> (Vec<Running>, Vec<Answer>) {
        tokio::time::sleep(CALM).await;
        (self.pods, self.stream.stop().await)
    }
}

/// What became of the requests of an event.
struct Count {
    requests: usize,
    failed: Vec<Answer>,
    delivered_wrongly: Vec<Answer>,
    slowest: Duration,
}

/// Counts, and tells it as a line of the table of events. Each sandbox has these pods, one after the other.
fn count(event: &str, answers: &[Answer], pods: &[Running]) -> Count {
    let wrongly = |answer: &&Answer| {
        let meant = pods.iter().filter(|pod| pod.name == answer.sandbox);
        answer.status == 200 && !meant.into_iter().any(|pod| pod.uid == answer.body)
    };
    let count = Count {
        requests: answers.len(),
        failed: answers.iter().filter(|answer| answer.status != 200).cloned().collect(),
        delivered_wrongly: answers.iter().filter(wrongly).cloned().collect(),
        slowest: answers.iter().map(|answer| answer.took).max().unwrap_or_default(),
    };
    note(&format!(
        "{event:<28} {:>5} requests {:>4} failed {:>2} delivered wrongly, slowest {:.2} s",
        count.requests,
        count.failed.len(),
        count.delivered_wrongly.len(),
        count.slowest.as_secs_f64()
    ));
    assert!(count.requests > 100, "only {} requests", count.requests);
    assert!(count.delivered_wrongly.is_empty(), "{:?}", count.delivered_wrongly);
    count
}

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
    let count = count("kill -9 of a gate", &answers, &pods);
    note(&format!(
        "{:<28} {:.1} s without a gate",
        "",
        (back - killed).as_secs_f64()
    ));
    // Whatever was within the gate died with it, and may have reached the app, so nobody sends it again. What came then has
    // waited for another gate, and is answered by that, unless the kubelet took longer than the router waits.
    let excused = |answer: &Answer| answer.sandbox == pods[0].name && answer.sent + answer.took < back;
    let unexcused: Vec<_> = count.failed.iter().filter(|answer| !excused(answer)).collect();
    assert!(unexcused.is_empty(), "{unexcused:?}");
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
    let count = count("kill -9 of the kubelet", &answers, &pods);
    assert!(count.failed.is_empty(), "{:?}", count.failed);
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
    let count = count("restart of the injector", &answers, &pods);
    assert!(count.failed.is_empty(), "{:?}", count.failed);
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
    let count = count("API server away for 60 s", &answers, &pods);
    assert!(count.failed.is_empty(), "{:?}", count.failed);
}

async fn a_pod_is_deleted_and_made_again(cluster: Cluster) {
    let scene = Scene::set(&cluster).await;
    let old = scene.pods[0].clone();
    let deleted = Instant::now();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": old.name, "namespace": scene.team.name()},
    });
    cluster.delete(&pod).await.unwrap();
    let new = until_within(PATIENCE, "upstream's controller has made another pod", async || {
        let pod = stored(&scene.team, &old.name).await;
        let found = pod.as_ref().and_then(running).filter(|found| found.uid != old.uid);
        found.ok_or_else(|| pod.map_or(Value::Null, |pod| pod["status"]["phase"].clone()))
    })
    .await;
    let ready = Instant::now();
    let answered = until_answered(&scene.team, &new.name, &new).await;
    let (mut pods, answers) = scene.end().await;
    pods.push(new);
    let count = count("deletion of a pod", &answers, &pods);
    note(&format!(
        "{:<28} {:.1} s without a pod, answered {:.2} s after the new one was Ready",
        "",
        (ready - deleted).as_secs_f64(),
        answered.as_secs_f64()
    ));
    let excused = |answer: &Answer| {
        answer.sandbox == old.name && answer.sent + answer.took > deleted && answer.sent < ready + answered
    };
    let unexcused: Vec<_> = count.failed.iter().filter(|answer| !excused(answer)).collect();
    assert!(unexcused.is_empty(), "{unexcused:?}");
    assert!(count.slowest < ANSWERED_WITHIN, "an answer took {:?}", count.slowest);
    assert!(answered < ANSWERED_WITHIN, "{answered:?}");
}
