//! Every test against a real Kubernetes API server. `tests/cluster/run` starts one and runs this.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod api_server;
mod harness;
mod upstream;

use std::process::ExitCode;

fn main() -> ExitCode {
    sandgate_cluster_tests::runner::main(&[api_server::TESTS, harness::TESTS, upstream::TESTS])
}
