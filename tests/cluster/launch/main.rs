//! Runs a command against an etcd and a Kubernetes API server of its own, and ends both with it. `tests/cluster/run`
//! builds the two and calls this.

// A program for developers at a terminal.
#![allow(clippy::print_stderr)]

mod credentials;
mod folder;
mod servers;

use anyhow::Context;
use clap::Parser;
use folder::{Folder, KeptLink};
use rustix::process::{Pid, kill_process};
use servers::{Programs, Servers};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How much of the API server's log is shown when something failed.
const LOG_TAIL_LINES: usize = 40;
/// The exit code of a command that doesn't understand its arguments.
const USAGE_ERROR: u8 = 2;

/// Runs a command against an etcd and a Kubernetes API server of its own
#[derive(Debug, Parser)]
struct Options {
    /// The etcd to run
    #[arg(long, value_name = "FILE")]
    etcd: PathBuf,

    /// The kube-apiserver to run
    #[arg(long, value_name = "FILE")]
    kube_apiserver: PathBuf,

    /// Leaves both running after the command, until a signal comes, and links their folder here. One run at a time can
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
    eprintln!("with-api-server: {error:#}");
    ExitCode::FAILURE
}

async fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let folder = Folder::new()?;
    // First of all: who can't have it needn't wait for a server.
    let kept = options.keep.as_ref().map(|link| KeptLink::new(link, &folder));
    let kept = kept.transpose()?;
    let programs = Programs {
        etcd: &options.etcd,
        kube_apiserver: &options.kube_apiserver,
    };
    let mut servers = Servers::start(&folder, programs).await?;
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("the API server is ready at {} after {seconds:.1} s", servers.url());
    let code = match options.command.split_first() {
        None => 0,
        Some((program, arguments)) => run_command(program, arguments, &folder).await?,
    };
    // A command that was called wrongly did nothing that the log could tell of.
    if ![0, USAGE_ERROR].contains(&code) {
        let tail = servers.log_tail(LOG_TAIL_LINES);
        eprintln!("\nthe end of the API server's log:\n{tail}");
    }
    if kept.is_some() {
        keep(&mut servers).await?;
    }
    Ok(ExitCode::from(code))
}

/// Runs the command, which finds the cluster in its environment, and returns its exit code.
async fn run_command(program: &OsString, arguments: &[OsString], folder: &Folder) -> anyhow::Result<u8> {
    let child = Command::new(program)
        .args(arguments)
        .env("KUBECONFIG", folder.kubeconfig())
        .env("SANDGATE_CLUSTER", "api")
        .spawn()
        .with_context(|| format!("running {}", Path::new(program).display()))?;
    let mut command = Running(child);
    let status = loop {
        match command.0.try_wait()? {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// A command that is asked to end when it is dropped, so that it can end what it started, and killed if it doesn't.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let give_up = Instant::now() + Duration::from_secs(5);
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        while let Ok(None) = self.0.try_wait() {
            if Instant::now() > give_up {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            if let Some(pid) = pid {
                let _ = kill_process(pid, rustix::process::Signal::TERM);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Waits as long as the servers run; a signal ends the wait from outside.
async fn keep(servers: &mut Servers) -> anyhow::Result<()> {
    eprintln!("kept until Ctrl-C; in another terminal: tests/cluster/exec kubectl get namespaces");
    loop {
        servers.check()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
