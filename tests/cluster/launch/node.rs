//! A node beside the API server: container runtime, kubelet, the controllers of Kubernetes, and what makes Services and
//! network policies real.

use crate::credentials::Client;
use crate::folder::Folder;
use crate::network::{NODE_ADDRESS, POD_NETWORK};
use crate::node_files::{self, NAME};
use crate::server::Server;
use crate::servers;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A cold machine takes longest, under load.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The container runtime's socket in the run's folder.
const RUNTIME_SOCKET: &str = "containerd.sock";

const CONTROLLERS: Client = Client {
    file: "kube-controller-manager",
    user: "system:kube-controller-manager",
    group: None,
};
const SCHEDULER: Client = Client {
    file: "kube-scheduler",
    user: "system:kube-scheduler",
    group: None,
};
const PROXY: Client = Client {
    file: "kube-proxy",
    user: "system:kube-proxy",
    group: None,
};
const KUBELET: Client = Client {
    file: "kubelet",
    user: "system:node:sandgate-node",
    group: Some("system:nodes"),
};
// No role of its own comes with Kubernetes.
const NETWORK_POLICIES: Client = Client {
    file: "kube-router",
    user: "kube-router",
    group: Some("system:masters"),
};

/// Who of a node talks to the API server.
pub(crate) const CLIENTS: &[Client] = &[CONTROLLERS, SCHEDULER, PROXY, KUBELET, NETWORK_POLICIES];

/// What to run, and where the programs are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// The folders with the programs.
    pub(crate) folders: &'a [PathBuf],
    /// The folders with the images' archives.
    pub(crate) images: &'a [PathBuf],
    /// The control group for pods.
    pub(crate) cgroup: &'a str,
}

/// A running node. Dropping it ends its programs; pods' processes end with the machine.
pub(crate) struct Node {
    kubelet: Server,
    runtime: Server,
    others: Vec<Server>,
}

impl Node {
    /// Starts everything, and returns when the node is ready for pods.
    pub(crate) async fn start(folder: &Folder, parts: Parts<'_>, url: &str) -> anyhow::Result<Self> {
        for client in CLIENTS {
            client.write_kubeconfig(folder, url)?;
        }
        node_files::write(folder, parts.cgroup)?;
        let mut runtime = containerd(folder, parts)?;
        let others = vec![
            start(folder, parts, CONTROLLERS, &controller_flags())?,
            start(folder, parts, SCHEDULER, &["--leader-elect=false".to_owned()])?,
            start_with_config(folder, parts, "kube-proxy")?,
        ];
        if let Err(error) = until_runtime_answers(folder, parts, &mut runtime).await {
            bail!("{error:#}{}", ends_of_logs([&runtime]));
        }
        import_images(folder, parts).await?;
        let kubelet = start_kubelet(folder, parts)?;
        let mut node = Self {
            kubelet,
            runtime,
            others,
        };
        node.until_ready(folder).await?;
        // It asks for the node that it is on, which the kubelet has registered now.
        let network_policies = start(folder, parts, NETWORK_POLICIES, &network_policy_flags())?;
        node.others.push(network_policies);
        Ok(node)
    }

    /// Fails when one of the programs has ended, but for the kubelet and the container runtime, which are started again: tests
    /// kill them.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.runtime.revive()?;
        self.kubelet.revive()?;
        self.others.iter_mut().try_for_each(Server::check)
    }

    /// The last lines of each program's log.
    fn log_tails(&self) -> String {
        ends_of_logs([&self.kubelet, &self.runtime].into_iter().chain(&self.others))
    }

    async fn until_ready(&mut self, folder: &Folder) -> anyhow::Result<()> {
        let client = servers::client(folder).await?;
        let ready = async {
            while !is_ready(&client).await {
                self.others.iter_mut().try_for_each(Server::check)?;
                self.runtime.check()?;
                self.kubelet.check()?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(READY_WITHIN, ready).await {
            Ok(result) => result,
            Err(_) => bail!("the node isn't ready after {READY_WITHIN:?}{}", self.log_tails()),
        }
    }
}

/// Whether the kubelet says so.
async fn is_ready(client: &kube::Client) -> bool {
    let Ok(request) = servers::http_request(&format!("/api/v1/nodes/{NAME}")) else {
        return false;
    };
    let Ok(node) = client.request::<k8s_openapi::api::core::v1::Node>(request).await else {
        return false;
    };
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A program of Kubernetes that takes flags.
fn start(folder: &Folder, parts: Parts<'_>, client: Client, flags: &[String]) -> anyhow::Result<Server> {
    let mut all = vec![format!("--kubeconfig={}", client.kubeconfig())];
    all.extend_from_slice(flags);
    Server::start(folder, client.file, &parts.program(client.file)?, &all)
}

/// A program of Kubernetes that takes a file.
fn start_with_config(folder: &Folder, parts: Parts<'_>, name: &'static str) -> anyhow::Result<Server> {
    let config = folder.join(&format!("{name}.yaml"));
    let flags = [
        format!("--config={}", config.display()),
        format!("--hostname-override={NAME}"),
    ];
    Server::start(folder, name, &parts.program(name)?, &flags)
}

fn start_kubelet(folder: &Folder, parts: Parts<'_>) -> anyhow::Result<Server> {
    let flags = [
        format!("--config={}", folder.join("kubelet.yaml").display()),
        format!("--kubeconfig={}", folder.join(&KUBELET.kubeconfig()).display()),
        format!("--root-dir={}", folder.join("kubelet").display()),
        format!("--hostname-override={NAME}"),
        format!("--node-ip={NODE_ADDRESS}"),
    ];
    Server::start(folder, KUBELET.file, &parts.program(KUBELET.file)?, &flags)
}

fn containerd(folder: &Folder, parts: Parts<'_>) -> anyhow::Result<Server> {
    // It looks for its shim there.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = parts.folders.iter().cloned().chain(std::env::split_paths(&path));
    let path: OsString = std::env::join_paths(folders)?;
    let flags = [format!("--config={}", folder.join("containerd.toml").display())];
    Server::start_with_path(folder, "containerd", &parts.program("containerd")?, &flags, Some(path))
}

fn controller_flags() -> Vec<String> {
    [
        "--leader-elect=false".to_owned(),
        "--service-account-private-key-file=service-accounts.key".to_owned(),
        "--root-ca-file=ca.crt".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!("--cluster-cidr={POD_NETWORK}"),
    ]
    .into()
}

/// It makes network policies real and nothing else: the bridge is there, and kube-proxy does Services.
fn network_policy_flags() -> Vec<String> {
    [
        "--run-router=false".to_owned(),
        "--run-service-proxy=false".to_owned(),
        "--run-firewall=true".to_owned(),
        format!("--hostname-override={NAME}"),
        format!("--service-cluster-ip-range={}", servers::SERVICE_NETWORK),
    ]
    .into()
}

impl Parts<'_> {
    fn program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let found = self
            .folders
            .iter()
            .map(|folder| folder.join(name))
            .find(|file| file.exists());
        found.with_context(|| format!("{name} is in none of {:?}", self.folders))
    }

    /// containerd's client.
    fn ctr(&self, folder: &Folder, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(self.program("ctr")?);
        command
            .args(["--address".into(), folder.join(RUNTIME_SOCKET).into_os_string()])
            .args(["--namespace", "k8s.io"])
            .args(arguments);
        Ok(command)
    }
}

async fn until_runtime_answers(folder: &Folder, parts: Parts<'_>, runtime: &mut Server) -> anyhow::Result<()> {
    let answers = async {
        loop {
            let done = parts.ctr(folder, &["version"])?.output().context("running ctr")?;
            if done.status.success() {
                return anyhow::Ok(());
            }
            runtime.check()?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let answers = tokio::time::timeout(READY_WITHIN, answers).await;
    answers.with_context(|| format!("containerd doesn't answer after {READY_WITHIN:?}"))?
}

/// Loads every archive, under the names that are in it.
async fn import_images(folder: &Folder, parts: Parts<'_>) -> anyhow::Result<()> {
    for archives in parts.images {
        let files = std::fs::read_dir(archives).with_context(|| format!("reading {}", archives.display()))?;
        for file in files {
            let path = file?.path();
            if path.extension().is_some_and(|ending| ending == "tar") {
                import_image(parts.ctr(folder, &["images", "import"])?, path).await?;
            }
        }
    }
    Ok(())
}

async fn import_image(mut command: Command, archive: PathBuf) -> anyhow::Result<()> {
    command.arg(&archive);
    let done = tokio::task::spawn_blocking(move || command.output()).await?;
    let done = done.context("running ctr")?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr);
        bail!("the image in {} can't be loaded: {why}", archive.display());
    }
    Ok(())
}

fn ends_of_logs<'a>(servers: impl IntoIterator<Item = &'a Server>) -> String {
    let end = |server: &Server| format!("\n\nthe end of {}'s log:\n{}", server.name(), server.log_tail(20));
    servers.into_iter().map(end).collect()
}
