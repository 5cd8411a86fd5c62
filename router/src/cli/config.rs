//! `config print|validate`: what flags, file and environment make, without serving.

use super::print;
use crate::config::{self, Config, ConfigError, PROGRAM};
use clap::{Arg, Command};
use std::ffi::OsString;
use std::process::ExitCode;

const PRINT: &str = "print";
const VALIDATE: &str = "validate";
/// Whether a file is there, and good, shows only where the router runs.
const VALID: &str = "The configuration is valid. Certificates and other files that it names weren't opened.\n";

pub(super) fn command() -> Command {
    tree(|name| config::command().name(name).disable_version_flag(true))
}

/// Both commands, each with its flags as `of` has them.
fn tree(of: fn(&'static str) -> Command) -> Command {
    Command::new("config")
        .about("Print or validate the configuration that flags, file and environment make")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([PRINT, VALIDATE].map(|name| explained(of(name), name == PRINT)))
}

fn explained(command: Command, printed: bool) -> Command {
    let about = if printed {
        "Print the effective configuration as a file for --config, with the origin of each value and without secrets"
    } else {
        "Say whether flags, file and environment fit together, or what is wrong with them. Certificates and other files that they \
         name aren't opened"
    };
    command.about(about).long_about(None)
}

/// Which command it is, for clap; the flags are read as those of a router that serves.
fn with_any_flags(name: &'static str) -> Command {
    let flags = Arg::new("flags")
        .num_args(0..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true);
    Command::new(name)
        .disable_help_flag(true)
        .arg(flags.value_parser(clap::value_parser!(OsString)))
}

pub(super) fn run(args: Vec<OsString>) -> ExitCode {
    let which = tree(with_any_flags)
        .no_binary_name(true)
        .bin_name(format!("{PROGRAM} config"));
    match which.try_get_matches_from(args) {
        Ok(matches) => {
            let (name, matches) = matches.subcommand().unwrap_or((VALIDATE, &matches));
            let flags = matches.try_get_many::<OsString>("flags").ok().flatten();
            judge(name == PRINT, flags.into_iter().flatten().cloned().collect())
        }
        Err(error) => ConfigError::Usage(error).report(),
    }
}

fn judge(printed: bool, flags: Vec<OsString>) -> ExitCode {
    let name = if printed { PRINT } else { VALIDATE };
    let command = config::command().bin_name(format!("{PROGRAM} config {name}"));
    match Config::of_command(&explained(command, printed), flags) {
        Ok(config) if printed => print(&config.settings.yaml()),
        Ok(config) => {
            let mut lines: Vec<_> = config
                .warnings
                .iter()
                .map(|text| format!("warning: {text}\n"))
                .collect();
            lines.push(VALID.into());
            print(&lines.concat())
        }
        Err(error) => error.report(),
    }
}
