//! Flags, file and environment -> one reading. Whatever isn't on the command line is put in front of it, where a flag
//! overrides it: the file's values, and before these what the old variables stand for.

use super::environment::VARIABLES;
use super::file::{self, Entry};
use super::settings::{Origin, REDACTED, Settings, is_setting};
use super::spelling::{is_repeatable, without_empty};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use sandgate_mesh::command_line::{CommandLine, ConfigError, is_secret, refusals};
use sandgate_mesh::telemetry::{LONGEST_TEXT, cut};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Names the file if no flag does.
pub(super) const FILE_VARIABLE: &str = "SANDBOX_ROUTER_CONFIG";

/// What all sources say together.
pub(super) struct Reading {
    pub(super) matches: ArgMatches,
    pub(super) settings: Settings,
    /// What was ignored.
    pub(super) warnings: Vec<String>,
}

/// Reads them all. What is wrong are problems of the line.
///
/// # Errors
/// What isn't about a value: an unknown flag, a flag without its value, or help that was asked for.
pub(super) fn read(command: &Command, line: &mut CommandLine) -> Result<Reading, ConfigError> {
    let mut sources = Sources::default();
    let flags = line.flags()?;
    let file = config_file(&flags);
    if let Some(file) = &file {
        let given = |arg: &Arg| flags.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let args = sources.file(command, file, given, &mut line.problems);
        line.put_in_front(args);
    }
    let matches = line.matches()?;
    let args = sources.variables(command, &matches);
    line.put_in_front(args);
    let matches = without_empty(command, line.matches()?);
    line.problems
        .extend(Settings::redacted(command, &matches).into_iter().map(only_redacted));
    Ok(Reading {
        settings: Settings::new(file, command, &matches, &sources.origins),
        matches,
        warnings: sources.warnings,
    })
}

/// An empty name is none, and no reason to look for the variable.
fn config_file(flags: &ArgMatches) -> Option<PathBuf> {
    let flag = flags.get_one::<PathBuf>("config").cloned();
    let name = flag.or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from));
    name.filter(|name| !name.as_os_str().is_empty())
}

fn only_redacted(arg: &Arg) -> String {
    let flag = arg.get_long().unwrap_or_default();
    let variable = arg
        .get_env()
        .map(|variable| format!(" or {}", variable.to_string_lossy()));
    format!(
        "{flag} is {REDACTED}, which is what `config print` writes for a secret: write the secret itself there, or take that \
         line out and set --{flag}{}",
        variable.unwrap_or_default()
    )
}

#[derive(Default)]
struct Sources {
    /// Of flags that aren't on the command line, by their long names.
    origins: HashMap<String, Origin>,
    warnings: Vec<String>,
}

impl Sources {
    /// The file's values as flags, but for flags that are `given`. Their values are checked as well.
    fn file(
        &mut self,
        command: &Command,
        path: &Path,
        given: impl Fn(&Arg) -> bool,
        problems: &mut Vec<String>,
    ) -> Vec<OsString> {
        let entries = match file::read(path) {
            Ok(entries) => entries,
            Err(error) => {
                problems.push(format!("the configuration file {} {error}", path.display()));
                return Vec::new();
            }
        };
        let mut flags = Vec::new();
        for entry in entries {
            let place = format!("{}, line {}", path.display(), entry.line);
            let checked = check(command, &entry).and_then(|(arg, values)| {
                let refused = refusals(command, values.clone());
                if refused.is_empty() {
                    Ok((arg, values))
                } else {
                    Err(refused)
                }
            });
            match checked {
                Ok((arg, values)) if !given(arg) && !is_elsewhere(arg, &values) => {
                    self.origins
                        .extend(arg.get_long().map(|flag| (flag.to_owned(), Origin::File)));
                    flags.extend(values);
                }
                Ok(_) => {}
                Err(wrong) => problems.extend(wrong.into_iter().map(|wrong| format!("{wrong} ({place})"))),
            }
        }
        flags
    }

    /// The old variables' values as flags.
    fn variables(&mut self, command: &Command, given: &ArgMatches) -> Vec<OsString> {
        let mut flags = Vec::new();
        for variable in VARIABLES {
            if let Some(flag) = variable.flag(command, given, &mut self.warnings) {
                self.origins
                    .insert(variable.flag.to_owned(), Origin::Variable(variable.name.to_owned()));
                flags.push(flag);
            }
        }
        flags
    }
}

/// The flag of a key, and the flag's values.
fn check<'a>(command: &'a Command, entry: &Entry) -> Result<(&'a Arg, Vec<OsString>), Vec<String>> {
    let key = &entry.key;
    let find = |key: &str| {
        let named =
            |arg: &&Arg| arg.get_long() == Some(key) || arg.get_all_aliases().is_some_and(|all| all.contains(&key));
        command.get_arguments().filter(|arg| is_setting(arg)).find(named)
    };
    let Some(arg) = find(key) else {
        let meant = key.to_lowercase().replace('_', "-");
        let advice = match find(&meant) {
            Some(_) => format!("; {meant} is one"),
            None if key == "config" => ": it must be the name of a flag, and a file can't name another".into(),
            None => ": it must be the name of a flag".into(),
        };
        return Err(vec![format!("unknown key {:?}{advice}", cut(key, LONGEST_TEXT))]);
    };
    let values = entry.texts(arg, is_repeatable(arg)).map_err(|found| {
        let wanted = if is_repeatable(arg) {
            "a value or a list of values"
        } else {
            "one value"
        };
        vec![format!("{key}: it takes {wanted}, and this is {found}")]
    })?;
    let flag = |value: OsString| {
        let mut flag = OsString::from(format!("--{key}="));
        flag.push(value);
        flag
    };
    Ok((arg, values.into_iter().map(flag).collect()))
}

/// Whether a file holds nothing but the sign of a secret that the environment gives.
fn is_elsewhere(arg: &Arg, flags: &[OsString]) -> bool {
    let redacted = |flag: &OsString| flag.to_string_lossy().ends_with(&format!("={REDACTED}"));
    let variable = || arg.get_env().and_then(std::env::var_os);
    is_secret(arg)
        && flags.iter().all(redacted)
        && variable().is_some_and(|value| !value.to_string_lossy().trim().is_empty())
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
