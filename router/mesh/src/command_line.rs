//! What is wrong with a command line: all of it, where clap stops at the first bad value.

use crate::process::BAD_CONFIGURATION;
use clap::builder::{OsStr, Resettable};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command};
use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// Why a program can't start.
#[derive(Debug)]
pub enum ConfigError {
    /// The command line can't be read, or help or version was asked for.
    Usage(clap::Error),
    /// Settings that don't fit, all of them.
    Settings {
        /// The program that they don't fit.
        program: &'static str,
        /// One sentence each.
        problems: Vec<String>,
    },
}

impl ConfigError {
    /// For a `--log-level` that the log refuses.
    pub fn log_level(program: &'static str, error: &str) -> Self {
        let problems = vec![format!("--log-level: {error}")];
        Self::Settings { program, problems }
    }

    /// 0 for help and version, 2 for usage, 64 for settings.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) => u8::try_from(error.exit_code()).unwrap_or(2),
            Self::Settings { .. } => BAD_CONFIGURATION,
        }
    }

    /// Says it where it belongs: help and version on standard output, all else on standard error, for a program that has
    /// no log yet.
    pub fn report(&self) -> ExitCode {
        // There is nobody to tell if that is closed.
        let _ = match self {
            Self::Usage(error) => error.print(),
            Self::Settings { .. } => writeln!(std::io::stderr(), "{self}"),
        };
        ExitCode::from(self.exit_code())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) => error.fmt(f),
            Self::Settings { program, problems } => {
                write!(f, "{program} can't start:\n  - {}", problems.join("\n  - "))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads a command line, and with `check` what it means. Bad values count as problems, and the rest is read and checked as
/// if they weren't there; so do missing flags, but where nothing else is wrong.
///
/// # Errors
/// See [`ConfigError`]. `check` returns `None` for a reason that is among the problems.
pub fn read<T>(
    program: &'static str,
    command: Command,
    args: Vec<OsString>,
    check: impl FnOnce(&ArgMatches, &mut Vec<String>) -> Option<T>,
) -> Result<T, ConfigError> {
    let mut reading = Reading {
        command,
        args,
        refused: Vec::new(),
        missing: None,
        problems: Vec::new(),
    };
    let matches = reading.matches().map_err(ConfigError::Usage)?;
    let Reading {
        missing,
        refused,
        mut problems,
        ..
    } = reading;
    let value = check(&matches, &mut problems);
    match (value, missing, problems.is_empty()) {
        (Some(value), None, true) => Ok(value),
        (_, Some(error), true) => Err(ConfigError::Usage(error)),
        (_, missing, _) => {
            let missing = missing.iter().flat_map(missing_flags);
            let missing = missing.filter(|flag| !refused.iter().any(|refused| refused == name(flag)));
            problems.extend(missing.map(|flag| format!("{flag} is not given")));
            Err(ConfigError::Settings { program, problems })
        }
    }
}

/// A command line, of which more can be read each time.
struct Reading {
    command: Command,
    args: Vec<OsString>,
    /// Flags whose values were taken out.
    refused: Vec<String>,
    /// What clap says about flags that aren't there.
    missing: Option<clap::Error>,
    problems: Vec<String>,
}

impl Reading {
    fn matches(&mut self) -> Result<ArgMatches, clap::Error> {
        loop {
            let error = match self.command.clone().try_get_matches_from(&self.args) {
                Ok(matches) => return Ok(matches),
                Err(error) => error,
            };
            if error.kind() == ErrorKind::MissingRequiredArgument && self.missing.is_none() {
                self.missing = Some(error);
                self.command = self.command.clone().mut_args(|arg| arg.required(false));
            } else if self.take_out(&error).is_some() {
                let text = error.to_string();
                let sentence = text.split("\n\n").next().unwrap_or_default();
                let lines = sentence.trim_start_matches("error: ").lines().map(str::trim);
                self.problems.push(lines.collect::<Vec<_>>().join(" "));
            } else {
                return Err(error);
            }
        }
    }

    /// Takes the value that clap refused out of the arguments, with its flag, or else out of the environment. `None` if it
    /// is in neither.
    fn take_out(&mut self, error: &clap::Error) -> Option<()> {
        if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
            return None;
        }
        let (Some(ContextValue::String(usage)), Some(ContextValue::String(value))) =
            (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
        else {
            return None;
        };
        let flag = name(usage);
        let joined = format!("{flag}={value}");
        let pair = |pair: &[OsString]| matches!(pair, [first, second] if *first == *flag && *second == **value);
        if let Some(at) = self.args.iter().position(|arg| *arg == *joined) {
            self.args.remove(at);
        } else if let Some(at) = self.args.windows(2).position(pair) {
            self.args.drain(at..at + 2);
        } else {
            let command = self.command.clone();
            let by_env = |arg: &&Arg| arg.get_env().is_some() && arg.get_long() == flag.strip_prefix("--");
            let id = command.get_arguments().find(by_env)?.get_id().clone();
            self.command = command.mut_arg(id, |arg| arg.env(Resettable::<OsStr>::Reset));
        }
        self.refused.push(flag.to_owned());
        Some(())
    }
}

/// `--flag` of clap's usage, `--flag <VALUE>`.
fn name(usage: &str) -> &str {
    usage.split(' ').next().unwrap_or_default()
}

/// The usages of flags that aren't there.
fn missing_flags(error: &clap::Error) -> Vec<String> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(flags)) => flags.clone(),
        _ => Vec::new(),
    }
}
