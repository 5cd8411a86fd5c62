use super::*;
use crate::testing::settings;
use serde_json::{Value, json};

fn opened_by(spec: &Value) -> Option<String> {
    opening(&settings(), &serde_json::from_value(spec.clone()).unwrap())
}

/// A policy for every pod with one ingress rule.
fn opened_by_rule(rule: &Value) -> Option<String> {
    opened_by(&json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [rule]}))
}

#[test]
fn injected_pods_are_reached_at_the_gates_ports_and_by_whom_is_said() {
    let spec = serde_json::to_value(expected(&settings())).unwrap();
    let dialing = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agent-sandbox-system"}},
        "podSelector": {
            "matchLabels": {"app.kubernetes.io/name": "sandgate"},
            "matchExpressions": [{"key": "app.kubernetes.io/component", "operator": "In", "values": ["router", "injector"]}],
        },
    });
    let expected = json!({
        "podSelector": {"matchLabels": {"sandgate.dev/injected": "true"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [dialing], "ports": [{"port": 14443, "protocol": "TCP"}]},
            {"ports": [{"port": 14480, "protocol": "TCP"}]},
        ],
    });
    assert_eq!(spec, expected);
}

#[test]
fn routers_of_other_namespaces_get_through_where_gates_believe_them() {
    let mut settings = settings();
    settings
        .router_identities
        .push("spiffe://cluster.local/ns/edge/sa/r".parse().unwrap());
    settings.accepted_router_identities = vec!["spiffe://cluster.local/ns/former/sa/r".parse().unwrap()];
    let ingress = expected(&settings).ingress.unwrap();
    let from = serde_json::to_value(ingress[0].from.as_ref().unwrap()).unwrap();
    let namespaces: Vec<_> = from
        .as_array()
        .unwrap()
        .iter()
        .map(|peer| peer["namespaceSelector"]["matchLabels"].clone())
        .collect();
    let named = |name: &str| json!({"kubernetes.io/metadata.name": name});
    assert_eq!(
        namespaces,
        [named("agent-sandbox-system"), named("edge"), named("former")]
    );
}

#[test]
fn our_own_policy_opens_nothing() {
    let spec = serde_json::to_value(expected(&settings())).unwrap();
    assert_eq!(opened_by(&spec), None);
}

#[test]
fn rules_that_open_other_ports_are_told_by_place_and_port() {
    for (rule, told) in [
        (json!({}), "spec.ingress[0] opens every port"),
        (json!({"from": [{"podSelector": {}}]}), "every port"),
        (json!({"ports": [{"port": 8888}]}), "TCP port 8888"),
        (
            json!({"ports": [{"port": 14443}, {"port": 8888, "protocol": "TCP"}]}),
            "TCP port 8888",
        ),
        (
            json!({"ports": [{"port": 14443, "endPort": 14480}]}),
            "TCP ports 14443 to 14480",
        ),
        (json!({"ports": [{"port": 14443, "protocol": "UDP"}]}), "UDP port 14443"),
        (json!({"ports": [{"protocol": "SCTP"}]}), "every SCTP port"),
        (json!({"ports": [{"port": "http"}]}), "TCP port \"http\""),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{}]}),
            "every TCP port",
        ),
    ] {
        let opening = opened_by_rule(&rule).unwrap_or_else(|| panic!("{rule} opens nothing"));
        assert!(opening.contains(told), "{opening}");
    }
}

#[test]
fn the_gates_own_ports_may_be_opened_to_anybody() {
    for ports in [
        json!([{"port": 14443}]),
        json!([{"port": 14480, "endPort": 14480}, {"port": "sandgate-mesh"}]),
    ] {
        assert_eq!(opened_by_rule(&json!({"ports": ports})), None, "{ports}");
    }
}

#[test]
fn a_policy_that_closes_or_concerns_others_opens_nothing() {
    let open = json!([{}]);
    for spec in [
        json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}),
        json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": open}),
        json!({"podSelector": {"matchLabels": {"sandgate.dev/injected": "false"}}, "ingress": open}),
        json!({"podSelector": {"matchExpressions": [{"key": "sandgate.dev/injected", "operator": "DoesNotExist"}]}, "ingress": open}),
        json!({"podSelector": {"matchExpressions": [{"key": "sandgate.dev/injected", "operator": "NotIn", "values": ["true"]}]}, "ingress": open}),
        json!({"podSelector": {"matchExpressions": [{"key": "sandgate.dev/injected", "operator": "In", "values": ["x"]}]}, "ingress": open}),
    ] {
        assert_eq!(opened_by(&spec), None, "{spec}");
    }
    for spec in [
        json!({"podSelector": {}, "ingress": open}),
        json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": open}),
        json!({"podSelector": {"matchLabels": {"sandgate.dev/injected": "true"}}, "ingress": open}),
        json!({"podSelector": {"matchExpressions": [{"key": "sandgate.dev/injected", "operator": "Exists"}]}, "ingress": open}),
    ] {
        assert!(opened_by(&spec).is_some(), "{spec}");
    }
}

/// One peer as agent-sandbox writes it, with some fields changed.
fn upstreams_router(change: &Value) -> Value {
    let mut peer = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agent-sandbox-system"}},
        "podSelector": {"matchLabels": {"app": "sandbox-router"}},
    });
    json_patch::merge(&mut peer, change);
    peer
}

#[test]
fn agent_sandboxs_own_policy_lets_in_routers_only_and_is_no_opening() {
    assert_eq!(opened_by_rule(&json!({"from": [upstreams_router(&json!({}))]})), None);
}

#[test]
fn whoever_merely_looks_like_a_router_is_an_opening() {
    for change in [
        json!({"namespaceSelector": null}),
        json!({"podSelector": null}),
        json!({"podSelector": {"matchLabels": {"app": "other"}}}),
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}}}),
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": null, "team": "a"}}}),
    ] {
        let rule = json!({"from": [upstreams_router(&change)]});
        assert!(opened_by_rule(&rule).is_some(), "{rule}");
    }
    // The injector is let in by our own policy; another one opens more with it.
    let ours = |component: &str| {
        json!({"from": [upstreams_router(&json!({"podSelector": {"matchLabels": {
            "app": null, "app.kubernetes.io/name": "sandgate", "app.kubernetes.io/component": component,
        }}}))]})
    };
    assert_eq!(opened_by_rule(&ours("router")), None);
    assert!(opened_by_rule(&ours("injector")).is_some());
    let one_of_two = json!({"from": [upstreams_router(&json!({})), {"podSelector": {}}]});
    assert!(opened_by_rule(&one_of_two).is_some());
}
