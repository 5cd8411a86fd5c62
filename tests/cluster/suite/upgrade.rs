//! An upgrade of the injector to a release whose gates have another shape: those that run go on as before, and new ones have the
//! new shape. What the release before has left is made here as that release made it; the injector after it is the real one.

use crate::admission_policy_updates::{changed, not_changed, with_image};
use crate::authority::{control_plane, leaf_for};
use crate::enrolment::{LEADER, visits};
use crate::injector::{base64, secret};
use crate::root_stage::{ByHand, Stage, load};
use sandbox_injector::authority::NewRoot;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::former::Shape2;
use sandgate_cluster_tests::injector::Replica;
use sandgate_cluster_tests::node::{AS_KUBELET, RunningGate};
use sandgate_cluster_tests::router::PodApp;
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, tests, until_within};
use sandgate_mesh::control::{IDENTITY_PATH, IdentityGrant};
use sandgate_mesh::policy::model::{DefaultPolicy, Generation};
use sandgate_tests::processes::{metric, until_ready};
use sandgate_tests::{default_policy, status};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

// Webhook configurations are for the whole cluster, and so is the watch of pods.
pub(crate) const TESTS: &[Test] = tests![
    @alone gates_of_the_shape_before_are_renewed_and_guarded_after_an_upgrade,
    @alone a_root_is_replaced_with_gates_of_the_shape_before_and_of_this_one,
];

/// The image of gates before the upgrade.
const IMAGE: &str = "sandgate/sidecar:0.0.9";
/// How long identities live after it: they are renewed every ten seconds or so, and a machine that is busy has as long to do it.
const LIFETIME: Duration = Duration::from_secs(20);
/// How long that lasts which they were given before it.
const FORMER_LIFETIME: Duration = Duration::from_secs(35);

/// What a release before has left: a root, an epoch, and namespaces in which nobody is asked about pods for the moment.
async fn left_behind(cluster: &Cluster, values: &[&str]) -> Stage {
    let mut all = vec![
        "injector.defaultPolicy=anonymous",
        "router.mesh.certificate.source=secret",
    ];
    all.extend(AS_KUBELET);
    all.extend(values);
    let stage = Stage::with(cluster, Chart::render(&all)).await;
    let root = NewRoot::generate().unwrap();
    let data = json!({
        "tls.crt": base64(&root.certificate_pem), "tls.key": base64(&root.key_pem), "epoch": base64("1"),
    });
    cluster
        .merge(&secret(&stage.system), &json!({"data": data}))
        .await
        .unwrap();
    stage
}

/// As `helm upgrade` does it: the policies and webhook configurations of this release, and a replica of it, which leads.
async fn upgrade(stage: &Stage) -> Replica {
    stage.team.configure(&stage.system.policies(&stage.chart)).await;
    // Nobody puts a gate into it yet.
    stage
        .team
        .until_refused(&sandbox_pod("until"), "sandgate-pod-create")
        .await;
    let replica = stage.replica(|config, timing| {
        config.gate_certificate_lifetime = LIFETIME;
        // Nobody else wants it.
        timing.lease = Duration::from_secs(15);
    });
    stage.serve_with(&replica).await;
    replica.until_metric(LEADER, 1).await;
    replica
}

fn gates_with<'a>(stage: &'a Stage, roots: &'a str) -> Shape2<'a> {
    Shape2 {
        own_namespace: stage.system.namespace.name(),
        image: IMAGE,
        roots,
    }
}

/// A Sandbox and its pod as the release before made it, with these roots; and the pod's gate, which has nothing yet.
async fn born_before(stage: &Stage, name: &str, port: u16, roots: &str) -> (Value, RunningGate) {
    let before = gates_with(stage, roots);
    let pod = before.injected(&stage.owned(name, port).await);
    // The API server may still ask a webhook that is gone.
    stage.team.until_admitted(&pod, |_| true).await;
    let (pod, gate) = stage.team.run_gate(&pod).await;
    // It is stored as such pods were.
    assert_eq!(pod["metadata"]["annotations"]["sandgate.dev/shape"], "2");
    assert_eq!(pod["metadata"]["labels"]["sandgate.dev/injected"], "true");
    assert_eq!(pod["spec"]["initContainers"], json!([before.gate()]));
    assert_eq!(json!(pod["spec"]["volumes"].as_array().unwrap()[..2]), before.volumes());
    (pod, gate)
}

/// Gives a gate what the control plane of that release gave it.
async fn enrolled_before(stage: &Stage, pod: &Value, gate: &RunningGate, port: u16) {
    let signs = stage.signs().await;
    let control = control_plane(&stage.system, &signs, pod, gate.address);
    let (csr, sandbox) = (control.enrolment().await.csr, &control.sandbox);
    let end = SystemTime::now() + FORMER_LIFETIME;
    let grant = IdentityGrant {
        pod_uid: sandbox.pod_uid.clone(),
        generation: Generation { epoch: 1, counter: 1 },
        chain: leaf_for(&csr, &signs, (&sandbox.to_string(), true), end),
        bundle: signs[0].clone(),
    };
    let answer = control.put(IDENTITY_PATH, &grant).await;
    assert_eq!(status(&answer), 204, "{answer}");
    control.push(default_policy(DefaultPolicy::Anonymous, vec![port])).await;
    until_ready(gate.health(), (200, "ok")).await;
}

/// How often a gate was given an identity, as it counts it.
async fn identities(gate: &RunningGate) -> u32 {
    let accepted = "sandgate_sidecar_enrolments_total{outcome=\"accepted\"}";
    let count = metric(gate.health(), accepted).await;
    count.map_or(0, |count| count.parse().unwrap())
}

async fn until_given(gate: &RunningGate, least: u32) {
    const LONG: Duration = Duration::from_secs(80);
    until_within(
        LONG,
        &format!("a gate has had {least} identities"),
        async || match identities(gate).await {
            count if count >= least => Ok(()),
            count => Err((count, gate.log())),
        },
    )
    .await;
}

/// A pod that was born after the upgrade.
fn is_of_this_release(pod: &Value) {
    let gate = &pod["spec"]["initContainers"][0];
    assert_eq!(pod["metadata"]["annotations"]["sandgate.dev/shape"], "3");
    assert!(
        gate["lifecycle"]["postStart"].is_object() && gate.get("startupProbe").is_none(),
        "{gate}"
    );
}

/// What controllers do to pods, and what nobody may.
async fn changed_as_any_other_and_guarded(stage: &Stage, pod: &Value) {
    let team = &stage.team;
    let no_label = json!({"metadata": {"labels": {"sandgate.dev/injected": null}}});
    team.until_update_refused(pod, &no_label, "sandgate-pod-update").await;
    let mut owner = pod["metadata"]["ownerReferences"][0].clone();
    owner["blockOwnerDeletion"] = json!(false);
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "2"});
    for patch in [
        json!({"metadata": {"labels": {"agents.x-k8s.io/claim-uid": "2"}, "annotations": {"agents.x-k8s.io/claim": "c"}}}),
        json!({"metadata": {"ownerReferences": [owner, other]}}),
        json!({"metadata": {"finalizers": ["example.dev/keep"]}}),
        json!({"metadata": {"finalizers": null}}),
        with_image(pod, "containers", 0, "app.example/app:2"),
    ] {
        changed(team, pod, patch).await;
    }
    let image = stage.chart.config().settings.image.as_str();
    for (patch, field) in [
        (no_label, "metadata.labels[sandgate.dev/*]: "),
        (
            json!({"metadata": {"annotations": {"sandgate.dev/shape": "3"}}}),
            "metadata.annotations[sandgate.dev/*]: ",
        ),
        // Not even the image that new gates have.
        (
            with_image(pod, "initContainers", 0, image),
            "spec.initContainers[sandgate]: ",
        ),
    ] {
        not_changed(team, pod, patch, field).await;
    }
}

/// Its gate was enrolled then, with an image that the operator doesn't name any more.
async fn gates_of_the_shape_before_are_renewed_and_guarded_after_an_upgrade(cluster: Cluster) {
    let stage = left_behind(&cluster, &[]).await;
    let (by_hand, app) = (
        ByHand::start(&cluster, &stage).await,
        PodApp::start("127.0.0.1", "hello").await,
    );
    let ([root, _], team) = (stage.signs().await, &stage.team);
    let (pod, gate) = born_before(&stage, "alpha", app.port(), &root).await;
    enrolled_before(&stage, &pod, &gate, app.port()).await;
    team.run_pod(&pod, &gate.address.to_string(), true).await;
    let router = &by_hand.router;
    router.until_answered(200, team.name(), "alpha", app.port()).await;
    let mut to_alpha = load(router.http, team.name(), "alpha", app.port());
    to_alpha.goes_on().await;

    let replica = upgrade(&stage).await;
    changed_as_any_other_and_guarded(&stage, &pod).await;
    let late = gates_with(&stage, &root).injected(&sandbox_pod("late"));
    let refused = team.refused(&late).await;
    assert!(refused.contains("it isn't what would be injected"), "{refused}");
    let (beta, beta_gate) = stage.served("beta", app.port()).await;
    is_of_this_release(&beta);
    router.until_answered(200, team.name(), "beta", app.port()).await;

    // One was given before.
    until_given(&gate, 1 + 3).await;
    until_given(&beta_gate, 2).await;
    to_alpha.goes_on().await;
    let answered = to_alpha.answered();
    to_alpha.stop().await;
    assert_eq!(
        replica.metric(&visits("ok", "enrolled")).await,
        1,
        "beta had nothing, and alpha had all"
    );
    for state in ["refused", "failing"] {
        let gates = format!("sandgate_injector_gates{{state=\"{state}\"}}");
        assert_eq!(replica.metric(&gates).await, 0, "{state}");
    }
    let stored = cluster.get(&pod).await.unwrap();
    assert_eq!(stored["spec"]["initContainers"], pod["spec"]["initContainers"]);
    note(&format!(
        "a gate of shape 2 was renewed {} times after the upgrade, {answered} requests through it, 0 failed",
        identities(&gate).await - 1
    ));
    replica.stop().await;
}

/// The release before has begun with it, and its last pods got nothing from it any more. The operator accepts their image.
async fn a_root_is_replaced_with_gates_of_the_shape_before_and_of_this_one(cluster: Cluster) {
    let stage = left_behind(&cluster, &[&format!("injection.acceptedImages={{{IMAGE}}}")]).await;
    let (by_hand, app) = (
        ByHand::start(&cluster, &stage).await,
        PodApp::start("127.0.0.1", "hello").await,
    );
    let (old, team) = (stage.signs().await, stage.team.name());
    stage.root(&["rotate"]).await;
    let [new, new_key] = [stage.stored("next.crt").await, stage.stored("next.key").await].map(Option::unwrap);
    let both = format!("{}{new}", old[0]);
    let (left_pod, mut left) = born_before(&stage, "left", app.port(), &old[0]).await;
    let (stays_pod, mut stays) = born_before(&stage, "stays", app.port(), &both).await;

    let replica = upgrade(&stage).await;
    let enrolled = visits("ok", "enrolled");
    replica.until_metric(&enrolled, 2).await;
    for (pod, gate) in [(&left_pod, &left), (&stays_pod, &stays)] {
        until_ready(gate.health(), (200, "ok")).await;
        stage.team.run_pod(pod, &gate.address.to_string(), true).await;
    }
    let (young, _young_gate) = stage.served("young", app.port()).await;
    is_of_this_release(&young);
    by_hand.give(&stage, &old, &both).await;
    let mut loads = Vec::new();
    for name in ["stays", "young"] {
        by_hand.router.until_answered(200, team, name, app.port()).await;
        loads.push(load(by_hand.router.http, team, name, app.port()));
    }

    stage.until_waits_for("distribute", &["confirmation"]).await;
    stage.root(&["confirm"]).await;
    let told = stage.until_waits_for("switch", &["pods", "confirmation"]).await;
    assert!(told.contains(&format!("\n    {team}/left\n")), "{told}");
    assert!(!told.contains("/stays") && !told.contains("/young"), "{told}");
    by_hand.give(&stage, &[new.clone(), new_key.clone()], &both).await;
    stage.root(&["confirm"]).await;
    let given = identities(&stays).await;
    until_given(&stays, given + 1).await;
    // Its node is started again: it knows the control plane by the old root only, and gets its identity all the same.
    let count = replica.metric(&enrolled).await;
    stage.team.reboot(&mut left).await;
    replica.until_metric(&enrolled, count + 1).await;
    until_ready(left.health(), (200, "ok")).await;
    assert_eq!(stage.rotation().await["step"], "switch", "it would be left alone");
    cluster.delete(&left_pod).await.unwrap();
    drop(left);

    stage.until_step("done").await;
    by_hand.give(&stage, &[new.clone(), new_key], &new).await;
    let given = identities(&stays).await;
    until_given(&stays, given + 1).await;
    for mut load in loads {
        load.goes_on().await;
        load.stop().await;
    }
    for entry in ["next.crt", "next.key", "previous.crt", "previous.key"] {
        assert_eq!(stage.stored(entry).await, None, "{entry}");
    }
    // And with what it was born with it is enrolled again.
    stage.team.reboot(&mut stays).await;
    replica.until_metric(&enrolled, count + 2).await;
    until_ready(stays.health(), (200, "ok")).await;
    by_hand.router.until_answered(200, team, "stays", app.port()).await;
    replica.stop().await;
}
