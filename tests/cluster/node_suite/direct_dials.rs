//! Nobody gets around a gate: an app's port is closed to other pods, by the injector's NetworkPolicy where policies are
//! enforced, and by lockdown where they are not.

use crate::install::{release, rolled_out};
use crate::network_policies::{Maker, until_policies_are_of};
use crate::pods::{
    APP_PORT, MESH_PORT, app, connects, start_pod, start_sandbox, stranger, team, until_answered, until_closed,
};
use sandgate_cluster_tests::processes::HeldStill;
use sandgate_cluster_tests::runner::{Test, caught};
use sandgate_cluster_tests::{Cluster, tests};

pub(crate) const TESTS: &[Test] = tests![
    @alone an_ordinary_pod_reaches_no_app_around_its_gate,
    @alone lockdown_closes_apps_where_nobody_enforces_policies,
];

async fn an_ordinary_pod_reaches_no_app_around_its_gate(cluster: Cluster) {
    let team = team(&cluster).await;
    let (elsewhere, stranger) = stranger(&cluster).await;
    // No template, so upstream has no policy for it.
    let pod = start_sandbox(&team, "plain").await;
    until_policies_are_of(&team, &[Maker::Injector]).await;
    // Beside it, and no sandbox: the injector's policy isn't about it.
    let open = start_pod(&team, "open", &app()).await;
    for port in [APP_PORT, MESH_PORT] {
        until_closed(&elsewhere, &stranger, &pod.ip, port).await;
    }
    assert!(connects(&elsewhere, &stranger, &open.ip, APP_PORT).await);
    until_answered(&team, "plain", &pod).await;
}

async fn lockdown_closes_apps_where_nobody_enforces_policies(cluster: Cluster) {
    // It makes no rule for pods that come now.
    let held = HeldStill::new("kube-router");
    let found = caught({
        let cluster = cluster.clone();
        async move { closed_by_lockdown(&cluster).await }
    });
    let found = found.await;
    // Whatever was found: other tests have the release as it was.
    drop(held);
    release(&["injection.lockdown=disabled"]).await;
    rolled_out(&cluster, "sandgate-injector").await;
    found.expect("what must be so without policies");
}

async fn closed_by_lockdown(cluster: &Cluster) {
    let team = team(cluster).await;
    let (elsewhere, stranger) = stranger(cluster).await;
    // Without lockdown the app can be reached: so it is lockdown, and nothing else, that closes it.
    let open = start_sandbox(&team, "open").await;
    assert!(
        connects(&elsewhere, &stranger, &open.ip, APP_PORT).await,
        "NetworkPolicies are enforced"
    );
    release(&["injection.lockdown=enabled"]).await;
    rolled_out(cluster, "sandgate-injector").await;
    let closed = start_sandbox(&team, "closed").await;
    assert!(!connects(&elsewhere, &stranger, &closed.ip, APP_PORT).await);
    assert!(connects(&elsewhere, &stranger, &closed.ip, MESH_PORT).await);
    until_answered(&team, "closed", &closed).await;
}
