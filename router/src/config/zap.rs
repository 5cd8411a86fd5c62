//! Flags of the Go router's logger, which its manifests may have: its level counts, and of the others it is said that they
//! have no effect.

use clap::Args;
use std::str::FromStr;

/// The flags, named as controller-runtime's zap options.
#[derive(Debug, Args)]
#[command(next_help_heading = "Of the Go router's logger")]
#[allow(clippy::struct_field_names)] // clap makes the flags' names of them
pub(super) struct ZapFlags {
    /// Log level where --log-level isn't given: debug, info, error, panic, or a number, 1 for debug and more for all.
    #[arg(long, value_name = "LEVEL")]
    zap_log_level: Option<ZapLevel>,
    /// Without effect, and warned of: log lines are JSON.
    #[arg(long, value_name = "ENCODER")]
    zap_encoder: Option<String>,
    /// Without effect, and warned of.
    #[arg(long)]
    zap_devel: bool,
    /// Without effect, and warned of: there are no stack traces.
    #[arg(long, value_name = "LEVEL")]
    zap_stacktrace_level: Option<String>,
    /// Without effect, and warned of: times are RFC 3339, in UTC.
    #[arg(long, value_name = "ENCODING")]
    zap_time_encoding: Option<String>,
}

impl ZapFlags {
    /// The level that they ask for, as [`tracing`]'s.
    pub(super) fn level(&self) -> Option<&'static str> {
        self.zap_log_level.map(|level| level.0)
    }

    /// What is to be said of flags without effect.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let given = [
            ("--zap-encoder", self.zap_encoder.is_some()),
            ("--zap-devel", self.zap_devel),
            ("--zap-stacktrace-level", self.zap_stacktrace_level.is_some()),
            ("--zap-time-encoding", self.zap_time_encoding.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| format!("{flag} is for the Go router's logger and has no effect"))
    }
}

/// A level as zap spells it: a name, or how much more than `info`.
#[derive(Debug, Clone, Copy)]
struct ZapLevel(&'static str);

impl FromStr for ZapLevel {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let level = match text.to_ascii_lowercase().as_str() {
            "debug" | "1" => "debug",
            "info" => "info",
            "error" | "panic" => "error",
            number if number.parse::<u8>().is_ok_and(|more| more > 1) => "trace",
            _ => return Err("write debug, info, error, panic or a number above 0"),
        };
        Ok(Self(level))
    }
}
