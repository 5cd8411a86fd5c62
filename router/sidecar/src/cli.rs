//! The program: flags, files, health port, signals.

use crate::authorize::OwnPorts;
use crate::{Caps, Gate, Settings};
use anyhow::Context;
use clap::Parser;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use sandgate_mesh::admin::Admin;
use sandgate_mesh::contract::{DEFAULT_TRUST_DOMAIN, HEALTH_PORT};
use sandgate_mesh::credentials::{MeshFiles, Role, poll_mesh};
use sandgate_mesh::identity::{TrustDomain, WorkloadIdentity};
use sandgate_mesh::listener::{ConnectionLimits, bind, parse_address};
use sandgate_mesh::policy::PolicySnapshot;
use sandgate_mesh::polled::Poller;
use sandgate_mesh::sandbox::{Namespace, PodUid, SandboxKey, SandboxName};
use sandgate_mesh::telemetry::{LogFormat, init};
use sandgate_mesh::{drain, duration, memory, serve};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

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
    #[arg(long, env = "SANDGATE_NAMESPACE")]
    namespace: Namespace,
    /// Name of the sandbox (its pod's name).
    #[arg(long, env = "SANDGATE_SANDBOX")]
    sandbox: SandboxName,
    /// UID of the pod.
    #[arg(long, env = "SANDGATE_POD_UID")]
    pod_uid: PodUid,
    /// SPIFFE trust domain.
    #[arg(long, default_value = DEFAULT_TRUST_DOMAIN)]
    trust_domain: TrustDomain,
    /// SPIFFE ID of a router whose caller assertions are believed; repeatable.
    #[arg(long, required = true)]
    router_identity: Vec<WorkloadIdentity>,
    /// PEM file with this gate's certificate chain; polled, so it may appear later and change.
    #[arg(long)]
    tls_cert_file: PathBuf,
    /// PEM file with its private key.
    #[arg(long)]
    tls_key_file: PathBuf,
    /// PEM file with the roots that peers are verified under.
    #[arg(long)]
    trust_bundle_file: PathBuf,
    /// Policy snapshot (JSON); polled. Without one every request is refused.
    #[arg(long)]
    policy_file: PathBuf,
    /// Wait for a response head and for each silence between body chunks.
    #[arg(long, default_value = "180s", value_parser = duration::parse)]
    proxy_timeout: Duration,
    /// How long requests may take to finish after SIGTERM.
    #[arg(long, default_value = "30s", value_parser = duration::parse)]
    shutdown_timeout: Duration,
    /// Open mesh connections in all.
    #[arg(long, default_value_t = 1024)]
    max_connections: usize,
    /// Open mesh connections from one address.
    #[arg(long, default_value_t = 256)]
    max_connections_per_peer: usize,
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

/// Runs the program and maps its end to an exit code: 0 done, 1 failed, 2 usage.
pub fn main() -> ExitCode {
    let flags = Flags::parse();
    let run = init(&flags.log_level, LogFormat::Json)
        .map_err(anyhow::Error::msg)
        .and_then(|()| run(flags));
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "sandbox-sidecar ends");
            ExitCode::FAILURE
        }
    }
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

fn run(flags: Flags) -> anyhow::Result<()> {
    protect_memory()?;
    let runtime = serve::runtime()?;
    let result = runtime.block_on(serve(flags));
    runtime.shutdown_background();
    result
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let mesh = bind(flags.mesh_bind_address)?;
    let health = bind(flags.health_bind_address)?;
    let files = MeshFiles {
        chain: flags.tls_cert_file.clone(),
        key: flags.tls_key_file.clone(),
        bundle: flags.trust_bundle_file.clone(),
    };
    let (credentials_poller, credentials) = poll_mesh(Role::Sidecar, files, flags.trust_domain.clone());
    let (policy_poller, policy) = Poller::new(
        "policy snapshot",
        vec![flags.policy_file.clone()],
        |files: Vec<Vec<u8>>| PolicySnapshot::parse(&files.concat()),
    );
    tokio::spawn(credentials_poller.run(POLL_PERIOD));
    tokio::spawn(policy_poller.run(POLL_PERIOD));

    let health_port = health.local_addr().map_or(HEALTH_PORT, |address| address.port());
    let own_ports = OwnPorts {
        mesh: mesh.local_addr()?.port(),
        health: health_port,
    };
    let budget = flags.memory_budget_bytes.or_else(memory::container_budget);
    let shutdown_timeout = flags.shutdown_timeout;
    let gate = Gate::new(settings(flags, own_ports), credentials, policy)?;
    if let Some(budget) = budget {
        tokio::spawn(gate.memory().watch(budget));
    }
    let (drain, draining) = drain::channel();
    let (health_drain, health_draining) = drain::channel();
    let admin = Admin {
        readiness: Some(gate.readiness(drain.state())),
        metrics: Some(gate.registry()),
    };
    tokio::spawn(admin.serve(health, health_draining));
    tokio::spawn(Arc::clone(&gate).serve(mesh, draining));
    tracing::info!(mesh = own_ports.mesh, health = own_ports.health, sandbox = %gate.settings.sandbox, "listening");

    ended().await?;
    tracing::info!("draining");
    if !drain.finish(shutdown_timeout).await {
        tracing::warn!("requests were still under way when the shutdown budget ended");
    }
    drop(health_drain);
    gate.flush();
    Ok(())
}

fn settings(flags: Flags, own_ports: OwnPorts) -> Settings {
    Settings {
        sandbox: SandboxKey {
            namespace: flags.namespace,
            name: flags.sandbox,
        },
        pod_uid: flags.pod_uid,
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

/// Completes on SIGTERM or SIGINT.
async fn ended() -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
