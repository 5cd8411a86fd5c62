//! New pods, judged by the API server alone: the injector isn't there. What it would make passes, and nothing else does.

use sandbox_injector::decide::Decision;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::upstream::{pod_of, sandbox};
use sandgate_cluster_tests::{Cluster, Namespace, documents, runner::Test, tests};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    a_pod_with_its_gate_passes,
    a_pod_with_its_gate_passes_whatever_the_operator_chose,
    a_locked_down_pod_passes,
    a_pod_with_a_pod_certificate_passes_where_that_is_chosen_and_only_there,
    a_pod_that_opts_out_passes_where_that_is_allowed_and_only_there,
    a_sandbox_without_a_gate_is_refused,
    pods_that_are_no_sandboxes_are_left_alone,
    only_a_kubelet_makes_mirror_pods,
    the_stored_pods_of_each_shape_are_as_an_api_server_stores_them,
];

const OPTED_IN: &[(&str, &str)] = &[("sandgate.dev/inject", "enabled")];

/// Pods of many shapes that can be injected.
fn pods() -> Vec<Value> {
    let with = |name: &str, more: Value| {
        let mut pod = sandbox_pod(name);
        json_patch::merge(&mut pod, &more);
        pod
    };
    let mut pods = vec![
        sandbox_pod("plain"),
        with("no-token", json!({"spec": {"automountServiceAccountToken": false}})),
        with(
            "annotated",
            json!({"metadata": {"annotations": {
                "sandgate.dev/cpu-request": "20m", "sandgate.dev/cpu-limit": "1", "sandgate.dev/memory-request": "32Mi",
                "sandgate.dev/memory-limit": "128Mi", "sandgate.dev/log-level": "trace", "example.dev/other": "x",
            }}}),
        ),
        with(
            "inits",
            json!({"spec": {"initContainers": [
                {"name": "prepare", "image": "app.example/app:1"},
                {"name": "logs", "image": "app.example/app:1", "restartPolicy": "Always", "ports": [{"containerPort": 9000}]},
            ]}}),
        ),
        with(
            "hardened",
            json!({"spec": {
                "hostUsers": false,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            }}),
        ),
        with(
            "probed",
            json!({"spec": {"containers": [{
                "name": "app", "image": "app.example/app:1", "ports": [{"name": "http", "containerPort": 8888}],
                "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}},
                "readinessProbe": {"tcpSocket": {"port": 8888}},
                "startupProbe": {"grpc": {"port": 9000}},
                "lifecycle": {"preStop": {"httpGet": {"path": "/stop", "port": 8888}}, "postStart": {"exec": {"command": ["true"]}}},
            }]}}),
        ),
    ];
    let mut generated = sandbox_pod("unused");
    generated["metadata"].as_object_mut().unwrap().remove("name");
    generated["metadata"]["generateName"] = json!("pool-");
    pods.push(generated);
    let spec = json!({"containers": [{"name": "app", "image": "app.example/app:1"}]});
    let mut upstreams = pod_of(&sandbox("alpha", &spec));
    upstreams["metadata"]
        .as_object_mut()
        .unwrap()
        .retain(|field, _| field == "name" || field == "labels");
    upstreams["metadata"]["labels"]["agents.x-k8s.io/warm-pool-sandbox"] = json!("pool");
    pods.push(upstreams);
    pods
}

async fn all_pass(namespace: &Namespace, chart: &Chart, pods: &[Value]) {
    for pod in pods {
        let injected = chart.injected(pod);
        let stored = namespace.admitted(&injected).await;
        // The API server has filled in its defaults; what it stored is still the gate.
        let again = chart.injected(&stored);
        assert_eq!(again, stored);
    }
}

async fn a_pod_with_its_gate_passes(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    all_pass(&namespace, &chart, &pods()).await;
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "gvisor"}, "handler": "runsc"});
    cluster.remove_afterwards(&class);
    cluster.apply_all(&[class]).await;
    let rows = documents(include_str!("../../golden/admitted.yaml"));
    let rows = rows[0].as_array().unwrap();
    for (index, row) in rows.iter().enumerate() {
        let mut pod = sandbox_pod(&format!("admitted-{index}"));
        let container = &mut pod["spec"]["containers"][0];
        row.get("container").inspect(|more| json_patch::merge(container, more));
        row.get("pod").inspect(|more| json_patch::merge(&mut pod, more));
        all_pass(&namespace, &chart, &[pod]).await;
    }
    assert!(rows.len() >= 10);
}

async fn a_pod_with_its_gate_passes_whatever_the_operator_chose(cluster: Cluster) {
    let chart = Chart::render(&[
        "imageRegistry=mirror.example:5000/x",
        "injection.image.digest=sha256:00000000000000000000000000000000000000000000000000000000000000aa",
        "injection.image.pullPolicy=Always",
        "injection.routerIdentities={spiffe://sandboxes.example/ns/edge/sa/router,spiffe://sandboxes.example/ns/b/sa/c}",
        "trustDomain=sandboxes.example",
        // Of two other routers.
        "router.mesh.certificate.source=secret",
        "injection.logLevel=warn",
        "injection.resources.limits.cpu=2",
        "injection.resources.requests.memory=24Mi",
    ]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    all_pass(&namespace, &chart, &pods()).await;
    let stored = namespace.admitted(&chart.injected(&sandbox_pod("shown"))).await;
    let gate = &stored["spec"]["initContainers"][0];
    let digest = "mirror.example:5000/x/sandgate/sidecar@sha256:00000000000000000000000000000000000000000000000000000000000000aa";
    assert_eq!(gate["image"], digest);
    assert_eq!(
        gate["args"][1],
        "--router-identity=spiffe://sandboxes.example/ns/b/sa/c"
    );
    assert_eq!(
        gate["args"][2],
        "--control-identity=spiffe://sandboxes.example/ns/agent-sandbox-system/sa/sandbox-injector"
    );
    assert_eq!(gate["args"][5], "--log-level=warn");
    assert_eq!(gate["resources"]["limits"], json!({"cpu": "2", "memory": "64Mi"}));
    // The same pod as another installation would make it.
    let other = Chart::render(&[]).injected(&sandbox_pod("other"));
    let reason = namespace.refused(&other).await;
    assert!(reason.contains("it isn't what would be injected"), "{reason}");
}

async fn a_pod_with_a_pod_certificate_passes_where_that_is_chosen_and_only_there(cluster: Cluster) {
    let by_kubelet = Chart::render(&["injection.identitySource=pod-certificates"]);
    let by_enrolment = Chart::render(&[]);
    let (here, there) = (cluster.namespace(OPTED_IN).await, cluster.namespace(OPTED_IN).await);
    here.judged_by(&by_kubelet).await;
    there.judged_by(&by_enrolment).await;
    all_pass(&here, &by_kubelet, &pods()).await;
    for (namespace, chosen, other) in [
        (&here, &by_kubelet, &by_enrolment),
        (&there, &by_enrolment, &by_kubelet),
    ] {
        let foreign = other.injected(&sandbox_pod("foreign"));
        let told = namespace.refused(&foreign).await;
        assert!(told.contains("denied request: spec.volumes["), "{told}");
        // Its volume beside the right one, and no other difference.
        let mut both = chosen.injected(&sandbox_pod("both"));
        let further = foreign["spec"]["volumes"].as_array().unwrap().iter();
        let further: Vec<_> = further
            .filter(|volume| volume["name"] != "sandgate-state")
            .cloned()
            .collect();
        both["spec"]["volumes"].as_array_mut().unwrap().extend(further);
        let told = namespace.refused(&both).await;
        assert!(told.contains("denied request: spec.volumes["), "{told}");
    }
}

async fn a_locked_down_pod_passes(cluster: Cluster) {
    let chart = Chart::render(&["injection.lockdown=enabled", "injection.lockdownRuntimeClasses={kata}"]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    all_pass(&namespace, &chart, &pods()).await;
    let mut listed = sandbox_pod("listed");
    listed["spec"]["runtimeClassName"] = json!("kata");
    let listed = chart.injected(&listed);
    // No such class is installed, which is checked before; that it is listed shows in the other message.
    assert!(
        namespace
            .refused(&listed)
            .await
            .contains("RuntimeClass \"kata\" not found")
    );
    let open = Chart::render(&[]).injected(&sandbox_pod("open"));
    let reason = namespace.refused(&open).await;
    assert!(
        reason.contains("spec.initContainers: sandgate-lockdown isn't the first"),
        "{reason}"
    );
}

async fn a_pod_that_opts_out_passes_where_that_is_allowed_and_only_there(cluster: Cluster) {
    let mut opted_out = sandbox_pod("opted-out");
    opted_out["metadata"]["labels"] =
        json!({"sandgate.dev/inject": "disabled", "agents.x-k8s.io/sandbox-name-hash": "x"});
    let allowing = cluster.namespace(OPTED_IN).await;
    let chart = Chart::render(&["injection.allowOptOut=true"]);
    allowing.judged_by(&chart).await;
    let stored = allowing.admitted(&opted_out).await;
    assert!(stored["spec"].get("initContainers").is_none());
    all_pass(&allowing, &chart, &pods()).await;
    // Nor does it pass for gated, whatever it has of a gate.
    let mut whole = chart.injected(&sandbox_pod("claiming"));
    whole["metadata"]["labels"] = json!({"sandgate.dev/inject": "disabled", "sandgate.dev/injected": "true"});
    let mut claiming = vec![whole];
    for metadata in [
        json!({"labels": {"sandgate.dev/injected": "true"}}),
        json!({"annotations": {"sandgate.dev/shape": "1"}}),
    ] {
        let mut pod = opted_out.clone();
        json_patch::merge(&mut pod["metadata"], &metadata);
        pod["metadata"]["name"] = "claiming".into();
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 14443}]);
        pod["spec"]["volumes"] = json!([{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"audience": "sandgate", "path": "t"}}]}}]);
        claiming.push(pod);
    }
    for pod in claiming {
        assert!(matches!(chart.decide("sandboxes", &pod), Decision::Deny(_)), "{pod}");
        let reason = allowing.refused(&pod).await;
        assert!(
            reason.contains("says that this pod has a gate, but it opts out"),
            "{reason}"
        );
    }

    let strict = cluster.namespace(OPTED_IN).await;
    let chart = Chart::render(&[]);
    strict.judged_by(&chart).await;
    let reason = strict.refused(&opted_out).await;
    assert!(
        reason.contains("spec.initContainers: the gate isn't the first"),
        "{reason}"
    );
    strict.admitted(&chart.injected(&opted_out)).await;
}

async fn a_sandbox_without_a_gate_is_refused(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    for pod in pods() {
        let reason = namespace.refused(&pod).await;
        assert!(
            reason.contains("spec.initContainers: the gate isn't the first"),
            "{reason}"
        );
    }
    let mut unclear = sandbox_pod("unclear");
    unclear["metadata"]["labels"]["sandgate.dev/inject"] = json!("yes");
    let reason = namespace.refused(&unclear).await;
    assert!(reason.contains("it says neither yes nor no"), "{reason}");
    // Not first is not there.
    let mut behind = chart.injected(&pods()[3]);
    behind["spec"]["initContainers"].as_array_mut().unwrap().swap(0, 1);
    let reason = namespace.refused(&behind).await;
    assert!(reason.contains("the gate isn't the first"), "{reason}");
    // It is the operator's clock that says whether a pod is a sandbox, not who creates it.
    let as_account = namespace
        .as_new_service_account("controller", &["create"], &["pods"])
        .await;
    assert!(
        as_account
            .refused(&sandbox_pod("by-account"))
            .await
            .contains("the gate isn't the first")
    );
}

async fn pods_that_are_no_sandboxes_are_left_alone(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let mut ordinary = sandbox_pod("ordinary");
    ordinary["metadata"].as_object_mut().unwrap().remove("labels");
    ordinary["spec"]["volumes"] = json!([{"name": "host", "hostPath": {"path": "/"}}]);
    let stored = namespace.admitted(&ordinary).await;
    assert!(stored["spec"].get("initContainers").is_none(), "{stored}");
    ordinary["metadata"] = json!({"name": "opted-out", "labels": {"sandgate.dev/inject": "disabled"}});
    namespace.admitted(&ordinary).await;
    // Unless they claim what only gated pods are.
    for metadata in [
        json!({"labels": {"sandgate.dev/injected": "true"}}),
        json!({"annotations": {"sandgate.dev/shape": "1"}}),
    ] {
        let mut claiming = ordinary.clone();
        claiming["metadata"] = metadata;
        claiming["metadata"]["name"] = json!("claiming");
        let reason = namespace.refused(&claiming).await;
        assert!(reason.contains("says that this pod has a gate"), "{reason}");
    }
    // Namespaces that haven't opted in don't notice.
    let elsewhere = cluster.namespace(&[]).await;
    elsewhere.admitted(&sandbox_pod("elsewhere")).await;
    elsewhere.admitted(&ordinary).await;
}

async fn only_a_kubelet_makes_mirror_pods(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(OPTED_IN).await;
    namespace.judged_by(&chart).await;
    let node = cluster.node("node-of-judged-mirrors").await;
    let mut mirror = sandbox_pod("mirror");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    mirror["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "Node", "name": "node-of-judged-mirrors", "uid": node["metadata"]["uid"], "controller": true,
    }]);
    mirror["spec"]["nodeName"] = json!("node-of-judged-mirrors");
    let reason = namespace.refused(&mirror).await;
    assert!(reason.contains("only a kubelet makes mirror pods"), "{reason}");
    let as_node = namespace.seen_by(&cluster.as_node("node-of-judged-mirrors"));
    as_node.admitted(&mirror).await;
}

/// They stand for pods that are out there; what an API server would make of them must be in them already.
async fn the_stored_pods_of_each_shape_are_as_an_api_server_stores_them(cluster: Cluster) {
    let namespace = cluster.namespace(&[]).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}});
    namespace.admitted(&account).await;
    for golden in [
        include_str!("../../golden/shapes/2.json"),
        include_str!("../../golden/shapes/2-lockdown.json"),
        include_str!("../../golden/shapes/3.json"),
        include_str!("../../golden/shapes/3-lockdown.json"),
    ] {
        let mut golden: Value = serde_json::from_str(golden).unwrap();
        let taken =
            json!({"metadata": {"namespace": null, "uid": null}, "spec": {"runtimeClassName": null}, "status": null});
        json_patch::merge(&mut golden, &taken);
        let stored = namespace.dry_run(&golden).await.unwrap();
        for part in ["labels", "annotations", "ownerReferences"] {
            assert_eq!(stored["metadata"][part], golden["metadata"][part]);
        }
        assert_eq!(stored["spec"], golden["spec"]);
    }
}
