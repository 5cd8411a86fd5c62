//! What the injector costs the API server under load, beside a webhook that does nothing, and one that does nothing but
//! answer the injector's patch: `tests/cluster/run load`.
//!
//! Rounds of the three alternate, so that a busy machine is busy for all. Pods are created with `dryRun`: all of admission
//! happens, and nothing has to be removed.

mod report;
mod rounds;

use clap::Args;
use k8s_openapi::ByteString;
use report::Report;
use rounds::{Round, round};
use sandgate_cluster_tests::admission::at_address;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::process::{Process, cpu_time};
use sandgate_cluster_tests::webhook::StubWebhook;
use sandgate_cluster_tests::{Cluster, Namespace};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// Loads the API server with creations of pods, for an empty webhook and for the injector in turn
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Creations a second
    #[arg(long, default_value_t = 200)]
    rate: u32,

    /// Seconds of a round
    #[arg(long, default_value_t = 10)]
    seconds: u32,

    /// Rounds of each of the three
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Be a webhook that answers this to a pod without a gate, and allows everything else: say where, and serve until
    /// standard input ends
    #[arg(long, hide = true, value_name = "JSON")]
    webhook: Option<String>,
}

/// What a webhook that allows everything answers.
static ALLOWED: LazyLock<Value> = LazyLock::new(|| json!({"allowed": true}));
/// The label of pods with a gate.
const INJECTED_LABEL: &str = "sandgate.dev/injected";
/// The kinds of the configurations by which the API server calls a webhook.
const CONFIGURATIONS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

/// Does what it is told; returns whether nothing failed.
pub(crate) fn run(options: &Options, runtime: &Runtime) -> bool {
    if let Some(answer) = &options.webhook {
        runtime.block_on(be_webhook(serde_json::from_str(answer).expect("an answer in JSON")));
        return true;
    }
    let report = LocalSet::new().block_on(runtime, measure(options));
    print!("{report}");
    report.passed()
}

async fn measure(options: &Options) -> Report {
    let cluster = Cluster::connect().await;
    let chart = Chart::render(&[]);
    let (system, gated) = (
        System::install(&cluster).await,
        cluster.namespace(&[("sandgate.dev/inject", "enabled")]).await,
    );
    let injector = Process::start(&system, &chart).await;
    system.configure(&chart, injector.webhook.port()).await;
    gated.until_admitted(&sandbox_pod("until"), has_gate).await;
    let gate = gated.dry_run(&sandbox_pod("patch")).await.unwrap();
    let stubs = [ALLOWED.clone(), the_patch_of(&gate)].map(|answer| Stub::start(&answer));
    let plain = [cluster.namespace(&[]).await, cluster.namespace(&[]).await];
    for (stub, namespace) in stubs.iter().zip(&plain) {
        namespace.configure(&stub.configurations(&chart)).await;
        stub.until_called(namespace).await;
    }
    let [empty, patching] = &stubs;
    let namespaces = [&plain[0], &plain[1], &gated];

    // Caches, connections and the memory that the first reviews need.
    let pause = Duration::from_secs(1) / options.rate;
    let warm = options.rate * 3;
    for namespace in namespaces {
        round(namespace, pause, warm).await;
    }
    let memory_before = injector.memory("VmRSS");
    let cpu = || [empty.cpu_time(), patching.cpu_time(), injector.cpu_time()];
    let before = cpu();
    let mut rounds: Vec<[Round; 3]> = Vec::new();
    for number in 0..options.rounds {
        let count = options.rate * options.seconds;
        let mut round_of = [const { None }; 3];
        // Whoever comes later finds a machine that is warm already.
        for turn in 0..3 {
            let which = (number + turn) % 3;
            round_of[which] = Some(round(namespaces[which], pause, count).await);
        }
        rounds.push(round_of.map(|round| round.expect("each had its turn")));
    }
    let after = cpu();
    Report {
        rate: options.rate,
        seconds: options.seconds,
        rounds,
        cpu: [0, 1, 2].map(|which| after[which].saturating_sub(before[which])),
        memory: [memory_before, injector.memory("VmRSS"), injector.memory("VmHWM")],
    }
}

/// What the injector's patch makes of a pod that has neither annotations nor init containers, from the pod that came of it.
fn the_patch_of(gated: &Value) -> Value {
    let (metadata, spec) = (&gated["metadata"], &gated["spec"]);
    let label = &metadata["labels"][INJECTED_LABEL];
    let mut patch = vec![
        json!({"op": "add", "path": format!("/metadata/labels/{}", INJECTED_LABEL.replace('/', "~1")), "value": label}),
        json!({"op": "add", "path": "/metadata/annotations", "value": metadata["annotations"]}),
    ];
    let volumes = spec["volumes"].as_array().expect("the gate's volumes").iter();
    let ours = volumes.filter(|volume| volume["name"].as_str().unwrap().starts_with("sandgate"));
    patch.extend(ours.map(|volume| json!({"op": "add", "path": "/spec/volumes/-", "value": volume})));
    patch.push(json!({"op": "add", "path": "/spec/initContainers", "value": spec["initContainers"]}));
    let patch = ByteString(serde_json::to_vec(&patch).unwrap());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

/// A webhook that looks at nothing, in a process of its own as the injector is, and under the same TLS library.
struct Stub {
    address: std::net::SocketAddr,
    ca_pem: String,
    child: Child,
}

impl Stub {
    fn start(answer: &Value) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["admission", &format!("--webhook={answer}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        Self {
            address: said["address"].as_str().unwrap().parse().unwrap(),
            ca_pem: said["ca"].as_str().unwrap().to_owned(),
            child,
        }
    }

    fn cpu_time(&self) -> Duration {
        cpu_time(self.child.id())
    }

    /// The chart's configurations as they are for the injector, for namespaces that didn't opt in.
    fn configurations(&self, chart: &Chart) -> Vec<Value> {
        let objects = chart.of_kinds(&CONFIGURATIONS);
        let objects = objects.iter().map(|object| {
            let mut object = at_address(object, self.address, &self.ca_pem);
            for webhook in object["webhooks"].as_array_mut().unwrap() {
                webhook["namespaceSelector"] = json!({});
            }
            object
        });
        objects.collect()
    }

    /// Returns when the API server asks it: without it no pod is created.
    async fn until_called(&self, namespace: &Namespace) {
        let calls = async || rounds::webhook_calls(namespace.cluster()).await.count;
        let before = calls().await;
        sandgate_cluster_tests::until("the webhook is called for both", async || {
            let before_this = calls().await;
            namespace
                .dry_run(&sandbox_pod("until"))
                .await
                .map_err(|status| status.message)?;
            match calls().await - before_this {
                2.. => Ok(()),
                other => Err(format!("{other} calls, {before} before")),
            }
        })
        .await;
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn be_webhook(answer: Value) {
    let webhook = StubWebhook::forgetful(move |request| {
        let gated = request["object"]["metadata"]["labels"].get(INJECTED_LABEL).is_some();
        if gated { ALLOWED.clone() } else { answer.clone() }
    });
    let webhook = webhook.await;
    println!("{}", json!({"address": webhook.address(), "ca": webhook.ca_pem()}));
    std::io::stdout().flush().unwrap();
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let _ = ended.await;
}
