//! Changes of running pods, judged by the API server alone: nobody changes a gate, and everything else goes on as ever.

use sandbox_injector::names::TENANT_ANNOTATIONS;
use sandgate_cluster_tests::chart::{Chart, OWN_NAMESPACE, new_anchors, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::former::Shape2;
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    a_gated_pod_is_adopted_and_changed_as_any_other,
    nobody_changes_the_gate_of_a_running_pod,
    nobody_changes_it_by_way_of_the_status_or_of_a_binding,
    nobody_passes_an_ungated_pod_off_as_gated,
    pods_of_an_earlier_chart_go_on,
    pods_of_an_earlier_shape_go_on,
    pods_from_before_the_label_go_on,
    a_pod_that_is_going_away_keeps_its_gate,
    a_gate_keeps_its_resources,
    @alone where_there_is_no_policy_the_webhook_guards_status_and_binding_and_nobody_waits_for_it,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];

pub(crate) async fn changed(namespace: &Namespace, pod: &Value, patch: Value) -> Value {
    let answer = namespace.cluster().merge(pod, &patch).await;
    answer.unwrap_or_else(|status| panic!("{patch}: {status}"))
}

pub(crate) async fn not_changed(namespace: &Namespace, pod: &Value, patch: Value, sentence: &str) {
    match namespace.cluster().merge(pod, &patch).await {
        Ok(changed) => panic!("{patch} was taken: {changed}"),
        Err(status) => {
            assert!(status.message.contains("sandgate-pod-update"), "{patch}: {status}");
            assert!(status.message.contains(sentence), "{patch}: {status}");
        }
    }
}

/// A pod of a warm pool as it is before it is claimed.
fn warm() -> Value {
    let mut pod = sandbox_pod("warm");
    pod["metadata"]["labels"] = json!({
        "agents.x-k8s.io/sandbox-name-hash": "5d8b6dab",
        "agents.x-k8s.io/warm-pool-sandbox": "pool",
    });
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "warm", "uid": "1", "controller": true,
        "blockOwnerDeletion": true,
    }]);
    pod
}

/// The containers of a pod with this image for one of them.
pub(crate) fn with_image(pod: &Value, list: &str, index: usize, image: &str) -> Value {
    let mut containers = pod["spec"][list].clone();
    containers[index]["image"] = json!(image);
    json!({"spec": {list: containers}})
}

async fn a_gated_pod_is_adopted_and_changed_as_any_other(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let pod = namespace.admitted(&chart.injected(&warm())).await;
    let owners = |change: &Value| {
        let mut owner = pod["metadata"]["ownerReferences"][0].clone();
        json_patch::merge(&mut owner, change);
        json!([owner, {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "2"}])
    };
    for patch in [
        // What upstream's controller changes when a claim adopts the pod's Sandbox: its owner changes, and not the pod's.
        json!({"metadata": {
            "labels": {"agents.x-k8s.io/warm-pool-sandbox": null, "agents.x-k8s.io/claim-uid": "2", "mine": "x"},
            "annotations": {"agents.x-k8s.io/propagated-labels": "mine", "cluster-autoscaler.kubernetes.io/safe-to-evict": null},
        }}),
        // What the garbage collector changes, and another version of the same.
        json!({"metadata": {"ownerReferences": owners(&json!({"blockOwnerDeletion": false}))}}),
        json!({"metadata": {"ownerReferences": owners(&json!({"apiVersion": "agents.x-k8s.io/v1"}))}}),
        json!({"metadata": {"finalizers": ["example.dev/keep"], "annotations": {"agents.x-k8s.io/claim": "c"}}}),
        json!({"metadata": {"finalizers": null, "ownerReferences": null}}),
        json!({"metadata": {"labels": {"sandgate.dev/inject": "disabled"}}}),
        json!({"spec": {"activeDeadlineSeconds": 1000}}),
        with_image(&pod, "containers", 0, "app.example/app:2"),
    ] {
        changed(&namespace, &pod, patch).await;
    }
    // They had their effect when the pod was created.
    for annotation in TENANT_ANNOTATIONS {
        let patch = json!({"metadata": {"annotations": {annotation: "changed"}}});
        changed(&namespace, &pod, patch).await;
    }
    let status = json!({"status": {"phase": "Running", "message": "as a kubelet says"}});
    let stored = namespace.change_part(&pod, "status", &status).await.unwrap();
    assert_eq!(stored["status"]["phase"], "Running");
    assert_eq!(stored["spec"]["initContainers"], pod["spec"]["initContainers"]);
}

async fn nobody_changes_the_gate_of_a_running_pod(cluster: Cluster) {
    let chart = Chart::render(&["injection.lockdown=enabled"]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let pod = namespace.admitted(&chart.injected(&warm())).await;
    let container = "spec.initContainers[sandgate]: ";
    not_changed(
        &namespace,
        &pod,
        with_image(&pod, "initContainers", 0, "evil.example/x:1"),
        container,
    )
    .await;
    not_changed(
        &namespace,
        &pod,
        with_image(&pod, "initContainers", 1, "evil.example/x:1"),
        container,
    )
    .await;
    for (patch, sentence) in [
        (
            json!({"labels": {"sandgate.dev/injected": null}}),
            "metadata.labels[sandgate.dev/*]: ",
        ),
        (
            json!({"labels": {"sandgate.dev/injected": "false"}}),
            "metadata.labels[sandgate.dev/*]: ",
        ),
        (
            json!({"labels": {"sandgate.dev/other": "x"}}),
            "metadata.labels[sandgate.dev/*]: ",
        ),
        (json!({"labels": null}), "metadata.labels[sandgate.dev/*]: "),
        (
            json!({"annotations": {"sandgate.dev/shape": null}}),
            "metadata.annotations[sandgate.dev/*]: ",
        ),
        (
            json!({"annotations": {"sandgate.dev/shape": "1"}}),
            "metadata.annotations[sandgate.dev/*]: ",
        ),
        (
            json!({"annotations": {"sandgate.dev/status": "x"}}),
            "metadata.annotations[sandgate.dev/*]: ",
        ),
    ] {
        not_changed(&namespace, &pod, json!({"metadata": patch}), sentence).await;
    }
    let before = cluster.get(&pod).await.unwrap();
    assert_eq!(before["spec"], pod["spec"]);
    assert_eq!(before["metadata"]["labels"], pod["metadata"]["labels"]);
}

/// The NetworkPolicy selects by the label: without it the pod would be open.
async fn nobody_changes_it_by_way_of_the_status_or_of_a_binding(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let pod = namespace.admitted(&chart.injected(&warm())).await;
    for metadata in [
        json!({"labels": {"sandgate.dev/injected": null}}),
        json!({"labels": {"sandgate.dev/injected": "false"}}),
        json!({"annotations": {"sandgate.dev/shape": null}}),
    ] {
        let status = namespace
            .change_part(&pod, "status", &json!({"metadata": metadata}))
            .await
            .unwrap_err();
        assert!(status.message.contains("sandgate-pod-update"), "{metadata}: {status}");
    }
    let binding = |metadata: Value| {
        let mut binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": "warm"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "some-node"},
        });
        json_patch::merge(&mut binding, &json!({"metadata": metadata}));
        binding
    };
    for metadata in [
        json!({"labels": {"sandgate.dev/injected": "false"}}),
        json!({"annotations": {"sandgate.dev/shape": "9"}}),
    ] {
        for bind in [&["pods", "warm", "binding"][..], &["bindings"]] {
            let reason = namespace
                .post(bind, &binding(metadata.clone()))
                .await
                .unwrap_err()
                .message;
            assert!(reason.contains("sandgate-pod-binding"), "{metadata}: {reason}");
        }
    }
    assert_eq!(
        cluster.get(&pod).await.unwrap()["metadata"]["labels"],
        pod["metadata"]["labels"]
    );
    // As schedulers and kubelets do it.
    let topology = json!({"labels": {"topology.kubernetes.io/zone": "a"}, "annotations": {"example.dev/device": "x"}});
    namespace
        .post(&["pods", "warm", "binding"], &binding(topology))
        .await
        .unwrap();
    let ready = json!({"metadata": {"annotations": {"example.dev/seen": "x"}}, "status": {"phase": "Running"}});
    let stored = namespace.change_part(&pod, "status", &ready).await.unwrap();
    assert_eq!(stored["spec"]["nodeName"], "some-node");
    assert_eq!(stored["metadata"]["labels"]["sandgate.dev/injected"], "true");
}

async fn nobody_passes_an_ungated_pod_off_as_gated(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let mut ordinary = sandbox_pod("ordinary");
    ordinary["metadata"].as_object_mut().unwrap().remove("labels");
    let pod = namespace.admitted(&ordinary).await;
    let injected = json!({"metadata": {"labels": {"sandgate.dev/injected": "true"}}});
    not_changed(&namespace, &pod, injected, "metadata.labels[sandgate.dev/*]: ").await;
    let shape = json!({"metadata": {"annotations": {"sandgate.dev/shape": "1"}}});
    not_changed(&namespace, &pod, shape, "metadata.annotations[sandgate.dev/*]: ").await;
    changed(
        &namespace,
        &pod,
        json!({"metadata": {"labels": {"app": "x"}, "annotations": {"a": "b"}}}),
    )
    .await;
}

async fn pods_of_an_earlier_chart_go_on(cluster: Cluster) {
    let earlier = Chart::render(&[
        "injection.image.tag=0.0.9",
        "injection.logLevel=debug",
        "trustDomain=old.example",
    ]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&earlier).await;
    let pod = namespace.admitted(&earlier.injected(&warm())).await;
    let later = Chart::render(&["injection.image.tag=0.1.1", "injection.lockdown=enabled"]);
    namespace.judged_by(&later).await;
    changed(
        &namespace,
        &pod,
        json!({"metadata": {"labels": {"agents.x-k8s.io/warm-pool-sandbox": null}}}),
    )
    .await;
    changed(
        &namespace,
        &pod,
        json!({"metadata": {"finalizers": ["example.dev/keep"]}}),
    )
    .await;
    changed(&namespace, &pod, json!({"metadata": {"finalizers": null}})).await;
    changed(&namespace, &pod, with_image(&pod, "containers", 0, "app.example/app:2")).await;
    // A gate isn't upgraded in place, not even to the chart's own image.
    let image = with_image(&pod, "initContainers", 0, "sandgate/sidecar:0.1.1");
    not_changed(&namespace, &pod, image, "spec.initContainers[sandgate]: ").await;
    let mut new = earlier.injected(&warm());
    new["metadata"]["name"] = json!("new");
    assert!(namespace.refused(&new).await.contains("sandgate-pod-create"));
}

/// What the release before injected: a startup probe instead of a hook.
async fn pods_of_an_earlier_shape_go_on(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    let (image, anchors) = (chart.config().settings.image.as_str(), new_anchors());
    let before = Shape2 {
        own_namespace: OWN_NAMESPACE,
        image,
        roots: anchors.as_pem(),
    };
    let mut earlier = before.injected(&warm());
    let pod = namespace.admitted(&earlier).await;
    namespace.judged_by(&chart).await;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "2"});
    let claimed = json!({"metadata": {
        "labels": {"agents.x-k8s.io/warm-pool-sandbox": null, "agents.x-k8s.io/claim-uid": "2"},
        "ownerReferences": [pod["metadata"]["ownerReferences"][0], owner],
        "finalizers": ["example.dev/a"],
    }});
    changed(&namespace, &pod, claimed).await;
    changed(&namespace, &pod, json!({"metadata": {"finalizers": null}})).await;
    changed(&namespace, &pod, with_image(&pod, "containers", 0, "app.example/app:2")).await;
    let status = json!({"metadata": {"annotations": {"example.dev/seen": "x"}}, "status": {"phase": "Running"}});
    namespace.change_part(&pod, "status", &status).await.unwrap();
    let debugger = json!({"name": "debug", "image": "x", "securityContext": {"runAsUser": 1000}});
    namespace.debug(&pod, &debugger).await.unwrap();
    // It still guards its gate, and new ones have the new shape.
    let image = with_image(&pod, "initContainers", 0, "evil.example/x:1");
    not_changed(&namespace, &pod, image, "spec.initContainers[sandgate]: ").await;
    let shape = json!({"metadata": {"annotations": {"sandgate.dev/shape": "3"}}});
    not_changed(&namespace, &pod, shape, "metadata.annotations[sandgate.dev/*]: ").await;
    earlier["metadata"]["name"] = json!("new");
    assert!(namespace.refused(&earlier).await.contains("sandgate-pod-create"));
    cluster.delete(&pod).await.unwrap();
}

async fn pods_from_before_the_label_go_on(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(&[]).await;
    let mut hostile = warm();
    hostile["metadata"]["name"] = json!("hostile");
    hostile["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": "/"}}]);
    let mut pods = Vec::new();
    for pod in [warm(), hostile] {
        pods.push(namespace.admitted(&pod).await);
    }
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace.name()}});
    cluster
        .merge(
            &object,
            &json!({"metadata": {"labels": {"sandgate.dev/inject": "enabled"}}}),
        )
        .await
        .unwrap();
    namespace.judged_by(&chart).await;
    for pod in &pods {
        changed(
            &namespace,
            pod,
            json!({"metadata": {"labels": {"agents.x-k8s.io/warm-pool-sandbox": null}}}),
        )
        .await;
        changed(&namespace, pod, with_image(pod, "containers", 0, "app.example/app:2")).await;
        let debugger = json!({"name": "debug", "image": "x", "securityContext": {"privileged": true}});
        namespace.debug(pod, &debugger).await.unwrap();
        let injected = json!({"metadata": {"labels": {"sandgate.dev/injected": "true"}}});
        not_changed(&namespace, pod, injected, "metadata.labels[sandgate.dev/*]: ").await;
    }
}

/// Its author chooses how long it takes to go away: until then nothing but its gate may be reached.
async fn a_pod_that_is_going_away_keeps_its_gate(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let mut held = chart.injected(&warm());
    held["metadata"]["finalizers"] = json!(["example.dev/keep", "example.dev/other"]);
    let pod = namespace.admitted(&held).await;
    cluster.delete(&pod).await.unwrap();
    assert!(cluster.get(&pod).await.unwrap()["metadata"]["deletionTimestamp"].is_string());
    let unlabelled = json!({"metadata": {"labels": {"sandgate.dev/injected": null}}});
    let status = namespace.change_part(&pod, "status", &unlabelled).await.unwrap_err();
    assert!(status.message.contains("sandgate-pod-update"), "{status}");
    for (patch, sentence) in [
        (unlabelled, "metadata.labels[sandgate.dev/*]: "),
        (
            json!({"metadata": {"annotations": {"sandgate.dev/shape": null}}}),
            "metadata.annotations[sandgate.dev/*]: ",
        ),
        (
            with_image(&pod, "initContainers", 0, "other.example/x:1"),
            "spec.initContainers[sandgate]: ",
        ),
    ] {
        not_changed(&namespace, &pod, patch, sentence).await;
    }
    let status = json!({"metadata": {"annotations": {"example.dev/seen": "x"}}, "status": {"phase": "Failed"}});
    namespace.change_part(&pod, "status", &status).await.unwrap();
    for finalizers in [json!(["example.dev/keep"]), Value::Null] {
        changed(&namespace, &pod, json!({"metadata": {"finalizers": finalizers}})).await;
    }
    until("the pod is gone", async || match cluster.get(&pod).await {
        Err(status) if status.is_not_found() => Ok(()),
        other => Err(other),
    })
    .await;
}

async fn a_gate_keeps_its_resources(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let pod = namespace.admitted(&chart.injected(&warm())).await;
    let resources = json!({"requests": {"cpu": "20m"}});
    let gate = json!({"spec": {"initContainers": [{"name": "sandgate", "resources": resources}]}});
    let status = namespace.change_part(&pod, "resize", &gate).await.unwrap_err();
    assert!(status.message.contains("spec.initContainers[sandgate]: "), "{status}");
    let app = json!({"spec": {"containers": [{"name": "app", "resources": resources}]}});
    let resized = namespace.change_part(&pod, "resize", &app).await.unwrap();
    assert_eq!(resized["spec"]["containers"][0]["resources"], resources);
    // Nor does it come to share limits with the app.
    for limits in [json!({"memory": "1Gi"}), json!({"cpu": "1"})] {
        let shared = json!({"spec": {"resources": {"limits": limits}}});
        let status = namespace.change_part(&pod, "resize", &shared).await.unwrap_err();
        assert!(status.message.contains("spec.resources.limits: "), "{status}");
    }
}

/// As on Kubernetes 1.29. Kubelets and schedulers go on while no injector answers.
async fn where_there_is_no_policy_the_webhook_guards_status_and_binding_and_nobody_waits_for_it(cluster: Cluster) {
    let (system, namespace) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let chart = Chart::render(&["admissionPolicy.enabled=false"]);
    let replica = system.start(&chart, |_, _| {});
    system.configure(&chart, replica.webhook.port()).await;
    namespace.until_admitted(&sandbox_pod("until"), has_gate).await;
    let pod = namespace.admitted(&warm()).await;
    let unlabelled = |value: String| json!({"metadata": {"labels": {"sandgate.dev/injected": value}}});
    let mut attempts = 0;
    until("the status is guarded", async || {
        // Each time another one: what is there already is no change.
        attempts += 1;
        match namespace
            .change_part(&pod, "status", &unlabelled(format!("false-{attempts}")))
            .await
        {
            Err(status) if status.message.contains("validate-metadata.sandgate.dev") => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let mut binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "warm"}, "target": {"kind": "Node", "name": "n"}});
    binding["metadata"]["labels"] = json!({"sandgate.dev/injected": "false"});
    let reason = namespace
        .post(&["pods", "warm", "binding"], &binding)
        .await
        .unwrap_err()
        .message;
    assert!(
        reason.contains("it says whose the pod is, and the binding would change it"),
        "{reason}"
    );
    let moved = json!({"status": {"podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}]}});
    let reason = namespace.change_part(&pod, "status", &moved).await.unwrap_err().message;
    assert!(reason.contains("only kubelets change them"), "{reason}");
    let token = |audiences: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": audiences}});
    let place = ["serviceaccounts", "default", "token"];
    let reason = namespace
        .post(&place, &token(json!(["api", "sandgate"])))
        .await
        .unwrap_err()
        .message;
    assert!(reason.contains("only kubelets get one"), "{reason}");
    replica.stop().await;
    namespace.post(&place, &token(json!(["api"]))).await.unwrap();
    let mut legacy = binding.clone();
    legacy["metadata"] = json!({"name": "no-such-pod"});
    let reason = namespace.post(&["bindings"], &legacy).await.unwrap_err().message;
    assert!(reason.contains("not found"), "{reason}");
    let reason = namespace
        .change_part(&pod, "status", &unlabelled("false".into()))
        .await
        .unwrap_err()
        .message;
    assert!(reason.contains("failed calling webhook"), "{reason}");
    namespace
        .change_part(&pod, "status", &json!({"status": {"phase": "Running"}}))
        .await
        .unwrap();
    binding["metadata"].as_object_mut().unwrap().remove("labels");
    namespace.post(&["pods", "warm", "binding"], &binding).await.unwrap();
}
