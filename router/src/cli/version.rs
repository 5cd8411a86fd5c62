//! `version`.

use super::print;
use crate::config::{ConfigError, PROGRAM};
use clap::{Args, Command, FromArgMatches, ValueEnum};
use serde_json::json;
use std::env::consts::{ARCH, OS};
use std::ffi::OsString;
use std::process::ExitCode;

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Args)]
struct Flags {
    /// How it is written.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

pub(super) fn command() -> Command {
    Flags::augment_args(Command::new("version").about("Print the version"))
}

pub(super) fn run(args: Vec<OsString>) -> ExitCode {
    let command = command().no_binary_name(true).bin_name(format!("{PROGRAM} version"));
    let flags = command
        .try_get_matches_from(args)
        .and_then(|matches| Flags::from_arg_matches(&matches));
    match flags.map(|flags| flags.output) {
        Ok(Format::Text) => print(&format!("{PROGRAM} {VERSION}\n")),
        Ok(Format::Json) => {
            let version = json!({"name": PROGRAM, "version": VERSION, "os": OS, "arch": ARCH});
            print(&format!("{version}\n"))
        }
        Err(error) => ConfigError::Usage(error).report(),
    }
}
