//! The injector as a process of its own: the program that is released, with the flags that the chart gives it.

use crate::chart::{Chart, OWN_NAMESPACE};
use crate::documents;
use crate::injector::{ACCOUNT, System};
use rustix::param::clock_ticks_per_second;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Where the program is. `tests/cluster/run` builds it and says so.
pub fn program() -> PathBuf {
    let program = std::env::var_os("SANDGATE_INJECTOR");
    program
        .expect("SANDGATE_INJECTOR isn't set: use tests/cluster/run")
        .into()
}

/// What `sandbox-injector root` says, as the injector's ServiceAccount: as `kubectl exec` into its pod would have it.
///
/// # Errors
/// What it says on its standard error, if it doesn't end well.
pub async fn root(system: &System, arguments: &[&str]) -> Result<String, String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let kubeconfig = std::env::temp_dir().join(format!("sandgate-root-{process}-{number}"));
    let namespace = system.namespace.name();
    std::fs::write(&kubeconfig, as_injector(namespace).to_string()).unwrap();
    let mut command = Command::new(program());
    command.arg("root").args(arguments);
    command.env("POD_NAMESPACE", namespace).env("KUBECONFIG", &kubeconfig);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    std::fs::remove_file(kubeconfig).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if done.status.success() {
        Ok(text(done.stdout))
    } else {
        Err(text(done.stderr))
    }
}

/// A running injector. It is killed when dropped.
pub struct Process {
    /// Where its webhook listens.
    pub webhook: SocketAddr,
    /// Where its health and metrics are.
    pub admin: SocketAddr,
    child: Child,
    log: Log,
    // Removed with the process: it says how to become the injector's ServiceAccount.
    kubeconfig: PathBuf,
}

impl Process {
    /// Starts the program as the ServiceAccount that the chart gives it, on ports of this machine.
    pub async fn start(system: &System, chart: &Chart) -> Self {
        Self::start_with(system, chart, &[]).await
    }

    /// The same with further flags, which win.
    pub async fn start_with(system: &System, chart: &Chart, flags: &[&str]) -> Self {
        let namespace = system.namespace.name();
        let kubeconfig = std::env::temp_dir().join(format!("sandgate-injector-{}", std::process::id()));
        std::fs::write(&kubeconfig, as_injector(namespace).to_string()).unwrap();
        let mut child = Command::new(program())
            .args(arguments(chart, namespace, flags))
            .args(["--webhook-bind-address=127.0.0.1:0", "--admin-bind-address=127.0.0.1:0"])
            .env("POD_NAMESPACE", namespace)
            .env("KUBECONFIG", &kubeconfig)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the injector's program runs");
        let stderr = child.stderr.take().unwrap();
        let (tell, mut told) = unbounded_channel();
        let log = Log::default();
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || follow(stderr, &tell, &log)
        });
        let mut process = Self {
            webhook: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            child,
            log,
            kubeconfig,
        };
        let told = tokio::time::timeout(crate::PATIENCE, told.recv()).await;
        let told = told.expect("the injector says in time where it listens");
        [process.webhook, process.admin] = told.unwrap();
        process
    }

    /// All of its metrics.
    pub async fn metrics(&self) -> String {
        let answer = crate::injector::get(self.admin, "/metrics").await;
        answer.expect("the injector's metrics").1
    }

    /// The time that it has spent on CPUs so far.
    pub fn cpu_time(&self) -> Duration {
        cpu_time(self.child.id())
    }

    /// What it has logged besides its decisions.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A memory figure of the kernel's in bytes, such as `VmRSS` or `VmHWM`.
    pub fn memory(&self, figure: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kibibytes.unwrap_or_else(|| panic!("no {figure} in {status}")) * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

/// The time that a process has spent on CPUs so far, in user and kernel mode, with all of its threads.
pub fn cpu_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The second field is the program's name in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = |place: usize| fields.split(' ').nth(place).unwrap().parse::<u64>().unwrap();
    let (user, system) = (ticks(11), ticks(12));
    Duration::from_secs(user + system) / u32::try_from(clock_ticks_per_second()).unwrap()
}

/// What a program has logged, without its decisions: under load those are many.
type Log = Arc<Mutex<String>>;

/// Reads the program's log to its end, so that it never waits for its reader, and tells where it listens.
fn follow(log: ChildStderr, tell: &UnboundedSender<[SocketAddr; 2]>, kept: &Log) {
    let mut listens = false;
    for text in BufReader::new(log).lines().map_while(Result::ok) {
        if text.contains("\"log\":\"admission\"") {
            continue;
        }
        if !listens && let Some(addresses) = listening(&text) {
            listens = true;
            // Nobody waits any more if that took too long. Without an address it has ended, and whoever waits hears that.
            let _ = tell.send(addresses);
        }
        let mut kept = kept.lock().unwrap();
        kept.push_str(&text);
        kept.push('\n');
    }
}

/// Where the webhook is, and where health and metrics are.
fn listening(line: &str) -> Option<[SocketAddr; 2]> {
    let line: Value = serde_json::from_str(line).ok()?;
    let told = |name: &str| {
        let places = [&line["fields"][name], &line[name]];
        places.into_iter().find_map(|told| told.as_str()?.parse().ok())
    };
    Some([told("webhook")?, told("admin")?])
}

/// The chart's flags, but for those that are given.
fn arguments(chart: &Chart, namespace: &str, flags: &[&str]) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().unwrap_or_default().to_owned();
    let given: Vec<_> = flags.iter().map(|flag| name(flag)).collect();
    let of_chart = chart
        .arguments()
        .into_iter()
        .map(|flag| flag.replace(OWN_NAMESPACE, namespace));
    let kept = of_chart.filter(|flag| !given.contains(&name(flag)));
    kept.chain(flags.iter().map(|flag| (*flag).to_owned())).collect()
}

/// A kubeconfig for the injector's ServiceAccount, from the administrator's.
fn as_injector(namespace: &str) -> Value {
    let path = std::env::var_os("KUBECONFIG").expect("these tests need a cluster of their own: use tests/cluster/run");
    let text = std::fs::read_to_string(path).unwrap();
    let mut config = documents(&text).remove(0);
    for user in config["users"].as_array_mut().unwrap() {
        user["user"]["as"] = json!(format!("system:serviceaccount:{namespace}:{ACCOUNT}"));
        let groups = [
            "system:serviceaccounts",
            &format!("system:serviceaccounts:{namespace}"),
            "system:authenticated",
        ];
        user["user"]["as-groups"] = json!(groups);
    }
    config
}
