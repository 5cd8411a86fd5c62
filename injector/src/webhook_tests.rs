use super::*;
use crate::inbound::CALL_TIME;
use crate::rig::{Client, Rig};
use crate::testing::{lockdown, sandbox, sandbox_with, settings};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

/// The review of a pod's creation by agent-sandbox.
fn creation(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "0f1e",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "team-a",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:agent-sandbox-system:agent-sandbox-controller"},
            "object": pod,
            "dryRun": false,
        },
    })
}

fn patched(pod: &Value, answer: &Value) -> Value {
    let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
    pod
}

fn counted(rig: &Rig, webhook: &str, decision: &str, reason: &str) -> u64 {
    let metrics = prometheus::TextEncoder::new()
        .encode_to_string(&rig.metrics.registry.gather())
        .unwrap();
    let name = "sandgate_injector_admission_decisions_total";
    let series = format!("{name}{{decision=\"{decision}\",reason=\"{reason}\",webhook=\"{webhook}\"}} ");
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(&series))
        .map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_sandbox_comes_back_with_its_gate_first_over_either_protocol() {
    for settings in [settings(), lockdown()] {
        let expected = if settings.lockdown.is_some() {
            "sandgate-lockdown"
        } else {
            "sandgate"
        };
        let rig = Rig::start(settings).await;
        for alpn in [&b"http/1.1"[..], b"h2"] {
            let (status, body) = rig.post(alpn, "/mutate", creation(&sandbox()).to_string()).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            let answer: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(
                (&answer["response"]["uid"], &answer["response"]["allowed"]),
                (&json!("0f1e"), &json!(true))
            );
            let pod = patched(&sandbox(), &answer);
            assert_eq!(pod["spec"]["initContainers"][0]["name"], expected);
        }
        assert_eq!(counted(&rig, "mutate", "inject", "sandbox_label"), 2);
    }
}

#[tokio::test]
async fn what_mutate_makes_validate_lets_pass_and_what_it_did_not_make_is_refused() {
    let rig = Rig::start(settings()).await;
    let answer = rig.review("/mutate", &creation(&sandbox())).await;
    let with_gate = rig.review("/validate", &creation(&patched(&sandbox(), &answer))).await;
    assert_eq!(with_gate["response"]["allowed"], true, "{with_gate}");
    let without = rig.review("/validate", &creation(&sandbox())).await;
    assert_eq!(without["response"]["allowed"], false, "{without}");
    assert_eq!(counted(&rig, "validate", "allow", "gate_present"), 1);
    assert_eq!(counted(&rig, "validate", "deny", "gate_missing"), 1);
}

#[tokio::test]
async fn a_root_that_comes_between_the_two_calls_refuses_nothing_and_one_that_nobody_knows_does() {
    let rig = Rig::start(settings()).await;
    let (signing, other) = (rig.stored.roots.clone(), crate::authority_stored::Stored::new().roots);
    let anchors = |roots: &[crate::authority::Root]| Some(Arc::new(Anchors::of(roots).unwrap()));
    let pod = patched(&sandbox(), &rig.review("/mutate", &creation(&sandbox())).await);
    rig.trust.send_replace(anchors(&[signing, other.clone()].concat()));
    let verdict = rig.review("/validate", &creation(&pod)).await;
    assert_eq!(verdict["response"]["allowed"], true, "{verdict}");
    rig.trust.send_replace(anchors(&other));
    let verdict = rig.review("/validate", &creation(&pod)).await;
    assert_eq!(verdict["response"]["allowed"], false, "{verdict}");
    assert_eq!(counted(&rig, "validate", "deny", "tampered"), 1);
}

#[tokio::test]
async fn without_a_root_no_pod_is_created_and_running_ones_can_be_changed_and_deleted() {
    let rig = Rig::start(settings()).await;
    let pod = patched(&sandbox(), &rig.review("/mutate", &creation(&sandbox())).await);
    rig.trust.send_replace(None);
    for path in ["/mutate", "/validate"] {
        let (status, told) = rig.post(b"h2", path, creation(&pod).to_string()).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{told}");
        assert!(told.contains("hasn't read the root certificate yet"), "{told}");
    }
    assert_eq!(counted(&rig, "mutate", "error", "no_roots"), 1);
    assert_eq!(counted(&rig, "validate", "error", "no_roots"), 1);
    let mut update = creation(&pod);
    update["request"]["operation"] = "UPDATE".into();
    update["request"]["oldObject"] = pod.clone();
    update["request"]["object"]["metadata"]["labels"]["adopted"] = "yes".into();
    let verdict = rig.review("/validate", &update).await;
    assert_eq!(verdict["response"]["allowed"], true, "{verdict}");
}

#[tokio::test]
async fn a_refusal_tells_the_field_and_the_fix_and_counts_by_its_kind() {
    let rig = Rig::start(settings()).await;
    let answer = rig
        .review(
            "/mutate",
            &creation(&sandbox_with(&json!({"spec": {"hostNetwork": true}}))),
        )
        .await;
    let response = &answer["response"];
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("spec.hostNetwork") && message.contains("remove it or set it to false"),
        "{message}"
    );
    assert_eq!(
        response["auditAnnotations"],
        json!({"decision": "deny", "reason": "host_namespace"})
    );
    assert_eq!(counted(&rig, "mutate", "deny", "host_namespace"), 1);
}

#[tokio::test]
async fn whoever_expected_a_gate_is_warned_that_there_is_none() {
    let rig = Rig::start(settings()).await;
    let mut plain = sandbox();
    plain["metadata"]["labels"] = json!({});
    let answer = rig.review("/mutate", &creation(&plain)).await;
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains("without a gate") && warning.contains("sandgate.dev/inject=enabled"),
        "{warning}"
    );
    assert!(answer["response"].get("patch").is_none(), "{answer}");
}

#[tokio::test]
async fn each_decision_is_one_line_that_names_the_pod_its_owner_and_the_reason() {
    let rig = Rig::start(settings()).await;
    let owned = sandbox_with(&json!({"metadata": {
        "name": null,
        "generateName": "pool-",
        "ownerReferences": [{"kind": "Sandbox", "name": "alpha", "controller": true}],
    }}));
    let mut review = creation(&owned);
    review["request"]["dryRun"] = true.into();
    rig.review("/mutate", &review).await;
    rig.review("/mutate", &creation(&sandbox_with(&json!({"spec": {"hostPID": true}}))))
        .await;
    let lines = rig.logged();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (field, value) in [
        ("log", json!("admission")),
        ("webhook", json!("mutate")),
        ("decision", json!("inject")),
        ("reason", json!("sandbox_label")),
        ("namespace", json!("team-a")),
        ("name", Value::Null),
        ("generate_name", json!("pool-")),
        ("owner", json!("Sandbox/alpha")),
        ("uid", json!("0f1e")),
        ("operation", json!("CREATE")),
        ("resource", json!("pods")),
        ("dry_run", json!(true)),
        (
            "user",
            json!("system:serviceaccount:agent-sandbox-system:agent-sandbox-controller"),
        ),
    ] {
        assert_eq!(lines[0][field], value, "{field}");
    }
    assert!(lines[0]["patch_operations"].as_u64().unwrap() > 0);
    assert_eq!(
        (&lines[1]["decision"], &lines[1]["name"]),
        (&json!("deny"), &json!("box"))
    );
    assert!(lines[1]["message"].as_str().unwrap().contains("spec.hostPID"));
}

#[tokio::test]
async fn a_pods_text_cannot_forge_a_log_line() {
    let rig = Rig::start(settings()).await;
    let name = "box\"}\n{\"log\":\"admission\"";
    rig.review(
        "/mutate",
        &creation(&sandbox_with(&json!({"metadata": {"name": name}}))),
    )
    .await;
    let lines = rig.logged();
    assert_eq!((lines.len(), &lines[0]["name"]), (1, &json!(name)));
}

#[tokio::test]
async fn no_name_that_an_author_makes_long_hides_or_swells_a_log_line() {
    let rig = Rig::start(settings()).await;
    let long = "a".repeat(250_000);
    let mut review = creation(&sandbox_with(&json!({"spec": {"hostPID": true}, "metadata": {
        "name": long,
        "generateName": long,
        "labels": {(long.as_str()): ""},
        "ownerReferences": [{"kind": long, "name": long, "controller": true}],
    }})));
    for (pointer, value) in [
        ("/request/namespace", json!(long)),
        ("/request/userInfo/username", json!(long)),
    ] {
        *review.pointer_mut(pointer).unwrap() = value;
    }
    let answer = rig.review("/mutate", &review).await;
    assert_eq!(answer["response"]["allowed"], false);
    let lines = rig.logged();
    assert_eq!((lines.len(), &lines[0]["decision"]), (1, &json!("deny")), "{lines:?}");
    let cut = format!("{}…", "a".repeat(256));
    for field in ["name", "generate_name", "namespace", "user"] {
        assert_eq!(lines[0][field], cut, "{field}");
    }
    assert_eq!(lines[0]["owner"], format!("{cut}/{cut}"));
    assert!(lines[0].to_string().len() < 16 << 10);
}

#[tokio::test]
async fn a_call_that_gets_no_review_back_is_told_no_more_than_a_kibibyte() {
    let rig = Rig::start(settings()).await;
    let mut review = creation(&sandbox());
    review["request"]["operation"] = "a".repeat(60_000).into();
    let (status, told) = rig.post(b"h2", "/mutate", review.to_string()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(told.contains("unknown variant") && told.len() < 1100, "{}", told.len());
}

#[tokio::test]
async fn no_pod_makes_an_answer_longer_than_its_limit() {
    let rig = Rig::start(lockdown()).await;
    let containers = |count: usize| {
        let all = (0..count).map(|number| json!({"name": format!("c{number}"), "image": "a"}));
        let mut pod = sandbox();
        pod["spec"]["containers"] = all.collect();
        creation(&pod).to_string()
    };
    let (status, _) = rig.post(b"h2", "/mutate", containers(100)).await;
    assert_eq!(status, StatusCode::OK);
    let (status, told) = rig.post(b"h2", "/mutate", containers(1000)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{told:.100}");
    assert!(told.contains("longer than 64 KiB"), "{told}");
}

/// A review that isn't an ordinary one.
fn long_review() -> String {
    let mut long = sandbox();
    long["spec"]["containers"][0]["env"] = vec![json!({"name": "a", "value": "b"}); 5_000].into();
    let long = creation(&long).to_string();
    assert!(long.len() > MAX_ORDINARY);
    long
}

#[tokio::test]
async fn a_long_review_is_judged_beside_the_thread_that_reads_and_writes() {
    let rig = Rig::start(settings()).await;
    let mut answered = std::pin::pin!(rig.post(b"http/1.1", "/mutate", long_review()));
    // All of this test is one thread, which sees that something is being judged.
    let seen = async {
        while rig.webhook.bodies.free_turns() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = seen => {}
        (status, body) = &mut answered => panic!("{status} {body}"),
    }
    assert_eq!(answered.await.0, StatusCode::OK);
}

#[tokio::test]
async fn while_a_long_review_waits_for_its_turn_ordinary_ones_pass() {
    let rig = Rig::start(settings()).await;
    let soon = Instant::now() + CALL_TIME;
    let turn = rig.webhook.bodies.turn(soon).await.unwrap();
    let mut long = std::pin::pin!(rig.post(b"http/1.1", "/mutate", long_review()));
    let ordinary = creation(&sandbox());
    tokio::select! {
        (status, body) = &mut long => panic!("{status} {body}"),
        answer = rig.review("/mutate", &ordinary) => assert_eq!(answer["response"]["allowed"], true),
    }
    drop(turn);
    assert_eq!(long.await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_long_review_whose_turn_does_not_come_is_told_so_before_the_api_server_gives_up() {
    let rig = Rig::start(settings()).await;
    let soon = Instant::now() + CALL_TIME;
    let _turn = rig.webhook.bodies.turn(soon).await.unwrap();
    let (status, told) = rig.post(b"http/1.1", "/mutate", long_review()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{told}");
}

#[tokio::test]
async fn whatever_is_no_review_gets_a_text_that_says_so() {
    let rig = Rig::start(settings()).await;
    let changed = |pointer: &str, value: Value| {
        let mut review = creation(&sandbox());
        *review.pointer_mut(pointer).unwrap() = value;
        review.to_string()
    };
    for (body, text) in [
        (String::new(), "the body is no AdmissionReview"),
        ("{".into(), "the body is no AdmissionReview"),
        ("[]".into(), "the body is no AdmissionReview"),
        (
            changed("/apiVersion", json!("admission.k8s.io/v1beta1")),
            "set admissionReviewVersions to [v1]",
        ),
        (
            changed("/kind", json!("Pod")),
            "only admission.k8s.io/v1 AdmissionReview",
        ),
        (changed("/request", Value::Null), "holds no request"),
        (changed("/request/uid", json!("")), "has no uid"),
        (changed("/request/object", Value::Null), "holds no pod"),
        (
            changed("/request/kind/kind", json!("Service")),
            "only pods are injected",
        ),
    ] {
        let (status, told) = rig.post(b"h2", "/mutate", body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(told.contains(text), "{told}");
    }
    assert_eq!(counted(&rig, "mutate", "error", "bad_review"), 9);
    assert!(rig.logged().is_empty(), "nothing was decided");
}

#[tokio::test]
async fn only_posts_of_json_to_the_two_paths_are_answered() {
    let rig = Rig::start(settings()).await;
    let request = |method: &str, path: &str, kind: &str| {
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        request
            .body(Full::new(Bytes::from(creation(&sandbox()).to_string())))
            .unwrap()
    };
    for (method, path, kind, expected) in [
        ("POST", "/mutate", "application/json", 200),
        ("POST", "/mutate?timeout=5s", "application/json", 200),
        ("POST", "/mutate", "text/plain", 415),
        ("GET", "/mutate", "application/json", 405),
        ("PUT", "/validate", "application/json", 405),
        ("POST", "/", "application/json", 404),
        ("POST", "/mutate/x", "application/json", 404),
        ("POST", "/metrics", "application/json", 404),
        ("GET", "/healthz", "application/json", 404),
    ] {
        let (status, body) = rig.send(b"http/1.1", request(method, path, kind)).await;
        assert_eq!(status.as_u16(), expected, "{method} {path} {kind}: {body}");
    }
}

#[tokio::test]
async fn a_review_over_the_limit_is_refused_in_words_over_either_protocol() {
    let rig = Rig::start(settings()).await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let (status, told) = rig
            .post(alpn, "/mutate", vec![b' '; crate::inbound::MAX_BODY + 1])
            .await;
        assert_eq!(
            (status.as_u16(), told.as_str()),
            (413, "the review is longer than 4 MiB")
        );
    }
    assert_eq!(counted(&rig, "mutate", "error", "too_long"), 2);
}

#[tokio::test]
async fn a_dry_run_is_answered_as_the_real_thing() {
    let rig = Rig::start(settings()).await;
    let mut dry = creation(&sandbox());
    dry["request"]["dryRun"] = true.into();
    assert_eq!(
        rig.review("/mutate", &dry).await,
        rig.review("/mutate", &creation(&sandbox())).await
    );
}

#[tokio::test]
async fn one_connection_carries_many_reviews() {
    let rig = Rig::start(settings()).await;
    for alpn in [&b"http/1.1"[..], b"h2"] {
        let mut client = Client::new(rig.connect(alpn).await.unwrap(), alpn).await;
        for _ in 0..20 {
            let request = Request::post("/mutate").header("content-type", "application/json");
            let body = Full::new(Bytes::from(creation(&sandbox()).to_string()));
            assert_eq!(client.send(request.body(body).unwrap()).await.unwrap().status(), 200);
        }
    }
}

#[test]
fn a_panic_ends_one_review_and_nothing_else() {
    let caught: Result<(), _> = caught(|| panic!("a defect"));
    assert_eq!(caught.unwrap_err().status(), StatusCode::INTERNAL_SERVER_ERROR);
}
