use crate::deny::DenyReason;
use crate::testing::{denials, injected, lockdown, sandbox, sandbox_with, settings};
use sandgate_mesh::contract::APP_PROBES_VARIABLE;
use sandgate_mesh::probe::AppProbes;
use serde_json::{Value, json};

fn app(fields: &Value) -> Value {
    let mut container = json!({"name": "app", "image": "python:3", "ports": [{"name": "http", "containerPort": 8888}]});
    json_patch::merge(&mut container, fields);
    sandbox_with(&json!({"spec": {"containers": [container]}}))
}

/// What the gate is told, as text and as JSON.
fn told(pod: &Value) -> Option<(String, Value)> {
    let gate = &pod["spec"]["initContainers"][1];
    assert_eq!(gate["name"], "sandgate");
    let variables = gate["env"].as_array().unwrap();
    let variable = variables
        .iter()
        .find(|variable| variable["name"] == APP_PROBES_VARIABLE)?;
    let text = variable["value"].as_str().unwrap().to_owned();
    let json = serde_json::from_str(&text).unwrap();
    Some((text, json))
}

#[test]
fn probes_go_to_the_gate_which_is_told_what_was_declared() {
    let pod = app(&json!({
        "livenessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 7, "timeoutSeconds": 3},
        "readinessProbe": {"httpGet": {"path": "/ready?a=$(b)", "port": 8888, "scheme": "HTTP",
            "httpHeaders": [{"name": "X-A", "value": "b"}]}},
        "startupProbe": {"exec": {"command": ["true"]}},
        "lifecycle": {"preStop": {"httpGet": {"port": "http"}}, "postStart": {"tcpSocket": {"port": 8888}}},
    }));
    let after = injected(&lockdown(), &pod);
    let to_gate = |kind: &str| json!({"path": format!("/app-probe/app/{kind}"), "port": 14480, "scheme": "HTTP"});
    let container = &after["spec"]["containers"][0];
    let liveness = json!({"httpGet": to_gate("livenessProbe"), "periodSeconds": 7, "timeoutSeconds": 3});
    assert_eq!(container["livenessProbe"], liveness);
    assert_eq!(
        container["readinessProbe"],
        json!({"httpGet": to_gate("readinessProbe")})
    );
    assert_eq!(
        container["lifecycle"]["preStop"],
        json!({"httpGet": to_gate("preStop")})
    );
    for untouched in ["/startupProbe", "/lifecycle/postStart", "/ports"] {
        let before = pod["spec"]["containers"][0].pointer(untouched);
        assert_eq!(container.pointer(untouched), before, "{untouched}");
    }
    let (text, json) = told(&after).unwrap();
    assert_eq!(
        json,
        json!({"version": 1, "probes": [
            {"container": "app", "kind": "livenessProbe", "timeoutSeconds": 3, "tcpSocket": {"port": 8888, "portName": "http"}},
            {"container": "app", "kind": "readinessProbe", "timeoutSeconds": 1, "httpGet": {"path": "/ready?a=$(b)", "port": 8888,
                "scheme": "HTTP", "httpHeaders": [{"name": "X-A", "value": "b"}]}},
            {"container": "app", "kind": "preStop", "timeoutSeconds": 30, "httpGet": {"port": 8888, "portName": "http"}},
        ]})
    );
    assert!(!text.contains('$'), "Kubernetes would expand it: {text}");
    assert_eq!(text.parse::<AppProbes>().unwrap().iter().count(), 3);
}

#[test]
fn a_call_may_take_as_long_as_the_kubelet_would_wait_and_an_hour_at_most() {
    for (declared, told_seconds) in [(0, 1), (61, 61), (3600, 3600), (3601, 3600)] {
        let mut pod = app(&json!({
            "livenessProbe": {"tcpSocket": {"port": 8888}, "timeoutSeconds": declared},
            "lifecycle": {"preStop": {"httpGet": {"port": 8888}}},
        }));
        pod["spec"]["terminationGracePeriodSeconds"] = declared.into();
        let (_, json) = told(&injected(&lockdown(), &pod)).unwrap();
        for probe in json["probes"].as_array().unwrap() {
            assert_eq!(probe["timeoutSeconds"], told_seconds, "{declared}: {probe}");
        }
    }
}

#[test]
fn without_lockdown_probes_stay_and_without_probes_the_gate_is_told_nothing() {
    let pod = app(&json!({"livenessProbe": {"tcpSocket": {"port": 8888}}}));
    let after = injected(&settings(), &pod);
    assert_eq!(after["spec"]["containers"], pod["spec"]["containers"]);
    assert_eq!(told(&injected(&lockdown(), &sandbox())), None);
}

#[test]
fn probes_of_native_sidecars_go_to_the_gate_too() {
    let sidecar =
        json!({"name": "helper", "image": "a", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 9}}});
    let after = injected(
        &lockdown(),
        &sandbox_with(&json!({"spec": {"initContainers": [sidecar]}})),
    );
    let probe = &after["spec"]["initContainers"][2]["startupProbe"];
    assert_eq!(probe["httpGet"]["path"], "/app-probe/helper/startupProbe");
    assert_eq!(told(&after).unwrap().1["probes"][0]["container"], "helper");
}

#[test]
fn injecting_twice_rewrites_nothing_twice_before_or_after_defaults() {
    let pod = app(&json!({
        "livenessProbe": {"tcpSocket": {"port": "http"}},
        "readinessProbe": {"httpGet": {"path": "/a$b", "port": "http"}},
        "lifecycle": {"preStop": {"httpGet": {"port": 8888}}},
    }));
    let once = injected(&lockdown(), &pod);
    assert_eq!(injected(&lockdown(), &once), once);
    let mut stored = once.clone();
    stored["spec"]["containers"][0]["livenessProbe"]["timeoutSeconds"] = 1.into();
    stored["spec"]["containers"][0]["readinessProbe"]["httpGet"]["protocol"] = "HTTP1".into();
    stored["spec"]["terminationGracePeriodSeconds"] = 30.into();
    assert_eq!(injected(&lockdown(), &stored), stored);
}

#[test]
fn a_container_that_other_admission_adds_after_the_gate_is_probed_as_well() {
    let probe = json!({"httpGet": {"path": "/ready", "port": 9999}});
    let late = json!({"name": "late", "image": "a", "readinessProbe": probe});
    // Told nothing before, told something before, and told something that is gone.
    for first in [json!({}), json!({"livenessProbe": {"tcpSocket": {"port": 1}}})] {
        let pod = app(&first);
        let mut gated = injected(&lockdown(), &pod);
        gated["spec"]["containers"].as_array_mut().unwrap().push(late.clone());
        let mut both = pod.clone();
        both["spec"]["containers"].as_array_mut().unwrap().push(late.clone());
        assert_eq!(injected(&lockdown(), &gated), injected(&lockdown(), &both));
        gated = injected(&lockdown(), &both);
        gated["spec"]["containers"].as_array_mut().unwrap().pop();
        assert_eq!(injected(&lockdown(), &gated), injected(&lockdown(), &pod));
    }
}

#[test]
fn a_probe_that_the_gate_cannot_run_is_refused_with_its_field() {
    for (probe, field) in [
        (json!({"httpGet": {"port": "nowhere"}}), "httpGet"),
        (json!({"httpGet": {"port": 0}}), "httpGet.port"),
        (json!({"httpGet": {"port": 70000}}), "httpGet"),
        (json!({"httpGet": {"port": 80, "protocol": "HTTP2"}}), "httpGet"),
        (json!({"httpGet": {"port": 80, "new": 1}}), "httpGet"),
        (json!({"grpc": {"port": 80, "mode": "TLS"}}), "grpc"),
        (json!({"httpGet": {"port": 80, "path": "/a b"}}), "httpGet.path"),
        (
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "Content-Length", "value": "1"}]}}),
            "httpGet.httpHeaders[0].name",
        ),
    ] {
        let pod = app(&json!({ "readinessProbe": probe }));
        let found = denials(&lockdown(), &pod);
        assert_eq!(found.len(), 1, "{probe}: {found:?}");
        assert_eq!(found[0].reason, DenyReason::Probe);
        assert_eq!(
            found[0].field,
            format!("spec.containers[0].readinessProbe.{field}"),
            "{}",
            found[0]
        );
        assert_eq!(denials(&settings(), &pod), [], "only the kubelet has to run it");
    }
}

#[test]
fn a_probe_that_is_sent_to_the_gate_by_hand_is_refused() {
    let handler = json!({"path": "/app-probe/app/livenessProbe", "port": 14480, "scheme": "HTTP"});
    let pod = app(&json!({"livenessProbe": {"httpGet": handler}}));
    for settings in [settings(), lockdown()] {
        let reasons: Vec<_> = denials(&settings, &pod).iter().map(|denial| denial.reason).collect();
        assert!(reasons.contains(&DenyReason::PortConflict), "{reasons:?}");
    }
}

#[test]
fn what_a_gate_claims_to_be_told_is_believed_only_as_if_the_pod_declared_it() {
    let pod = app(&json!({"readinessProbe": {"httpGet": {"port": 8888}}}));
    let gated = injected(&lockdown(), &pod);
    let claim = |text: &str| {
        let mut pod = gated.clone();
        let variables = pod["spec"]["initContainers"][1]["env"].as_array_mut().unwrap();
        let variable = variables
            .iter_mut()
            .find(|variable| variable["name"] == APP_PROBES_VARIABLE)
            .unwrap();
        variable["value"] = text.into();
        pod
    };
    // Another port: as if it had been declared.
    let other = told(&gated).unwrap().0.replace("8888", "9999");
    assert_eq!(told(&injected(&lockdown(), &claim(&other))).unwrap().0, other);
    // One of the gate's own, nonsense, or a probe of nothing.
    for bad in [
        told(&gated).unwrap().0.replace("8888", "14443"),
        String::new(),
        "[]".to_owned(),
        "{".to_owned(),
        // The same probe twice.
        twice(&told(&gated).unwrap().1),
    ] {
        let reasons: Vec<_> = denials(&lockdown(), &claim(&bad))
            .iter()
            .map(|denial| denial.reason)
            .collect();
        assert!(reasons.contains(&DenyReason::PortConflict), "{bad}: {reasons:?}");
    }
}

/// Declarations with the first of them once more.
fn twice(told: &Value) -> String {
    let mut told = told.clone();
    let first = told["probes"][0].clone();
    told["probes"].as_array_mut().unwrap().push(first);
    told.to_string()
}

/// Each of so many probes looked for in each of so many containers would take hours.
#[test]
fn a_list_of_probes_that_no_gate_takes_is_not_gone_through() {
    let gated = injected(
        &lockdown(),
        &app(&json!({"livenessProbe": {"tcpSocket": {"port": 8888}}})),
    );
    let (_, mut list) = told(&gated).unwrap();
    let one = list["probes"][0].clone();
    let names = (0..40_000).map(|number| format!("c{number}"));
    let probes = names.clone().map(|name| {
        let mut probe = one.clone();
        probe["container"] = name.into();
        probe
    });
    list["probes"] = probes.collect();
    let mut pod = gated;
    pod["spec"]["containers"] = names.map(|name| json!({"name": name})).collect();
    let variables = pod["spec"]["initContainers"][1]["env"].as_array_mut().unwrap();
    variables.last_mut().unwrap()["value"] = list.to_string().into();
    for settings in [settings(), lockdown()] {
        // Without lockdown it is another gate's; with it, it is replaced.
        assert_eq!(denials(&settings, &pod).is_empty(), settings.lockdown.is_some());
    }
}
