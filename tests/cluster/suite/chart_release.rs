//! The chart as a release of a real Helm: installed, upgraded, rolled back and uninstalled, beside an injector that has
//! the rights that the chart gives it and no other.

use clap::Parser;
use sandbox_injector::config::InjectionFlags;
use sandbox_injector::offline::explain::{Format, explain};
use sandgate_cluster_tests::chart::{Chart, DECIDED, folder, helm};
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::inventory::Inventory;
use sandgate_cluster_tests::{Cluster, Namespace, documents, runner::Test, tests, until};
use serde_json::{Value, json};

// What is installed is for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone a_release_comes_changes_and_goes_and_leaves_nothing_behind,
    @alone an_upgrade_by_the_client_keeps_what_the_injector_wrote,
    @alone a_kept_root_is_taken_up_by_the_next_release,
    @alone a_policy_that_goes_with_its_release_stays_away_until_the_injector_has_ended,
    @alone the_plain_manifests_come_and_go_too,
    the_test_of_a_release_asks_the_injector_what_it_can_answer,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
pub(crate) const RELEASE: &str = "sandgate";

/// Runs Helm on the release, and must succeed.
pub(crate) fn run(namespace: &Namespace, command: &str, more: &[&str]) -> String {
    let chart = folder();
    let mut arguments = vec![command, RELEASE, "-n", namespace.name()];
    if command == "install" || command == "upgrade" {
        arguments.extend([chart.to_str().unwrap(), "--set", DECIDED]);
    }
    arguments.extend(more);
    let done = helm(&arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(done.status.success(), "helm {arguments:?}: {text}");
    text
}

pub(crate) fn object(api_version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}})
}

fn configuration(kind: &str) -> Value {
    object("admissionregistration.k8s.io/v1", kind, "sandgate-injector")
}

pub(crate) fn within(namespace: &Namespace, mut object: Value) -> Value {
    object["metadata"]["namespace"] = json!(namespace.name());
    object
}

/// The root and its key as they are stored. Beside them is what each new leader writes: the epoch, and how long identities last.
async fn stored_root(cluster: &Cluster, system: &Namespace) -> Value {
    let mut data = cluster.get(&secret(system)).await.unwrap()["data"].clone();
    if let Some(data) = data.as_object_mut() {
        for leaders in ["epoch", "identities"] {
            data.remove(leaders);
        }
    }
    data
}

fn secret(namespace: &Namespace) -> Value {
    within(namespace, object("v1", "Secret", "sandgate-authority"))
}

fn gate_policy(namespace: &Namespace) -> Value {
    within(
        namespace,
        object("networking.k8s.io/v1", "NetworkPolicy", "sandgate-gate"),
    )
}

pub(crate) async fn ca_bundle(cluster: &Cluster) -> Option<String> {
    let found = cluster
        .get(&configuration("MutatingWebhookConfiguration"))
        .await
        .unwrap();
    found["webhooks"][0]["clientConfig"]["caBundle"]
        .as_str()
        .map(String::from)
}

/// Returns when the injector has written all that it writes: the root, the caBundle, the NetworkPolicy.
pub(crate) async fn settled(system: &Namespace, sandboxes: &Namespace) -> String {
    let cluster = system.cluster();
    until(
        "the namespace has its policy, owned by the release",
        async || match cluster.get(&gate_policy(sandboxes)).await {
            Ok(found) if found["metadata"].get("ownerReferences").is_some() => Ok(()),
            other => Err(other),
        },
    )
    .await;
    until("the API server is told the root", async || {
        let root = cluster.get(&secret(system)).await.unwrap()["data"]["tls.crt"].clone();
        match ca_bundle(cluster).await {
            Some(bundle) if root == bundle.as_str() => Ok(bundle),
            other => Err((other, root)),
        }
    })
    .await
}

/// The image that the API server takes for the gate's.
async fn judged_image(cluster: &Cluster) -> String {
    let policy = object(
        "admissionregistration.k8s.io/v1",
        "ValidatingAdmissionPolicy",
        "sandgate-pod-create",
    );
    let policy = cluster.get(&policy).await.unwrap().to_string();
    let start = policy.find("sandgate/sidecar:").unwrap();
    policy[start..]
        .chars()
        .take_while(|letter| *letter != '\\' && *letter != '"')
        .collect()
}

/// What the cluster's garbage collector would remove, which doesn't run here: objects whose owners are all gone.
async fn collect(cluster: &Cluster, left: &[Value]) {
    for object in left {
        let found = cluster.get(object).await.unwrap();
        let owners = found["metadata"]["ownerReferences"].as_array();
        let owners = owners.unwrap_or_else(|| panic!("nobody removes it: {found}"));
        for owner in owners {
            let owner = self::object(
                owner["apiVersion"].as_str().unwrap(),
                owner["kind"].as_str().unwrap(),
                owner["name"].as_str().unwrap(),
            );
            assert!(cluster.get(&owner).await.unwrap_err().is_not_found(), "{owner}");
        }
        cluster.delete(object).await.unwrap();
    }
}

async fn a_release_comes_changes_and_goes_and_leaves_nothing_behind(cluster: Cluster) {
    let (system, sandboxes) = (cluster.namespace(&[]).await, cluster.namespace(OPTED_IN).await);
    let before = Inventory::take(&cluster).await;
    let notes = run(&system, "install", &[]);
    // Nobody is led to label a namespace, and what comes next can be pasted.
    assert!(!notes.contains("kubectl label"), "{notes}");
    assert!(notes.contains("WARNING: do not label a namespace"), "{notes}");
    let next = format!("kubectl exec -i -n {} deploy/sandgate-injector -- ", system.name());
    assert!(notes.contains(&next), "{notes}");
    let installed = Inventory::take(&cluster).await;
    assert!(
        installed.without(&before).len() > 20,
        "{:?}",
        installed.without(&before)
    );
    let replica = System::of_release(&system).start(&Chart::render(&[]), |_, _| {});
    let bundle = settled(&system, &sandboxes).await;
    assert_eq!(judged_image(&cluster).await, "sandgate/sidecar:0.1.0");

    run(
        &system,
        "upgrade",
        &["--set", "injection.image.tag=0.2.0,injection.lockdown=enabled"],
    );
    assert_eq!(judged_image(&cluster).await, "sandgate/sidecar:0.2.0");
    assert_eq!(settled(&system, &sandboxes).await, bundle);
    run(&system, "rollback", &["1"]);
    assert_eq!(judged_image(&cluster).await, "sandgate/sidecar:0.1.0");
    assert_eq!(settled(&system, &sandboxes).await, bundle);
    assert_eq!(
        replica
            .metric("sandgate_injector_failures_total{task=\"network_policy\"}")
            .await,
        0
    );

    // In a cluster the pods end after the release is gone.
    run(&system, "uninstall", &[]);
    replica.stop().await;
    let left = Inventory::take(&cluster).await.without(&before);
    assert_eq!(left, [gate_policy(&sandboxes)]);
    collect(&cluster, &left).await;
    assert!(Inventory::take(&cluster).await.without(&before).is_empty());
    assert!(before.without(&Inventory::take(&cluster).await).is_empty());
}

/// Helm 3 does it that way, and Helm 4 for what Helm 3 installed.
async fn an_upgrade_by_the_client_keeps_what_the_injector_wrote(cluster: Cluster) {
    let (system, sandboxes) = (cluster.namespace(&[]).await, cluster.namespace(OPTED_IN).await);
    run(&system, "install", &["--server-side=false"]);
    let replica = System::of_release(&system).start(&Chart::render(&[]), |_, _| {});
    let bundle = settled(&system, &sandboxes).await;
    let root = stored_root(&cluster, &system).await;
    for more in [
        "injection.image.tag=0.2.0",
        "injection.lockdown=enabled,commonLabels.a=b",
    ] {
        run(&system, "upgrade", &["--server-side=false", "--set", more]);
        assert_eq!(ca_bundle(&cluster).await.unwrap(), bundle);
        assert_eq!(stored_root(&cluster, &system).await, root);
    }
    // That throws it away, and the injector writes the same again.
    run(&system, "upgrade", &["--server-side=false", "--force-replace"]);
    until("the root is stored again", async || {
        match stored_root(&cluster, &system).await {
            found if found == root => Ok(()),
            found => Err(found),
        }
    })
    .await;
    assert_eq!(settled(&system, &sandboxes).await, bundle);
    run(&system, "uninstall", &[]);
    replica.stop().await;
}

async fn a_kept_root_is_taken_up_by_the_next_release(cluster: Cluster) {
    let (system, sandboxes) = (cluster.namespace(&[]).await, cluster.namespace(OPTED_IN).await);
    let keep = "injector.webhook.certificate.keepAuthority=true";
    run(&system, "install", &["--set", keep]);
    let replica = System::of_release(&system).start(&Chart::render(&[]), |_, _| {});
    settled(&system, &sandboxes).await;
    let root = stored_root(&cluster, &system).await;
    run(&system, "uninstall", &[]);
    replica.stop().await;
    assert_eq!(stored_root(&cluster, &system).await, root);
    cluster.delete(&gate_policy(&sandboxes)).await.unwrap();

    run(&system, "install", &["--set", keep]);
    let replica = System::of_release(&system).start(&Chart::render(&[]), |_, _| {});
    settled(&system, &sandboxes).await;
    assert_eq!(stored_root(&cluster, &system).await, root);
    run(&system, "uninstall", &[]);
    replica.stop().await;
}

/// A garbage collector is fast: it removes the policies while the injector still runs.
async fn a_policy_that_goes_with_its_release_stays_away_until_the_injector_has_ended(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let chart = Chart::render(&[]);
    let replica = system.start(&chart, |_, _| {});
    system.configure(&chart, replica.webhook.port()).await;
    replica.stop().await;
    let replica = system.start(&chart, |_, _| {});
    settled(&system.namespace, &sandboxes).await;
    cluster
        .delete(&configuration("MutatingWebhookConfiguration"))
        .await
        .unwrap();
    cluster.delete(&gate_policy(&sandboxes)).await.unwrap();
    // What comes after that has been looked at.
    let open = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}]});
    let mut open = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "open"}, "spec": open});
    open = within(&sandboxes, open);
    cluster.create(&open).await.unwrap();
    replica
        .until_metric("sandgate_injector_network_policy_openings", 1)
        .await;
    assert!(cluster.get(&gate_policy(&sandboxes)).await.unwrap_err().is_not_found());
    // It wasn't uninstalled: nothing has ended the injector, and the namespace is closed again.
    let again = until("the namespace has its policy again", async || {
        cluster.get(&gate_policy(&sandboxes)).await
    })
    .await;
    assert!(again["metadata"].get("ownerReferences").is_none(), "{again}");
}

async fn the_plain_manifests_come_and_go_too(cluster: Cluster) {
    let before = Inventory::take(&cluster).await;
    let own = object("v1", "Namespace", "agent-sandbox-system");
    let objects = documents(include_str!("../../../deploy/manifests/sandgate.yaml"));
    match cluster.create(&own).await {
        Err(status) if !status.is_already_exists() => panic!("{status}"),
        _ => {}
    }
    for object in &objects {
        cluster.remove_afterwards(object);
    }
    cluster.apply_all(&objects).await;
    // Twice is as good as once.
    let applied = cluster.apply_all(&objects).await;
    assert_eq!(applied.len(), objects.len());
    for object in &objects {
        cluster.delete(object).await.unwrap();
    }
    let left = Inventory::take(&cluster).await.without(&before);
    let left: Vec<_> = left
        .into_iter()
        .filter(|object| object["kind"] != "Namespace")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// No node runs its pod here. What the pod runs, with the flags that it gives, says that the sandbox gets a gate.
async fn the_test_of_a_release_asks_the_injector_what_it_can_answer(_: Cluster) {
    #[derive(Parser)]
    struct Explain {
        #[arg(long)]
        filename: String,
        #[command(flatten)]
        injection: InjectionFlags,
    }
    let chart = Chart::render(&["injection.lockdown=enabled", "injection.resources.limits.cpu=1"]);
    let pod = chart.of_kinds(&["Pod"]).remove(0);
    let container = &pod["spec"]["containers"][0];
    let arguments = container["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|argument| argument.as_str().unwrap());
    assert_eq!(container["args"][0], "explain");
    let flags = Explain::parse_from(arguments);
    let mount = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    let file = flags.filename.strip_prefix(&format!("{mount}/")).unwrap();
    let name = &pod["spec"]["volumes"][0]["configMap"]["name"];
    let config_maps = chart.of_kinds(&["ConfigMap"]);
    let config_map = config_maps.iter().find(|found| found["metadata"]["name"] == *name);
    let config_map = config_map.expect("the ConfigMap that the test's pod mounts");
    let settings = flags.injection.settings().unwrap();
    assert_eq!(settings, chart.config().settings);
    let text = config_map["data"][file].as_str().unwrap();
    let explained = explain(&settings, None, "default", text, Format::Table).unwrap();
    assert!(
        explained.admitted && explained.output.contains("inject"),
        "{}",
        explained.output
    );
}
