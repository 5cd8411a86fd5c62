//! The published Python SDK in its default mode: it finds the router by `kubectl port-forward`.

use crate::pods::{APP_PORT, team};
use crate::sandboxes::warm_pool;
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, tests};
use serde_json::json;
use std::path::Path;
use std::process::Command;

pub(crate) const TESTS: &[Test] = tests![@alone the_published_sdk_runs_a_command_and_keeps_a_file];

async fn the_published_sdk_runs_a_command_and_keeps_a_file(cluster: Cluster) {
    let team = team(&cluster).await;
    // Upstream's own runtime, which the image starts by itself.
    let runtime = json!({
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "runtime", "image": "local/app:1", "imagePullPolicy": "Never",
            "ports": [{"containerPort": APP_PORT}],
            "readinessProbe": {"httpGet": {"path": "/", "port": APP_PORT}, "periodSeconds": 1},
        }],
    });
    warm_pool(&team, &runtime, 1).await;
    let python = std::env::var_os("SANDGATE_PYTHON").expect("SANDGATE_PYTHON isn't set: use tests/cluster/run");
    let mut client = Command::new("timeout");
    client
        .args(["120".as_ref(), python.as_os_str(), "-B".as_ref()])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("node_suite/sdk_client.py"))
        .arg(team.name());
    let done = tokio::task::spawn_blocking(move || client.output().unwrap())
        .await
        .unwrap();
    let (told, log) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{told}{log}");
    told.lines().for_each(note);
}
