//! The program: commands, flags, log, signals, exit codes.

mod completions;
mod config;
mod token;
mod version;

use crate::Router;
use crate::config::{Config, ConfigError, PROGRAM, command};
use anyhow::bail;
use clap::Command;
use sandgate_mesh::listener::fit_open_files;
use sandgate_mesh::memory::{self, Allocated};
use sandgate_mesh::process::{self, EndSignals};
use sandgate_mesh::telemetry::{LogFormat, init};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use tokio::sync::oneshot;

/// How a command describes itself, and what it does with the arguments after its name.
type Task = (fn() -> Command, fn(Vec<OsString>) -> ExitCode);

/// What the first argument may be. Without any of them the router serves.
const TASKS: &[Task] = &[
    (config::command, config::run),
    (token::command, token::run),
    (completions::command, completions::run),
    (version::command, version::run),
];

/// Runs the program and maps its end to an exit code: 0 done, 1 failed, 2 usage, 64 bad configuration.
pub fn main(allocated: Allocated) -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let named = |first: &OsString| TASKS.iter().find(|(command, _)| *first == *command().get_name());
    match args.first().and_then(named) {
        Some((_, run)) => {
            args.remove(0);
            run(args)
        }
        None => serve(args, allocated),
    }
}

fn serve(args: Vec<OsString>, allocated: Allocated) -> ExitCode {
    let config = match Config::of_command(&command().after_help(tasks()), args) {
        Ok(config) => config,
        Err(error) => return error.report(),
    };
    if let Err(error) = init(&config.log_level, LogFormat::Json) {
        return ConfigError::log_level(PROGRAM, &error).report();
    }
    process::end(PROGRAM, run(config, allocated))
}

/// The tasks, for the help.
fn tasks() -> String {
    let line = |(command, _): &Task| {
        let command = command();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        format!("\n  {:<12} {about}", command.get_name())
    };
    let lines: Vec<_> = TASKS.iter().map(line).collect();
    format!(
        "Commands, instead of flags:{}\n\nEach has a --help of its own.",
        lines.concat()
    )
}

/// Writes to standard output.
fn print(text: &str) -> ExitCode {
    let mut output = std::io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Serves until a signal, then drains; a second signal ends at once.
async fn run_until_told(router: Router, mut signals: EndSignals) -> anyhow::Result<()> {
    let (stop, stopped) = oneshot::channel::<()>();
    let interrupted = async {
        signals.next().await;
        let _ = stop.send(());
        signals.next().await;
    };
    tokio::select! {
        // An error is the sender's end, and ends the work as well.
        result = router.run(async { drop(stopped.await) }) => result,
        () = interrupted => bail!("a second signal came before all requests were done"),
    }
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
        run_until_told(router, EndSignals::listen()?).await
    });
    runtime.shutdown_background();
    result
}
