//! `helm test`: no node runs its pod here, so the test does what a kubelet would: it starts the real program with the
//! pod's arguments and files, and tells the API server how that ended.

use sandgate_cluster_tests::chart::{DECIDED, folder, helm};
use sandgate_cluster_tests::process::program;
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

// What is installed is for the whole cluster.
pub(crate) const TESTS: &[Test] = tests![
    @alone the_test_of_a_release_passes_with_the_real_program_and_fails_when_that_does,
];

async fn the_test_of_a_release_passes_with_the_real_program_and_fails_when_that_does(cluster: Cluster) {
    // Helm can't know that it is too long, together with its tag.
    let too_long = format!("injection.image.repository={}", "a".repeat(512));
    for (values, passes) in [
        ("injection.lockdown=enabled,injection.resources.limits.cpu=1", true),
        ("injection.acceptedImages={sandgate/sidecar:0.0.9}", true),
        (&too_long, false),
    ] {
        let system = cluster.namespace(&[]).await;
        let chart = folder();
        run(&[
            "install",
            "sandgate",
            chart.to_str().unwrap(),
            "-n",
            system.name(),
            "--set",
            DECIDED,
            "--set",
            values,
        ]);
        let namespace = system.name().to_owned();
        let testing =
            tokio::task::spawn_blocking(move || helm(&["test", "sandgate", "-n", &namespace, "--timeout", "60s"]));
        let explained = as_a_kubelet(&system).await;
        let tested = testing.await.unwrap();
        assert_eq!(tested.status.success(), passes, "{values}: {}", told(&tested));
        assert_eq!(explained.status.success(), passes, "{values}: {}", told(&explained));
        let expected = if passes { "inject" } else { "--sidecar-image" };
        assert!(told(&explained).contains(expected), "{}", told(&explained));
        run(&["uninstall", "sandgate", "-n", system.name()]);
    }
}

/// Waits for the pod, runs what it says, and reports how that ended.
async fn as_a_kubelet(system: &Namespace) -> Output {
    let cluster = system.cluster();
    let of_test = |kind: &str| {
        let metadata = json!({"name": "sandgate-test", "namespace": system.name()});
        json!({"apiVersion": "v1", "kind": kind, "metadata": metadata})
    };
    let pod = until("the test's pod is there", async || cluster.get(&of_test("Pod")).await).await;
    let files = std::env::temp_dir().join(format!("sandgate-helm-test-{}", system.name()));
    std::fs::create_dir_all(&files).unwrap();
    let container = &pod["spec"]["containers"][0];
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mount = &mounts.iter().find(|mount| mount["name"] == "pod").unwrap()["mountPath"];
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "pod").unwrap();
    let mut config_map = of_test("ConfigMap");
    config_map["metadata"]["name"] = volume["configMap"]["name"].clone();
    let config_map = cluster.get(&config_map).await.unwrap();
    for (name, content) in config_map["data"].as_object().unwrap() {
        std::fs::write(files.join(name), content.as_str().unwrap()).unwrap();
    }
    let done = started(container, mount.as_str().unwrap(), &files);
    std::fs::remove_dir_all(&files).unwrap();
    let phase = if done.status.success() { "Succeeded" } else { "Failed" };
    system
        .change_part(&pod, "status", &json!({"status": {"phase": phase}}))
        .await
        .unwrap();
    done
}

/// The image's entry point with the container's arguments, and nothing else: no cluster, no home, no environment.
fn started(container: &Value, mount: &str, files: &Path) -> Output {
    assert!(
        container.get("command").is_none() && container.get("env").is_none(),
        "{container}"
    );
    let arguments: Vec<String> = serde_json::from_value(container["args"].clone()).unwrap();
    let files = files.to_str().unwrap();
    let arguments = arguments.iter().map(|argument| argument.replace(mount, files));
    let mut command = Command::new(program());
    command.args(arguments).env_clear().output().unwrap()
}

fn run(arguments: &[&str]) {
    let done = helm(arguments);
    assert!(done.status.success(), "helm {arguments:?}: {}", told(&done));
}

fn told(done: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    format!("{out}{err}")
}
