//! Flags and environment -> [`Config`]. Names, defaults and spellings are those of the existing routers (CONTRACT
//! section 6); whatever is wrong is reported together, and the process refuses to start.

use crate::command_line;
use clap::{ArgAction, Parser, ValueEnum};
use ipnet::IpNet;
use sandgate_mesh::contract::{DEFAULT_TRUST_DOMAIN, MESH_PORT};
use sandgate_mesh::duration;
use sandgate_mesh::framing::Limits;
use sandgate_mesh::identity::TrustDomain;
use sandgate_mesh::listener::parse_address;
use sandgate_mesh::sandbox::{PodUid, SandboxKey};
use sandgate_mesh::tls::MtlsMode;
use sandgate_mesh::tunnel::TunnelLimits;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Whether requests go through the sandbox's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mesh {
    /// Only through the gate, over mTLS.
    Required,
    /// Plain HTTP straight to the app, for clusters without gates.
    Off,
}

/// How callers are authenticated.
#[derive(Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Everybody is let in, by explicit choice.
    AllowAll,
    /// One shared bearer token.
    StaticToken(String),
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowAll => "allow-all",
            Self::StaticToken(_) => "static token",
        })
    }
}

/// A sandbox whose address is given by hand: `NAMESPACE/NAME=IP[:MESHPORT][,uid=UID]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticSandbox {
    /// Which sandbox.
    pub key: SandboxKey,
    /// Its address.
    pub ip: IpAddr,
    /// Its gate's port.
    pub mesh_port: u16,
    /// Its pod's UID, where only that incarnation is meant.
    pub pod_uid: Option<PodUid>,
}

impl FromStr for StaticSandbox {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?}: {why}; write it like team-a/alpha=10.0.0.7:14443,uid=8f1c");
        let (key, place) = text.split_once('=').ok_or_else(|| wrong("no '='"))?;
        let (namespace, name) = key.split_once('/').ok_or_else(|| wrong("no namespace"))?;
        let (address, uid) = match place.split_once(",uid=") {
            Some((address, uid)) => (address, Some(uid)),
            None => (place, None),
        };
        let (ip, mesh_port) = match address.parse::<SocketAddr>() {
            Ok(address) => (address.ip(), address.port()),
            Err(_) => (address.parse().map_err(|_| wrong("not an IP address"))?, MESH_PORT),
        };
        Ok(Self {
            key: SandboxKey {
                namespace: namespace.parse().map_err(|_| wrong("bad namespace"))?,
                name: name.parse().map_err(|_| wrong("bad name"))?,
            },
            ip,
            mesh_port,
            pod_uid: uid.map(|uid| uid.parse().map_err(|_| wrong("bad uid"))).transpose()?,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AuthzMode {
    AllowAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MtlsFlag {
    Off,
    Optional,
    Required,
}

/// Forwards HTTP requests to agent-sandbox sandboxes, through each sandbox's own gate.
///
/// A choice about callers is needed: `--auth-token` (or `ROUTER_AUTH_TOKEN`), or `--authz-mode=allow-all` (or
/// `ALLOW_UNAUTHENTICATED_ROUTER=true`).
#[derive(Debug, Parser)]
#[command(name = "sandbox-router", version, no_binary_name = true, args_override_self = true)]
struct Flags {
    /// Address of the HTTP listener.
    #[arg(long, default_value = ":8080", value_parser = parse_address)]
    http_bind_address: SocketAddr,
    /// Address of the HTTPS listener; empty for none.
    #[arg(long, default_value = "")]
    https_bind_address: String,
    /// Address of the metrics listener.
    #[arg(long, default_value = ":9090", value_parser = parse_address)]
    metrics_bind_address: SocketAddr,
    /// Address of the health listener.
    #[arg(long, default_value = ":8081", value_parser = parse_address)]
    health_probe_bind_address: SocketAddr,
    /// PEM file with the HTTPS listener's certificate chain; polled.
    #[arg(long)]
    tls_cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long)]
    tls_key_file: Option<PathBuf>,
    /// PEM file with the roots that client certificates are verified under; polled.
    #[arg(long)]
    tls_client_ca_file: Option<PathBuf>,
    /// Whether the HTTPS listener asks for client certificates.
    #[arg(long, value_enum, default_value_t = MtlsFlag::Off)]
    mtls_mode: MtlsFlag,
    /// Whether requests go through the sandbox's gate (required), or straight to the app (off).
    #[arg(long, value_enum, default_value_t = Mesh::Required)]
    mesh: Mesh,
    /// PEM file with the router's own mesh certificate chain; polled.
    #[arg(long)]
    mesh_cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long)]
    mesh_key_file: Option<PathBuf>,
    /// PEM file with the roots that gates are verified under.
    #[arg(long)]
    mesh_trust_bundle_file: Option<PathBuf>,
    /// SPIFFE trust domain of the gates.
    #[arg(long, default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: TrustDomain,
    /// A sandbox's address, NAMESPACE/NAME=IP[:MESHPORT][,uid=UID]; repeatable.
    #[arg(long, value_name = "SANDBOX")]
    sandbox_endpoint: Vec<StaticSandbox>,
    /// Let every caller in: allow-all.
    #[arg(long, value_enum)]
    authz_mode: Option<AuthzMode>,
    /// Bearer token that callers must present. The variable keeps it out of process lists.
    #[arg(long, env = "ROUTER_AUTH_TOKEN", hide_env_values = true)]
    auth_token: Option<String>,
    /// Domain of the cluster's DNS names.
    #[arg(long)]
    cluster_domain: Option<String>,
    /// Wait for a response head, and for each silence between body chunks [default: 180s].
    #[arg(long, value_parser = duration::parse)]
    proxy_timeout: Option<Duration>,
    /// Wait for a response head, if shorter than --proxy-timeout; 0 for that one.
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    response_header_timeout: Duration,
    /// How long requests may take to finish after SIGTERM.
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    shutdown_timeout: Duration,
    /// Longest request body in bytes; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    max_request_body_bytes: u64,
    /// Longest head of a request in bytes; a longer one is 431. A sandbox's answer with a longer one is 502.
    #[arg(long, default_value_t = Limits::default().head_bytes)]
    max_request_head_bytes: usize,
    /// Most header lines of a request; more are 431. A sandbox's answer with more is 502.
    #[arg(long, default_value_t = Limits::default().headers)]
    max_request_headers: usize,
    /// Longest target of a request in bytes; a longer one is 414.
    #[arg(long, default_value_t = Limits::default().target_bytes)]
    max_request_target_bytes: usize,
    /// Time for a request's head, from its first byte to its last; a slower one is 408.
    #[arg(long, default_value = "10s", value_parser = duration::parse)]
    request_head_timeout: Duration,
    /// A connection on which no request began for this long, or whose peer took nothing of an answer for this long, is
    /// closed; it may last up to twice as long.
    #[arg(long, default_value = "180s", value_parser = duration::parse)]
    idle_timeout: Duration,
    /// Let X-Sandbox-Pod-IP name a loopback address.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    allow_loopback_pod_ip: bool,
    /// Further attempts after a failed connection.
    #[arg(long, default_value_t = 3)]
    upstream_max_retries: u32,
    /// Pause before the first further attempt; it doubles each time.
    #[arg(long, default_value = "200ms", value_parser = duration::parse)]
    upstream_retry_initial_delay: Duration,
    /// Longest pause.
    #[arg(long, default_value = "800ms", value_parser = duration::parse)]
    upstream_retry_max_delay: Duration,
    /// Idle upstream connections kept per sandbox [default: 20].
    #[arg(long)]
    max_keepalive_connections: Option<usize>,
    /// Proxies whose X-Forwarded-* headers are kept, as comma-separated networks.
    #[arg(long)]
    trusted_proxy_cidrs: Option<String>,
    /// Open client connections in all.
    #[arg(long, default_value_t = 65_536)]
    max_connections: usize,
    /// Bytes of memory above which requests and connections are shed with 503; by default 80 % of the container's limit.
    #[arg(long)]
    memory_budget_bytes: Option<u64>,
    /// Worker threads [default: one per core].
    #[arg(long)]
    workers: Option<usize>,
    /// Write one access line per request to standard error.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    access_log: bool,
    /// Log level or filter, for example `info` or `debug`.
    #[arg(long, default_value = "info")]
    log_level: String,
}

/// Files of the router's own mesh identity.
#[derive(Debug, Clone)]
pub struct MeshFilePaths {
    /// Certificate chain.
    pub chain: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Trust bundle.
    pub bundle: PathBuf,
}

/// The HTTPS listener.
#[derive(Debug, Clone)]
pub struct Https {
    /// Where it listens.
    pub address: SocketAddr,
    /// Certificate chain.
    pub chain: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Roots of client certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether client certificates are asked for.
    pub mtls: MtlsMode,
}

/// Everything the router was told, checked.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // each field is the flag of the same name, documented there
pub struct Config {
    pub http: SocketAddr,
    pub https: Option<Https>,
    pub metrics: SocketAddr,
    pub health: SocketAddr,
    pub mesh: Mesh,
    pub mesh_files: Option<MeshFilePaths>,
    pub trust_domain: TrustDomain,
    pub sandboxes: Vec<StaticSandbox>,
    pub authentication: Authentication,
    pub cluster_domain: String,
    pub proxy_timeout: Duration,
    pub response_header_timeout: Option<Duration>,
    pub shutdown_timeout: Duration,
    pub max_request_body: Option<u64>,
    pub framing: Arc<Limits>,
    pub allow_loopback_pod_ip: bool,
    pub retries: u32,
    pub retry_initial_delay: Duration,
    pub retry_max_delay: Duration,
    pub keepalive: usize,
    pub trusted_proxies: Vec<IpNet>,
    pub tunnels: TunnelLimits,
    pub max_connections: usize,
    pub memory_budget: Option<u64>,
    pub workers: usize,
    pub access_log: bool,
    pub log_level: String,
    /// What was ignored, to be logged once there is a log.
    pub warnings: Vec<String>,
}

/// Why the router can't start.
#[derive(Debug)]
pub enum ConfigError {
    /// The command line can't be read, or help or version was asked for.
    Usage(clap::Error),
    /// Settings that don't fit, all of them.
    Settings(Vec<String>),
}

impl ConfigError {
    /// 0 for help and version, 2 for usage, 64 for settings.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) => u8::try_from(error.exit_code()).unwrap_or(2),
            Self::Settings(_) => 64,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) => error.fmt(f),
            Self::Settings(problems) => write!(f, "sandbox-router can't start:\n  - {}", problems.join("\n  - ")),
        }
    }
}

impl std::error::Error for ConfigError {}

const NO_CHOICE: &str = "nothing says who may call: set ROUTER_AUTH_TOKEN (or --auth-token) to require a bearer token, or let \
                         everybody in with --authz-mode=allow-all or ALLOW_UNAUTHENTICATED_ROUTER=true";

pub(crate) const NO_IDENTITY: &str = "--mesh=required needs the router's own certificate: set --mesh-cert-file, --mesh-key-file and \
                           --mesh-trust-bundle-file, or --mesh=off to forward without gates";

impl Config {
    /// Reads flags (without the program's name) and the environment. Go's `-flag` is taken as `--flag`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_args(args: Vec<OsString>) -> Result<Self, ConfigError> {
        Self::read(args, false)
    }

    /// As [`from_args`](Self::from_args), for a program that can have its mesh identity from files only.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn of_program(args: Vec<OsString>) -> Result<Self, ConfigError> {
        Self::read(args, true)
    }

    fn read(args: Vec<OsString>, needs_files: bool) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let args = args.into_iter().map(two_dashes).collect();
        let flags: Flags = command_line::read(args, &mut problems).map_err(ConfigError::Usage)?;
        let config = check(flags, needs_files, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::Settings(problems)),
        }
    }
}

/// Go accepts `-flag` for `--flag`.
fn two_dashes(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => format!("-{text}").into(),
        _ => arg,
    }
}

fn check(flags: Flags, needs_files: bool, problems: &mut Vec<String>) -> Option<Config> {
    let authentication = authentication(&flags, problems);
    let https = https(&flags, problems);
    let mesh_files = mesh_files(&flags, needs_files, problems);
    let framing = framing(&flags);
    problems.extend(framing.problems());
    let mut warnings = Vec::new();
    let tunnels = TunnelLimits::default();
    let cluster_domain = flags
        .cluster_domain
        .or_else(|| std::env::var("CLUSTER_DOMAIN").ok())
        .filter(|name| !name.is_empty());
    Some(Config {
        http: flags.http_bind_address,
        https,
        metrics: flags.metrics_bind_address,
        health: flags.health_probe_bind_address,
        mesh: flags.mesh,
        mesh_files,
        trust_domain: flags.trust_domain,
        sandboxes: flags.sandbox_endpoint,
        authentication: authentication?,
        cluster_domain: cluster_domain.unwrap_or_else(|| "cluster.local".into()),
        proxy_timeout: flags
            .proxy_timeout
            .or_else(|| seconds("PROXY_TIMEOUT_SECONDS", &mut warnings))
            .filter(|timeout| !timeout.is_zero())
            .unwrap_or(sandgate_mesh::contract::DEFAULT_PROXY_TIMEOUT),
        response_header_timeout: Some(flags.response_header_timeout).filter(|timeout| !timeout.is_zero()),
        shutdown_timeout: flags.shutdown_timeout,
        max_request_body: Some(flags.max_request_body_bytes).filter(|limit| *limit > 0),
        framing: Arc::new(framing),
        allow_loopback_pod_ip: flags.allow_loopback_pod_ip,
        retries: flags.upstream_max_retries,
        retry_initial_delay: flags.upstream_retry_initial_delay,
        retry_max_delay: flags.upstream_retry_max_delay,
        keepalive: flags
            .max_keepalive_connections
            .or_else(|| lenient("MAX_KEEPALIVE_CONNECTIONS", &mut warnings, |text| text.parse().ok()))
            .unwrap_or(20),
        trusted_proxies: networks(flags.trusted_proxy_cidrs, &mut warnings),
        tunnels: TunnelLimits {
            idle: seconds("WEBSOCKET_IDLE_TIMEOUT_SECONDS", &mut warnings).unwrap_or(tunnels.idle),
            lifetime: seconds("WEBSOCKET_MAX_LIFETIME_SECONDS", &mut warnings).unwrap_or(tunnels.lifetime),
        },
        max_connections: flags.max_connections,
        memory_budget: flags.memory_budget_bytes,
        workers: flags
            .workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .max(1),
        access_log: flags.access_log,
        log_level: flags.log_level,
        warnings,
    })
}

fn authentication(flags: &Flags, problems: &mut Vec<String>) -> Option<Authentication> {
    let token = flags
        .auth_token
        .as_deref()
        .map(str::trim)
        .filter(|token| !token.is_empty());
    let open = std::env::var("ALLOW_UNAUTHENTICATED_ROUTER")
        .is_ok_and(|text| ["1", "true", "t", "yes", "y", "on"].contains(&text.trim().to_ascii_lowercase().as_str()));
    match (flags.authz_mode, token) {
        (Some(AuthzMode::AllowAll), Some(_)) => {
            problems.push("a token is set, but --authz-mode=allow-all would ignore it: choose one".into());
            None
        }
        (_, Some(token)) => Some(Authentication::StaticToken(token.to_owned())),
        (Some(AuthzMode::AllowAll), None) => Some(Authentication::AllowAll),
        (None, None) if open => Some(Authentication::AllowAll),
        (None, None) => {
            problems.push(NO_CHOICE.into());
            None
        }
    }
}

fn https(flags: &Flags, problems: &mut Vec<String>) -> Option<Https> {
    let mtls = match flags.mtls_mode {
        MtlsFlag::Off => MtlsMode::Off,
        MtlsFlag::Optional => MtlsMode::Optional,
        MtlsFlag::Required => MtlsMode::Required,
    };
    if flags.https_bind_address.is_empty() {
        if flags.mtls_mode != MtlsFlag::Off {
            problems.push("--mtls-mode needs the HTTPS listener: set --https-bind-address".into());
        }
        return None;
    }
    if flags.mtls_mode != MtlsFlag::Off && flags.tls_client_ca_file.is_none() {
        problems.push("--mtls-mode needs --tls-client-ca-file".into());
    }
    let address = parse_address(&flags.https_bind_address)
        .map_err(|error| problems.push(format!("--https-bind-address: {error}")))
        .ok();
    let (Some(chain), Some(key)) = (flags.tls_cert_file.clone(), flags.tls_key_file.clone()) else {
        problems.push("--https-bind-address needs --tls-cert-file and --tls-key-file".into());
        return None;
    };
    Some(Https {
        address: address?,
        chain,
        key,
        client_ca: flags.tls_client_ca_file.clone(),
        mtls,
    })
}

fn mesh_files(flags: &Flags, needed: bool, problems: &mut Vec<String>) -> Option<MeshFilePaths> {
    let given = (
        &flags.mesh_cert_file,
        &flags.mesh_key_file,
        &flags.mesh_trust_bundle_file,
    );
    match given {
        (Some(chain), Some(key), Some(bundle)) => Some(MeshFilePaths {
            chain: chain.clone(),
            key: key.clone(),
            bundle: bundle.clone(),
        }),
        (None, None, None) if needed && flags.mesh == Mesh::Required => {
            problems.push(NO_IDENTITY.into());
            None
        }
        (None, None, None) => None,
        _ => {
            problems.push("--mesh-cert-file, --mesh-key-file and --mesh-trust-bundle-file belong together".into());
            None
        }
    }
}

fn framing(flags: &Flags) -> Limits {
    Limits {
        head_bytes: flags.max_request_head_bytes,
        headers: flags.max_request_headers,
        target_bytes: flags.max_request_target_bytes,
        head_time: flags.request_head_timeout,
        idle_time: flags.idle_timeout,
        ..Limits::default()
    }
}

/// Old variables keep their lenient rule: a bad value warns and falls back.
fn lenient<T>(name: &str, warnings: &mut Vec<String>, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let text = std::env::var(name).ok().filter(|text| !text.trim().is_empty())?;
    let value = parse(text.trim());
    if value.is_none() {
        warnings.push(format!("{name}: {text:?} can't be used; the default is"));
    }
    value
}

fn seconds(name: &str, warnings: &mut Vec<String>) -> Option<Duration> {
    lenient(name, warnings, |text| duration::from_seconds(text.parse().ok()?))
}

fn networks(flag: Option<String>, warnings: &mut Vec<String>) -> Vec<IpNet> {
    let text = flag
        .or_else(|| std::env::var("TRUSTED_PROXY_CIDRS").ok())
        .unwrap_or_default();
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .filter_map(|entry| {
            let network = entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from)).ok();
            if network.is_none() {
                warnings.push(format!("trusted proxies: {entry:?} is not a network; skipped"));
            }
            network
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, ConfigError> {
        Config::from_args(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn starting_without_a_decision_about_callers_is_refused_and_names_the_choices() {
        let text = parse(&["--mesh=off"]).unwrap_err().to_string();
        for choice in [
            "ROUTER_AUTH_TOKEN",
            "--authz-mode=allow-all",
            "ALLOW_UNAUTHENTICATED_ROUTER",
        ] {
            assert!(text.contains(choice), "{text}");
        }
    }

    #[test]
    fn flags_are_accepted_as_go_accepts_them() {
        let config = parse(&[
            "-authz-mode=allow-all",
            "-http-bind-address",
            ":9",
            "--access-log=false",
            "-proxy-timeout=1m30s",
        ]);
        let config = config.unwrap();
        assert_eq!(config.http.port(), 9);
        assert!(!config.access_log);
        assert_eq!(config.proxy_timeout, Duration::from_secs(90));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let error = parse(&["--mtls-mode=required", "--mesh-cert-file=x"]).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        let ConfigError::Settings(problems) = error else {
            panic!()
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn bad_values_are_reported_together_with_all_other_problems() {
        let error = parse(&[
            "--proxy-timeout=soon",
            "--trust-domain",
            "A B",
            "--mesh=maybe",
            "--access-log=perhaps",
            "--mtls-mode=required",
        ]);
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 64);
        let text = error.to_string();
        for expected in [
            "  - invalid value 'soon' for '--proxy-timeout <PROXY_TIMEOUT>': \"soon\" is not a duration",
            "  - invalid value 'A B' for '--trust-domain <TRUST_DOMAIN>'",
            "  - invalid value 'maybe' for '--mesh <MESH>' [possible values: required, off]",
            "  - invalid value 'perhaps' for '--access-log [<ACCESS_LOG>]'",
            "  - nothing says who may call",
            "  - --mtls-mode needs the HTTPS listener",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert_eq!(parse(&["--mesh=maybe", "--nonsense"]).unwrap_err().exit_code(), 2);
        assert_eq!(parse(&["--mesh=maybe", "--help"]).unwrap_err().exit_code(), 0);
        assert_eq!(parse(&["--mesh"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn only_a_program_without_an_embedder_needs_the_files_of_its_identity() {
        let args = || vec!["--authz-mode=allow-all".into()];
        assert!(Config::from_args(args()).is_ok());
        let error = Config::of_program(args()).unwrap_err();
        assert!(error.to_string().contains("--mesh-cert-file"), "{error}");
        let args = [args(), vec!["--mesh=off".into()]].concat();
        assert!(Config::of_program(args).is_ok());
    }

    #[test]
    fn caps_of_framing_are_what_the_flags_say_and_the_shared_defaults_otherwise() {
        let (found, shared) = (parse(&["--authz-mode=allow-all"]).unwrap(), Limits::default());
        assert_eq!(format!("{:?}", found.framing), format!("{shared:?}"));
        let found = parse(&[
            "--authz-mode=allow-all",
            "--max-request-head-bytes=2048",
            "--max-request-headers=7",
            "--max-request-target-bytes=99",
            "--request-head-timeout=1s",
            "--idle-timeout=1m",
        ]);
        let found = found.unwrap().framing;
        assert_eq!((found.head_bytes, found.headers, found.target_bytes), (2048, 7, 99));
        assert_eq!((found.head_time.as_secs(), found.idle_time.as_secs()), (1, 60));
    }

    #[test]
    fn caps_that_bound_nothing_or_everything_are_refused() {
        for flag in [
            "--max-request-head-bytes=1023",
            "--max-request-head-bytes=1048577",
            "--max-request-headers=0",
            "--max-request-headers=10001",
            "--max-request-target-bytes=0",
            "--max-request-target-bytes=65535",
            "--request-head-timeout=0",
            "--request-head-timeout=25h",
            "--idle-timeout=0",
            "--idle-timeout=25h",
        ] {
            let error = parse(&["--authz-mode=allow-all", flag]).unwrap_err();
            assert_eq!(error.exit_code(), 64, "{flag}");
            let name = flag.split('=').next().unwrap();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn static_sandboxes_are_parsed() {
        let sandbox: StaticSandbox = "a/b=10.0.0.7:1,uid=u".parse().unwrap();
        assert_eq!((sandbox.mesh_port, sandbox.pod_uid.unwrap().as_str()), (1, "u"));
        assert_eq!("a/b=::1".parse::<StaticSandbox>().unwrap().mesh_port, MESH_PORT);
        for bad in [
            "",
            "a/b",
            "a=1.2.3.4",
            "a/b=host",
            "A/b=1.2.3.4",
            "a/b=1.2.3.4,uid=",
            "a/b=1.2.3.4,x=1",
        ] {
            assert!(bad.parse::<StaticSandbox>().is_err(), "{bad}");
        }
    }
}
