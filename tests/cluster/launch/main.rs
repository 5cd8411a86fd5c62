//! Runs a command against a cluster of its own, an API server alone or with a node, and ends all of it with the command.
//! `tests/cluster/run` builds what is needed and calls this.

// A program for developers at a terminal.
#![allow(clippy::print_stderr)]

mod cgroups;
mod command;
mod credentials;
mod folder;
mod machine;
mod network;
mod node;
mod node_files;
mod server;
mod servers;

use clap::Parser;
use folder::{Folder, KeptLink};
use machine::Machine;
use node::{Node, Parts};
use servers::{Place, Programs, Servers};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How much of a log is shown when something failed.
const LOG_TAIL_LINES: usize = 40;
/// The exit code of a command that doesn't understand its arguments.
const USAGE_ERROR: u8 = 2;

/// Runs a command against a cluster of its own: etcd and a Kubernetes API server, and a node if asked to
#[derive(Debug, Parser)]
struct Options {
    /// The etcd to run
    #[arg(long, value_name = "FILE")]
    etcd: PathBuf,

    /// The kube-apiserver to run
    #[arg(long, value_name = "FILE")]
    kube_apiserver: PathBuf,

    /// Runs a node as well, in namespaces of its own for network, mounts and processes, in which the command then runs too:
    /// the folders that hold containerd, ctr, kubelet, kube-proxy, kube-router, kube-scheduler and kube-controller-manager
    #[arg(long, value_name = "FOLDERS", value_delimiter = ':', requires = "images")]
    node: Vec<PathBuf>,

    /// The folders with archives of the images that the node has: all in them whose names end in `.tar`
    #[arg(long, value_name = "FOLDERS", value_delimiter = ':')]
    images: Vec<PathBuf>,

    /// The run's folder: this process is the first in a node's namespaces, and another one outside has made both
    #[arg(long, hide = true, requires = "cgroup")]
    inside: Option<PathBuf>,

    /// The control group of the node's pods
    #[arg(long, hide = true)]
    cgroup: Option<String>,

    /// Leaves the cluster running after the command, until a signal comes, and links their folder here. One run at a time can
    #[arg(long, value_name = "LINK")]
    keep: Option<PathBuf>,

    /// The command; its environment names the cluster
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// The signals that end a run. Whatever runs then is dropped, and what is dropped ends its processes.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal; the exit code by which shells know it.
    async fn asked(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
}

// One thread, the main one: the servers end when the thread that started them ends, and this one is there to the last.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let mut stop = match Stop::listen() {
        Ok(stop) => stop,
        Err(error) => return failed(&error.into()),
    };
    tokio::select! {
        biased;
        code = stop.asked() => ExitCode::from(code),
        result = run(&options) => result.unwrap_or_else(|error| failed(&error)),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("with-cluster: {error:#}");
    ExitCode::FAILURE
}

async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &options.inside {
        return run_cluster(options, &Folder::of_another(folder.clone())).await;
    }
    let folder = Folder::new()?;
    // First of all: who can't have it needn't wait for a server.
    let kept = options.keep.as_ref().map(|link| KeptLink::new(link, &folder));
    let _kept = kept.transpose()?;
    if options.node.is_empty() {
        return run_cluster(options, &folder).await;
    }
    Ok(ExitCode::from(Machine::start(&folder)?.ended().await?))
}

/// What runs. What is dropped first is ended first.
struct Cluster {
    node: Option<Node>,
    servers: Servers,
}

impl Cluster {
    async fn start(options: &Options, folder: &Folder) -> anyhow::Result<Self> {
        let programs = Programs {
            etcd: &options.etcd,
            kube_apiserver: &options.kube_apiserver,
        };
        let Some(cgroup) = &options.cgroup else {
            let servers = Servers::start(folder, programs, Place::Loopback).await?;
            return Ok(Self { node: None, servers });
        };
        network::make()?;
        let servers = Servers::start(folder, programs, Place::Node).await?;
        let parts = Parts {
            folders: &options.node,
            images: &options.images,
            cgroup,
        };
        let node = Node::start(folder, parts, servers.url()).await?;
        Ok(Self {
            node: Some(node),
            servers,
        })
    }

    /// What it is called in `SANDGATE_CLUSTER`, and by who reads the log.
    fn kind(&self) -> (&'static str, &'static str) {
        match self.node {
            None => ("api", "the API server"),
            Some(_) => ("node", "the node"),
        }
    }

    /// Fails when a part of it has ended.
    fn check(&mut self) -> anyhow::Result<()> {
        self.servers.check()?;
        self.node.as_mut().map_or(Ok(()), Node::check)
    }

    /// What helps whoever wonders why the command failed.
    fn hint(&self) -> String {
        if self.node.is_some() {
            return "with --keep the node stays, and its programs' logs are in the folder of its KUBECONFIG".to_owned();
        }
        let tail = self.servers.log_tail(LOG_TAIL_LINES);
        format!("the end of the API server's log:\n{tail}")
    }
}

async fn run_cluster(options: &Options, folder: &Folder) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let mut cluster = Cluster::start(options, folder).await?;
    let (kind, described) = cluster.kind();
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{described} is ready at {} after {seconds:.1} s", cluster.servers.url());
    let code = match options.command.split_first() {
        None => 0,
        Some((program, arguments)) => {
            let environment = [("KUBECONFIG", folder.kubeconfig()), ("SANDGATE_CLUSTER", kind.into())];
            command::run(program, arguments, &environment, || cluster.check()).await?
        }
    };
    // A command that was called wrongly did nothing that the log could tell of.
    if ![0, USAGE_ERROR].contains(&code) {
        eprintln!("\n{}", cluster.hint());
    }
    if options.keep.is_some() {
        keep(&mut cluster).await?;
    }
    Ok(ExitCode::from(code))
}

/// Waits as long as the cluster runs; a signal ends the wait from outside.
async fn keep(cluster: &mut Cluster) -> anyhow::Result<()> {
    eprintln!("kept until Ctrl-C; in another terminal: tests/cluster/exec kubectl get namespaces");
    loop {
        cluster.check()?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
