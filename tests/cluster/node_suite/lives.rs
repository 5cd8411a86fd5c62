//! What happens to sandboxes in their lives, under a constant stream of requests: they are suspended, their addresses go to
//! others, pools hand them out. None is delivered to another pod than the one it is for, and none fails but for those whose pod
//! is gone.

use crate::addresses;
use crate::install::PATIENCE;
use crate::pods::{APP_PORT, Running, app, router, start_sandbox, stored, until_answered, until_ready};
use crate::sandboxes::{SOON, claimed, warm_pool};
use crate::scene::{CALM, Scene, count};
use crate::stream::{Answer, Stream, Target};
use sandgate_cluster_tests::router::ask;
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::upstream::sandbox;
use sandgate_cluster_tests::{Cluster, Namespace, tests, until_within};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = tests![
    @alone a_sandbox_is_suspended_and_resumed,
    @alone another_sandbox_gets_the_address,
    @alone claims_adopt_sandboxes_of_a_pool,
];

/// What is said of a sandbox that has no pod.
const AWAY: u16 = 502;

/// Has upstream's controller keep a pod for a sandbox, or none.
async fn operate(team: &Namespace, name: &str, mode: &str) {
    let mut wanted = sandbox(name, &Value::Null);
    wanted["metadata"]["namespace"] = team.name().into();
    let patch = json!({"spec": {"operatingMode": mode}});
    team.cluster().merge(&wanted, &patch).await.unwrap();
}

async fn until_gone(team: &Namespace, pod: &Running) {
    until_within(
        PATIENCE,
        &format!("the pod {} is gone", pod.name),
        async || match stored(team, &pod.name).await {
            Some(found) if found["metadata"]["uid"] == pod.uid => Err(found["status"]["phase"].clone()),
            _ => Ok(()),
        },
    )
    .await;
}

/// Fails unless each of these requests was refused as one to a sandbox that has no pod, and there are some.
fn refused<'a>(answers: impl Iterator<Item = &'a Answer>, sandbox: &str) {
    let reason = json!({"detail": format!("Could not connect to the backend sandbox: {sandbox}")}).to_string();
    let mut some = false;
    for answer in answers {
        assert_eq!((answer.status, answer.body.as_str()), (AWAY, reason.as_str()));
        some = true;
    }
    assert!(some, "no request to {sandbox} meanwhile");
}

async fn a_sandbox_is_suspended_and_resumed(cluster: Cluster) {
    let scene = Scene::set(&cluster).await;
    let old = scene.pods[0].clone();
    let suspended = Instant::now();
    operate(&scene.team, &old.name, "Suspended").await;
    until_gone(&scene.team, &old).await;
    let gone = Instant::now();
    tokio::time::sleep(CALM).await;
    let resumed = Instant::now();
    operate(&scene.team, &old.name, "Running").await;
    let new = until_ready(&scene.team, &old.name).await;
    let ready = Instant::now();
    let answered = until_answered(&scene.team, &new.name, &new).await;
    let (mut pods, answers) = scene.end().await;
    pods.push(new);
    let failed = count("suspend and resume", &answers, &pods);
    note(&format!(
        "{:<28} {:.1} s from suspended to gone, {:.1} s from resumed to Ready, answered {:.2} s later",
        "",
        (gone - suspended).as_secs_f64(),
        (ready - resumed).as_secs_f64(),
        answered.as_secs_f64()
    ));
    let of_it = |answer: &Answer| answer.sandbox == old.name;
    failed.none_but(|answer| of_it(answer) && answer.sent + answer.took > suspended && answer.sent < ready + answered);
    let meanwhile = |answer: &&Answer| of_it(answer) && answer.sent > gone && answer.sent + answer.took < resumed;
    refused(answers.iter().filter(meanwhile), &old.name);
    assert!(answered < SOON, "{answered:?}");
}

async fn another_sandbox_gets_the_address(cluster: Cluster) {
    let scene = Scene::set(&cluster).await;
    let old = scene.pods[0].clone();
    // Of a client that read the address when it was right.
    let remembered = Target {
        sandbox: old.name.clone(),
        fields: format!("X-Sandbox-Pod-IP: {}\r\n", old.ip),
    };
    let remembering = Stream::start(router(&cluster).await, scene.team.name(), vec![remembered]);
    let suspended = Instant::now();
    operate(&scene.team, &old.name, "Suspended").await;
    // As soon as the node lets go of it, which is before the pod is gone.
    addresses::until_free(&old.ip).await;
    addresses::give_next(&old.ip);
    let heir = start_sandbox(&scene.team, "heir").await;
    assert_eq!(heir.ip, old.ip, "the heir has another address");
    let inherited = Instant::now();
    until_answered(&scene.team, "heir", &heir).await;
    until_gone(&scene.team, &old).await;
    tokio::time::sleep(CALM).await;
    let resumed = Instant::now();
    operate(&scene.team, &old.name, "Running").await;
    let new = until_ready(&scene.team, &old.name).await;
    assert_ne!(new.ip, old.ip);
    let back = Instant::now() + until_answered(&scene.team, &new.name, &new).await;
    let team = scene.team.clone();
    let (mut pods, mut answers) = scene.end().await;
    answers.extend(remembering.stop().await);
    pods.extend([new, heir.clone()]);
    let failed = count("another has the address", &answers, &pods);
    note(&format!(
        "{:<28} {:.1} s from suspended until another Ready pod had it, for {:.1} s",
        "",
        (inherited - suspended).as_secs_f64(),
        (resumed - inherited).as_secs_f64()
    ));
    let of_it = |answer: &Answer| answer.sandbox == old.name;
    failed.none_but(|answer| of_it(answer) && answer.sent + answer.took > suspended && answer.sent < back);
    let meanwhile = |answer: &&Answer| of_it(answer) && answer.sent > inherited && answer.sent + answer.took < resumed;
    refused(answers.iter().filter(meanwhile), &old.name);
    // What was refused was the name: who is at the address answers to its own.
    let (status, body) = ask(router(&cluster).await, team.name(), "heir", APP_PORT, "").await;
    assert_eq!((status, body.trim_end()), (200, heir.uid.as_str()));
}

/// The pool's sandboxes, each with its UID, by which also those are found that nobody has claimed.
async fn pooled(team: &Namespace, others: &[Running]) -> Vec<Target> {
    let path = format!("/apis/agents.x-k8s.io/v1beta1/namespaces/{}/sandboxes", team.name());
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let list = team.cluster().send(request).await.unwrap();
    let sandboxes = list["items"].as_array().unwrap().iter();
    let targets = sandboxes.map(|sandbox| Target {
        sandbox: sandbox["metadata"]["name"].as_str().unwrap().to_owned(),
        fields: format!("X-Sandbox-UID: {}\r\n", sandbox["metadata"]["uid"].as_str().unwrap()),
    });
    let is_other = |target: &Target| others.iter().any(|pod| pod.name == target.sandbox);
    targets.filter(|target| !is_other(target)).collect()
}

async fn claims_adopt_sandboxes_of_a_pool(cluster: Cluster) {
    const POOL: usize = 3;
    let scene = Scene::set(&cluster).await;
    warm_pool(&scene.team, &app(), POOL).await;
    let targets = pooled(&scene.team, &scene.pods).await;
    assert_eq!(targets.len(), POOL, "{targets:?}");
    let mut pods = Vec::new();
    for target in &targets {
        let pod = until_ready(&scene.team, &target.sandbox).await;
        answered_by_uid(&scene.team, target, &pod).await;
        pods.push(pod);
    }
    let to_pool = Stream::start(router(&cluster).await, scene.team.name(), targets.clone());
    tokio::time::sleep(CALM).await;
    let mut slowest = Duration::ZERO;
    for number in 0..POOL {
        let (pod, _) = claimed(&scene.team, &format!("claim-{number}")).await;
        assert!(pods.iter().any(|warm| warm.uid == pod.uid), "{pod:?} wasn't warm");
        slowest = slowest.max(until_answered(&scene.team, &pod.name, &pod).await);
    }
    let names = targets.iter().map(|target| Target::named(&target.sandbox)).collect();
    let by_name = Stream::start(router(&cluster).await, scene.team.name(), names);
    let (others, mut answers) = scene.end().await;
    pods.extend(others);
    for stream in [to_pool, by_name] {
        answers.extend(stream.stop().await);
    }
    let failed = count("adoption from a pool", &answers, &pods);
    note(&format!(
        "{:<28} {POOL} claims; a claimed sandbox answered to its name at most {:.2} s after its claim was Ready",
        "",
        slowest.as_secs_f64()
    ));
    failed.none();
    assert!(slowest < SOON, "{slowest:?}");
}

/// Returns when a sandbox answers to its UID, with the UID of this pod.
async fn answered_by_uid(team: &Namespace, target: &Target, pod: &Running) {
    let router = router(team.cluster()).await;
    until_within(PATIENCE, &format!("{} answers", target.sandbox), async || {
        match ask(router, team.name(), &target.sandbox, APP_PORT, &target.fields).await {
            (200, body) if body.trim_end() == pod.uid => Ok(()),
            other => Err(other),
        }
    })
    .await;
}
