//! The policy of one sandbox: for now the operator's default, for the ports that the pod declares.

use crate::names::CONTAINERS;
use crate::pod::{Container, ContainerList, Pod, items, text_at};
use sandgate_mesh::contract::DEFAULT_APP_PORT;
use sandgate_mesh::policy::model::{DefaultPolicy, Generation, Snapshot, VERSION};
use serde_json::Value;
use std::collections::BTreeSet;

/// The snapshot for a pod.
pub(super) fn snapshot(pod: &Value, default_policy: DefaultPolicy, generation: Generation) -> Snapshot {
    Snapshot {
        version: VERSION,
        generation,
        default_policy,
        ports: ports(pod),
        policies: Vec::new(),
    }
}

/// The TCP ports that the app's containers declare, or the default if they declare none.
fn ports(pod: &Value) -> Vec<u16> {
    let pod = Pod::read(pod).ok();
    let containers = pod
        .into_iter()
        .flat_map(Pod::containers)
        .filter(|container| is_apps(*container));
    let declared = containers.flat_map(|container| items(container.at(&["ports"])).map(|(_, port)| port));
    let tcp = declared.filter(|port| text_at(port, &["protocol"]).is_none_or(|protocol| protocol == "TCP"));
    let numbers = tcp.filter_map(|port| port.get("containerPort").and_then(Value::as_u64));
    let ports: BTreeSet<_> = numbers.filter_map(|port| u16::try_from(port).ok()).collect();
    if ports.is_empty() {
        vec![DEFAULT_APP_PORT]
    } else {
        ports.into_iter().collect()
    }
}

/// Whether it runs as long as the app does, and is none of ours.
fn is_apps(container: Container<'_>) -> bool {
    match container.list {
        ContainerList::Main => true,
        ContainerList::Init => {
            !CONTAINERS.contains(&container.name())
                && container.at(&["restartPolicy"]).and_then(Value::as_str) == Some("Always")
        }
        ContainerList::Ephemeral => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{injected, sandbox_with, settings};
    use sandgate_mesh::policy::PolicySnapshot;
    use serde_json::json;

    fn ports_of(fields: &Value) -> Vec<u16> {
        let pod = injected(&settings(), &sandbox_with(fields));
        ports(&pod)
    }

    #[test]
    fn a_pods_declared_tcp_ports_are_open_and_never_the_gates_own() {
        let container = |name: &str, ports: Value| json!({"name": name, "image": "a", "ports": ports});
        let mut beside = container("beside", json!([{"containerPort": 9100}]));
        beside["restartPolicy"] = "Always".into();
        let pod = json!({"spec": {
            "containers": [
                container("app", json!([{"containerPort": 8888}, {"containerPort": 80, "protocol": "TCP"}])),
                container("other", json!([{"containerPort": 8888}, {"containerPort": 53, "protocol": "UDP"}])),
            ],
            "initContainers": [container("first", json!([{"containerPort": 1234}])), beside],
        }});
        assert_eq!(ports_of(&pod), [80, 8888, 9100]);
        assert_eq!(ports_of(&json!({})), [8888]);
    }

    #[test]
    fn what_is_pushed_is_what_gates_read() {
        let pod = injected(&settings(), &sandbox_with(&json!({})));
        let generation = Generation { epoch: 3, counter: 9 };
        for policy in [
            DefaultPolicy::Deny,
            DefaultPolicy::Authenticated,
            DefaultPolicy::Anonymous,
        ] {
            let snapshot = snapshot(&pod, policy, generation);
            let read = PolicySnapshot::parse(&serde_json::to_vec(&snapshot).unwrap()).unwrap();
            assert_eq!(read.generation(), generation);
        }
    }
}
