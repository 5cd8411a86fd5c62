use crate::anchors::Anchors;
use crate::authority::{NewRoot, Root};
use crate::born::{Terms, check};
use crate::ca_bundle::pem;
use crate::decide::Decision;
use crate::deny::DenyReason;
use crate::offline::documents;
use crate::patch::patch;
use crate::pod::Pod;
use crate::root_changes::RootChanges;
use crate::settings::{PullPolicy, Settings};
use crate::shape::SHAPES;
use crate::testing::{anchors, decided, decided_knowing, denials, injected, lockdown, sandbox, sandbox_with, settings};
use serde_json::{Value, json};
use std::time::Duration;

/// What the API server and its own admission make of a gated pod: defaults, resources and pull policies.
fn as_stored(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for container in pod["spec"]["initContainers"].as_array_mut().unwrap() {
        container["terminationMessagePath"] = "/dev/termination-log".into();
        container["imagePullPolicy"] = "Always".into();
        container["resources"]["limits"]["cpu"] = "8".into();
        container["resources"]["limits"]["ephemeral-storage"] = "1Gi".into();
        container["resources"]["requests"]["ephemeral-storage"] = "1Gi".into();
        container["resizePolicy"] = json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]);
        if container.get("readinessProbe").is_some() {
            container["readinessProbe"]["httpGet"]["protocol"] = "HTTP1".into();
        }
    }
    let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
    for volume in volumes.iter_mut().filter(|volume| volume["name"] == "sandgate-token") {
        volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"] = 3607.into();
    }
    volumes.insert(
        0,
        json!({"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": []}}),
    );
    pod
}

/// The patch that a pod gets.
fn patched(settings: &Settings, pod: &Value) -> Value {
    let Decision::Inject(plan) = decided(settings, pod) else {
        panic!("not injected: {:?}", decided(settings, pod));
    };
    serde_json::to_value(patch(&plan, pod)).unwrap()
}

#[test]
fn a_gate_that_is_there_is_accepted_as_the_api_server_stores_it() {
    for settings in [settings(), lockdown()] {
        let pod = injected(&settings, &sandbox());
        assert_eq!(patched(&settings, &pod), json!([]));
        assert_eq!(patched(&settings, &as_stored(&pod)), json!([]));
    }
}

/// Two replicas inject different images while one release follows the other.
#[test]
fn a_gate_with_another_image_that_the_operator_accepts_is_left_alone_and_no_other() {
    for settings in [settings(), lockdown()] {
        let with = |image: &str| Settings {
            image: image.parse().unwrap(),
            ..settings.clone()
        };
        let accepting = Settings {
            accepted_images: vec![
                "sandgate/sidecar:3".parse().unwrap(),
                "sandgate/sidecar:1".parse().unwrap(),
            ],
            ..with("sandgate/sidecar:2")
        };
        let older = injected(&with("sandgate/sidecar:1"), &sandbox());
        assert_eq!(patched(&accepting, &as_stored(&older)), json!([]));
        assert_eq!(
            denials(&with("sandgate/sidecar:2"), &older)[0].reason,
            DenyReason::Tampered
        );
        // What is new gets the image that is injected now.
        let new = injected(&accepting, &sandbox());
        assert_eq!(new, injected(&with("sandgate/sidecar:2"), &sandbox()));
        let other = injected(&with("evil.example/gate:1"), &sandbox());
        let field = denials(&accepting, &other)[0].field.clone();
        assert_eq!(field, "spec.initContainers[0].image");
        // Of an accepted gate nothing else may differ.
        let mut bent = older.clone();
        for container in bent["spec"]["initContainers"].as_array_mut().unwrap() {
            container["command"] = json!(["/bin/sh"]);
        }
        assert_eq!(denials(&accepting, &bent)[0].reason, DenyReason::Tampered);
        if settings.lockdown.is_some() {
            let mut mixed = older;
            mixed["spec"]["initContainers"][0]["image"] = "sandgate/sidecar:3".into();
            assert_eq!(denials(&accepting, &mixed)[0].field, "spec.initContainers[0].image");
        }
    }
}

/// The anchors of a gate, to be changed.
fn anchors_of(pod: &mut Value) -> &mut Value {
    let containers = pod["spec"]["initContainers"].as_array_mut().unwrap();
    let gate = containers.iter_mut().find(|container| container["name"] == "sandgate");
    let variables = gate.unwrap()["env"].as_array_mut().unwrap();
    let found = variables
        .iter_mut()
        .find(|variable| variable["name"] == "SANDGATE_TRUST_ANCHORS");
    &mut found.unwrap()["value"]
}

/// A root is added or taken away between two calls, or one replica has heard of that and the other hasn't.
#[test]
fn a_gate_may_have_any_of_the_roots_that_are_known_and_no_other() {
    let root = || NewRoot::generate().unwrap().certificate_pem;
    let (signing, next, unknown) = (anchors().as_pem().to_owned(), root(), root());
    let known = |roots: &[&str]| Anchors::from_pem(roots.concat().as_bytes()).unwrap();
    for settings in [settings(), lockdown()] {
        let with = |text: &str| {
            let mut pod = injected(&settings, &sandbox());
            *anchors_of(&mut pod) = text.into();
            as_stored(&pod)
        };
        let both = known(&[&signing, &next]);
        for text in [
            &signing,
            &next,
            &format!("{signing}{next}"),
            &format!("{next}{signing}"),
        ] {
            let Decision::Inject(plan) = decided_knowing(&both, &settings, &with(text)) else {
                panic!("{:?}", decided_knowing(&both, &settings, &with(text)));
            };
            assert!(patch(&plan, &with(text)).0.is_empty(), "{text}");
        }
        let field = if settings.lockdown.is_some() {
            "spec.initContainers[1].env[3].value"
        } else {
            "spec.initContainers[0].env[3].value"
        };
        for (text, known) in [
            (unknown.clone(), &both),
            (format!("{signing}{unknown}"), &both),
            (format!("{signing}{signing}"), &both),
            (format!("{signing}{next}"), &known(&[&signing])),
            (String::new(), &both),
        ] {
            let Decision::Deny(denials) = decided_knowing(known, &settings, &with(&text)) else {
                panic!("admitted: {text}");
            };
            let found: Vec<_> = denials
                .iter()
                .map(|denial| (denial.reason, denial.field.as_str()))
                .collect();
            assert_eq!(found, [(DenyReason::Tampered, field)], "{text}");
        }
    }
}

/// A pod's author has copied the gate of an old pod: a root that leaves would be needed for ever.
#[tokio::test(start_paused = true)]
async fn a_gate_that_knows_only_a_root_that_leaves_is_not_admitted_anew_and_runs_on() {
    let root = || Root::from_pem(NewRoot::generate().unwrap().certificate_pem.as_bytes()).unwrap();
    let (old, new) = (root(), root());
    let text = pem(&[old.der()]);
    let grace = Duration::from_secs(60);
    for settings in [settings(), lockdown()] {
        let mut pod = injected(&settings, &sandbox());
        *anchors_of(&mut pod) = text.as_str().into();
        let pod = as_stored(&pod);
        for (current, former) in [(vec![new.clone(), old.clone()], &old), (vec![new.clone()], &old)] {
            let anchors = RootChanges::new(grace).anchors(&current, &[former]).unwrap();
            let Decision::Deny(denials) = decided_knowing(&anchors, &settings, &pod) else {
                panic!("admitted with {} roots", current.len());
            };
            let [denial] = denials.iter().collect::<Vec<_>>()[..] else {
                panic!("{denials:?}");
            };
            assert!(
                denial.reason == DenyReason::Tampered
                    && denial.field.ends_with(".env[3].value")
                    && denial.why.contains("roots of another day")
                    && denial.fix.contains("create the pod again"),
                "{denial}"
            );
            let terms = Terms {
                shapes: SHAPES,
                settings: &settings,
                anchors: &anchors,
                proven: false,
            };
            assert_eq!(check(terms, Pod::read(&pod).unwrap()), Ok(()));
        }
    }
}

#[test]
fn a_gate_may_have_the_memory_that_an_annotation_could_give_it_or_the_operators_own() {
    let limited = |limit: &str| {
        let mut pod = injected(&settings(), &sandbox());
        pod["spec"]["initContainers"][0]["resources"]["limits"]["memory"] = limit.into();
        pod
    };
    for limit in ["32Mi", "1Gi", "64M", "65536Ki"] {
        assert_eq!(patched(&settings(), &limited(limit)), json!([]), "{limit}");
    }
    // The API server spells 2,000,000,000 bytes otherwise than the injector.
    for (own, stored) in [("24Mi", "24Mi"), ("2000000000", "2G")] {
        let mut operators = settings();
        operators.resources.memory_limit = own.parse().unwrap();
        assert_eq!(patched(&operators, &limited(stored)), json!([]), "{own}");
        assert_eq!(denials(&operators, &limited("23Mi"))[0].reason, DenyReason::Tampered);
    }
}

#[test]
fn a_gate_is_pulled_as_the_operator_says_or_each_time() {
    let pulled = |policy: &str| {
        let mut pod = injected(&settings(), &sandbox());
        pod["spec"]["initContainers"][0]["imagePullPolicy"] = policy.into();
        pod
    };
    let never = Settings {
        image_pull_policy: PullPolicy::Never,
        ..settings()
    };
    for (settings, right, wrong) in [(settings(), "IfNotPresent", "Never"), (never, "Never", "IfNotPresent")] {
        for policy in [right, "Always"] {
            assert_eq!(patched(&settings, &pulled(policy)), json!([]), "{policy}");
        }
        let found = denials(&settings, &pulled(wrong));
        assert_eq!(found[0].field, "spec.initContainers[0].imagePullPolicy", "{found:?}");
    }
}

#[test]
fn a_gate_that_was_moved_is_moved_back_to_the_front() {
    let names = |pod: &Value| -> Vec<_> {
        let containers = pod["spec"]["initContainers"].as_array().unwrap().iter();
        containers.map(|container| container["name"].clone()).collect()
    };
    let others = ["a", "b"].map(|name| {
        let context = json!({"capabilities": {"drop": ["ALL"]}});
        json!({"name": name, "image": "other", "securityContext": context})
    });
    for settings in [settings(), lockdown()] {
        let pod = injected(&settings, &sandbox_with(&json!({"spec": {"initContainers": others}})));
        let expected = names(&pod);
        for seed in 0..50 {
            let mut moved = pod.clone();
            fastrand::Rng::with_seed(seed).shuffle(moved["spec"]["initContainers"].as_array_mut().unwrap());
            let patch = patched(&settings, &moved);
            let only_moves = patch
                .as_array()
                .unwrap()
                .iter()
                .all(|operation| operation["op"] == "move");
            assert!(only_moves, "{patch}");
            let back = injected(&settings, &moved);
            let gate = expected.len() - others.len();
            assert_eq!(names(&back)[..gate], expected[..gate], "{:?}", names(&moved));
            assert_eq!(patched(&settings, &back), json!([]));
        }
    }
}

#[test]
fn an_imitation_of_a_gate_is_refused_with_the_field_that_differs() {
    let gated = injected(&settings(), &sandbox());
    let rows = documents::parse(include_str!("../../tests/golden/tampering.yaml")).unwrap();
    for row in rows[0].as_array().unwrap() {
        let mut pod = gated.clone();
        let operation = json!([{"op": "add", "path": row["at"], "value": row["put"]}]);
        json_patch::patch(
            &mut pod,
            &serde_json::from_value::<json_patch::Patch>(operation).unwrap(),
        )
        .unwrap();
        let found = denials(&settings(), &pod);
        let found: Vec<_> = found
            .iter()
            .map(|denial| (denial.reason, denial.field.as_str()))
            .collect();
        // An item added in the middle shifts the rest; the first difference counts.
        assert_eq!(found, [(DenyReason::Tampered, row["names"].as_str().unwrap())], "{row}");
    }
}

#[test]
fn a_part_of_a_gate_alone_is_refused() {
    let gated = injected(&settings(), &sandbox());
    for (pointer, index) in [("/spec/initContainers", 0), ("/spec/volumes", 0), ("/spec/volumes", 1)] {
        let mut pod = gated.clone();
        pod.pointer_mut(pointer).unwrap().as_array_mut().unwrap().remove(index);
        let found = denials(&settings(), &pod);
        assert!(!found.is_empty(), "{pointer}");
        assert!(
            found.iter().all(|denial| denial.reason == DenyReason::ReservedName),
            "{found:?}"
        );
    }
    for pod in [
        sandbox_with(&json!({"metadata": {"labels": {"sandgate.dev/injected": "true"}}})),
        sandbox_with(&json!({"metadata": {"annotations": {"sandgate.dev/shape": "3"}}})),
        sandbox_with(&json!({"spec": {"volumes": [{"name": "sandgate-token", "emptyDir": {}}]}})),
        sandbox_with(&json!({"spec": {"initContainers": [{"name": "sandgate"}]}})),
    ] {
        let found = denials(&settings(), &pod);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].reason, DenyReason::ReservedName);
        assert!(
            found[0].to_string().contains("is the gate's own name; remove it"),
            "{}",
            found[0]
        );
    }
}

#[test]
fn a_second_gate_is_refused() {
    let mut pod = injected(&settings(), &sandbox());
    let containers = pod["spec"]["initContainers"].as_array_mut().unwrap();
    containers.push(containers[0].clone());
    let found = denials(&settings(), &pod);
    assert_eq!(found[0].field, "spec.initContainers[1].name", "{found:?}");
}

#[test]
fn a_gate_does_not_excuse_the_rest_of_the_pod() {
    let mut pod = injected(&settings(), &sandbox());
    pod["spec"]["hostNetwork"] = true.into();
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "sandgate-state", "mountPath": "/x"}]);
    let reasons: Vec<_> = denials(&settings(), &pod).iter().map(|denial| denial.reason).collect();
    assert_eq!(reasons, [DenyReason::HostNamespace, DenyReason::OwnVolume]);
}

#[test]
fn a_gate_of_other_settings_is_refused() {
    let pod = injected(&settings(), &sandbox());
    let found = denials(&lockdown(), &pod);
    assert!(
        found.iter().all(|denial| denial.reason == DenyReason::ReservedName),
        "{found:?}"
    );
    let pod = injected(&lockdown(), &sandbox());
    let found = denials(&settings(), &pod);
    assert_eq!(found[0].reason, DenyReason::Tampered, "{found:?}");
    assert_eq!(found[0].field, "spec.initContainers[0].name");
}
