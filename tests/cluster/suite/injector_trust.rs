//! What makes API servers believe the injector, when it is missing, wrong or replaced, and who is told.

use crate::injector::{OPTED_IN, ca_bundles, configuration, secret, serving, serving_with};
use sandbox_injector::config::serve::CertificateSource;
use sandgate_cluster_tests::chart::{Chart, OWN_NAMESPACE, sandbox_pod};
use sandgate_cluster_tests::creations::{Creations, has_gate};
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::process::{self, Process, program};
use sandgate_cluster_tests::runbook::commands;
use sandgate_cluster_tests::{Cluster, runner::Test, tests, until};
use serde_json::json;
use std::process::Command;

// Webhook configurations are for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone a_root_secret_that_is_missing_or_wrong_is_named_with_what_helps,
    @alone a_webhook_configuration_that_goes_is_told_and_the_replica_stays_ready,
    @alone a_webhook_configuration_that_never_came_is_warned_of_once_for_each_use,
    @alone calls_that_fail_for_the_certificate_are_counted_on_both_sides,
    @alone the_runbook_of_a_planned_replacement_costs_no_creation,
    @alone the_runbook_for_routers_with_files_costs_no_creation,
    @alone the_runbook_of_a_stolen_key_costs_no_creation,
];

const KINDS: [&str; 2] = ["Mutating", "Validating"];

/// The series that says whether a configuration is there.
fn there(kind: &str) -> String {
    format!("sandgate_injector_webhook_configurations{{kind=\"{kind}WebhookConfiguration\"}}")
}

/// The program with the rights that the chart gives it: none to make a Secret.
async fn a_root_secret_that_is_missing_or_wrong_is_named_with_what_helps(cluster: Cluster) {
    let system = System::install(&cluster).await;
    let empty = cluster.get(&secret(&system)).await.unwrap();
    cluster.delete(&empty).await.unwrap();
    let process = Process::start(&system, &Chart::render(&[])).await;
    let logged = async |what: &str| {
        until(&format!("{what} is logged"), async || {
            let log = process.log();
            log.contains(what).then_some(()).ok_or(log)
        })
        .await;
    };
    logged("there is none; run `helm upgrade`, or apply the manifests").await;
    assert!(!process.log().contains("forbidden"), "{}", process.log());

    let mut wrong = secret(&system);
    wrong["stringData"] = json!({"tls.crt": "junk", "tls.key": "junk"});
    cluster.apply_all(&[wrong]).await;
    logged("for a new root, scale the injector to zero, empty the Secret's data, start again").await;

    cluster.merge(&secret(&system), &json!({"data": null})).await.unwrap();
    logged("stored the root certificate in the Secret").await;
}

async fn a_webhook_configuration_that_goes_is_told_and_the_replica_stays_ready(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    // It is told by the watch: this replica looks once a day.
    let replica = serving(&system, &sandboxes).await;
    let failures = "sandgate_injector_failures_total{task=\"ca_bundle\"}";
    for kind in KINDS {
        replica.until_metric(&there(kind), 1).await;
        let before = replica.metric(failures).await;
        cluster.delete(&configuration(kind)).await.unwrap();
        replica.until_metric(failures, before + 1).await;
        assert_eq!(replica.metric(&there(kind)).await, 0);
    }
    replica.until_ready().await;
    system.configure(&Chart::render(&[]), replica.webhook.port()).await;
    for kind in KINDS {
        replica.until_metric(&there(kind), 1).await;
    }
    sandboxes.until_admitted(&sandbox_pod("again"), has_gate).await;
    replica.stop().await;
}

/// As an installation looks that stopped half-way: in each opted-in namespace the owner of the policy is looked for.
async fn a_webhook_configuration_that_never_came_is_warned_of_once_for_each_use(cluster: Cluster) {
    let system = System::install(&cluster).await;
    let namespaces = [cluster.namespace(OPTED_IN).await, cluster.namespace(OPTED_IN).await];
    let process = Process::start(&system, &Chart::render(&[])).await;
    for namespace in &namespaces {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "sandgate-gate", "namespace": namespace.name()},
        });
        until("there is a policy without an owner", async || {
            cluster.get(&policy).await
        })
        .await;
    }
    let log = process.log();
    let warned = |what: &str| {
        log.lines()
            .filter(|line| line.contains("WARN") && line.contains(what))
            .count()
    };
    assert_eq!(warned("API servers ask nobody about pods"), KINDS.len(), "{log}");
    assert_eq!(warned("that owns the NetworkPolicies isn't there"), 1, "{log}");
}

async fn calls_that_fail_for_the_certificate_are_counted_on_both_sides(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let chart = Chart::render(&[]);
    // Nobody tells the API server the root.
    let replica = system.start(&chart, |config, _| {
        if let CertificateSource::Issued { manage_ca_bundle, .. } = &mut config.certificate {
            *manage_ca_bundle = false;
        }
    });
    replica.until_ready().await;
    system.configure(&chart, replica.webhook.port()).await;
    sandboxes.until_refused(&sandbox_pod("box"), "x509: certificate").await;
    replica
        .until_metric("sandgate_injector_handshake_failures_total", 1)
        .await;
    assert_eq!(replica.metric("sandgate_injector_ready").await, 1);
    // What the chart's alert asks for, under the names that the API server uses.
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let text = cluster.client().request_text(request).await.unwrap();
    let counted = text.lines().any(|line| {
        line.starts_with("apiserver_admission_webhook_rejection_count{")
            && line.contains("error_type=\"calling_webhook_error\"")
            && line.contains("name=\"inject.sandgate.dev\"")
    });
    assert!(counted, "{text}");
    // Whoever keeps the bundles, the injector sees whether the configurations are there.
    for kind in KINDS {
        replica.until_metric(&there(kind), 1).await;
    }
    assert_eq!(ca_bundles(&cluster).await, ["", ""]);
    replica.stop().await;
}

async fn the_runbook_of_a_planned_replacement_costs_no_creation(cluster: Cluster) {
    replaced_by_the_book(cluster, "### Planned", &[]).await;
}

async fn the_runbook_for_routers_with_files_costs_no_creation(cluster: Cluster) {
    let files = ["router.mesh.certificate.source=secret"];
    replaced_by_the_book(cluster, "### Planned, where routers have files", &files).await;
}

async fn the_runbook_of_a_stolen_key_costs_no_creation(cluster: Cluster) {
    replaced_by_the_book(cluster, "## Somebody else has the key", &[]).await;
}

/// Runs the commands of docs/root-rotation.md, of which the page says that this is done.
async fn replaced_by_the_book(cluster: Cluster, section: &str, values: &[&str]) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let replica = serving_with(&system, &sandboxes, &Chart::render(values)).await;
    let creations = Creations::start(&sandboxes);
    creations.more(5).await;
    let [old, _] = ca_bundles(&cluster).await;
    let blocks = commands(include_str!("../../../docs/root-rotation.md"), section);
    assert!(!blocks.is_empty(), "{section}");
    let own = system.namespace.name();
    // No kubelet is here that could run it in the pod: it does the same from anywhere.
    let in_pod = format!("kubectl exec deployment/sandgate-injector -n {own} -- /sandbox-injector root");
    let here = format!("POD_NAMESPACE={own} {} root", program().display());
    for block in blocks {
        let block = block.replace(OWN_NAMESPACE, own);
        assert!(block.contains(&in_pod), "{block}");
        let block = block.replace(&in_pod, &here).replace("sleep 5", "sleep 1");
        let mut shell = Command::new("sh");
        shell.args(["-euc", &block]);
        let done = tokio::task::spawn_blocking(move || shell.output().unwrap())
            .await
            .unwrap();
        let told = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    }
    creations.more(20).await;
    // Both of them name pods that know the old root only.
    let made: Vec<_> = creations.made().iter().flatten().cloned().collect();
    for pod in &made {
        let gone = cluster.delete(pod).await;
        gone.unwrap_or_else(|status| panic!("{status}"));
    }
    let stored = async || cluster.get(&secret(&system)).await.unwrap()["data"].clone();
    until("the old root is gone", async || {
        let stored = stored().await;
        let rotation: k8s_openapi::ByteString = serde_json::from_value(stored["rotation"].clone()).unwrap();
        let text = String::from_utf8(rotation.0).unwrap();
        if text.contains("\"done\"") {
            Ok(())
        } else {
            Err(process::root(&system, &["status"]).await)
        }
    })
    .await;
    creations.more(5).await;
    creations.none_failed();
    let stored = stored().await;
    let root = stored["tls.crt"].as_str().unwrap();
    assert_ne!(root, old);
    for entry in ["next.crt", "previous.crt", "previous.key"] {
        assert_eq!(stored.get(entry), None, "nothing is left of the steps between");
    }
    assert_eq!(ca_bundles(&cluster).await, [root, root], "the old root is gone");
    replica.stop().await;
}
