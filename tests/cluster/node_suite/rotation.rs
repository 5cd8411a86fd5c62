//! The root is replaced under a constant stream of requests and with gates whose identities are renewed all the time, and the
//! node is started again in the middle of it. No request fails but while the node is away, and in the end every pod has its
//! identity.

use crate::install::{PATIENCE, release, rolled_out};
use crate::pods::{Running, router, running, start_sandbox, stored, until_answered};
use crate::power;
use crate::scene::{CALM, Scene, count};
use crate::stream::{Stream, Target};
use sandgate_cluster_tests::chart::{OWN_NAMESPACE, sandbox_pod};
use sandgate_cluster_tests::injector::get;
use sandgate_cluster_tests::kubectl::kubectl_prints;
use sandgate_cluster_tests::runner::{Test, caught, note};
use sandgate_cluster_tests::upstream::sandbox;
use sandgate_cluster_tests::{Cluster, Namespace, tests, until_within};
use serde_json::Value;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = tests![
    @alone the_root_is_replaced_under_load_and_the_node_is_started_again_meanwhile,
];

/// How long an identity lives, and so how often it is renewed: no shorter time is allowed.
pub(crate) const SHORT_LIVED: &str = "injector.gateCertificateLifetime=1m";
/// Two steps take no longer where nobody is waited for but replicas and API servers: a minute and a half each, by design.
const STEPS: Duration = Duration::from_secs(240);
/// Counts them.
const RENEWALS: &str = "sandgate_injector_enrolments_total{outcome=\"ok\",reason=\"renewed\"}";
/// Where an injector's pod has its metrics.
const ADMIN_PORT: u16 = 8081;
/// Sandboxes that are created when the replacement has begun, so that they outlive it.
const YOUNG: [&str; 3] = ["fourth", "fifth", "sixth"];

async fn the_root_is_replaced_under_load_and_the_node_is_started_again_meanwhile(cluster: Cluster) {
    release(&[SHORT_LIVED]).await;
    rolled_out(&cluster, "sandgate-injector").await;
    let found = caught({
        let cluster = cluster.clone();
        async move { replaced(&cluster).await }
    });
    let found = found.await;
    // Whatever was found: other tests have the release as it was.
    release(&[]).await;
    rolled_out(&cluster, "sandgate-injector").await;
    found.expect("what must be so while the root is replaced");
}

async fn replaced(cluster: &Cluster) {
    let scene = Scene::set(cluster).await;
    let before = renewals().await;
    root("rotate").await;
    until_given_two(&scene.team).await;
    let mut young = Vec::new();
    for name in YOUNG {
        let pod = start_sandbox(&scene.team, name).await;
        until_answered(&scene.team, name, &pod).await;
        young.push(pod);
    }
    let targets: Vec<_> = YOUNG.iter().map(|name| Target::named(name)).collect();
    let to_young = Stream::start(router(cluster).await, scene.team.name(), targets.clone());
    // Replicas are given time all along.
    let told = until_status("gates and routers have identities under the new root", |told| {
        let waits_for = waits_for(told);
        let followed = ["gates", "routers", "certificate"]
            .iter()
            .all(|reason| !waits_for.contains(reason));
        told.contains("step switch") && waits_for.contains(&"pods") && followed
    })
    .await;
    for pod in &scene.pods {
        assert!(
            told.contains(&format!("/{}\n", pod.name)),
            "it was born too early: {told}"
        );
    }
    let renewed = renewals().await - before;
    let team = scene.team.clone();
    let (old, mut answers) = scene.end().await;
    answers.extend(to_young.stop().await);
    let pods: Vec<_> = old.iter().chain(&young).cloned().collect();
    let failed = count("a new root signs", &answers, &pods);
    note(&format!("{:<28} {renewed} identities were renewed meanwhile", ""));
    failed.none();
    assert!(renewed >= 6, "only {renewed} renewals");

    let off = Instant::now();
    power::start_again().await;
    let back = until_back(&team, &pods).await;
    note(&format!(
        "{:<28} every pod was enrolled and answered {:.1} s after the power failed",
        "start of the node, in switch",
        (back - off).as_secs_f64()
    ));
    assert!(
        root("status").await.contains("step switch"),
        "it went on without those that lost everything"
    );

    let to_young = Stream::start(router(cluster).await, team.name(), targets);
    tokio::time::sleep(CALM).await;
    for pod in &old {
        let mut owner = sandbox(&pod.name, &Value::Null);
        owner["metadata"]["namespace"] = team.name().into();
        cluster.delete(&owner).await.unwrap();
    }
    until_status("the root was replaced", |told| {
        told.starts_with("The root was replaced (")
    })
    .await;
    tokio::time::sleep(CALM).await;
    let failed = count("the old root leaves", &to_young.stop().await, &young);
    failed.none();
    until_back(&team, &young).await;
}

/// What `sandbox-injector root` says.
async fn root(command: &str) -> String {
    let injector = "deployment/sandgate-injector";
    kubectl_prints(&[
        "exec",
        injector,
        "-n",
        OWN_NAMESPACE,
        "--",
        "/sandbox-injector",
        "root",
        command,
    ])
    .await
}

/// Returns when that is so of what `root status` says.
async fn until_status(what: &str, is_so: impl Fn(&str) -> bool) -> String {
    until_within(STEPS, what, async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let told = root("status").await;
        if is_so(&told) { Ok(told) } else { Err(told) }
    })
    .await
}

/// The reasons that `root status` names.
fn waits_for(told: &str) -> Vec<&str> {
    let is_reason = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let lines = told.lines().filter(is_reason);
    lines.filter_map(|line| line.trim().split(' ').next()).collect()
}

/// Returns when new gates are given the new root as well.
async fn until_given_two(team: &Namespace) {
    let is_given = |pod: &Value| {
        let variables = pod.pointer("/spec/initContainers/0/env").and_then(Value::as_array);
        let roots = |variable: &Value| {
            variable["value"]
                .as_str()
                .map_or(0, |value| value.matches("BEGIN").count())
        };
        variables.is_some_and(|variables| variables.iter().any(|variable| roots(variable) == 2))
    };
    let pod = sandbox_pod("given");
    until_within(STEPS, "new gates are given both roots", async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let given = team.dry_run(&pod).await.expect("the pod is admitted");
        if is_given(&given) { Ok(()) } else { Err("one root") }
    })
    .await;
}

/// Returns when each of these pods is ready as the pod that it was, and answers.
async fn until_back(team: &Namespace, pods: &[Running]) -> Instant {
    for pod in pods {
        let what = format!("{} is ready again", pod.name);
        let again = until_within(PATIENCE, &what, async || {
            let found = stored(team, &pod.name).await;
            // The kubelet tells only later that what it had told is over.
            let gate_is_new = |found: &Value| found["status"]["initContainerStatuses"][0]["restartCount"] != 0;
            let again = found.as_ref().filter(|found| gate_is_new(found)).and_then(running);
            again.ok_or_else(|| found.map_or(Value::Null, |found| found["status"].clone()))
        })
        .await;
        assert_eq!(again.uid, pod.uid);
        until_answered(team, &pod.name, &again).await;
    }
    Instant::now()
}

/// How many identities of gates and routers this start of each replica has renewed.
async fn renewals() -> u64 {
    let (labels, ips) = (
        "app.kubernetes.io/component=injector",
        "jsonpath={.items[*].status.podIP}",
    );
    let ips = kubectl_prints(&["get", "pods", "-n", OWN_NAMESPACE, "-l", labels, "-o", ips]).await;
    let mut renewed = 0;
    for ip in ips.split_whitespace() {
        let address = (ip.parse::<IpAddr>().unwrap(), ADMIN_PORT).into();
        let (_, metrics) = get(address, "/metrics").await.unwrap();
        let counters = metrics.lines().filter_map(|line| line.strip_prefix(RENEWALS));
        renewed += counters.map(|value| value.trim().parse::<u64>().unwrap()).sum::<u64>();
    }
    renewed
}
