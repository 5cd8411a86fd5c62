//! `sandbox-router`: see the library.

use sandbox_router::Router;
use sandbox_router::config::Config;
use sandgate_mesh::telemetry::{LogFormat, init};
use std::io::Write;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code for a configuration that can't be run.
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let config = match Config::from_args(std::env::args_os().skip(1).collect()) {
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
    match init(&config.log_level, LogFormat::Json)
        .map_err(anyhow::Error::msg)
        .and_then(|()| run(config))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "sandbox-router ends");
            let bad_files = error.downcast_ref::<sandgate_mesh::polled::PollError>().is_some();
            if bad_files {
                ExitCode::from(BAD_CONFIGURATION)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let router = Router::bind(config, None)?;
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
