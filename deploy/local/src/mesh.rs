//! Starts everything in one process and ends it in order: the router first, then the gates, then the demo apps.

use crate::authority::Authority;
use crate::cli::{Failure, MeshMode, Options, SandboxScene, Scene};
use crate::demo::{self, DemoFolder};
use anyhow::{Context, anyhow};
use sandbox_router::Router;
use sandbox_router::config::Config;
use sandbox_sidecar::authorize::OwnPorts;
use sandbox_sidecar::{Caps, Gate, Settings};
use sandgate_mesh::contract::{DEFAULT_APP_PORT, DEFAULT_PROXY_TIMEOUT, DEFAULT_TRUST_DOMAIN};
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::drain::{self, Drain};
use sandgate_mesh::identity::{SandboxIdentity, TrustDomain, WorkloadIdentity};
use sandgate_mesh::listener::fit_open_files;
use sandgate_mesh::policy::{PolicySnapshot, model};
use sandgate_mesh::polled::Poller;
use sandgate_mesh::sandbox::{AppPort, PodUid, SandboxKey, SandboxName};
use sandgate_mesh::telemetry::{self, LogFormat};
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Whom the gates let in.
const ROUTER: &str = "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router";
/// Who presents the token, as policies name it.
const TOKEN_HOLDER: &str = "static:default";
/// What is logged unless `RUST_LOG` says otherwise: trouble, and that a policy was loaded again.
const LOG_FILTER: &str = "warn,sandgate_mesh::polled=info";
/// How long running requests may go on in the gates after the router has drained.
const GATES_BUDGET: Duration = Duration::from_secs(10);
/// A leaf is renewed at this age, which is half its life.
const RENEW_AFTER: Duration = Duration::from_secs(12 * 60 * 60);
/// How often that age is compared with the clock: one long timer would stand still while the machine sleeps.
const RENEW_CHECK: Duration = Duration::from_secs(60);
/// How often the policy file is read.
const POLICY_PERIOD: Duration = Duration::from_secs(1);
/// How long an app may take to accept the connection that shows it is there.
const APP_TIMEOUT: Duration = Duration::from_secs(2);

type Credentials = watch::Receiver<Option<Arc<MeshCredentials>>>;
type Policy = watch::Receiver<Option<Arc<PolicySnapshot>>>;

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
    let signals = Signals::listen()?;
    let apps = Apps::start(options).await?;
    let token = match (&options.token, options.allow_unauthenticated) {
        (_, true) => None,
        (Some(token), false) => Some(token.clone()),
        (None, false) => Some(format!("{:032x}", random()?)),
    };
    let gates = match options.mesh {
        MeshMode::Required => Some(Gates::start(options, &apps).await?),
        MeshMode::Off => None,
    };
    let flags = router_flags(options, &apps, gates.as_ref(), token.as_deref());
    let mut config = Config::from_args(flags)
        .map_err(|error| Failure::Configuration(anyhow!("the router's configuration: {error}")))?;
    config.max_connections = fit_open_files(config.max_connections);
    let router_credentials = gates.as_ref().map(|gates| gates.router_credentials.clone());
    let router = Router::bind(config, router_credentials).map_err(|error| explain_bind_error(error, options.listen))?;
    announce(options, &apps, gates.as_ref(), token.as_deref(), router.http_address())?;
    serve(signals, router, gates, apps).await
}

/// Waits for a signal, then drains; a second one ends at once.
async fn serve(mut signals: Signals, router: Router, gates: Option<Gates>, apps: Apps) -> Result<(), Failure> {
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

fn router_flags(options: &Options, apps: &Apps, gates: Option<&Gates>, token: Option<&str>) -> Vec<OsString> {
    let mut flags = vec![
        format!("--http-bind-address={}", options.listen),
        "--metrics-bind-address=127.0.0.1:0".into(),
        "--health-probe-bind-address=127.0.0.1:0".into(),
        format!("--mesh={}", options.mesh),
        format!("--trust-domain={DEFAULT_TRUST_DOMAIN}"),
        "--access-log=false".into(),
    ];
    flags.push(match token {
        Some(token) => format!("--auth-token={token}"),
        None => "--authz-mode=allow-all".into(),
    });
    match gates {
        Some(gates) => flags.extend(
            gates
                .places
                .iter()
                .map(|Place { key, uid, port }| format!("--sandbox-endpoint={key}=127.0.0.1:{port},uid={uid}")),
        ),
        None => flags.extend(
            apps.sandboxes
                .iter()
                .map(|sandbox| format!("--sandbox-endpoint={}/{}=127.0.0.1", options.namespace, sandbox.name)),
        ),
    }
    let flags = flags.into_iter().map(OsString::from);
    flags.chain(options.router_flags.iter().cloned()).collect()
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A sandbox, before it has a gate.
struct Sandbox {
    name: SandboxName,
    ports: Vec<AppPort>,
    /// What its gate enforces unless there is a policy file.
    policy: model::Snapshot,
}

/// The apps: ours, or those that run already.
struct Apps {
    sandboxes: Vec<Sandbox>,
    are_demo: bool,
    stop: watch::Sender<bool>,
    running: JoinSet<()>,
}

impl Apps {
    async fn start(options: &Options) -> anyhow::Result<Self> {
        let mut apps = Self {
            sandboxes: Vec::new(),
            are_demo: options.sandboxes.is_empty(),
            stop: watch::channel(false).0,
            running: JoinSet::new(),
        };
        if apps.are_demo {
            let open = options.allow_unauthenticated;
            let methods = ["GET", "HEAD", "POST", "PUT"];
            apps.demo("alpha", DEFAULT_APP_PORT, |port| rule(open, port, &methods, None))
                .await?;
            let paths = Some("/public/*");
            apps.demo("beta", DEFAULT_APP_PORT + 1, |port| rule(open, port, &["GET"], paths))
                .await?;
        }
        for spec in &options.sandboxes {
            for port in &spec.ports {
                check_app(&spec.name, *port, options.mesh).await?;
            }
            apps.sandboxes.push(Sandbox {
                name: spec.name.clone(),
                ports: spec.ports.clone(),
                policy: only_ports(options.allow_unauthenticated, &spec.ports),
            });
        }
        Ok(apps)
    }

    async fn demo(
        &mut self,
        name: &'static str,
        port: u16,
        rule: impl FnOnce(u16) -> model::Rule,
    ) -> anyhow::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| {
            format!(
                "the demo app of sandbox {name} can't listen on 127.0.0.1:{port}; if another program has that port, \
                 end it, or put the gate in front of it with --sandbox NAME={port}"
            )
        })?;
        let files = DemoFolder::create().context("the demo app's temporary folder can't be made")?;
        let mut stopped = self.stop.subscribe();
        self.running.spawn(async move {
            // An error means that nobody is left to stop it: the same.
            let shutdown = async { drop(stopped.wait_for(|stopped| *stopped).await) };
            demo::serve(name, listener, files, shutdown).await;
        });
        let policy = model::Policy {
            name: format!("demo-{name}"),
            rules: vec![rule(port)],
        };
        self.sandboxes.push(Sandbox {
            name: name.parse()?,
            ports: AppPort::new(port).into_iter().collect(),
            policy: snapshot(model::DefaultPolicy::Deny, vec![port], vec![policy]),
        });
        Ok(())
    }

    /// Ends the demo apps, which remove their folders.
    async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.running.join_next().await.is_some() {}
    }
}

/// Looks where the gate will look: on 127.0.0.1, then on `::1`. Without gates the router only has the former.
async fn check_app(name: &SandboxName, port: AppPort, mesh: MeshMode) -> anyhow::Result<()> {
    let connect = |ip: IpAddr| async move {
        let connecting = TcpStream::connect((ip, port.get()));
        matches!(tokio::time::timeout(APP_TIMEOUT, connecting).await, Ok(Ok(_)))
    };
    let found = connect(Ipv4Addr::LOCALHOST.into()).await
        || (mesh == MeshMode::Required && connect(Ipv6Addr::LOCALHOST.into()).await);
    anyhow::ensure!(
        found,
        "nothing answers on 127.0.0.1:{port}, where the app of sandbox {name} should listen; start the app first, or \
         correct --sandbox {name}=…"
    );
    Ok(())
}

/// Token holders, or everybody if no token is needed, may do this on `port`.
fn rule(open: bool, port: u16, methods: &[&str], path: Option<&str>) -> model::Rule {
    model::Rule {
        from: vec![model::Source {
            users: (!open).then(|| vec![TOKEN_HOLDER.into()]),
            anonymous: open,
            ..model::Source::default()
        }],
        to: vec![model::Target {
            ports: vec![port],
            methods: Some(methods.iter().copied().map(String::from).collect()),
            paths: path.map(|path| vec![path.into()]),
        }],
    }
}

/// Token holders, or everybody if no token is needed, may do anything on these ports and nothing elsewhere.
fn only_ports(open: bool, ports: &[AppPort]) -> model::Snapshot {
    let default = if open {
        model::DefaultPolicy::Anonymous
    } else {
        model::DefaultPolicy::Authenticated
    };
    snapshot(default, ports.iter().map(|port| port.get()).collect(), Vec::new())
}

fn snapshot(default_policy: model::DefaultPolicy, ports: Vec<u16>, policies: Vec<model::Policy>) -> model::Snapshot {
    model::Snapshot {
        version: model::VERSION,
        generation: model::Generation { epoch: 1, counter: 1 },
        default_policy,
        ports,
        policies,
    }
}

/// Which policy each gate enforces.
enum Policies {
    /// One file for all.
    File(Policy),
    /// Each sandbox has its own. The senders, kept because a channel ends with its sender.
    Fixed(Vec<watch::Sender<Option<Arc<PolicySnapshot>>>>),
}

impl Policies {
    fn load(file: Option<&Path>) -> Result<Self, Failure> {
        let Some(file) = file else {
            return Ok(Self::Fixed(Vec::new()));
        };
        let parse = |files: Vec<Vec<u8>>| PolicySnapshot::parse(files.first().map_or(&[], Vec::as_slice));
        let (poller, policy) = Poller::new("policy file", vec![file.to_owned()], parse);
        let mut poller = poller.replace_if(PolicySnapshot::may_give_way_to);
        poller
            .load()
            .map_err(|error| Failure::Configuration(anyhow!("--policy: {error}")))?;
        tokio::spawn(poller.run(POLICY_PERIOD));
        Ok(Self::File(policy))
    }

    fn of(&mut self, sandbox: &Sandbox) -> Result<Policy, Failure> {
        match self {
            Self::File(policy) => Ok(policy.clone()),
            Self::Fixed(senders) => {
                let compile =
                    || PolicySnapshot::parse(&serde_json::to_vec(&sandbox.policy)?).map_err(anyhow::Error::from);
                let name = &sandbox.name;
                let policy = compile().with_context(|| format!("the policy made for sandbox {name} is not valid"))?;
                let (sender, receiver) = watch::channel(Some(Arc::new(policy)));
                senders.push(sender);
                Ok(receiver)
            }
        }
    }
}

/// Where the router finds a gate, and whom it must meet there.
struct Place {
    key: SandboxKey,
    uid: PodUid,
    port: u16,
}

/// The gates and what they live on.
struct Gates {
    places: Vec<Place>,
    router_credentials: Credentials,
    drain: Drain,
    _policies: Policies,
}

impl Gates {
    /// Starts one gate for each app, each with an identity of its own.
    async fn start(options: &Options, apps: &Apps) -> Result<Self, Failure> {
        let mut policies = Policies::load(options.policy.as_deref())?;
        let trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN.parse().context("the trust domain")?;
        let router: WorkloadIdentity = ROUTER.parse().context("the router's identity")?;
        let mut issuer = Issuer::new(trust_domain.clone())?;
        let (drain, draining) = drain::channel();
        let mut places = Vec::new();
        for sandbox in &apps.sandboxes {
            let key = SandboxKey {
                namespace: options.namespace.clone(),
                name: sandbox.name.clone(),
            };
            let uid = pod_uid()?;
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
            let listener = listener.with_context(|| format!("the gate of sandbox {} can't listen", sandbox.name))?;
            let port = listener.local_addr().context("a gate's own address")?.port();
            let identity = SandboxIdentity {
                trust_domain: trust_domain.clone(),
                sandbox: key.clone(),
                pod_uid: uid.clone(),
            };
            let settings = Settings {
                sandbox: key.clone(),
                pod_uid: uid.clone(),
                routers: vec![router.clone()],
                // No health port: 0 is no app's.
                own_ports: OwnPorts { mesh: port, health: 0 },
                caps: Caps::default(),
                framing: Arc::default(),
                proxy_timeout: DEFAULT_PROXY_TIMEOUT,
                audit: false,
            };
            let credentials = issuer.credentials(Subject::Sidecar(identity))?;
            let gate = Gate::new(settings, credentials, policies.of(sandbox)?)
                .with_context(|| format!("the gate of sandbox {} can't start", sandbox.name))?;
            tokio::spawn(gate.serve(listener, draining.clone()));
            places.push(Place { key, uid, port });
        }
        let router_credentials = issuer.credentials(Subject::Router(router))?;
        tokio::spawn(issuer.renew());
        Ok(Self {
            places,
            router_credentials,
            drain,
            _policies: policies,
        })
    }
}

/// Whom a leaf is for.
enum Subject {
    Sidecar(SandboxIdentity),
    Router(WorkloadIdentity),
}

/// A subject, when its leaf was issued, and where it is published.
struct Leaf {
    subject: Subject,
    issued: SystemTime,
    credentials: watch::Sender<Option<Arc<MeshCredentials>>>,
}

/// The certificate authority, and everybody it keeps in certificates.
struct Issuer {
    authority: Authority,
    trust_domain: TrustDomain,
    leafs: Vec<Leaf>,
}

impl Issuer {
    fn new(trust_domain: TrustDomain) -> anyhow::Result<Self> {
        Ok(Self {
            authority: Authority::new("sandgate-local").context("the certificate authority can't be made")?,
            trust_domain,
            leafs: Vec::new(),
        })
    }

    fn credentials(&mut self, subject: Subject) -> anyhow::Result<Credentials> {
        let (sender, receiver) = watch::channel(Some(Arc::new(self.issue(&subject)?)));
        self.leafs.push(Leaf {
            subject,
            issued: SystemTime::now(),
            credentials: sender,
        });
        Ok(receiver)
    }

    fn issue(&self, subject: &Subject) -> anyhow::Result<MeshCredentials> {
        let (role, issued) = match subject {
            Subject::Sidecar(identity) => (Role::Sidecar, self.authority.sidecar(identity)),
            Subject::Router(identity) => (Role::Router, self.authority.router(identity)),
        };
        let issued = issued.context("a certificate can't be issued")?;
        let bundle = self.authority.root_pem().as_bytes();
        let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        MeshCredentials::from_pem(role, chain, key, bundle, &self.trust_domain)
            .context("an issued certificate is not usable")
    }

    /// Renews every leaf at half its life, for as long as the process runs.
    async fn renew(mut self) {
        loop {
            tokio::time::sleep(RENEW_CHECK).await;
            self.renew_due(SystemTime::now());
        }
    }

    fn renew_due(&mut self, now: SystemTime) {
        let mut leafs = std::mem::take(&mut self.leafs);
        // A clock that was set back also makes a leaf due: it may not be valid yet.
        let due = |leaf: &&mut Leaf| now.duration_since(leaf.issued).map_or(true, |age| age >= RENEW_AFTER);
        for leaf in leafs.iter_mut().filter(due) {
            match self.issue(&leaf.subject) {
                Ok(credentials) => {
                    leaf.issued = now;
                    leaf.credentials.send_replace(Some(Arc::new(credentials)));
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "a certificate could not be renewed"),
            }
        }
        self.leafs = leafs;
    }
}

fn random() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("cannot read randomness from /dev/urandom")?;
    Ok(u128::from_be_bytes(bytes))
}

/// A random UUID (version 4), as the API server gives to a pod.
fn pod_uid() -> anyhow::Result<PodUid> {
    uuid(random()?).parse().context("a random pod UID")
}

fn uuid(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0b11 << 62) | (4 << 76) | (0b10 << 62);
    let digits = format!("{bits:032x}");
    let mut text = String::with_capacity(36);
    for (index, digit) in digits.chars().enumerate() {
        if matches!(index, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use sandgate_mesh::caller::Caller;
    use sandgate_mesh::policy::Verdict;

    fn allows(snapshot: &model::Snapshot, port: u16, method: &Method, path: &str) -> bool {
        let snapshot = PolicySnapshot::parse(&serde_json::to_vec(snapshot).unwrap()).unwrap();
        let port = AppPort::new(port).unwrap();
        matches!(
            snapshot.evaluate(&Caller::Anonymous, port, method, path),
            Verdict::Allowed(_)
        )
    }

    fn demo(rule: model::Rule) -> model::Snapshot {
        let policy = model::Policy {
            name: "demo".into(),
            rules: vec![rule],
        };
        snapshot(model::DefaultPolicy::Deny, vec![8889], vec![policy])
    }

    #[test]
    fn the_demo_policies_allow_what_their_commands_say() {
        let open = demo(rule(true, 8889, &["GET"], Some("/public/*")));
        assert!(allows(&open, 8889, &Method::GET, "/public/page"));
        assert!(!allows(&open, 8889, &Method::GET, "/private"));
        assert!(!allows(&open, 8889, &Method::DELETE, "/public/page"));
        let closed = demo(rule(false, 8889, &["GET"], None));
        assert!(!allows(&closed, 8889, &Method::GET, "/public/page"));
    }

    #[test]
    fn a_gated_app_is_open_on_exactly_its_ports() {
        let ports = [3000, 3001].map(|port| AppPort::new(port).unwrap());
        assert!(allows(&only_ports(true, &ports), 3001, &Method::DELETE, "/"));
        assert!(!allows(&only_ports(true, &ports), 3002, &Method::GET, "/"));
        assert!(!allows(&only_ports(false, &ports), 3000, &Method::GET, "/"));
    }

    #[test]
    fn uids_look_like_those_of_pods() {
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_ne!(pod_uid().unwrap(), pod_uid().unwrap());
    }

    #[test]
    fn leafs_are_renewed_at_half_their_life_and_not_before() {
        let mut issuer = Issuer::new(DEFAULT_TRUST_DOMAIN.parse().unwrap()).unwrap();
        let mut credentials = issuer.credentials(Subject::Router(ROUTER.parse().unwrap())).unwrap();
        credentials.mark_unchanged();
        let now = SystemTime::now();
        issuer.renew_due(now + RENEW_AFTER / 2);
        assert!(!credentials.has_changed().unwrap());
        issuer.renew_due(now + RENEW_AFTER);
        assert!(credentials.has_changed().unwrap());
        credentials.mark_unchanged();
        issuer.renew_due(now);
        assert!(credentials.has_changed().unwrap(), "the clock was set back");
    }

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
}
