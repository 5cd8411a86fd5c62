//! Ways into a pod that no network rule sees: exec, attach, port-forward and proxy. Admission comes before the connection,
//! so refusals show although no node runs the pod; what is let through ends with the pod's lack of a host.

use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    nobody_gets_into_a_gate,
    nobody_goes_around_a_gate_where_connections_are_restricted,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
const INTO_THE_GATE: &str = "nobody gets into the gate's container";
const RESTRICTED: &str = "lead past the gates and are closed in this namespace";

async fn pod(namespace: &Namespace, chart: &Chart) -> Value {
    namespace.admitted(&chart.injected(&sandbox_pod("sandbox"))).await
}

/// Admission had nothing against it.
fn was_let_through(reason: &str) -> bool {
    !reason.contains("ValidatingAdmissionPolicy") && !reason.contains("forbidden")
}

async fn nobody_gets_into_a_gate(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let pod = pod(&namespace, &chart).await;
    for how in ["exec", "attach"] {
        for gate in ["sandgate", "sandgate-lockdown"] {
            let reason = namespace
                .connect(&pod, how, &format!("container={gate}&command=id"))
                .await;
            assert!(reason.contains(INTO_THE_GATE), "{how}: {reason}");
        }
        for query in ["container=app&command=id", "command=id"] {
            let reason = namespace.connect(&pod, how, query).await;
            assert!(was_let_through(&reason), "{how}: {reason}");
        }
    }
    let reason = namespace.connect(&pod, "portforward", "ports=8888").await;
    assert!(was_let_through(&reason), "{reason}");
    let elsewhere = cluster.namespace(&[]).await;
    let other = elsewhere.admitted(&chart.injected(&sandbox_pod("sandbox"))).await;
    let reason = elsewhere.connect(&other, "exec", "container=sandgate&command=id").await;
    assert!(was_let_through(&reason), "{reason}");
}

async fn nobody_goes_around_a_gate_where_connections_are_restricted(cluster: Cluster) {
    let chart = Chart::render(&["injection.restrictConnect=true"]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let pod = pod(&namespace, &chart).await;
    for (how, query) in [
        ("exec", "container=app&command=id"),
        ("exec", "command=id"),
        ("attach", "container=app"),
        ("portforward", "ports=8888"),
        ("proxy", ""),
        ("proxy/run", ""),
    ] {
        let reason = namespace.connect(&pod, how, query).await;
        assert!(reason.contains(RESTRICTED), "{how}: {reason}");
    }
    let reason = namespace.connect(&pod, "exec", "container=sandgate&command=id").await;
    assert!(reason.contains(INTO_THE_GATE), "{reason}");
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "app"}, "spec": {"ports": [{"port": 80}]}});
    namespace.admitted(&service).await;
    let path = format!("/api/v1/namespaces/{}/services/app/proxy/", namespace.name());
    let through = cluster
        .send(http::Request::get(path).body(Vec::new()).unwrap())
        .await
        .unwrap_err();
    assert!(through.message.contains(RESTRICTED), "{through}");
}
