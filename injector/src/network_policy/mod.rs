//! What a `NetworkPolicy` must say, and what others open: pure. [`reconcile`] makes it so.
//!
//! Policies add up, so ours closes nothing that another one opens: those are reported.

pub(crate) mod reconcile;
mod report;

use crate::names::{
    APP, APP_LABEL, COMPONENT_LABEL, DEFAULT_OWN_NAMESPACE, DIALING_COMPONENTS, HEALTH_PORT_NAME, INJECTED,
    INJECTED_LABEL, MESH_PORT_NAME, NAMESPACE_NAME_LABEL, ROUTER_COMPONENT, UPSTREAM_ROUTER, UPSTREAM_ROUTER_LABEL,
};
use crate::settings::Settings;
use k8s_openapi::api::networking::v1::{
    NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sandgate_mesh::contract::{HEALTH_PORT, MESH_PORT};
use std::collections::{BTreeMap, BTreeSet};

const INGRESS: &str = "Ingress";
const TCP: &str = "TCP";

/// The policy of an opted-in namespace: of injected pods, the mesh port is open to routers and to the control plane, and
/// the health port to everybody, since kubelets and scrapers have no label. Nothing else is open.
fn expected(settings: &Settings) -> NetworkPolicySpec {
    let port = |port: u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(port.into())),
        protocol: Some(TCP.into()),
        end_port: None,
    };
    let mesh = NetworkPolicyIngressRule {
        from: Some(namespaces(settings).into_iter().map(dialing_pods).collect()),
        ports: Some(vec![port(MESH_PORT)]),
    };
    let health = NetworkPolicyIngressRule {
        from: None,
        ports: Some(vec![port(HEALTH_PORT)]),
    };
    NetworkPolicySpec {
        pod_selector: Some(labelled(INJECTED_LABEL, INJECTED)),
        policy_types: Some(vec![INGRESS.into()]),
        ingress: Some(vec![mesh, health]),
        egress: None,
    }
}

/// Where routers and the control plane run: our own namespace, and those of the routers that gates believe, also of those
/// that they were given before.
fn namespaces(settings: &Settings) -> BTreeSet<&str> {
    let routers = settings
        .router_identities
        .iter()
        .chain(&settings.accepted_router_identities)
        .map(|router| router.namespace.as_str());
    routers.chain([settings.own_namespace.as_str()]).collect()
}

fn dialing_pods(namespace: &str) -> NetworkPolicyPeer {
    let components = LabelSelectorRequirement {
        key: COMPONENT_LABEL.into(),
        operator: "In".into(),
        values: Some(DIALING_COMPONENTS.map(String::from).to_vec()),
    };
    NetworkPolicyPeer {
        namespace_selector: Some(labelled(NAMESPACE_NAME_LABEL, namespace)),
        pod_selector: Some(LabelSelector {
            match_expressions: Some(vec![components]),
            ..labelled(APP_LABEL, APP)
        }),
        ip_block: None,
    }
}

fn labelled(name: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(name.into(), value.into())])),
        match_expressions: None,
    }
}

/// Which further ports of injected pods somebody else's policy opens, in words; none if it opens none.
///
/// Rules that let in router pods only are none: the router is ours, and agent-sandbox makes such a policy for each of
/// its templates.
fn opening(settings: &Settings, spec: &NetworkPolicySpec) -> Option<String> {
    let judges_ingress = spec
        .policy_types
        .as_ref()
        .is_none_or(|types| types.iter().any(|kind| kind == INGRESS));
    let selects = spec.pod_selector.as_ref().is_none_or(may_select_injected);
    if !judges_ingress || !selects {
        return None;
    }
    let rules = spec.ingress.iter().flatten().enumerate();
    let opened = rules
        .filter(|(_, rule)| !is_for_routers(settings, rule))
        .find_map(|(index, rule)| {
            let ports = rule.ports.as_deref().unwrap_or_default();
            if ports.is_empty() {
                return Some((index, "every port".to_owned()));
            }
            let other = ports.iter().find(|port| !is_the_gates(port))?;
            Some((index, described(other)))
        });
    opened.map(|(index, ports)| format!("spec.ingress[{index}] opens {ports}"))
}

/// Whether a pod with a gate might be selected. What else it is labelled nobody knows here.
fn may_select_injected(selector: &LabelSelector) -> bool {
    let labels = selector.match_labels.iter().flatten();
    let excluded = labels
        .into_iter()
        .any(|(name, value)| name == INJECTED_LABEL && value != INJECTED);
    let expressions = selector
        .match_expressions
        .iter()
        .flatten()
        .filter(|expression| expression.key == INJECTED_LABEL);
    let excluded_too = expressions.into_iter().any(|expression| {
        let named = expression.values.iter().flatten().any(|value| value == INJECTED);
        match expression.operator.as_str() {
            "In" => !named,
            "NotIn" => named,
            "DoesNotExist" => true,
            _ => false,
        }
    });
    !excluded && !excluded_too
}

fn is_for_routers(settings: &Settings, rule: &NetworkPolicyIngressRule) -> bool {
    let peers = rule.from.as_deref().unwrap_or_default();
    !peers.is_empty() && peers.iter().all(|peer| is_router(settings, peer))
}

fn is_router(settings: &Settings, peer: &NetworkPolicyPeer) -> bool {
    let has = |selector: Option<&LabelSelector>, name: &str, values: &[&str]| {
        let labels = selector.and_then(|selector| selector.match_labels.as_ref());
        labels
            .and_then(|labels| labels.get(name))
            .is_some_and(|value| values.contains(&value.as_str()))
    };
    let (namespace, pod) = (peer.namespace_selector.as_ref(), peer.pod_selector.as_ref());
    let ours = has(namespace, NAMESPACE_NAME_LABEL, &[settings.own_namespace.as_str()])
        && has(pod, APP_LABEL, &[APP])
        && has(pod, COMPONENT_LABEL, &[ROUTER_COMPONENT]);
    let upstreams = has(
        namespace,
        NAMESPACE_NAME_LABEL,
        &[settings.own_namespace.as_str(), DEFAULT_OWN_NAMESPACE],
    ) && has(pod, UPSTREAM_ROUTER_LABEL, &[UPSTREAM_ROUTER]);
    peer.ip_block.is_none() && (ours || upstreams)
}

/// Whether nothing but a port of the gate's is opened.
fn is_the_gates(port: &NetworkPolicyPort) -> bool {
    let tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == TCP);
    tcp && match &port.port {
        Some(IntOrString::Int(number)) => {
            [MESH_PORT, HEALTH_PORT].map(i32::from).contains(number) && port.end_port.is_none_or(|end| end == *number)
        }
        Some(IntOrString::String(name)) => [MESH_PORT_NAME, HEALTH_PORT_NAME].contains(&name.as_str()),
        None => false,
    }
}

fn described(port: &NetworkPolicyPort) -> String {
    let protocol = port.protocol.as_deref().unwrap_or(TCP);
    match (&port.port, port.end_port) {
        (None, _) => format!("every {protocol} port"),
        (Some(IntOrString::Int(first)), Some(last)) => format!("{protocol} ports {first} to {last}"),
        (Some(IntOrString::Int(number)), None) => format!("{protocol} port {number}"),
        (Some(IntOrString::String(name)), _) => format!("{protocol} port {name:?}"),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
