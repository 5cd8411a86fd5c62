//! Each `NetworkPolicy` is in force, with the kernel's rules, and everything works under them: upstream's managed one and the
//! injector's, each alone and both together. Each refusal has beside it the same connection that isn't refused, so that none is
//! for want of a network, or due to another policy.

use crate::pods::{
    APP_PORT, MESH_PORT, Running, app, connects, start_pod, start_sandbox, stranger, team, until_answered, until_closed,
};
use crate::sandboxes::{claimed, warm_pool};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use serde_json::Value;
use std::collections::BTreeSet;

pub(crate) const TESTS: &[Test] = tests![
    @alone upstreams_policy_alone_closes_a_pool_s_pod_both_ways,
    @alone a_stranger_reaches_no_port_of_a_pool_s_pod,
    @alone a_pool_s_pod_reaches_nothing_in_the_cluster,
];

/// Who has made a `NetworkPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Maker {
    /// The injector, for gated pods.
    Injector,
    /// Upstream's controller, for a template's pods.
    Upstream,
    Another,
}

impl Maker {
    fn of(policy: &Value) -> Self {
        let owners = policy["metadata"]["ownerReferences"].as_array();
        let is_template = |owner: &Value| owner["kind"] == "SandboxTemplate";
        if owners.is_some_and(|owners| owners.iter().any(is_template)) {
            Self::Upstream
        } else if policy["metadata"]["name"] == "sandgate-gate" {
            Self::Injector
        } else {
            Self::Another
        }
    }
}

/// Returns when a namespace has a `NetworkPolicy` of each of these, and of nobody else.
pub(crate) async fn until_policies_are_of(team: &Namespace, makers: &[Maker]) {
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies", team.name());
    let expected: BTreeSet<_> = makers.iter().copied().collect();
    until(&format!("there are NetworkPolicies of {makers:?}"), async || {
        let request = http::Request::get(&path).body(Vec::new()).unwrap();
        let list = team.cluster().send(request).await.unwrap();
        let found: BTreeSet<_> = list["items"].as_array().unwrap().iter().map(Maker::of).collect();
        (found == expected).then_some(()).ok_or(found)
    })
    .await;
}

/// The API server's Service.
const API_SERVER: (&str, u16) = ("10.96.0.1", 443);

/// Returns when this pod has no connection to another pod nor to the API server, which both answer this stranger.
async fn until_confined(
    team: &Namespace,
    pod: &Running,
    (elsewhere, stranger): (&Namespace, &Running),
    open: &Running,
) {
    for (ip, port) in [(open.ip.as_str(), APP_PORT), API_SERVER] {
        until_closed(team, pod, ip, port).await;
        assert!(
            connects(elsewhere, stranger, ip, port).await,
            "{ip}:{port} answers nobody"
        );
    }
}

/// In a namespace that hasn't opted in, so that nothing of ours is there.
async fn upstreams_policy_alone_closes_a_pool_s_pod_both_ways(cluster: Cluster) {
    let plain = cluster.namespace(&[]).await;
    warm_pool(&plain, &app(), 1).await;
    until_policies_are_of(&plain, &[Maker::Upstream]).await;
    let (elsewhere, stranger) = stranger(&cluster).await;
    let open = start_pod(&elsewhere, "open", &app()).await;
    // Beside the pool, and not of it: the policy isn't about it.
    let beside = start_pod(&plain, "beside", &app()).await;
    let (pod, _) = claimed(&plain, "claim").await;
    until_closed(&elsewhere, &stranger, &pod.ip, APP_PORT).await;
    assert!(connects(&elsewhere, &stranger, &beside.ip, APP_PORT).await);
    until_confined(&plain, &pod, (&elsewhere, &stranger), &open).await;
    assert!(connects(&plain, &beside, &open.ip, APP_PORT).await);
    until_policies_are_of(&plain, &[Maker::Upstream]).await;
}

async fn a_stranger_reaches_no_port_of_a_pool_s_pod(cluster: Cluster) {
    let team = team(&cluster).await;
    warm_pool(&team, &app(), 1).await;
    until_policies_are_of(&team, &[Maker::Injector, Maker::Upstream]).await;
    let (elsewhere, stranger) = stranger(&cluster).await;
    let open = start_pod(&elsewhere, "open", &app()).await;
    let (pod, _) = claimed(&team, "claim").await;
    for port in [APP_PORT, MESH_PORT] {
        until_closed(&elsewhere, &stranger, &pod.ip, port).await;
    }
    assert!(connects(&elsewhere, &stranger, &open.ip, APP_PORT).await);
    until_answered(&team, &pod.name, &pod).await;
}

async fn a_pool_s_pod_reaches_nothing_in_the_cluster(cluster: Cluster) {
    let team = team(&cluster).await;
    warm_pool(&team, &app(), 1).await;
    until_policies_are_of(&team, &[Maker::Injector, Maker::Upstream]).await;
    let (elsewhere, stranger) = stranger(&cluster).await;
    let open = start_pod(&elsewhere, "open", &app()).await;
    // No template, so upstream's policy isn't about it, and ours says nothing of what a pod may reach.
    let free = start_sandbox(&team, "free").await;
    let (pod, _) = claimed(&team, "claim").await;
    until_confined(&team, &pod, (&elsewhere, &stranger), &open).await;
    assert!(connects(&team, &free, &open.ip, APP_PORT).await);
    // So no gate could have asked for its identity; it was brought.
    until_answered(&team, &pod.name, &pod).await;
}
