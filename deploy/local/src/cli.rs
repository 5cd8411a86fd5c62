//! What `sandgate-local` is told, and how it fails.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use sandgate_mesh::contract::DEFAULT_NAMESPACE;
use sandgate_mesh::process::BAD_CONFIGURATION;
use sandgate_mesh::sandbox::{AppPort, Namespace, SandboxName};
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The variables, for the help.
const VARIABLES: &str = "Variables:
  RUST_LOG  Log level or filter, for example info or debug
The router's variables hold as well: `sandbox-router --help` names them.";

/// The whole Sandgate mesh on this machine: a certificate authority in memory, gated sandboxes and the router.
///
/// Without arguments it starts two sandboxes with a demo app, `alpha` and `beta`, and prints commands to try. When
/// everything is up it writes one line, `ready http://ADDR`, to standard output; all else goes to standard error.
#[derive(Debug, Parser)]
#[command(name = "sandgate-local", version, after_help = VARIABLES)]
#[allow(clippy::doc_markdown)] // clap prints these comments as they stand
pub struct Options {
    /// Where the router listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Gates an app that already listens on these ports of 127.0.0.1, instead of the demo apps; repeatable. Without
    /// --policy, whoever has the token may call exactly these ports
    #[arg(long = "sandbox", value_name = "NAME=PORT[,PORT…]")]
    pub sandboxes: Vec<SandboxSpec>,

    /// The sandboxes' namespace
    #[arg(long, value_name = "NS", default_value = DEFAULT_NAMESPACE)]
    pub namespace: Namespace,

    /// The token that callers must present [default: random]
    #[arg(long, value_name = "TOKEN", value_parser = token, conflicts_with = "allow_unauthenticated")]
    pub token: Option<String>,

    /// Lets everybody call without a token
    #[arg(long)]
    pub allow_unauthenticated: bool,

    /// A policy snapshot (JSON) for every sandbox; followed while running
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Whether the router goes through gates with mutual TLS
    #[arg(long, value_enum, default_value_t = MeshMode::Required)]
    pub mesh: MeshMode,

    /// The router's own flags, see its documentation
    #[arg(last = true, value_name = "ROUTER FLAG")]
    pub router_flags: Vec<OsString>,
}

impl Options {
    /// Reads the command line, program name first.
    ///
    /// # Errors
    /// Flags that don't exist, don't parse or don't go together; also `--help` and `--version`.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let options = Self::try_parse_from(args)?;
        let conflict = |kind, text: &str| Err(Self::command().error(kind, text));
        if options.policy.is_some() && options.mesh == MeshMode::Off {
            return conflict(
                ErrorKind::ArgumentConflict,
                "--policy needs --mesh required: with --mesh off there are no gates to enforce it",
            );
        }
        if let Some(flag) = options.router_flags.iter().find_map(decided_here) {
            let text = format!(
                "--{flag} behind `--` would contradict what sandgate-local has set up; {}",
                instead(flag)
            );
            return conflict(ErrorKind::ArgumentConflict, &text);
        }
        for (index, sandbox) in options.sandboxes.iter().enumerate() {
            let earlier = options.sandboxes.iter().take(index);
            if earlier.into_iter().any(|other| other.name == sandbox.name) {
                let name = &sandbox.name;
                let text = format!(
                    "--sandbox {name} is given twice: list all of its ports at once, --sandbox {name}=PORT,PORT"
                );
                return conflict(ErrorKind::ValueValidation, &text);
            }
        }
        Ok(options)
    }
}

/// Flags of the router that are for `sandgate-local` to decide: with others the gates would be missing or useless.
const DECIDED_HERE: [&str; 11] = [
    "mesh",
    "mesh-cert-file",
    "mesh-key-file",
    "mesh-trust-bundle-file",
    "trust-domain",
    "sandbox-endpoint",
    "auth-token",
    "authz-mode",
    "http-bind-address",
    "log-level",
    "help",
];

/// The name of a router's flag that must not stand behind `--`.
fn decided_here(arg: &OsString) -> Option<&'static str> {
    let name = arg.to_str()?.trim_start_matches('-').split('=').next()?;
    // Only what is a flag at all: a value may be anything.
    let is_flag = arg.to_str()?.starts_with('-');
    DECIDED_HERE.into_iter().find(|decided| is_flag && *decided == name)
}

/// What to do instead.
fn instead(flag: &str) -> &'static str {
    match flag {
        "mesh" => "write --mesh before `--`",
        "auth-token" | "authz-mode" => "use --token or --allow-unauthenticated",
        "http-bind-address" => "use --listen",
        "sandbox-endpoint" => "use --sandbox",
        "log-level" => "set the variable RUST_LOG",
        "help" => "`sandbox-router --help` lists the router's flags",
        _ => "it has an authority of its own",
    }
}

/// Whether there are gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MeshMode {
    /// The router calls the apps directly, in plain HTTP. No policy is enforced.
    Off,
    /// The router calls gates with mutual TLS, and these call the apps.
    Required,
}

impl fmt::Display for MeshMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Required => "required",
        })
    }
}

/// One `--sandbox`: a name and the loopback ports its app listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// The sandbox's name.
    pub name: SandboxName,
    /// The app's ports, at least one, each once.
    pub ports: Vec<AppPort>,
}

impl FromStr for SandboxSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, list) = text
            .split_once('=')
            .ok_or("must be NAME=PORT[,PORT…], for example web=3000")?;
        let name = name
            .parse()
            .map_err(|error| format!("the sandbox's name {name:?} {error}"))?;
        let mut ports: Vec<AppPort> = Vec::new();
        for port in list.split(',') {
            let port = port.parse().map_err(|error| format!("the port {port:?} {error}"))?;
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        Ok(Self { name, ports })
    }
}

fn token(text: &str) -> Result<String, &'static str> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.into())
    } else {
        Err("must be visible ASCII characters without spaces, or no client could send it in a header")
    }
}

/// Why the program ends early.
#[derive(Debug)]
pub enum Failure {
    /// Something didn't work: exit code 1.
    Failed(anyhow::Error),
    /// A configuration that can't be used: exit code 64.
    Configuration(anyhow::Error),
}

impl Failure {
    /// The process's exit code.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Configuration(_) => BAD_CONFIGURATION,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failed(error) | Self::Configuration(error)) = self;
        write!(f, "{error:#}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Options, clap::Error> {
        Options::read(["sandgate-local"].iter().chain(args).map(OsString::from))
    }

    #[test]
    fn without_arguments_everything_has_its_default() {
        let options = read(&[]).unwrap();
        assert_eq!(options.listen.to_string(), "127.0.0.1:8080");
        assert_eq!(options.namespace.as_str(), "default");
        assert_eq!(options.mesh, MeshMode::Required);
        assert!(options.sandboxes.is_empty() && options.token.is_none() && !options.allow_unauthenticated);
    }

    #[test]
    fn flags_behind_the_dashes_cannot_take_the_gates_away() {
        for flag in [
            "--mesh=off",
            "-mesh=off",
            "--auth-token=x",
            "--authz-mode",
            "--trust-domain=x",
            "--log-level=debug",
        ] {
            let args = ["sandgate-local", "--", flag, "off"].map(OsString::from);
            let error = Options::read(args).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flag}");
            assert!(error.to_string().contains("behind `--`"), "{error}");
        }
    }

    #[test]
    fn sandboxes_and_router_flags_are_read() {
        let options = read(&[
            "--sandbox",
            "web=3000,3001,3000",
            "--sandbox=db=5432",
            "--",
            "--proxy-timeout=5s",
        ])
        .unwrap();
        let specs: Vec<SandboxSpec> = ["web=3000,3001", "db=5432"].map(|spec| spec.parse().unwrap()).into();
        assert_eq!(options.sandboxes, specs);
        assert_eq!(options.router_flags, ["--proxy-timeout=5s"]);
    }

    #[test]
    fn what_does_not_make_sense_is_a_usage_error() {
        for args in [
            &["--sandbox", "web"] as &[_],
            &["--sandbox", "web="],
            &["--sandbox", "web=0"],
            &["--sandbox", "web=80,"],
            &["--sandbox", "Web=80"],
            &["--sandbox", "web=80", "--sandbox", "web=81"],
            &["--token", ""],
            &["--token", "a b"],
            &["--token", "a", "--allow-unauthenticated"],
            &["--policy", "p.json", "--mesh", "off"],
            &["--mesh", "optional"],
            &["--listen", "8080"],
            &["--namespace", "A"],
            &["--proxy-timeout=5s"],
        ] {
            assert_eq!(read(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
