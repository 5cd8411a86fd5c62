//! Values as Go's flags and the existing routers spell them.

use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};
use ipnet::IpNet;
use sandgate_mesh::listener::parse_address;
use std::any::TypeId;
use std::ffi::OsString;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Go accepts `-flag` for `--flag`.
pub(super) fn two_dashes(arg: OsString) -> OsString {
    let name = arg.to_str().and_then(|text| text.strip_prefix('-'));
    match name {
        // One letter is a short flag, and a digit a negative number.
        Some(name) if name.len() > 1 && name.starts_with(|first: char| first.is_ascii_alphabetic()) => {
            format!("--{name}").into()
        }
        _ => arg,
    }
}

/// Lets every boolean flag be spelled as in Go: `--flag`, `--flag=false`, `--flag=F`.
pub(super) fn booleans(command: Command) -> Command {
    command.mut_args(|arg| {
        if !super::file::is_boolean(&arg) {
            return arg;
        }
        // One that may also be unset has no default.
        let switch = matches!(arg.get_action(), ArgAction::SetTrue);
        let arg = arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .default_missing_value("true")
            .value_parser(ValueParser::new(boolean));
        if switch { arg.default_value("false") } else { arg }
    })
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".into()),
    }
}

/// Lets the name of every file be empty, as Go's flags have it. [`without_empty`] makes that no file.
pub(super) fn files(command: Command) -> Command {
    command.mut_args(|arg| {
        if is_file(&arg) {
            arg.value_parser(OsStringValueParser::new().map(PathBuf::from))
        } else {
            arg
        }
    })
}

/// The same without the files whose names are empty.
pub(super) fn without_empty(command: &Command, mut matches: ArgMatches) -> ArgMatches {
    for arg in command.get_arguments().filter(|arg| is_file(arg)) {
        let id = arg.get_id().as_str();
        let is_empty = |file: &PathBuf| file.as_os_str().is_empty();
        if matches.try_get_one(id).ok().flatten().is_some_and(is_empty) {
            // Known as it is, it can be taken out.
            let _ = matches.try_clear_id(id);
        }
    }
    matches
}

fn is_file(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<PathBuf>()
}

/// Whether a flag may be given several times, each time for one more value.
pub(super) fn is_repeatable(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// Where to listen, or nowhere for an empty text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OptionalAddress(pub(super) Option<SocketAddr>);

impl FromStr for OptionalAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(Self(None)),
            text => parse_address(text).map(|address| Self(Some(address))),
        }
    }
}

/// Networks with commas between them; a single address is a network, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Networks(pub(super) Vec<IpNet>);

impl FromStr for Networks {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(network).collect::<Result<_, _>>().map(Self)
    }
}

/// One network, or an address that stands for itself.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| format!("{text:?} is not a network; write it like 10.0.0.0/8 or fd00::/8"))
}

/// A text that can't be empty.
pub(super) fn not_empty(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("must not be empty".into()),
        text => Ok(text.to_owned()),
    }
}

/// What a flag says whose empty text says nothing; what is wrong with it is among the `problems`.
pub(super) fn unless_empty<T: FromStr<Err: Display>>(flag: &str, text: &str, problems: &mut Vec<String>) -> Option<T> {
    if text.is_empty() {
        return None;
    }
    let value = text.parse();
    value
        .map_err(|error| problems.push(format!("{flag}: {text:?} {error}")))
        .ok()
}
