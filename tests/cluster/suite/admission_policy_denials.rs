//! Everything that keeps the node and the gate from a sandbox's own containers, judged by the API server alone, although
//! the webhook decides the same: neither relies on the other.

use sandbox_injector::decide::Decision;
use sandbox_injector::deny::DenyReason;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::{Answer, Cluster, Namespace, documents, runner::Test, tests};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub(crate) const TESTS: &[Test] = tests![
    whatever_the_webhook_denies_the_api_server_refuses_by_itself,
    under_lockdown_nothing_goes_around_the_closed_network,
    no_ephemeral_container_gets_what_others_are_denied,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];

/// What the API server says for each kind of denial. The kinds that aren't here concern the injector alone: annotations
/// that it can't follow, and what isn't a pod.
const SENTENCES: &[(DenyReason, &[&str])] = &[
    (
        DenyReason::HostNamespace,
        &["spec.hostNetwork, spec.hostPID or spec.hostIPC: "],
    ),
    (DenyReason::HostPath, &["spec.volumes[*].hostPath: "]),
    (DenyReason::HostPort, &["].ports[*].hostPort: "]),
    (
        DenyReason::ProbeHost,
        &[": with a host the kubelet would call another host"],
    ),
    (DenyReason::Privileged, &["].securityContext.privileged: "]),
    (DenyReason::Capability, &["].securityContext.capabilities.add: "]),
    (DenyReason::Sysctl, &["spec.securityContext.sysctls: "]),
    (DenyReason::Seccomp, &["securityContext: its seccompProfile, "]),
    (
        DenyReason::AppArmor,
        &[
            "securityContext: its seccompProfile, ",
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/*]: ",
            "spec.securityContext.appArmorProfile: ",
        ],
    ),
    (DenyReason::SeLinux, &["securityContext: its seccompProfile, "]),
    (DenyReason::ProcMount, &["].securityContext.procMount: "]),
    (DenyReason::Windows, &["the gate runs on Linux only"]),
    (DenyReason::SharedProcesses, &["spec.shareProcessNamespace: "]),
    (DenyReason::BlockDevice, &["].volumeDevices: "]),
    (
        DenyReason::OwnUser,
        &["securityContext: 2102 is the gate's user and group"],
    ),
    (
        DenyReason::ReservedName,
        &[
            "].name: sandgate and sandgate-lockdown are the gate's own names",
            "].ports: 14443, 14480, sandgate-mesh and sandgate-health are the gate's",
            "].targetContainerName: nobody gets into the gate",
            "metadata.labels[sandgate.dev/*]: ",
            "metadata.annotations[sandgate.dev/*]: ",
            "metadata.annotations[container.apparmor.security.beta.kubernetes.io/sandgate*]: ",
        ],
    ),
    (
        DenyReason::OwnVolume,
        &["it uses a volume with the gate's key and token"],
    ),
    (DenyReason::OwnCredential, &["spec.volumes[*].projected.sources: "]),
    (
        DenyReason::PortConflict,
        &["].ports: 14443, 14480, ", ": 14443 and 14480 are the gate's ports"],
    ),
    (DenyReason::PodLimits, &["spec.resources.limits: "]),
    (DenyReason::MirrorPod, &["only a kubelet makes mirror pods"]),
    (DenyReason::InjectLabel, &["metadata.labels[sandgate.dev/inject]: "]),
    (DenyReason::PodName, &["metadata.name: it can't name a sandbox"]),
    (DenyReason::RuntimeClass, &["spec.runtimeClassName: "]),
    (DenyReason::Probe, &["the pod's closed network would drop it"]),
];

pub(crate) fn sentences(kind: &str) -> Option<&'static [&'static str]> {
    SENTENCES
        .iter()
        .find(|(reason, _)| reason.as_str() == kind)
        .map(|(_, sentences)| *sentences)
}

/// One way to be refused.
pub(crate) struct Row {
    pub(crate) kind: String,
    /// Added to the pod.
    pub(crate) pod: Value,
    /// Added to one of its containers.
    pub(crate) container: Value,
    /// What the webhook says.
    pub(crate) says: String,
    /// Whether the API server would take such a pod with a gate, but for the policy.
    valid: bool,
}

impl Row {
    /// A valid one of no table.
    pub(crate) fn new(kind: &str, pod: Value, container: Value) -> Self {
        let (kind, says) = (kind.to_owned(), String::new());
        Self {
            kind,
            pod,
            container,
            says,
            valid: true,
        }
    }
}

/// The rows of the injector's own table.
pub(crate) fn rows() -> Vec<Row> {
    let golden = documents(include_str!("../../golden/denials.yaml")).remove(0);
    let rows = golden.as_array().unwrap().iter();
    rows.map(|row| Row {
        says: row["says"].as_str().unwrap().trim().to_owned(),
        valid: row["valid"] != false,
        ..Row::new(
            row["kind"].as_str().unwrap(),
            row["pod"].clone(),
            row["container"].clone(),
        )
    })
    .collect()
}

/// The pod with an init container and a sidecar of its own beside the app.
pub(crate) fn base() -> Value {
    let mut pod = sandbox_pod("sandbox");
    pod["spec"]["initContainers"] = json!([
        {"name": "prepare", "image": "app.example/app:1"},
        {"name": "helper", "image": "app.example/app:1", "restartPolicy": "Always"},
    ]);
    pod
}

/// The pods that a row makes: a container's row counts in every list.
fn made_of(row: &Row) -> Vec<Value> {
    if !row.pod.is_null() {
        let mut pod = base();
        json_patch::merge(&mut pod, &row.pod);
        return vec![pod];
    }
    let places = ["/spec/containers/0", "/spec/initContainers/0", "/spec/initContainers/1"];
    // Only containers that go on running have probes and hooks.
    let goes_on = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"];
    let probes = goes_on.iter().any(|field| row.container.get(*field).is_some());
    let places = places
        .into_iter()
        .filter(|place| !probes || *place != "/spec/initContainers/0");
    let pods = places.map(|place| {
        let mut pod = base();
        json_patch::merge(pod.pointer_mut(place).unwrap(), &row.container);
        pod
    });
    pods.collect()
}

/// The pod with its gate, although the injector denies it: as if somebody else had put it there.
pub(crate) fn with_gate(chart: &Chart, pod: &Value) -> Value {
    let example = chart.injected(&sandbox_pod("example"));
    let mut pod = pod.clone();
    let parts = |list: &str| example["spec"][list].as_array().unwrap().clone();
    let mut inits = parts("initContainers");
    inits.extend(pod["spec"]["initContainers"].as_array().into_iter().flatten().cloned());
    pod["spec"]["initContainers"] = inits.into();
    let mut volumes: Vec<_> = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    volumes.extend(parts("volumes"));
    pod["spec"]["volumes"] = volumes.into();
    for map in ["labels", "annotations"] {
        let mine: Map<_, _> = example["metadata"][map].as_object().unwrap().clone();
        for (name, value) in mine.into_iter().filter(|(name, _)| name != "sandgate.dev/inject") {
            pod["metadata"][map][name] = value;
        }
    }
    pod
}

/// Whether the API server's policy refused it with one of these sentences. Otherwise it wasn't valid anyway.
pub(crate) fn refused_by_policy(what: &str, answer: Answer, policy: &str, sentences: &[&str]) -> bool {
    let status = answer.err().unwrap_or_else(|| panic!("admitted: {what}"));
    if status.message.contains(policy) {
        let told = sentences.iter().any(|sentence| status.message.contains(sentence));
        assert!(told, "{what}: {status}");
        return true;
    }
    assert!(
        ["Invalid", "BadRequest"].contains(&status.reason.as_str()),
        "{what}: {status:?}"
    );
    false
}

/// Each row is denied by the webhook's decision, and by the policy in at least one place where it is valid. Returns the
/// kinds that the policy refused.
pub(crate) async fn judge(namespace: &Namespace, chart: &Chart, rows: &[Row]) -> BTreeSet<String> {
    let (mut by_policy, mut mistaken) = (BTreeSet::new(), Vec::new());
    for row in rows {
        let Some(sentences) = sentences(&row.kind) else {
            continue;
        };
        let what = format!("{}: {} {}", row.kind, row.pod, row.container);
        let mut judged = false;
        for pod in made_of(row) {
            let Decision::Deny(denials) = chart.decide("sandboxes", &pod) else {
                panic!("the webhook lets it through: {what}");
            };
            assert!(
                denials.iter().any(|denial| denial.reason.as_str() == row.kind),
                "{what}: {denials:?}"
            );
            // With the gate's volume the API server lets no mirror pod through anyway.
            let gated = if row.kind == "mirror_pod" {
                pod
            } else {
                with_gate(chart, &pod)
            };
            let answer = namespace.dry_run(&gated).await;
            judged |= refused_by_policy(&what, answer, "sandgate-pod-create", sentences);
        }
        if judged != row.valid {
            mistaken.push(what);
        }
        if judged {
            by_policy.insert(row.kind.clone());
        }
    }
    assert!(
        mistaken.is_empty(),
        "they say otherwise whether they are valid: {mistaken:#?}"
    );
    by_policy
}

async fn whatever_the_webhook_denies_the_api_server_refuses_by_itself(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    // The graft itself is good.
    namespace.dry_run(&with_gate(&chart, &base())).await.unwrap();
    let by_policy = judge(&namespace, &chart, &rows()).await;
    let alone = ["annotation", "malformed", "tampered", "runtime_class", "probe"];
    let expected: BTreeSet<_> = DenyReason::ALL
        .iter()
        .map(|reason| reason.as_str().to_owned())
        .filter(|kind| !alone.contains(&kind.as_str()))
        .collect();
    assert_eq!(by_policy, expected);
}

async fn under_lockdown_nothing_goes_around_the_closed_network(cluster: Cluster) {
    let chart = Chart::render(&["injection.lockdown=enabled"]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let injected = chart.injected(&base());
    namespace.dry_run(&injected).await.unwrap();
    // Each as another webhook might leave it, or as it would be if the injector had been skipped.
    let probes = [
        json!({"livenessProbe": {"httpGet": {"port": 8888}}}),
        json!({"readinessProbe": {"tcpSocket": {"port": 8888}}}),
        json!({"startupProbe": {"grpc": {"port": 8888}}}),
        json!({"lifecycle": {"postStart": {"httpGet": {"port": 8888}}}}),
        json!({"lifecycle": {"preStop": {"httpGet": {"port": 8888}}}}),
        json!({"livenessProbe": {"httpGet": {"port": 14480, "path": "/app-probe/app/readinessProbe"}}}),
        json!({"livenessProbe": {"httpGet": {"port": 14480, "path": "/metrics"}}}),
    ];
    for probe in probes {
        let mut changed = injected.clone();
        json_patch::merge(&mut changed["spec"]["containers"][0], &probe);
        let answer = namespace.dry_run(&changed).await;
        assert!(refused_by_policy(
            &probe.to_string(),
            answer,
            "sandgate-pod-create",
            sentences("probe").unwrap()
        ));
    }
    let mut own = injected.clone();
    own["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": 14480}});
    let answer = namespace.dry_run(&own).await;
    assert!(refused_by_policy(
        "the gate's port",
        answer,
        "sandgate-pod-create",
        sentences("port_conflict").unwrap()
    ));
    for place in ["/spec/containers/0", "/spec/initContainers/2", "/spec/initContainers/3"] {
        let mut raw = injected.clone();
        raw.pointer_mut(place).unwrap()["securityContext"]["capabilities"]["drop"] = json!(["CHOWN"]);
        let answer = namespace.dry_run(&raw).await;
        assert!(refused_by_policy(
            place,
            answer,
            "sandgate-pod-create",
            &["with NET_RAW it could go around"]
        ));
    }
    let mut class = injected.clone();
    class["spec"]["runtimeClassName"] = json!("unlisted");
    let class_object = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "unlisted"}, "handler": "x"});
    cluster.remove_afterwards(&class_object);
    cluster.apply_all(&[class_object]).await;
    let sentence = sentences("runtime_class").unwrap();
    sandgate_cluster_tests::until("the class is known", async || match namespace.dry_run(&class).await {
        Err(status) if sentence.iter().any(|sentence| status.message.contains(sentence)) => Ok(()),
        other => Err(other),
    })
    .await;
}

async fn no_ephemeral_container_gets_what_others_are_denied(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    // What some of the rows need to be valid.
    let mut pod = base();
    pod["spec"]["hostUsers"] = json!(false);
    pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let pod = namespace.admitted(&chart.injected(&pod)).await;
    let mut by_policy = BTreeSet::new();
    for row in rows().iter().filter(|row| row.pod.is_null()) {
        let mut debugger = json!({"name": "debug", "image": "app.example/debug:1", "targetContainerName": "app"});
        json_patch::merge(&mut debugger, &row.container);
        let what = format!("{}: {debugger}", row.kind);
        let answer = namespace.debug(&pod, &debugger).await;
        if refused_by_policy(&what, answer, "sandgate-pod-update", sentences(&row.kind).unwrap()) {
            by_policy.insert(row.kind.as_str().to_owned());
        }
    }
    let expected = [
        "apparmor",
        "capability",
        "own_user",
        "own_volume",
        "privileged",
        "proc_mount",
        "reserved_name",
        "seccomp",
        "selinux",
        "windows",
    ];
    assert_eq!(by_policy, BTreeSet::from(expected.map(String::from)));
    for target in ["sandgate", "sandgate-lockdown"] {
        let debugger = json!({"name": "debug", "image": "app.example/debug:1", "targetContainerName": target});
        let answer = namespace.debug(&pod, &debugger).await;
        let sentence = "].targetContainerName: nobody gets into the gate";
        let judged = refused_by_policy(target, answer, "sandgate-pod-update", &[sentence]);
        // A container that the pod doesn't have is no target at all.
        assert_eq!(judged, target == "sandgate");
    }
    let good = json!({"name": "debug", "image": "app.example/debug:1", "targetContainerName": "app"});
    namespace.debug(&pod, &good).await.unwrap();
}
