//! Who is not a router gets no router's identity, whatever it shows; and a router's token makes no gate.

use crate::enrolment::visits;
use crate::router_enrolment::{Installed, router_visits};
use sandgate_cluster_tests::chart::sandbox_pod;
use sandgate_cluster_tests::injector::Replica;
use sandgate_cluster_tests::node::{RunningGate, new_address};
use sandgate_cluster_tests::router_pod::RouterPod;
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use sandgate_tests::processes::until_ready;
use serde_json::Value;
use std::time::Duration;

// Webhook configurations are for the whole cluster, and so is the watch of pods.
pub(crate) const TESTS: &[Test] = tests![
    @alone tokens_that_prove_something_else_make_no_router,
    @alone pods_that_are_something_else_are_no_routers,
    @alone a_routers_token_makes_no_gate,
];

const HOUR: Duration = Duration::from_secs(3600);
/// The audience of tokens that open the API server's own API.
const API: &str = "https://kubernetes.default.svc.cluster.local";
const NO_IDENTITY: (u16, &str) = (503, "no identity");

async fn created(namespace: &Namespace, pod: &Value) -> Value {
    let stored = namespace.admitted(pod).await;
    namespace.cluster().remove_afterwards(&stored);
    stored
}

/// Runs the router of a stored pod with somebody's token, and tells the API server.
async fn run(own: &Namespace, pod: &Value, token: &str) -> RouterPod {
    let router = RouterPod::start(own, pod, token).await;
    own.runs_at(pod, router.address).await;
    router
}

/// Waits until the injector refuses for this reason once more, and looks whether the router has got nothing.
async fn refused(replica: &Replica, router: &RouterPod, reason: &str, before: u64) {
    replica
        .until_metric(&router_visits("refused", reason), before + 1)
        .await;
    until_ready(router.health, NO_IDENTITY).await;
    assert_eq!(replica.metric(&router_visits("ok", "enrolled")).await, 0, "{reason}");
}

async fn tokens_that_prove_something_else_make_no_router(cluster: Cluster) {
    let (installed, replica) = Installed::start(&cluster, HOUR).await;
    let own = installed.own();
    installed.until_published("the roots are published", |_| true).await;
    let [thief, victim] = [
        created(own, &installed.chart.router_pod(own, "thief")).await,
        created(own, &installed.chart.router_pod(own, "victim")).await,
    ];
    let gate = created(&installed.team, &sandbox_pod("gate")).await;
    let mut other_account = installed.chart.router_pod(own, "builder");
    other_account["spec"]["serviceAccountName"] = "builder".into();
    let other_account = created(own, &other_account).await;

    for (token, reason) in [
        // A gate's, another ServiceAccount's, another router's, one for another audience, and one for the API.
        (installed.team.token_of(&gate, "sandgate").await, "token_account"),
        (own.token_of(&other_account, "sandgate").await, "token_account"),
        (own.token_of(&victim, "sandgate").await, "token_pod"),
        (own.token_of(&thief, "another").await, "token"),
        (own.token_of(&thief, API).await, "token"),
    ] {
        let before = replica.metric(&router_visits("refused", reason)).await;
        let router = run(own, &thief, &token).await;
        refused(&replica, &router, reason, before).await;
    }
    // It says that it is in the victim's pod.
    let stolen = own.token_of(&victim, "sandgate").await;
    let impostor = RouterPod::start(own, &victim, &stolen).await;
    own.runs_at(&thief, impostor.address).await;
    refused(&replica, &impostor, "other_pod", 0).await;
    drop(impostor);

    // What the refused ones lacked.
    let router = run(own, &victim, &stolen).await;
    router.until_ready().await;
    replica.stop().await;
}

async fn pods_that_are_something_else_are_no_routers(cluster: Cluster) {
    let (installed, replica) = Installed::start(&cluster, HOUR).await;
    let own = installed.own();
    installed.until_published("the roots are published", |_| true).await;

    // Labels alone: whoever may not use the router's ServiceAccount is no router.
    let mut labelled = installed.chart.router_pod(own, "labelled");
    labelled["spec"]["serviceAccountName"] = "builder".into();
    let labelled = created(own, &labelled).await;
    let labelled = run(own, &labelled, &own.token_of(&labelled, "sandgate").await).await;
    refused(&replica, &labelled, "router_account", 0).await;

    // The same labels and the same account's name in another namespace.
    let elsewhere = cluster.namespace(&[]).await;
    cluster.router_accounts(&elsewhere).await;
    let mut pod = installed.chart.router_pod(own, "elsewhere");
    pod["metadata"]["namespace"] = elsewhere.name().into();
    let pod = created(&elsewhere, &pod).await;
    let token = elsewhere.token_of(&pod, "sandgate").await;
    let foreign = RouterPod::start(own, &pod, &token).await;
    elsewhere.runs_at(&pod, foreign.address).await;

    // The account without the labels.
    let mut unlabelled = installed.chart.router_pod(own, "unlabelled");
    unlabelled["metadata"]["labels"]["app.kubernetes.io/component"] = "other".into();
    let unlabelled = created(own, &unlabelled).await;
    let unlabelled = run(own, &unlabelled, &own.token_of(&unlabelled, "sandgate").await).await;

    // By the time that an honest one is enrolled, nobody has come to any of them, nor has a pod that isn't one been dialed.
    let honest = own.run_router(&installed.chart.router_pod(own, "honest")).await;
    honest.until_ready().await;
    replica
        .until_metric(&router_visits("refused", "router_account"), 2)
        .await;
    for (name, router) in [
        ("labelled", &labelled),
        ("foreign", &foreign),
        ("unlabelled", &unlabelled),
    ] {
        until_ready(router.health, NO_IDENTITY).await;
        assert!(!router.log().contains("handshake refused"), "{name}: {}", router.log());
    }
    assert_eq!(replica.metric(&router_visits("ok", "enrolled")).await, 1);
    replica.stop().await;
}

async fn a_routers_token_makes_no_gate(cluster: Cluster) {
    let (installed, replica) = Installed::start(&cluster, HOUR).await;
    let (own, team) = (installed.own(), &installed.team);
    let router = created(own, &installed.chart.router_pod(own, "router")).await;
    let stolen = own.token_of(&router, "sandgate").await;
    let gate = created(team, &sandbox_pod("gate")).await;
    let running = RunningGate::start(&gate, &stolen, new_address()).await;
    team.runs_at(&gate, running.address).await;
    replica.until_metric(&visits("refused", "token_account"), 1).await;
    until_ready(running.health(), NO_IDENTITY).await;

    // The same ServiceAccount's name in the sandbox's namespace proves nothing more.
    cluster.router_accounts(team).await;
    let mut pod = sandbox_pod("namesake");
    pod["spec"]["serviceAccountName"] = "sandbox-router".into();
    let pod = created(team, &pod).await;
    let namesake = RunningGate::start(&pod, &stolen, new_address()).await;
    team.runs_at(&pod, namesake.address).await;
    replica.until_metric(&visits("refused", "token_account"), 2).await;
    until("nobody was enrolled", async || {
        match replica.metric(&visits("ok", "enrolled")).await {
            0 => Ok(()),
            count => Err(count),
        }
    })
    .await;
    until_ready(namesake.health(), NO_IDENTITY).await;
    replica.stop().await;
}
