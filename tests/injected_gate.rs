//! What the injector injects, started: each container of its own decision runs as a kubelet would run it, with the real
//! program and no variable of this test's, and enrolled by the control plane that it is told of. Otherwise the two could
//! disagree, and every sandbox would crash. Only the token is elsewhere than in a pod.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "admit_settings.rs"]
mod chosen;

use chosen::{anchors, lockdown, settings};
use rustix::process::geteuid;
use sandbox_injector::anchors::Anchors;
use sandbox_injector::authority::ROOT_NAME;
use sandbox_injector::names::{CONTAINER, LOCKDOWN_CONTAINER, PROGRAM, TOKEN_VOLUME};
use sandbox_injector::offline::documents::Format;
use sandbox_injector::offline::inject::inject;
use sandbox_injector::settings::{LogLevel, Settings};
use sandgate_local::authority::Authority;
use sandgate_mesh::identity::{SandboxIdentity, WorkloadIdentity};
use sandgate_mesh::policy::model::DefaultPolicy;
use sandgate_mesh::sandbox::SandboxKey;
use sandgate_tests::control::ControlPlane;
use sandgate_tests::folder::{Folder, Replacing, put};
use sandgate_tests::processes::{Process, Programs, command, router_flags, until_ready};
use sandgate_tests::{PATIENCE, POD_UID, RecordingApp, TOKEN, default_policy, kubelet, programs, send, status};
use serde_json::{Value, json};
use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

const PROGRAMS: Programs = programs!();
const NAMESPACE: &str = "team-a";

/// A sandbox's pod as its controller makes it.
fn sandbox(app_port: u16, app: &Value) -> Value {
    let ports = json!([{"name": "http", "containerPort": app_port}]);
    let mut app = app.clone();
    app["name"] = "app".into();
    app["image"] = "app.example/app:1".into();
    app["ports"] = ports;
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "alpha-1", "labels": {"agents.x-k8s.io/sandbox-name-hash": "8c736521"}},
        "spec": {"runtimeClassName": "kata", "containers": [app]},
    })
}

/// The pod that the injector makes of this one, as the API server stores it.
fn admitted(settings: &Settings, anchors: &Anchors, pod: &Value) -> Value {
    let outcome = inject(settings, anchors, NAMESPACE, &pod.to_string(), Format::Json).unwrap();
    assert!(outcome.admitted, "{:?}", outcome.notes);
    let mut pod: Value = serde_json::from_str(&outcome.output).unwrap();
    let metadata = &mut pod["metadata"];
    if let Some(prefix) = metadata["generateName"].as_str() {
        metadata["name"] = format!("{prefix}x7k2p").into();
    }
    metadata["namespace"] = NAMESPACE.into();
    metadata["uid"] = POD_UID.into();
    pod
}

/// One of the gate's containers.
fn container(pod: &Value, name: &str) -> Value {
    let containers = pod["spec"]["initContainers"].as_array().unwrap();
    let found = containers.iter().find(|container| container["name"] == name).unwrap();
    // What that is in the image, tests/images checks.
    assert_eq!(found["command"], json!([PROGRAM]));
    found.clone()
}

/// A gate as injected.
struct Gate {
    process: Process,
    pod: Value,
    container: Value,
    folder: Folder,
    authority: Authority,
    identity: SandboxIdentity,
    control: WorkloadIdentity,
    /// The ports of an injected gate are fixed, so on one machine there can only be one at a time. Dropped last.
    _ports: File,
}

impl Gate {
    /// A gate whose container has started.
    async fn start(settings: &Settings, pod: &Value) -> Self {
        let ports = File::open(PROGRAMS.sidecar).unwrap();
        ports.lock().unwrap();
        let authority = Authority::new(ROOT_NAME).unwrap();
        let pod = admitted(
            settings,
            &Anchors::from_pem(authority.root_pem().as_bytes()).unwrap(),
            pod,
        );
        let container = container(&pod, CONTAINER);
        let folder = Folder::new();
        folder.swap(TOKEN_VOLUME, &[("token", "a.token.of-its-pod")]);
        let token = folder.path(TOKEN_VOLUME).join("token");
        let mut command = kubelet::command(PROGRAMS.sidecar, &pod, &container, &folder);
        command.arg(format!("--token-file={}", token.display()));
        let process = Process::start(command);
        let identity = SandboxIdentity {
            trust_domain: settings.trust_domain.clone(),
            sandbox: SandboxKey {
                namespace: NAMESPACE.parse().unwrap(),
                name: pod["metadata"]["name"].as_str().unwrap().parse().unwrap(),
            },
            pod_uid: POD_UID.parse().unwrap(),
        };
        let mut gate = Self {
            process,
            pod,
            container,
            folder,
            authority,
            identity,
            control: settings.control_identity.clone(),
            _ports: ports,
        };
        gate.holds_its_ports().await;
        gate
    }

    /// The kubelet's hook ends well, and then whoever is started next finds the ports taken.
    async fn holds_its_ports(&mut self) {
        let hook = kubelet::post_start(PROGRAMS.sidecar, &self.pod, &self.container, &self.folder);
        let left = Process::start(hook).ended().await;
        assert_eq!(left.code, Some(0), "{left:?} {}", self.process.stderr());
        for port in self.container["ports"].as_array().unwrap() {
            let port = port["containerPort"].as_u64().unwrap().try_into().unwrap();
            let taken = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port)));
            assert_eq!(taken.unwrap_err().kind(), ErrorKind::AddrInUse, "{port}");
        }
        assert_eq!(self.process.left().await.map(|left| left.code), None);
    }

    /// Waits until the kubelet gets this answer to one of the gate's own probes.
    async fn until(&mut self, probe: &str, expected: u16) {
        let asking = async {
            while kubelet::probe(&self.container[probe]).await != Some(expected) {
                if let Some(left) = self.process.left().await {
                    panic!("the injected gate ended: {left:?}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let answered = tokio::time::timeout(PATIENCE, asking).await;
        answered.unwrap_or_else(|_| panic!("{probe} never got {expected}: {}", self.process.stderr()));
    }

    /// Where requests and the control plane come.
    fn mesh(&self) -> SocketAddr {
        let mut ports = self.container["ports"].as_array().unwrap().iter();
        let mesh = ports.find(|port| port["name"] == "sandgate-mesh").unwrap();
        let mesh = mesh["containerPort"].as_u64().unwrap();
        SocketAddr::from(([127, 0, 0, 1], mesh.try_into().unwrap()))
    }

    /// Brings an identity and a policy as the control plane does. The gate wasn't ready before and is then.
    async fn enrol(&mut self, app_port: u16) {
        let unready = kubelet::probe(&self.container["readinessProbe"]).await;
        assert_eq!(unready, Some(503), "{}", self.process.stderr());
        let control = ControlPlane::known_as(&self.control, &self.authority, self.mesh(), self.identity.clone());
        control.enrol(&self.authority, 1).await;
        control
            .push(default_policy(DefaultPolicy::Authenticated, vec![app_port]))
            .await;
        self.until("readinessProbe", 200).await;
    }

    /// A request gets from a client through this router and the gate to the app.
    async fn serves(&self, identity: &WorkloadIdentity, app: &RecordingApp) {
        let issued = self.authority.router(identity).unwrap();
        let root = self.authority.root_pem();
        put(&self.folder, "router", Replacing::AtOnce, &issued, root);
        let mesh = self.mesh();
        let SandboxKey { namespace, name } = &self.identity.sandbox;
        let mut flags = router_flags(&self.folder, mesh);
        flags.extend([
            format!("--sandbox-endpoint={namespace}/{name}={mesh},uid={POD_UID}"),
            format!("--trust-domain={}", self.identity.trust_domain),
        ]);
        let mut command = command(PROGRAMS.router, flags);
        command.env("ROUTER_AUTH_TOKEN", TOKEN);
        let mut router = Process::start(command);
        let addresses = router.listens(["http", "health"]).await;
        let [http, health] = addresses.map(|address| address.parse().unwrap());
        until_ready(health, (200, "ok")).await;
        let head = format!(
            "GET /hello HTTP/1.1\r\nHost: sandbox.example\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: {name}\r\n\
             X-Sandbox-Namespace: {namespace}\r\nX-Sandbox-Port: {}\r\nConnection: close\r\n\r\n",
            app.port()
        );
        let answer = send(http, head).await;
        assert_eq!(
            status(&answer),
            200,
            "{answer}{}{}",
            router.stderr(),
            self.process.stderr()
        );
        let head = app.take_only_request().head;
        assert!(head.starts_with("GET /hello HTTP/1.1\r\n"), "{head}");
    }
}

/// All of it: a gate that starts, becomes ready and serves each of its routers.
async fn serving(settings: &Settings, pod: &Value, app: &RecordingApp) -> Gate {
    let mut gate = Gate::start(settings, pod).await;
    gate.enrol(app.port()).await;
    for router in &settings.router_identities {
        gate.serves(router, app).await;
    }
    gate
}

#[tokio::test]
async fn an_injected_gate_starts_becomes_ready_and_serves() {
    let app = RecordingApp::polite().await;
    serving(&settings(), &sandbox(app.port(), &json!({})), &app).await;
    // As pods of a warm pool: nobody knows the name yet when they are admitted.
    let mut pod = sandbox(app.port(), &json!({}));
    pod["metadata"] = json!({"generateName": "warm-", "labels": pod["metadata"]["labels"]});
    serving(&settings(), &pod, &app).await;
}

#[tokio::test]
async fn under_lockdown_it_runs_the_probes_that_the_app_declared() {
    let app = RecordingApp::polite().await;
    let probes = json!({
        // Kubernetes would expand the one and shorten the other, if it could see them.
        "readinessProbe": {"httpGet": {"path": "/ready?of=$(SANDGATE_SANDBOX)&cost=$$", "port": "http"}},
        "livenessProbe": {"tcpSocket": {"port": app.port()}},
        "lifecycle": {"preStop": {"httpGet": {"path": "/stop", "port": app.port()}}},
    });
    let settings = lockdown(&["kata"]);
    serving(&settings, &sandbox(app.port(), &json!({})), &app).await;
    let gate = serving(&settings, &sandbox(app.port(), &probes), &app).await;
    app.forget();
    let declared = &gate.pod["spec"]["containers"][0];
    for (handler, asked) in [
        (
            &declared["readinessProbe"],
            Some("GET /ready?of=$(SANDGATE_SANDBOX)&cost=$$ "),
        ),
        (&declared["livenessProbe"], None),
        (&declared["lifecycle"]["preStop"], Some("GET /stop ")),
    ] {
        assert_eq!(kubelet::probe(handler).await, Some(200), "{handler}");
        let heads = app.heads();
        let (head, expected) = (heads.first(), asked.is_some());
        assert_eq!(head.is_some(), expected, "{handler}: {heads:?}");
        assert!(
            head.is_none_or(|head| head.starts_with(asked.unwrap())),
            "{handler}: {heads:?}"
        );
        app.forget();
    }
}

#[tokio::test]
async fn it_does_so_with_whatever_its_author_may_annotate() {
    let app = RecordingApp::polite().await;
    for (level, says_that_it_listens) in [
        (LogLevel::Error, false),
        (LogLevel::Warn, false),
        (LogLevel::Info, true),
        (LogLevel::Debug, true),
        (LogLevel::Trace, true),
    ] {
        let mut pod = sandbox(app.port(), &json!({}));
        pod["metadata"]["annotations"] = json!({
            "sandgate.dev/log-level": level.as_str(),
            "sandgate.dev/cpu-request": "50m",
            "sandgate.dev/cpu-limit": "1500m",
            "sandgate.dev/memory-request": "32Mi",
            "sandgate.dev/memory-limit": "128Mi",
        });
        let gate = serving(&settings(), &pod, &app).await;
        let log = gate.process.stderr();
        assert_eq!(
            log.contains("\"message\":\"listening\""),
            says_that_it_listens,
            "{level}: {log}"
        );
    }
}

#[tokio::test]
async fn it_does_so_in_any_trust_domain_and_for_any_routers() {
    let app = RecordingApp::polite().await;
    let long = "a".repeat(63);
    for (trust_domain, accounts) in [
        ("prod_1.example--x", vec!["routers/blue", "routers/green"]),
        ("7", vec!["agent-sandbox-system/sandbox-router"]),
        (&"d".repeat(255), vec![&format!("{long}/{long}.{long}.b-1")]),
    ] {
        let router = |account: &str| {
            let (namespace, account) = account.split_once('/').unwrap();
            let identity = format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}");
            identity.parse().unwrap()
        };
        let settings = Settings {
            trust_domain: trust_domain.parse().unwrap(),
            router_identities: accounts.into_iter().map(router).collect(),
            control_identity: router("control/plane"),
            ..settings()
        };
        serving(&settings, &sandbox(app.port(), &json!({})), &app).await;
    }
}

/// What listens on the gate's ports is an app's, before the gate has started or after it crashed: whoever waits for the gate
/// isn't told that it is there.
#[tokio::test]
async fn an_app_on_the_gates_ports_passes_for_no_gate() {
    let settings = settings();
    let mut gate = Gate::start(&settings, &sandbox(8888, &json!({}))).await;
    gate.process.kill().await;
    let listens = |port: &Value| {
        let port: u16 = port["containerPort"].as_u64().unwrap().try_into().unwrap();
        TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).unwrap()
    };
    let ports = gate.container["ports"].as_array().unwrap().clone();
    let _squatter: Vec<_> = ports.iter().map(listens).collect();
    let hook = || {
        let mut hook = kubelet::post_start(PROGRAMS.sidecar, &gate.pod, &gate.container, &gate.folder);
        hook.arg("--timeout=200ms");
        hook
    };
    let left = Process::start(hook()).ended().await;
    assert_eq!(left.code, Some(1), "{left:?}");
    assert!(left.stderr.contains("has bound its ports within 200ms"), "{left:?}");
    // Nor while a gate tries, and fails.
    let token = gate.folder.path(TOKEN_VOLUME).join("token");
    let mut command = kubelet::command(PROGRAMS.sidecar, &gate.pod, &gate.container, &gate.folder);
    command.arg(format!("--token-file={}", token.display()));
    let (again, left) = (Process::start(command), Process::start(hook()).ended().await);
    assert_eq!(left.code, Some(1), "{left:?}");
    let again = again.ended().await;
    assert!(again.code == Some(1) && again.stderr.contains("in use"), "{again:?}");
}

/// A command by way of other programs, the last of which starts it.
fn through(programs: &[&str], last: &Command) -> Command {
    let mut command = command(programs[0], &programs[1..]);
    command.arg(last.get_program()).args(last.get_args());
    command
}

#[tokio::test]
async fn the_lockdown_containers_arguments_are_the_programs() {
    let pod = admitted(&lockdown(&["kata"]), &anchors(), &sandbox(8888, &json!({})));
    let container = container(&pod, LOCKDOWN_CONTAINER);
    assert_eq!(container["env"], Value::Null);
    let folder = Folder::new();
    let injected = kubelet::command(PROGRAMS.sidecar, &pod, &container, &folder);
    // It must not close the network of this machine: without the capability it reads its arguments, asks the kernel, and
    // is refused.
    let powerless = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-all"];
    let way = if geteuid().is_root() { &powerless[..] } else { &["env"] };
    let left = Process::start(through(way, &injected)).ended().await;
    assert_eq!(left.code, Some(1), "{left:?}");
    assert!(
        left.stderr.contains("needs user 0 and the capability NET_ADMIN"),
        "{left:?}"
    );

    // In a network of its own, where this user may make one, with what its securityContext gives it and no more.
    let network = ["unshare", "--net"];
    let probe = Process::start(through(&network, &Command::new("true"))).ended().await;
    if probe.code != Some(0) {
        return;
    }
    let capabilities = &container["securityContext"]["capabilities"];
    assert_eq!(capabilities["drop"], json!(["ALL"]));
    let added = capabilities["add"].as_array().unwrap().iter();
    let added: Vec<_> = added
        .map(|name| format!(",+{}", name.as_str().unwrap().to_lowercase()))
        .collect();
    let bounds = format!("--bounding-set=-all{}", added.concat());
    let way = [&network[..], &["setpriv", "--no-new-privs", &bounds]].concat();
    let left = Process::start(through(&way, &injected)).ended().await;
    // Some kernels can't, and it says so.
    let done = left.code == Some(0) && left.stderr.contains("\"mesh\":14443,\"health\":14480");
    assert!(done || left.stderr.contains("has no nf_tables"), "{left:?}");
}
