//! How fast one injector gives identities to a whole fleet of gates, and renews them: `tests/cluster/run fleet`.
//!
//! The pods are stored by a real API server and have the injector's gate, their tokens are real, and each gate is the
//! gate's own code on an address of its own. What isn't real is the node: all gates are in one process.

mod gates;
mod pods;
mod report;
mod requests;

use clap::Args;
use gates::Gates;
use report::{Phase, Report};
use requests::Requests;
use sandgate_cluster_tests::chart::{Chart, sandbox_pod};
use sandgate_cluster_tests::creations::has_gate;
use sandgate_cluster_tests::injector::System;
use sandgate_cluster_tests::process::Process;
use sandgate_cluster_tests::{Cluster, Namespace};
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio::time::Instant;

/// Has one injector enrol a fleet of gates, and renew them
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Gates
    #[arg(long, default_value_t = 2000)]
    gates: usize,

    /// Namespaces that they are in
    #[arg(long, default_value_t = 20)]
    namespaces: usize,

    /// Seconds that their certificates live: at about half of that they are renewed
    #[arg(long, default_value_t = 180)]
    lifetime: u64,

    /// Be the gates that a file describes, until standard input ends
    #[arg(long, hide = true, value_name = "FILE")]
    be: Option<PathBuf>,
}

/// How often the injector is asked how far it is.
const LOOK: Duration = Duration::from_millis(100);

/// Does what it is told; returns whether nothing failed.
pub(crate) fn run(options: &Options, runtime: &Runtime) -> bool {
    if let Some(file) = &options.be {
        runtime.block_on(gates::be(file));
        return true;
    }
    let report = LocalSet::new().block_on(runtime, measure(options));
    print!("{report}");
    report.passed()
}

async fn measure(options: &Options) -> Report {
    let cluster = Cluster::connect().await;
    cluster.install_upstream_crds().await;
    let (system, chart) = (System::install(&cluster).await, Chart::render(&[]));
    let replica = system.start(&chart, |_, _| {});
    system.configure(&chart, replica.webhook.port()).await;
    let mut namespaces: Vec<Namespace> = Vec::new();
    for _ in 0..options.namespaces {
        namespaces.push(cluster.namespace(&[("sandgate.dev/inject", "enabled")]).await);
    }
    namespaces[0].until_admitted(&sandbox_pod("until"), has_gate).await;
    eprintln!("storing {} pods", options.gates);
    let pods = pods::create(&namespaces, options.gates).await;
    // From here on nobody but the measured injector works.
    replica.stop().await;
    let gates = Gates::start(&pods);
    pods::run(&pods).await;

    eprintln!("enrolling their gates");
    let before = Requests::read(&cluster).await;
    let (started, lifetime) = (
        Instant::now(),
        format!("--gate-certificate-lifetime={}s", options.lifetime),
    );
    let injector = Process::start_with(&system, &chart, &[&lifetime]).await;
    let enrolled = Phase::measure(&injector, "enrolled", options.gates, started).await;
    let asked = Requests::read(&cluster).await.since(&before);
    let memory = [injector.memory("VmRSS"), injector.memory("VmHWM")];

    eprintln!("waiting for renewals");
    let before = Requests::read(&cluster).await;
    let renewed = Phase::measure(&injector, "renewed", options.gates, started).await;
    let asked_again = Requests::read(&cluster).await.since(&before);
    let troubles = report::troubles(&injector.metrics().await);
    Report {
        gates: options.gates,
        namespaces: options.namespaces,
        lifetime: Duration::from_secs(options.lifetime),
        phases: [(enrolled, asked), (renewed, asked_again)],
        memory: [memory[0], memory[1], injector.memory("VmRSS"), injector.memory("VmHWM")],
        troubles,
        ready: gates.ready(),
    }
}
