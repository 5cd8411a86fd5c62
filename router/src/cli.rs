//! The program: flags, log, signals, exit codes.

use crate::Router;
use crate::config::{Config, ConfigError, PROGRAM};
use sandgate_mesh::listener::fit_open_files;
use sandgate_mesh::memory::{self, Allocated};
use sandgate_mesh::process::{self, EndSignals};
use sandgate_mesh::telemetry::{LogFormat, init};
use std::process::ExitCode;

/// Runs the program and maps its end to an exit code: 0 done, 1 failed, 2 usage, 64 bad configuration.
pub fn main(allocated: Allocated) -> ExitCode {
    let config = match Config::of_program(std::env::args_os().skip(1).collect()) {
        Ok(config) => config,
        Err(error) => return error.report(),
    };
    if let Err(error) = init(&config.log_level, LogFormat::Json) {
        return ConfigError::log_level(PROGRAM, &error).report();
    }
    process::end(PROGRAM, run(config, allocated))
}

fn run(mut config: Config, allocated: Allocated) -> anyhow::Result<()> {
    config.max_connections = fit_open_files(config.max_connections, "--max-connections");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let budget = config.memory_budget.or_else(memory::container_budget);
        let router = Router::bind(config, None)?;
        if let Some(budget) = budget {
            tokio::spawn(router.memory().watch(budget, allocated));
        }
        let mut signals = EndSignals::listen()?;
        router.run(async move { signals.next().await }).await
    });
    runtime.shutdown_background();
    result
}
