//! Gates get their identity and their policy from the injector, whichever replica looks after them, and keep them while
//! replicas come and go.

use crate::authority::{control_plane, signs, stored};
use crate::injector::{OPTED_IN, base64, secret};
use sandbox_injector::authority::NewRoot;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::injector::{Replica, System};
use sandgate_cluster_tests::node::RunningGate;
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use sandgate_mesh::control::{POLICY_PATH, PolicyPush};
use sandgate_mesh::policy::model::{DefaultPolicy, Generation, Snapshot};
use sandgate_tests::processes::{metric, until_ready};
use sandgate_tests::{default_policy, status};
use serde_json::{Value, json};
use std::time::Duration;

// Webhook configurations are for the whole cluster, and so is the watch of pods.
pub(crate) const TESTS: &[Test] = tests![
    @alone the_gate_of_a_sandbox_gets_identity_and_policy_without_anybodys_help,
    @alone replicas_come_and_go_and_no_gate_is_disturbed,
    @alone a_leader_whose_lease_is_taken_stops_and_begins_anew_in_a_higher_epoch,
    @alone identities_are_renewed_and_the_gate_stays_ready,
    @alone roots_are_replaced_and_no_gate_is_disturbed,
    @alone a_new_leader_brings_gates_the_roots_that_changed_while_there_was_none,
    @alone gates_that_a_new_leader_has_visited_take_nothing_of_a_former_one,
    @alone a_gate_that_starts_again_goes_on_with_what_it_has,
];

pub(crate) const LEADER: &str = "sandgate_injector_leader";

/// A series of the injector's.
pub(crate) fn visits(outcome: &str, reason: &str) -> String {
    format!("sandgate_injector_enrolments_total{{outcome=\"{outcome}\",reason=\"{reason}\"}}")
}

/// An injector's namespace, an opted-in one, and a chart.
pub(crate) struct Scene {
    pub(crate) system: System,
    pub(crate) sandboxes: Namespace,
    pub(crate) chart: Chart,
}

impl Scene {
    /// With one replica whose webhook is in force.
    pub(crate) async fn start(cluster: &Cluster) -> (Self, Replica) {
        Self::with_lifetime(cluster, Duration::from_secs(3600)).await
    }

    async fn with_lifetime(cluster: &Cluster, lifetime: Duration) -> (Self, Replica) {
        cluster.install_upstream_crds().await;
        let scene = Self {
            system: System::install(cluster).await,
            sandboxes: cluster.namespace(OPTED_IN).await,
            chart: Chart::render(&[]),
        };
        let replica = scene.replica(lifetime);
        scene.serve_with(&replica).await;
        replica.until_metric(LEADER, 1).await;
        (scene, replica)
    }

    /// Has the API server call this replica's webhook.
    async fn serve_with(&self, replica: &Replica) {
        self.system.configure(&self.chart, replica.webhook.port()).await;
        self.sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    }

    fn replica(&self, lifetime: Duration) -> Replica {
        self.system.start(&self.chart, |config, timing| {
            config.gate_certificate_lifetime = lifetime;
            timing.lease = Duration::from_secs(4);
        })
    }

    async fn another(&self) -> Replica {
        let replica = self.replica(Duration::from_secs(3600));
        replica.until_ready().await;
        replica
    }

    pub(crate) async fn gate(&self, name: &str) -> RunningGate {
        let (_, gate) = self.sandboxes.run_gate(&sandbox_pod(name)).await;
        until_ready(gate.health(), (200, "ok")).await;
        gate
    }

    async fn epoch(&self) -> u64 {
        stored(&self.system, "epoch").await.unwrap().parse().unwrap()
    }

    fn lease(&self) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "sandgate-injector", "namespace": self.system.namespace.name()},
        })
    }
}

/// What a gate was told so far, as it counts it.
async fn told(gate: &RunningGate) -> [Option<String>; 2] {
    [
        metric(gate.health(), "sandgate_sidecar_enrolments_total{outcome=\"accepted\"}").await,
        metric(
            gate.health(),
            "sandgate_sidecar_policy_pushes_total{outcome=\"accepted\"}",
        )
        .await,
    ]
}

async fn the_gate_of_a_sandbox_gets_identity_and_policy_without_anybodys_help(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let spec =
        json!({"containers": [{"name": "app", "image": "app.example/app:1", "ports": [{"containerPort": 8080}]}]});
    let owner = scene.sandboxes.admitted(&sandbox("alpha", &spec)).await;
    cluster.remove_afterwards(&owner);
    let (_, gate) = scene.sandboxes.run_gate(&pod_of(&owner)).await;
    until_ready(gate.health(), (200, "ok")).await;
    let (_, other) = scene.sandboxes.run_gate(&sandbox_pod("beta")).await;
    until_ready(other.health(), (200, "ok")).await;
    replica.until_metric(&visits("ok", "enrolled"), 2).await;
    replica
        .until_metric("sandgate_injector_gates{state=\"enrolled\"}", 2)
        .await;
    assert_eq!(
        told(&gate).await,
        [Some("1".into()), Some("1".into())],
        "{}",
        gate.log()
    );
    replica.stop().await;
}

async fn replicas_come_and_go_and_no_gate_is_disturbed(cluster: Cluster) {
    let (scene, first) = Scene::start(&cluster).await;
    let gates = [scene.gate("alpha").await, scene.gate("beta").await];
    // One identity, and the policy once in each epoch.
    let told_in_epoch = async |count: u32| {
        for gate in &gates {
            assert_eq!(told(gate).await, [Some("1".into()), Some(count.to_string())]);
        }
    };
    told_in_epoch(1).await;
    let epoch = scene.epoch().await;

    let second = scene.another().await;
    let third = scene.gate("gamma").await;
    first.until_metric(&visits("ok", "enrolled"), 3).await;
    assert_eq!((first.metric(LEADER).await, second.metric(LEADER).await), (1, 0));
    for word in ["enrolled", "current", "policy"] {
        assert_eq!(
            second.metric(&visits("ok", word)).await,
            0,
            "only the leader talks to gates"
        );
    }
    first.stop().await;

    second.until_metric(LEADER, 1).await;
    second.until_metric(&visits("ok", "current"), 3).await;
    assert!(scene.epoch().await > epoch);
    for word in ["enrolled", "renewed", "policy"] {
        assert_eq!(second.metric(&visits("ok", word)).await, 0, "{word}");
    }
    told_in_epoch(2).await;
    for gate in gates.iter().chain([&third]) {
        until_ready(gate.health(), (200, "ok")).await;
    }
    // And it does its work.
    scene.serve_with(&second).await;
    let fourth = scene.gate("delta").await;
    second.stop().await;

    // All of them at once, as in an upgrade of one replica.
    let last = scene.another().await;
    last.until_metric(&visits("ok", "current"), 4).await;
    told_in_epoch(3).await;
    until_ready(fourth.health(), (200, "ok")).await;
    last.stop().await;
}

async fn a_leader_whose_lease_is_taken_stops_and_begins_anew_in_a_higher_epoch(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let gate = scene.gate("alpha").await;
    let epoch = scene.epoch().await;
    let held = cluster.get(&scene.lease()).await.unwrap();
    assert_eq!(held["spec"]["leaseDurationSeconds"], 4, "{held}");

    let stranger = json!({"spec": {"holderIdentity": "stranger"}});
    cluster.merge(&scene.lease(), &stranger).await.unwrap();
    until("the replica has stepped down", async || {
        match replica.metric(LEADER).await {
            0 => Ok(()),
            leader => Err(leader),
        }
    })
    .await;
    // The stranger is never heard of again.
    replica.until_metric(LEADER, 1).await;
    replica.until_metric(&visits("ok", "current"), 1).await;
    assert!(scene.epoch().await > epoch);
    let taken = cluster.get(&scene.lease()).await.unwrap();
    let transitions = |lease: &Value| lease["spec"]["leaseTransitions"].as_i64().unwrap();
    assert_eq!(transitions(&taken), transitions(&held) + 1);
    until_ready(gate.health(), (200, "ok")).await;

    // Of a Lease that somebody deletes there is one again, and of what is stored beside the epoch nothing changes.
    let root = cluster.get(&secret(&scene.system)).await.unwrap()["data"]["tls.crt"].clone();
    cluster.delete(&scene.lease()).await.unwrap();
    until("there is a Lease", async || cluster.get(&scene.lease()).await).await;
    replica.stop().await;
    let left = cluster.get(&scene.lease()).await.unwrap();
    assert_eq!(left["spec"].get("holderIdentity"), None, "given back: {left}");
    let after = cluster.get(&secret(&scene.system)).await.unwrap()["data"]["tls.crt"].clone();
    assert_eq!(root, after);
}

async fn identities_are_renewed_and_the_gate_stays_ready(cluster: Cluster) {
    let (scene, replica) = Scene::with_lifetime(&cluster, Duration::from_secs(20)).await;
    let gate = scene.gate("alpha").await;
    let health = gate.health();
    let watching = async {
        loop {
            let (status, text) = sandgate_tests::processes::get(health, "/readyz").await;
            assert_eq!(status, 200, "{text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let renewed = visits("ok", "renewed");
    tokio::select! {
        () = watching => {}
        () = replica.until_metric(&renewed, 2) => {}
    }
    assert_eq!(replica.metric(&visits("ok", "enrolled")).await, 1);
    replica.stop().await;
}

/// Trusted first, then signing, then alone: gates that were born under the old root come along.
async fn roots_are_replaced_and_no_gate_is_disturbed(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let gate = scene.gate("alpha").await;
    let old = cluster.get(&secret(&scene.system)).await.unwrap()["data"]["tls.crt"].clone();
    let new = NewRoot::generate().unwrap();
    let (certificate, key) = (base64(&new.certificate_pem), base64(&new.key_pem));
    let steps = [
        json!({"next.crt": certificate}),
        json!({"tls.crt": certificate, "tls.key": key, "next.crt": old}),
        json!({"next.crt": null}),
    ];
    for (count, step) in (1..).zip(steps) {
        cluster
            .merge(&secret(&scene.system), &json!({"data": step}))
            .await
            .unwrap();
        replica.until_metric(&visits("ok", "renewed"), count).await;
        until_ready(gate.health(), (200, "ok")).await;
    }
    assert_eq!(
        replica.metric(&visits("ok", "enrolled")).await,
        1,
        "it was known all the time"
    );
    scene.gate("beta").await;
    replica.stop().await;
}

/// Nobody remembers that gates were to be told.
async fn a_new_leader_brings_gates_the_roots_that_changed_while_there_was_none(cluster: Cluster) {
    let (scene, first) = Scene::start(&cluster).await;
    let gate = scene.gate("alpha").await;
    first.until_metric(&visits("ok", "enrolled"), 1).await;
    first.stop().await;
    let next = base64(&NewRoot::generate().unwrap().certificate_pem);
    let step = json!({"data": {"next.crt": next}});
    cluster.merge(&secret(&scene.system), &step).await.unwrap();

    let second = scene.another().await;
    second.until_metric(&visits("ok", "renewed"), 1).await;
    let of_gates = |gauge: &str| format!("sandgate_injector_{gauge}{{state=\"enrolled\"}}");
    second.until_metric(&of_gates("gates"), 1).await;
    second.until_metric(&of_gates("gates_behind"), 0).await;
    until_ready(gate.health(), (200, "ok")).await;
    second.stop().await;
    // And it is left alone by the next one.
    let third = scene.another().await;
    third.until_metric(&visits("ok", "current"), 1).await;
    assert_eq!(third.metric(&visits("ok", "renewed")).await, 0);
    third.stop().await;
}

/// It stood still before it said something, and goes on after another has taken over.
async fn gates_that_a_new_leader_has_visited_take_nothing_of_a_former_one(cluster: Cluster) {
    let (scene, first) = Scene::start(&cluster).await;
    let (pod, gate) = scene.sandboxes.run_gate(&sandbox_pod("alpha")).await;
    until_ready(gate.health(), (200, "ok")).await;
    first.until_metric(&visits("ok", "enrolled"), 1).await;
    let epoch = scene.epoch().await;
    first.stop().await;
    let second = scene.another().await;
    second.until_metric(&visits("ok", "current"), 1).await;

    let leader = control_plane(&scene.system, &signs(&scene.system).await, &pod, gate.address);
    let push = |epoch| {
        let generation = Generation { epoch, counter: 100 };
        let snapshot = default_policy(DefaultPolicy::Anonymous, vec![8888]);
        PolicyPush {
            pod_uid: leader.sandbox.pod_uid.clone(),
            snapshot: Snapshot { generation, ..snapshot },
        }
    };
    let answer = leader.put(POLICY_PATH, &push(epoch)).await;
    assert_eq!(status(&answer), 409, "{answer}");
    let answer = leader.put(POLICY_PATH, &push(scene.epoch().await)).await;
    assert_eq!(status(&answer), 204, "the present one's is taken: {answer}");
    second.stop().await;
}

async fn a_gate_that_starts_again_goes_on_with_what_it_has(cluster: Cluster) {
    let (scene, replica) = Scene::start(&cluster).await;
    let mut gate = scene.gate("alpha").await;
    replica.stop().await;
    gate.restart().await;
    until_ready(gate.health(), (200, "ok")).await;
}
