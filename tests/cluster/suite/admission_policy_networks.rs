//! `NetworkPolicies` of opted-in namespaces, judged by the API server: they add up, so one that opens another port of a
//! gated pod is a way around its gate.

use sandgate_cluster_tests::chart::Chart;
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    no_policy_opens_another_port_of_a_gated_pod,
    policies_that_open_nothing_beside_the_gate_pass,
    named_exceptions_and_users_pass,
    policies_from_before_the_label_stay_free_to_go,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
const SENTENCE: &str = "spec.ingress: it opens ports of gated pods beside their gates";

#[expect(clippy::needless_pass_by_value, reason = "made where it is passed")]
fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})
}

#[expect(clippy::needless_pass_by_value, reason = "made where it is passed")]
fn selecting(selector: Value, ingress: Value) -> Value {
    json!({"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress})
}

/// Rules that open more than a gate's ports.
fn opening() -> Vec<Value> {
    let from = |namespace: &str, labels: Value| {
        json!([{"from": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "podSelector": {"matchLabels": labels},
        }]}])
    };
    vec![
        json!([{}]),
        json!([{"from": [{"podSelector": {}}]}]),
        json!([{"ports": [{"port": 8888}]}]),
        json!([{"ports": [{"port": 14443}, {"port": 8888}]}]),
        json!([{"ports": [{"port": 14443}]}, {"ports": [{"port": 8888}]}]),
        json!([{"ports": [{"port": "http"}]}]),
        json!([{"ports": [{"port": 14443, "protocol": "UDP"}]}]),
        json!([{"ports": [{"protocol": "TCP"}]}]),
        json!([{"ports": [{"port": 14443, "endPort": 14480}]}]),
        json!([{"ports": [{"port": 1, "endPort": 65535}]}]),
        from("elsewhere", json!({"app": "sandbox-router"})),
        from("agent-sandbox-system", json!({"app": "another"})),
        from(
            "agent-sandbox-system",
            json!({"app.kubernetes.io/name": "sandgate", "app.kubernetes.io/component": "injector"}),
        ),
        json!([{"from": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agent-sandbox-system"}}, "podSelector": {"matchLabels": {"app": "sandbox-router"}}},
            {"ipBlock": {"cidr": "10.0.0.0/8"}},
        ]}]),
        json!([{"from": [{"podSelector": {"matchLabels": {"app": "sandbox-router"}}}]}]),
        json!([{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "sandbox-router"}}}]}]),
        json!([{"from": []}]),
    ]
}

async fn refused(namespace: &Namespace, policy: &Value) {
    let reason = namespace.refused(policy).await;
    assert!(reason.contains(SENTENCE), "{policy}: {reason}");
}

async fn no_policy_opens_another_port_of_a_gated_pod(cluster: Cluster) {
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&Chart::render(&[])).await;
    for rules in opening() {
        refused(&namespace, &policy("open", selecting(json!({}), rules))).await;
    }
    // Whatever it selects by: any label may be on a gated pod.
    for selector in [
        json!({"matchLabels": {"app": "x"}}),
        json!({"matchLabels": {"sandgate.dev/injected": "true"}}),
        json!({"matchExpressions": [{"key": "sandgate.dev/injected", "operator": "Exists"}]}),
        json!({"matchExpressions": [{"key": "sandgate.dev/injected", "operator": "In", "values": ["true", "x"]}]}),
        json!({"matchExpressions": [{"key": "sandgate.dev/injected", "operator": "NotIn", "values": ["x"]}]}),
        json!({"matchExpressions": [{"key": "other", "operator": "DoesNotExist"}]}),
    ] {
        refused(&namespace, &policy("open", selecting(selector, json!([{}])))).await;
    }
    // A change counts as much as a creation.
    let closed = namespace
        .admitted(&policy("closed", selecting(json!({}), json!([]))))
        .await;
    let change = json!({"spec": {"ingress": [{}]}});
    let status = cluster.merge(&closed, &change).await.unwrap_err();
    assert!(status.message.contains(SENTENCE), "{status}");
    cluster
        .namespace(&[])
        .await
        .admitted(&policy("open", selecting(json!({}), json!([{}]))))
        .await;
}

async fn policies_that_open_nothing_beside_the_gate_pass(cluster: Cluster) {
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&Chart::render(&[])).await;
    let router = |labels: Value| {
        json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agent-sandbox-system"}},
            "podSelector": {"matchLabels": labels},
        })
    };
    let upstreams = router(json!({"app": "sandbox-router"}));
    let ours = router(json!({"app.kubernetes.io/name": "sandgate", "app.kubernetes.io/component": "router"}));
    let excluded = |operator: &str, values: Value| {
        let mut expression = json!({"key": "sandgate.dev/injected", "operator": operator});
        json_patch::merge(&mut expression, &json!({"values": values}));
        selecting(json!({"matchExpressions": [expression]}), json!([{}]))
    };
    let specs = [
        selecting(json!({}), json!([])),
        selecting(
            json!({}),
            json!([{"ports": [{"port": 14443}, {"port": 14480, "protocol": "TCP"}]}]),
        ),
        selecting(
            json!({}),
            json!([{"ports": [{"port": "sandgate-mesh"}, {"port": "sandgate-health"}]}]),
        ),
        selecting(json!({}), json!([{"ports": [{"port": 14443, "endPort": 14443}]}])),
        selecting(
            json!({"matchLabels": {"agents.x-k8s.io/sandbox-template-ref-hash": "x"}}),
            json!([{"from": [upstreams]}]),
        ),
        selecting(json!({}), json!([{"from": [upstreams, ours]}])),
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}),
        excluded("DoesNotExist", Value::Null),
        excluded("NotIn", json!(["true"])),
        excluded("In", json!(["false"])),
        selecting(json!({"matchLabels": {"sandgate.dev/injected": "false"}}), json!([{}])),
    ];
    for (index, spec) in specs.into_iter().enumerate() {
        let stored = namespace.admitted(&policy(&format!("good-{index}"), spec)).await;
        cluster
            .merge(&stored, &json!({"metadata": {"labels": {"a": "b"}}}))
            .await
            .unwrap();
    }
}

async fn named_exceptions_and_users_pass(cluster: Cluster) {
    let namespace = cluster.namespace(OPTED_IN).await;
    let chart = Chart::render(&[
        "admissionPolicy.networkPolicies.exceptions={monitoring,backup}",
        "admissionPolicy.networkPolicies.allowedUsers={network-team,o'brien@example.com}",
    ]);
    namespace.judged_by(&chart).await;
    let open = |name: &str| policy(name, selecting(json!({}), json!([{}])));
    namespace.admitted(&open("monitoring")).await;
    namespace.admitted(&open("backup")).await;
    refused(&namespace, &open("monitoring-too")).await;
    let team = namespace.seen_by(&cluster.impersonating("network-team", &["system:masters"]));
    let stored = team.admitted(&open("by-the-team")).await;
    let change = json!({"spec": {"ingress": [{"ports": [{"port": 1}]}]}});
    let status = cluster.merge(&stored, &change).await.unwrap_err();
    assert!(status.message.contains(SENTENCE), "{status}");
    team.cluster().merge(&stored, &change).await.unwrap();
    // Users are named by whoever names them.
    let named = namespace.seen_by(&cluster.impersonating("o'brien@example.com", &["system:masters"]));
    named.admitted(&open("by-a-name-with-an-apostrophe")).await;
    let other = namespace.seen_by(&cluster.impersonating("network-teams", &["system:masters", "network-team"]));
    refused(&other, &open("by-another")).await;
}

async fn policies_from_before_the_label_stay_free_to_go(cluster: Cluster) {
    let namespace = cluster.namespace(&[]).await;
    let mut held = policy("open", selecting(json!({}), json!([{}])));
    held["metadata"]["finalizers"] = json!(["example.dev/keep"]);
    let stored = namespace.admitted(&held).await;
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name()}});
    cluster
        .merge(
            &object,
            &json!({"metadata": {"labels": {"sandgate.dev/inject": "enabled"}}}),
        )
        .await
        .unwrap();
    namespace.judged_by(&Chart::render(&[])).await;
    cluster
        .merge(&stored, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .unwrap();
    let status = cluster
        .merge(&stored, &json!({"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}))
        .await
        .unwrap_err();
    assert!(status.message.contains(SENTENCE), "{status}");
    cluster.delete(&stored).await.unwrap();
    cluster
        .merge(&stored, &json!({"metadata": {"finalizers": null}}))
        .await
        .unwrap();
}
