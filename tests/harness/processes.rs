//! The real programs as processes: started with flags and files, stopped by signals, and killed with their test.

use crate::folder::{Folder, Replacing, put};
use crate::{PATIENCE, POD_UID, ROUTER, TOKEN, default_policy, exchange, sandbox, status};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use sandgate_mesh::identity::WorkloadIdentity;
use sandgate_mesh::policy::model;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::sync::watch;

/// Where cargo put the programs. Only a test target is told, so it passes them on with [`programs!`](crate::programs).
#[derive(Debug, Clone, Copy)]
pub struct Programs {
    /// `sandbox-router`.
    pub router: &'static str,
    /// `sandbox-sidecar`.
    pub sidecar: &'static str,
    /// `sandgate-local`.
    pub local: &'static str,
    /// `harness/bin/app.rs`.
    pub app: &'static str,
    /// `harness/bin/thief.rs`.
    pub thief: &'static str,
}

/// The [`Programs`](crate::processes::Programs) of the test target that says this.
#[macro_export]
macro_rules! programs {
    () => {
        $crate::processes::Programs {
            router: env!("CARGO_BIN_EXE_sandbox-router-under-test"),
            sidecar: env!("CARGO_BIN_EXE_sandbox-sidecar-under-test"),
            local: env!("CARGO_BIN_EXE_sandgate-local-under-test"),
            app: env!("CARGO_BIN_EXE_app-under-test"),
            thief: env!("CARGO_BIN_EXE_thief-under-test"),
        }
    };
}

/// A command without this process's environment, which could hold a token or a default of the programs.
pub fn command<A: AsRef<std::ffi::OsStr>>(path: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(path);
    command.env_clear().args(args);
    command
}

/// A copy of a program that every user may run, who may not be able to reach cargo's folder.
pub fn for_others(folder: &Folder, program: &str) -> String {
    let copy = folder.path(Path::new(program).file_name().unwrap().to_str().unwrap());
    // Not copied by this process: as long as that had the copy open, which any process that it starts meanwhile inherits for
    // a moment, nobody could run it.
    let copied = Command::new("cp").arg(program).arg(&copy).status().unwrap();
    assert!(copied.success());
    copy.to_str().unwrap().to_owned()
}

/// A running process. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: watch::Receiver<String>,
    stderr: watch::Receiver<String>,
}

/// What a process left behind.
#[derive(Debug, Clone)]
pub struct Left {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Process {
    /// Starts a process.
    pub fn start(mut command: Command) -> Self {
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self {
            child,
            stdout: collect(stdout),
            stderr: collect(stderr),
        }
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.borrow().clone()
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.borrow().clone()
    }

    /// Waits until its standard output holds `text` for the `times`th time.
    pub async fn says(&mut self, text: &str, times: usize) {
        until_said(&mut self.stdout, text, times).await;
    }

    /// Waits until its standard error holds `text` for the `times`th time.
    pub async fn logs(&mut self, text: &str, times: usize) {
        until_said(&mut self.stderr, text, times).await;
    }

    /// Waits until it listens, and returns what its log line says of `fields`.
    pub async fn listens<const N: usize>(&mut self, fields: [&str; N]) -> [String; N] {
        self.logs("\"message\":\"listening\"", 1).await;
        let lines = json_lines(&self.stderr());
        let line = lines.iter().find(|line| line["message"] == "listening").unwrap();
        fields.map(|field| line[field].to_string().trim_matches('"').to_owned())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ends it at once, and waits until the kernel has closed all it had open and its last words are here.
    pub async fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.fall_silent().await;
    }

    /// Waits until both readers have come to the end.
    async fn fall_silent(&mut self) {
        for output in [&mut self.stdout, &mut self.stderr] {
            let _ = tokio::time::timeout(PATIENCE, output.wait_for(|_| false))
                .await
                .unwrap();
        }
    }

    /// What it left behind, if it has ended by itself.
    pub async fn left(&mut self) -> Option<Left> {
        let status = self.child.try_wait().unwrap()?;
        self.fall_silent().await;
        Some(Left {
            code: status.code(),
            stdout: self.stdout(),
            stderr: self.stderr(),
        })
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self) -> Left {
        let ended = async {
            loop {
                if let Some(left) = self.left().await {
                    break left;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        ended.unwrap_or_else(|_| panic!("the process runs on: {}", self.stderr.borrow().as_str()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads on a thread of its own, so that a full pipe never stops the process.
fn collect(mut pipe: impl Read + Send + 'static) -> watch::Receiver<String> {
    let (text, receiver) = watch::channel(String::new());
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut bytes) {
            text.send_modify(|text| text.push_str(&String::from_utf8_lossy(&bytes[..read])));
        }
    });
    receiver
}

async fn until_said(output: &mut watch::Receiver<String>, text: &str, times: usize) {
    // Only whole lines: whoever waits for a line reads all of it.
    let said = |output: &String| {
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        whole.matches(text).count() >= times
    };
    let result = tokio::time::timeout(PATIENCE, output.wait_for(said)).await;
    if !matches!(result, Ok(Ok(_))) {
        drop(result);
        panic!("{text:?} was not said {times} times in: {}", output.borrow().as_str());
    }
}

/// The lines of a log, each of which must be one JSON object.
pub fn json_lines(log: &str) -> Vec<serde_json::Value> {
    let parse = |line| match serde_json::from_str(line) {
        Ok(value @ serde_json::Value::Object(_)) => value,
        _ => panic!("not a JSON object: {line}"),
    };
    log.lines().map(parse).collect()
}

/// One app behind one gate behind one router, where gate and router are processes with files.
pub struct ProcessMesh {
    /// Everybody's files: `sidecar` and `router` with `tls.crt`, `tls.key` and `ca.crt`, and `policy.json`.
    pub folder: Folder,
    /// Everybody's certificates are from here at first.
    pub authority: Authority,
    /// The gate.
    pub sidecar: Process,
    /// The router.
    pub router: Process,
    /// The gate's mesh port.
    pub mesh: SocketAddr,
    /// The gate's health port.
    pub sidecar_health: SocketAddr,
    /// Where the router serves clients.
    pub http: SocketAddr,
    /// Where the router's probes go.
    pub router_health: SocketAddr,
    /// Where the router's metrics are.
    pub metrics: SocketAddr,
    programs: Programs,
    app_port: u16,
    router_flags: Vec<String>,
}

impl ProcessMesh {
    /// A mesh whose gate lets everybody with a credential use the app's port. The router gets `router_flags` as well.
    pub async fn start(programs: Programs, app_port: u16, router_flags: &[&str]) -> Self {
        let (folder, authority) = (Folder::new(), Authority::new("sandgate-tests").unwrap());
        let issued = authority.sidecar(&sandbox("alpha", POD_UID)).unwrap();
        put(&folder, "sidecar", Replacing::AtOnce, &issued, authority.root_pem());
        let issued = authority.router(&router_identity()).unwrap();
        put(&folder, "router", Replacing::AtOnce, &issued, authority.root_pem());
        let policy = default_policy(model::DefaultPolicy::Authenticated, vec![app_port]);
        folder.rename_over("policy.json", serde_json::to_vec(&policy).unwrap());
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (sidecar, mesh, sidecar_health) =
            start_gate(command(programs.sidecar, sidecar_flags(&folder, anywhere))).await;
        let router_flags: Vec<_> = router_flags.iter().copied().map(String::from).collect();
        let (router, [http, metrics, router_health]) = start_router(programs, &folder, mesh, &router_flags).await;
        let started = Self {
            folder,
            authority,
            sidecar,
            router,
            mesh,
            sidecar_health,
            http,
            router_health,
            metrics,
            programs,
            app_port,
            router_flags,
        };
        until_ready(started.sidecar_health, (200, "ok")).await;
        started
    }

    /// Replaces a program's certificate, key and bundle, all at once.
    pub fn give(&self, program: &str, issued: &Issued) {
        let root = self.authority.root_pem();
        put(&self.folder, program, Replacing::AtOnce, issued, root);
    }

    /// Gives the `sidecar` or the `router` a certificate of its own identity, as `change` leaves it.
    pub fn issue(&self, program: &str, change: impl FnOnce(&mut LeafSpec)) -> LeafSpec {
        let (identity, usage) = match program {
            "sidecar" => (sandbox("alpha", POD_UID).to_string(), Usage::Server),
            _ => (ROUTER.to_owned(), Usage::Client),
        };
        let mut spec = LeafSpec::new(program, identity, usage);
        change(&mut spec);
        self.give(program, &self.authority.issue(&spec).unwrap());
        spec
    }

    /// One more router with `flags`, and where it serves clients and its metrics are.
    pub async fn another_router(&self, flags: &[&str]) -> (Process, [SocketAddr; 3]) {
        let flags: Vec<_> = flags.iter().copied().map(String::from).collect();
        start_router(self.programs, &self.folder, self.mesh, &flags).await
    }

    /// A router in place of the one that ended.
    pub async fn restart_router(&mut self) {
        let (router, addresses) = start_router(self.programs, &self.folder, self.mesh, &self.router_flags).await;
        self.router = router;
        [self.http, self.metrics, self.router_health] = addresses;
    }

    /// A gate in place of the one that ended, on the same mesh port. It may not be ready yet.
    pub async fn restart_sidecar(&mut self) {
        self.restart_sidecar_with(|_| {}).await;
    }

    /// The same with the flags as `change` leaves them.
    pub async fn restart_sidecar_with(&mut self, change: impl FnOnce(&mut Vec<String>)) {
        let mut flags = sidecar_flags(&self.folder, self.mesh);
        change(&mut flags);
        let (sidecar, _, health) = start_gate(command(self.programs.sidecar, flags)).await;
        (self.sidecar, self.sidecar_health) = (sidecar, health);
    }

    /// The head of a request with everything it needs to get to the app, and `fields` (each ended with CRLF).
    pub fn head(&self, request_line: &str, fields: &str) -> String {
        format!(
            "{request_line} HTTP/1.1\r\nHost: sandbox.example\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: alpha\r\n\
             X-Sandbox-Port: {}\r\n{fields}\r\n",
            self.app_port
        )
    }
}

/// Whom the gate takes for a router.
pub fn router_identity() -> WorkloadIdentity {
    ROUTER.parse().unwrap()
}

/// The flags of a gate in front of the sandbox `default/alpha` with its files in `folder`.
pub fn sidecar_flags(folder: &Folder, mesh: SocketAddr) -> Vec<String> {
    let file = |name| folder.path(name).display().to_string();
    vec![
        format!("--mesh-bind-address={mesh}"),
        "--health-bind-address=127.0.0.1:0".into(),
        "--namespace=default".into(),
        "--sandbox=alpha".into(),
        format!("--pod-uid={POD_UID}"),
        format!("--router-identity={ROUTER}"),
        format!("--tls-cert-file={}", file("sidecar/tls.crt")),
        format!("--tls-key-file={}", file("sidecar/tls.key")),
        format!("--trust-bundle-file={}", file("sidecar/ca.crt")),
        format!("--policy-file={}", file("policy.json")),
    ]
}

/// The flags of a router with its files in `folder`, which knows where the gate is.
pub fn router_flags(folder: &Folder, gate: SocketAddr) -> Vec<String> {
    let file = |name| folder.path(name).display().to_string();
    vec![
        "--http-bind-address=127.0.0.1:0".into(),
        "--metrics-bind-address=127.0.0.1:0".into(),
        "--health-probe-bind-address=127.0.0.1:0".into(),
        "--workers=1".into(),
        "--drain-delay=0s".into(),
        format!("--sandbox-endpoint=default/alpha={gate},uid={POD_UID}"),
        format!("--mesh-cert-file={}", file("router/tls.crt")),
        format!("--mesh-key-file={}", file("router/tls.key")),
        format!("--mesh-trust-bundle-file={}", file("router/ca.crt")),
    ]
}

/// A gate started by `command`, and its mesh and health ports.
pub async fn start_gate(command: Command) -> (Process, SocketAddr, SocketAddr) {
    let mut sidecar = Process::start(command);
    let [mesh, health] = sidecar.listens(["mesh", "health"]).await;
    let local = |port: String| SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    (sidecar, local(mesh), local(health))
}

/// A router with its files in `folder`, where it serves clients, its metrics and its health port.
pub async fn start_router(
    programs: Programs,
    folder: &Folder,
    gate: SocketAddr,
    more: &[String],
) -> (Process, [SocketAddr; 3]) {
    let mut flags = router_flags(folder, gate);
    flags.extend_from_slice(more);
    let mut command = command(programs.router, flags);
    command.env("ROUTER_AUTH_TOKEN", TOKEN);
    let mut router = Process::start(command);
    let addresses = router.listens(["http", "metrics", "health"]).await;
    (router, addresses.map(|address| address.parse().unwrap()))
}

/// What a health or metrics port answers: status and body.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n");
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let answer = exchange(stream, request, false).await;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status(&answer), body.to_owned())
}

/// Waits until a health port's `/readyz` says this.
pub async fn until_ready(address: SocketAddr, expected: (u16, &str)) {
    let asking = async {
        loop {
            let (status, text) = get(address, "/readyz").await;
            if (status, text.as_str()) == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ready = tokio::time::timeout(PATIENCE, asking).await;
    ready.unwrap_or_else(|_| panic!("never was {expected:?}"));
}

/// The value of a metric, written as it is scraped: `name{label="value"}`.
pub async fn metric(address: SocketAddr, name: &str) -> Option<String> {
    let (_, text) = get(address, "/metrics").await;
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ').map(String::from);
    text.lines().find_map(value)
}

/// Waits until a metric has this value.
pub async fn until_metric(address: SocketAddr, name: &str, expected: &str) {
    let asking = async {
        while metric(address, name).await.as_deref() != Some(expected) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let counted = tokio::time::timeout(PATIENCE, asking).await;
    counted.unwrap_or_else(|_| panic!("{name} never was {expected}"));
}

/// Lets this process open as many files as it may, and says how many those are.
pub fn open_files_at_hand() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    limit
        .maximum
        .map_or(usize::MAX, |files| usize::try_from(files).unwrap())
}
