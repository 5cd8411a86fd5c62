//! The injector's validating webhook as the API server calls it: the last word on clusters without admission policies.

use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::injector::{Replica, System};
use sandgate_cluster_tests::{Answer, Cluster, Namespace, runner::Test, tests};
use serde_json::{Value, json};

// Webhook configurations are for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone a_gate_passes_the_validating_webhook_whatever_the_api_server_added_to_it,
    @alone a_sandbox_without_its_gate_is_refused_by_the_validating_webhook_alone,
    @alone a_running_gate_cannot_be_changed_and_everything_else_can,
    @alone nobody_gets_into_the_gate_and_restricted_namespaces_let_nobody_into_any_pod,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
const REFUSED: &str = "admission webhook \"validate.sandgate.dev\" denied the request";

async fn serving(cluster: &Cluster, values: &[&str], kinds: &[&str]) -> (System, Replica, Namespace) {
    let (system, sandboxes, chart) = (
        System::install(cluster).await,
        cluster.namespace(OPTED_IN).await,
        Chart::render(values),
    );
    let replica = system.start(&chart, |_, _| {});
    for configuration in system.configure(&chart, replica.webhook.port()).await {
        if !kinds.contains(&configuration["kind"].as_str().unwrap()) {
            cluster.delete(&configuration).await.unwrap();
        }
    }
    (system, replica, sandboxes)
}

const BOTH: &[&str] = &["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

fn has_gate(pod: &Value) -> bool {
    let containers = pod["spec"]["initContainers"].as_array();
    containers.is_some_and(|containers| containers.iter().any(|container| container["name"] == "sandgate"))
}

/// With the token of a ServiceAccount, limits of a `LimitRange`, a runtime's defaults and all that a pod may have.
async fn a_gate_passes_the_validating_webhook_whatever_the_api_server_added_to_it(cluster: Cluster) {
    for values in [&[][..], &["injection.lockdown=enabled"]] {
        let (_system, _replica, sandboxes) = serving(&cluster, values, BOTH).await;
        let limits = json!({
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "defaults"},
            "spec": {"limits": [{"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "5m"}}]},
        });
        sandboxes.admitted(&limits).await;
        let mut full = sandbox_pod("full");
        json_patch::merge(
            &mut full,
            &json!({"spec": {
                "automountServiceAccountToken": true,
                "securityContext": {"runAsUser": 1000, "fsGroup": 1000},
                "initContainers": [
                    {"name": "first", "image": "i"},
                    {"name": "beside", "image": "i", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 9000}}},
                ],
                "containers": [{
                    "name": "app",
                    "image": "app.example/app:1",
                    "ports": [{"name": "http", "containerPort": 8888}],
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
                    "livenessProbe": {"grpc": {"port": 9001}},
                    "lifecycle": {"preStop": {"httpGet": {"path": "/stop", "port": 8888}}},
                    "volumeMounts": [{"name": "work", "mountPath": "/work"}],
                }],
                "volumes": [{"name": "work", "emptyDir": {}}],
            }}),
        );
        sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
        let stored = sandboxes.admitted(&full).await;
        assert!(has_gate(&stored), "{stored}");
        let mounts = &stored["spec"]["initContainers"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["name"] == "sandgate")
            .unwrap()["volumeMounts"];
        assert_eq!(
            mounts.as_array().unwrap().len(),
            2,
            "no API token for the gate: {mounts}"
        );
    }
}

async fn a_sandbox_without_its_gate_is_refused_by_the_validating_webhook_alone(cluster: Cluster) {
    let (system, _replica, sandboxes) = serving(&cluster, &[], &["ValidatingWebhookConfiguration"]).await;
    sandboxes
        .until_refused(
            &sandbox_pod("until"),
            "the mutating webhook inject.sandgate.dev wasn't called",
        )
        .await;
    let reason = sandboxes.refused(&sandbox_pod("bare")).await;
    assert!(reason.contains(REFUSED), "{reason}");
    let mut ordinary = sandbox_pod("ordinary");
    ordinary["metadata"]["labels"] = json!({});
    sandboxes.admitted(&ordinary).await;
    system.namespace.admitted(&sandbox_pod("own")).await;
}

async fn a_running_gate_cannot_be_changed_and_everything_else_can(cluster: Cluster) {
    let (_system, _replica, sandboxes) = serving(&cluster, &[], BOTH).await;
    sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    let pod = sandboxes.admitted(&sandbox_pod("box")).await;
    let refused = |answer: Answer, field: &str| {
        let reason = answer.unwrap_err().message;
        assert!(reason.contains(REFUSED) && reason.contains(field), "{reason}");
    };
    // The validating webhook is followed on its own.
    let strip = json!({"metadata": {"labels": {"sandgate.dev/injected": null}}});
    sandgate_cluster_tests::until("a change of the gate's label is refused", async || {
        match cluster.try_merge(&pod, &strip).await {
            Err(status) if status.message.contains(REFUSED) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    refused(
        cluster.merge(&pod, &strip).await,
        "metadata.labels[sandgate.dev/injected]",
    );
    refused(
        cluster
            .merge(&pod, &json!({"metadata": {"annotations": {"sandgate.dev/shape": "0"}}}))
            .await,
        "metadata.annotations[sandgate.dev/shape]",
    );
    let mut containers = pod["spec"]["initContainers"].clone();
    containers[0]["image"] = "evil.example/gate:1".into();
    refused(
        cluster
            .merge(&pod, &json!({"spec": {"initContainers": containers}}))
            .await,
        "spec.initContainers[sandgate]",
    );
    let debug = |container: Value| json!({"spec": {"ephemeralContainers": [container]}});
    let into_gate = json!({"name": "d", "image": "i", "targetContainerName": "sandgate"});
    refused(
        patch(&sandboxes, "ephemeralcontainers", &debug(into_gate)).await,
        "targetContainerName",
    );
    let at_key = json!({"name": "d", "image": "i", "volumeMounts": [{"name": "sandgate-state", "mountPath": "/s"}]});
    refused(
        patch(&sandboxes, "ephemeralcontainers", &debug(at_key)).await,
        "volumeMounts[0]",
    );
    let resize =
        json!({"spec": {"initContainers": [{"name": "sandgate", "resources": {"limits": {"memory": "65Mi"}}}]}});
    refused(
        patch(&sandboxes, "resize", &resize).await,
        "spec.initContainers[sandgate]",
    );

    for change in [
        json!({"metadata": {"labels": {"agents.x-k8s.io/claim-uid": "c", "sandgate.dev/inject": "enabled"}}}),
        json!({"metadata": {"finalizers": ["a.example/b"]}}),
        json!({"metadata": {"finalizers": null}}),
        json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u"}]}}),
    ] {
        cluster
            .merge(&pod, &change)
            .await
            .unwrap_or_else(|status| panic!("{change}: {status}"));
    }
    patch(
        &sandboxes,
        "ephemeralcontainers",
        &debug(json!({"name": "d", "image": "i", "targetContainerName": "app"})),
    )
    .await
    .unwrap();
    cluster.delete(&pod).await.unwrap();
}

/// Changes a subresource of the pod `box` as kubectl does.
async fn patch(namespace: &Namespace, sub_resource: &str, change: &Value) -> Answer {
    let path = format!("/api/v1/namespaces/{}/pods/box/{sub_resource}", namespace.name());
    let request = http::Request::patch(path).header("content-type", "application/strategic-merge-patch+json");
    namespace
        .cluster()
        .send(request.body(serde_json::to_vec(change).unwrap()).unwrap())
        .await
}

async fn nobody_gets_into_the_gate_and_restricted_namespaces_let_nobody_into_any_pod(cluster: Cluster) {
    for restricted in [false, true] {
        let value = format!("injection.restrictConnect={restricted}");
        let (_system, _replica, sandboxes) = serving(&cluster, &[&value], BOTH).await;
        sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
        let pod = sandboxes.admitted(&sandbox_pod("box")).await;
        let told =
            |reason: &str, expected: &str| assert!(reason.contains(REFUSED) && reason.contains(expected), "{reason}");
        sandgate_cluster_tests::until("connections are judged", async || {
            match sandboxes.connect(&pod, "exec", "container=sandgate&command=id").await {
                reason if reason.contains(REFUSED) => Ok(()),
                reason => Err(reason),
            }
        })
        .await;
        for how in ["exec", "attach"] {
            told(
                &sandboxes.connect(&pod, how, "container=sandgate&command=id").await,
                "nobody gets into the gate's container",
            );
        }
        for (how, query) in [
            ("exec", "container=app&command=id"),
            ("attach", "container=app"),
            ("portforward", "ports=8888"),
            ("proxy", ""),
        ] {
            let reason = sandboxes.connect(&pod, how, query).await;
            if restricted {
                told(&reason, "call the sandbox through the router");
            } else {
                assert!(!reason.contains("denied the request"), "{how}: {reason}");
            }
        }
    }
}
