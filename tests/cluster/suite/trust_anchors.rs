//! The roots that gates are given: nobody puts others in their place, and nobody notices when they change.

use crate::injector::{OPTED_IN, base64, configuration, secret, serving};
use sandbox_injector::authority::NewRoot;
use sandgate_cluster_tests::admission::at_address;
use sandgate_cluster_tests::chart::{Chart, new_anchors, sandbox_pod};
use sandgate_cluster_tests::creations::{Creations, has_gate};
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::service::Service;
use sandgate_cluster_tests::webhook::StubWebhook;
use sandgate_cluster_tests::{Cluster, Namespace, documents, runner::Test, tests, until};
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) const TESTS: &[Test] = tests![
    a_gate_without_roots_is_refused_by_the_api_server_alone,
    // Webhook configurations are for the whole cluster.
    @alone roots_that_another_webhook_puts_into_a_gate_are_refused,
    @alone roots_that_nobody_knows_are_refused_by_the_validating_webhook_alone,
    @alone a_root_is_replaced_between_creations_and_none_is_refused,
];

const ROOTS: &str = "/spec/initContainers/0/env/3";

/// A webhook that gives every gate another root.
const OTHERS: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: another}
webhooks:
  - name: another.webhook.example
    admissionReviewVersions: [v1]
    clientConfig: {service: {name: a, namespace: a, path: /}}
    rules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
    reinvocationPolicy: IfNeeded
    sideEffects: None
";

/// The roots that a stored pod's gate was given.
fn roots(pod: &Value) -> &str {
    let variable = pod.pointer(ROOTS).unwrap();
    assert_eq!(variable["name"], "SANDGATE_TRUST_ANCHORS");
    variable["value"].as_str().unwrap()
}

/// A stored pod as somebody could have written it.
pub(crate) fn by_hand(stored: &Value, name: &str) -> Value {
    let mut pod = sandbox_pod(name);
    for part in ["labels", "annotations"] {
        pod["metadata"][part] = stored["metadata"][part].clone();
    }
    pod["spec"] = stored["spec"].clone();
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.remove("nodeName");
    }
    pod
}

async fn a_gate_without_roots_is_refused_by_the_api_server_alone(cluster: Cluster) {
    for (values, gate) in [(&[][..], 0), (&["injection.lockdown=enabled"], 1)] {
        let chart = Chart::render(values);
        let namespace = cluster.namespace(OPTED_IN).await;
        namespace.judged_by(&chart).await;
        let mut probed = sandbox_pod("sandbox");
        probed["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 8888}});
        for pod in [sandbox_pod("sandbox"), probed] {
            refuses_other_roots(&namespace, &chart.injected(&pod), gate).await;
        }
    }
}

async fn refuses_other_roots(namespace: &Namespace, injected: &Value, gate: usize) {
    let with = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut pod = injected.clone();
        change(pod["spec"]["initContainers"][gate]["env"].as_array_mut().unwrap());
        pod
    };
    let refused = async |pod: &Value| {
        let status = namespace.dry_run(pod).await.unwrap_err();
        let told = status.message.contains("sandgate-pod-create")
            && status.message.contains("spec.initContainers[sandgate].env");
        assert!(told && status.code == 403, "{pod}: {status:?}");
    };
    let text = injected["spec"]["initContainers"][gate]["env"][3]["value"]
        .as_str()
        .unwrap();
    refused(&with(&|env| drop(env.remove(3)))).await;
    refused(&with(&|env| env[3]["name"] = "SANDGATE_OTHER".into())).await;
    refused(&with(&|env| env.swap(2, 3))).await;
    refused(&with(&|env| env.push(env[3].clone()))).await;
    let from = json!({"name": "SANDGATE_TRUST_ANCHORS", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
    refused(&with(&|env| env[3] = from.clone())).await;
    for roots in [
        "",
        "junk",
        &format!("\n{text}"),
        "-----BEGIN PRIVATE KEY-----\n",
        &text.repeat(16_384 / text.len() + 1),
    ] {
        refused(&with(&|env| env[3]["value"] = roots.into())).await;
    }
    namespace.dry_run(injected).await.unwrap();
    // Roots of another day, of which no policy knows.
    let other = new_anchors();
    for roots in [format!("{text}{}", other.as_pem()), text.repeat(16_384 / text.len())] {
        namespace
            .dry_run(&with(&|env| env[3]["value"] = roots.as_str().into()))
            .await
            .unwrap();
    }
}

async fn roots_that_another_webhook_puts_into_a_gate_are_refused(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let _replica = serving(&system, &sandboxes).await;
    let theirs = new_anchors().as_pem().to_owned();
    let another = StubWebhook::start(move |request| {
        let there = request["object"].pointer(ROOTS).map(|variable| &variable["value"]);
        if there.is_none_or(|value| *value == theirs) {
            return json!({"allowed": true});
        }
        let patch = json!([{"op": "replace", "path": format!("{ROOTS}/value"), "value": theirs}]);
        json!({"allowed": true, "patchType": "JSONPatch", "patch": base64(&patch.to_string())})
    })
    .await;
    let theirs = at_address(&documents(OTHERS)[0], another.address(), another.ca_pem());
    sandboxes.configure(&[theirs]).await;
    let says = "spec.initContainers[0].env[3].value: it isn't what would be injected";
    sandboxes.until_refused(&sandbox_pod("until"), says).await;
    let reason = sandboxes.refused(&sandbox_pod("box")).await;
    assert!(
        reason.contains("denied the request") && reason.contains(says),
        "{reason}"
    );
}

async fn roots_that_nobody_knows_are_refused_by_the_validating_webhook_alone(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let _replica = serving(&system, &sandboxes).await;
    let stored = sandboxes.dry_run(&sandbox_pod("gated")).await.unwrap();
    cluster.delete(&configuration("Mutating")).await.unwrap();
    let missing = "the mutating webhook inject.sandgate.dev wasn't called";
    sandboxes.until_refused(&sandbox_pod("until"), missing).await;
    let (own, other) = (roots(&stored).to_owned(), new_anchors().as_pem().to_owned());
    for unknown in [&other, &format!("{own}{other}"), &format!("{own}{own}")] {
        let mut pod = by_hand(&stored, "unknown");
        pod.pointer_mut(ROOTS).unwrap()["value"] = unknown.as_str().into();
        let reason = sandboxes.refused(&pod).await;
        assert!(
            reason.contains("admission webhook \"validate.sandgate.dev\" denied the request")
                && reason.contains("spec.initContainers[0].env[3].value: it isn't what would be injected"),
            "{reason}"
        );
    }
    sandboxes.admitted(&by_hand(&stored, "known")).await;
}

async fn a_root_is_replaced_between_creations_and_none_is_refused(cluster: Cluster) {
    let (system, sandboxes) = (System::install(&cluster).await, cluster.namespace(OPTED_IN).await);
    let (chart, service) = (Chart::render(&[]), Service::start().await);
    // Either may be asked first, and they look at the Secret at different moments.
    let start = || {
        let replica = system.start(&chart, |_, timing| {
            timing.check = Duration::from_millis(500);
            timing.settle = Duration::from_secs(3);
        });
        service.add(&replica);
        replica
    };
    let (stays, goes) = (start(), start());
    for replica in [&stays, &goes] {
        replica.until_ready().await;
    }
    system.configure(&chart, service.port()).await;
    sandboxes.until_admitted(&sandbox_pod("until"), has_gate).await;
    let creations = Creations::start(&sandboxes);
    creations.more(5).await;
    let given = async |count: usize, last: &str| {
        let what = format!("gates are given {count} roots");
        until(&what, async || {
            let made = creations.made();
            let latest = made.last().unwrap().as_ref().map_err(Clone::clone)?;
            let text = roots(latest);
            let right = text.matches("BEGIN").count() == count && text.ends_with(last);
            right.then_some(()).ok_or(text.to_owned())
        })
        .await;
        creations.more(5).await;
    };
    let new = NewRoot::generate().unwrap();
    let next = json!({"data": {"next.crt": base64(&new.certificate_pem)}});
    cluster.merge(&secret(&system), &next).await.unwrap();
    given(2, &new.certificate_pem).await;
    let sign = json!({"data": {
        "tls.crt": base64(&new.certificate_pem), "tls.key": base64(&new.key_pem), "next.crt": null,
    }});
    cluster.merge(&secret(&system), &sign).await.unwrap();
    given(1, &new.certificate_pem).await;
    // At once, as after a theft. What two replicas know then, one of them doesn't for a moment.
    goes.stop().await;
    let at_once = NewRoot::generate().unwrap();
    let stolen = json!({"data": {"tls.crt": base64(&at_once.certificate_pem), "tls.key": base64(&at_once.key_pem)}});
    cluster.merge(&secret(&system), &stolen).await.unwrap();
    given(1, &at_once.certificate_pem).await;
    creations.none_failed();
    assert!(creations.made().iter().flatten().all(has_gate));
}
