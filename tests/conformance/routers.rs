//! The two routers as processes that are started alike.

use sandgate_tests::PATIENCE;
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{Left, Process, command};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

/// Whose router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Router {
    /// Ours.
    Ours,
    /// The one of agent-sandbox in Go, at this path.
    Upstream(String),
}

/// What a router is started with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    /// Flags of both.
    flags: Vec<&'static str>,
    /// Flags that only ours has.
    ours: Vec<&'static str>,
    variables: Vec<(&'static str, &'static str)>,
}

/// What both get first; a later flag wins. Under that domain no name can exist, and no resolver asks a server: a label has
/// at most 63 bytes.
const BASE: [&str; 7] = [
    "--http-bind-address=127.0.0.1:0",
    "--metrics-bind-address=127.0.0.1:0",
    "--health-probe-bind-address=127.0.0.1:0",
    "--allow-loopback-pod-ip",
    "--cluster-domain=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "--upstream-retry-initial-delay=10ms",
    "--upstream-retry-max-delay=10ms",
];
/// What only ours gets: it forwards plainly, as theirs does.
const BASE_OF_OURS: [&str; 3] = ["--mesh=off", "--workers=1", "--drain-delay=0s"];

impl Settings {
    /// Nothing says who may call.
    pub(crate) fn undecided() -> Self {
        Self {
            flags: Vec::new(),
            ours: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// Everybody may call.
    pub(crate) fn open() -> Self {
        Self::undecided().flag("--authz-mode=allow-all")
    }

    /// Whoever has the token `correct-horse` may call.
    pub(crate) fn token() -> Self {
        Self::undecided().variable("ROUTER_AUTH_TOKEN", "correct-horse")
    }

    /// Nobody waits for longer than a second.
    pub(crate) fn impatient() -> Self {
        Self::open().flag("--proxy-timeout=1s")
    }

    /// One more flag of both.
    pub(crate) fn flag(mut self, flag: &'static str) -> Self {
        self.flags.push(flag);
        self
    }

    /// One more flag of ours.
    pub(crate) fn ours(mut self, flag: &'static str) -> Self {
        self.ours.push(flag);
        self
    }

    /// One more variable.
    pub(crate) fn variable(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.push((name, value));
        self
    }
}

/// A router that was started.
pub(crate) enum Started {
    /// It listens.
    Runs(Running),
    /// It ended by itself.
    Ended(Left),
}

/// A router that listens. It is killed when dropped.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) http: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

impl Router {
    /// Starts one, with the files of `folder` for settings that name some.
    pub(crate) async fn start(&self, settings: &Settings, folder: &Folder) -> Started {
        let mut flags = BASE.to_vec();
        let path = match self {
            Self::Ours => {
                flags.extend(BASE_OF_OURS);
                env!("CARGO_BIN_EXE_sandbox-router-under-test")
            }
            Self::Upstream(path) => path,
        };
        flags.extend(&settings.flags);
        if *self == Self::Ours {
            flags.extend(&settings.ours);
        }
        let files = folder.path("").display().to_string();
        let mut command = command(path, flags.iter().map(|flag| flag.replace("@FILES@/", &files)));
        command.envs(settings.variables.iter().copied());
        self.listens(Process::start(command)).await
    }

    /// Waits until it listens or ends.
    pub(crate) async fn listens(&self, mut process: Process) -> Started {
        let waiting = async {
            loop {
                if let Some([http, metrics, health]) = self.addresses(&process.stderr()) {
                    return Ok([http, metrics, health]);
                }
                if let Some(left) = process.left().await {
                    return Err(left);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        match waited.unwrap_or_else(|_| panic!("{self:?} neither listens nor ends: {}", process.stderr())) {
            Ok([http, metrics, health]) => Started::Runs(Running {
                process,
                http,
                health,
                metrics,
            }),
            Err(left) => Started::Ended(left),
        }
    }

    /// Where it says that it listens: HTTP, metrics, health.
    fn addresses(&self, log: &str) -> Option<[SocketAddr; 3]> {
        let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let address = |value: &Value| value.as_str()?.parse().ok();
        match self {
            Self::Ours => {
                let line = lines.iter().find(|line| line["message"] == "listening")?;
                Some([
                    address(&line["http"])?,
                    address(&line["metrics"])?,
                    address(&line["health"])?,
                ])
            }
            Self::Upstream(_) => {
                let named = |name: &str| {
                    let line = lines
                        .iter()
                        .find(|line| line["msg"] == "listening" && line["name"] == name)?;
                    address(&line["addr"])
                };
                Some([named("proxy-http")?, named("metrics")?, named("health")?])
            }
        }
    }
}
