//! How the router finds sandboxes by what the API server says of their pods. Apps on loopback addresses stand in the pods'
//! place: of each, everything that it saw counts.

use sandgate_cluster_tests::router::{Identity, PodApp, RunningRouter};
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use sandgate_mesh::contract::MESH_PORT;
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    a_sandbox_is_found_by_its_name_while_its_pod_is_ready,
    a_client_that_will_not_wait_costs_nobody_else_the_sandbox,
    a_clients_hint_leads_to_nobody_elses_pod,
    a_clients_hint_counts_for_nothing_where_nobody_is,
    a_pod_of_a_warm_pool_is_found_by_its_uid_until_it_is_adopted,
    a_forged_label_steals_nobodys_name,
    auto_goes_straight_to_apps_only_where_the_namespace_has_not_opted_in,
    a_pod_without_its_gate_gets_nothing_in_an_opted_in_namespace,
    a_router_is_not_ready_before_it_knows_the_pods,
    one_namespace_is_followed_where_one_is_named,
];

/// A Sandbox and the pod that the controller makes of it.
async fn stored(namespace: &Namespace, name: &str) -> Value {
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    let owner = namespace.admitted(&sandbox(name, &spec)).await;
    namespace.admitted(&pod_of(&owner)).await
}

async fn opt_in(namespace: &Namespace) {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name()}});
    let label = json!({"metadata": {"labels": {"sandgate.dev/inject": "enabled"}}});
    namespace.cluster().merge(&object, &label).await.unwrap();
}

async fn a_sandbox_is_found_by_its_name_while_its_pod_is_ready(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (cluster.router_system().await, cluster.namespace(&[]).await);
    let router = RunningRouter::start(&system, &["--mesh=off"]);
    router.until_ready().await;
    let (first, second) = (
        PodApp::start("127.0.20.1", "first").await,
        PodApp::start("127.0.20.2", "second").await,
    );
    let (port, other) = (first.port(), second.port());

    let pod = stored(&team, "alpha").await;
    team.run_pod(&pod, "127.0.20.1", false).await;
    assert_eq!(router.ask(team.name(), "alpha", port, "").await.0, 502);
    team.run_pod(&pod, "127.0.20.1", true).await;
    assert_eq!(router.until_answered(200, team.name(), "alpha", port).await, "first");
    team.run_pod(&pod, "127.0.20.1", false).await;
    router.until_answered(502, team.name(), "alpha", port).await;

    // The next pod of that name, elsewhere.
    team.run_pod(&pod, "127.0.20.1", true).await;
    router.until_answered(200, team.name(), "alpha", port).await;
    team.cluster().delete(&pod).await.unwrap();
    router.until_answered(502, team.name(), "alpha", port).await;
    first.seen();
    let owner = json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox",
        "metadata": {"name": "alpha", "namespace": team.name()},
    });
    let pod = team.admitted(&pod_of(&cluster.get(&owner).await.unwrap())).await;
    team.run_pod(&pod, "127.0.20.2", true).await;
    assert_eq!(router.until_answered(200, team.name(), "alpha", other).await, "second");
    // Nor does the address of before lead anywhere.
    let stale = router
        .ask(team.name(), "alpha", other, "X-Sandbox-Pod-IP: 127.0.20.1\r\n")
        .await;
    assert_eq!(stale, (200, "second".to_owned()));
    assert_eq!(first.seen(), Vec::<String>::new());
}

async fn a_client_that_will_not_wait_costs_nobody_else_the_sandbox(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (cluster.router_system().await, cluster.namespace(&[]).await);
    let router = RunningRouter::start(&system, &["--mesh=off"]);
    let (app, begin) = PodApp::start_full("127.0.27.1", 0, "app").await;
    let pod = stored(&team, "alpha").await;
    team.run_pod(&pod, "127.0.27.1", true).await;
    router.until_ready().await;
    let hasty = "X-Sandbox-Timeout: 0.05\r\n";
    until("the pod is known", async || {
        match router.ask(team.name(), "alpha", app.port(), hasty).await.0 {
            504 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    begin.send(()).unwrap();
    assert_eq!(
        router.ask(team.name(), "alpha", app.port(), "").await,
        (200, "app".to_owned())
    );
}

async fn a_clients_hint_leads_to_nobody_elses_pod(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let system = cluster.router_system().await;
    let (mine, theirs) = (cluster.namespace(&[]).await, cluster.namespace(&[]).await);
    let router = RunningRouter::start(&system, &["--mesh=off"]);
    let app = PodApp::start("127.0.21.1", "theirs").await;
    let pod = stored(&theirs, "alpha").await;
    theirs.run_pod(&pod, "127.0.21.1", true).await;
    router.until_ready().await;
    router.until_answered(200, theirs.name(), "alpha", app.port()).await;
    app.seen();

    let hint = "X-Sandbox-Pod-IP: 127.0.21.1\r\n";
    let (status, body) = router.ask(mine.name(), "alpha", app.port(), hint).await;
    assert_eq!(
        (status, body.as_str()),
        (403, r#"{"detail":"Pod IP does not belong to sandbox alpha."}"#)
    );
    // Another sandbox of the same namespace: the hint counts for nothing.
    let (status, _) = router.ask(theirs.name(), "beta", app.port(), hint).await;
    assert_eq!(status, 502);
    assert_eq!(app.seen(), Vec::<String>::new());
}

async fn a_clients_hint_counts_for_nothing_where_nobody_is(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (cluster.router_system().await, cluster.namespace(&[]).await);
    let identity = Identity::new(system.name());
    let flags = identity.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let router = RunningRouter::start(&system, &flags);
    router.until_ready().await;
    // As an address whose pod is gone: what is sent there is lost.
    let (gone, _begin) = PodApp::start_full("127.0.28.1", MESH_PORT, "gone").await;
    let hint = "X-Sandbox-Pod-IP: 127.0.28.1\r\n";
    let (status, body) = router.ask(team.name(), "alpha", 8888, hint).await;
    // What is said of a name that nobody has. 504 is said of a pod that is there, after every attempt to reach it.
    assert_eq!(
        (status, body.as_str()),
        (502, r#"{"detail":"Could not connect to the backend sandbox: alpha"}"#)
    );
    assert_eq!(gone.seen(), Vec::<String>::new());
}

async fn a_pod_of_a_warm_pool_is_found_by_its_uid_until_it_is_adopted(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (cluster.router_system().await, cluster.namespace(&[]).await);
    let router = RunningRouter::start(&system, &["--mesh=off"]);
    let app = PodApp::start("127.0.22.1", "warm").await;
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    let owner = team.admitted(&sandbox("warm", &spec)).await;
    let mut pod = pod_of(&owner);
    pod["metadata"]["labels"]["agents.x-k8s.io/warm-pool-sandbox"] = "pool".into();
    let pod = team.admitted(&pod).await;
    team.run_pod(&pod, "127.0.22.1", true).await;
    router.until_ready().await;

    let uid = format!("X-Sandbox-UID: {}\r\n", owner["metadata"]["uid"].as_str().unwrap());
    until("it is found by its UID", async || {
        match router.ask(team.name(), "warm", app.port(), &uid).await {
            (200, _) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    app.seen();
    assert_eq!(router.ask(team.name(), "warm", app.port(), "").await.0, 502);
    let other = "X-Sandbox-UID: 7f0c7a53-0000-4000-8000-000000000000\r\n";
    assert_eq!(router.ask(team.name(), "warm", app.port(), other).await.0, 502);
    assert_eq!(app.seen(), Vec::<String>::new());

    let adopted = json!({"metadata": {"labels": {"agents.x-k8s.io/warm-pool-sandbox": null}}});
    cluster.merge(&pod, &adopted).await.unwrap();
    router.until_answered(200, team.name(), "warm", app.port()).await;
}

async fn a_forged_label_steals_nobodys_name(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (cluster.router_system().await, cluster.namespace(&[]).await);
    let router = RunningRouter::start(&system, &["--mesh=off"]);
    let (thief, honest) = (
        PodApp::start("127.0.23.1", "thief").await,
        PodApp::start("127.0.23.2", "honest").await,
    );
    let forged = team
        .admitted(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "alpha", "labels": {"agents.x-k8s.io/sandbox-name-hash": "5d8b6dab"}},
            "spec": {"containers": [{"name": "app", "image": "app.example/app:1"}]},
        }))
        .await;
    team.run_pod(&forged, "127.0.23.1", true).await;
    let pod = stored(&team, "beta").await;
    team.run_pod(&pod, "127.0.23.2", true).await;
    router.until_ready().await;
    // When this one is known, the other was told of before.
    router.until_answered(200, team.name(), "beta", honest.port()).await;
    assert_eq!(router.ask(team.name(), "alpha", thief.port(), "").await.0, 502);
    assert_eq!(thief.seen(), Vec::<String>::new());
}

async fn auto_goes_straight_to_apps_only_where_the_namespace_has_not_opted_in(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (cluster.router_system().await, cluster.namespace(&[]).await);
    let identity = Identity::new(system.name());
    let flags = identity.flags();
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.push("--mesh=auto");
    let router = RunningRouter::start(&system, &flags);
    let (app, service) = (
        PodApp::start("127.0.24.1", "app").await,
        PodApp::start("127.0.24.2", "a service").await,
    );
    let pod = stored(&team, "alpha").await;
    team.run_pod(&pod, "127.0.24.1", true).await;
    router.until_ready().await;

    router.until_answered(200, team.name(), "alpha", app.port()).await;
    for head in app.seen() {
        assert!(!head.to_ascii_lowercase().contains("x-sandgate-"), "{head}");
        assert!(!head.to_ascii_lowercase().contains("x-sandbox-"), "{head}");
    }
    // Neither an address nor a name of the client's choice leads anywhere.
    for (name, more) in [("nobody", "X-Sandbox-Pod-IP: 127.0.24.2\r\n"), ("localhost", "")] {
        let (status, _) = router.ask(team.name(), name, service.port(), more).await;
        assert_eq!(status, 502, "{name}");
    }
    assert_eq!(service.seen(), Vec::<String>::new());

    opt_in(&team).await;
    let body = router.until_answered(403, team.name(), "alpha", app.port()).await;
    assert_eq!(
        body,
        r#"{"detail":"Sandbox alpha runs without its gate; recreate it."}"#
    );
    app.seen();
    assert_eq!(router.ask(team.name(), "alpha", app.port(), "").await.0, 403);
    assert_eq!(app.seen(), Vec::<String>::new());
}

async fn a_pod_without_its_gate_gets_nothing_in_an_opted_in_namespace(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, team) = (cluster.router_system().await, cluster.namespace(&[]).await);
    let app = PodApp::start("127.0.25.1", "app").await;
    let pod = stored(&team, "alpha").await;
    team.run_pod(&pod, "127.0.25.1", true).await;
    // No pod can get the label later, so whoever has it without the gate's container was never injected.
    let labelled = json!({"metadata": {"labels": {"sandgate.dev/injected": "true"}}});
    cluster.merge(&pod, &labelled).await.unwrap();
    opt_in(&team).await;
    let identity = Identity::new(system.name());
    let flags = identity.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let router = RunningRouter::start(&system, &flags);
    router.until_ready().await;
    let body = router.until_answered(403, team.name(), "alpha", app.port()).await;
    assert_eq!(
        body,
        r#"{"detail":"Sandbox alpha runs without its gate; recreate it."}"#
    );
    assert_eq!(app.seen(), Vec::<String>::new());
}

async fn a_router_is_not_ready_before_it_knows_the_pods(cluster: Cluster) {
    let system = cluster.router_system().await;
    let router = RunningRouter::start_away(&system, "https://127.0.0.1:9", &["--mesh=off"]);
    let readiness = router.readiness().await;
    assert_eq!(readiness, (503, "the pods of sandboxes are not known yet".to_owned()));
    assert_eq!(router.ask("default", "alpha", 80, "").await.0, 502);
}

async fn one_namespace_is_followed_where_one_is_named(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let system = cluster.router_system().await;
    let (mine, other) = (cluster.namespace(&[]).await, cluster.namespace(&[]).await);
    let (app, elsewhere) = (
        PodApp::start("127.0.26.1", "mine").await,
        PodApp::start("127.0.26.2", "other").await,
    );
    let pod = stored(&other, "alpha").await;
    other.run_pod(&pod, "127.0.26.2", true).await;
    let pod = stored(&mine, "alpha").await;
    mine.run_pod(&pod, "127.0.26.1", true).await;
    let only = format!("--cache-namespace={}", mine.name());
    let router = RunningRouter::start(&system, &["--mesh=off", &only]);
    router.until_ready().await;
    router.until_answered(200, mine.name(), "alpha", app.port()).await;
    assert_eq!(router.ask(other.name(), "alpha", elsewhere.port(), "").await.0, 502);
    assert_eq!(elsewhere.seen(), Vec::<String>::new());
}
