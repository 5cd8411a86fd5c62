//! The gates of the fleet: the gate's own code, all in one process, each with an address, a key and a state folder of its
//! own.

use super::pods::Pod;
use sandbox_sidecar::authorize::OwnPorts;
use sandbox_sidecar::{Caps, Gate, Settings};
use sandgate_mesh::admin::Readiness;
use sandgate_mesh::control::Enrollee;
use sandgate_mesh::control::server::{Control, ControlSettings, Identity};
use sandgate_mesh::credentials::roots_from_pem;
use sandgate_mesh::drain::{self, DrainState, Draining};
use sandgate_mesh::framing::Limits;
use sandgate_mesh::identity::SandboxIdentity;
use sandgate_mesh::listener::{bind, fit_open_files};
use sandgate_mesh::sandbox::SandboxKey;
use sandgate_tests::folder::Folder;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The gate's ports.
const PORTS: OwnPorts = OwnPorts {
    mesh: 14443,
    health: 14480,
};

/// A running process of gates. It is killed when dropped.
pub(crate) struct Gates {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
    // Removed with it.
    _folder: Folder,
}

impl Gates {
    /// Starts them, and returns when all of them listen.
    pub(crate) fn start(pods: &[Pod]) -> Self {
        let folder = Folder::new();
        let described: Vec<_> = pods.iter().map(described).collect();
        let file = folder.path("gates.json");
        std::fs::write(&file, Value::from(described).to_string()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["enrolment", "--be"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut gates = Self {
            child,
            said,
            _folder: folder,
        };
        assert_eq!(gates.line(), "listening");
        gates
    }

    /// How many of them are ready, and ends them.
    pub(crate) fn ready(mut self) -> usize {
        drop(self.child.stdin.take());
        self.line().parse().unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a gate is told by its pod.
fn described(pod: &Pod) -> Value {
    let containers = pod.stored["spec"]["initContainers"]
        .as_array()
        .expect("a pod with a gate");
    let gate = containers.iter().find(|container| container["name"] == "sandgate");
    let gate = gate.expect("a pod with a gate");
    let anchors = gate["env"].as_array().unwrap().iter();
    let anchors = anchors.filter(|variable| variable["name"] == "SANDGATE_TRUST_ANCHORS");
    let flags = |name: &str| -> Vec<&str> {
        let flags = gate["args"].as_array().unwrap().iter();
        flags.filter_map(|flag| flag.as_str()?.strip_prefix(name)).collect()
    };
    let metadata = &pod.stored["metadata"];
    json!({
        "namespace": metadata["namespace"], "sandbox": metadata["name"], "uid": metadata["uid"],
        "routers": flags("--router-identity="), "control": flags("--control-identity="),
        "anchors": anchors.map(|variable| &variable["value"]).next().expect("anchors"),
        "token": pod.token, "address": pod.address,
    })
}

/// Is the gates of a file: says when they listen, and when standard input ends how many are ready.
pub(crate) async fn be(file: &Path) {
    let gates: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    // A listener and a few connections each.
    fit_open_files(4 * gates.len(), "these gates take otherwise");
    let (drain, draining) = drain::channel();
    let folder = file.parent().expect("a folder");
    let gates: Vec<_> = gates
        .iter()
        .map(|told| start(told, folder, drain.state(), draining.clone()))
        .collect();
    say("listening");
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let _ = ended.await;
    let ready = gates.iter().filter(|ready| ready().is_ok()).count();
    say(&ready.to_string());
}

fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().unwrap();
}

/// Starts a gate.
fn start(told: &Value, folder: &Path, drained: DrainState, draining: Draining) -> Readiness {
    let text = |name: &str| told[name].as_str().unwrap_or_else(|| panic!("{name} of {told}"));
    let own = SandboxIdentity {
        trust_domain: "cluster.local".parse().unwrap(),
        sandbox: SandboxKey {
            namespace: text("namespace").parse().unwrap(),
            name: text("sandbox").parse().unwrap(),
        },
        pod_uid: text("uid").parse().unwrap(),
    };
    let own_folder: PathBuf = folder.join(text("uid"));
    std::fs::create_dir(&own_folder).unwrap();
    let token_file = own_folder.join("token");
    std::fs::write(&token_file, text("token")).unwrap();
    let identities = |name: &str| {
        let all = told[name].as_array().unwrap().iter();
        all.map(|identity| identity.as_str().unwrap().parse().unwrap())
            .collect()
    };
    let control = ControlSettings {
        control_planes: identities("control"),
        anchors: watch::channel(Some(roots_from_pem(text("anchors").as_bytes()).unwrap())).1,
        state_folder: own_folder.join("state"),
    };
    std::fs::create_dir(&control.state_folder).unwrap();
    let settings = Settings {
        sandbox: own.sandbox.clone(),
        pod_uid: own.pod_uid.clone(),
        routers: identities("routers"),
        own_ports: PORTS,
        caps: Caps::default(),
        framing: Arc::new(Limits::default()),
        proxy_timeout: Duration::from_secs(180),
        audit: false,
    };
    let address: Ipv4Addr = text("address").parse().unwrap();
    let listener = bind((address, PORTS.mesh).into()).unwrap();
    let gate = Gate::controlled(
        settings,
        Control::open(control, Enrollee::Gate(own), Identity::Granted { token_file }).unwrap(),
    )
    .unwrap();
    let ready = gate.readiness(drained);
    tokio::spawn(gate.serve(listener, draining));
    ready
}
