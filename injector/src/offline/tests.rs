use super::documents::Format;
use super::*;
use crate::authority::NewRoot;
use crate::testing::{anchors, lockdown, settings};
use serde_json::{Value, json};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: box, namespace: team-a, labels: {agents.x-k8s.io/sandbox-name-hash: x}}
spec: {containers: [{name: app, image: python}]}
";

fn explained(text: &str) -> (Value, Outcome) {
    let outcome = explain::explain(&settings(), Some(&anchors()), "default", text, explain::Format::Json).unwrap();
    (serde_json::from_str(&outcome.output).unwrap(), outcome)
}

fn injected(text: &str) -> (Vec<Value>, Outcome) {
    let outcome = inject::inject(&settings(), &anchors(), "default", text, Format::Yaml).unwrap();
    (documents::parse(&outcome.output).unwrap(), outcome)
}

/// An object of a kind that makes pods, with the pod's spec where that kind has it.
fn maker(version: &str, kind: &str, path: &[&str], spec: &Value) -> Value {
    let labels = json!({"sandgate.dev/inject": "enabled"});
    let template = json!({"metadata": {"labels": labels}, "spec": spec});
    let nested = path.iter().rev().fold(template, |inner, step| json!({ *step: inner }));
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "box"}});
    json_patch::merge(&mut object, &nested);
    object
}

const MAKERS: [(&str, &str, &[&str]); 12] = [
    ("v1", "PodTemplate", &["template"]),
    ("v1", "ReplicationController", &["spec", "template"]),
    ("apps/v1", "Deployment", &["spec", "template"]),
    ("apps/v1", "ReplicaSet", &["spec", "template"]),
    ("apps/v1", "StatefulSet", &["spec", "template"]),
    ("apps/v1", "DaemonSet", &["spec", "template"]),
    ("batch/v1", "Job", &["spec", "template"]),
    ("batch/v1", "CronJob", &["spec", "jobTemplate", "spec", "template"]),
    ("agents.x-k8s.io/v1alpha1", "Sandbox", &["spec", "podTemplate"]),
    ("agents.x-k8s.io/v1beta1", "Sandbox", &["spec", "podTemplate"]),
    (
        "extensions.agents.x-k8s.io/v1alpha1",
        "SandboxTemplate",
        &["spec", "podTemplate"],
    ),
    (
        "extensions.agents.x-k8s.io/v1beta1",
        "SandboxTemplate",
        &["spec", "podTemplate"],
    ),
];

#[test]
fn every_kind_that_makes_pods_is_looked_into() {
    let spec = json!({"containers": [{"name": "app", "image": "python"}]});
    for (version, kind, path) in MAKERS {
        let object = maker(version, kind, path, &spec);
        let (documents, outcome) = injected(&object.to_string());
        assert!(outcome.admitted && outcome.notes.is_empty(), "{kind}: {outcome:?}");
        let template = documents[0].pointer(&format!("/{}", path.join("/"))).unwrap();
        assert_eq!(template["spec"]["initContainers"][0]["name"], "sandgate", "{kind}");
        assert_eq!(
            template["metadata"]["labels"]["sandgate.dev/injected"], "true",
            "{kind}"
        );
        let left = template["metadata"]["labels"].as_object().unwrap().len();
        assert_eq!(left, 2, "{kind}: what only its controller sets isn't written");

        let refused = maker(version, kind, path, &json!({"hostNetwork": true, "containers": []}));
        let (answer, outcome) = explained(&refused.to_string());
        assert!(!outcome.admitted, "{kind}");
        let field = format!("{}.spec.hostNetwork", path.join("."));
        assert_eq!(answer["pods"][0]["denials"][0]["field"], field, "{kind}");
    }
}

#[test]
fn sandboxes_need_no_label_and_no_metadata_in_their_template() {
    for (version, kind, path) in MAKERS.into_iter().skip(8) {
        let mut object = maker(version, kind, path, &json!({"containers": []}));
        object["spec"]["podTemplate"]
            .as_object_mut()
            .unwrap()
            .remove("metadata");
        let (documents, _) = injected(&object.to_string());
        let template = &documents[0]["spec"]["podTemplate"];
        assert_eq!(template["spec"]["initContainers"][0]["name"], "sandgate", "{kind}");
        assert_eq!(
            template["metadata"]["labels"],
            json!({"sandgate.dev/injected": "true"}),
            "{kind}"
        );
    }
}

#[test]
fn a_sandbox_whose_name_no_pod_can_have_is_refused() {
    let mut object = maker(
        "agents.x-k8s.io/v1beta1",
        "Sandbox",
        &["spec", "podTemplate"],
        &json!({"containers": []}),
    );
    object["metadata"]["name"] = "a.b".into();
    let (answer, _) = explained(&object.to_string());
    assert_eq!(answer["pods"][0]["reason"], "pod_name");
}

#[test]
fn lists_and_several_documents_are_looked_into_and_nothing_is_left_out() {
    let pod: Value = documents::parse(POD).unwrap().remove(0);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "PodList", "items": [pod, pod]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}},
    ]});
    let text = format!("{POD}---\n---\n{list}\n---\nkind: Namespace\n---\nspoken\n");
    let (documents, outcome) = injected(&text);
    assert_eq!(documents.len(), 4);
    assert_eq!(documents[0]["spec"]["initContainers"][0]["name"], "sandgate");
    for inner in documents[1]["items"][0]["items"].as_array().unwrap() {
        assert_eq!(inner["spec"]["initContainers"][0]["name"], "sandgate");
    }
    assert_eq!(documents[1]["items"][1], list["items"][1]);
    assert_eq!(
        (&documents[2], &documents[3]),
        (&json!({"kind": "Namespace"}), &json!("spoken"))
    );
    assert_eq!(
        outcome.notes,
        [
            "ConfigMap settings: not known to hold a pod, passed through",
            "Namespace : without apiVersion it is no Kubernetes object: passed through",
            "a document without kind and apiVersion is no Kubernetes object: passed through",
        ]
    );
}

#[test]
fn what_makes_its_pods_from_a_template_elsewhere_says_where_to_look() {
    for kind in ["SandboxClaim", "SandboxWarmPool"] {
        let object =
            json!({"apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": kind, "metadata": {"name": "x"}});
        let (answer, outcome) = explained(&object.to_string());
        assert_eq!(answer["pods"], json!([]));
        assert!(outcome.notes[0].contains("SandboxTemplate"), "{:?}", outcome.notes);
        assert_eq!(outcome.notes[1], "no pod was found: nothing was checked");
    }
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}});
    let (_, outcome) = explained(&object.to_string());
    assert_eq!(outcome.notes[0], "Deployment x: has no spec.template, passed through");
}

#[test]
fn nothing_is_put_out_if_a_pod_would_be_refused() {
    let text = format!("{POD}---\n{}", POD.replace("spec: {", "spec: {hostPID: true, "));
    let (_, outcome) = injected(&text);
    assert!(!outcome.admitted);
    assert_eq!(outcome.output, "");
    assert_eq!(
        outcome.notes,
        ["Pod box: refused: spec.hostPID: the node's processes hold every gate's key; remove it or set it to false"]
    );
}

#[test]
fn a_pod_that_is_let_through_is_put_out_as_it_was_with_the_reason() {
    let text = POD.replace("agents.x-k8s.io/sandbox-name-hash", "app");
    let (documents, outcome) = injected(&text);
    assert_eq!(documents, documents::parse(&text).unwrap());
    assert!(
        outcome.notes[0].starts_with("Pod box: passed through: it has neither label"),
        "{:?}",
        outcome.notes
    );
    // The namespace of an object counts; without one, the command's.
    let (answer, _) = explained(&POD.replace("team-a", "kube-system"));
    assert_eq!(answer["pods"][0]["reason"], "excluded_namespace");
    let without = POD.replace("namespace: team-a, ", "");
    let outcome = explain::explain(
        &settings(),
        Some(&anchors()),
        "kube-system",
        &without,
        explain::Format::Table,
    )
    .unwrap();
    assert!(outcome.output.contains("excluded_namespace"), "{}", outcome.output);
}

#[test]
fn injecting_what_was_injected_changes_nothing() {
    for settings in [settings(), lockdown()] {
        for format in [Format::Yaml, Format::Json] {
            let once = inject::inject(&settings, &anchors(), "default", POD, format)
                .unwrap()
                .output;
            let twice = inject::inject(&settings, &anchors(), "default", &once, format)
                .unwrap()
                .output;
            assert_eq!(once, twice);
        }
    }
}

/// Whoever explains a file may have no cluster; then nothing is said about the roots in it.
#[test]
fn without_the_clusters_roots_those_of_a_gate_are_compared_with_none_and_a_note_says_so() {
    let explain = |anchors: Option<&Anchors>, text: &str| {
        let outcome = explain::explain(&settings(), anchors, "default", text, explain::Format::Json).unwrap();
        let answer: Value = serde_json::from_str(&outcome.output).unwrap();
        (answer["pods"][0]["message"].as_str().unwrap().to_owned(), outcome)
    };
    let uncompared = |outcome: &Outcome| outcome.notes.iter().any(|note| note.contains("--trust-anchors-file"));
    let (message, outcome) = explain(None, POD);
    assert!(
        message.ends_with("a gate is added") && !uncompared(&outcome),
        "{outcome:?}"
    );
    let gated = injected(POD).1.output;
    let (message, outcome) = explain(None, &gated);
    assert!(message.ends_with("its gate is there already"), "{outcome:?}");
    assert!(outcome.admitted && uncompared(&outcome), "{outcome:?}");
    let other = NewRoot::generate().unwrap().certificate_pem;
    let other = Anchors::from_pem(other.as_bytes()).unwrap();
    let (_, outcome) = explain(Some(&other), &gated);
    assert!(!outcome.admitted && !uncompared(&outcome), "{outcome:?}");
    // What are no roots at all is refused in any case.
    let (_, outcome) = explain(None, &gated.replace("BEGIN CERTIFICATE", "BEGIN NOTHING"));
    assert!(!outcome.admitted, "{outcome:?}");
}

#[test]
fn the_table_is_for_people() {
    let text = format!("{POD}---\n{}", POD.replace("spec: {", "spec: {hostPID: true, "));
    let outcome = explain::explain(&settings(), Some(&anchors()), "default", &text, explain::Format::Table).unwrap();
    let expected = "\
POD             DECISION  REASON
Pod team-a/box  inject    sandbox_label
    it has label agents.x-k8s.io/sandbox-name-hash: a gate is added
Pod team-a/box  deny      host_namespace
    the pod isn't admitted until each field below is changed
    spec.hostPID: the node's processes hold every gate's key; remove it or set it to false
";
    assert_eq!(outcome.output, expected);
    assert!(!outcome.admitted);
    let (answer, _) = explained(&injected(POD).1.output);
    assert!(
        answer["pods"][0]["message"]
            .as_str()
            .unwrap()
            .ends_with("its gate is there already")
    );
}

#[test]
fn a_file_cannot_write_to_the_terminal() {
    let text = POD.replace("name: box", "name: \"box\\e[31m\"");
    let outcome = explain::explain(&settings(), Some(&anchors()), "default", &text, explain::Format::Table).unwrap();
    assert!(outcome.output.contains("box?[31m"), "{}", outcome.output);
}

#[test]
fn text_that_yaml_would_take_for_something_else_stays_text() {
    let labels = json!({"a": "yes", "b": "0644", "c": "1e3", "d": "null", "e": "on", "f": "", "g": "2001-01-01", "h": "a: b\n#c"});
    let mut pod = documents::parse(POD).unwrap().remove(0);
    json_patch::merge(&mut pod["metadata"]["annotations"], &labels);
    let once = inject::inject(&settings(), &anchors(), "default", &pod.to_string(), Format::Yaml).unwrap();
    let back = &documents::parse(&once.output).unwrap()[0];
    for (name, value) in labels.as_object().unwrap() {
        assert_eq!(&back["metadata"]["annotations"][name], value, "{}", once.output);
    }
}

#[test]
fn json_documents_may_follow_each_other_and_file_modes_are_octal() {
    let documents = documents::parse("{\"a\": 1}\n{\"b\": 2}").unwrap();
    assert_eq!(documents, [json!({"a": 1}), json!({"b": 2})]);
    assert_eq!(documents::parse("{a: 1}").unwrap(), [json!({"a": 1})]);
    assert_eq!(documents::parse("mode: 0644").unwrap(), [json!({"mode": 420})]);
}

#[test]
fn a_text_that_cannot_be_read_says_where() {
    for bad in ["a: [", "{\"a\": ", "a: 1\na: 2", "- a\n b: c"] {
        let error =
            explain::explain(&settings(), Some(&anchors()), "default", bad, explain::Format::Table).unwrap_err();
        assert!(error.contains("line"), "{bad:?}: {error}");
    }
}

#[test]
fn a_file_without_any_pod_fails_the_check_that_it_was_given_to() {
    for text in [
        "",
        "---\n",
        "{}",
        "spoken",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}",
    ] {
        for format in [explain::Format::Table, explain::Format::Json] {
            let outcome = explain::explain(&settings(), Some(&anchors()), "default", text, format).unwrap();
            assert!(!outcome.admitted, "{text:?}");
            assert_eq!(
                outcome.notes.last().unwrap(),
                "no pod was found: nothing was checked",
                "{text:?}"
            );
        }
    }
}

#[test]
fn a_pod_without_api_version_is_named_with_what_it_lacks() {
    let (answer, outcome) = explained(&POD.replace("apiVersion: v1", ""));
    assert_eq!(answer["pods"], json!([]));
    assert_eq!(
        outcome.notes[0],
        "Pod box: without apiVersion it is no Kubernetes object: passed through"
    );
    let (_, outcome) = explained(&POD.replace("kind: Pod", ""));
    assert!(
        outcome.notes[0].starts_with("a document without kind is"),
        "{:?}",
        outcome.notes
    );
}

/// As `kubectl get pods -A -o yaml` writes them, and as separate documents.
#[test]
fn an_export_of_five_thousand_pods_is_read() {
    let mut pod = documents::parse(POD).unwrap().remove(0);
    pod["status"] = json!({"conditions": vec![json!({"type": "Ready", "status": "True"}); 12]});
    let pods = vec![pod; 5_000];
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    for documents in [vec![list], pods] {
        let text = documents::render(&documents, Format::Yaml).unwrap();
        assert_eq!(documents::parse(&text).unwrap(), documents);
    }
}
