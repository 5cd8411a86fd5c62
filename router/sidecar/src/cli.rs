//! The program: flags, files, health port, signals.

mod once;
mod source;

use crate::authorize::OwnPorts;
use crate::held_ports::HeldPorts;
use crate::{Caps, Gate, Settings, probe};
use anyhow::Context;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use once::Once;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use sandgate_mesh::admin::Admin;
use sandgate_mesh::command_line::{self, ConfigError};
use sandgate_mesh::contract::{
    APP_PROBES_VARIABLE, DEFAULT_TRUST_DOMAIN, HEALTH_PORT, NAMESPACE_VARIABLE, POD_UID_VARIABLE, SANDBOX_VARIABLE,
};
use sandgate_mesh::control::Enrollee;
use sandgate_mesh::control::server::{Control, Identity};
use sandgate_mesh::credentials::{poll_bundle, poll_sidecar};
use sandgate_mesh::framing::LimitFlags;
use sandgate_mesh::identity::{SandboxIdentity, TrustDomain, WorkloadIdentity};
use sandgate_mesh::listener::{ConnectionLimits, bind, fit_open_files, parse_address};
use sandgate_mesh::memory::{self, Allocated};
use sandgate_mesh::policy::PolicySnapshot;
use sandgate_mesh::polled::Poller;
use sandgate_mesh::probe::AppProbes;
use sandgate_mesh::process::{self, EndSignals};
use sandgate_mesh::sandbox::{Namespace, PodUid, SandboxKey, SandboxName};
use sandgate_mesh::telemetry::{LogFormat, init};
use sandgate_mesh::{drain, duration, serve};
use source::{Source, SourceFlags};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// The program, as its errors name it.
const PROGRAM: &str = "sandbox-sidecar";
/// How often certificate and policy files are looked at.
const POLL_PERIOD: Duration = Duration::from_secs(1);

/// The gate in a sandbox pod: accepts its router over mTLS, checks this sandbox's policy, dials only loopback.
#[derive(Debug, Parser)]
#[command(name = "sandbox-sidecar", version)]
struct Flags {
    /// Address of the mTLS port.
    #[arg(long, default_value = ":14443", value_parser = parse_address)]
    mesh_bind_address: SocketAddr,
    /// Address of the health and metrics port.
    #[arg(long, default_value = ":14480", value_parser = parse_address)]
    health_bind_address: SocketAddr,
    /// Namespace of the sandbox behind this gate.
    #[arg(long, env = NAMESPACE_VARIABLE)]
    namespace: Namespace,
    /// Name of the sandbox (its pod's name).
    #[arg(long, env = SANDBOX_VARIABLE)]
    sandbox: SandboxName,
    /// UID of the pod.
    #[arg(long, env = POD_UID_VARIABLE)]
    pod_uid: PodUid,
    /// SPIFFE trust domain.
    #[arg(long, default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: TrustDomain,
    /// SPIFFE ID of a router whose caller assertions are believed; repeatable.
    #[arg(long, required = true)]
    router_identity: Vec<WorkloadIdentity>,
    #[command(flatten)]
    source: SourceFlags,
    /// The app's own probes that this gate runs for the kubelet (JSON), as `docs/lockdown.md` describes.
    #[arg(long, env = APP_PROBES_VARIABLE, hide_env_values = true)]
    app_probes: Option<AppProbes>,
    /// Wait for a response head and for each silence between body chunks.
    #[arg(long, default_value = "180s", value_parser = duration::parse_above_zero)]
    proxy_timeout: Duration,
    /// How long requests may take to finish after SIGTERM.
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    shutdown_timeout: Duration,
    /// Open mesh connections in all.
    #[arg(long, default_value_t = 1024)]
    max_connections: usize,
    /// Open mesh connections from one address. Routers may have more: they speak for many.
    #[arg(long, default_value_t = 256)]
    max_connections_per_peer: usize,
    #[command(flatten)]
    framing: LimitFlags,
    /// Bytes of memory above which requests are shed with 503; by default 80 % of the container's limit.
    #[arg(long)]
    memory_budget_bytes: Option<u64>,
    /// Write one audit line per decision to standard error.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    audit_log: bool,
    /// Log level or filter, for example `info` or `debug`.
    #[arg(long, default_value = "info")]
    log_level: String,
}

/// What the program is started for.
#[derive(Debug)]
enum Task {
    Serve(Box<Flags>, Source),
    Once(Once),
}

impl Task {
    /// The program serves unless a subcommand says otherwise, and then it takes that one's flags only.
    fn command() -> clap::Command {
        Once::augment_subcommands(Flags::command())
            .subcommand_negates_reqs(true)
            .args_conflicts_with_subcommands(true)
    }

    /// Reads the command line, program name first.
    fn read(args: Vec<OsString>) -> Result<Self, ConfigError> {
        command_line::read(PROGRAM, Self::command(), args, Self::check)
    }

    fn check(matches: &ArgMatches, problems: &mut Vec<String>) -> Option<Self> {
        if matches.subcommand().is_some() {
            return Once::from_arg_matches(matches).ok().map(Self::Once);
        }
        // Of their own, because other flags may be missing.
        let framing = LimitFlags::from_arg_matches(matches).ok()?;
        problems.extend(framing.limits().problems());
        let source = SourceFlags::from_arg_matches(matches).ok()?.source(problems);
        let flags = Flags::from_arg_matches(matches).ok()?;
        let routers = &flags.router_identity;
        flags.source.check_identities(&flags.trust_domain, routers, problems);
        Some(Self::Serve(Box::new(flags), source?))
    }

    fn log_level(&self) -> &str {
        match self {
            Self::Serve(flags, _) => &flags.log_level,
            Self::Once(_) => "info",
        }
    }

    fn run(self, allocated: Allocated) -> anyhow::Result<()> {
        match self {
            Self::Serve(flags, source) => run(*flags, source, allocated),
            Self::Once(once) => once.run(),
        }
    }
}

/// Runs the program and maps its end to an exit code: 0 done, 1 failed, 2 usage, 64 bad configuration.
pub fn main(allocated: Allocated) -> ExitCode {
    let task = match Task::read(std::env::args_os().collect()) {
        Ok(task) => task,
        Err(error) => return error.report(),
    };
    if let Err(error) = init(task.log_level(), LogFormat::Json) {
        return ConfigError::log_level(PROGRAM, &error).report();
    }
    process::end(PROGRAM, task.run(allocated))
}

/// The pod's other processes must not read this one's memory, and no crash may write it to a file.
fn protect_memory() -> anyhow::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("PR_SET_DUMPABLE")?;
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .context("RLIMIT_CORE")?;
    Ok(())
}

fn run(mut flags: Flags, source: Source, allocated: Allocated) -> anyhow::Result<()> {
    protect_memory()?;
    flags.max_connections = fit_open_files(flags.max_connections, "--max-connections");
    let runtime = serve::runtime()?;
    let result = runtime.block_on(serve(flags, source, allocated));
    runtime.shutdown_background();
    result
}

async fn serve(flags: Flags, source: Source, allocated: Allocated) -> anyhow::Result<()> {
    let mesh = bind(flags.mesh_bind_address)?;
    let health = bind(flags.health_bind_address)?;
    let identity = SandboxIdentity {
        trust_domain: flags.trust_domain.clone(),
        sandbox: SandboxKey {
            namespace: flags.namespace.clone(),
            name: flags.sandbox.clone(),
        },
        pod_uid: flags.pod_uid.clone(),
    };
    let health_port = health.local_addr().map_or(HEALTH_PORT, |address| address.port());
    let own_ports = OwnPorts {
        mesh: mesh.local_addr()?.port(),
        health: health_port,
    };
    let budget = flags.memory_budget_bytes.or_else(memory::container_budget);
    let shutdown_timeout = flags.shutdown_timeout;
    let app_probes = flags.app_probes.clone();
    let state_folder = source.state_folder();
    let gate = start_gate(settings(flags, identity.clone(), own_ports), identity, source)?;
    let app_probes = app_probes.map(|probes| probe::runner(&probes, &own_ports, &gate.settings.framing));
    if let Some(budget) = budget {
        tokio::spawn(gate.memory().watch(budget, allocated));
    }
    let (drain, draining) = drain::channel();
    let (health_drain, health_draining) = drain::channel();
    let admin = Admin {
        readiness: Some(gate.readiness(drain.state())),
        metrics: Some(gate.registry()),
        app_probes: app_probes.transpose()?,
    };
    tokio::spawn(admin.serve(health, health_draining));
    tokio::spawn(Arc::clone(&gate).serve(mesh, draining));
    let _held = state_folder
        .map(|folder| HeldPorts::say(&folder))
        .transpose()
        .context("--state-folder")?;
    tracing::info!(mesh = own_ports.mesh, health = own_ports.health, sandbox = %gate.settings.sandbox, "listening");

    EndSignals::listen()?.next().await;
    tracing::info!("draining");
    if !drain.finish(shutdown_timeout).await {
        tracing::warn!("requests were still under way when the shutdown budget ended");
    }
    drop(health_drain);
    gate.flush();
    Ok(())
}

/// The gate, and what feeds it: its control planes, or pollers of its files.
fn start_gate(settings: Settings, identity: SandboxIdentity, source: Source) -> anyhow::Result<Arc<Gate>> {
    let (files, policy_file) = match source {
        Source::Control(control, token_file) => {
            let (own, granted) = (Enrollee::Gate(identity), Identity::Granted { token_file });
            let control = Control::open(control, own, granted).context("--state-folder")?;
            return Gate::controlled(settings, control);
        }
        Source::Kubelet(control, files) => {
            let (poller, credentials) = poll_bundle(files, identity.clone());
            let (own, given) = (Enrollee::Gate(identity), Identity::Given(credentials));
            let control = Control::open(control, own, given).context("--state-folder")?;
            let gate = Gate::controlled(settings, control)?;
            tokio::spawn(poller.on_reload(gate.on_credentials()).run(POLL_PERIOD));
            return Ok(gate);
        }
        Source::Files(files, policy_file) => (files, policy_file),
    };
    let (credentials_poller, credentials) = poll_sidecar(files, identity);
    let (policy_poller, policy) = Poller::new("policy snapshot", vec![policy_file], |files: Vec<Vec<u8>>| {
        PolicySnapshot::parse(&files.concat())
    });
    let policy_poller = policy_poller.replace_if(PolicySnapshot::may_give_way_to);
    let gate = Gate::new(settings, credentials, policy)?;
    tokio::spawn(credentials_poller.on_reload(gate.on_credentials()).run(POLL_PERIOD));
    tokio::spawn(policy_poller.on_reload(gate.on_policy()).run(POLL_PERIOD));
    Ok(gate)
}

fn settings(flags: Flags, identity: SandboxIdentity, own_ports: OwnPorts) -> Settings {
    Settings {
        framing: Arc::new(flags.framing.limits()),
        sandbox: identity.sandbox,
        pod_uid: identity.pod_uid,
        routers: flags.router_identity,
        own_ports,
        caps: Caps {
            connections: ConnectionLimits {
                total: flags.max_connections,
                per_peer: flags.max_connections_per_peer,
            },
            ..Caps::default()
        },
        proxy_timeout: flags.proxy_timeout,
        audit: flags.audit_log,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const NEEDED: [&str; 8] = [
        "--namespace=a",
        "--sandbox=b",
        "--pod-uid=u",
        "--router-identity=spiffe://cluster.local/ns/a/sa/r",
        "--tls-cert-file=c",
        "--tls-key-file=k",
        "--trust-bundle-file=t",
        "--policy-file=p",
    ];

    pub(super) fn read(args: &[&str]) -> Result<Task, ConfigError> {
        Task::read([PROGRAM].iter().chain(args).map(OsString::from).collect())
    }

    #[test]
    fn all_that_is_wrong_is_reported_together() {
        let error = read(&[
            "--namespace=A",
            "--sandbox=b",
            "--pod-uid",
            "/",
            "--router-identity=spiffe://cluster.local/ns/a/sa/r",
            "--tls-cert-file=c",
            "--trust-bundle-file=t",
            "--proxy-timeout=0",
            "--max-connections=many",
            "--idle-timeout=0",
        ]);
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 64);
        let text = error.to_string();
        let problems = [
            "  - invalid value 'A' for '--namespace <NAMESPACE>': ",
            "  - invalid value '/' for '--pod-uid <POD_UID>': ",
            "  - invalid value '0' for '--proxy-timeout <PROXY_TIMEOUT>': must be above 0",
            "  - invalid value 'many' for '--max-connections <MAX_CONNECTIONS>': ",
            "  - --idle-timeout is 0s, ",
            "  - --tls-key-file <TLS_KEY_FILE> is not given",
            "  - --policy-file <POLICY_FILE> is not given",
        ];
        for problem in problems {
            assert!(text.contains(problem), "{problem}\n{text}");
        }
        // And nothing else: what was given, though badly, isn't missing.
        assert_eq!(text.lines().count(), 1 + problems.len(), "{text}");
    }

    #[test]
    fn caps_of_framing_are_what_the_flags_say() {
        let Ok(Task::Serve(flags, _)) = read(&[&NEEDED[..], &["--max-request-headers=7"]].concat()) else {
            panic!()
        };
        assert_eq!(flags.framing.limits().headers, 7);
    }

    #[test]
    fn flags_that_are_only_missing_are_wrong_usage() {
        let error = read(&NEEDED[1..]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--namespace <NAMESPACE>"), "{error}");
        // Unless more than that is wrong.
        let error = read(&[&NEEDED[1..], &["--idle-timeout=0"]].concat()).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        let text = error.to_string();
        assert!(
            text.contains("--namespace <NAMESPACE> is not given") && text.contains("--idle-timeout"),
            "{text}"
        );
    }
}
