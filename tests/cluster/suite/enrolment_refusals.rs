//! Who is not the gate of the pod that was dialed gets no identity, whatever it shows.

use crate::enrolment::{Scene, visits};
use sandgate_cluster_tests::chart::sandbox_pod;
use sandgate_cluster_tests::injector::Replica;
use sandgate_cluster_tests::node::{RunningGate, new_address};
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::{Cluster, Namespace, PATIENCE, runner::Test, tests, until, until_within};
use sandgate_tests::processes::until_ready;
use serde_json::{Value, json};

// Webhook configurations are for the whole cluster, and so is the watch of pods.
pub(crate) const TESTS: &[Test] = tests![
    @alone tokens_that_prove_something_else_get_no_identity,
    @alone pods_that_are_something_else_get_no_identity,
    @alone labels_of_sandboxes_that_are_not_there_get_no_identity,
    @alone a_pod_of_another_system_gets_no_sandboxs_name,
    @alone settings_and_annotations_that_change_cut_off_no_gate,
    @alone whoever_runs_a_pod_is_told_why_it_gets_nothing_and_not_too_often,
];

const NO_IDENTITY: (u16, &str) = (503, "no identity");

/// Waits until the injector refuses for this reason, and looks whether the gate has got nothing.
async fn refused(replica: &Replica, gate: &RunningGate, reason: &str) {
    replica.until_metric(&visits("refused", reason), 1).await;
    until_ready(gate.health(), NO_IDENTITY).await;
    assert_eq!(replica.metric(&visits("ok", "enrolled")).await, 0, "{reason}");
}

async fn created(namespace: &Namespace, pod: &Value) -> Value {
    let stored = namespace.admitted(pod).await;
    namespace.cluster().remove_afterwards(&stored);
    stored
}

/// Runs the gate of a stored pod with somebody's token.
async fn run(namespace: &Namespace, pod: &Value, token: &str) -> RunningGate {
    let gate = RunningGate::start(pod, token, new_address()).await;
    namespace.runs_at(pod, gate.address).await;
    gate
}

async fn tokens_that_prove_something_else_get_no_identity(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let sandboxes = &scene.sandboxes;
    let [thief, victim] = [
        created(sandboxes, &sandbox_pod("thief")).await,
        created(sandboxes, &sandbox_pod("victim")).await,
    ];

    // A stranger at the thief's address hands on the victim's token, and even the token says that it was issued for a gate.
    let stolen = sandboxes.token_of(&victim, "sandgate").await;
    let gate = run(sandboxes, &thief, &stolen).await;
    refused(&replica, &gate, "token_pod").await;
    drop(gate);

    // It says that it is the victim.
    let impostor = RunningGate::start(&victim, &stolen, new_address()).await;
    sandboxes.runs_at(&thief, impostor.address).await;
    refused(&replica, &impostor, "other_pod").await;
    drop(impostor);

    // A token that opens the API server's own API, and one for somebody else.
    for audience in ["https://kubernetes.default.svc.cluster.local", "another"] {
        let pod = created(sandboxes, &sandbox_pod(&format!("audience-{}", audience.len()))).await;
        let before = replica.metric(&visits("refused", "token")).await;
        let gate = run(sandboxes, &pod, &sandboxes.token_of(&pod, audience).await).await;
        replica.until_metric(&visits("refused", "token"), before + 1).await;
        refused(&replica, &gate, "token").await;
    }

    // A token of a pod that is gone, in the pod that has its name now.
    let gone = created(sandboxes, &sandbox_pod("reborn")).await;
    let old = sandboxes.token_of(&gone, "sandgate").await;
    cluster.delete(&gone).await.unwrap();
    let reborn = created(sandboxes, &sandbox_pod("reborn")).await;
    assert_ne!(gone["metadata"]["uid"], reborn["metadata"]["uid"]);
    let before = replica.metric(&visits("refused", "token")).await;
    let gate = run(sandboxes, &reborn, &old).await;
    replica.until_metric(&visits("refused", "token"), before + 1).await;
    refused(&replica, &gate, "token").await;

    // What the refused ones lacked.
    let token = sandboxes.token_of(&victim, "sandgate").await;
    let gate = run(sandboxes, &victim, &token).await;
    until_ready(gate.health(), (200, "ok")).await;
    replica.stop().await;
}

async fn pods_that_are_something_else_get_no_identity(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let injected = created(&scene.sandboxes, &sandbox_pod("injected")).await;
    // Before a namespace opts in no webhook looks, and anybody can write what it would have refused.
    let elsewhere = cluster.namespace(&[]).await;
    let by_hand = |name: &str| {
        let mut pod = sandbox_pod(name);
        for part in ["labels", "annotations"] {
            pod["metadata"][part] = injected["metadata"][part].clone();
        }
        pod["spec"] = injected["spec"].clone();
        pod
    };

    let mut other_image = by_hand("other-image");
    other_image["spec"]["initContainers"][0]["image"] = json!("evil.example/gate:1");
    let mut other_volume = by_hand("other-volume");
    other_volume["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "sandgate-token", "mountPath": "/stolen"}]);
    let mut gates = Vec::new();
    for pod in [other_image, other_volume] {
        let pod = created(&elsewhere, &pod).await;
        gates.push(run(&elsewhere, &pod, &elsewhere.token_of(&pod, "sandgate").await).await);
    }

    // Without the label nobody comes.
    let mut unlabelled = by_hand("unlabelled");
    unlabelled["metadata"]["labels"]
        .as_object_mut()
        .unwrap()
        .remove("sandgate.dev/injected");
    let unlabelled = created(&elsewhere, &unlabelled).await;
    let unvisited = run(
        &elsewhere,
        &unlabelled,
        &elsewhere.token_of(&unlabelled, "sandgate").await,
    )
    .await;

    // What none of them was.
    let token = scene.sandboxes.token_of(&injected, "sandgate").await;
    let gate = run(&scene.sandboxes, &injected, &token).await;
    until_ready(gate.health(), (200, "ok")).await;
    replica.until_metric(&visits("ok", "enrolled"), 1).await;
    let handshakes = async |gate: &RunningGate| {
        until_ready(gate.health(), NO_IDENTITY).await;
        sandgate_tests::processes::metric(gate.health(), "sandgate_sidecar_handshakes_total").await
    };
    for gate in gates.iter().chain([&unvisited]) {
        assert_eq!(handshakes(gate).await.as_deref(), Some("0"), "nobody has come");
    }

    // When the namespace opts in they are visited, and are no better.
    let opt = async |value: Value| {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": elsewhere.name()}});
        let label = json!({"metadata": {"labels": {"sandgate.dev/inject": value}}});
        cluster.merge(&namespace, &label).await.unwrap();
    };
    opt(json!("enabled")).await;
    // Each again and again, so two of one mean nothing.
    for gate in &gates {
        until("it is visited", async || match handshakes(gate).await {
            Some(count) if count != "0" => Ok(()),
            other => Err(other),
        })
        .await;
    }
    replica.until_metric(&visits("refused", "shape"), 2).await;
    for gate in &gates {
        until_ready(gate.health(), NO_IDENTITY).await;
    }
    assert_eq!(handshakes(&unvisited).await.as_deref(), Some("0"), "nobody has come");
    assert_eq!(replica.metric(&visits("ok", "enrolled")).await, 1);
    replica.stop().await;
}

async fn labels_of_sandboxes_that_are_not_there_get_no_identity(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let sandboxes = &scene.sandboxes;
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    let owner = sandboxes.admitted(&sandbox("alpha", &spec)).await;
    cluster.remove_afterwards(&owner);

    // The label alone.
    let mut orphan = pod_of(&owner);
    orphan["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    let orphan = created(sandboxes, &orphan).await;
    let gate = run(sandboxes, &orphan, &sandboxes.token_of(&orphan, "sandgate").await).await;
    refused(&replica, &gate, "no_owner").await;
    drop(gate);
    cluster.delete(&orphan).await.unwrap();

    // With a Sandbox that is gone, and whose name another has.
    cluster.delete(&owner).await.unwrap();
    let next = sandboxes.admitted(&sandbox("alpha", &spec)).await;
    assert_ne!(owner["metadata"]["uid"], next["metadata"]["uid"]);
    let former = created(sandboxes, &pod_of(&owner)).await;
    let gate = run(sandboxes, &former, &sandboxes.token_of(&former, "sandgate").await).await;
    refused(&replica, &gate, "owner_gone").await;
    drop(gate);
    cluster.delete(&former).await.unwrap();

    let (_, gate) = sandboxes.run_gate(&pod_of(&next)).await;
    until_ready(gate.health(), (200, "ok")).await;
    replica.stop().await;
}

async fn a_pod_of_another_system_gets_no_sandboxs_name(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let sandboxes = &scene.sandboxes;
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    // It has no pod just now: it is suspended, or its pod is being replaced.
    let owner = sandboxes.admitted(&sandbox("alpha", &spec)).await;
    let squatter = created(sandboxes, &sandbox_pod("alpha")).await;
    let gate = run(sandboxes, &squatter, &sandboxes.token_of(&squatter, "sandgate").await).await;
    refused(&replica, &gate, "name_taken").await;
    // The name is free again.
    cluster.delete(&owner).await.unwrap();
    until_ready(gate.health(), (200, "ok")).await;
    replica.stop().await;
}

/// Each gate loses what it kept, as with its node's memory, so that all of the pod is looked at anew.
async fn settings_and_annotations_that_change_cut_off_no_gate(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let sandboxes = &scene.sandboxes;
    let (pod, gate) = sandboxes.run_gate(&sandbox_pod("alpha")).await;
    until_ready(gate.health(), (200, "ok")).await;
    drop(gate);
    let later = json!({"metadata": {
        "labels": {"sandgate.dev/inject": "perhaps"},
        "annotations": {"sandgate.dev/memory-limit": "no amount", "sandgate.dev/log-level": "loud"},
    }});
    let pod = cluster.merge(&pod, &later).await.unwrap();
    let token = sandboxes.token_of(&pod, "sandgate").await;
    let again = run(sandboxes, &pod, &token).await;
    until_ready(again.health(), (200, "ok")).await;
    drop(again);
    replica.stop().await;

    // Another router in the place of the one that the gate was given, and another log level: none of it counts, if the former
    // is accepted.
    let other = |name: &str| {
        format!("spiffe://cluster.local/ns/elsewhere/sa/{name}")
            .parse()
            .unwrap()
    };
    let replica = scene.system.start(&scene.chart, |config, _| {
        let settings = &mut config.settings;
        settings.accepted_router_identities = std::mem::replace(&mut settings.router_identities, vec![other("router")]);
        settings.log_level = sandbox_injector::settings::LogLevel::Debug;
    });
    let again = run(sandboxes, &pod, &token).await;
    until_ready(again.health(), (200, "ok")).await;
    drop(again);
    replica.stop().await;
    let replica = scene.system.start(&scene.chart, |config, _| {
        config.settings.router_identities = vec![other("router")];
    });
    let again = run(sandboxes, &pod, &token).await;
    refused(&replica, &again, "settings").await;
    drop(again);
    replica.stop().await;

    // It knows nothing of another control plane, and the reason has the same name.
    let replica = scene.system.start(&scene.chart, |config, _| {
        config.settings.control_identity = other("injector");
    });
    let again = run(sandboxes, &pod, &token).await;
    refused(&replica, &again, "settings").await;
    assert_eq!(replica.metric(&visits("failed", "handshake")).await, 0);
    replica.stop().await;
}

/// The Events about enrolment on a pod: reason, action and note.
async fn events(namespace: &Namespace, pod: &Value) -> Vec<[String; 3]> {
    let api =
        kube::Api::<k8s_openapi::api::events::v1::Event>::namespaced(namespace.cluster().client(), namespace.name());
    let all = api.list(&kube::api::ListParams::default()).await.unwrap();
    let about = |event: &k8s_openapi::api::events::v1::Event| {
        let regarding = event.regarding.as_ref().and_then(|regarding| regarding.uid.as_deref());
        regarding == pod["metadata"]["uid"].as_str() && event.type_.as_deref() == Some("Warning")
    };
    let found = all.items.into_iter().filter(about);
    found
        .map(|event| [event.reason, event.action, event.note].map(Option::unwrap_or_default))
        .collect()
}

async fn whoever_runs_a_pod_is_told_why_it_gets_nothing_and_not_too_often(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let sandboxes = &scene.sandboxes;
    let [pod, other, unreachable] = [
        created(sandboxes, &sandbox_pod("pod")).await,
        created(sandboxes, &sandbox_pod("other")).await,
        created(sandboxes, &sandbox_pod("unreachable")).await,
    ];
    // Nobody listens there.
    sandboxes.runs_at(&unreachable, new_address()).await;
    let stolen = sandboxes.token_of(&other, "sandgate").await;
    let mut gate = run(sandboxes, &pod, &stolen).await;
    refused(&replica, &gate, "token_pod").await;
    let told = until("the pod's Events tell it", async || {
        match events(sandboxes, &pod).await {
            found if found.is_empty() => Err("none"),
            found => Ok(found),
        }
    })
    .await;
    let [[reason, action, note]] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!([reason.as_str(), action], ["EnrolmentRefused", "token_pod"]);
    assert!(
        note.starts_with("The gate gets no identity: ") && !note.contains(&stolen),
        "{note}"
    );
    // It goes on for the same reason: it moves, which begins the count anew, and there is nothing more to tell.
    for _ in 0..3 {
        let before = replica.metric(&visits("refused", "token_pod")).await;
        drop(gate);
        gate = run(sandboxes, &pod, &stolen).await;
        replica.until_metric(&visits("refused", "token_pod"), before + 2).await;
    }
    let published = "sandgate_injector_pod_events_total{outcome=\"published\"}";
    assert_eq!(events(sandboxes, &pod).await.len(), 1);
    until_within(
        3 * PATIENCE,
        "a pod that nobody reaches is told so",
        async || match events(sandboxes, &unreachable).await.as_slice() {
            [[reason, action, _]] if reason == "EnrolmentFailing" && action == "unreachable" => Ok(()),
            other => Err(other.to_vec()),
        },
    )
    .await;
    assert_eq!(replica.metric(published).await, 2);
    assert_eq!(
        replica
            .metric("sandgate_injector_pod_events_total{outcome=\"failed\"}")
            .await,
        0
    );
    replica.stop().await;
}
