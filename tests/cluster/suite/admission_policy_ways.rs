//! Ways to a gate's key, its token or somebody else's sandbox, each closed by the API server alone: every pod here is
//! valid but for that, so it is the policy that refuses it, and the same pod with something of its own passes.

use crate::admission_policy_denials::{base, refused_by_policy, with_gate};
use sandgate_cluster_tests::chart::Chart;
use sandgate_cluster_tests::{Cluster, runner::Test, tests};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    no_container_is_created_with_a_way_to_a_gates_files,
    no_volume_makes_its_holder_a_gate,
    no_probe_calls_another_host,
    no_ephemeral_container_gets_to_a_gates_files,
    no_resize_reaches_a_gate,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];
const CREATE: &str = "sandgate-pod-create";
const UPDATE: &str = "sandgate-pod-update";
const FILES: &[&str] = &["it uses a volume with the gate's key and token"];
/// A container in each list of the sandbox's own.
const PLACES: [&str; 3] = ["/spec/containers/0", "/spec/initContainers/0", "/spec/initContainers/1"];

/// A container's parts that read a volume's files.
fn reading(volume: &str) -> [Value; 4] {
    let of_file = |optional: bool| {
        let key = json!({"volumeName": volume, "path": "tls.key", "key": "KEY", "optional": optional});
        json!({"env": [{"name": "SAFE", "value": "x"}, {"name": "KEY", "valueFrom": {"fileKeyRef": key}}]})
    };
    [
        of_file(false),
        of_file(true),
        json!({"volumeMounts": [{"name": volume, "mountPath": "/x"}]}),
        json!({"volumeMounts": [{"name": volume, "mountPath": "/x", "subPath": "tls.key", "readOnly": true}]}),
    ]
}

async fn no_container_is_created_with_a_way_to_a_gates_files(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let mut own = base();
    own["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
    for place in PLACES {
        for (bad, good) in reading("sandgate-state").iter().zip(reading("own")) {
            let with = |parts: &Value| {
                let mut pod = own.clone();
                json_patch::merge(pod.pointer_mut(place).unwrap(), parts);
                with_gate(&chart, &pod)
            };
            let answer = namespace.dry_run(&with(bad)).await;
            assert!(
                refused_by_policy(&format!("{place} {bad}"), answer, CREATE, FILES),
                "{bad}"
            );
            namespace.dry_run(&with(&good)).await.unwrap();
        }
        let mut token = own.clone();
        token.pointer_mut(place).unwrap()["volumeMounts"] = json!([{"name": "sandgate-token", "mountPath": "/x"}]);
        let answer = namespace.dry_run(&with_gate(&chart, &token)).await;
        assert!(refused_by_policy(place, answer, CREATE, FILES));
    }
}

async fn no_volume_makes_its_holder_a_gate(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let with = |volume: Value| {
        let mut pod = base();
        pod["spec"]["volumes"] = json!([volume]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        with_gate(&chart, &pod)
    };
    let certificate = |signer: &str| json!({"podCertificate": {"signerName": signer, "keyType": "ECDSAP256", "credentialBundlePath": "c"}});
    let token = |audience: &str| json!({"serviceAccountToken": {"audience": audience, "path": "t"}});
    for (bad, good) in [
        (certificate("sandgate.dev/gate"), certificate("example.dev/gate")),
        (certificate("sandgate.dev/other"), certificate("not-sandgate.dev/gate")),
        (token("sandgate"), token("sandgate.example")),
    ] {
        // Behind another source, too.
        let projected = |source: &Value| json!({"name": "v", "projected": {"sources": [{"downwardAPI": {}}, source]}});
        let answer = namespace.dry_run(&with(projected(&bad))).await;
        let sentence = "spec.volumes[*].projected.sources: ";
        assert!(
            refused_by_policy(&bad.to_string(), answer, CREATE, &[sentence]),
            "{bad}"
        );
        namespace.dry_run(&with(projected(&good))).await.unwrap();
    }
    // An image holds nothing of the node's; in the place of the gate's own volume it would be somebody's key.
    let image = json!({"image": {"reference": "app.example/files:1", "pullPolicy": "IfNotPresent"}});
    let named = |name: &str| {
        let mut volume = image.clone();
        volume["name"] = name.into();
        volume
    };
    namespace.dry_run(&with(named("v"))).await.unwrap();
    for name in ["sandgate-state", "sandgate-token"] {
        let mut swapped = with_gate(&chart, &base());
        let volumes = swapped["spec"]["volumes"].as_array_mut().unwrap();
        let ours = volumes.iter_mut().find(|volume| volume["name"] == name).unwrap();
        *ours = named(name);
        let answer = namespace.dry_run(&swapped).await;
        let sentence = format!("spec.volumes[{name}]: it isn't what would be injected");
        assert!(refused_by_policy(name, answer, CREATE, &[&sentence]), "{name}");
    }
}

async fn no_probe_calls_another_host(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let handlers = |host: &str| {
        [
            json!({"httpGet": {"port": 8888, "host": host}}),
            json!({"tcpSocket": {"port": 8888, "host": host}}),
        ]
    };
    let mut refused = 0;
    for kind in [
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "postStart",
        "preStop",
    ] {
        for place in ["/spec/containers/0", "/spec/initContainers/1"] {
            for handler in ["10.0.0.7", "localhost", "127.0.0.1", "::1"]
                .into_iter()
                .flat_map(handlers)
            {
                let mut pod = base();
                let container = pod.pointer_mut(place).unwrap();
                if kind.ends_with("Probe") {
                    container[kind] = handler.clone();
                } else if handler.get("tcpSocket").is_some() {
                    // A hook of this kind is no longer valid.
                    continue;
                } else {
                    container["lifecycle"][kind] = handler.clone();
                }
                let answer = namespace.dry_run(&with_gate(&chart, &pod)).await;
                let what = format!("{place} {kind} {handler}");
                let sentence = ": with a host the kubelet would call another host";
                assert!(refused_by_policy(&what, answer, CREATE, &[sentence]), "{what}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 64);
}

async fn no_ephemeral_container_gets_to_a_gates_files(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let mut pod = base();
    pod["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
    let pod = namespace.admitted(&chart.injected(&pod)).await;
    let mut number = 0;
    let mut debugger = |parts: &Value| {
        number += 1;
        let mut debugger = json!({"name": format!("debug-{number}"), "image": "app.example/debug:1"});
        json_patch::merge(&mut debugger, parts);
        debugger
    };
    // No path into a volume: ephemeral containers have none.
    for (bad, good) in reading("sandgate-state").iter().zip(reading("own")).take(3) {
        let answer = namespace.debug(&pod, &debugger(bad)).await;
        assert!(refused_by_policy(&bad.to_string(), answer, UPDATE, FILES), "{bad}");
        namespace.debug(&pod, &debugger(&good)).await.unwrap();
    }
    let token = json!({"volumeMounts": [{"name": "sandgate-token", "mountPath": "/x"}]});
    let answer = namespace.debug(&pod, &debugger(&token)).await;
    assert!(refused_by_policy("the token", answer, UPDATE, FILES));
    let target = debugger(&json!({"targetContainerName": "sandgate"}));
    let answer = namespace.debug(&pod, &target).await;
    let sentence = "].targetContainerName: nobody gets into the gate";
    assert!(refused_by_policy("the gate", answer, UPDATE, &[sentence]));
    let stored = cluster.get(&pod).await.unwrap();
    assert_eq!(stored["spec"]["ephemeralContainers"].as_array().unwrap().len(), 3);
}

async fn no_resize_reaches_a_gate(cluster: Cluster) {
    let chart = Chart::render(&["injection.lockdown=enabled"]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let pod = namespace.admitted(&chart.injected(&base())).await;
    let resources = [
        json!({"requests": {"cpu": "20m"}}),
        json!({"limits": {"memory": "65Mi"}}),
        json!({"requests": {"memory": "8Mi"}}),
    ];
    for resources in resources {
        let gate = json!({"spec": {"initContainers": [{"name": "sandgate", "resources": resources}]}});
        let answer = namespace.change_part(&pod, "resize", &gate).await;
        let sentence = "spec.initContainers[sandgate]: it is the gate's";
        assert!(
            refused_by_policy(&gate.to_string(), answer, UPDATE, &[sentence]),
            "{gate}"
        );
    }
    // Beside a change of the sandbox's own, too.
    let both = json!({"spec": {
        "containers": [{"name": "app", "resources": {"requests": {"cpu": "20m"}}}],
        "initContainers": [{"name": "sandgate", "resources": {"requests": {"cpu": "20m"}}}],
    }});
    namespace.change_part(&pod, "resize", &both).await.unwrap_err();
    assert_eq!(cluster.get(&pod).await.unwrap()["spec"], pod["spec"]);
}
