//! Starts everything in one process and ends it in order: the router first, then the gates, then the demo apps.

use crate::apps::Apps;
use crate::cli::{Failure, MeshMode, Options};
use crate::gates::{GateAddress, Gates, random};
use crate::scene::{SandboxScene, Scene};
use anyhow::{Context, anyhow};
use sandbox_router::Router;
use sandbox_router::config::{Config, StaticSandbox};
use sandgate_mesh::contract::{DEFAULT_PROXY_TIMEOUT, DEFAULT_TRUST_DOMAIN, MESH_PORT};
use sandgate_mesh::listener::fit_open_files;
use sandgate_mesh::process::EndSignals;
use sandgate_mesh::sandbox::{SandboxKey, SandboxName};
use sandgate_mesh::telemetry::{self, LogFormat};
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::oneshot;

/// What is logged unless `RUST_LOG` says otherwise: trouble, why a request failed, and that a policy was loaded again.
const LOG_FILTER: &str = "warn,sandgate_mesh::polled=info,sandbox_router::unanswered=info,sandbox_sidecar::audit=info";
/// How long running requests may go on in the gates after the router has drained.
const GATES_BUDGET: Duration = Duration::from_secs(10);

/// Runs the whole mesh until Ctrl-C or SIGTERM and returns when it has drained.
///
/// # Errors
/// What keeps it from starting or from running on, as a sentence for whoever started it.
pub fn start(options: &Options) -> Result<(), Failure> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| LOG_FILTER.into());
    telemetry::init(&filter, LogFormat::Text).map_err(|error| Failure::Configuration(anyhow!("RUST_LOG: {error}")))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the async runtime can't start")?
        .block_on(run(options))
}

async fn run(options: &Options) -> Result<(), Failure> {
    let signals = EndSignals::listen().context("cannot listen for signals")?;
    let apps = Apps::start(options).await?;
    let token = match (&options.token, options.allow_unauthenticated) {
        (_, true) => None,
        (Some(token), false) => Some(token.clone()),
        (None, false) => Some(format!("{:032x}", random()?)),
    };
    let mut config = router_config(options, token.as_deref())?;
    let gates = match options.mesh {
        MeshMode::Required => Some(Gates::start(options, &apps, gates_timeout(&config)).await?),
        MeshMode::Off => None,
    };
    config.sandboxes = places(options, &apps, gates.as_ref());
    config.max_connections = fit_open_files(config.max_connections, "--max-connections behind `--`");
    let router_credentials = gates.as_ref().map(|gates| gates.router_credentials.clone());
    let router = Router::bind(config, router_credentials).map_err(|error| explain_bind_error(error, options.listen))?;
    announce(options, &apps, gates.as_ref(), token.as_deref(), router.http_address())?;
    serve(signals, router, gates, apps).await
}

/// Waits for a signal, then drains; a second one ends at once.
async fn serve(mut signals: EndSignals, router: Router, gates: Option<Gates>, apps: Apps) -> Result<(), Failure> {
    let (stop, stopped) = oneshot::channel::<()>();
    let work = async {
        // An error is the sender's end, and ends the work as well.
        router
            .run(async { drop(stopped.await) })
            .await
            .context("the router failed")?;
        if let Some(gates) = gates
            && !gates.drain.finish(GATES_BUDGET).await
        {
            tracing::warn!("requests were still running in a gate; they are cut off");
        }
        apps.stop().await;
        Ok(())
    };
    let interrupted = async {
        signals.next().await;
        say("draining; Ctrl-C again ends at once\n");
        let _ = stop.send(());
        signals.next().await;
    };
    tokio::select! {
        result = work => result,
        () = interrupted => Err(anyhow!("interrupted before all requests were done").into()),
    }
}

/// Tells how to use what runs, then that it is ready.
fn announce(
    options: &Options,
    apps: &Apps,
    gates: Option<&Gates>,
    token: Option<&str>,
    address: SocketAddr,
) -> Result<(), Failure> {
    let ports = gates.map(|gates| gates.places.as_slice()).unwrap_or_default();
    let scenes = apps.sandboxes.iter().enumerate().map(|(index, sandbox)| SandboxScene {
        name: sandbox.name.clone(),
        ports: sandbox.ports.clone(),
        gate: ports.get(index).map(|place| place.port),
    });
    let router = reachable(address);
    let scene = Scene {
        router,
        token,
        namespace: &options.namespace,
        sandboxes: &scenes.collect::<Vec<_>>(),
        demo: apps.are_demo,
        policy: options.policy.as_deref(),
    };
    say(&scene.instructions());
    let mut output = std::io::stdout();
    writeln!(output, "ready http://{router}")
        .and_then(|()| output.flush())
        .context("cannot write the ready line to standard output")?;
    Ok(())
}

/// Nothing can be done about a closed standard error.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The address under which a client on this machine gets there.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn explain_bind_error(error: anyhow::Error, listen: SocketAddr) -> anyhow::Error {
    // Router flags may name other ports, and --listen moves none of those.
    let ours = format!("can't listen on {listen}: ");
    let taken = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == ErrorKind::AddrInUse && cause.to_string().starts_with(&ours));
    if taken {
        error.context(format!("{listen} is taken; choose another address with --listen"))
    } else {
        error.context("the router can't start")
    }
}

/// The router's configuration, but for the sandboxes' places.
fn router_config(options: &Options, token: Option<&str>) -> Result<Config, Failure> {
    let flags = [
        format!("--http-bind-address={}", options.listen),
        "--metrics-bind-address=127.0.0.1:0".into(),
        "--health-probe-bind-address=127.0.0.1:0".into(),
        format!("--mesh={}", options.mesh),
        format!("--trust-domain={DEFAULT_TRUST_DOMAIN}"),
        "--access-log=false".into(),
        // Nobody watches its readiness.
        "--drain-delay=0s".into(),
        match token {
            Some(token) => format!("--auth-token={token}"),
            None => "--authz-mode=allow-all".into(),
        },
    ];
    let flags = flags.into_iter().map(OsString::from);
    let flags = flags.chain(options.router_flags.iter().cloned()).collect();
    Config::from_args(flags).map_err(|error| Failure::Configuration(anyhow!("the router's configuration: {error}")))
}

/// No gate may cut off what the router still waits for. A shorter limit is the router's to keep.
fn gates_timeout(router: &Config) -> Duration {
    router.proxy_timeout.max(DEFAULT_PROXY_TIMEOUT)
}

/// Where the router finds each sandbox: its gate, or without gates its app.
fn places(options: &Options, apps: &Apps, gates: Option<&Gates>) -> Vec<StaticSandbox> {
    let place = |key, mesh_port, pod_uid| StaticSandbox {
        key,
        ip: Ipv4Addr::LOCALHOST.into(),
        mesh_port,
        pod_uid,
    };
    if let Some(gates) = gates {
        let places = gates.places.iter();
        return places
            .map(|GateAddress { key, uid, port }| place(key.clone(), *port, Some(uid.clone())))
            .collect();
    }
    let key = |name: &SandboxName| SandboxKey {
        namespace: options.namespace.clone(),
        name: name.clone(),
    };
    let sandboxes = apps.sandboxes.iter();
    sandboxes
        .map(|sandbox| place(key(&sandbox.name), MESH_PORT, None))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_paste_is_never_a_wildcard() {
        for (address, expected) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
        ] {
            assert_eq!(reachable(address.parse().unwrap()).to_string(), expected);
        }
    }

    #[test]
    fn a_longer_time_limit_of_the_router_is_the_gates_as_well() {
        for (flags, expected) in [
            (&[][..], 180),
            (&["--", "--proxy-timeout=10m"], 600),
            (&["--", "--proxy-timeout", "5s"], 180),
        ] {
            let args = ["sandgate-local"].iter().chain(flags).map(OsString::from);
            let config = router_config(&Options::read(args).unwrap(), Some("token")).unwrap();
            assert_eq!(gates_timeout(&config).as_secs(), expected, "{flags:?}");
        }
    }
}
