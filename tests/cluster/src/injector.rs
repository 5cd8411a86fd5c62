//! The injector in a cluster: its ServiceAccount with the rights that it needs and no other, its Service, its webhook
//! configurations, and running replicas.

use crate::chart::{Chart, OWN_NAMESPACE};
use crate::{Cluster, Namespace, documents, until};
use http::StatusCode;
use sandbox_injector::config::serve::{CertificateSource, Config};
use sandbox_injector::{Injector, Timing};
use sandgate_mesh::telemetry::LineLog;
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The name of the webhook's Service and configurations.
const NAME: &str = "sandgate-injector";
/// The injector's ServiceAccount.
pub(crate) const ACCOUNT: &str = "sandbox-injector";

/// What of the chart the injector needs besides its webhook configurations: its rights, and its empty Secret.
const NEEDED: [&str; 5] = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Secret"];

/// A port of this machine under the name of a Service: the API server's way to the injector, with its names, and HTTP/1.1
/// as in every cluster.
const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: sandgate-injector, namespace: SYSTEM}
spec: {type: ExternalName, externalName: localhost}
";

/// The namespace of the injector, with all that it needs to run there. The webhook configurations are for the whole
/// cluster: tests with one must be alone.
pub struct System {
    /// The namespace.
    pub namespace: Namespace,
    injector: Cluster,
}

impl System {
    /// Makes the namespace, the Service and the ServiceAccount's rights, for the length of the test.
    pub async fn install(cluster: &Cluster) -> Self {
        let namespace = cluster.namespace(&[]).await;
        let mut objects = in_namespace(&namespace, &Chart::render(&[]).of_kinds(&NEEDED));
        objects.extend(documents(&SERVICE.replace("SYSTEM", namespace.name())));
        apply(cluster, &objects).await;
        let injector = cluster.as_service_account(namespace.name(), ACCOUNT);
        until("the injector's rights are in force", async || {
            let may = injector.may(namespace.name(), "list", "namespaces").await;
            may.then_some(()).ok_or("it may not list namespaces")
        })
        .await;
        Self { namespace, injector }
    }

    /// The same where Helm has installed the chart: its objects are the release's.
    pub fn of_release(namespace: &Namespace) -> Self {
        let injector = namespace.cluster().as_service_account(namespace.name(), ACCOUNT);
        let namespace = namespace.clone();
        Self { namespace, injector }
    }

    /// Makes the chart's webhook configurations, which lead to a port of this machine. They are in force when
    /// [`Namespace::until_admitted`] or [`Namespace::until_refused`] says so. Returns them as they were applied.
    pub async fn configure(&self, chart: &Chart, port: u16) -> Vec<Value> {
        let mut objects = chart.of_kinds(&["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]);
        for webhook in objects
            .iter_mut()
            .flat_map(|object| object["webhooks"].as_array_mut().unwrap())
        {
            webhook["clientConfig"]["service"]["port"] = port.into();
        }
        let objects = in_namespace(&self.namespace, &objects);
        apply(self.namespace.cluster(), &objects).await;
        objects
    }

    /// The chart's admission policies, for the injector of this namespace.
    pub fn policies(&self, chart: &Chart) -> Vec<Value> {
        in_namespace(&self.namespace, &chart.policies())
    }

    /// Starts a replica that is configured as the chart does it, save for what a test changes.
    pub fn start(&self, chart: &Chart, change: impl FnOnce(&mut Config, &mut Timing)) -> Replica {
        let (mut config, own) = (chart.config().clone(), self.namespace.name());
        config.settings.own_namespace = own.parse().unwrap();
        config.settings.router_identities = vec![
            format!("spiffe://cluster.local/ns/{own}/sa/sandbox-router")
                .parse()
                .unwrap(),
        ];
        config.settings.control_identity = format!("spiffe://cluster.local/ns/{own}/sa/{ACCOUNT}").parse().unwrap();
        if let CertificateSource::Issued { names, .. } = &mut config.certificate {
            *names = vec![format!("{NAME}.{own}.svc").parse().unwrap()];
        }
        config.webhook = (Ipv4Addr::LOCALHOST, 0).into();
        config.admin = (Ipv4Addr::LOCALHOST, 0).into();
        // What takes seconds in a cluster would take a test's patience.
        config.drain_delay = Duration::from_millis(500);
        let mut timing = Timing {
            check: Duration::from_millis(200),
            ..Timing::default()
        };
        change(&mut config, &mut timing);
        let log = LineLog::to(std::io::sink()).unwrap();
        let injector = Injector::bind(config, self.injector.client(), timing, log).unwrap();
        let (webhook, admin) = (injector.webhook_address(), injector.admin_address());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(injector.run(async {
            // Dropped is as good as told.
            let _ = stopped.await;
        }));
        Replica {
            webhook,
            admin,
            stop,
            running,
        }
    }
}

/// The chart's objects as if it had been installed there.
pub(crate) fn in_namespace(namespace: &Namespace, objects: &[Value]) -> Vec<Value> {
    let rendered = serde_json::to_string(objects).unwrap();
    serde_json::from_str(&rendered.replace(OWN_NAMESPACE, namespace.name())).unwrap()
}

async fn apply(cluster: &Cluster, objects: &[Value]) {
    for object in objects {
        cluster.remove_afterwards(object);
    }
    cluster.apply_all(objects).await;
}

/// A running injector. It is told to end when dropped.
pub struct Replica {
    /// Where its webhook listens.
    pub webhook: SocketAddr,
    /// Where its health and metrics are.
    pub admin: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Replica {
    /// Ends it as SIGTERM does, and returns when it has ended.
    pub async fn stop(self) {
        drop(self.stop);
        let ended = tokio::time::timeout(crate::PATIENCE, self.running).await;
        ended.expect("the injector ends in time").unwrap().unwrap();
    }

    /// Returns when it is ready.
    pub async fn until_ready(&self) {
        until("the injector is ready", async || {
            match get(self.admin, "/readyz").await {
                Ok((StatusCode::OK, _)) => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }

    /// The value of a series: 0 if there is none.
    pub async fn metric(&self, series: &str) -> u64 {
        let (status, text) = get(self.admin, "/metrics").await.unwrap();
        assert_eq!(status, StatusCode::OK, "{text}");
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap_or_else(|_| panic!("{series} {value}")))
    }

    /// Returns when the value of a series has reached `least`.
    pub async fn until_metric(&self, series: &str, least: u64) {
        let what = format!("{series} has reached {least}");
        until(&what, async || match self.metric(series).await {
            value if value >= least => Ok(()),
            value => Err(value),
        })
        .await;
    }
}

/// Asks a health and metrics port.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<(StatusCode, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.unwrap_or(StatusCode::BAD_GATEWAY), body.to_owned()))
}
