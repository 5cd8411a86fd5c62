//! The chart as Helm renders it, and pods as the injector that it installs would make them.

use crate::{Namespace, documents, until};
use clap::Parser;
use sandbox_injector::anchors::Anchors;
use sandbox_injector::authority::NewRoot;
use sandbox_injector::config::serve::{Config, ServeFlags};
use sandbox_injector::decide::{Decision, Operation, Request, User, decide};
use sandbox_injector::patch::patch;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output};

/// Callers must be decided about, or nothing is rendered.
pub const DECIDED: &str = "router.auth.mode=allow-all";
/// What the chart asks a cluster for, of a cluster that has it.
const KINDS: &str = "certificates.k8s.io/v1/PodCertificateRequest,certificates.k8s.io/v1/ClusterTrustBundle";
/// Where the chart is installed by default.
pub const OWN_NAMESPACE: &str = "agent-sandbox-system";

/// Where the chart is.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../charts/sandgate")
}

/// Runs Helm, with nothing of the user's own settings.
pub fn helm(arguments: &[&str]) -> Output {
    let program = std::env::var_os("SANDGATE_HELM").expect("SANDGATE_HELM isn't set: use tests/cluster/run");
    let home = std::env::temp_dir().join("sandgate-helm");
    let mut command = Command::new(program);
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, &home);
    }
    command.args(arguments).output().expect("Helm runs")
}

/// What one installation consists of.
pub struct Chart {
    objects: Vec<Value>,
    config: Config,
    /// A root for gates, as if an injector had made it.
    anchors: Anchors,
}

impl Chart {
    /// Renders the chart with these values, each as `--set` takes them.
    pub fn render(values: &[&str]) -> Self {
        let folder = folder();
        let mut arguments = vec!["template", "sandgate", folder.to_str().unwrap(), "-n", OWN_NAMESPACE];
        arguments.extend(["--kube-version", "1.37.0", "--api-versions", KINDS, "--set", DECIDED]);
        arguments.extend(values.iter().flat_map(|value| ["--set", value]));
        let done = helm(&arguments);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let objects = documents(&String::from_utf8(done.stdout).unwrap());
        let config = config(&objects);
        Self {
            objects,
            config,
            anchors: new_anchors(),
        }
    }

    /// The objects of these kinds.
    pub fn of_kinds(&self, kinds: &[&str]) -> Vec<Value> {
        let objects = self.objects.iter();
        let chosen = objects.filter(|object| kinds.contains(&object["kind"].as_str().unwrap()));
        chosen.cloned().collect()
    }

    /// The objects of these kinds of one part of Sandgate.
    pub fn of_component(&self, component: &str, kinds: &[&str]) -> Vec<Value> {
        let objects = self.of_kinds(kinds).into_iter();
        let is_of = |object: &Value| object["metadata"]["labels"]["app.kubernetes.io/component"] == component;
        objects.filter(is_of).collect()
    }

    /// What the API server judges pods and `NetworkPolicies` by.
    pub fn policies(&self) -> Vec<Value> {
        let policies = self.of_kinds(&["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]);
        assert!(!policies.is_empty(), "the chart renders no policy");
        policies
    }

    /// What the injector's program is started with.
    pub fn arguments(&self) -> Vec<String> {
        arguments(&self.objects)
    }

    /// How the injector is configured that the chart installs, from the flags that it gets.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the injector decides about a pod that is created.
    pub fn decide(&self, namespace: &str, pod: &Value) -> Decision {
        let request = Request {
            pod,
            operation: Operation::Create,
            namespace,
            user: &User::default(),
        };
        decide(&self.config.settings, &self.anchors, &request)
    }

    /// A pod as it comes out of the injector.
    pub fn injected(&self, pod: &Value) -> Value {
        let Decision::Inject(plan) = self.decide("sandboxes", pod) else {
            panic!("it isn't injected: {:?}", self.decide("sandboxes", pod));
        };
        let mut injected = pod.clone();
        json_patch::patch(&mut injected, &patch(&plan, pod)).unwrap();
        injected
    }
}

impl Namespace {
    /// Puts the chart's admission policies in force here, and here alone. The injector stays away.
    pub async fn judged_by(&self, chart: &Chart) {
        let policies = chart.policies();
        self.configure(&policies).await;
        // Each policy is followed on its own, and each has something that it must refuse.
        self.until_refused(&sandbox_pod("without-gate"), "sandgate-pod-create")
            .await;
        let mut gated = chart.injected(&sandbox_pod("judged"));
        gated["metadata"]["generateName"] = json!("judged-");
        gated["metadata"].as_object_mut().unwrap().remove("name");
        // Another chart's policies may have been in force before.
        self.until_admitted(&gated, |_| true).await;
        let gated = self.admitted(&gated).await;
        let changed = json!({"metadata": {"labels": {"sandgate.dev/injected": "no"}}});
        self.until_update_refused(&gated, &changed, "sandgate-pod-update").await;
        until("exec is refused", async || {
            match self.connect(&gated, "exec", "container=sandgate&command=id").await {
                reason if reason.contains("sandgate-pod-connect") => Ok(()),
                reason => Err(reason),
            }
        })
        .await;
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": "no-such-pod", "labels": {"sandgate.dev/injected": "no"}},
            "target": {"kind": "Node", "name": "no-such-node"},
        });
        until("the binding is refused", async || {
            match self.post(&["bindings"], &binding).await {
                Err(status) if status.message.contains("sandgate-pod-binding") => Ok(()),
                other => Err(other),
            }
        })
        .await;
        if policies
            .iter()
            .any(|policy| policy["metadata"]["name"] == "sandgate-networkpolicy")
        {
            let open = json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "open"},
                "spec": {"podSelector": {}, "ingress": [{}]},
            });
            self.until_refused(&open, "sandgate-networkpolicy").await;
        }
    }

    /// Waits until a merge patch on this object would be refused with a reason that holds `sentence`.
    pub async fn until_update_refused(&self, object: &Value, patch: &Value, sentence: &str) {
        let what = format!("the change is refused with {sentence:?}");
        until(&what, async || match self.cluster().try_merge(object, patch).await {
            Err(status) if status.message.contains(sentence) => Ok(()),
            other => Err(other),
        })
        .await;
    }

    /// Asks for a connection to a pod, such as `exec`, and returns why there is none. No node runs the pod, so there is
    /// always a reason; admission comes first.
    pub async fn connect(&self, pod: &Value, how: &str, query: &str) -> String {
        let (namespace, name) = (self.name(), pod["metadata"]["name"].as_str().unwrap());
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/{how}?{query}");
        let request = http::Request::post(path).body(Vec::new()).unwrap();
        match self.cluster().send(request).await {
            Err(status) => status.message,
            Ok(answer) => panic!("connected: {answer}"),
        }
    }
}

/// A root that nobody has seen before.
pub fn new_anchors() -> Anchors {
    Anchors::from_pem(NewRoot::generate().unwrap().certificate_pem.as_bytes()).unwrap()
}

/// A sandbox pod of any sandbox system.
pub fn sandbox_pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"sandgate.dev/inject": "enabled"}},
        "spec": {"containers": [{"name": "app", "image": "app.example/app:1"}]},
    })
}

fn arguments(objects: &[Value]) -> Vec<String> {
    let injector = objects
        .iter()
        .find(|object| object["kind"] == "Deployment" && object["metadata"]["name"] == "sandgate-injector")
        .expect("a Deployment of the injector");
    let arguments = &injector["spec"]["template"]["spec"]["containers"][0]["args"];
    serde_json::from_value(arguments.clone()).unwrap()
}

/// The injector's own reading of the flags in the rendered Deployment.
fn config(objects: &[Value]) -> Config {
    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Flags {
        #[command(flatten)]
        serve: ServeFlags,
    }
    let mut arguments = arguments(objects);
    assert_eq!(arguments.remove(0), "serve");
    // A pod has it in its environment.
    arguments.push(format!("--own-namespace={OWN_NAMESPACE}"));
    Flags::parse_from(arguments)
        .serve
        .config()
        .unwrap_or_else(|problems| panic!("{problems:#?}"))
}
