//! The router in a cluster: started as the chart's ServiceAccount, with apps on loopback addresses in the pods' place.

use crate::{Cluster, Namespace, PATIENCE, documents, until};
use sandbox_router::Router;
use sandbox_router::config::Config;
use sandgate_local::authority::Authority;
use sandgate_tests::looks_complete;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The router's ServiceAccount.
pub(crate) const ACCOUNT: &str = "sandbox-router";

/// A running router; it ends when dropped.
pub struct RunningRouter {
    /// Where clients reach it.
    pub http: SocketAddr,
    /// Where its probes are.
    pub health: SocketAddr,
    /// Where its metrics are.
    pub metrics: SocketAddr,
    running: JoinHandle<()>,
    _account: AccountFile,
}

impl Drop for RunningRouter {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// The file by which a router is its ServiceAccount at the API server; removed with it.
pub struct AccountFile(PathBuf);

impl AccountFile {
    /// Of the router of a namespace.
    pub fn new(namespace: &Namespace) -> Self {
        Self::with(&kubeconfig(namespace.name(), None))
    }

    fn with(config: &Value) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("sandgate-router-{process}-{number}"));
        std::fs::write(&path, config.to_string()).unwrap();
        Self(path)
    }

    /// The flag that names it.
    pub fn flag(&self) -> String {
        format!("--kubeconfig={}", self.0.display())
    }
}

impl Drop for AccountFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl RunningRouter {
    /// Starts a router with a pod cache and no gates unless `flags` say otherwise, as the ServiceAccount of `system`.
    pub fn start(system: &Namespace, flags: &[&str]) -> Self {
        Self::start_at(&kubeconfig(system.name(), None), flags)
    }

    /// The same where the API server is at another address.
    pub fn start_away(system: &Namespace, server: &str, flags: &[&str]) -> Self {
        Self::start_at(&kubeconfig(system.name(), Some(server)), flags)
    }

    fn start_at(config: &Value, flags: &[&str]) -> Self {
        let account = AccountFile::with(config);
        let here = |flag: &str| format!("--{flag}=127.0.0.1:0");
        let mut arguments = vec![
            here("http-bind-address"),
            here("metrics-bind-address"),
            here("health-probe-bind-address"),
            "--authz-mode=allow-all".into(),
            "--cache-enabled".into(),
            "--allow-loopback-pod-ip".into(),
            "--access-log=false".into(),
            "--workers=1".into(),
            "--upstream-max-retries=0".into(),
            // No name of a test's sandbox resolves there.
            "--cluster-domain=sandgate.invalid".into(),
            account.flag(),
        ];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let config = Config::from_args(arguments.into_iter().map(Into::into).collect()).unwrap();
        let router = Router::bind(config, None).unwrap();
        let (http, health, metrics) = (router.http_address(), router.health_address(), router.metrics_address());
        let running = tokio::spawn(async move {
            if let Err(error) = router.run(std::future::pending()).await {
                panic!("the router ended: {error:#}");
            }
        });
        Self {
            http,
            health,
            metrics,
            running,
            _account: account,
        }
    }

    /// Returns when its cache is complete.
    pub async fn until_ready(&self) {
        until("the router is ready", async || {
            match get(self.health, "/readyz", "").await {
                (200, _) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    /// The value of a series of its metrics: 0 if there is none.
    pub async fn metric(&self, series: &str) -> u64 {
        let (_, text) = get(self.metrics, "/metrics", "").await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// What its readiness probe gets.
    pub async fn readiness(&self) -> (u16, String) {
        get(self.health, "/readyz", "").await
    }

    /// What a client gets for this sandbox and port, with further header lines.
    pub async fn ask(&self, namespace: &str, sandbox: &str, port: u16, more: &str) -> (u16, String) {
        ask(self.http, namespace, sandbox, port, more).await
    }

    /// Returns when a client gets this status for a sandbox; the answer's body.
    pub async fn until_answered(&self, status: u16, namespace: &str, sandbox: &str, port: u16) -> String {
        until(&format!("{sandbox} answers {status}"), async || {
            match self.ask(namespace, sandbox, port, "").await {
                (found, body) if found == status => Ok(body),
                other => Err(other),
            }
        })
        .await
    }
}

/// What a client of the router at this address gets for this sandbox and port, with further header lines. Status 0 is for
/// no answer, or one that broke off.
pub async fn ask(router: SocketAddr, namespace: &str, sandbox: &str, port: u16, more: &str) -> (u16, String) {
    let fields =
        format!("X-Sandbox-ID: {sandbox}\r\nX-Sandbox-Namespace: {namespace}\r\nX-Sandbox-Port: {port}\r\n{more}");
    get(router, "/some/path", &fields).await
}

async fn get(address: SocketAddr, path: &str, fields: &str) -> (u16, String) {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, asking)
        .await
        .expect("an answer in time")
        .unwrap_or_default();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if !looks_complete(&answer) {
        return (0, body.to_owned());
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}

/// A kubeconfig for the router's ServiceAccount, from the administrator's.
pub(crate) fn kubeconfig(namespace: &str, server: Option<&str>) -> Value {
    let path = std::env::var_os("KUBECONFIG").expect("these tests need a cluster of their own: use tests/cluster/run");
    let mut config = documents(&std::fs::read_to_string(path).unwrap()).remove(0);
    for user in config["users"].as_array_mut().unwrap() {
        user["user"]["as"] = json!(format!("system:serviceaccount:{namespace}:{ACCOUNT}"));
    }
    if let Some(server) = server {
        for cluster in config["clusters"].as_array_mut().unwrap() {
            cluster["cluster"]["server"] = server.into();
        }
    }
    config
}

/// The files of a router's mesh identity; removed with it.
pub struct Identity(PathBuf);

impl Identity {
    /// The identity of the router of a namespace, under a root of its own.
    pub fn new(namespace: &str) -> Self {
        let authority = Authority::new("sandgate-tests").unwrap();
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{ACCOUNT}");
        let issued = authority.router(&identity.parse().unwrap()).unwrap();
        Self::with(namespace, &issued.chain_pem, &issued.key_pem, authority.root_pem())
    }

    /// An identity that somebody has given to the router of a namespace: chain, key and roots, all PEM.
    pub fn with(namespace: &str, chain: &str, key: &str, roots: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sandgate-router-identity-{namespace}"));
        std::fs::create_dir_all(&folder).unwrap();
        let identity = Self(folder);
        identity.replace(chain, key, roots);
        identity
    }

    /// Gives the router another one. It takes none that is half there.
    pub fn replace(&self, chain: &str, key: &str, roots: &str) {
        for (name, text) in [("ca.crt", roots), ("tls.key", key), ("tls.crt", chain)] {
            std::fs::write(self.0.join(name), text).unwrap();
        }
    }

    /// The flags that name them.
    pub fn flags(&self) -> Vec<String> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.0.join(name).display());
        vec![
            file("mesh-cert-file", "tls.crt"),
            file("mesh-key-file", "tls.key"),
            file("mesh-trust-bundle-file", "ca.crt"),
        ]
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An app where a pod would be: it answers with its name, and keeps each head that it saw.
pub struct PodApp {
    /// The pod's address.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl PodApp {
    /// Starts an app at a loopback address.
    pub async fn start(ip: &str, name: &'static str) -> Self {
        Self::serving(TcpListener::bind((ip, 0)).await.unwrap(), name)
    }

    /// Starts one at this port, or at any for 0, to which nobody can connect before it is told to begin: whoever tries waits.
    /// Connections that were accepted before any others keep it so.
    pub async fn start_full(ip: &str, port: u16, name: &'static str) -> (Self, oneshot::Sender<()>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(ip.parse().unwrap(), port)).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            waiting.push(stream);
        }
        let (begin, told) = oneshot::channel();
        let seen = Arc::default();
        let app = Self {
            address,
            seen: Arc::clone(&seen),
        };
        tokio::spawn(async move {
            let _ = told.await;
            drop(waiting);
            accept(listener, name, seen).await;
        });
        (app, begin)
    }

    fn serving(listener: TcpListener, name: &'static str) -> Self {
        let address = listener.local_addr().unwrap();
        let seen = Arc::default();
        let app = Self {
            address,
            seen: Arc::clone(&seen),
        };
        tokio::spawn(accept(listener, name, seen));
        app
    }

    /// The heads that came, since it was last asked.
    pub fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

async fn accept(listener: TcpListener, name: &'static str, heads: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let heads = Arc::clone(&heads);
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_buf(&mut head).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
            heads.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}",
                name.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        });
    }
}

impl Namespace {
    /// Says what a kubelet would say of a pod that runs at `ip`.
    pub async fn run_pod(&self, pod: &Value, ip: &str, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"$patch": "replace"}, {"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        let answer = self.change_part(pod, "status", &status).await;
        answer.unwrap_or_else(|status| panic!("setting a pod's status: {status}"));
    }
}

impl Cluster {
    /// A namespace with the router's ServiceAccount and the rights that the chart gives it.
    pub async fn router_system(&self) -> Namespace {
        let namespace = self.namespace(&[]).await;
        self.let_route(&namespace).await;
        namespace
    }

    /// Gives the router's ServiceAccount of a namespace the rights that the chart gives it.
    pub async fn let_route(&self, namespace: &Namespace) {
        self.give_rights(namespace, &[]).await;
        let router = self.as_service_account(namespace.name(), ACCOUNT);
        until("the router's rights are in force", async || {
            let may =
                router.may(namespace.name(), "watch", "pods").await && router.may("", "watch", "namespaces").await;
            may.then_some(()).ok_or("it may not watch pods and namespaces")
        })
        .await;
    }
    /// A namespace whose router's ServiceAccount has the rights that the chart gives to one that asks about callers. It takes a
    /// moment until they are in force.
    pub async fn reviewing_system(&self) -> Namespace {
        let namespace = self.namespace(&[]).await;
        let values = ["router.auth.mode=tokenreview", "router.auth.accessReview=true"];
        self.give_rights(&namespace, &values).await;
        namespace
    }

    async fn give_rights(&self, namespace: &Namespace, values: &[&str]) {
        let chart = crate::chart::Chart::render(values);
        let objects = chart.of_component("router", &["ClusterRole", "ClusterRoleBinding"]);
        let mut objects = crate::injector::in_namespace(namespace, &objects);
        // Tests that run at a time have rights of their own.
        let own = |name: &Value| Value::from(format!("{}-{}", name.as_str().unwrap(), namespace.name()));
        for object in &mut objects {
            if object["kind"] == "ClusterRoleBinding" {
                object["roleRef"]["name"] = own(&object["roleRef"]["name"]);
            }
            object["metadata"]["name"] = own(&object["metadata"]["name"]);
        }
        for object in &objects {
            self.remove_afterwards(object);
        }
        self.apply_all(&objects).await;
    }
}
