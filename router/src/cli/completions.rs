//! `completions SHELL`.

use super::{TASKS, print};
use crate::config::{self, ConfigError, PROGRAM};
use clap::{Arg, Command, value_parser};
use clap_complete::Shell;
use std::ffi::OsString;
use std::process::ExitCode;

pub(super) fn command() -> Command {
    let shell = Arg::new("shell").required(true).value_parser(value_parser!(Shell));
    Command::new("completions")
        .about("Print a script that completes commands and flags in a shell")
        .arg(shell)
}

pub(super) fn run(args: Vec<OsString>) -> ExitCode {
    let command = command()
        .no_binary_name(true)
        .bin_name(format!("{PROGRAM} completions"));
    let matches = match command.try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return ConfigError::Usage(error).report(),
    };
    let Some(shell) = matches.get_one::<Shell>("shell") else {
        return ExitCode::FAILURE;
    };
    let mut script = Vec::new();
    let mut whole = config::command()
        .no_binary_name(false)
        .subcommands(TASKS.iter().map(|(command, _)| command()));
    clap_complete::generate(*shell, &mut whole, PROGRAM, &mut script);
    print(&String::from_utf8_lossy(&script))
}
