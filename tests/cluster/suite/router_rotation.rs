//! The root is replaced where routers are enrolled: what they show and whom they believe follows each step, no step goes on
//! without them, and no request fails.

use crate::injector::{base64, ca_bundles};
use crate::root_stage::{Stage, load};
use crate::router_enrolment::{Installed, asking, router_visits};
use sandbox_injector::authority::Root;
use sandgate_cluster_tests::router::PodApp;
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, tests, until};
use sandgate_mesh::control::{ENROLMENT_PATH, bundle_digest};
use sandgate_tests::control::{ControlPlane, get};
use sandgate_tests::processes::until_ready;
use std::time::Duration;

// Webhook configurations are for the whole cluster, and so is the watch of pods.
pub(crate) const TESTS: &[Test] = tests![
    @alone an_enrolled_router_follows_each_step_under_load_and_none_goes_on_without_it,
];

/// Returns when the router shows a leaf under this root and believes these roots, and no others.
async fn until_follows(control: &ControlPlane, under: &str, believed: &str) {
    let root = Root::from_pem(under.as_bytes()).unwrap();
    let believed = bundle_digest(believed).unwrap();
    until("the router has followed", async || {
        let follows = root.has_signed(&control.shown().await.into());
        let enrolment = control.enrolment().await;
        let is_right = follows && enrolment.bundle_digest.as_ref() == Some(&believed);
        is_right.then_some(()).ok_or((follows, enrolment))
    })
    .await;
}

async fn an_enrolled_router_follows_each_step_under_load_and_none_goes_on_without_it(cluster: Cluster) {
    let (installed, replica) = Installed::start(&cluster, Duration::from_secs(3600)).await;
    installed.until_published("the root is published", |_| true).await;
    let Installed { system, team, chart } = installed;
    let stage = Stage { system, team, chart };
    let (own, team) = (&stage.system.namespace, stage.team.name());
    let router = own.run_router(&stage.chart.router_pod(own, "sandbox-router-1")).await;
    router.until_ready().await;
    let gone = own.run_router(&stage.chart.router_pod(own, "sandbox-router-2")).await;
    gone.until_ready().await;
    replica.until_metric(&router_visits("ok", "enrolled"), 2).await;
    let gone_pod = gone.pod.clone();
    drop(gone);
    let app = PodApp::start("127.0.0.1", "hello").await;
    let (alpha, alpha_gate) = stage.served("alpha", app.port()).await;
    router.until_answered(200, team, "alpha", app.port()).await;
    let mut to_alpha = load(router.http, team, "alpha", app.port());
    to_alpha.goes_on().await;
    let old = stage.signs().await;
    let control = asking(&stage.system, &router, &old);
    until_follows(&control, &old[0], &old[0]).await;

    stage.root(&["rotate"]).await;
    let new = [stage.stored("next.crt").await, stage.stored("next.key").await].map(Option::unwrap);
    let both = format!("{}{}", old[0], new[0]);
    until_follows(&control, &old[0], &both).await;
    // Nobody has to say a word, and no word stands for a router that can't be asked.
    let told = stage.until_waits_for("distribute", &["routers"]).await;
    assert!(
        told.contains("/sandbox-router-2\n") && !told.contains("/sandbox-router-1\n"),
        "{told}"
    );
    stage.until_given(2).await;
    let (_beta, beta_gate) = stage.served("beta", app.port()).await;
    router.until_answered(200, team, "beta", app.port()).await;
    let mut to_beta = load(router.http, team, "beta", app.port());
    to_beta.goes_on().await;
    cluster.delete(&gone_pod).await.unwrap();

    until_follows(&control, &new[0], &both).await;
    stage.until_waits_for("switch", &["pods"]).await;
    to_alpha.goes_on().await;
    to_beta.goes_on().await;
    let alphas = to_alpha.answered();
    to_alpha.stop().await;
    cluster.delete(&alpha).await.unwrap();
    drop(alpha_gate);

    stage.until_step("done").await;
    until_follows(&asking(&stage.system, &router, &new), &new[0], &new[0]).await;
    to_beta.goes_on().await;
    let betas = to_beta.answered();
    to_beta.stop().await;
    note(&format!(
        "a whole replacement of the root with an enrolled router: {alphas} and {betas} requests answered, 0 failed"
    ));
    assert_eq!(
        replica.metric(&router_visits("ok", "enrolled")).await,
        2,
        "nobody had to begin anew"
    );
    until_ready(beta_gate.health(), (200, "ok")).await;
    let root = base64(&new[0]);
    assert_eq!(ca_bundles(&cluster).await, [root.as_str(), &root]);
    // Whoever has the old key is no control plane of the router's any more.
    let answer = control.send(get(ENROLMENT_PATH)).await;
    assert_eq!(answer, "");
    replica.stop().await;
}
