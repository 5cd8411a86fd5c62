//! The old variables. Each stands for a flag that nothing else gives, in a spelling of its own, and keeps its lenient rule: a
//! bad value warns and falls back.

use super::spelling::network;
use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use sandgate_mesh::command_line::{Secret, refusals};
use sandgate_mesh::duration;
use std::ffi::OsString;

/// A variable that the existing routers know.
pub(super) struct Variable {
    pub(super) name: &'static str,
    /// The flag that it stands for, by its long name.
    pub(super) flag: &'static str,
    /// What its text says, trimmed and not empty. Parts of it that are skipped are warned of.
    meaning: fn(&str, &mut Vec<String>) -> Meaning,
    /// Whether it counts next to what was given otherwise.
    counts: fn(&ArgMatches) -> bool,
    /// What it takes, for whoever has written something else.
    form: &'static str,
}

enum Meaning {
    /// The flag's value.
    Value(String),
    /// The flag's default.
    Nothing,
    /// It can't be used.
    Bad,
}

/// All of them.
pub(super) const VARIABLES: &[Variable] = &[
    Variable::new("CLUSTER_DOMAIN", "cluster-domain", as_it_is),
    Variable::new("PROXY_TIMEOUT_SECONDS", "proxy-timeout", seconds)
        .takes("a number of seconds above 0, like 180 or 1.5, without a unit"),
    Variable::new("MAX_KEEPALIVE_CONNECTIONS", "max-keepalive-connections", as_it_is)
        .takes("a whole number, 0 or above"),
    Variable::new("WEBSOCKET_IDLE_TIMEOUT_SECONDS", "websocket-idle-timeout", seconds).takes(SECONDS_OR_NONE),
    Variable::new("WEBSOCKET_MAX_LIFETIME_SECONDS", "websocket-max-lifetime", seconds).takes(SECONDS_OR_NONE),
    Variable::new(
        "WEBSOCKET_MAX_CONNECTIONS_PER_CLIENT",
        "websocket-max-connections-per-client",
        as_it_is,
    )
    .takes(NUMBER_OR_NONE),
    Variable::new("WEBSOCKET_MAX_MESSAGE_BYTES", "websocket-max-message-bytes", as_it_is).takes(NUMBER_OR_NONE),
    Variable::new("TRUSTED_PROXY_CIDRS", "trusted-proxy-cidrs", networks),
    Variable {
        // A token wins, as it does in the Python router.
        counts: no_token,
        ..Variable::new("ALLOW_UNAUTHENTICATED_ROUTER", "authz-mode", allow_all)
    },
    // It may name several files, so the client of the API server reads it.
    Variable::new("KUBECONFIG", "kubeconfig", |_, _| Meaning::Nothing),
];

const SECONDS_OR_NONE: &str = "a number of seconds, like 3600 or 1.5, without a unit, or 0 for no limit";
const NUMBER_OR_NONE: &str = "a whole number, or 0 for no limit";

impl Variable {
    const fn new(name: &'static str, flag: &'static str, meaning: fn(&str, &mut Vec<String>) -> Meaning) -> Self {
        Self {
            name,
            flag,
            meaning,
            counts: |_| true,
            form: "a value that the flag takes",
        }
    }

    const fn takes(self, form: &'static str) -> Self {
        Self { form, ..self }
    }

    /// The flag that it stands for now, where `given` doesn't give that.
    pub(super) fn flag(&self, command: &Command, given: &ArgMatches, warnings: &mut Vec<String>) -> Option<OsString> {
        let text = std::env::var(self.name).ok().filter(|text| !text.trim().is_empty())?;
        if is_given(command, given, self.flag) || !(self.counts)(given) {
            return None;
        }
        let flag = match (self.meaning)(text.trim(), warnings) {
            Meaning::Value(value) => Some(OsString::from(format!("--{}={value}", self.flag))),
            Meaning::Nothing => return None,
            Meaning::Bad => None,
        };
        let flag = flag.filter(|flag| refusals(command, vec![flag.clone()]).is_empty());
        if flag.is_none() {
            let (name, form, default) = (self.name, self.form, default(command, self.flag));
            warnings.push(format!(
                "{name}: {text:?} can't be used: write {form}. {default} is used, the default"
            ));
        }
        flag
    }
}

/// What a flag is if nobody gives it.
fn default(command: &Command, flag: &str) -> String {
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
    let values = arg.into_iter().flat_map(clap::Arg::get_default_values);
    values
        .map(|value| value.to_string_lossy())
        .collect::<Vec<_>>()
        .join(",")
}

fn is_given(command: &Command, matches: &ArgMatches, flag: &str) -> bool {
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
    let source = arg.and_then(|arg| matches.value_source(arg.get_id().as_str()));
    source.is_some_and(|source| source != ValueSource::DefaultValue)
}

fn no_token(given: &ArgMatches) -> bool {
    let token = given.get_one::<Secret>("auth_token");
    token.is_none_or(|token| token.trim().is_empty())
}

fn as_it_is(text: &str, _: &mut Vec<String>) -> Meaning {
    Meaning::Value(text.to_owned())
}

fn seconds(text: &str, _: &mut Vec<String>) -> Meaning {
    let duration = text.parse().ok().and_then(duration::from_seconds);
    duration.map_or(Meaning::Bad, |duration| {
        Meaning::Value(format!("{}s", duration.as_secs_f64()))
    })
}

fn networks(text: &str, warnings: &mut Vec<String>) -> Meaning {
    let mut good = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match network(entry) {
            Ok(_) => good.push(entry),
            Err(error) => warnings.push(format!("TRUSTED_PROXY_CIDRS: {error}; skipped")),
        }
    }
    Meaning::Value(good.join(","))
}

fn allow_all(text: &str, _: &mut Vec<String>) -> Meaning {
    if ["1", "true", "t", "yes", "y", "on"].contains(&text.to_ascii_lowercase().as_str()) {
        Meaning::Value("allow-all".into())
    } else {
        Meaning::Nothing
    }
}
