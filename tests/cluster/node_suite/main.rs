//! Every test on a real node. `tests/cluster/run node` starts one and runs this.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod addresses;
mod direct_dials;
mod events;
mod install;
mod lives;
mod network_policies;
mod pod_certificates;
mod pods;
mod power;
mod readiness;
mod rotation;
mod sandboxes;
mod scene;
mod sdk;
mod stream;
mod upgrade;

use sandgate_cluster_tests::runner::Suite;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let suite = Suite {
        set_up: Some(|cluster| Box::pin(install::install(cluster))),
        time_limit: Duration::from_secs(480),
        lists: &[
            sandboxes::TESTS,
            network_policies::TESTS,
            direct_dials::TESTS,
            sdk::TESTS,
            events::TESTS,
            lives::TESTS,
            rotation::TESTS,
            upgrade::TESTS,
            readiness::TESTS,
            pod_certificates::TESTS,
        ],
    };
    suite.main()
}
