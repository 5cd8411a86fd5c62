//! Whatever is changed about a gate before a pod is stored, the API server alone refuses it: each field that the injector
//! sets, one at a time, and each that it doesn't set.

use sandbox_injector::decide::Decision;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub(crate) const TESTS: &[Test] = tests![
    no_field_of_a_gate_can_be_changed_or_removed,
    no_field_of_a_gate_with_a_pod_certificate_can_be_changed_or_removed,
    no_field_of_a_locked_down_gate_can_be_changed_or_removed,
    nothing_can_be_added_to_a_gate,
    a_gate_is_left_what_it_needs_to_go_on_running,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
/// What other admission may choose for a gate, within bounds: nothing that anybody is let in by.
const FREE: [&str; 5] = [
    "imagePullPolicy",
    "terminationMessagePolicy",
    "expirationSeconds",
    "requests",
    "limits",
];

/// A sandbox with a volume of its own, to have something to mount.
fn pod() -> Value {
    let mut pod = sandbox_pod("sandbox");
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 8888}});
    pod
}

/// Where the gate's parts are, and how a refusal names them.
fn parts(pod: &Value) -> Vec<(String, String)> {
    let mut parts = Vec::new();
    for (list, place) in [("initContainers", "spec.initContainers"), ("volumes", "spec.volumes")] {
        for (index, item) in pod["spec"][list].as_array().unwrap().iter().enumerate() {
            let name = item["name"].as_str().unwrap();
            if name.starts_with("sandgate") {
                parts.push((format!("/spec/{list}/{index}"), format!("{place}[{name}]")));
            }
        }
    }
    parts.push((
        pointer("labels", "injected"),
        "metadata.labels[sandgate.dev/injected]".into(),
    ));
    parts.push((
        pointer("annotations", "shape"),
        "metadata.annotations[sandgate.dev/shape]".into(),
    ));
    parts
}

fn pointer(map: &str, name: &str) -> String {
    format!("/metadata/{map}/sandgate.dev~1{name}")
}

/// The pointers of a value and of everything in it.
fn within(value: &Value, pointer: &str, found: &mut Vec<String>) {
    found.push(pointer.to_owned());
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(name, value)| within(value, &format!("{pointer}/{name}"), found)),
        Value::Array(list) => {
            let places = list.iter().enumerate();
            places.for_each(|(index, value)| within(value, &format!("{pointer}/{index}"), found));
        }
        _ => {}
    }
}

/// The field that a pointer ends in; of a list's item, the list's.
fn field(pointer: &str) -> &str {
    let is_index = |token: &&str| token.parse::<usize>().is_err();
    pointer.rsplit('/').find(is_index).unwrap_or_default()
}

/// Other values that the API server would take in this place.
fn others(pointer: &str, value: &Value) -> Vec<Value> {
    let text = |texts: &[&str]| texts.iter().map(|text| json!(text)).collect();
    match value {
        Value::Bool(value) => vec![json!(!value)],
        Value::Number(number) if field(pointer) == "expirationSeconds" => {
            assert_eq!(number.as_u64(), Some(3600));
            vec![json!(601), json!(7200)]
        }
        Value::Number(number) => vec![json!(number.as_u64().unwrap() + 1)],
        Value::String(value) => match field(pointer) {
            "image" => text(&["evil.example/sidecar:1"]),
            "name" if pointer.contains("/volumeMounts/") => text(&["data"]),
            "name" => text(&["other"]),
            "mountPath" => text(&["/elsewhere"]),
            "protocol" => text(&["UDP", "SCTP"]),
            "scheme" => text(&["HTTPS"]),
            "type" => text(&["Unconfined"]),
            "drop" | "add" => text(&["CHOWN", "all"]),
            "fieldPath" => text(&["spec.nodeName", "metadata.labels['who']"]),
            "restartPolicy" => text(&["Never", "OnFailure"]),
            "imagePullPolicy" => text(&["Never", "Always"]),
            "terminationMessagePolicy" => text(&["File"]),
            "memory" | "sizeLimit" => text(&["65Mi"]),
            "cpu" => text(&["11m"]),
            "medium" => text(&["", "HugePages"]),
            _ => vec![json!(format!("{value}x")), json!("/bin/sh")],
        },
        Value::Object(_) | Value::Array(_) => vec![],
        Value::Null => panic!("null at {pointer}"),
    }
}

fn removed(pod: &Value, pointer: &str) -> Value {
    let mut pod = pod.clone();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match pod.pointer_mut(parent).unwrap() {
        Value::Object(map) => drop(map.remove(&last.replace("~1", "/"))),
        Value::Array(items) => drop(items.remove(last.parse().unwrap())),
        _ => unreachable!("a value in neither map nor list"),
    }
    pod
}

/// Every pod that differs in one value, and where.
fn variations(pod: &Value) -> Vec<(String, String, Value)> {
    let mut variations = Vec::new();
    for (part, place) in parts(pod) {
        let mut pointers = Vec::new();
        within(pod.pointer(&part).unwrap(), &part, &mut pointers);
        for pointer in pointers {
            variations.push((pointer.clone(), place.clone(), removed(pod, &pointer)));
            for other in others(&pointer, pod.pointer(&pointer).unwrap()) {
                let mut changed = pod.clone();
                *changed.pointer_mut(&pointer).unwrap() = other;
                variations.push((pointer.clone(), place.clone(), changed));
            }
        }
    }
    variations
}

#[derive(Default)]
struct Tally {
    by_policy: usize,
    free: BTreeSet<String>,
}

/// Sends every pod and sees what becomes of it. One that is let through must be stored as what was injected.
async fn judge(namespace: &Namespace, original: &Value, variations: Vec<(String, String, Value)>) -> Tally {
    let stored = namespace.dry_run(original).await.unwrap();
    let mut tally = Tally::default();
    for (pointer, place, pod) in variations {
        let what = format!("{pointer}, now {:?}", pod.pointer(&pointer));
        match namespace.dry_run(&pod).await {
            Err(status) if status.message.contains("sandgate-pod-create") => {
                // Without its name nothing is known to be the gate.
                let named = status.message.contains(&place) || status.message.contains("spec.initContainers: ");
                assert!(named, "{what}: {status}");
                assert_eq!(status.code, 403, "{status:?}");
                tally.by_policy += 1;
            }
            Err(status) => {
                assert_eq!(status.reason, "Invalid", "{what}: {status:?}");
            }
            Ok(admitted) if parts_of(&admitted) == parts_of(&stored) => {}
            Ok(_) => {
                let in_free = FREE
                    .into_iter()
                    .find(|free| pointer.split('/').any(|token| token == *free));
                // What the gate probes over loopback is the app's own choice.
                let probes = pointer.contains("/initContainers/1/env/4").then_some("probes");
                // The webhook knows which roots they are; no policy does.
                let roots = pointer.ends_with("/env/3/value").then_some("roots");
                let free = in_free.or(probes).or(roots);
                tally
                    .free
                    .insert(free.unwrap_or_else(|| panic!("admitted: {what}")).to_owned());
            }
        }
    }
    tally
}

fn parts_of(pod: &Value) -> Vec<Value> {
    parts(pod)
        .into_iter()
        .map(|(part, _)| pod.pointer(&part).cloned().unwrap_or_default())
        .collect()
}

async fn no_field_of_a_gate_can_be_changed_or_removed(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let injected = chart.injected(&pod());
    let tally = judge(&namespace, &injected, variations(&injected)).await;
    assert!(tally.by_policy > 100, "{}", tally.by_policy);
    let expected = [
        "expirationSeconds",
        "imagePullPolicy",
        "limits",
        "requests",
        "roots",
        "terminationMessagePolicy",
    ];
    assert_eq!(tally.free, BTreeSet::from(expected.map(String::from)));
}

async fn no_field_of_a_gate_with_a_pod_certificate_can_be_changed_or_removed(cluster: Cluster) {
    let chart = Chart::render(&["injection.identitySource=pod-certificates"]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let injected = chart.injected(&pod());
    let tally = judge(&namespace, &injected, variations(&injected)).await;
    assert!(tally.by_policy > 100, "{}", tally.by_policy);
    // The token's lifetime, and nothing of a certificate.
    assert!(!tally.free.contains("expirationSeconds"), "{:?}", tally.free);
    assert!(!tally.free.contains("maxExpirationSeconds"), "{:?}", tally.free);
}

async fn no_field_of_a_locked_down_gate_can_be_changed_or_removed(cluster: Cluster) {
    let chart = Chart::render(&["injection.lockdown=enabled"]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let injected = chart.injected(&pod());
    let tally = judge(&namespace, &injected, variations(&injected)).await;
    assert!(tally.by_policy > 150, "{}", tally.by_policy);
}

async fn nothing_can_be_added_to_a_gate(cluster: Cluster) {
    let chart = Chart::render(&["injection.lockdown=enabled"]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let injected = chart.injected(&pod());
    let mut variations = Vec::new();
    for (part, place) in parts(&injected).into_iter().take(2) {
        for (field, value) in fields() {
            let mut changed = injected.clone();
            changed.pointer_mut(&part).unwrap()[field] = value;
            variations.push((format!("{part}/{field}"), place.clone(), changed));
        }
        for (list, item) in items() {
            let mut changed = injected.clone();
            let container = changed.pointer_mut(&part).unwrap();
            if container[list].is_null() {
                container[list] = json!([]);
            }
            container[list].as_array_mut().unwrap().push(item);
            variations.push((format!("{part}/{list}"), place.clone(), changed));
        }
        for (field, value) in nested() {
            let mut changed = injected.clone();
            let Some(parent) = changed.pointer_mut(&format!("{part}/{}", field.rsplit_once('/').unwrap().0)) else {
                continue;
            };
            parent[field.rsplit_once('/').unwrap().1] = value;
            variations.push((format!("{part}/{field}"), place.clone(), changed));
        }
    }
    let expected = variations.len();
    let tally = judge(&namespace, &injected, variations).await;
    assert!(tally.by_policy > 40, "{} of {expected}", tally.by_policy);
    assert!(tally.free.is_empty(), "{:?}", tally.free);
}

async fn a_gate_is_left_what_it_needs_to_go_on_running(cluster: Cluster) {
    let namespace = cluster.namespace(OPTED_IN).await;
    let chart = Chart::render(&["injection.lockdown=enabled", "injection.resources.limits.memory=24Mi"]);
    namespace.judged_by(&chart).await;
    let injected = chart.injected(&pod());
    let rows = [
        (json!({"limits": {"memory": "32Mi"}}), true),
        (json!({"limits": {"memory": "1Gi"}}), true),
        (json!({"limits": {"memory": "100M"}}), true),
        // The operator's own.
        (json!({"limits": {"memory": "24Mi"}}), true),
        (json!({"limits": {"cpu": "8", "ephemeral-storage": "1Gi"}}), true),
        (
            json!({"requests": {"cpu": "1m", "memory": "20Mi", "ephemeral-storage": "1Mi"}}),
            true,
        ),
        (
            json!({"limits": {"memory": "6Mi", "cpu": "1m"}, "requests": {"memory": "6Mi", "cpu": "1m"}}),
            false,
        ),
        (json!({"limits": {"memory": "23Mi"}}), false),
        (json!({"limits": {"memory": "25Mi"}}), false),
        (json!({"limits": {"memory": "33554431"}}), false),
        (json!({"limits": {"memory": "1025Mi"}}), false),
        (json!({"limits": {"memory": null}}), false),
        (json!({"limits": null}), false),
        (
            json!({"limits": {"example.com/dev": "1"}, "requests": {"example.com/dev": "1"}}),
            false,
        ),
        (
            json!({"limits": {"hugepages-2Mi": "2Mi"}, "requests": {"hugepages-2Mi": "2Mi"}}),
            false,
        ),
    ];
    for (index, name) in ["sandgate-lockdown", "sandgate"].into_iter().enumerate() {
        let with = |field: &str, value: &Value| {
            let mut changed = injected.clone();
            let container = &mut changed["spec"]["initContainers"][index];
            json_patch::merge(container, &json!({field: value}));
            changed
        };
        let refused = async |pod: &Value, field: &str| {
            let reason = namespace.refused(pod).await;
            let place = format!("spec.initContainers[{name}].{field}: ");
            assert!(
                reason.contains("sandgate-pod-create") && reason.contains(&place),
                "{reason}"
            );
            // The webhook has no other opinion.
            assert!(matches!(chart.decide("sandboxes", pod), Decision::Deny(_)), "{pod}");
        };
        for (resources, passes) in &rows {
            let pod = with("resources", resources);
            if *passes {
                namespace
                    .dry_run(&pod)
                    .await
                    .unwrap_or_else(|status| panic!("{resources}: {status}"));
                assert!(
                    matches!(chart.decide("sandboxes", &pod), Decision::Inject(_)),
                    "{resources}"
                );
            } else {
                refused(&pod, "resources").await;
            }
        }
        namespace
            .dry_run(&with("imagePullPolicy", &json!("Always")))
            .await
            .unwrap();
        refused(&with("imagePullPolicy", &json!("Never")), "imagePullPolicy").await;
    }
}

/// Fields of a container that the injector doesn't set.
fn fields() -> Vec<(&'static str, Value)> {
    vec![
        ("workingDir", json!("/tmp")),
        ("envFrom", json!([{"secretRef": {"name": "s"}}])),
        ("livenessProbe", json!({"tcpSocket": {"port": 14480}})),
        ("startupProbe", json!({"httpGet": {"path": "/healthz", "port": 14480}})),
        ("lifecycle", json!({"preStop": {"exec": {"command": ["/bin/sh"]}}})),
        ("stdin", json!(true)),
        ("tty", json!(true)),
        ("terminationMessagePath", json!("/run/sandgate/tls.key")),
        ("volumeDevices", json!([{"name": "data", "devicePath": "/dev/x"}])),
        (
            "resizePolicy",
            json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]),
        ),
    ]
}

/// Items for lists of a container.
fn items() -> Vec<(&'static str, Value)> {
    vec![
        ("args", json!("--log-level=trace")),
        ("command", json!("x")),
        ("env", json!({"name": "SANDGATE_EXTRA", "value": "x"})),
        (
            "env",
            json!({"name": "SANDGATE_APP_PROBES", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
        ),
        ("env", json!({"name": "SSL_CERT_FILE", "value": "/x"})),
        ("ports", json!({"name": "more", "containerPort": 9999})),
        (
            "ports",
            json!({"name": "more", "containerPort": 9999, "hostPort": 9999}),
        ),
        ("volumeMounts", json!({"name": "data", "mountPath": "/data"})),
    ]
}

/// Fields further down.
fn nested() -> Vec<(&'static str, Value)> {
    vec![
        ("securityContext/seLinuxOptions", json!({"type": "container_t"})),
        ("securityContext/appArmorProfile", json!({"type": "Unconfined"})),
        ("securityContext/capabilities/add", json!(["SYS_ADMIN"])),
        (
            "securityContext/seccompProfile",
            json!({"type": "Localhost", "localhostProfile": "x"}),
        ),
        ("lifecycle/preStop", json!({"exec": {"command": ["/sandbox-sidecar"]}})),
        ("lifecycle/stopSignal", json!("SIGKILL")),
        ("readinessProbe/httpGet/host", json!("127.0.0.1")),
        (
            "readinessProbe/httpGet/httpHeaders",
            json!([{"name": "A", "value": "b"}]),
        ),
        (
            "readinessProbe/httpGet",
            json!({"path": "/healthz", "port": 14480, "scheme": "HTTP"}),
        ),
        ("ports/0/hostPort", json!(14443)),
        ("volumeMounts/0/subPath", json!("x")),
        ("volumeMounts/0/mountPropagation", json!("HostToContainer")),
        ("resources/claims", json!([{"name": "device"}])),
    ]
}
