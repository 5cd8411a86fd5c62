//! From a label to an answer: the injector puts a gate into the pod, signs its certificate and brings it a policy, the router
//! finds the pod, and a request reaches the app through the gate and in no other way. Only the kubelet is played.

use crate::injector::{OPTED_IN, secret};
use sandgate_cluster_tests::chart::{Chart, OWN_NAMESPACE, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::node::RunningGate;
use sandgate_cluster_tests::router::{Identity, PodApp, RunningRouter};
use sandgate_cluster_tests::runbook::commands;
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use sandgate_tests::processes::until_ready;
use serde_json::{Value, json};
use std::process::Command;

// Webhook configurations are for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![@alone a_request_reaches_a_sandbox_through_its_gate];

/// Runs the commands of docs/install.md that give the router its identity, and returns that.
async fn identity_by_the_book(cluster: &Cluster, system: &System) -> Identity {
    let own = system.namespace.name();
    let folder = std::env::temp_dir().join(format!("sandgate-router-runbook-{own}"));
    std::fs::create_dir_all(&folder).unwrap();
    for block in commands(
        include_str!("../../../docs/install.md"),
        "### A router's certificate of your own",
    ) {
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", &block.replace(OWN_NAMESPACE, own)])
            .current_dir(&folder);
        let done = tokio::task::spawn_blocking(move || shell.output().unwrap())
            .await
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    assert!(!folder.join("ca.key").exists() && !folder.join("router.key").exists());
    std::fs::remove_dir_all(&folder).unwrap();
    let mut made = secret(system);
    made["metadata"]["name"] = "sandgate-router-identity".into();
    let made = cluster.get(&made).await.unwrap();
    assert_eq!(made["type"], "kubernetes.io/tls");
    let text = |name: &str| {
        let bytes: k8s_openapi::ByteString = serde_json::from_value(made["data"][name].clone()).unwrap();
        String::from_utf8(bytes.0).unwrap()
    };
    Identity::with(own, &text("tls.crt"), &text("tls.key"), &text("ca.crt"))
}

/// A Sandbox of this name, its pod as the controller makes it, and the pod's gate, which is ready.
pub(crate) async fn gated(namespace: &Namespace, name: &str, port: u16) -> (Value, RunningGate) {
    let app = json!({"name": "app", "image": "app.example/app:1", "ports": [{"containerPort": port}]});
    let owner = namespace.admitted(&sandbox(name, &json!({"containers": [app]}))).await;
    namespace.cluster().remove_afterwards(&owner);
    let (pod, gate) = namespace.run_gate(&pod_of(&owner)).await;
    until_ready(gate.health(), (200, "ok")).await;
    namespace.run_pod(&pod, &gate.address.to_string(), true).await;
    (pod, gate)
}

async fn a_request_reaches_a_sandbox_through_its_gate(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let chart = Chart::render(&["injector.defaultPolicy=anonymous"]);
    let replica = system.start(&chart, |_, _| {});
    system.configure(&chart, replica.webhook.port()).await;
    team.until_admitted(&sandbox_pod("until"), has_gate).await;

    let identity = identity_by_the_book(&cluster, &system).await;
    let flags = identity.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let router = RunningRouter::start(&cluster.router_system().await, &flags);
    router.until_ready().await;

    // The app listens on the pod's loopback, and a neighbour on a port that the pod doesn't declare.
    let (app, undeclared) = (
        PodApp::start("127.0.0.1", "hello").await,
        PodApp::start("127.0.0.1", "secret").await,
    );
    let (alpha_pod, alpha) = gated(&team, "alpha", app.port()).await;
    let body = router.until_answered(200, team.name(), "alpha", app.port()).await;
    assert_eq!(body, "hello", "{}", alpha.log());
    for head in app.seen() {
        assert!(head.starts_with("GET /some/path HTTP/1.1\r\n"), "{head}");
        assert!(!head.to_ascii_lowercase().contains("x-sandgate-"), "{head}");
    }
    let (status, _) = router.ask(team.name(), "alpha", undeclared.port(), "").await;
    assert_eq!((status, undeclared.seen()), (403, Vec::new()));

    // Another sandbox gets the address of one that has gone: what was meant for that one reaches nobody.
    let (beta_pod, beta) = gated(&team, "beta", app.port()).await;
    router.until_answered(200, team.name(), "beta", app.port()).await;
    app.seen();
    drop(alpha);
    team.run_pod(&alpha_pod, &beta.address.to_string(), true).await;
    let asked = async || router.ask(team.name(), "alpha", app.port(), "").await.0;
    let invalidations = format!(
        "sandbox_router_cache_invalidations_total{{sandbox_namespace=\"{}\"}}",
        team.name()
    );
    let before = router.metric(&invalidations).await;
    for _ in 0..5 {
        assert_eq!(asked().await, 502);
    }
    until("the router has noticed that somebody else is there", async || {
        assert_eq!(asked().await, 502);
        let counted = router.metric(&invalidations).await;
        (counted > before).then_some(()).ok_or(counted)
    })
    .await;
    assert_eq!(app.seen(), Vec::<String>::new());
    assert_eq!(router.ask(team.name(), "beta", app.port(), "").await.0, 200);

    // A gate whose pod is gone answers nobody any more, nor does anybody in its name.
    cluster.delete(&beta_pod).await.unwrap();
    router.until_answered(502, team.name(), "beta", app.port()).await;
    replica.stop().await;
}
