//! Flags, file and environment -> [`Config`]. Names, defaults and spellings are those of the existing routers (CONTRACT
//! section 6); whatever is wrong is reported together, and the process refuses to start.

mod browser;
mod callers;
mod environment;
mod file;
mod flags;
mod https_url;
mod limits;
mod mesh_identity;
mod oidc;
mod otlp;
mod routing;
mod sampler;
mod scoped_token;
mod settings;
mod sources;
mod spelling;
mod static_sandbox;
mod zap;

pub use crate::breaker::BreakerSettings;
pub use crate::browser::{BrowserCredentials, CookieName, Origin, ParameterName, SameSite};
pub use crate::limits::{Rate, RequestLimits, Share};
pub use crate::pods::Source;
pub use crate::routing::UrlRouting;
pub use callers::TokenReviewSettings;
pub use flags::Mesh;
pub(crate) use flags::command;
pub use https_url::{HttpsUrl, HttpsUrlError};
pub(crate) use mesh_identity::NO_IDENTITY;
pub use mesh_identity::{Enrolment, MeshIdentity};
pub use oidc::{NamePrefix, OidcKeys, OidcRefresh, OidcSettings, SigningAlgorithm};
pub use otlp::{OtlpExport, OtlpMetrics, OtlpProtocol, OtlpSettings, OtlpTraces};
pub use sampler::Sampler;
pub use sandgate_mesh::command_line::ConfigError;
pub use scoped_token::ScopedTokenFiles;
pub use settings::Settings;
pub use static_sandbox::StaticSandbox;

use clap::parser::ValueSource;
use clap::{Command, FromArgMatches};
use flags::{AuthzMode, Flags, MtlsFlag};
use ipnet::IpNet;
use sandgate_mesh::command_line::CommandLine;
use sandgate_mesh::framing::Limits;
use sandgate_mesh::identity::TrustDomain;
use sandgate_mesh::listener::ConnectionLimits;
use sandgate_mesh::telemetry::check_level;
use sandgate_mesh::tls::MtlsMode;
use sandgate_mesh::tunnel::TunnelLimits;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How callers are authenticated.
#[derive(Clone, PartialEq, Eq)]
pub enum Authentication {
    /// Everybody is let in, by explicit choice.
    AllowAll,
    /// One shared bearer token.
    StaticToken(String),
    /// Bearer tokens that the API server knows.
    TokenReview(TokenReviewSettings),
    /// Tokens for one sandbox each.
    ScopedToken(ScopedTokenFiles),
    /// Tokens of an OIDC issuer.
    Oidc(Box<OidcSettings>),
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllowAll => f.write_str("allow-all"),
            Self::StaticToken(_) => f.write_str("static token"),
            Self::TokenReview(settings) => settings.fmt(f),
            Self::ScopedToken(files) => files.fmt(f),
            Self::Oidc(settings) => settings.fmt(f),
        }
    }
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
    pub http: Option<SocketAddr>,
    pub https: Option<Https>,
    pub metrics: SocketAddr,
    pub health: SocketAddr,
    pub mesh: Mesh,
    pub mesh_identity: Option<MeshIdentity>,
    pub trust_domain: TrustDomain,
    pub sandboxes: Vec<StaticSandbox>,
    pub cache: Option<Source>,
    pub kubeconfig: Option<PathBuf>,
    pub authentication: Authentication,
    pub access_review: bool,
    pub cluster_domain: String,
    pub proxy_timeout: Duration,
    pub response_header_timeout: Option<Duration>,
    pub shutdown_timeout: Duration,
    /// Part of `shutdown_timeout`.
    pub drain_delay: Duration,
    pub max_request_body: Option<u64>,
    pub framing: Arc<Limits>,
    pub allow_loopback_pod_ip: bool,
    /// What `--path-routing-prefix` and `--host-routing-domain` say, if either is set.
    pub url_routing: Option<UrlRouting>,
    /// What `--authz-cookie-name` and those beside it say, if there is a cookie.
    pub browser: Option<BrowserCredentials>,
    pub retries: u32,
    pub retry_initial_delay: Duration,
    pub retry_max_delay: Duration,
    pub breaker: Option<BreakerSettings>,
    pub keepalive: usize,
    pub trusted_proxies: Vec<IpNet>,
    pub tunnels: TunnelLimits,
    pub upgrades_per_client: Option<NonZeroUsize>,
    pub max_connections: usize,
    pub max_connections_per_peer: Option<NonZeroUsize>,
    pub request_limits: RequestLimits,
    pub memory_budget: Option<u64>,
    pub workers: usize,
    pub access_log: bool,
    pub log_level: String,
    /// What is exported by OTLP, if anything is.
    pub otlp: Option<OtlpSettings>,
    /// What was ignored, to be logged once there is a log.
    pub warnings: Vec<String>,
    /// The same as texts, with their origins and without secrets.
    pub settings: Settings,
}

/// The program, as its errors name it.
pub(crate) const PROGRAM: &str = "sandbox-router";

const KUBECONFIG_FOR_NOTHING: &str = "--kubeconfig is for what the API server is asked: set --cache-enabled, \
                                      --authz-mode=tokenreview or --authz-subject-access-review";

const NO_CHOICE: &str = "nothing says who may call: set ROUTER_AUTH_TOKEN (or --auth-token) to require a bearer token, have the \
                         API server say whose a token is with --authz-mode=tokenreview, require a token for the very sandbox \
                         with --authz-mode=scoped-token, take the tokens of an OpenID Connect issuer with \
                         --authz-mode=oidc, or let everybody in with \
                         --authz-mode=allow-all or ALLOW_UNAUTHENTICATED_ROUTER=true";

impl Config {
    /// Reads flags (without the program's name), the file that they name, and the environment.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_args(args: Vec<OsString>) -> Result<Self, ConfigError> {
        Self::read(&command(), args, false)
    }

    /// As [`from_args`](Self::from_args), for a program that nobody else gives its mesh identity.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn of_program(args: Vec<OsString>) -> Result<Self, ConfigError> {
        Self::of_command(&command(), args)
    }

    /// As [`of_program`](Self::of_program), with a help of its own: `command` has the flags of [`command()`].
    pub(crate) fn of_command(command: &Command, args: Vec<OsString>) -> Result<Self, ConfigError> {
        Self::read(command, args, true)
    }

    /// How many connections may be open at once. Whoever has one address can't take them all.
    pub(crate) fn connection_limits(&self) -> ConnectionLimits {
        let total = self.max_connections;
        let per_peer = self.max_connections_per_peer;
        ConnectionLimits {
            total,
            per_peer: per_peer.map_or(total - total / 4, NonZeroUsize::get),
        }
    }

    /// Whether `ip` is a trusted proxy's.
    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&ip))
    }

    fn read(command: &Command, args: Vec<OsString>, needs_identity: bool) -> Result<Self, ConfigError> {
        let args = args.into_iter().map(spelling::two_dashes).collect();
        let mut line = CommandLine::new(PROGRAM, command.clone(), args);
        let reading = sources::read(command, &mut line)?;
        let mut flags = Flags::from_arg_matches(&reading.matches).map_err(ConfigError::Usage)?;
        if reading.matches.value_source("log_level") == Some(ValueSource::DefaultValue)
            && let Some(level) = flags.zap.level()
        {
            level.clone_into(&mut flags.log_level);
        }
        let config = check(flags, needs_identity, &mut line.problems);
        line.end(config.map(|mut config| {
            config.warnings.splice(..0, reading.warnings);
            config.settings = reading.settings;
            config
        }))
    }
}

fn check(flags: Flags, needs_identity: bool, problems: &mut Vec<String>) -> Option<Config> {
    let authentication = authentication(&flags, problems);
    let https = https(&flags, problems);
    let mesh_identity = flags
        .mesh_identity
        .identity(flags.mesh, &flags.trust_domain, needs_identity, problems);
    problems.extend(static_sandbox::repeated(&flags.sandbox_endpoint));
    let framing = flags.framing.limits();
    problems.extend(framing.problems());
    let cache = cache(&flags, problems);
    if let Err(error) = check_level(&flags.log_level) {
        problems.push(format!("--log-level: {error}"));
    }
    let url_routing = flags.routing.url_routing(problems);
    let otlp = flags.otlp.settings(problems);
    let request_limits = flags.request_limits.limits(problems);
    let browser = flags
        .browser
        .credentials(url_routing.as_ref(), authentication.as_ref(), problems);
    let mut warnings = Vec::new();
    if let (Some(browser), Some(urls), Some(authentication)) = (&browser, &url_routing, &authentication) {
        warnings.extend(browser::warnings(browser, urls, authentication));
    }
    if let Some(Authentication::TokenReview(settings)) = &authentication {
        warnings.extend(settings.warning().map(String::from));
    }
    warnings.extend(flags.zap.warnings());
    Some(Config {
        http: flags.http_bind_address.0,
        https,
        metrics: flags.metrics_bind_address,
        health: flags.health_probe_bind_address,
        mesh: flags.mesh,
        mesh_identity,
        trust_domain: flags.trust_domain,
        sandboxes: flags.sandbox_endpoint,
        cache,
        kubeconfig: flags.kubeconfig,
        authentication: authentication?,
        cluster_domain: flags.cluster_domain,
        proxy_timeout: flags.proxy_timeout,
        access_review: flags.callers.authz_subject_access_review,
        response_header_timeout: Some(flags.response_header_timeout).filter(|timeout| !timeout.is_zero()),
        shutdown_timeout: flags.shutdown_timeout,
        drain_delay: flags.drain_delay.min(flags.shutdown_timeout / 2),
        max_request_body: Some(flags.max_request_body_bytes).filter(|limit| *limit > 0),
        framing: Arc::new(framing),
        allow_loopback_pod_ip: flags.allow_loopback_pod_ip,
        url_routing,
        browser,
        retries: flags.upstream_max_retries,
        retry_initial_delay: flags.upstream_retry_initial_delay,
        retry_max_delay: flags.upstream_retry_max_delay,
        breaker: flags.breaker.settings(),
        keepalive: flags.max_keepalive_connections,
        trusted_proxies: flags.trusted_proxy_cidrs.0,
        tunnels: TunnelLimits {
            idle: flags.websocket_idle_timeout,
            lifetime: flags.websocket_max_lifetime,
            message: flags.websocket_max_message_bytes,
        },
        upgrades_per_client: NonZeroUsize::new(flags.websocket_max_connections_per_client),
        max_connections: flags.max_connections,
        max_connections_per_peer: flags.max_connections_per_peer,
        request_limits,
        memory_budget: flags.memory_budget_bytes,
        workers: flags
            .workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .max(1),
        access_log: flags.access_log,
        log_level: flags.log_level,
        otlp,
        warnings,
        settings: Settings::default(),
    })
}

fn authentication(flags: &Flags, problems: &mut Vec<String>) -> Option<Authentication> {
    let token = flags
        .auth_token
        .as_deref()
        .map(str::trim)
        .filter(|token| !token.is_empty());
    problems.extend(flags.callers.problems(flags));
    if flags.authz_mode != Some(AuthzMode::ScopedToken) {
        problems.extend(flags.scoped_token.useless());
    }
    if flags.authz_mode != Some(AuthzMode::Oidc) {
        problems.extend(flags.oidc.useless());
    }
    match (flags.authz_mode, token) {
        (Some(mode), Some(_)) => {
            problems.push(format!(
                "a token is set, but --authz-mode={mode} would ignore it: choose one"
            ));
            None
        }
        (Some(AuthzMode::TokenReview), None) => Some(Authentication::TokenReview(flags.callers.token_review())),
        (None, Some(token)) => Some(Authentication::StaticToken(token.to_owned())),
        (Some(AuthzMode::ScopedToken), None) => flags.scoped_token.files(problems).map(Authentication::ScopedToken),
        (Some(AuthzMode::Oidc), None) => flags.oidc.settings(problems).map(Box::new).map(Authentication::Oidc),
        (Some(AuthzMode::AllowAll), None) => Some(Authentication::AllowAll),
        (None, None) => {
            if !has_bad_mode(problems) {
                problems.push(NO_CHOICE.into());
            }
            None
        }
    }
}

/// Whether a mode was given that there isn't: that is said already.
fn has_bad_mode(problems: &[String]) -> bool {
    let of_mode = |problem: &String| problem.contains("'--authz-mode <") || problem.starts_with("authz-mode: ");
    problems.iter().any(of_mode)
}

fn https(flags: &Flags, problems: &mut Vec<String>) -> Option<Https> {
    let mtls = match flags.mtls_mode {
        MtlsFlag::Off => MtlsMode::Off,
        MtlsFlag::Optional => MtlsMode::Optional,
        MtlsFlag::Required => MtlsMode::Required,
    };
    let Some(address) = flags.https_bind_address.0 else {
        let useless = [
            ("--mtls-mode", flags.mtls_mode != MtlsFlag::Off),
            ("--tls-cert-file", flags.tls_cert_file.is_some()),
            ("--tls-key-file", flags.tls_key_file.is_some()),
            ("--tls-client-ca-file", flags.tls_client_ca_file.is_some()),
        ];
        let useless = useless.into_iter().filter(|(_, given)| *given);
        problems.extend(useless.map(|(flag, _)| format!("{flag} needs the HTTPS listener: set --https-bind-address")));
        if flags.http_bind_address.0.is_none() {
            problems.push("nothing would be served: set --http-bind-address or --https-bind-address".into());
        }
        return None;
    };
    if flags.mtls_mode != MtlsFlag::Off && flags.tls_client_ca_file.is_none() {
        problems.push("--mtls-mode needs --tls-client-ca-file".into());
    }
    let (Some(chain), Some(key)) = (flags.tls_cert_file.clone(), flags.tls_key_file.clone()) else {
        problems.push("--https-bind-address needs --tls-cert-file and --tls-key-file".into());
        return None;
    };
    Some(Https {
        address,
        chain,
        key,
        client_ca: flags.tls_client_ca_file.clone(),
        mtls,
    })
}

/// Where pods are heard of, if that is wanted.
fn cache(flags: &Flags, problems: &mut Vec<String>) -> Option<Source> {
    if !flags.cache_enabled {
        let useless = [
            ("--mesh=auto", flags.mesh == Mesh::Auto),
            ("--cache-namespace", !flags.cache_namespace.is_empty()),
        ];
        let useless = useless.into_iter().filter(|(_, given)| *given);
        problems.extend(useless.map(|(flag, _)| format!("{flag} needs the pod cache: set --cache-enabled")));
        if flags.kubeconfig.is_some() && !flags.callers.need_api_server(flags.authz_mode) {
            problems.push(KUBECONFIG_FOR_NOTHING.into());
        }
        return None;
    }
    let namespace = match flags.cache_namespace.as_str() {
        "" => None,
        text => text
            .parse()
            .map_err(|error| problems.push(format!("--cache-namespace: {error}")))
            .ok(),
    };
    Some(Source { namespace })
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
