//! etcd and kube-apiserver as processes: how they are started, when they are ready, and that they end.

use crate::credentials::{self, ADMINISTRATOR};
use crate::folder::Folder;
use crate::network::NODE_ADDRESS;
use crate::node;
use crate::server::Server;
use anyhow::{Context, bail};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::Path;
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
/// Where Services' addresses are from, and the first one, which is the API server's own.
pub(crate) const SERVICE_NETWORK: &str = "10.96.0.0/24";
const FIRST_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The API server's port on a node.
const NODE_PORT: u16 = 6443;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Programs<'a> {
    pub(crate) etcd: &'a Path,
    pub(crate) kube_apiserver: &'a Path,
}

/// Where the API server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On a free port of this machine's loopback.
    Loopback,
    /// On every address of a node's own network, for its pods as well.
    Node,
}

impl Place {
    fn port(self) -> anyhow::Result<u16> {
        match self {
            Self::Loopback => free_port(),
            Self::Node => Ok(NODE_PORT),
        }
    }

    /// Everybody needs credentials who is there.
    fn write_credentials(self, folder: &Folder) -> anyhow::Result<()> {
        let addresses = [Ipv4Addr::LOCALHOST, NODE_ADDRESS, FIRST_SERVICE];
        match self {
            Self::Loopback => credentials::write(folder, &addresses[..1], &[ADMINISTRATOR]),
            Self::Node => credentials::write(folder, &addresses, &[&[ADMINISTRATOR], node::CLIENTS].concat()),
        }
    }

    fn flags(self) -> Vec<String> {
        match self {
            Self::Loopback => vec![
                "--bind-address=127.0.0.1".to_owned(),
                // It would publish its address as that of the Service `kubernetes`, and loopback can't be one.
                "--endpoint-reconciler-type=none".to_owned(),
            ],
            Self::Node => vec![
                "--bind-address=0.0.0.0".to_owned(),
                format!("--advertise-address={NODE_ADDRESS}"),
                // Logs and exec; no DNS knows the node's name.
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                "--kubelet-client-certificate=admin.crt".to_owned(),
                "--kubelet-client-key=admin.key".to_owned(),
            ],
        }
    }
}

/// A running etcd and API server. Dropping them ends them: first the API server, for the order of the fields.
pub(crate) struct Servers {
    api_server: Server,
    etcd: Server,
    url: String,
    place: Place,
}

impl Servers {
    /// Starts both and waits until the API server is ready.
    pub(crate) async fn start(folder: &Folder, programs: Programs<'_>, place: Place) -> anyhow::Result<Self> {
        place.write_credentials(folder)?;
        let etcd = Server::start(folder, "etcd", programs.etcd, &etcd_flags())?;
        let port = place.port()?;
        let mut servers = Self {
            api_server: start_api_server(folder, programs, place, port)?,
            etcd,
            url: url(port),
            place,
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
            ADMINISTRATOR.write_kubeconfig(folder, &self.url)?;
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
            let port = self.place.port()?;
            self.url = url(port);
            self.api_server = start_api_server(folder, programs, self.place, port)?;
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

pub(crate) fn http_request(path: &str) -> Result<http::Request<Vec<u8>>, http::Error> {
    http::Request::get(path).body(Vec::new())
}

pub(crate) async fn client(folder: &Folder) -> anyhow::Result<kube::Client> {
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
fn start_api_server(folder: &Folder, programs: Programs<'_>, place: Place, port: u16) -> anyhow::Result<Server> {
    let mut flags = vec![
        format!("--etcd-servers={ETCD_CLIENTS}"),
        format!("--secure-port={port}"),
        "--tls-cert-file=apiserver.crt".to_owned(),
        "--tls-private-key-file=apiserver.key".to_owned(),
        "--client-ca-file=ca.crt".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--service-account-signing-key-file=service-accounts.key".to_owned(),
        "--service-account-key-file=service-accounts.pub".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        // Else it refuses privileged pods before any webhook sees them; no real cluster does.
        "--allow-privileged=true".to_owned(),
    ];
    flags.extend(place.flags());
    Server::start(folder, "kube-apiserver", programs.kube_apiserver, &flags)
}
