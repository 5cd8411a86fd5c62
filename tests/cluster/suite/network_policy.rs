//! The NetworkPolicy of each opted-in namespace, and what others open beside it.

use sandgate_cluster_tests::chart::Chart;
use sandgate_cluster_tests::injector::{Replica, System};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use serde_json::{Value, json};

// The injector looks after every namespace of the cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone a_policy_comes_with_the_label_and_goes_with_it,
    @alone a_policy_that_somebody_deletes_or_changes_is_repaired_and_reported_once,
    @alone what_others_open_beside_it_is_reported_until_they_close_it,
    @alone excluded_namespaces_and_policies_of_others_are_left_alone,
    @alone switched_off_the_policies_go,
    @alone policies_belong_to_the_webhook_configuration,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
const OPENINGS: &str = "sandgate_injector_network_policy_openings";

fn changes(action: &str) -> String {
    format!("sandgate_injector_network_policy_changes_total{{action=\"{action}\"}}")
}

fn policy(namespace: &Namespace, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace.name()},
        "spec": spec,
    })
}

fn ours(namespace: &Namespace) -> Value {
    policy(namespace, "sandgate-gate", &json!({}))
}

/// Our policy once it is as expected.
pub(crate) async fn until_ours(namespace: &Namespace, expected: impl Fn(&Value) -> bool) -> Value {
    until("the policy is as expected", async || {
        match namespace.cluster().get(&ours(namespace)).await {
            Ok(found) if expected(&found) => Ok(found),
            other => Err(other),
        }
    })
    .await
}

async fn until_gone(namespace: &Namespace) {
    until("the policy is gone", async || {
        match namespace.cluster().get(&ours(namespace)).await {
            Err(status) if status.is_not_found() => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

pub(crate) fn admits_the_gates_ports_only(found: &Value) -> bool {
    let ingress = found["spec"]["ingress"].as_array().unwrap();
    let ports: Vec<_> = ingress
        .iter()
        .flat_map(|rule| rule["ports"].as_array().unwrap())
        .map(|port| port["port"].clone())
        .collect();
    ports == [json!(14443), json!(14480)] && found["spec"]["policyTypes"] == json!(["Ingress"])
}

async fn label(namespace: &Namespace, value: Value) {
    let found = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name()}});
    let change = json!({"metadata": {"labels": {"sandgate.dev/inject": value}}});
    namespace.cluster().merge(&found, &change).await.unwrap();
}

/// The Events about a NetworkPolicy with this reason.
async fn events(namespace: &Namespace, reason: &str) -> Vec<Value> {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace.name());
    let answer = namespace
        .cluster()
        .send(http::Request::get(path).body(Vec::new()).unwrap())
        .await
        .unwrap();
    let events = answer["items"].as_array().unwrap().iter();
    events
        .filter(|event| event["reason"] == reason && event["regarding"]["kind"] == "NetworkPolicy")
        .cloned()
        .collect()
}

async fn until_event(namespace: &Namespace, reason: &str) -> Value {
    until("there is an Event", async || {
        events(namespace, reason).await.pop().ok_or("there is none")
    })
    .await
}

/// Returns when a replica knows of nothing that others open.
async fn until_closed(replica: &Replica) {
    until("nothing is open any more", async || {
        match replica.metric(OPENINGS).await {
            0 => Ok(()),
            open => Err(open),
        }
    })
    .await;
}

/// With the configurations that the policies belong to. Nothing here creates pods, so they lead nowhere.
async fn running(cluster: &Cluster) -> (System, Replica) {
    let (system, chart) = (System::install(cluster).await, Chart::render(&[]));
    system.configure(&chart, 1).await;
    let replica = system.start(&chart, |_, _| {});
    (system, replica)
}

async fn a_policy_comes_with_the_label_and_goes_with_it(cluster: Cluster) {
    let before = cluster.namespace(OPTED_IN).await;
    let (system, replica) = running(&cluster).await;
    let later = cluster.namespace(&[]).await;
    let found = until_ours(&before, admits_the_gates_ports_only).await;
    assert_eq!(
        found["spec"]["podSelector"],
        json!({"matchLabels": {"sandgate.dev/injected": "true"}})
    );
    let from = &found["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"];
    assert_eq!(*from, json!({"kubernetes.io/metadata.name": system.namespace.name()}));
    assert!(
        found["spec"]["ingress"][1].get("from").is_none(),
        "probes and scrapers have no label: {found}"
    );
    label(&later, "enabled".into()).await;
    until_ours(&later, admits_the_gates_ports_only).await;
    label(&later, Value::Null).await;
    until_gone(&later).await;
    replica.until_metric(&changes("removed"), 1).await;
    assert!(cluster.get(&ours(&before)).await.is_ok());
}

async fn a_policy_that_somebody_deletes_or_changes_is_repaired_and_reported_once(cluster: Cluster) {
    let namespace = cluster.namespace(OPTED_IN).await;
    let (system, first) = running(&cluster).await;
    let second = system.start(&Chart::render(&[]), |_, _| {});
    let replicas = [&first, &second];
    let created = until_ours(&namespace, admits_the_gates_ports_only).await;
    // Whoever reports an opening has seen everything that came before it.
    let open = policy(&namespace, "open", &json!({"podSelector": {}, "ingress": [{}]}));
    let all_seen = async || {
        cluster.create(&open).await.unwrap();
        for replica in replicas {
            replica.until_metric(OPENINGS, 1).await;
        }
        cluster.delete(&open).await.unwrap();
        for replica in replicas {
            until_closed(replica).await;
        }
    };
    let sum = async |action: &str| first.metric(&changes(action)).await + second.metric(&changes(action)).await;
    all_seen().await;

    cluster.delete(&ours(&namespace)).await.unwrap();
    let again = until_ours(&namespace, admits_the_gates_ports_only).await;
    assert_ne!(again["metadata"]["uid"], created["metadata"]["uid"]);
    all_seen().await;
    assert_eq!(sum("repaired").await, 1);
    let event = until_event(&namespace, "GateNetworkPolicyRepaired").await;
    assert!(
        event["note"].as_str().unwrap().contains("somebody deleted it"),
        "{event}"
    );

    let opened = json!({"metadata": {"annotations": {"a.example/b": "c"}}, "spec": {"ingress": [{}], "policyTypes": ["Ingress", "Egress"], "egress": []}});
    cluster.merge(&ours(&namespace), &opened).await.unwrap();
    let again = until_ours(&namespace, |found| found["spec"] == created["spec"]).await;
    assert_eq!(
        again["metadata"]["annotations"],
        json!({"a.example/b": "c"}),
        "what others noted stays"
    );
    all_seen().await;
    assert_eq!((sum("created").await, sum("repaired").await), (1, 2));
}

async fn what_others_open_beside_it_is_reported_until_they_close_it(cluster: Cluster) {
    let namespace = cluster.namespace(OPTED_IN).await;
    let (_system, replica) = running(&cluster).await;
    let upstreams = json!({"podSelector": {}, "ingress": [{"from": [{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agent-sandbox-system"}},
        "podSelector": {"matchLabels": {"app": "sandbox-router"}},
    }]}]});
    cluster
        .create(&policy(&namespace, "upstreams", &upstreams))
        .await
        .unwrap();
    let open = policy(
        &namespace,
        "open",
        &json!({"podSelector": {}, "ingress": [{"ports": [{"port": 8888}]}]}),
    );
    cluster.create(&open).await.unwrap();
    replica.until_metric(OPENINGS, 1).await;
    let event = until_event(&namespace, "NetworkPolicyOpensSandboxes").await;
    let told = (&event["regarding"]["name"], &event["type"]);
    assert_eq!(told, (&json!("open"), &json!("Warning")), "{event}");
    assert!(
        event["note"]
            .as_str()
            .unwrap()
            .contains("spec.ingress[0] opens TCP port 8888"),
        "{event}"
    );
    cluster
        .merge(&open, &json!({"spec": {"ingress": [{"ports": [{"port": 14443}]}]}}))
        .await
        .unwrap();
    until_closed(&replica).await;
    assert_eq!(events(&namespace, "NetworkPolicyOpensSandboxes").await.len(), 1);
    let elsewhere = cluster.namespace(&[]).await;
    cluster
        .create(&policy(
            &elsewhere,
            "open",
            &json!({"podSelector": {}, "ingress": [{}]}),
        ))
        .await
        .unwrap();
    label(&elsewhere, "enabled".into()).await;
    replica.until_metric(OPENINGS, 1).await;
    label(&elsewhere, Value::Null).await;
    until_closed(&replica).await;
}

async fn excluded_namespaces_and_policies_of_others_are_left_alone(cluster: Cluster) {
    let (plain, opted_in) = (cluster.namespace(&[]).await, cluster.namespace(OPTED_IN).await);
    let theirs = policy(
        &plain,
        "sandgate-gate",
        &json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
    );
    let theirs = cluster.create(&theirs).await.unwrap();
    let (system, _replica) = running(&cluster).await;
    label(&system.namespace, "enabled".into()).await;
    until_ours(&opted_in, admits_the_gates_ports_only).await;
    // In the order of their names, so the one that is last was looked at when the other was.
    let last = cluster.namespace(OPTED_IN).await;
    until_ours(&last, admits_the_gates_ports_only).await;
    let found = cluster.get(&theirs).await.unwrap();
    assert_eq!(
        found["metadata"]["resourceVersion"],
        theirs["metadata"]["resourceVersion"]
    );
    assert!(cluster.get(&ours(&system.namespace)).await.unwrap_err().is_not_found());
}

async fn switched_off_the_policies_go(cluster: Cluster) {
    let namespace = cluster.namespace(OPTED_IN).await;
    let (system, replica) = running(&cluster).await;
    until_ours(&namespace, admits_the_gates_ports_only).await;
    replica.stop().await;
    let _off = system.start(&Chart::render(&["injection.networkPolicy=false"]), |_, _| {});
    until_gone(&namespace).await;
}

/// Where a garbage collector runs, uninstalling leaves none behind.
async fn policies_belong_to_the_webhook_configuration(cluster: Cluster) {
    let namespace = cluster.namespace(OPTED_IN).await;
    let (_system, replica) = running(&cluster).await;
    until_ours(&namespace, |found| found["metadata"].get("ownerReferences").is_some()).await;
    let orphan = json!({"metadata": {"ownerReferences": null}});
    cluster.merge(&ours(&namespace), &orphan).await.unwrap();
    let found = until_ours(&namespace, |found| found["metadata"].get("ownerReferences").is_some()).await;
    // What comes after its own change has been looked at, and there was nothing more to change.
    cluster
        .create(&policy(
            &namespace,
            "open",
            &json!({"podSelector": {}, "ingress": [{}]}),
        ))
        .await
        .unwrap();
    replica.until_metric(OPENINGS, 1).await;
    let again = cluster.get(&ours(&namespace)).await.unwrap();
    assert_eq!(
        again["metadata"]["resourceVersion"],
        found["metadata"]["resourceVersion"]
    );
    let owner = &found["metadata"]["ownerReferences"];
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "sandgate-injector"},
    });
    let configuration = cluster.get(&configuration).await.unwrap();
    assert_eq!(owner.as_array().unwrap().len(), 1, "{owner}");
    assert_eq!(owner[0]["uid"], configuration["metadata"]["uid"]);
    assert!(
        owner[0].get("controller").is_none() && owner[0].get("blockOwnerDeletion").is_none(),
        "{owner}"
    );
}
