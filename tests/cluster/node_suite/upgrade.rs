//! Pods of the shape that the release before injected, with gates that a kubelet runs as those releases wanted it.

use crate::install::{PATIENCE, release, rolled_out};
use crate::pods::{app, running, start_sandbox, stored, until_answered, until_ready};
use crate::rotation::SHORT_LIVED;
use sandgate_cluster_tests::chart::{Chart, OWN_NAMESPACE, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::former::Shape2;
use sandgate_cluster_tests::router_pod::ROOTS;
use sandgate_cluster_tests::runner::{Test, caught};
use sandgate_cluster_tests::upstream::sandbox;
use sandgate_cluster_tests::{Cluster, Namespace, tests, until_within};
use sandgate_tests::processes::metric;
use serde_json::{Value, json};
use std::net::IpAddr;

pub(crate) const TESTS: &[Test] = tests![@alone a_gate_of_the_shape_before_is_enrolled_and_renewed];

/// Where gates have their metrics.
const HEALTH_PORT: u16 = 14480;

async fn a_gate_of_the_shape_before_is_enrolled_and_renewed(cluster: Cluster) {
    release(&[SHORT_LIVED]).await;
    rolled_out(&cluster, "sandgate-injector").await;
    let found = caught({
        let cluster = cluster.clone();
        async move { goes_on(&cluster).await }
    });
    let found = found.await;
    // Whatever was found: other tests have the release as it was.
    release(&[]).await;
    rolled_out(&cluster, "sandgate-injector").await;
    found.expect("what must be so of a gate of the shape before");
}

async fn goes_on(cluster: &Cluster) {
    // Nobody is asked about its pods yet: upstream's controller makes one as the release before left it.
    let team = cluster.namespace(&[]).await;
    let mut owner = sandbox("before", &app());
    let (chart, roots) = (Chart::render(&[]), published_roots(cluster).await);
    let before = Shape2 {
        own_namespace: OWN_NAMESPACE,
        image: chart.config().settings.image.as_str(),
        roots: &roots,
    };
    let template = &mut owner["spec"]["podTemplate"];
    *template = before.injected(template);
    team.admitted(&owner).await;
    until_within(PATIENCE, "its app runs behind a gate that has nothing", async || {
        let pod = stored(&team, "before").await.ok_or(Value::Null)?;
        assert!(running(&pod).is_none(), "ready without an identity");
        let started = &pod["status"]["containerStatuses"][0]["started"];
        (started == true).then_some(()).ok_or(pod["status"].clone())
    })
    .await;

    let label = json!({"metadata": {"labels": {"sandgate.dev/inject": "enabled"}}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team.name()}});
    cluster.merge(&namespace, &label).await.unwrap();
    let pod = until_ready(&team, "before").await;
    assert_eq!(shape(&team, "before").await, "2");
    until_answered(&team, "before", &pod).await;
    let health = (pod.ip.parse::<IpAddr>().unwrap(), HEALTH_PORT).into();
    until_within(PATIENCE, "it is renewed twice", async || {
        let accepted = "sandgate_sidecar_enrolments_total{outcome=\"accepted\"}";
        match metric(health, accepted).await {
            Some(count) if count.parse::<u32>().unwrap() >= 3 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    until_answered(&team, "before", &pod).await;

    team.until_admitted(&sandbox_pod("until"), has_gate).await;
    let new = start_sandbox(&team, "new").await;
    assert_eq!(shape(&team, "new").await, "3");
    until_answered(&team, "new", &new).await;
}

/// The roots as they are published in the injector's namespace.
async fn published_roots(cluster: &Cluster) -> String {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOTS, "namespace": OWN_NAMESPACE}});
    let found = cluster.get(&map).await.unwrap();
    found["data"]["ca.crt"].as_str().unwrap().to_owned()
}

async fn shape(team: &Namespace, pod: &str) -> Value {
    stored(team, pod).await.unwrap()["metadata"]["annotations"]["sandgate.dev/shape"].clone()
}
