//! Every pod in upstream's examples and manifests: what `explain` says about it, and that each sandbox which can be
//! injected is admitted with its gate by the API server, under the chart's policies.
//!
//! `UPDATE_GOLDEN=1 tests/cluster/run api upstream_examples` writes the table anew; read the difference before you
//! commit it.

use sandbox_injector::decide::Decision;
use sandbox_injector::offline::{documents, explain, find};
use sandgate_cluster_tests::chart::Chart;
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until, upstream};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) const TESTS: &[Test] = tests![
    what_becomes_of_each_example_is_known,
    @alone each_example_that_can_be_injected_is_admitted_with_its_gate,
];

const TABLE: &str = "../golden/upstream_examples.txt";
/// Parts for another tool to complete: no whole pods, with or without a gate.
const PARTS: [&str; 3] = [
    "examples/ray-integration/ray-autopilot-setup.yaml",
    "examples/vscode-sandbox/overlays/gvisor/patch-gvisor.yaml",
    "examples/vscode-sandbox/overlays/kata/patch-kata.yaml",
];
const HEADER: &str = "\
# What `sandbox-injector explain` says about every pod in upstream's examples/ and k8s/, with the chart's default values.
# Sandboxes that can't be injected are followed by what would have to change in them. Pods of other kinds aren't sandboxes:
# operators, gateways, clients. Files that aren't named here hold no pod.
";

/// The YAML files, by their paths in upstream's module.
fn files() -> Vec<(String, String)> {
    let module = upstream::module();
    let mut paths = Vec::new();
    for folder in ["examples", "k8s"] {
        collect(&module.join(folder), &mut paths);
    }
    paths.sort();
    assert!(paths.len() > 100, "{}", paths.len());
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&module).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|end| end == "yaml" || end == "yml") {
            found.push(path);
        }
    }
}

/// The lines about one file; none if it holds no pod.
fn explained(chart: &Chart, file: &str, text: &str) -> String {
    let mut lines = String::new();
    let settings = &chart.config().settings;
    let Ok(outcome) = explain::explain(settings, None, "default", text, explain::Format::Json) else {
        return format!("{file}: not YAML as it stands, but a template for another tool\n");
    };
    let answer: Value = serde_json::from_str(&outcome.output).unwrap();
    for pod in answer["pods"].as_array().unwrap() {
        let text = |field: &str| pod[field].as_str().unwrap();
        let (decision, reason) = (text("decision"), text("reason"));
        writeln!(
            lines,
            "{file}: {} {}: {decision} ({reason})",
            text("kind"),
            text("name")
        )
        .unwrap();
        for denial in pod["denials"].as_array().into_iter().flatten() {
            let text = |field: &str| denial[field].as_str().unwrap();
            writeln!(lines, "    {}: {}; {}", text("field"), text("why"), text("fix")).unwrap();
        }
    }
    lines
}

async fn what_becomes_of_each_example_is_known(_: Cluster) {
    let chart = Chart::render(&[]);
    let rows = files()
        .iter()
        .map(|(file, text)| explained(&chart, file, text))
        .collect::<String>();
    let counts = ["inject", "deny", "skip"].map(|decision| rows.matches(&format!(": {decision} (")).count());
    let [inject, deny, skip] = counts;
    let table = format!("{HEADER}# {inject} are injected, {deny} can't be, {skip} are no sandboxes.\n\n{rows}");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &table).unwrap();
    }
    let known = fs::read_to_string(&golden).unwrap_or_default();
    assert!(known == table, "{} would be:\n{table}", golden.display());
    assert!(inject >= 20, "{inject}");
}

/// What a pod refers to and admission wants to be there.
async fn provide(cluster: &Cluster, namespace: &Namespace, pod: &Value, made: &mut BTreeSet<String>) {
    let spec = &pod["spec"];
    if let Some(class) = spec["runtimeClassName"]
        .as_str()
        .filter(|class| made.insert((*class).to_owned()))
    {
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": class}, "handler": "x"});
        cluster.remove_afterwards(&class);
        cluster.apply_all(&[class]).await;
    }
    if let Some(account) = spec["serviceAccountName"].as_str() {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
        let _ = namespace.create(&account).await;
    }
}

/// The pod as the controller would complete it: with a name, and with the volumes of its claim templates.
fn completed(found: &find::Found, document: &Value) -> Value {
    let mut pod = found.pod.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("example");
    pod["metadata"].as_object_mut().unwrap().remove("namespace");
    // A label's value, which the offline one needn't be.
    pod["metadata"]["labels"]["agents.x-k8s.io/sandbox-name-hash"] = json!("5d8b6dab");
    for template in document["spec"]["volumeClaimTemplates"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let name = &template["metadata"]["name"];
        let volume = json!({"name": name, "persistentVolumeClaim": {"claimName": "claim"}});
        let volumes = &mut pod["spec"]["volumes"];
        if volumes.is_null() {
            *volumes = json!([]);
        }
        volumes.as_array_mut().unwrap().push(volume);
    }
    pod
}

async fn each_example_that_can_be_injected_is_admitted_with_its_gate(cluster: Cluster) {
    let chart = Chart::render(&[]);
    let namespace = cluster.namespace(&[("sandgate.dev/inject", "enabled")]).await;
    namespace.judged_by(&chart).await;
    let (mut admitted, mut made, mut problems) = (0, BTreeSet::new(), Vec::new());
    for (file, text) in files() {
        for document in documents::parse(&text).unwrap_or_default() {
            for found in find::pods(&document, &mut Vec::new()) {
                if !matches!(chart.decide("default", &found.pod), Decision::Inject(_)) {
                    continue;
                }
                let pod = completed(&found, &document);
                provide(&cluster, &namespace, &pod, &mut made).await;
                let injected = chart.injected(&pod);
                let what = format!("{file}: {} {}", found.kind, found.name);
                // A class or account that was just made is known a moment later.
                let answer = until(&what, async || match namespace.dry_run(&injected).await {
                    Err(status) if status.message.contains("not found") && status.reason == "Forbidden" => Err(status),
                    answer => Ok(answer),
                })
                .await;
                match answer {
                    Ok(stored) => {
                        assert_eq!(stored["spec"]["initContainers"][0]["name"], "sandgate", "{what}");
                        admitted += 1;
                    }
                    Err(status) if status.reason == "Invalid" && PARTS.contains(&file.as_str()) => {}
                    Err(status) => problems.push(format!("{what}: {status}")),
                }
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(admitted >= 20, "{admitted}");
}
