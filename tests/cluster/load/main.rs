//! What the injector costs, and how far it carries: `tests/cluster/run load` and `tests/cluster/run fleet`.

// A program for developers at a terminal. It fails by panicking.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod admission;
mod enrolment;

use clap::Parser;
use std::process::ExitCode;

/// Measures the injector under load
#[derive(Debug, Parser)]
enum Command {
    /// Loads the API server with creations of pods, for an empty webhook and for the injector in turn
    Admission(admission::Options),
    /// Has one injector enrol a fleet of gates, and renew them
    Enrolment(enrolment::Options),
}

fn main() -> ExitCode {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the system gives threads");
    let passed = match &command {
        Command::Admission(options) => admission::run(options, &runtime),
        Command::Enrolment(options) => enrolment::run(options, &runtime),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
