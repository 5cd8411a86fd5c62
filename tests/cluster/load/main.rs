//! What the injector costs the API server under load, beside a webhook that does nothing: `tests/cluster/run load`.
//!
//! Rounds of the two alternate, so that a busy machine is busy for both. Pods are created with `dryRun`: all of admission
//! happens, and nothing has to be removed.

// A program for developers at a terminal. It fails by panicking.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod report;
mod rounds;

use clap::Parser;
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
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::task::LocalSet;

/// Loads the API server with creations of pods, for an empty webhook and for the injector in turn
#[derive(Debug, Parser)]
struct Options {
    /// Creations a second
    #[arg(long, default_value_t = 200)]
    rate: u32,

    /// Seconds of a round
    #[arg(long, default_value_t = 10)]
    seconds: u32,

    /// Rounds of each of the two
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Be the empty webhook: say where, and serve until standard input ends
    #[arg(long, hide = true)]
    empty_webhook: bool,
}

/// The kinds of the configurations by which the API server calls a webhook.
const CONFIGURATIONS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.expect("the system gives threads");
    if options.empty_webhook {
        runtime.block_on(be_empty());
        return ExitCode::SUCCESS;
    }
    let report = LocalSet::new().block_on(&runtime, measure(&options));
    print!("{report}");
    if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
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
    let empty = Empty::start();
    let plain = cluster.namespace(&[]).await;
    plain.configure(&empty.configurations(&chart)).await;
    empty.until_called(&plain).await;

    // Caches, connections and the memory that the first reviews need.
    let pause = Duration::from_secs(1) / options.rate;
    let warm = options.rate * 3;
    round(&plain, pause, warm).await;
    round(&gated, pause, warm).await;
    let memory_before = injector.memory("VmRSS");
    let cpu_before = [empty.cpu_time(), injector.cpu_time()];
    let mut pairs: Vec<[Round; 2]> = Vec::new();
    for number in 0..options.rounds {
        let count = options.rate * options.seconds;
        // Whoever comes second finds a machine that is warm already.
        let pair = if number % 2 == 0 {
            let first = round(&plain, pause, count).await;
            [first, round(&gated, pause, count).await]
        } else {
            let first = round(&gated, pause, count).await;
            [round(&plain, pause, count).await, first]
        };
        pairs.push(pair);
    }
    let [empty_before, injector_before] = cpu_before;
    Report {
        rate: options.rate,
        seconds: options.seconds,
        pairs,
        cpu: [
            empty.cpu_time().saturating_sub(empty_before),
            injector.cpu_time().saturating_sub(injector_before),
        ],
        memory: [memory_before, injector.memory("VmRSS"), injector.memory("VmHWM")],
    }
}

/// A webhook that does nothing, in a process of its own as the injector is, and under the same TLS library.
struct Empty {
    address: std::net::SocketAddr,
    ca_pem: String,
    child: Child,
}

impl Empty {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--empty-webhook")
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
        sandgate_cluster_tests::until("the empty webhook is called for both", async || {
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

impl Drop for Empty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn be_empty() {
    let webhook = StubWebhook::empty().await;
    println!("{}", json!({"address": webhook.address(), "ca": webhook.ca_pem()}));
    std::io::stdout().flush().unwrap();
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let _ = ended.await;
}
