//! `sandbox-router token`: makes scoped tokens and keys for them, and says what a token is good for.

use anyhow::Context;
use clap::{Args, Command, CommandFactory, Parser, Subcommand};
use http::Method;
use sandgate_mesh::duration;
use sandgate_mesh::polled::{PollError, Poller};
use sandgate_mesh::process::BAD_CONFIGURATION;
use sandgate_mesh::sandbox::{AppPort, Namespace, SandboxKey, SandboxName, SandboxUid};
use sandgate_mesh::scoped_token::{
    Claims, KeyId, PublicKeys, Scope, ScopePath, Secrets, SigningKey, Token, TokenError, Version,
};
use sandgate_mesh::telemetry::{seconds_since_1970, utc};
use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Most bytes of standard input that may be a token.
const MAX_INPUT: u64 = 64 << 10;

/// Make and explain scoped tokens: docs/scoped-tokens.md.
#[derive(Debug, Parser)]
#[command(name = "token", bin_name = "sandbox-router token", no_binary_name = true, long_about = None)]
struct TokenCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token, and print it: v1 with a secret, v2 with a private key.
    Mint(Mint),
    /// Say what a token is good for, and with a file of keys whether a router that has it takes the token. Fails if not, and
    /// for one that has expired.
    Inspect(Inspect),
    /// Make a key pair for v2: the private key into a new file that nobody else may read, the public key to standard output.
    Keygen {
        /// File to make.
        #[arg(long)]
        private_key_file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Mint {
    /// File with the secret of v1; of several, the first.
    #[arg(
        long,
        required_unless_present = "private_key_file",
        conflicts_with = "private_key_file"
    )]
    secret_file: Option<PathBuf>,
    /// PEM file (PKCS#8) with the Ed25519 private key of v2.
    #[arg(long)]
    private_key_file: Option<PathBuf>,
    /// The ID that routers have the key under, where it isn't the key's thumbprint.
    #[arg(long, conflicts_with = "secret_file")]
    key_id: Option<KeyId>,
    /// Namespace of the sandbox.
    #[arg(long)]
    namespace: Namespace,
    /// Name of the sandbox.
    #[arg(long)]
    name: SandboxName,
    /// How long the token is good for, like 15m or 1h30m: at least 1s, cut to whole seconds.
    #[arg(long, value_parser = time_to_live)]
    ttl: Duration,
    /// Bind the token to the Sandbox object with this UID, and not to the next one of its name (v2).
    #[arg(long, conflicts_with = "secret_file")]
    uid: Option<SandboxUid>,
    /// Bind it to this port of the app (v2).
    #[arg(long, conflicts_with = "secret_file")]
    port: Option<AppPort>,
    /// Bind it to this method (v2).
    #[arg(long, conflicts_with = "secret_file", value_parser = method)]
    method: Option<Method>,
    /// Bind it to this path, escaped as in the request, without a query (v2).
    #[arg(long, conflicts_with = "secret_file")]
    path: Option<ScopePath>,
}

#[derive(Debug, Args)]
struct Inspect {
    /// The token. Others may see arguments: without it, it is read from standard input.
    token: Option<String>,
    /// File with the router's secrets of v1.
    #[arg(long)]
    secret_file: Option<PathBuf>,
    /// File with the router's public keys of v2.
    #[arg(long, visible_alias = "verification-keys-file")]
    public_keys_file: Option<PathBuf>,
}

/// Runs the command. Exit codes: 0 done, 1 a token that isn't good or another failure, 2 usage, 64 files that can't be used.
pub(super) fn command() -> Command {
    TokenCommand::command()
}

pub(super) fn run(args: Vec<OsString>) -> ExitCode {
    let done = match TokenCommand::try_parse_from(args) {
        Ok(command) => command.run(),
        Err(error) => {
            // There is nobody to tell if the stream is closed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    done.unwrap_or_else(|error| {
        complain(format_args!("error: {error:#}"));
        let is_file = error.downcast_ref::<PollError>().is_some();
        if is_file {
            ExitCode::from(BAD_CONFIGURATION)
        } else {
            ExitCode::FAILURE
        }
    })
}

impl TokenCommand {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::Mint(mint) => say(&format!("{}\n", mint.token(SystemTime::now())?)).map(|()| ExitCode::SUCCESS),
            Action::Inspect(inspect) => inspect.run(),
            Action::Keygen { private_key_file } => generate(&private_key_file).map(|()| ExitCode::SUCCESS),
        }
    }
}

impl Mint {
    fn token(self, now: SystemTime) -> anyhow::Result<String> {
        let claims = Claims {
            scope: Scope {
                sandbox: SandboxKey {
                    namespace: self.namespace,
                    name: self.name,
                },
                uid: self.uid,
                port: self.port,
                method: self.method,
                path: self.path,
            },
            expires: seconds_since_1970(now + self.ttl),
        };
        if let Some(file) = &self.private_key_file {
            let key = load("private key", file, move |pem| {
                SigningKey::parse(pem, self.key_id.clone())
            })?;
            return Ok(key.mint(&claims)?);
        }
        let file = self
            .secret_file
            .context("--secret-file or --private-key-file is needed")?;
        Ok(load("secret", &file, Secrets::parse)?.mint(&claims)?)
    }
}

impl Inspect {
    fn run(self) -> anyhow::Result<ExitCode> {
        let now = SystemTime::now();
        let secrets = self.secret_file.as_deref();
        let secrets = secrets.map(|file| load("secrets", file, Secrets::parse)).transpose()?;
        let keys = self.public_keys_file.as_deref();
        let keys = keys
            .map(|file| load("public keys", file, PublicKeys::parse))
            .transpose()?;
        let text = self.token.map_or_else(from_stdin, |token| {
            complain("warning: a token among the arguments is there for everybody who lists processes, and in the shell's history");
            Ok(token)
        })?;
        let read = Token::parse(text.trim_ascii()).and_then(|token| Ok((token, token.unverified_claims()?)));
        let (token, claims) = read.context("no scoped token")?;
        let verified = match token.version() {
            Version::V1 => secrets.as_ref().map(|secrets| secrets.verify(&token, now)),
            Version::V2 => keys
                .as_ref()
                .map(|keys| keys.verify(&token, now).map(|(_, claims)| claims)),
        };
        // A router with the other file only has no key for it.
        let verified = verified.or_else(|| (secrets.is_some() || keys.is_some()).then_some(Err(TokenError::NoKey)));
        say(&described(&token, &claims, verified.as_ref(), now)?)?;
        let is_good = verified.map_or(!claims.has_expired(now), |verified| verified.is_ok());
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What a token is, one line a field.
fn described(
    token: &Token<'_>,
    claims: &Claims,
    verified: Option<&Result<Claims, TokenError>>,
    now: SystemTime,
) -> anyhow::Result<String> {
    let Scope {
        sandbox,
        uid,
        port,
        method,
        path,
    } = &claims.scope;
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn Display| writeln!(text, "{name:<11} {value}");
    line("version:", &if token.version() == Version::V1 { "v1" } else { "v2" })?;
    if let Some(id) = token.key_id().context("no scoped token")? {
        line("key ID:", &id)?;
    }
    line("namespace:", &sandbox.namespace)?;
    line("name:", &sandbox.name)?;
    if token.version() == Version::V2 {
        line("UID:", &bound(uid.as_ref()))?;
        line("port:", &bound(port.as_ref()))?;
        line("method:", &bound(method.as_ref()))?;
        line("path:", &bound(path.as_ref().map(ScopePath::as_str)))?;
    }
    let end = claims
        .expires_at()
        .map_or_else(|| "never".into(), |end| utc(end).to_string());
    line("expires:", &format!("{end} ({})", distance(claims.expires, now)))?;
    match verified {
        None => line("verified:", &"no: not tried without the file of keys for this version")?,
        Some(Ok(_)) => line("verified:", &"yes")?,
        Some(Err(error)) => line("verified:", &format!("no: {error}"))?,
    }
    Ok(text)
}

fn bound(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "not bound".into(), |value| value.to_string())
}

/// How far away the end is, in its two largest units.
fn distance(expires: u64, now: SystemTime) -> String {
    let now = seconds_since_1970(now);
    let seconds = expires.abs_diff(now);
    let units = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    let largest = units
        .iter()
        .position(|(count, _)| *count > 0)
        .unwrap_or(units.len() - 1);
    let shown: Vec<String> = units
        .iter()
        .skip(largest)
        .take(2)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect();
    let shown = shown.join(" ");
    if expires > now {
        format!("in {shown}")
    } else {
        format!("expired {shown} ago")
    }
}

fn generate(file: &Path) -> anyhow::Result<()> {
    let (key, pem) = SigningKey::generate()?;
    let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut new = new.with_context(|| format!("{} can't be made", file.display()))?;
    new.write_all(pem.as_bytes())?;
    // PEM may have text before its blocks (RFC 7468 section 2).
    say(&format!("key ID: {}\n{}", key.id(), key.public_pem()))
}

/// What a file holds, as a router would read it.
fn load<T: Send + Sync + 'static, E: Display>(
    what: &'static str,
    file: &Path,
    parse: impl Fn(&[u8]) -> Result<T, E> + Send + 'static,
) -> anyhow::Result<Arc<T>> {
    let (mut poller, value) = Poller::new(what, vec![file.to_owned()], move |files: Vec<Vec<u8>>| {
        parse(&files.concat())
    });
    poller.load()?;
    value.borrow().clone().context("nothing was loaded")
}

fn from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().take(MAX_INPUT).read_to_string(&mut text);
    read.context("standard input holds no token")?;
    Ok(text)
}

fn say(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}

fn complain(text: impl Display) {
    // There is nobody to tell if that is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn time_to_live(text: &str) -> Result<Duration, String> {
    let ttl = duration::parse(text)?;
    if ttl < Duration::from_secs(1) {
        return Err("must be at least 1s: a token's end is a whole second".into());
    }
    Ok(ttl)
}

fn method(text: &str) -> Result<Method, String> {
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if !text.bytes().any(|b| b.is_ascii_lowercase()) => Ok(method),
        _ => Err("must be a method in capitals, like GET".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_in_its_two_largest_units() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (expires, expected) in [
            (1_000_001, "in 1s"),
            (1_000_000, "expired 0s ago"),
            (999_999, "expired 1s ago"),
            (1_003_599, "in 59m 59s"),
            (1_003_600, "in 1h 0m"),
            (1_090_000, "in 1d 1h"),
            (0, "expired 11d 13h ago"),
        ] {
            assert_eq!(distance(expires, now), expected, "{expires}");
        }
    }

    #[test]
    fn a_token_that_v1_cannot_bind_or_that_is_dead_at_birth_is_refused_as_usage() {
        let sandbox = ["mint", "--namespace=a", "--name=b"];
        let code = |more: &[&str]| {
            let args = [&sandbox, more].concat();
            TokenCommand::try_parse_from(args)
                .map_err(|error| error.exit_code())
                .map(|_| ())
        };
        assert_eq!(code(&["--secret-file=s", "--ttl=1s"]), Ok(()));
        for more in ["--uid=u", "--port=1", "--method=GET", "--path=/", "--key-id=k"] {
            assert_eq!(code(&["--secret-file=s", "--ttl=1s", more]), Err(2), "{more}");
            assert_eq!(code(&["--private-key-file=s", "--ttl=1s", more]), Ok(()), "{more}");
        }
        for bad in [
            &["--ttl=1s"][..],
            &["--secret-file=s"],
            &["--secret-file=s", "--private-key-file=p", "--ttl=1s"],
            &["--secret-file=s", "--ttl=999ms"],
            &["--secret-file=s", "--ttl=60"],
            &["--private-key-file=p", "--ttl=1s", "--method=get"],
            &["--private-key-file=p", "--ttl=1s", "--path=/a?b"],
            &["--private-key-file=p", "--ttl=1s", "--port=0"],
            &["--private-key-file=p", "--ttl=1s", "--key-id=v1"],
        ] {
            assert_eq!(code(bad), Err(2), "{bad:?}");
        }
    }
}
