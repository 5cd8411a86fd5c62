//! What the tests of the root's replacement are made of: an operator with the released program, a router with files, and leaders
//! that are killed.

use crate::authority::{leaf_under, signs, stored, workload};
use crate::enrolment::LEADER;
use crate::injector::OPTED_IN;
use sandbox_injector::Timing;
use sandbox_injector::config::serve::Config;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::injector::{Replica, System};
use sandgate_cluster_tests::node::RunningGate;
use sandgate_cluster_tests::router::{Identity, RunningRouter};
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::{Cluster, Namespace, process, until};
use sandgate_mesh::identity::WorkloadIdentity;
use sandgate_tests::load::Load;
use sandgate_tests::processes::until_ready;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::runtime::Runtime;

const ROUTER_RELOADS: &str = "sandbox_router_cert_reloads_total{outcome=\"success\"}";

/// An injector's namespace and an opted-in one.
pub(crate) struct Stage {
    pub(crate) system: System,
    pub(crate) team: Namespace,
    pub(crate) chart: Chart,
}

impl Stage {
    /// With one replica that leads, whose webhook is in force.
    pub(crate) async fn start(cluster: &Cluster, lifetime: Duration) -> (Self, Replica) {
        let chart = Chart::render(&[
            "injector.defaultPolicy=anonymous",
            // Its routers have files.
            "router.mesh.certificate.source=secret",
        ]);
        let stage = Self::with(cluster, chart).await;
        let replica = stage.replica(|config, _| config.gate_certificate_lifetime = lifetime);
        stage.serve_with(&replica).await;
        replica.until_metric(LEADER, 1).await;
        (stage, replica)
    }

    /// With no replica yet.
    pub(crate) async fn with(cluster: &Cluster, chart: Chart) -> Self {
        cluster.install_upstream_crds().await;
        Self {
            system: System::install(cluster).await,
            team: cluster.namespace(OPTED_IN).await,
            chart,
        }
    }

    pub(crate) fn replica(&self, change: impl FnOnce(&mut Config, &mut Timing)) -> Replica {
        self.system.start(&self.chart, |config, timing| {
            timing.lease = Duration::from_secs(3);
            timing.settle = Duration::from_secs(1);
            change(config, timing);
        })
    }

    pub(crate) async fn serve_with(&self, replica: &Replica) {
        self.system.configure(&self.chart, replica.webhook.port()).await;
        self.team.until_admitted(&sandbox_pod("until"), has_gate).await;
    }

    /// What an operator says with the program that is released.
    pub(crate) async fn root(&self, arguments: &[&str]) -> String {
        process::root(&self.system, arguments)
            .await
            .unwrap_or_else(|told| panic!("{arguments:?}: {told}"))
    }

    /// What is in the authority's Secret under this name, if anything.
    pub(crate) async fn stored(&self, entry: &str) -> Option<String> {
        stored(&self.system, entry).await
    }

    /// The root that signs, and its key.
    pub(crate) async fn signs(&self) -> [String; 2] {
        signs(&self.system).await
    }

    /// The replacement as it is stored.
    pub(crate) async fn rotation(&self) -> Value {
        let stored = self.stored("rotation").await;
        stored.map_or(Value::Null, |stored| serde_json::from_str(&stored).unwrap())
    }

    pub(crate) async fn until_step(&self, step: &str) {
        until(&format!("the replacement is in the step {step}"), async || {
            let rotation = self.rotation().await;
            (rotation["step"] == step).then_some(()).ok_or(rotation)
        })
        .await;
    }

    /// Returns when this step waits for these reasons and no others: what `root status` says then.
    pub(crate) async fn until_waits_for(&self, step: &str, reasons: &[&str]) -> String {
        until(&format!("{step} waits for {reasons:?}"), async || {
            let text = self.root(&["status"]).await;
            let in_step = text.contains(&format!("step {step} since "));
            let is_reason = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
            let lines = text.lines().filter(is_reason);
            let found: Vec<_> = lines.filter_map(|line| line.trim().split(' ').next()).collect();
            (in_step && found == reasons).then(|| text.clone()).ok_or(text)
        })
        .await
    }

    /// Returns when new gates are given so many roots.
    pub(crate) async fn until_given(&self, count: usize) {
        let is_given = |pod: &Value| {
            let value = pod.pointer("/spec/initContainers/0/env/3/value");
            value.is_some_and(|value| value.as_str().unwrap().matches("BEGIN").count() == count)
        };
        self.team.until_admitted(&sandbox_pod("given"), is_given).await;
    }

    pub(crate) async fn gate(&self, name: &str) -> (Value, RunningGate) {
        let (pod, gate) = self.team.run_gate(&sandbox_pod(name)).await;
        until_ready(gate.health(), (200, "ok")).await;
        (pod, gate)
    }

    /// The pod of a new Sandbox with an app at a port, as its controller makes it.
    pub(crate) async fn owned(&self, name: &str, port: u16) -> Value {
        let app = json!({"name": "app", "image": "app.example/app:1", "ports": [{"containerPort": port}]});
        let owner = self.team.admitted(&sandbox(name, &json!({"containers": [app]}))).await;
        self.team.cluster().remove_afterwards(&owner);
        pod_of(&owner)
    }

    /// A Sandbox with an app at a port, its pod and the pod's gate, as a router finds them.
    pub(crate) async fn served(&self, name: &str, port: u16) -> (Value, RunningGate) {
        let (pod, gate) = self.team.run_gate(&self.owned(name, port).await).await;
        until_ready(gate.health(), (200, "ok")).await;
        self.team.run_pod(&pod, &gate.address.to_string(), true).await;
        (pod, gate)
    }

    pub(crate) fn workload(&self, account: &str) -> WorkloadIdentity {
        workload(&self.system, account)
    }

    /// A router's leaf under a root with its key.
    pub(crate) fn router_leaf(&self, [root, key]: &[String; 2]) -> [String; 2] {
        leaf_under(root, key, &self.workload("sandbox-router").to_string(), false)
    }
}

/// Requests through a router to a sandbox. Nothing is tried twice on their way.
pub(crate) fn load(router: SocketAddr, namespace: &str, name: &str, port: u16) -> Load {
    let request = |fields: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: test\r\nX-Sandbox-ID: {name}\r\nX-Sandbox-Namespace: {namespace}\r\n\
             X-Sandbox-Port: {port}\r\n{fields}\r\n"
        )
    };
    Load::start(request, &[router])
}

/// A router whose certificates are replaced by hand.
pub(crate) struct ByHand {
    pub(crate) identity: Identity,
    pub(crate) router: RunningRouter,
}

impl ByHand {
    pub(crate) async fn start(cluster: &Cluster, stage: &Stage) -> Self {
        let signs = stage.signs().await;
        let [chain, key] = stage.router_leaf(&signs);
        let identity = Identity::with(stage.system.namespace.name(), &chain, &key, &signs[0]);
        let flags = identity.flags();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let router = RunningRouter::start(&cluster.router_system().await, &flags);
        router.until_ready().await;
        Self { identity, router }
    }

    /// Gives it a leaf under this root, and these roots. Returns when it has them.
    pub(crate) async fn give(&self, stage: &Stage, signs: &[String; 2], roots: &str) {
        let before = self.router.metric(ROUTER_RELOADS).await;
        let [chain, key] = stage.router_leaf(signs);
        self.identity.replace(&chain, &key, roots);
        until("the router has its new certificates", async || {
            let now = self.router.metric(ROUTER_RELOADS).await;
            (now > before).then_some(()).ok_or(now)
        })
        .await;
    }
}

/// A replica that is killed like a process: everything in it ends at once, and nothing is given back.
pub(crate) struct Doomed {
    pub(crate) runtime: Runtime,
    pub(crate) replica: Replica,
}

impl Doomed {
    pub(crate) fn start(stage: &Stage) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let entered = runtime.enter();
        let replica = stage.replica(|config, _| {
            config.gate_certificate_lifetime = Duration::from_secs(120);
            // Nobody has to be told.
            config.schedule.routers_follow_within = Some(Duration::ZERO);
        });
        drop(entered);
        Self { runtime, replica }
    }

    pub(crate) fn kill(self) {
        self.runtime.shutdown_background();
        drop(self.replica);
    }
}
