//! The program: flags, log, signals, exit codes.

use crate::Router;
use crate::config::Config;
use sandgate_mesh::listener::fit_open_files;
use sandgate_mesh::memory::{self, Allocated};
use sandgate_mesh::polled::PollError;
use sandgate_mesh::telemetry::{LogFormat, flush, init};
use std::io::Write;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code for a configuration that can't be run.
const BAD_CONFIGURATION: u8 = 64;

/// Runs the program and maps its end to an exit code: 0 done, 1 failed, 2 usage, 64 bad configuration.
pub fn main(allocated: Allocated) -> ExitCode {
    let config = match Config::of_program(std::env::args_os().skip(1).collect()) {
        Ok(config) => config,
        Err(error) => {
            // --help and --version come this way too, and belong on standard output.
            let (code, text) = (error.exit_code(), error.to_string());
            let _ = if code == 0 {
                write!(std::io::stdout(), "{text}")
            } else {
                writeln!(std::io::stderr(), "{text}")
            };
            return ExitCode::from(code);
        }
    };
    if let Err(error) = init(&config.log_level, LogFormat::Json) {
        // There is no log yet that could say it.
        let _ = writeln!(
            std::io::stderr(),
            "sandbox-router can't start:\n  - --log-level: {error}"
        );
        return ExitCode::from(BAD_CONFIGURATION);
    }
    let code = match run(config, allocated) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "sandbox-router ends");
            if error.downcast_ref::<PollError>().is_some() {
                ExitCode::from(BAD_CONFIGURATION)
            } else {
                ExitCode::FAILURE
            }
        }
    };
    flush();
    code
}

fn run(mut config: Config, allocated: Allocated) -> anyhow::Result<()> {
    config.max_connections = fit_open_files(config.max_connections);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let budget = config.memory_budget.or_else(memory::container_budget);
        let router = Router::bind(config, None)?;
        if let Some(budget) = budget {
            tokio::spawn(router.memory().watch(budget, allocated));
        }
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        router
            .run(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            })
            .await
    });
    runtime.shutdown_background();
    result
}
