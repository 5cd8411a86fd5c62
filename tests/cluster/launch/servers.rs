//! etcd and kube-apiserver as processes: how they are started, when they are ready, and that they end.

use crate::credentials;
use crate::folder::Folder;
use anyhow::{Context, bail};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A cold machine takes longest, under load.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Below the ports that the system gives to outgoing connections and to whoever asks for any: a port that is free when
/// it is chosen is likely free when the API server opens it.
const PORTS: Range<u16> = 20_000..32_000;
/// So often another port is tried when one was taken after all.
const PORT_ATTEMPTS: usize = 5;
/// Sockets in the run's folder, in which etcd runs: no port, so nobody else can take it. The `:0` is part of the name;
/// etcd wants one.
const ETCD_CLIENTS: &str = "unix://etcd.sock:0";
const ETCD_PEERS: &str = "unix://etcd-peers.sock:0";

/// What to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Programs<'a> {
    pub(crate) etcd: &'a Path,
    pub(crate) kube_apiserver: &'a Path,
}

/// A running etcd and API server. Dropping them ends them: first the API server, for the order of the fields.
pub(crate) struct Servers {
    api_server: Server,
    etcd: Server,
    url: String,
}

impl Servers {
    /// Starts both and waits until the API server is ready.
    pub(crate) async fn start(folder: &Folder, programs: Programs<'_>) -> anyhow::Result<Self> {
        credentials::write(folder)?;
        let etcd = Server::start(folder, "etcd", programs.etcd, &etcd_flags())?;
        let port = free_port()?;
        let mut servers = Self {
            api_server: start_api_server(folder, programs, port)?,
            etcd,
            url: url(port),
        };
        let ready = servers.until_ready(folder, programs);
        let ready = tokio::time::timeout(READY_WITHIN, ready).await;
        match ready {
            Ok(Ok(())) => Ok(servers),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let tail = servers.log_tail(20);
                bail!("the API server isn't ready after {READY_WITHIN:?}; the end of its log:\n{tail}")
            }
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Fails when one of them has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.etcd.check()?;
        self.api_server.check()
    }

    /// The last lines of the API server's log.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        self.api_server.log_tail(lines)
    }

    async fn until_ready(&mut self, folder: &Folder, programs: Programs<'_>) -> anyhow::Result<()> {
        for _ in 0..PORT_ATTEMPTS {
            credentials::write_kubeconfig(folder, &self.url)?;
            let client = client(folder).await?;
            let taken = loop {
                if is_ready(&client).await {
                    return Ok(());
                }
                self.etcd.check()?;
                if let Err(ended) = self.api_server.check() {
                    if self.log_tail(40).contains("address already in use") {
                        break ended;
                    }
                    return Err(ended);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            eprintln!("another port is tried: {taken:#}");
            let port = free_port()?;
            self.url = url(port);
            self.api_server = start_api_server(folder, programs, port)?;
        }
        bail!("no free port was found in {PORTS:?} in {PORT_ATTEMPTS} attempts")
    }
}

/// Whether the API server says so itself.
async fn is_ready(client: &kube::Client) -> bool {
    let Ok(request) = http_request("/readyz") else {
        return false;
    };
    client.request_text(request).await.is_ok_and(|text| text == "ok")
}

fn http_request(path: &str) -> Result<http::Request<Vec<u8>>, http::Error> {
    http::Request::get(path).body(Vec::new())
}

async fn client(folder: &Folder) -> anyhow::Result<kube::Client> {
    let kubeconfig = Kubeconfig::read_from(folder.kubeconfig())?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    config.default_retry = false;
    kube::Client::try_from(config).context("making a client for the API server")
}

fn url(port: u16) -> String {
    format!("https://127.0.0.1:{port}")
}

fn free_port() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let port = fastrand::u16(PORTS);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free loopback port was found in {PORTS:?}")
}

fn etcd_flags() -> Vec<String> {
    [
        "--name=tests".to_owned(),
        "--data-dir=etcd".to_owned(),
        // Nothing outlives the run.
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls={ETCD_CLIENTS}"),
        format!("--advertise-client-urls={ETCD_CLIENTS}"),
        format!("--listen-peer-urls={ETCD_PEERS}"),
        format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
        format!("--initial-cluster=tests={ETCD_PEERS}"),
        "--log-level=warn".to_owned(),
    ]
    .into()
}

/// The admission plugins are the defaults, and `NodeRestriction` as every real cluster has it.
fn start_api_server(folder: &Folder, programs: Programs<'_>, port: u16) -> anyhow::Result<Server> {
    let flags = [
        format!("--etcd-servers={ETCD_CLIENTS}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        "--tls-cert-file=apiserver.crt".to_owned(),
        "--tls-private-key-file=apiserver.key".to_owned(),
        "--client-ca-file=ca.crt".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--service-account-signing-key-file=service-accounts.key".to_owned(),
        "--service-account-key-file=service-accounts.pub".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
        // Else it refuses privileged pods before any webhook sees them; no real cluster does.
        "--allow-privileged=true".to_owned(),
        // It would publish its address as that of the Service `kubernetes`, and loopback can't be one.
        "--endpoint-reconciler-type=none".to_owned(),
    ];
    Server::start(folder, "kube-apiserver", programs.kube_apiserver, &flags)
}

/// A process in the run's folder, with its log there.
struct Server {
    name: &'static str,
    child: Child,
    log: std::path::PathBuf,
}

impl Server {
    /// A signal to the terminal's process group doesn't reach it, and it ends when this process does, even when that
    /// can't clean up.
    fn start(folder: &Folder, name: &'static str, program: &Path, flags: &[String]) -> anyhow::Result<Self> {
        let program = program.canonicalize();
        let program = program.with_context(|| format!("{name} isn't there"))?;
        let log = folder.join(&format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let child = Command::new("setpriv")
            .args([OsStr::new("--pdeathsig=KILL"), OsStr::new("--"), program.as_os_str()])
            .args(flags)
            .current_dir(folder.path())
            // No proxy, no configuration of the user's.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .context("running setpriv (Debian's package util-linux has it)")?;
        Ok(Self { name, child, log })
    }

    fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} has ended ({status}); the end of its log:\n{}",
                self.name,
                self.log_tail(20)
            ),
        }
    }

    fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut tail: Vec<_> = text.lines().rev().take(lines).collect();
        tail.reverse();
        tail.join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // At once: nothing that it holds is kept.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
