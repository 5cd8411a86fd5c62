//! Golden files: what becomes of the main shapes of pods, as whole patches and whole pods.
//!
//! `UPDATE_GOLDEN=1 cargo test -p sandbox-injector --test admit_golden` writes the results anew; read the difference
//! before you commit it.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "admit_common.rs"]
mod common;

use common::{applied, decided, lockdown, settings};
use sandbox_injector::decide::{Decision, Operation, User};
use sandbox_injector::offline::documents;
use sandbox_injector::settings::Settings;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn inputs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/admit");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|end| end == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    files
}

/// A case: what the operator chose, who asks for what, and the pod.
struct Case {
    settings: Settings,
    operation: Operation,
    namespace: String,
    user: User,
    pod: Value,
}

impl Case {
    fn read(file: &Path) -> Self {
        let mut documents = documents::parse(&fs::read_to_string(file).unwrap()).unwrap();
        let mut case = documents.remove(0);
        let known = ["identitySource", "lockdown", "namespace", "operation", "pod", "user"];
        assert!(
            case.as_object()
                .unwrap()
                .keys()
                .all(|key| known.contains(&key.as_str())),
            "{}",
            file.display()
        );
        let or = |value: &Value, default: Value| if value.is_null() { default } else { value.clone() };
        let classes = case["lockdown"]["runtimeClasses"].as_array();
        let classes = classes.map(|classes| classes.iter().map(|class| class.as_str().unwrap()).collect::<Vec<_>>());
        let mut settings = classes.map_or_else(settings, |classes| lockdown(&classes));
        if let Some(source) = case["identitySource"].as_str() {
            settings.identity_source = source.parse().unwrap();
        }
        Self {
            settings,
            operation: serde_json::from_value(or(&case["operation"], "CREATE".into())).unwrap(),
            namespace: case["namespace"].as_str().unwrap_or("team-a").to_owned(),
            user: serde_json::from_value(or(&case["user"], json!({}))).unwrap(),
            pod: case["pod"].take(),
        }
    }

    fn result(&self) -> Value {
        let decision = decided(&self.settings, self.operation, &self.namespace, &self.user, &self.pod);
        let mut result = json!({"decision": decision.as_str(), "reason": decision.reason()});
        match decision {
            Decision::Inject(plan) => {
                let (patch, pod) = applied(&plan, &self.pod);
                result["patch"] = serde_json::to_value(patch).unwrap();
                result["pod"] = pod;
            }
            Decision::Skip(reason) => result["message"] = reason.to_string().into(),
            Decision::Deny(denials) => {
                result["denials"] = denials.iter().map(ToString::to_string).collect::<Vec<_>>().into();
            }
        }
        result
    }
}

#[test]
fn every_shape_comes_out_as_its_golden_file_says() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut differing = Vec::new();
    for input in inputs() {
        let result = serde_json::to_string_pretty(&Case::read(&input).result()).unwrap() + "\n";
        let golden = input.with_extension("json");
        if update {
            fs::write(&golden, &result).unwrap();
        } else if fs::read_to_string(&golden).unwrap_or_default() != result {
            differing.push(format!("{} is now:\n{result}", golden.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// The admission policy takes the last argument for it, and compares all others as they are.
#[test]
fn the_log_level_is_the_last_of_a_gates_arguments() {
    for settings in [settings(), lockdown(&[])] {
        let pod = json!({"metadata": {"labels": {"sandgate.dev/inject": "enabled"}}, "spec": {}});
        let Decision::Inject(plan) = decided(&settings, Operation::Create, "team-a", &User::default(), &pod) else {
            panic!("not injected");
        };
        let gate = plan.containers.last().unwrap();
        let last = gate["args"].as_array().unwrap().last().unwrap();
        assert!(last.as_str().unwrap().starts_with("--log-level="), "{gate}");
    }
}

#[test]
fn every_injected_shape_is_left_alone_when_it_comes_again() {
    let mut injected = 0;
    for input in inputs() {
        let mut case = Case::read(&input);
        let Decision::Inject(plan) = decided(&case.settings, case.operation, &case.namespace, &case.user, &case.pod)
        else {
            continue;
        };
        case.pod = applied(&plan, &case.pod).1;
        assert_eq!(case.result()["patch"], json!([]), "{}", input.display());
        injected += 1;
    }
    assert!(injected >= 10, "{injected}");
}
