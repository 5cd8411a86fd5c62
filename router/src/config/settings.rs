//! The effective configuration as text: each flag's value, and where it comes from. No secret is in it.

use super::file::{is_boolean, is_number};
use super::spelling::is_repeatable;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use sandgate_mesh::command_line::is_secret;
use sandgate_mesh::telemetry::{LONGEST_TEXT, cut};
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::path::PathBuf;

/// What stands for a secret, and is refused as one.
pub(super) const REDACTED: &str = "<redacted>";
/// Values of one flag that a log line holds.
const LOGGED_VALUES: usize = 16;
/// Longest text for a log line in bytes.
const LONGEST_LINE: usize = 16 * 1024;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    File,
    Variable(String),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::File => f.write_str("file"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// The flag's long name, which is the file's key.
    key: String,
    /// As the flag spells them. None if nothing sets it.
    values: Vec<String>,
    origin: Origin,
    form: Form,
}

/// How a value is written in YAML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Truth values and numbers.
    Plain,
    Quoted,
    List,
}

/// All that the router was told, in the order of its help. Its text is one line for the log.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    file: Option<PathBuf>,
    settings: Vec<Setting>,
}

/// Whether a flag is a key of the file.
pub(super) fn is_setting(arg: &Arg) -> bool {
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    takes_value && arg.get_long().is_some() && arg.get_id() != "config"
}

impl Settings {
    /// What was read. `origins` are those of flags that were put on the command line for their file or variable, by their
    /// long names.
    pub(super) fn new(
        file: Option<PathBuf>,
        command: &Command,
        matches: &ArgMatches,
        origins: &HashMap<String, Origin>,
    ) -> Self {
        let args = command.get_arguments().filter(|arg| is_setting(arg));
        let settings = args.filter_map(|arg| Setting::new(arg, matches, origins)).collect();
        Self { file, settings }
    }

    /// The same as a configuration file, with the origins as comments.
    pub fn yaml(&self) -> String {
        let mut lines = vec!["# The effective configuration, which can be given as --config.\n".to_owned()];
        let file = self.file.as_ref();
        lines.extend(file.map(|file| format!("# File: {}\n", quoted(&file.to_string_lossy()))));
        lines.extend(self.settings.iter().map(Setting::yaml));
        lines.concat()
    }

    /// Secrets that are only [`REDACTED`].
    pub(super) fn redacted<'a>(command: &'a Command, matches: &ArgMatches) -> Vec<&'a Arg> {
        let secrets = command.get_arguments().filter(|arg| is_secret(arg));
        secrets
            .filter(|arg| raw(arg, matches).iter().any(|value| value.trim() == REDACTED))
            .collect()
    }
}

fn raw(arg: &Arg, matches: &ArgMatches) -> Vec<String> {
    let values = matches.try_get_raw(arg.get_id().as_str()).ok().flatten();
    let values = values.into_iter().flatten();
    values.map(|value| value.to_string_lossy().into_owned()).collect()
}

impl Setting {
    fn new(arg: &Arg, matches: &ArgMatches, origins: &HashMap<String, Origin>) -> Option<Self> {
        let key = arg.get_long()?.to_owned();
        let origin = match matches.value_source(arg.get_id().as_str()) {
            Some(ValueSource::CommandLine) => origins.get(&key).cloned().unwrap_or(Origin::Flag),
            Some(ValueSource::EnvVariable) => Origin::Variable(arg.get_env()?.to_string_lossy().into_owned()),
            _ => Origin::Default,
        };
        let mut values = raw(arg, matches);
        if is_secret(arg) {
            values.retain(|value| !value.trim().is_empty());
            values.fill(REDACTED.to_owned());
        }
        if is_number(arg) {
            // A file's number with a leading zero would be octal.
            let decimal = |value: String| value.parse().map_or(value, |number: u64| number.to_string());
            values = values.into_iter().map(decimal).collect();
        }
        let form = if is_repeatable(arg) {
            Form::List
        } else if is_boolean(arg) || is_number(arg) {
            Form::Plain
        } else {
            Form::Quoted
        };
        Some(Self {
            key,
            values,
            origin,
            form,
        })
    }

    fn yaml(&self) -> String {
        let Self {
            key, values, origin, ..
        } = self;
        match (self.form, &values[..]) {
            (_, []) => format!("# {key}: not set\n"),
            (Form::Plain, [value]) => format!("{key}: {value} # {origin}\n"),
            (Form::Quoted, [value]) => format!("{key}: {} # {origin}\n", quoted(value)),
            (_, values) => {
                let values: Vec<_> = values.iter().map(|value| format!("  - {}\n", quoted(value))).collect();
                format!("{key}: # {origin}\n{}", values.concat())
            }
        }
    }
}

/// A text in double quotes, which YAML has in common with JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        if let Some(file) = &self.file {
            write!(line, "config={}", file.display())?;
        }
        for setting in self.settings.iter().filter(|setting| !setting.values.is_empty()) {
            let separator = if line.is_empty() { "" } else { ", " };
            let values: Vec<_> = setting.values.iter().map(|value| cut(value, LONGEST_TEXT)).collect();
            let (values, more) = values.split_at(values.len().min(LOGGED_VALUES));
            write!(line, "{separator}{}={}", setting.key, values.join(" "))?;
            if !more.is_empty() {
                write!(line, " and {} more", more.len())?;
            }
            if setting.origin != Origin::Default {
                write!(line, " ({})", setting.origin)?;
            }
        }
        f.write_str(&cut(&line, LONGEST_LINE))
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
