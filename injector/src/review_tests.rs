use super::*;
use crate::deny::DenyReason;
use serde_json::json;

fn review() -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "namespace": "team-a",
            "operation": "CREATE",
            "userInfo": {"username": "admin", "uid": "1", "groups": ["system:authenticated"], "extra": {"a": ["b"]}},
            "object": {"kind": "Pod", "apiVersion": "v1", "metadata": {"generateName": "box-"}, "spec": {}},
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

fn parse(review: &Value) -> Result<Review, ReviewError> {
    Review::parse(review.to_string().as_bytes())
}

#[test]
fn a_review_tells_what_the_api_server_is_about_to_do() {
    let review = parse(&review()).unwrap();
    let request = review.pod().unwrap();
    assert_eq!(request.namespace, "team-a");
    assert_eq!(request.operation, Operation::Create);
    assert_eq!(request.user.groups, ["system:authenticated"]);
    assert_eq!(request.pod["metadata"]["generateName"], "box-");
    assert_eq!(review.name, "");
}

#[test]
fn everything_that_is_no_review_of_a_pod_is_answered_with_what_it_is_instead() {
    let with = |pointer: &str, value: Value| {
        let mut review = review();
        *review.pointer_mut(pointer).unwrap() = value;
        parse(&review)
            .and_then(|review| review.pod().map(drop))
            .unwrap_err()
            .to_string()
    };
    for (pointer, value, sentence) in [
        (
            "/apiVersion",
            json!("admission.k8s.io/v1beta1"),
            "only admission.k8s.io/v1 AdmissionReview is answered here, this is admission.k8s.io/v1beta1 AdmissionReview",
        ),
        ("/kind", json!("Pod"), "this is admission.k8s.io/v1 Pod"),
        ("/kind", json!(1), "the body is no AdmissionReview"),
        ("/request", json!(null), "holds no request"),
        ("/request", json!([]), "the body is no AdmissionReview"),
        ("/request/uid", json!(""), "has no uid"),
        ("/request/uid", json!("7".repeat(129)), "uid is longer than 128 bytes"),
        ("/request/uid", json!(7), "the body is no AdmissionReview"),
        (
            "/request/operation",
            json!("create"),
            "the body is no AdmissionReview: unknown variant `create`",
        ),
        ("/request/object", json!(null), "its object is missing"),
        (
            "/request/kind/kind",
            json!("Deployment"),
            "only pods are injected, this request is about Deployment (pods/)",
        ),
        ("/request/resource/resource", json!("nodes"), "about Pod (nodes/)"),
        ("/request/resource/group", json!("apps"), "only pods are injected"),
        (
            "/request/userInfo",
            json!({"groups": "all"}),
            "the body is no AdmissionReview",
        ),
    ] {
        let error = with(pointer, value);
        assert!(error.contains(sentence), "{pointer}: {error}");
    }
    for body in ["", "{", "null", "[]", "\"x\"", "{}", "\u{0}"] {
        assert!(Review::parse(body.as_bytes()).is_err(), "{body:?}");
    }
    assert!(Review::parse(b"\xff\xfe").is_err());
}

#[test]
fn a_subresource_of_pods_is_no_pod() {
    let mut exec = review();
    exec["request"]["subResource"] = "exec".into();
    assert!(matches!(parse(&exec).unwrap().pod(), Err(ReviewError::NotAPod(_))));
}

#[test]
fn a_deeply_nested_body_is_an_error_and_no_crash() {
    let body = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(
        Review::parse(body.as_bytes()),
        Err(ReviewError::NotAReview(_))
    ));
}

#[test]
fn an_answer_holds_the_patch_in_base64_with_its_type_or_neither() {
    let operation = json!([{"op": "add", "path": "/metadata/labels/a~1b", "value": "c"}]);
    let patch: Patch = serde_json::from_value(operation.clone()).unwrap();
    let answer = serde_json::to_value(Answer::patch("7", &patch).unwrap()).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    let response = &answer["response"];
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("7"), &json!(true)));
    assert_eq!(response["patchType"], "JSONPatch");
    let decoded = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&decoded).unwrap(), operation);
    let empty = serde_json::to_value(Answer::patch("7", &Patch(Vec::new())).unwrap()).unwrap();
    assert_eq!(empty["response"], json!({"uid": "7", "allowed": true}));
    assert_eq!(serde_json::to_value(Answer::allow("7")).unwrap(), empty);
}

#[test]
fn a_refusal_says_why_and_warnings_are_short() {
    let answer = Answer::deny("7", "no")
        .with_warning(&"€".repeat(200))
        .with_audit("decision", "deny");
    let answer = serde_json::to_value(answer).unwrap();
    let response = &answer["response"];
    assert_eq!(response["allowed"], false);
    assert_eq!(
        response["status"],
        json!({"code": 403, "reason": "Forbidden", "message": "no"})
    );
    assert_eq!(response["warnings"][0].as_str().unwrap(), "€".repeat(85));
    assert_eq!(response["auditAnnotations"], json!({"decision": "deny"}));
    assert!(response.get("patch").is_none());
}

#[test]
fn a_message_names_each_field_and_counts_what_it_leaves_out() {
    let denial = |field: &str| Denial {
        reason: DenyReason::HostPort,
        field: field.to_owned(),
        why: "why".to_owned(),
        fix: "fix".to_owned(),
    };
    assert_eq!(
        message(&[denial("a"), denial("b")]),
        "this pod can't be admitted with a gate: a: why; fix. b: why; fix"
    );
    let many: Vec<_> = (0..25).map(|_| denial("a")).collect();
    assert!(message(&many).ends_with(". 5 more"), "{}", message(&many));
}

#[test]
fn a_review_of_too_many_parts_is_refused_before_it_is_parsed() {
    let of = |parts: usize| {
        let mut review = review();
        review["request"]["object"]["spec"] = json!({"containers": vec![json!({"name": ""}); parts]});
        parse(&review)
    };
    assert!(of(6_000).is_ok());
    let refused = of(30_000).unwrap_err();
    assert!(matches!(refused, ReviewError::TooManyParts(17..30)), "{refused}");
    assert!(refused.to_string().contains("at most 16 are taken"), "{refused}");
    // What isn't measured can't be too much.
    let deep = r#"{"":"#.repeat(100) + "0" + &"}".repeat(100);
    let densest = format!("[{}0]", format!("{deep},").repeat(NEVER_TOO_MUCH / (deep.len() + 1)));
    assert!(ParsedSize::of(densest.as_bytes()).unwrap().0 <= MAX_PARSED / SHARE);
    assert!(densest.len() > NEVER_TOO_MUCH - 1000);
}

/// A review of a pod with so many small parts, or one long one.
fn of_size(old: Option<(usize, usize)>, new: (usize, usize)) -> Result<Review, ReviewError> {
    let pod = |(parts, length): (usize, usize)| {
        json!({
            "metadata": {"name": "a"},
            "spec": {"containers": vec![json!({"name": ""}); parts], "command": "a".repeat(length)},
        })
    };
    let mut review = review();
    review["request"]["object"] = pod(new);
    review["request"]["oldObject"] = old.map_or(json!(null), pod);
    parse(&review)
}

#[test]
fn whatever_may_be_created_may_be_updated_and_deleted() {
    let most = |size: fn(usize) -> (usize, usize), high: usize| {
        let mut sizes = (0, high);
        while sizes.1 - sizes.0 > 1 {
            let middle = usize::midpoint(sizes.0, sizes.1);
            match of_size(None, size(middle)) {
                Ok(_) => sizes.0 = middle,
                Err(error) => {
                    assert!(matches!(error, ReviewError::TooLarge(..)), "{error}");
                    sizes.1 = middle;
                }
            }
        }
        sizes.0
    };
    for (size, high) in [
        ((|parts| (parts, 0)) as fn(usize) -> (usize, usize), 20_000),
        (|length| (0, length), 4_000_000),
    ] {
        let most = most(size, high);
        assert!(most > high / 4, "{most}");
        let (fits, more) = (size(most), size(most + 1));
        of_size(Some(fits), fits).unwrap();
        // It grows no further by updates either, and what is there already is left alone.
        let refused = of_size(Some(fits), more).unwrap_err();
        assert!(matches!(refused, ReviewError::TooLarge(..)), "{refused}");
        of_size(Some(more), more).unwrap();
        of_size(Some(more), fits).unwrap();
    }
}

#[test]
fn no_name_that_an_author_makes_long_makes_an_answer_long() {
    let long = "a".repeat(600_000);
    let denial = |field: &str| Denial {
        reason: DenyReason::HostPort,
        field: field.to_owned(),
        why: format!("{long} is wrong"),
        fix: "remove it".to_owned(),
    };
    let message = message(&vec![denial(&long); 20]);
    let told = format!(
        "{}…: {}…; remove it. ",
        "a".repeat(LONGEST_TEXT),
        "a".repeat(MAX_SENTENCE)
    );
    assert!(message.contains(&told), "{message:.2000}");
    let warned = (0..100).fold(Answer::deny("7", &message), |answer, _| answer.with_warning(&long));
    for answer in [warned, Answer::deny("7", &long)] {
        let text = serde_json::to_string(&answer).unwrap();
        assert!(text.len() < 16 << 10, "{}", text.len());
    }
}
