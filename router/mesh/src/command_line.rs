//! What a command line says, and what is wrong with it: all of it, where clap stops at the first bad value.

use crate::process::BAD_CONFIGURATION;
use clap::builder::{OsStr, Resettable};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command};
use std::any::TypeId;
use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::ops::Deref;
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
    let mut line = CommandLine::new(program, command, args);
    let matches = line.matches()?;
    let value = check(&matches, &mut line.problems);
    line.end(value)
}

/// A flag's value that neither a log nor an error may show. Its environment variable must be kept out of the help as well.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Deref for Secret {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

/// Whether a flag's value is a [`Secret`].
pub fn is_secret(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<Secret>()
}

/// What is wrong with some flags by themselves, whatever the environment says. Empty if nothing is.
pub fn refusals(command: &Command, args: Vec<OsString>) -> Vec<String> {
    let mut line = CommandLine::new("", command.clone(), args);
    match line.flags() {
        Ok(_) => line.problems,
        Err(ConfigError::Usage(error)) => vec![sentence(&error)],
        Err(ConfigError::Settings { problems, .. }) => problems,
    }
}

/// A command line, of which more can be read each time, and into which more can be put.
#[derive(Debug)]
pub struct CommandLine {
    program: &'static str,
    command: Command,
    args: Vec<OsString>,
    /// Flags whose values were taken out.
    refused: Vec<String>,
    /// What clap says about flags that aren't there.
    missing: Option<clap::Error>,
    /// What is wrong so far, in one sentence each.
    pub problems: Vec<String>,
}

impl CommandLine {
    /// The line `args` of a program, which `command` describes.
    pub fn new(program: &'static str, command: Command, args: Vec<OsString>) -> Self {
        Self {
            program,
            command,
            args,
            refused: Vec::new(),
            missing: None,
            problems: Vec::new(),
        }
    }

    /// Puts flags in front of the others, where these override them.
    pub fn put_in_front(&mut self, args: impl IntoIterator<Item = OsString>) {
        self.args.splice(..0, args);
    }

    /// Reads flags only, and neither the environment nor what is missing. Bad values are problems from now on, and aren't
    /// there any more.
    ///
    /// # Errors
    /// What isn't about a value.
    pub fn flags(&mut self) -> Result<ArgMatches, ConfigError> {
        let alone = |arg: Arg| arg.required(false).env(Resettable::<OsStr>::Reset);
        let whole = self.command.clone();
        self.command = whole.clone().mut_args(alone);
        let read = self.matches();
        self.command = whole;
        // The help names the variables.
        read.or_else(|_| self.matches())
    }

    /// Reads flags and environment. Bad values are problems from now on, and aren't there any more.
    ///
    /// # Errors
    /// What isn't about a value.
    pub fn matches(&mut self) -> Result<ArgMatches, ConfigError> {
        loop {
            let error = match self.command.clone().try_get_matches_from(&self.args) {
                Ok(matches) => return Ok(matches),
                Err(error) => error,
            };
            if error.kind() == ErrorKind::MissingRequiredArgument && self.missing.is_none() {
                self.missing = Some(error);
                self.command = self.command.clone().mut_args(|arg| arg.required(false));
            } else if self.take_out(&error).is_none() {
                return Err(ConfigError::Usage(error));
            }
        }
    }

    /// What comes of it: `value`, unless anything is wrong.
    ///
    /// # Errors
    /// See [`ConfigError`]. Where there is no `value`, that is for a reason that is among the problems.
    pub fn end<T>(mut self, value: Option<T>) -> Result<T, ConfigError> {
        match (value, self.missing, self.problems.is_empty()) {
            (Some(value), None, true) => Ok(value),
            (_, Some(error), true) => Err(ConfigError::Usage(error)),
            (_, missing, _) => {
                let missing = missing.iter().flat_map(missing_flags);
                let missing = missing.filter(|flag| !self.refused.iter().any(|refused| refused == name(flag)));
                self.problems.extend(missing.map(|flag| format!("{flag} is not given")));
                Err(ConfigError::Settings {
                    program: self.program,
                    problems: self.problems,
                })
            }
        }
    }

    /// Takes the value that clap refused out of the arguments, with its flag, or else out of the environment, and keeps in
    /// mind what is wrong with it. `None` if it is in neither.
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
        let arg = find(&self.command, flag.strip_prefix("--")?)?;
        let mut problem = if is_secret(arg) {
            format!("invalid value for '{usage}'; it isn't shown here, as it is a secret")
        } else {
            sentence(error)
        };
        let joined = format!("{flag}={value}");
        let pair = |pair: &[OsString]| matches!(pair, [first, second] if *first == *flag && *second == **value);
        if let Some(at) = self.args.iter().position(|arg| *arg == *joined) {
            self.args.remove(at);
        } else if let Some(at) = self.args.windows(2).position(pair) {
            self.args.drain(at..at + 2);
        } else {
            let own = self.command.get_arguments().find(|own| *own == arg)?;
            let variable = own.get_env()?.to_string_lossy();
            problem = format!("{problem} (variable {variable})");
            let id = own.get_id().clone();
            self.command = self
                .command
                .clone()
                .mut_arg(id, |arg| arg.env(Resettable::<OsStr>::Reset));
        }
        self.problems.push(problem);
        self.refused.push(flag.to_owned());
        Some(())
    }
}

/// A flag of a command or of those below it, by its long name.
fn find<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    let own = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
    own.or_else(|| command.get_subcommands().find_map(|command| find(command, flag)))
}

/// What clap says, in one line and without advice.
fn sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let sentence = text.split("\n\n").next().unwrap_or_default();
    let lines = sentence.trim_start_matches("error: ").lines().map(str::trim);
    lines.collect::<Vec<_>>().join(" ")
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

#[cfg(test)]
#[path = "command_line_tests.rs"]
mod tests;
