//! What `sandgate-local` is told, what it tells in return, and how it fails.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use sandgate_mesh::contract::{DEFAULT_APP_PORT, DEFAULT_NAMESPACE};
use sandgate_mesh::sandbox::{AppPort, Namespace, SandboxName};
use std::ffi::OsString;
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The whole Sandgate mesh on this machine: a certificate authority in memory, gated sandboxes and the router.
///
/// Without arguments it starts two sandboxes with a demo app, `alpha` and `beta`, and prints commands to try. When
/// everything is up it writes one line, `ready http://ADDR`, to standard output; all else goes to standard error.
#[derive(Debug, Parser)]
#[command(name = "sandgate-local", version)]
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
            Self::Configuration(_) => 64,
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

/// What is running, as far as [`Scene::instructions`] speaks of it.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The router's address as a client on this machine writes it.
    pub router: SocketAddr,
    /// The token, unless nobody needs one.
    pub token: Option<&'a str>,
    /// The sandboxes' namespace.
    pub namespace: &'a Namespace,
    /// What runs in it.
    pub sandboxes: &'a [SandboxScene],
    /// Whether the apps are the demo apps.
    pub demo: bool,
    /// The policy file, if there is one.
    pub policy: Option<&'a Path>,
}

/// One sandbox of a [`Scene`].
#[derive(Debug, Clone)]
pub struct SandboxScene {
    /// Its name.
    pub name: SandboxName,
    /// Its app's ports.
    pub ports: Vec<AppPort>,
    /// Its gate's port; none without a mesh.
    pub gate: Option<u16>,
}

impl Scene<'_> {
    /// The text shown at start: who runs where, and commands to paste, each with the answer to expect.
    pub fn instructions(&self) -> String {
        let mut text = String::from("\nSandgate runs on this machine. Ctrl-C ends it.\n\n");
        line(&mut text, format_args!("  router         http://{}", self.router));
        match self.token {
            Some(token) => line(&mut text, format_args!("  token          {token}")),
            None => line(&mut text, format_args!("  token          none: everybody may call")),
        }
        for sandbox in self.sandboxes {
            let ports: Vec<_> = sandbox.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            let gate = sandbox.gate.map_or_else(
                || "no gate (--mesh off)".into(),
                |port| format!("gate on 127.0.0.1:{port}"),
            );
            let (name, ports) = (sandbox.name.as_str(), ports.join(", "));
            line(&mut text, format_args!("  sandbox {name:<6} {gate}, app on {ports}"));
        }
        if let Some(file) = self.policy {
            line(&mut text, format_args!("  policy         {}", file.display()));
        }
        text.push('\n');
        match (self.demo, self.sandboxes) {
            (true, [alpha, beta, ..]) => self.demo_commands(&mut text, alpha, beta),
            (_, sandboxes) => sandboxes
                .iter()
                .for_each(|sandbox| self.app_commands(&mut text, sandbox)),
        }
        if let Some(first) = self.sandboxes.first() {
            self.attacks(&mut text, first);
        }
        text
    }

    fn demo_commands(&self, text: &mut String, alpha: &SandboxScene, beta: &SandboxScene) {
        let (app, other) = (alpha.ports.first().copied(), beta.ports.first().copied());
        let call = |before: &str, sandbox, port, path: &str| self.curl(true, before, sandbox, port, path);
        title(text, "Allowed");
        self.command(
            text,
            &call("", alpha, app, "/hello"),
            "200: what the sandbox sees of this request",
        );
        self.command(
            text,
            &call("", beta, other, "/public/page"),
            "200: beta allows GET below /public",
        );
        title(text, "Files: into the sandbox and back");
        let upload = format!(
            "echo hello | {}",
            call("-F 'file=@-;filename=hello.txt' ", alpha, app, "/upload")
        );
        self.command(text, &upload, "200");
        self.command(text, &call("", alpha, app, "/download/hello.txt"), "200: hello");
        let denied = alpha.gate.is_some();
        title(
            text,
            if denied {
                "Denied by policy"
            } else {
                "No policy without gates (--mesh off)"
            },
        );
        let answer = if denied {
            "403: alpha's policy has no DELETE"
        } else {
            "200"
        };
        self.command(text, &call("-X DELETE ", alpha, app, "/hello"), answer);
        let answer = if denied { "403: not below /public" } else { "200" };
        self.command(text, &call("", beta, other, "/private"), answer);
    }

    fn app_commands(&self, text: &mut String, sandbox: &SandboxScene) {
        title(text, &format!("Allowed: {}", sandbox.name));
        for port in &sandbox.ports {
            let call = self.curl(true, "", sandbox, Some(*port), "/");
            self.command(text, &call, &format!("what the app on port {port} answers"));
        }
        let free = (1..=u16::MAX).filter_map(AppPort::new);
        let stranger = free.into_iter().find(|port| !sandbox.ports.contains(port));
        if sandbox.gate.is_some() {
            title(text, "Denied by policy");
            let call = self.curl(true, "", sandbox, stranger, "/");
            self.command(text, &call, "403: not one of the sandbox's ports");
        }
    }

    fn attacks(&self, text: &mut String, sandbox: &SandboxScene) {
        if self.token.is_some() {
            title(text, "Denied without the token");
            let call = self.curl(false, "", sandbox, sandbox.ports.first().copied(), "/hello");
            annotated(text, &call, "401");
        }
        if let Some(gate) = sandbox.gate {
            title(text, "Past the router, without its certificate");
            // Without --no-alpn, the gate already refuses the protocols that curl offers.
            let call = format!("curl -k --no-alpn https://127.0.0.1:{gate}/");
            annotated(text, &call, "TLS handshake fails: certificate required");
        }
    }

    /// A command whose answer depends on the policy.
    fn command(&self, text: &mut String, command: &str, answer: &str) {
        if self.policy.is_some() {
            annotated(text, command, "as the policy file says");
        } else {
            annotated(text, command, answer);
        }
    }

    fn curl(
        &self,
        with_token: bool,
        before: &str,
        sandbox: &SandboxScene,
        port: Option<AppPort>,
        path: &str,
    ) -> String {
        let mut command = format!("curl {before}");
        let mut header = |name: &str, value: &str| {
            let value = value.replace('\'', r"'\''");
            // Writing to a String can't fail.
            let _ = write!(command, "-H '{name}: {value}' ");
        };
        if let Some(token) = self.token.filter(|_| with_token) {
            header("Authorization", &format!("Bearer {token}"));
        }
        header("X-Sandbox-ID", sandbox.name.as_str());
        if self.namespace.as_str() != DEFAULT_NAMESPACE {
            header("X-Sandbox-Namespace", self.namespace.as_str());
        }
        if let Some(port) = port.filter(|port| port.get() != DEFAULT_APP_PORT) {
            header("X-Sandbox-Port", &port.to_string());
        }
        format!("{command}http://{}{path}", self.router)
    }
}

fn title(text: &mut String, title: &str) {
    line(text, format_args!("# {title}"));
}

fn annotated(text: &mut String, command: &str, answer: &str) {
    line(text, format_args!("{command}  # {answer}"));
}

fn line(text: &mut String, content: fmt::Arguments<'_>) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "{content}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Options, clap::Error> {
        Options::read(["sandgate-local"].iter().chain(args).map(OsString::from))
    }

    fn sandbox(name: &str, port: u16, gate: Option<u16>) -> SandboxScene {
        SandboxScene {
            name: name.parse().unwrap(),
            ports: vec![AppPort::new(port).unwrap()],
            gate,
        }
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

    #[test]
    fn the_demo_shows_each_kind_of_answer() {
        let sandboxes = [sandbox("alpha", 8888, Some(4001)), sandbox("beta", 8889, Some(4002))];
        let scene = Scene {
            router: "127.0.0.1:8080".parse().unwrap(),
            token: Some("s3cret"),
            namespace: &"default".parse().unwrap(),
            sandboxes: &sandboxes,
            demo: true,
            policy: None,
        };
        let text = scene.instructions();
        let token = "-H 'Authorization: Bearer s3cret' ";
        for expected in [
            format!("curl {token}-H 'X-Sandbox-ID: alpha' http://127.0.0.1:8080/hello  # 200"),
            format!("curl -X DELETE {token}-H 'X-Sandbox-ID: alpha' http://127.0.0.1:8080/hello  # 403"),
            "curl -H 'X-Sandbox-ID: alpha' http://127.0.0.1:8080/hello  # 401\n".into(),
            format!("{token}-H 'X-Sandbox-ID: beta' -H 'X-Sandbox-Port: 8889' http://127.0.0.1:8080/private  # 403"),
            "http://127.0.0.1:8080/download/hello.txt  # 200".into(),
            "curl -k --no-alpn https://127.0.0.1:4001/  # TLS handshake fails: certificate required\n".into(),
        ] {
            assert!(text.contains(&expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn the_text_promises_only_what_is_there() {
        let scene = Scene {
            router: "127.0.0.1:8080".parse().unwrap(),
            token: None,
            namespace: &"team-a".parse().unwrap(),
            sandboxes: &[sandbox("alpha", 8888, None), sandbox("beta", 8889, None)],
            demo: true,
            policy: None,
        };
        let text = scene.instructions();
        assert!(text.contains("-H 'X-Sandbox-Namespace: team-a'"), "{text}");
        for absent in ["401", "403", "Bearer", "https://"] {
            assert!(!text.contains(absent), "{absent}\n{text}");
        }
        let scene = Scene {
            token: Some("it's"),
            sandboxes: &[sandbox("web", 1, Some(4001))],
            demo: false,
            ..scene
        };
        let text = scene.instructions();
        assert!(text.contains(r"Bearer it'\''s'"), "{text}");
        assert!(
            text.contains("-H 'X-Sandbox-Port: 2' http://127.0.0.1:8080/  # 403"),
            "{text}"
        );
        let scene = Scene {
            policy: Some(Path::new("p.json")),
            ..scene
        };
        let text = scene.instructions();
        assert!(!text.contains("403") && text.contains("# 401"), "{text}");
    }
}
