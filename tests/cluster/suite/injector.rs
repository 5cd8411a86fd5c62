//! The injector's life: certificates, the caBundle, replicas that come and go, and a loop of creations that notices none
//! of it.

use sandbox_injector::authority::NewRoot;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::{Creations, has_gate};
use sandgate_cluster_tests::injector::{Replica, System};
use sandgate_cluster_tests::service::Service;
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::webhook::StubWebhook;
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, runner::note, tests, until};
use serde_json::{Value, json};
use std::time::Duration;

// Webhook configurations are for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone sandboxes_of_opted_in_namespaces_get_gates_and_no_other_pod_changes_by_a_byte,
    @alone while_no_injector_answers_opted_in_namespaces_get_no_pods_and_others_do,
    @alone two_replicas_that_start_at_once_share_one_root,
    @alone replicas_come_and_go_and_no_creation_fails,
    @alone certificates_are_renewed_and_no_creation_fails,
    @alone a_new_root_takes_over_and_no_creation_fails,
    @alone a_deleted_root_secret_comes_back_as_it_was,
    @alone certificates_of_others_in_the_ca_bundle_go_and_no_creation_fails,
    @alone a_ca_bundle_that_somebody_emptied_is_filled_at_once,
    @alone configurations_that_are_applied_again_keep_the_ca_bundle,
];

pub(crate) const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];

/// One replica behind the webhook configurations, in force.
pub(crate) async fn serving(system: &System, sandboxes: &Namespace) -> Replica {
    serving_with(system, sandboxes, &Chart::render(&[])).await
}

/// The same with another chart.
pub(crate) async fn serving_with(system: &System, sandboxes: &Namespace, chart: &Chart) -> Replica {
    let replica = system.start(chart, |_, timing| {
        timing.settle = Duration::from_secs(3);
        // What is put right is put right since the watch says so, not since it is looked at now and then.
        timing.resync = Duration::from_secs(24 * 3600);
    });
    system.configure(chart, replica.webhook.port()).await;
    sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    replica
}

pub(crate) fn configuration(kind: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{kind}WebhookConfiguration"),
        "metadata": {"name": "sandgate-injector"},
    })
}

/// The caBundles of both configurations, base64-encoded.
pub(crate) async fn ca_bundles(cluster: &Cluster) -> [String; 2] {
    let mut bundles = Vec::new();
    for kind in ["Mutating", "Validating"] {
        let found = cluster.get(&configuration(kind)).await.unwrap();
        bundles.push(
            found["webhooks"][0]["clientConfig"]["caBundle"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        );
    }
    bundles.try_into().unwrap()
}

/// Sets the caBundle of both configurations, as somebody else.
async fn overwrite(cluster: &Cluster, bundle: &str) {
    for kind in ["Mutating", "Validating"] {
        let mut found = cluster.get(&configuration(kind)).await.unwrap();
        found["webhooks"][0]["clientConfig"]["caBundle"] = base64(bundle).into();
        cluster.replace(&found).await.unwrap();
    }
}

pub(crate) fn base64(text: &str) -> String {
    let json = serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap();
    json.as_str().unwrap().to_owned()
}

pub(crate) fn secret(system: &System) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "sandgate-authority", "namespace": system.namespace.name()},
    })
}

/// A pod without what differs between any two pods.
fn content(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let metadata = pod["metadata"].as_object_mut().unwrap();
    for field in [
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "ownerReferences",
    ] {
        metadata.remove(field);
    }
    // The API server makes up this volume's name.
    let text = serde_json::to_string(&pod).unwrap();
    let token = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|volume| {
            volume["name"]
                .as_str()
                .filter(|name| name.starts_with("kube-api-access-"))
                .map(ToOwned::to_owned)
        });
    serde_json::from_str(&token.map_or(text.clone(), |name| text.replace(&name, "kube-api-access"))).unwrap()
}

async fn sandboxes_of_opted_in_namespaces_get_gates_and_no_other_pod_changes_by_a_byte(cluster: Cluster) {
    cluster.install_upstream_crds().await;
    let (system, opted_in, other) = (
        System::install(&cluster).await,
        cluster.namespace(OPTED_IN).await,
        cluster.namespace(&[]).await,
    );
    let ordinary = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "ordinary", "annotations": {"a.example/b": "c"}},
        "spec": {"containers": [{"name": "app", "image": "app.example/app:1"}], "initContainers": [{"name": "i", "image": "i"}]},
    });
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    let untouched = content(&cluster.namespace(&[]).await.admitted(&ordinary).await);
    let unconfigured = content(&other.admitted(&sandbox_pod("before")).await);

    let replica = serving(&system, &opted_in).await;
    let owner = opted_in.admitted(&sandbox("alpha", &spec)).await;
    // No conversion webhook runs, and the API server says so again and again as long as it is there.
    cluster.remove_afterwards(&owner);
    assert!(
        has_gate(&opted_in.admitted(&pod_of(&owner)).await),
        "as agent-sandbox creates it"
    );
    assert!(
        has_gate(&opted_in.admitted(&sandbox_pod("beta")).await),
        "of any other sandbox system"
    );
    assert_eq!(content(&opted_in.admitted(&ordinary).await), untouched);
    assert_eq!(content(&other.admitted(&ordinary).await), untouched);
    let mut after = content(&other.admitted(&sandbox_pod("after")).await);
    after["metadata"]["name"] = "before".into();
    assert_eq!(after, unconfigured, "a sandbox of a namespace that isn't opted in");
    replica.stop().await;
}

async fn while_no_injector_answers_opted_in_namespaces_get_no_pods_and_others_do(cluster: Cluster) {
    let (system, opted_in, other) = (
        System::install(&cluster).await,
        cluster.namespace(OPTED_IN).await,
        cluster.namespace(&[]).await,
    );
    let replica = serving(&system, &opted_in).await;
    replica.stop().await;
    let reason = opted_in.refused(&sandbox_pod("refused")).await;
    assert!(
        reason.contains("failed calling webhook \"inject.sandgate.dev\""),
        "{reason}"
    );
    other.admitted(&sandbox_pod("admitted")).await;
    system.namespace.admitted(&sandbox_pod("own")).await;
}

async fn two_replicas_that_start_at_once_share_one_root(cluster: Cluster) {
    let system = System::install(&cluster).await;
    let chart = Chart::render(&[]);
    let replicas = [system.start(&chart, |_, _| {}), system.start(&chart, |_, _| {})];
    system.configure(&chart, replicas[0].webhook.port()).await;
    let sandboxes = cluster.namespace(OPTED_IN).await;
    for replica in &replicas {
        replica.until_ready().await;
    }
    let stored = cluster.get(&secret(&system)).await.unwrap();
    let root = stored["data"]["tls.crt"].as_str().unwrap();
    until("both configurations hold the root", async || {
        match ca_bundles(&cluster).await {
            bundles if bundles == [root, root] => Ok(()),
            bundles => Err(bundles),
        }
    })
    .await;
    // The API server believes each of them.
    for replica in &replicas {
        system.configure(&chart, replica.webhook.port()).await;
        sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    }
    let again = cluster.get(&secret(&system)).await.unwrap();
    assert_eq!(
        again["metadata"]["resourceVersion"], stored["metadata"]["resourceVersion"],
        "nobody wrote it again"
    );
}

async fn replicas_come_and_go_and_no_creation_fails(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let (chart, service) = (Chart::render(&[]), Service::start().await);
    let start = || {
        let replica = system.start(&chart, |_, _| {});
        service.add(&replica);
        replica
    };
    let mut old = [start(), start()];
    system.configure(&chart, service.port()).await;
    sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    let creations = Creations::start(&sandboxes);
    for replica in &mut old {
        let new = start();
        new.until_ready().await;
        creations.more(20).await;
        std::mem::replace(replica, new).stop().await;
        creations.more(20).await;
    }
    creations.none_failed();
}

async fn certificates_are_renewed_and_no_creation_fails(cluster: Cluster) {
    let (system, sandboxes, chart) = (
        System::install(&cluster).await,
        cluster.namespace(OPTED_IN).await,
        Chart::render(&[]),
    );
    let replica = system.start(&chart, |_, timing| timing.lifetime = Duration::from_secs(4));
    system.configure(&chart, replica.webhook.port()).await;
    sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    let creations = Creations::start(&sandboxes);
    replica
        .until_metric("sandgate_injector_certificate_renewals_total{outcome=\"success\"}", 4)
        .await;
    creations.more(20).await;
    creations.none_failed();
}

async fn a_new_root_takes_over_and_no_creation_fails(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let replica = serving(&system, &sandboxes).await;
    let creations = Creations::start(&sandboxes);
    let renewals = "sandgate_injector_certificate_renewals_total{outcome=\"success\"}";
    let before = replica.metric(renewals).await;
    let [old, _] = ca_bundles(&cluster).await;
    let new = NewRoot::generate().unwrap();
    let data = json!({"data": {"tls.crt": base64(&new.certificate_pem), "tls.key": base64(&new.key_pem)}});
    cluster.merge(&secret(&system), &data).await.unwrap();
    replica.until_metric(renewals, before + 1).await;
    creations.more(20).await;
    creations.none_failed();
    for bundle in ca_bundles(&cluster).await {
        assert!(
            bundle.len() > old.len() + new.certificate_pem.len(),
            "old and new: {bundle}"
        );
    }
    // A replica that never knew the old root is believed at once.
    let chart = Chart::render(&[]);
    let young = system.start(&chart, |_, _| {});
    young.until_ready().await;
    let creations = Creations::start(&sandboxes);
    system.configure(&chart, young.webhook.port()).await;
    replica.stop().await;
    creations.more(20).await;
    creations.none_failed();
}

async fn a_deleted_root_secret_comes_back_as_it_was(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let _replica = serving(&system, &sandboxes).await;
    let before = cluster.get(&secret(&system)).await.unwrap();
    cluster.delete(&secret(&system)).await.unwrap();
    // As the chart makes it, which the injector itself may not.
    cluster.apply_all(&[secret(&system)]).await;
    let after = until("the Secret is filled again", async || {
        match cluster.get(&secret(&system)).await.unwrap() {
            found if found.get("data").is_some() => Ok(found),
            found => Err(found),
        }
    })
    .await;
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    for entry in ["tls.crt", "tls.key"] {
        assert_eq!(after["data"][entry], before["data"][entry]);
    }
}

async fn certificates_of_others_in_the_ca_bundle_go_and_no_creation_fails(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let replica = serving(&system, &sandboxes).await;
    let creations = Creations::start(&sandboxes);
    creations.more(5).await;
    let right = ca_bundles(&cluster).await;
    let root = String::from_utf8(decoded(&right[0])).unwrap();
    let updates = replica.metric("sandgate_injector_ca_bundle_updates_total").await;
    let theirs = StubWebhook::start(|_| json!({})).await.ca_pem().to_owned();
    overwrite(&cluster, &format!("{theirs}{root}")).await;
    until("the bundles are right again", async || {
        match ca_bundles(&cluster).await {
            bundles if bundles == right => Ok(()),
            bundles => Err(bundles),
        }
    })
    .await;
    replica
        .until_metric("sandgate_injector_ca_bundle_updates_total", updates + 2)
        .await;
    creations.more(20).await;
    creations.none_failed();
}

fn decoded(base64: &str) -> Vec<u8> {
    serde_json::from_value::<k8s_openapi::ByteString>(base64.into())
        .unwrap()
        .0
}

/// Until it is, the API server believes nobody and refuses: nobody is asked about changes of webhook configurations.
async fn a_ca_bundle_that_somebody_emptied_is_filled_at_once(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let _replica = serving(&system, &sandboxes).await;
    let right = ca_bundles(&cluster).await;
    let theirs = StubWebhook::start(|_| json!({})).await.ca_pem().to_owned();
    for wrong in ["", &theirs] {
        let creations = Creations::start(&sandboxes);
        creations.more(5).await;
        overwrite(&cluster, wrong).await;
        until("the bundles are right again", async || {
            match ca_bundles(&cluster).await {
                bundles if bundles == right => Ok(()),
                bundles => Err(bundles),
            }
        })
        .await;
        sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
        let again = creations.count() + 1;
        creations.more(20).await;
        for (number, made) in creations.made().iter().enumerate() {
            match made {
                Ok(pod) => assert!(has_gate(pod), "{pod}"),
                Err(reason) => assert!(
                    number < again && reason.contains("certificate"),
                    "{number} of {again}: {reason}"
                ),
            }
        }
        let (failed, outage) = creations.outage();
        note(&format!(
            "{failed} creations were refused, for {} ms",
            outage.as_millis()
        ));
    }
}

async fn configurations_that_are_applied_again_keep_the_ca_bundle(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let replica = serving(&system, &sandboxes).await;
    let before = ca_bundles(&cluster).await;
    let creations = Creations::start(&sandboxes);
    creations.more(5).await;
    system.configure(&Chart::render(&[]), replica.webhook.port()).await;
    assert_eq!(ca_bundles(&cluster).await, before);
    creations.more(20).await;
    creations.none_failed();
}
