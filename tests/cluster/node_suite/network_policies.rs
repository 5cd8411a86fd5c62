//! Upstream's managed NetworkPolicy is in force, with the kernel's rules, and everything works under it. Each refusal has
//! beside it the same connection that isn't refused, so that none is for want of a network.

use crate::pods::{APP_PORT, MESH_PORT, app, connects, start_pod, stranger, team, until_answered, until_closed};
use crate::sandboxes::{claimed, warm_pool};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use serde_json::Value;

pub(crate) const TESTS: &[Test] = tests![
    @alone a_stranger_reaches_no_port_of_a_pool_s_pod,
    @alone a_pool_s_pod_reaches_nothing_in_the_cluster,
];

/// The policy that upstream's controller has made for the template.
async fn managed_policy(team: &Namespace) -> Value {
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies", team.name());
    until("upstream's controller has made its NetworkPolicy", async || {
        let request = http::Request::get(&path).body(Vec::new()).unwrap();
        let list = team.cluster().send(request).await.unwrap();
        let found = list["items"].as_array().unwrap().iter().find(|policy| {
            let owners = policy["metadata"]["ownerReferences"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            owners.iter().any(|owner| owner["kind"] == "SandboxTemplate")
        });
        found.cloned().ok_or(list["items"].clone())
    })
    .await
}

async fn a_stranger_reaches_no_port_of_a_pool_s_pod(cluster: Cluster) {
    let team = team(&cluster).await;
    warm_pool(&team, &app(), 1).await;
    managed_policy(&team).await;
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
    managed_policy(&team).await;
    let (elsewhere, stranger) = stranger(&cluster).await;
    let open = start_pod(&elsewhere, "open", &app()).await;
    let (pod, _) = claimed(&team, "claim").await;
    let api_server = "10.96.0.1";
    for (ip, port) in [(open.ip.as_str(), APP_PORT), (api_server, 443)] {
        until_closed(&team, &pod, ip, port).await;
        assert!(
            connects(&elsewhere, &stranger, ip, port).await,
            "{ip}:{port} answers nobody"
        );
    }
    // So no gate could have asked for its identity; it was brought.
    until_answered(&team, &pod.name, &pod).await;
}
