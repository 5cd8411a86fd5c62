//! docs/configuration.md's tables, made from the flags.

use super::command;
use super::environment::VARIABLES;
use super::file::{is_boolean, is_number};
use super::settings::is_setting;
use super::spelling::is_repeatable;
use clap::Arg;
use sandgate_mesh::command_line::is_secret;
use std::fmt::Write;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
const BEGIN: &str = "<!-- reference: begin -->\n";
const END: &str = "<!-- reference: end -->\n";
const RENEW: &str = "UPDATE_GOLDEN=1 cargo test -p sandbox-router --lib reference";

/// A table for each group of flags, in the order of the help.
fn reference() -> String {
    let command = command();
    let mut groups: Vec<(&str, Vec<&Arg>)> = Vec::new();
    for arg in command.get_arguments() {
        let heading = arg.get_help_heading().unwrap_or("The router");
        match groups.iter_mut().find(|(name, _)| *name == heading) {
            Some((_, args)) => args.push(arg),
            None => groups.push((heading, vec![arg])),
        }
    }
    let mut text = String::new();
    for (heading, args) in groups {
        let _ = write!(
            text,
            "\n### {heading}\n\n| flag, key | variable | default | meaning |\n|---|---|---|---|\n"
        );
        for arg in args {
            text += &row(arg);
        }
    }
    text + "\n"
}

fn row(arg: &Arg) -> String {
    let flag = arg.get_long().unwrap();
    let old = VARIABLES.iter().filter(|variable| variable.flag == flag);
    let variables = arg.get_env().map(|name| name.to_str().unwrap());
    let variables: Vec<_> = variables.into_iter().chain(old.map(|variable| variable.name)).collect();
    let defaults = arg
        .get_default_values()
        .iter()
        .map(|value| match value.to_str().unwrap() {
            "" => "empty".to_owned(),
            value => format!("`{value}`"),
        });
    let mut default = defaults.collect::<Vec<_>>().join(" ");

    // What has a column of its own is left out of the meaning.
    let help = arg.get_help().unwrap().to_string();
    let mut meaning = help.split(" [env: ").next().unwrap().to_owned();
    if let Some((before, made)) = meaning.clone().split_once(" [default: ") {
        (meaning, default) = (before.to_owned(), made.trim_end_matches(']').to_owned());
    }
    meaning = format!("{}.", meaning.trim_end_matches('.'));
    let values: Vec<_> = arg
        .get_possible_values()
        .iter()
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    let notes = [
        (!values.is_empty()).then(|| format!("One of {}.", values.join(", "))),
        is_repeatable(arg).then(|| "In the file a value or a list.".to_owned()),
        is_secret(arg).then(|| "A secret: it is never printed or logged.".to_owned()),
        (!is_setting(arg)).then(|| "No key of the file.".to_owned()),
    ];
    for note in notes.into_iter().flatten() {
        meaning = format!("{meaning} {note}");
    }
    let meaning = meaning.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ");
    let code = |names: &[&str]| {
        names
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    format!("| `{flag}` | {} | {default} | {meaning} |\n", code(&variables))
}

#[test]
fn the_reference_in_the_docs_is_made_from_the_flags() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let current = format!("{before}{BEGIN}{}{END}{after}", reference());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(PAGE, current).unwrap();
    } else {
        assert!(page == current, "docs/configuration.md is not current: run {RENEW}");
    }
}

#[test]
fn every_flag_explains_itself_and_no_two_variables_are_the_same() {
    let command = command();
    let mut variables: Vec<_> = VARIABLES.iter().map(|variable| variable.name.to_owned()).collect();
    for arg in command.get_arguments() {
        assert!(
            arg.get_help().is_some_and(|help| help.to_string().len() > 10),
            "{arg:?}"
        );
        variables.extend(arg.get_env().map(|name| name.to_str().unwrap().to_owned()));
    }
    for variable in VARIABLES {
        let stands_for = |arg: &&Arg| arg.get_long() == Some(variable.flag);
        let arg = command.get_arguments().find(stands_for).unwrap();
        let help = arg.get_help().unwrap().to_string();
        assert_eq!(help.matches(variable.name).count(), 1, "{help}");
    }
    let all = variables.len();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), all);
}

#[test]
fn what_sounds_like_a_secret_is_treated_as_one() {
    for arg in command().get_arguments() {
        let flag = arg.get_long().unwrap();
        let words: Vec<_> = flag.split('-').collect();
        let sounds = ["token", "secret", "password", "key", "headers"]
            .iter()
            .any(|word| words.last() == Some(word));
        let sounds = sounds && !is_boolean(arg) && !is_number(arg);
        assert_eq!(is_secret(arg), sounds, "--{flag}: its value's type says so");
        assert!(
            !is_secret(arg) || arg.is_hide_env_values_set(),
            "--{flag}: the help shows the variable"
        );
    }
}
