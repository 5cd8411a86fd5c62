//! A router with an HTTPS listener, and its clients.

use crate::folder::Folder;
use crate::{Mesh, PATIENCE, POD_UID, Ports, RecordingApp, default_policy, exchange, send, signer, status};
use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use sandgate_mesh::credentials::roots_from_pem;
use sandgate_mesh::policy::model::{DefaultPolicy, Snapshot};
use sandgate_mesh::tls;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The router's name.
pub const NAME: &str = "router.test";

/// A mesh whose router listens for HTTPS, too, with a certificate of `authority`.
pub struct Front {
    /// What is behind the router.
    pub mesh: Mesh,
    /// Whose certificate the router shows, and whose clients it takes.
    pub authority: Authority,
    /// Holds `tls.crt`, `tls.key` and `clients.crt`.
    pub folder: Folder,
    /// Where the router listens for HTTPS.
    pub https: SocketAddr,
    /// Where it listens for HTTP.
    pub http: SocketAddr,
    /// Where its metrics are.
    pub metrics: SocketAddr,
}

/// A certificate for the router's listener.
pub fn server(authority: &Authority) -> Issued {
    let mut leaf = LeafSpec::new("front", "", Usage::Server);
    (leaf.uris, leaf.dns) = (vec![], vec![NAME.into()]);
    authority.issue(&leaf).unwrap()
}

/// A client's certificate with this common name and these URIs.
pub fn client(authority: &Authority, common_name: &str, uris: &[&str]) -> Issued {
    let mut leaf = LeafSpec::new(common_name, "", Usage::Client);
    leaf.uris = uris.iter().copied().map(String::from).collect();
    authority.issue(&leaf).unwrap()
}

fn roots(authority: &Authority) -> Arc<RootCertStore> {
    roots_from_pem(authority.root_pem().as_bytes()).unwrap()
}

impl Front {
    /// Client certificates are asked for as `mtls` says, and verified under `authority`, too. Tokens aren't asked for.
    pub async fn start(mtls: &str, policy: impl FnOnce(Ports) -> Snapshot) -> Self {
        Self::start_with(mtls, &["--auth-token=", "--authz-mode=allow-all"], policy).await
    }

    /// The same, with `more` flags for the router.
    pub async fn start_with(mtls: &str, more: &[&str], policy: impl FnOnce(Ports) -> Snapshot) -> Self {
        Self::around(RecordingApp::polite().await, mtls, more, policy).await
    }

    /// The same in front of an `app` of the test's own.
    pub async fn around(app: RecordingApp, mtls: &str, more: &[&str], policy: impl FnOnce(Ports) -> Snapshot) -> Self {
        let mesh = Mesh::start(app, policy).await;
        let (authority, folder) = (Authority::new("front").unwrap(), Folder::new());
        let issued = server(&authority);
        folder.rename_over("tls.crt", &issued.chain_pem);
        folder.rename_over("tls.key", &issued.key_pem);
        folder.rename_over("clients.crt", authority.root_pem());
        let file = |flag: &str, name: &str| format!("--{flag}={}", folder.path(name).display());
        let files = [
            file("tls-cert-file", "tls.crt"),
            file("tls-key-file", "tls.key"),
            file("tls-client-ca-file", "clients.crt"),
            format!("--mtls-mode={mtls}"),
        ];
        let mut flags = vec!["--https-bind-address=127.0.0.1:0"];
        flags.extend(files.iter().map(String::as_str).chain(more.iter().copied()));
        let router = mesh.bind_router("default/alpha", POD_UID, &flags);
        let (https, http, metrics) = (router.https_address(), router.http_address(), router.metrics_address());
        tokio::spawn(router.run(std::future::pending()));
        Self {
            mesh,
            authority,
            folder,
            https: https.unwrap(),
            http,
            metrics,
        }
    }

    /// A mesh whose gate lets everybody use the app's port.
    pub async fn open(mtls: &str) -> Self {
        Self::start(mtls, everybody).await
    }

    /// A connection of a client that trusts `trusted` and presents `certificate`. An error is the client's refusal; a
    /// router's refusal shows only later.
    ///
    /// # Errors
    /// The client doesn't trust the router.
    pub async fn connect(
        &self,
        trusted: &Authority,
        certificate: Option<&Issued>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(config(trusted, certificate));
        let stream = TcpStream::connect(self.https).await.unwrap();
        let handshake = connector.connect(NAME.try_into().unwrap(), stream);
        timeout(PATIENCE, handshake).await.unwrap()
    }

    /// Sends bytes over HTTPS; nothing comes back where the router refuses the certificate.
    pub async fn send(&self, certificate: Option<&Issued>, bytes: impl AsRef<[u8]>) -> String {
        exchange(self.connect(&self.authority, certificate).await.unwrap(), bytes, false).await
    }

    /// The status of a simple request; 0 where the router refuses the certificate.
    pub async fn status(&self, certificate: Option<&Issued>) -> u16 {
        status(&self.send(certificate, self.mesh.head("GET / HTTP/1.1", "")).await)
    }

    /// Waits until changed files were loaded, or not, so many times.
    pub async fn reloads(&self, outcome: &str, count: usize) {
        let scrape = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let line = format!("sandbox_router_cert_reloads_total{{outcome=\"{outcome}\"}} {count}\n");
        let counted = async {
            while !send(self.metrics, scrape).await.contains(&line) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, counted)
            .await
            .unwrap_or_else(|_| panic!("not seen: {line}"));
    }
}

/// The TLS configuration of a client that trusts `trusted` and presents `certificate`.
pub fn config(trusted: &Authority, certificate: Option<&Issued>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(tls::provider());
    let builder = builder.with_protocol_versions(&[&TLS13]).unwrap();
    let builder = builder.with_root_certificates(roots(trusted));
    Arc::new(match certificate {
        None => builder.with_no_client_auth(),
        Some(issued) => builder.with_client_cert_resolver(Arc::new(signer(issued))),
    })
}

/// A policy that lets everybody use the app's port.
pub fn everybody(ports: Ports) -> Snapshot {
    default_policy(DefaultPolicy::Anonymous, vec![ports.app])
}
