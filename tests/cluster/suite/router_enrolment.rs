//! A default installation gives a router that needs nobody's hand: it is enrolled, renewed, and goes on after a restart; and the
//! roots by which it knows the injector are kept as they should be.

use crate::authority::{control_plane, leaf_for, signs, stored, workload};
use crate::end_to_end::gated;
use crate::enrolment::LEADER;
use crate::injector::{OPTED_IN, base64, secret};
use sandbox_injector::authority::NewRoot;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::injector::{Replica, System};
use sandgate_cluster_tests::router::PodApp;
use sandgate_cluster_tests::router_pod::{ROOTS, RouterPod};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use sandgate_mesh::control::{IDENTITY_PATH, IdentityGrant, bundle_digest};
use sandgate_mesh::policy::model::Generation;
use sandgate_tests::control::ControlPlane;
use sandgate_tests::enrolled_router::NO_ANCHORS;
use sandgate_tests::processes::{metric, until_ready};
use sandgate_tests::status;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

// Webhook configurations are for the whole cluster, and so is the watch of pods.
pub(crate) const TESTS: &[Test] = tests![
    @alone a_default_installation_gives_a_router_that_needs_nobodys_hand,
    @alone a_routers_identity_is_renewed_under_load_and_no_request_fails,
    @alone a_new_leader_brings_a_router_its_epoch_and_the_roots_that_are_in_force,
    @alone the_roots_for_routers_are_repaired_and_follow_those_in_force,
];

/// A series of the injector's about routers.
pub(crate) fn router_visits(outcome: &str, reason: &str) -> String {
    format!("sandgate_injector_router_enrolments_total{{outcome=\"{outcome}\",reason=\"{reason}\"}}")
}

/// The chart as it is installed by default, but that everybody may call: what is rendered, an injector's namespace with a
/// router's ServiceAccount, and an opted-in one.
pub(crate) struct Installed {
    pub(crate) system: System,
    pub(crate) team: Namespace,
    pub(crate) chart: Chart,
}

impl Installed {
    pub(crate) async fn start(cluster: &Cluster, lifetime: Duration) -> (Self, Replica) {
        cluster.install_upstream_crds().await;
        let installed = Self {
            system: System::install(cluster).await,
            team: cluster.namespace(OPTED_IN).await,
            chart: Chart::render(&["injector.defaultPolicy=anonymous"]),
        };
        cluster.router_accounts(installed.own()).await;
        cluster.let_route(installed.own()).await;
        let replica = installed.replica(lifetime);
        installed
            .system
            .configure(&installed.chart, replica.webhook.port())
            .await;
        installed.team.until_admitted(&sandbox_pod("until"), has_gate).await;
        replica.until_metric(LEADER, 1).await;
        (installed, replica)
    }

    pub(crate) fn own(&self) -> &Namespace {
        &self.system.namespace
    }

    fn replica(&self, lifetime: Duration) -> Replica {
        self.system.start(&self.chart, |config, timing| {
            config.gate_certificate_lifetime = lifetime;
            timing.lease = Duration::from_secs(4);
            timing.settle = Duration::from_secs(1);
        })
    }

    fn roots(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": ROOTS, "namespace": self.own().name()},
        })
    }

    /// The roots as they are published.
    async fn published(&self) -> Option<String> {
        let found = self.own().cluster().get(&self.roots()).await.ok()?;
        found["data"]["ca.crt"].as_str().map(Into::into)
    }

    pub(crate) async fn until_published(&self, what: &str, right: impl Fn(&str) -> bool) -> String {
        until(what, async || match self.published().await {
            Some(roots) if right(&roots) => Ok(roots),
            other => Err(other),
        })
        .await
    }
}

/// Somebody with a root and its key, who asks a router as its control plane would.
pub(crate) fn asking(system: &System, router: &RouterPod, signs: &[String; 2]) -> ControlPlane {
    control_plane(system, signs, &router.pod, router.address).of_router(workload(system, "sandbox-router"))
}

async fn a_default_installation_gives_a_router_that_needs_nobodys_hand(cluster: Cluster) {
    let (installed, replica) = Installed::start(&cluster, Duration::from_secs(3600)).await;
    let pod = installed.chart.router_pod(installed.own(), "sandbox-router-1");
    let stored = installed.own().admitted(&pod).await;
    cluster.remove_afterwards(&stored);
    let token = installed.own().token_of(&stored, "sandgate").await;
    // The pod is there first, and its kubelet brings what is published later.
    let mut router = RouterPod::start_without_roots(installed.own(), &stored, &token).await;
    installed.own().runs_at(&stored, router.address).await;
    until_ready(router.health, (503, NO_ANCHORS)).await;
    installed.until_published("the roots are published", |_| true).await;
    router.mount_roots().await;
    router.until_ready().await;
    replica.until_metric(&router_visits("ok", "enrolled"), 1).await;
    replica
        .until_metric("sandgate_injector_routers{state=\"enrolled\"}", 1)
        .await;

    let app = PodApp::start("127.0.0.1", "hello").await;
    let (_pod, gate) = gated(&installed.team, "alpha", app.port()).await;
    let body = router
        .until_answered(200, installed.team.name(), "alpha", app.port())
        .await;
    assert_eq!(body, "hello", "{}", gate.log());

    // Each of several has a key of its own.
    let second = installed.chart.router_pod(installed.own(), "sandbox-router-2");
    let second = installed.own().run_router(&second).await;
    second.until_ready().await;
    second
        .until_answered(200, installed.team.name(), "alpha", app.port())
        .await;
    replica.until_metric(&router_visits("ok", "enrolled"), 2).await;

    // Started again, it goes on with what it has, and nobody is there to help.
    replica.stop().await;
    router.restart().await;
    router.until_ready().await;
    let body = router
        .until_answered(200, installed.team.name(), "alpha", app.port())
        .await;
    assert_eq!(body, "hello", "{}", router.log());
    let accepted = metric(router.metrics, "sandbox_router_enrolments_total{outcome=\"accepted\"}").await;
    assert_eq!(accepted.as_deref(), Some("0"));
}

async fn a_routers_identity_is_renewed_under_load_and_no_request_fails(cluster: Cluster) {
    let (installed, replica) = Installed::start(&cluster, Duration::from_secs(16)).await;
    let pod = installed.chart.router_pod(installed.own(), "sandbox-router-1");
    let router = installed.own().run_router(&pod).await;
    installed.until_published("the roots are published", |_| true).await;
    router.mount_roots().await;
    router.until_ready().await;
    let app = PodApp::start("127.0.0.1", "hello").await;
    let (_pod, gate) = gated(&installed.team, "alpha", app.port()).await;
    let team = installed.team.name();
    router.until_answered(200, team, "alpha", app.port()).await;
    let mut asked = 0_u32;
    let asking = async {
        loop {
            let (status, body) = router.ask(team, "alpha", app.port()).await;
            assert_eq!(status, 200, "{body}{}{}", router.log(), gate.log());
            until_ready(router.health, (200, "ok")).await;
            asked += 1;
        }
    };
    let renewed = router_visits("ok", "renewed");
    tokio::select! {
        () = asking => {}
        () = replica.until_metric(&renewed, 3) => {}
    }
    assert!(asked > 50, "{asked} requests only");
    assert_eq!(replica.metric(&router_visits("ok", "enrolled")).await, 1);
    replica.stop().await;
}

/// Also where nothing else has changed: what a former leader has sent and the network still holds back must not be taken.
async fn a_new_leader_brings_a_router_its_epoch_and_the_roots_that_are_in_force(cluster: Cluster) {
    let (installed, first) = Installed::start(&cluster, Duration::from_secs(3600)).await;
    installed.until_published("the roots are published", |_| true).await;
    let pod = installed.chart.router_pod(installed.own(), "sandbox-router-1");
    let router = installed.own().run_router(&pod).await;
    router.until_ready().await;
    first.until_metric(&router_visits("ok", "enrolled"), 1).await;
    let epoch = async || {
        stored(&installed.system, "epoch")
            .await
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let former = epoch().await;
    first.stop().await;

    let second = installed.replica(Duration::from_secs(3600));
    second.until_metric(&router_visits("ok", "renewed"), 1).await;
    let present = epoch().await;
    assert!(present > former);
    let signs = signs(&installed.system).await;
    let leader = asking(&installed.system, &router, &signs);
    let enrolment = leader.enrolment().await;
    assert_eq!(enrolment.floor.epoch, present);
    let says = |epoch| {
        let identity = workload(&installed.system, "sandbox-router").to_string();
        let end = SystemTime::now() + Duration::from_secs(3600);
        IdentityGrant {
            pod_uid: leader.sandbox.pod_uid.clone(),
            generation: Generation { epoch, counter: 100 },
            chain: leaf_for(&enrolment.csr, &signs, (&identity, false), end),
            bundle: signs[0].clone(),
        }
    };
    let answer = leader.put(IDENTITY_PATH, &says(former)).await;
    assert_eq!(status(&answer), 409, "{answer}");
    let answer = leader.put(IDENTITY_PATH, &says(present)).await;
    assert_eq!(status(&answer), 204, "the present one's is taken: {answer}");
    second.stop().await;

    let next = NewRoot::generate().unwrap().certificate_pem;
    let step = json!({"data": {"next.crt": base64(&next)}});
    cluster.merge(&secret(&installed.system), &step).await.unwrap();
    let third = installed.replica(Duration::from_secs(3600));
    third.until_metric(&router_visits("ok", "renewed"), 1).await;
    let of_routers = |gauge: &str| format!("sandgate_injector_{gauge}{{state=\"enrolled\"}}");
    third.until_metric(&of_routers("routers"), 1).await;
    third.until_metric(&of_routers("routers_behind"), 0).await;
    let believed = leader.enrolment().await.bundle_digest;
    assert_eq!(believed, bundle_digest(&format!("{}{next}", signs[0])));
    router.until_ready().await;
    // In its epoch it is left alone.
    for (word, count) in [("enrolled", 0), ("renewed", 1)] {
        assert_eq!(third.metric(&router_visits("ok", word)).await, count, "{word}");
    }
    third.stop().await;
}

async fn the_roots_for_routers_are_repaired_and_follow_those_in_force(cluster: Cluster) {
    let (installed, replica) = Installed::start(&cluster, Duration::from_secs(3600)).await;
    let stored = cluster.get(&secret(&installed.system)).await.unwrap()["data"]["tls.crt"].clone();
    let root: k8s_openapi::ByteString = serde_json::from_value(stored.clone()).unwrap();
    let root = String::from_utf8(root.0).unwrap();
    let same = |roots: &str| roots == root;
    installed.until_published("the root is published", same).await;
    cluster.delete(&installed.roots()).await.unwrap();
    installed.until_published("the root is published again", same).await;
    let foreign = NewRoot::generate().unwrap().certificate_pem;
    for changed in [
        json!({"ca.crt": foreign}),
        json!({"ca.crt": null}),
        json!({"ca.crt": "", "note": "mine"}),
    ] {
        cluster
            .merge(&installed.roots(), &json!({"data": changed}))
            .await
            .unwrap();
        installed.until_published("the root is put back", same).await;
    }
    let found = cluster.get(&installed.roots()).await.unwrap();
    assert_eq!(found["data"]["note"], "mine", "what else is in it is nobody's business");

    // A next root comes, signs, and the old one goes.
    let new = NewRoot::generate().unwrap();
    let (certificate, key) = (base64(&new.certificate_pem), base64(&new.key_pem));
    let steps = [
        (
            json!({"next.crt": certificate}),
            format!("{root}{}", new.certificate_pem),
        ),
        (
            json!({"tls.crt": certificate, "tls.key": key, "next.crt": stored}),
            format!("{}{root}", new.certificate_pem),
        ),
        (json!({"next.crt": null}), new.certificate_pem.clone()),
    ];
    for (step, expected) in steps {
        cluster
            .merge(&secret(&installed.system), &json!({"data": step}))
            .await
            .unwrap();
        installed
            .until_published("the roots in force are published", |roots| roots == expected)
            .await;
    }
    replica.stop().await;
}
