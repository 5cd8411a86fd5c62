use super::*;
use crate::decide::{Decision, Operation, Request, User, decide_as};
use crate::shape::{SHAPE_2, SHAPE_3, SHAPES, Shape};
use crate::testing::{anchors, lockdown as with_lockdown, settings};
use serde_json::json;

/// A running pod of shape 2, as an API server stored it. Such pods are out there, whatever the current shape is.
pub(crate) fn of_shape_2() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/shapes/2.json")).unwrap()
}

/// One of shape 3.
pub(crate) fn of_shape_3() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/shapes/3.json")).unwrap()
}

/// The same with lockdown.
fn locked_down() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/shapes/3-lockdown.json")).unwrap()
}

/// One of shape 2 with lockdown.
fn locked_down_of_shape_2() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/shapes/2-lockdown.json")).unwrap()
}

fn checked(settings: &Settings, pod: &Value) -> Result<(), Misfit> {
    checked_of(SHAPES, settings, pod)
}

fn checked_of(shapes: Shapes, settings: &Settings, pod: &Value) -> Result<(), Misfit> {
    let terms = Terms {
        shapes,
        settings,
        anchors: &anchors(),
        proven: false,
    };
    check(terms, Pod::read(pod).unwrap())
}

/// The check of a pod whose gate was changed.
fn with_gate(change: impl FnOnce(&mut Value)) -> Result<(), Misfit> {
    let mut pod = of_shape_3();
    change(&mut pod["spec"]["initContainers"][0]);
    checked(&settings(), &pod)
}

/// Under settings that were changed after the pod was born.
fn under(change: impl FnOnce(&mut Settings)) -> Result<(), Misfit> {
    let mut settings = settings();
    change(&mut settings);
    checked(&settings, &of_shape_3())
}

/// The shape of a release to come: the gate has one more argument, and more memory to keep things in.
const SHAPE_4: Shape = Shape {
    version: "4",
    containers: |settings, image, anchors, overrides, probes| {
        let mut containers = (SHAPE_3.containers)(settings, image, anchors, overrides, probes);
        let gate = containers.last_mut().unwrap();
        gate["args"].as_array_mut().unwrap().insert(0, json!("--of-shape=4"));
        containers
    },
    volumes: |settings| {
        let mut volumes = (SHAPE_3.volumes)(settings);
        volumes[1]["emptyDir"]["sizeLimit"] = json!("8Mi");
        volumes
    },
};
pub(crate) const TO_COME: Shapes = Shapes::of(&SHAPE_4, &[&SHAPE_3, &SHAPE_2]);

/// A pod as the webhook of a release makes it.
fn injected_as(shape: &Shape) -> Value {
    let mut pod = crate::testing::sandbox();
    let request = Request {
        pod: &pod,
        operation: Operation::Create,
        namespace: "team-a",
        user: &User::default(),
    };
    let Decision::Inject(plan) = decide_as(shape, &settings(), &anchors(), &request) else {
        panic!("not injected");
    };
    let patch = patch(&plan, &pod);
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[test]
fn a_running_pod_is_what_it_was_born_as() {
    for (pod, closed) in stored() {
        let settings = if closed { with_lockdown() } else { settings() };
        assert_eq!(checked(&settings, &pod), Ok(()), "{}", pod["metadata"]["annotations"]);
    }
}

#[test]
fn pods_of_the_two_shapes_before_are_whole_and_new_pods_get_the_current_one() {
    let check = |shapes: Shapes, pod: &Value| checked_of(shapes, &settings(), pod);
    for pod in [of_shape_2(), of_shape_3()] {
        assert_eq!(check(TO_COME, &pod), Ok(()));
    }
    for shape in [&SHAPE_2, &SHAPE_3, &SHAPE_4] {
        let pod = injected_as(shape);
        assert_eq!(pod["metadata"]["annotations"][SHAPE_ANNOTATION], shape.version);
        assert_eq!(check(TO_COME, &pod), Ok(()), "{}", shape.version);
    }
    assert_eq!(
        injected_as(TO_COME.current())["spec"]["initContainers"][0]["args"][0],
        "--of-shape=4"
    );
    // A pod that is of one shape and says another is of none.
    for (mut mixed, other) in [(of_shape_2(), "3"), (of_shape_3(), "2"), (of_shape_3(), "4")] {
        mixed["metadata"]["annotations"][SHAPE_ANNOTATION] = json!(other);
        assert!(matches!(check(TO_COME, &mixed), Err(Misfit::Shape(_))), "{other}");
    }
    // One of a release to come isn't known, nor one of a shape that was given up.
    assert_eq!(
        check(SHAPES, &injected_as(&SHAPE_4)),
        Err(Misfit::UnknownShape("4".into()))
    );
    assert_eq!(
        check(Shapes::of(&SHAPE_4, &[&SHAPE_3]), &of_shape_2()),
        Err(Misfit::UnknownShape("2".into()))
    );
}

/// The stored pods, and whether their network was closed from within.
fn stored() -> [(Value, bool); 4] {
    [
        (of_shape_2(), false),
        (locked_down_of_shape_2(), true),
        (of_shape_3(), false),
        (locked_down(), true),
    ]
}

/// Each shape that the release knows has pods here that were born with it, which are never written anew.
#[test]
fn every_shape_that_the_release_knows_has_stored_pods() {
    let version = |pod: &Value| pod["metadata"]["annotations"][SHAPE_ANNOTATION].clone();
    let stored = stored().map(|(pod, closed)| (version(&pod), closed));
    for shape in [&SHAPE_2, &SHAPE_3] {
        for closed in [false, true] {
            assert!(stored.contains(&(json!(shape.version), closed)), "{}", shape.version);
        }
    }
    let current = SHAPES.current().version;
    assert!(
        stored.contains(&(json!(current), false)),
        "store a pod of the new shape"
    );
}

#[test]
fn what_a_pod_s_author_writes_later_cuts_off_no_gate() {
    let mut pod = of_shape_3();
    for annotation in TENANT_ANNOTATIONS {
        pod["metadata"]["annotations"][annotation] = json!("no amount at all");
    }
    assert_eq!(checked(&settings(), &pod), Ok(()));
    for label in ["disabled", "perhaps", ""] {
        pod["metadata"]["labels"][INJECT_LABEL] = json!(label);
        assert_eq!(checked(&settings(), &pod), Ok(()), "{label}");
    }
    // Nor did it choose resources that its gate hasn't: the container counts.
    pod["metadata"]["annotations"]["sandgate.dev/memory-limit"] = json!("1Gi");
    pod["metadata"]["annotations"]["sandgate.dev/memory-request"] = json!("1Gi");
    assert_eq!(checked(&settings(), &pod), Ok(()));
}

#[test]
fn an_operator_who_changes_what_is_nobodys_security_cuts_off_no_gate() {
    let resources = |limit: u64, request: u64| {
        move |settings: &mut Settings| {
            settings.resources.memory_limit = Memory::mebibytes(limit);
            settings.resources.memory_request = Memory::mebibytes(request);
        }
    };
    assert_eq!(under(resources(512, 256)), Ok(()));
    assert_eq!(under(resources(40, 16)), Ok(()));
    assert_eq!(under(|settings| settings.log_level = LogLevel::Trace), Ok(()));
    assert_eq!(under(|settings| settings.image_pull_policy = PullPolicy::Never), Ok(()));
    assert_eq!(under(|settings| settings.allow_opt_out = true), Ok(()));
    // Born when a gate was given more than a pod's author may choose.
    let large = |gate: &mut Value| gate["resources"]["limits"]["memory"] = json!("2Gi");
    assert_eq!(with_gate(large), Ok(()));
}

#[test]
fn a_gate_without_memory_to_serve_with_is_none() {
    for memory in [json!("31Mi"), json!("0"), json!("much"), Value::Null] {
        let misfit = with_gate(|gate| gate["resources"]["limits"]["memory"] = memory.clone());
        assert!(matches!(misfit, Err(Misfit::Shape(_))), "{memory}: {misfit:?}");
    }
}

#[test]
fn a_router_of_before_counts_as_long_as_the_operator_accepts_it() {
    let before = settings().router_identities;
    let another: WorkloadIdentity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let one_more = |settings: &mut Settings| settings.router_identities.insert(0, another.clone());
    assert_eq!(under(one_more), Ok(()));
    let replaced = |settings: &mut Settings| settings.router_identities = vec![another.clone()];
    let Err(Misfit::Settings(told)) = under(replaced) else {
        panic!("a router that is none any more is believed");
    };
    assert!(
        told.contains(&before[0].to_string()) && told.contains("--accepted-router-identity"),
        "{told}"
    );
    let accepted = |settings: &mut Settings| {
        replaced(settings);
        settings.accepted_router_identities.clone_from(&before);
    };
    assert_eq!(under(accepted), Ok(()));
    // Nobody chose these, in whatever settings.
    for arguments in [json!([]), json!(["--router-identity=spiffe://cluster.local/ns/a/sa/b"])] {
        let misfit = with_gate(|gate| {
            let rest = gate["args"].as_array().unwrap()[1..].to_vec();
            gate["args"] = arguments.clone();
            gate["args"].as_array_mut().unwrap().extend(rest);
        });
        assert!(misfit.is_err(), "{arguments}");
    }
}

/// None of this is chosen by a pod's author: new pods with the router of before aren't admitted.
#[test]
fn no_new_pod_gets_a_router_of_before() {
    let mut settings = settings();
    let before = std::mem::replace(
        &mut settings.router_identities,
        vec!["spiffe://cluster.local/ns/a/sa/b".parse().unwrap()],
    );
    settings.accepted_router_identities = before;
    let old = injected_as(&SHAPE_3);
    let request = Request {
        pod: &old,
        operation: Operation::Create,
        namespace: "team-a",
        user: &User::default(),
    };
    let decision = decide_as(&SHAPE_3, &settings, &anchors(), &request);
    assert_eq!((decision.as_str(), decision.reason()), ("deny", "tampered"));
}

#[test]
fn a_control_plane_or_a_trust_domain_of_before_has_a_name_of_its_own() {
    for (flag, misfit) in [
        (
            "--control-identity=",
            under(|settings| settings.control_identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap()),
        ),
        (
            "--trust-domain=",
            under(|settings| settings.trust_domain = "prod.example".parse().unwrap()),
        ),
        (
            "--lockdown=disabled",
            under(|settings| settings.lockdown = with_lockdown().lockdown),
        ),
    ] {
        let Err(Misfit::Settings(told)) = misfit else {
            panic!("{flag}: {misfit:?}");
        };
        assert!(told.starts_with(flag), "{told}");
    }
    let mut settings = settings();
    settings.control_identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let pod = of_shape_3();
    assert!(settings_hold(&settings, Pod::read(&pod).unwrap()).is_err());
    assert!(settings_hold(&crate::testing::settings(), Pod::read(&pod).unwrap()).is_ok());
}

#[test]
fn a_pod_that_is_closed_from_within_may_stay_so() {
    assert_eq!(checked(&settings(), &locked_down()), Ok(()));
    // Whatever runtime it was closed under: nobody relies on it any more.
    let mut pod = locked_down();
    pod["spec"]["runtimeClassName"] = json!("kata");
    assert_eq!(checked(&settings(), &pod), Ok(()));
    let mut reopened = locked_down();
    reopened["spec"]["initContainers"][0]["args"][1] = json!("--mesh-port=1");
    assert!(matches!(checked(&settings(), &reopened), Err(Misfit::Shape(_))));
}

#[test]
fn an_image_that_the_operator_gave_up_has_a_name_of_its_own() {
    let newer = |settings: &mut Settings| settings.image = "sandgate/sidecar:2".parse().unwrap();
    assert_eq!(under(newer), Err(Misfit::Image("sandgate/sidecar:1".into())));
    // One that has shown its identity keeps it: while pods with its image are no longer created, it runs on.
    let (mut settings, anchors) = (settings(), anchors());
    newer(&mut settings);
    let proven = |pod: &Value| {
        let terms = Terms {
            shapes: SHAPES,
            settings: &settings,
            anchors: &anchors,
            proven: true,
        };
        check(terms, Pod::read(pod).unwrap())
    };
    assert_eq!(proven(&of_shape_3()), Ok(()));
    let mut no_image = of_shape_3();
    no_image["spec"]["initContainers"][0]["image"] = json!("$(X)");
    assert_eq!(proven(&no_image), Err(Misfit::Image("$(X)".into())));
    let mut other_command = of_shape_3();
    other_command["spec"]["initContainers"][0]["command"] = json!(["/bin/sh"]);
    assert!(matches!(proven(&other_command), Err(Misfit::Shape(_))));
    let accepting = |settings: &mut Settings| {
        newer(settings);
        settings.accepted_images = vec!["sandgate/sidecar:1".parse().unwrap()];
    };
    assert_eq!(under(accepting), Ok(()));
}

/// What a pod can be made of outside an opted-in namespace, where nobody looks at it.
#[test]
fn nothing_else_of_a_pod_may_differ() {
    let misfit = |change: &Value| {
        let mut pod = of_shape_3();
        json_patch::merge(&mut pod, change);
        checked(&settings(), &pod)
    };
    for change in [
        json!({"metadata": {"labels": {"sandgate.dev/injected": "yes"}}}),
        json!({"metadata": {"labels": {"sandgate.dev/other": "x"}}}),
        json!({"metadata": {"annotations": {"sandgate.dev/other": "x"}}}),
        json!({"spec": {"hostPID": true}}),
        json!({"spec": {"shareProcessNamespace": true}}),
        json!({"spec": {"volumes": []}}),
        json!({"spec": {"initContainers": []}}),
        json!({"spec": {"containers": [{"name": "app", "image": "a", "securityContext": {"runAsUser": 2102}}]}}),
        json!({"spec": {"containers": [{"name": "app", "image": "a", "volumeMounts": [{"name": "sandgate-state", "mountPath": "/s"}]}]}}),
        json!({"spec": {"containers": [{"name": "app", "image": "a", "ports": [{"containerPort": 14443}]}]}}),
    ] {
        assert!(
            matches!(misfit(&change), Err(Misfit::Shape(_))),
            "{change}: {:?}",
            misfit(&change)
        );
    }
    assert_eq!(
        misfit(&json!({"metadata": {"annotations": {"sandgate.dev/shape": null}}})),
        Err(Misfit::UnknownShape(String::new()))
    );
    for (field, value) in [
        ("command", json!(["/bin/sh"])),
        ("env", json!([])),
        ("securityContext", json!({})),
        ("ports", json!([])),
        ("volumeMounts", json!([])),
        ("restartPolicy", json!("Never")),
        ("lifecycle", Value::Null),
        ("lifecycle", json!({"postStart": {"exec": {"command": ["/bin/sh"]}}})),
        (
            "startupProbe",
            of_shape_2()["spec"]["initContainers"][0]["startupProbe"].clone(),
        ),
    ] {
        let misfit = with_gate(|gate| gate[field] = value);
        assert!(matches!(misfit, Err(Misfit::Shape(_))), "{field}: {misfit:?}");
    }
}
