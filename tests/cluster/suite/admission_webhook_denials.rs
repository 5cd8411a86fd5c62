//! Everything that the webhook denies, by itself: no policy is there. On the API server's way to the webhook and back.

use crate::admission_policy_denials::rows;
use sandbox_injector::names::CONTAINERS;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::{Answer, Cluster, runner::Test, tests};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    @alone the_webhook_denies_it_by_itself_too_and_says_what_to_change,
    @alone under_lockdown_the_webhook_denies_by_itself_what_the_rules_cannot_hold,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];

/// Whether the webhook denied it, in these words. Otherwise the API server couldn't even read it.
fn denied(pod: &Value, answer: Answer, says: &str) -> bool {
    match answer {
        Err(status) if status.reason == "Forbidden" => {
            let told = "admission webhook \"inject.sandgate.dev\" denied the request: ";
            assert!(status.message.contains(told), "{pod}: {status}");
            assert!(status.message.contains(says), "{says}: {status}");
            true
        }
        Err(status) => {
            assert_eq!(status.reason, "BadRequest", "{pod}: {status:?}");
            false
        }
        Ok(admitted) => panic!("admitted: {admitted}"),
    }
}

async fn the_webhook_denies_it_by_itself_too_and_says_what_to_change(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let chart = Chart::render(&[]);
    let replica = system.start(&chart, |_, _| {});
    system.configure(&chart, replica.webhook.port()).await;
    sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    let mut count = 0;
    for row in rows().iter().filter(|row| row.kind != "malformed") {
        let places: &[_] = if row.container.is_null() {
            &["containers"]
        } else {
            &["containers", "initContainers"]
        };
        for place in places {
            let mut pod = sandbox_pod("sandbox");
            pod["spec"]["initContainers"] = json!([{"name": "prepare", "image": "app.example/app:1"}]);
            if row.container.is_null() {
                json_patch::merge(&mut pod, &row.pod);
            } else {
                json_patch::merge(&mut pod["spec"][*place][0], &row.container);
            }
            // Where the gate is looked for, what has its name is told without its field.
            let taken = *place == "initContainers" && CONTAINERS.iter().any(|name| row.container["name"] == *name);
            let says = if taken { "is the gate's own name" } else { &row.says };
            let says = says.replace("spec.containers[0]", &format!("spec.{place}[0]"));
            count += usize::from(denied(&pod, sandboxes.dry_run(&pod).await, &says));
        }
    }
    assert!(count > 80, "{count}");
    // As it was admitted it is admitted again; changed it isn't.
    let stored = sandboxes.dry_run(&sandbox_pod("gated")).await.unwrap();
    let mut gated = sandbox_pod("gated");
    for part in ["labels", "annotations"] {
        gated["metadata"][part] = stored["metadata"][part].clone();
    }
    gated["spec"] = stored["spec"].clone();
    sandboxes.dry_run(&gated).await.unwrap();
    gated["spec"]["initContainers"][0]["image"] = "evil.example/sidecar:1".into();
    let says = "spec.initContainers[0].image: it isn't what would be injected";
    assert!(denied(&gated, sandboxes.dry_run(&gated).await, says));
}

async fn under_lockdown_the_webhook_denies_by_itself_what_the_rules_cannot_hold(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let chart = Chart::render(&["injection.lockdown=enabled"]);
    let replica = system.start(&chart, |_, _| {});
    system.configure(&chart, replica.webhook.port()).await;
    let closed = |pod: &Value| pod["spec"]["initContainers"][0]["name"] == "sandgate-lockdown";
    sandboxes.until_admitted(&sandbox_pod("until"), closed).await;
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "unlisted-too"}, "handler": "x"});
    cluster.remove_afterwards(&class);
    cluster.apply_all(&[class]).await;
    let mut classed = sandbox_pod("classed");
    classed["spec"]["runtimeClassName"] = json!("unlisted-too");
    // The class is known after a while.
    let says = "spec.runtimeClassName: \"unlisted-too\" isn't listed";
    sandboxes.until_refused(&classed, says).await;
    let mut probed = sandbox_pod("probed");
    probed["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": "nowhere"}});
    let says = "spec.containers[0].livenessProbe.httpGet: its port is neither a number nor the name";
    assert!(denied(&probed, sandboxes.dry_run(&probed).await, says));
}
