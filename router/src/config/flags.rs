//! The router's flags, as clap reads and explains them.

use super::StaticSandbox;
use super::browser::BrowserFlags;
use super::callers::CallerFlags;
use super::environment::{VARIABLES, Variable};
use super::limits::{BreakerFlags, RequestLimitFlags};
use super::mesh_identity::MeshIdentityFlags;
use super::oidc::OidcFlags;
use super::otlp::OtlpFlags;
use super::routing::RoutingFlags;
use super::scoped_token::ScopedTokenFlags;
use super::sources::FILE_VARIABLE;
use super::spelling::{Networks, OptionalAddress, booleans, files, not_empty};
use super::zap::ZapFlags;
use clap::{ArgAction, Command, CommandFactory, Parser, ValueEnum};
use sandgate_mesh::command_line::Secret;
use sandgate_mesh::contract::DEFAULT_TRUST_DOMAIN;
use sandgate_mesh::duration;
use sandgate_mesh::framing::LimitFlags;
use sandgate_mesh::identity::TrustDomain;
use sandgate_mesh::listener::parse_address;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Whether requests go through the sandbox's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mesh {
    /// Only through the gate, over mTLS.
    Required,
    /// Through the gate where the sandbox has one; straight to the app of a pod in the cache whose namespace has not opted in.
    Auto,
    /// Plain HTTP straight to the app, for clusters without gates.
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum AuthzMode {
    /// Everybody, as with `ALLOW_UNAUTHENTICATED_ROUTER=true`.
    AllowAll,
    /// Those whose bearer token the API server knows.
    #[value(name = "tokenreview")]
    TokenReview,
    /// Holders of a token for the very sandbox.
    ScopedToken,
    /// Holders of a token of an OIDC issuer.
    Oidc,
}

impl fmt::Display for AuthzMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowAll => "allow-all",
            Self::TokenReview => "tokenreview",
            Self::ScopedToken => "scoped-token",
            Self::Oidc => "oidc",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MtlsFlag {
    Off,
    Optional,
    Required,
}

/// Forwards HTTP requests to agent-sandbox sandboxes, through each sandbox's own gate.
///
/// A choice about callers is needed: `--auth-token` (or `ROUTER_AUTH_TOKEN`), `--authz-mode=tokenreview`,
/// `--authz-mode=scoped-token`, `--authz-mode=oidc`, or `--authz-mode=allow-all` (or `ALLOW_UNAUTHENTICATED_ROUTER=true`).
#[derive(Debug, Parser)]
#[command(name = "sandbox-router", version, no_binary_name = true, args_override_self = true)]
pub(super) struct Flags {
    /// YAML file with a flag's name for each key. A flag overrides its key, and a key overrides a variable; empty for none.
    #[arg(long, env = FILE_VARIABLE, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the HTTP listener; empty for none, where there is an HTTPS listener.
    #[arg(long, default_value = ":8080")]
    pub(super) http_bind_address: OptionalAddress,
    /// Address of the HTTPS listener; empty for none.
    #[arg(long, default_value = "")]
    pub(super) https_bind_address: OptionalAddress,
    /// Address of the metrics listener.
    #[arg(long, default_value = ":9090", value_parser = parse_address)]
    pub(super) metrics_bind_address: SocketAddr,
    /// Address of the health listener.
    #[arg(long, default_value = ":8081", value_parser = parse_address)]
    pub(super) health_probe_bind_address: SocketAddr,
    /// PEM file with the HTTPS listener's certificate chain; polled.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_key_file: Option<PathBuf>,
    /// PEM file with the roots that client certificates are verified under; polled.
    #[arg(long, value_name = "FILE")]
    pub(super) tls_client_ca_file: Option<PathBuf>,
    /// Whether the HTTPS listener asks for client certificates.
    #[arg(long, value_enum, default_value_t = MtlsFlag::Off)]
    pub(super) mtls_mode: MtlsFlag,
    /// Whether requests go through the sandbox's gate (required), straight to the app (off), or through the gate wherever the
    /// namespace has opted in and straight to the app elsewhere (auto, which needs --cache-enabled).
    #[arg(long, value_enum, default_value_t = Mesh::Required)]
    pub(super) mesh: Mesh,
    #[command(flatten)]
    pub(super) mesh_identity: MeshIdentityFlags,
    /// SPIFFE trust domain of the gates.
    #[arg(long, default_value = DEFAULT_TRUST_DOMAIN)]
    pub(super) trust_domain: TrustDomain,
    /// A sandbox's address, NAMESPACE/NAME=IP[:MESHPORT][,uid=UID]; repeatable.
    #[arg(long, value_name = "SANDBOX")]
    pub(super) sandbox_endpoint: Vec<StaticSandbox>,
    /// Follow the pods of sandboxes at the API server, and find sandboxes by name there.
    #[arg(long)]
    pub(super) cache_enabled: bool,
    /// Follow the pods of this namespace only; empty for all.
    #[arg(long, default_value = "")]
    pub(super) cache_namespace: String,
    /// Kubeconfig file for whatever the API server is asked, outside a cluster; in a pod it isn't needed.
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Who may call, where that isn't said by --auth-token.
    #[arg(long, value_enum)]
    pub(super) authz_mode: Option<AuthzMode>,
    #[command(flatten)]
    pub(super) scoped_token: ScopedTokenFlags,
    #[command(flatten)]
    pub(super) oidc: OidcFlags,
    /// Bearer token that callers must present. The variable keeps it out of process lists.
    #[arg(long, env = "ROUTER_AUTH_TOKEN", hide_env_values = true)]
    pub(super) auth_token: Option<Secret>,
    #[command(flatten)]
    pub(super) callers: CallerFlags,
    /// Domain of the cluster's DNS names.
    #[arg(long, default_value = "cluster.local", value_parser = not_empty)]
    pub(super) cluster_domain: String,
    /// Wait for a response head, and for each silence between body chunks.
    #[arg(long, default_value = "180s", value_parser = duration::parse_above_zero)]
    pub(super) proxy_timeout: Duration,
    /// Wait for a response head, if shorter than --proxy-timeout; 0 for that one.
    #[arg(long, default_value = "0s", value_parser = duration::parse)]
    pub(super) response_header_timeout: Duration,
    /// How long requests may take to finish after SIGTERM; a second signal ends at once.
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    pub(super) shutdown_timeout: Duration,
    /// How long of --shutdown-timeout, at most half of it, new connections are still served: until it is known everywhere that
    /// /readyz says `draining`.
    #[arg(long, default_value = "5s", value_parser = duration::parse)]
    pub(super) drain_delay: Duration,
    /// Longest request body in bytes; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    pub(super) max_request_body_bytes: u64,
    #[command(flatten)]
    pub(super) framing: LimitFlags,
    /// Let X-Sandbox-Pod-IP name a loopback address.
    #[arg(long)]
    pub(super) allow_loopback_pod_ip: bool,
    #[command(flatten)]
    pub(super) routing: RoutingFlags,
    #[command(flatten)]
    pub(super) browser: BrowserFlags,
    /// Further attempts after a failed connection.
    #[arg(long, default_value_t = 3)]
    pub(super) upstream_max_retries: u32,
    /// Pause before the first further attempt; it doubles each time.
    #[arg(long, default_value = "200ms", value_parser = duration::parse)]
    pub(super) upstream_retry_initial_delay: Duration,
    /// Longest pause.
    #[arg(long, default_value = "800ms", value_parser = duration::parse)]
    pub(super) upstream_retry_max_delay: Duration,
    #[command(flatten)]
    pub(super) breaker: BreakerFlags,
    /// Idle upstream connections kept per sandbox.
    #[arg(long, default_value_t = 20)]
    pub(super) max_keepalive_connections: usize,
    /// Longest silence on an upgraded connection; 0 for no limit.
    #[arg(long, default_value = "3600s", value_parser = duration::parse)]
    pub(super) websocket_idle_timeout: Duration,
    /// Longest life of an upgraded connection; 0 for no limit.
    #[arg(long, default_value = "86400s", value_parser = duration::parse)]
    pub(super) websocket_max_lifetime: Duration,
    /// Upgraded connections of one client at once; 0 for no limit.
    #[arg(long, default_value_t = 64)]
    pub(super) websocket_max_connections_per_client: usize,
    /// Longest WebSocket message, in bytes on the wire; 0 for no limit.
    #[arg(long, default_value_t = 16 * 1024 * 1024)]
    pub(super) websocket_max_message_bytes: u64,
    /// Proxies whose X-Forwarded-* headers are kept, as comma-separated networks; empty for none.
    #[arg(long, default_value = "", value_name = "NETWORKS")]
    pub(super) trusted_proxy_cidrs: Networks,
    /// Open client connections in all.
    #[arg(long, default_value_t = 65_536)]
    pub(super) max_connections: usize,
    /// Open client connections from one address, unless it is a trusted proxy's [default: three quarters of all].
    #[arg(long)]
    pub(super) max_connections_per_peer: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(super) request_limits: RequestLimitFlags,
    /// Bytes of memory above which requests and connections are shed with 503; by default 80 % of the container's limit.
    #[arg(long)]
    pub(super) memory_budget_bytes: Option<u64>,
    /// Worker threads [default: one per core].
    #[arg(long)]
    pub(super) workers: Option<usize>,
    /// Write one access line per request to standard error.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    pub(super) access_log: bool,
    /// Log level or filter, for example `info` or `debug`.
    #[arg(long, default_value = "info")]
    pub(super) log_level: String,
    #[command(flatten)]
    pub(super) zap: ZapFlags,
    #[command(flatten)]
    pub(super) otlp: OtlpFlags,
}

/// The router's flags, each with the old variables that stand for it.
pub(crate) fn command() -> Command {
    files(booleans(Flags::command())).mut_args(|arg| {
        let stands_for = |variable: &&Variable| arg.get_long() == Some(variable.flag);
        let variables = VARIABLES.iter().filter(stands_for);
        let mut help = vec![arg.get_help().map(ToString::to_string).unwrap_or_default()];
        help.extend(variables.map(|variable| format!(" [env: {}]", variable.name)));
        arg.help(help.concat())
    })
}
