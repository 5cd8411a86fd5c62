//! kubectl, as a user has it: for what goes beyond one request, such as exec.

use std::process::{Command, Output};

/// No command takes longer, or kubectl ends it.
const TIMEOUT: &str = "60";

/// Runs kubectl with these arguments.
pub async fn kubectl(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args([TIMEOUT, "kubectl"]).args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    done.expect("timeout and kubectl run")
}

/// Runs kubectl, which must succeed, and returns what it prints.
pub async fn kubectl_prints(arguments: &[&str]) -> String {
    let done = kubectl(arguments).await;
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "kubectl {arguments:?}: {told}");
    String::from_utf8(done.stdout).expect("kubectl prints text")
}

/// What a command prints that runs in a container of a pod, and succeeds.
pub async fn exec(namespace: &str, pod: &str, container: &str, command: &[&str]) -> String {
    let mut arguments = vec!["exec", "-n", namespace, pod, "-c", container, "--"];
    arguments.extend(command);
    kubectl_prints(&arguments).await
}
