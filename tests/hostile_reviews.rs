//! Whoever reaches the webhook's port can't take the injector down: its memory stays within what the chart gives it, and
//! ordinary reviews and probes are answered.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use sandbox_injector::authority::{Authority, NewRoot};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the chart limits the injector's memory to.
const MEMORY_LIMIT: u64 = 256 << 20;
/// The longest body that is read.
const MAX_BODY: usize = 4 << 20;

/// The way to what stands for an API server.
const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "http://ADDRESS"}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
users: [{name: a, user: {token: a}}]
current-context: a
"#;

/// Answers with the Secret that holds this root, and has nothing else.
fn secret_of(root: &NewRoot) -> SocketAddr {
    let data = json!({"tls.crt": STANDARD.encode(&root.certificate_pem), "tls.key": STANDARD.encode(&root.key_pem)});
    let metadata = json!({"name": "sandgate-authority", "namespace": "agent-sandbox-system"});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let (status, body) = if first.starts_with("GET ") && first.contains("/secrets/sandgate-authority ") {
                ("200 OK", secret.as_str())
            } else {
                ("404 Not Found", "{}")
            };
            let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close");
            let _ = write!(&stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

/// A running injector, a process of its own.
struct Injector {
    child: Child,
    folder: PathBuf,
    webhook: SocketAddr,
    admin: SocketAddr,
    trusts: Arc<ClientConfig>,
}

impl Injector {
    /// Starts one, and returns when it is ready.
    async fn start(test: &str) -> Self {
        let injector = Self::begin(test);
        let ready = async {
            while !injector.admin("/readyz").await.starts_with("HTTP/1.1 200 ") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap();
        injector
    }

    fn begin(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sandgate-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            folder.join(name).display().to_string()
        };
        let root = NewRoot::generate().unwrap();
        let authority = Authority::from_pem(
            root.certificate_pem.as_bytes(),
            root.key_pem.as_bytes(),
            SystemTime::now(),
        )
        .unwrap();
        let issued = authority
            .serving(&["localhost".parse().unwrap()], Duration::from_secs(3600))
            .unwrap();
        let kubeconfig = KUBECONFIG.replace("ADDRESS", &secret_of(&root).to_string());
        let mut child = Command::new(env!("CARGO_BIN_EXE_sandbox-injector"))
            .args(["serve", "--manage-ca-bundle=false"])
            .args(["--webhook-bind-address=127.0.0.1:0", "--admin-bind-address=127.0.0.1:0"])
            .arg(format!("--webhook-cert-file={}", write("tls.crt", &issued.chain_pem)))
            .arg(format!("--webhook-key-file={}", write("tls.key", &issued.key_pem)))
            .env("KUBECONFIG", write("kubeconfig", &kubeconfig))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let listening: Value = lines
            .by_ref()
            .map(|line| serde_json::from_str::<Value>(&line).unwrap())
            .find(|line| line["message"] == "listening")
            .unwrap();
        // It must not wait for a reader of its log.
        std::thread::spawn(move || lines.for_each(drop));
        let address = |field: &str| listening[field].as_str().unwrap().parse().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.root().der().clone()).unwrap();
        let trusts = ClientConfig::builder_with_provider(sandgate_mesh::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            webhook: address("webhook"),
            admin: address("admin"),
            child,
            folder,
            trusts: Arc::new(trusts),
        }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let connecting = async {
            let stream = TcpStream::connect(self.webhook).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            TlsConnector::from(Arc::clone(&self.trusts))
                .connect(name, stream)
                .await
                .unwrap()
        };
        tokio::time::timeout(PATIENCE, connecting).await.unwrap()
    }

    async fn post(&self, path: &str, body: String) -> (StatusCode, String) {
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
            tokio::spawn(connection);
            let request = Request::post(path)
                .header("host", "localhost")
                .header("content-type", "application/json");
            let answer = sender
                .send_request(request.body(Full::new(Bytes::from(body))).unwrap())
                .await
                .unwrap();
            let (head, body) = answer.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            (head.status, String::from_utf8_lossy(&body).into_owned())
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap()
    }

    /// A connection on which all but the last byte of the longest body has been sent.
    async fn stall(&self) -> TlsStream<TcpStream> {
        let mut stream = self.connect().await;
        let head = format!(
            "POST /mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {MAX_BODY}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Those that make room are told so, and may see the end of their connection.
        let _ = stream.write_all(&vec![b' '; MAX_BODY - 1]).await;
        stream
    }

    /// What the admin port says.
    async fn admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        answer
    }

    /// The most memory that the process has had, in bytes.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn sandbox(spec: &Value) -> Value {
    json!({"metadata": {"name": "a", "labels": {"sandgate.dev/inject": "enabled"}}, "spec": spec})
}

fn review(operation: &str, sub_resource: &str, old: &Value, new: &Value) -> String {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "a",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "subResource": sub_resource,
            "namespace": "team-a",
            "operation": operation,
            "userInfo": {"username": "mallory"},
            "oldObject": old,
            "object": new,
        },
    });
    review.to_string()
}

fn creation(pod: &Value) -> String {
    review("CREATE", "", &Value::Null, pod)
}

fn ordinary() -> String {
    creation(&sandbox(&json!({"containers": [{"name": "app", "image": "a"}]})))
}

/// A pod of many small parts in one place.
fn parts(count: usize) -> Value {
    let parts = vec![json!({"name": ""}); count];
    sandbox(&json!({"containers": [{"name": "app", "image": "a", "env": parts}]}))
}

/// Reviews that take the most that is let in, each in another way.
fn heaviest() -> Vec<(&'static str, String, StatusCode)> {
    let long = |length: usize| {
        sandbox(&json!({"containers": [{"name": "app", "image": "a", "command": ["a".repeat(length)]}]}))
    };
    let containers = |list: &str, count: usize| {
        let many: Vec<_> = (0..count).map(|number| json!({"name": number.to_string()})).collect();
        let mut pod = sandbox(&json!({"containers": [{"name": "app", "image": "a"}]}));
        pod["spec"][list] = many.into();
        pod["metadata"]["labels"]["sandgate.dev/injected"] = "true".into();
        pod
    };
    let labels = |count: usize| {
        let mut pod = sandbox(&json!({"containers": [{"name": "app", "image": "a"}]}));
        for number in 0..count {
            pod["metadata"]["labels"][format!("sandgate.dev/{number}")] = "".into();
        }
        pod
    };
    let (ok, refused) = (StatusCode::OK, StatusCode::BAD_REQUEST);
    vec![
        ("/mutate", creation(&parts(340_000)), refused),
        ("/validate", creation(&parts(340_000)), refused),
        ("/mutate", creation(&parts(20_000)), refused),
        ("/mutate", creation(&parts(6_500)), ok),
        ("/validate", creation(&parts(6_500)), ok),
        ("/validate", review("UPDATE", "", &parts(10_000), &parts(10_000)), ok),
        (
            "/validate",
            review(
                "UPDATE",
                "ephemeralcontainers",
                &parts(1),
                &containers("ephemeralContainers", 6_000),
            ),
            ok,
        ),
        ("/mutate", creation(&containers("containers", 6_000)), ok),
        ("/mutate", creation(&containers("initContainers", 6_000)), ok),
        ("/validate", creation(&containers("initContainers", 6_000)), ok),
        ("/validate", review("UPDATE", "", &labels(1), &labels(20_000)), ok),
        ("/mutate", creation(&long(MAX_BODY / 3 - 1000)), ok),
        (
            "/validate",
            review("UPDATE", "", &long(MAX_BODY / 2 - 1000), &long(MAX_BODY / 2 - 1000)),
            ok,
        ),
        ("/mutate", creation(&parts(5_000)), ok),
    ]
}

#[tokio::test]
async fn no_review_and_no_number_of_them_takes_more_memory_than_the_chart_gives() {
    let injector = Injector::start("memory").await;
    for (path, body, expected) in heaviest() {
        assert!(body.len() <= MAX_BODY, "{}", body.len());
        let (status, answer) = injector.post(path, body).await;
        assert_eq!(status, expected, "{path}: {answer:.500}");
    }
    // And all at once, again and again, beside senders that stall.
    let stalling = join_all((0..12).map(|_| injector.stall())).await;
    for _ in 0..2 {
        join_all(heaviest().into_iter().map(|(path, body, _)| injector.post(path, body))).await;
    }
    drop(stalling);
    assert!(injector.peak() < MEMORY_LIMIT / 4 * 3, "{} MiB", injector.peak() >> 20);
    assert_eq!(injector.post("/mutate", ordinary()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn senders_that_stall_keep_out_no_review() {
    let injector = Injector::start("stalling").await;
    let _stalling = join_all((0..24).map(|_| injector.stall())).await;
    let (status, answer) = injector.post("/mutate", ordinary()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let (status, answer) = injector.post("/mutate", creation(&parts(5_000))).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

/// What an API server has under way at most, by its defaults, is no attack.
#[tokio::test]
async fn a_burst_of_reviews_is_answered_whole() {
    let injector = Injector::start("burst").await;
    for path in ["/mutate", "/validate"] {
        let answers = join_all((0..600).map(|_| injector.post(path, ordinary()))).await;
        assert!(answers.iter().all(|(status, _)| *status == StatusCode::OK));
    }
    let metrics = injector.admin("/metrics").await;
    assert!(
        metrics.contains("\nsandgate_injector_refused_connections_total 0\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn what_the_log_has_lost_is_counted() {
    let injector = Injector::start("lost").await;
    let metrics = injector.admin("/metrics").await;
    assert!(
        metrics.contains("\nsandgate_injector_dropped_log_lines_total 0\n"),
        "{metrics}"
    );
}
