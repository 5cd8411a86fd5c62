//! What answers here is a stranger: it has the address, and nothing else of a gate.

use super::*;
use crate::authority::{Issued, Signed};
use crate::authority_stored::Stored;
use crate::enrol::own::{OwnIdentity, bundle};
use crate::rig::PATIENCE;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use sandgate_mesh::contract::ALPN_CONTROL;
use sandgate_mesh::identity::SandboxIdentity;
use sandgate_mesh::policy::model::{DefaultPolicy, Generation, Snapshot, VERSION};
use sandgate_mesh::tls::provider;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const LIFETIME: Duration = Duration::from_secs(3600);
const ENROLMENT: &str = r#"{"podUid":"pod-1","csr":"c","token":"t","floor":{"epoch":1,"counter":2}}"#;

fn target() -> Target {
    Target {
        namespace: "team-a".parse().unwrap(),
        name: "box".parse().unwrap(),
        uid: "pod-1".parse().unwrap(),
        ip: [127, 0, 0, 1].into(),
    }
}

fn identity() -> SandboxIdentity {
    let Target {
        namespace, name, uid, ..
    } = target();
    SandboxIdentity {
        trust_domain: "cluster.local".parse().unwrap(),
        sandbox: SandboxKey { namespace, name },
        pod_uid: uid,
    }
}

/// Whoever answers: what it presents and what it does with a connection.
struct Stranger {
    address: SocketAddr,
    stored: Stored,
    _serving: JoinSet<()>,
}

impl Stranger {
    async fn new<F: Future<Output = ()> + Send>(
        certificate: impl FnOnce(&Stored) -> (String, String),
        serve: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static,
    ) -> Self {
        let stored = Stored::new();
        let (chain, key) = certificate(&stored);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let tls = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.unwrap(), key)
            .unwrap();
        Self::serving(stored, tls, serve).await
    }

    /// One that believes this control plane as long as its certificate counts at this time, and answers.
    async fn strict(clock: UnixTime) -> Self {
        let stored = Stored::new();
        let mut roots = RootCertStore::empty();
        roots.add(stored.authority.root().der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let (chain, key) = own_making(&stored);
        let chain = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        let tls = ServerConfig::builder_with_details(provider(), Arc::new(At(clock)))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![chain], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap();
        Self::serving(stored, tls, |mut stream| async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer("200 OK", ENROLMENT).as_bytes()).await;
            let _ = stream.read(&mut [0; 4096]).await;
        })
        .await
    }

    async fn serving<F: Future<Output = ()> + Send>(
        stored: Stored,
        mut tls: ServerConfig,
        serve: impl Fn(TlsStream<TcpStream>) -> F + Send + 'static,
    ) -> Self {
        tls.alpn_protocols = vec![ALPN_CONTROL.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream).await;
                }
            }
        });
        Self {
            address,
            stored,
            _serving: serving,
        }
    }

    /// One that sends this again and again, once it was asked.
    async fn sending(first: impl Into<String>, again: &'static str) -> Self {
        let first = first.into();
        Self::new(own_making, move |mut stream| {
            let first = first.clone();
            async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let mut sent = stream.write_all(first.as_bytes()).await;
                while sent.is_ok() && !again.is_empty() {
                    sent = stream.write_all(again.as_bytes()).await;
                }
                let _ = stream.flush().await;
                // Until the other side goes.
                let _ = stream.read(&mut [0; 4096]).await;
            }
        })
        .await
    }

    /// Whether it proves to be the gate that was dialed, with an identity of its root that lasts so long.
    async fn proves(&self, least: SystemTime) -> bool {
        let connection = self.dial().await.unwrap();
        connection.proven(self.stored.authority.root(), least).is_ok()
    }

    async fn dial(&self) -> Result<Connection, DialError> {
        let workload = "spiffe://cluster.local/ns/here/sa/sandbox-injector".parse().unwrap();
        let own = OwnIdentity::new(workload, LIFETIME).credentials(&self.stored).unwrap();
        dial_at(self.address, &gate(&target(), &identity().trust_domain), &own[0]).await
    }

    async fn asked(&self) -> Result<Enrolment, DialError> {
        let mut connection = self.dial().await.unwrap();
        tokio::time::timeout(PATIENCE, connection.enrolment()).await.unwrap()
    }
}

/// A certificate that nobody vouches for.
fn own_making(_: &Stored) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// The leaf of this sandbox.
fn leaf_of(identity: &SandboxIdentity, stored: &Stored) -> (String, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap();
    let Signed { chain_pem, .. } = stored.authority.sign_gate(&csr, identity, LIFETIME).unwrap();
    (chain_pem, key.serialize_pem())
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_gate_says_what_enrols_it() {
    let gate = Stranger::sending(answer("200 OK", ENROLMENT), "").await;
    assert_eq!(gate.asked().await.unwrap().pod_uid.as_str(), "pod-1");
}

#[tokio::test]
async fn what_is_no_answer_of_a_gate_is_refused_by_its_name() {
    let padded = |bytes: usize| format!("{ENROLMENT}{}", " ".repeat(bytes));
    for (sent, again, word) in [
        (answer("200 OK", "{}"), "", "unreadable"),
        (answer("200 OK", &ENROLMENT.replace("pod-1", "../x")), "", "unreadable"),
        (
            answer("200 OK", &ENROLMENT.replace("\"csr\"", "\"also\":1,\"csr\"")),
            "",
            "unreadable",
        ),
        (answer("200 OK", &padded(MAX_ANSWER)), "", "too_large"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".into(),
            "400\r\n",
            "broken",
        ),
        (
            "HTTP/1.1 200 OK\r\n".into(),
            "x-a: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
            "too_large",
        ),
        (String::new(), "HTTP/1.1 103 Early Hints\r\n\r\n", "too_large"),
        (answer("409 Conflict", r#"{"detail":"below the floor"}"#), "", "stale"),
        (answer("503 Service Unavailable", "x"), "", "gate_refused"),
        ("SSH-2.0-x\r\n".into(), "", "broken"),
    ] {
        let begun = sent.chars().take(60).collect::<String>();
        let stranger = Stranger::sending(sent, again).await;
        let error = stranger.asked().await.unwrap_err();
        assert_eq!(error.as_str(), word, "{begun:?} {again:?}: {error}");
    }
}

/// A body that never ends is never held whole.
#[tokio::test]
async fn who_sends_without_end_is_cut_off() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let stranger = Stranger::sending(head, "8\r\naaaaaaaa\r\n").await;
    let error = stranger.asked().await.unwrap_err();
    assert_eq!(error.as_str(), "too_large", "{error}");
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    for begun in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"] {
        let stranger = Stranger::sending(begun, "").await;
        let error = stranger.asked().await.unwrap_err();
        assert!(matches!(error, DialError::Silent), "{error}");
    }
}

#[tokio::test]
async fn a_gate_that_repeats_what_a_stranger_wrote_repeats_little_of_it() {
    let long = format!(r#"{{"detail":"{}"}}"#, "x".repeat(9000));
    let stranger = Stranger::sending(answer("400 Bad Request", &long), "").await;
    let error = stranger.asked().await.unwrap_err().to_string();
    assert!(error.len() < 2 * LONGEST_TEXT, "{error}");
}

#[tokio::test]
async fn a_policy_goes_to_the_gate_that_was_dialed_and_to_nobody_else() {
    let other = |change: &dyn Fn(&mut SandboxIdentity)| {
        let mut other = identity();
        change(&mut other);
        other
    };
    let others = [
        other(&|id| id.pod_uid = "pod-2".parse().unwrap()),
        other(&|id| id.sandbox.name = "other".parse().unwrap()),
        other(&|id| id.sandbox.namespace = "team-b".parse().unwrap()),
    ];
    let done = |_| async {};
    for other in others {
        let stranger = Stranger::new(|stored| leaf_of(&other, stored), done).await;
        assert!(!stranger.proves(SystemTime::now()).await, "{other}");
    }
    let stranger = Stranger::new(own_making, done).await;
    let connection = stranger.dial().await.unwrap();
    assert!(matches!(
        connection.proven(stranger.stored.authority.root(), SystemTime::now()),
        Err(Some(NotEnrolled::Unverified(_)))
    ));
    // Another authority's leaf of that very sandbox.
    let stranger = Stranger::new(|_| leaf_of(&identity(), &Stored::new()), done).await;
    assert!(!stranger.proves(SystemTime::now()).await);
    // The control plane's own leaf, replayed.
    let stranger = Stranger::new(
        |stored| {
            let workload = "spiffe://cluster.local/ns/here/sa/sandbox-injector".parse().unwrap();
            let Issued { chain_pem, key_pem, .. } = stored.authority.client_leaf(&workload, LIFETIME).unwrap();
            (chain_pem, key_pem)
        },
        done,
    )
    .await;
    assert!(!stranger.proves(SystemTime::now()).await);
    // An older leaf than the one that was just given out.
    let gate = Stranger::new(|stored| leaf_of(&identity(), stored), done).await;
    let least = SystemTime::now() + 2 * LIFETIME;
    assert!(gate.proves(SystemTime::now()).await && !gate.proves(least).await);
    let connection = gate.dial().await.unwrap();
    let next = Stored::new();
    assert!(connection.is_under(gate.stored.authority.root()) && !connection.is_under(next.authority.root()));
    let shown = connection.proven(next.authority.root(), SystemTime::now());
    assert!(matches!(shown, Err(None)), "the root that signs now is another");
}

#[tokio::test]
async fn a_policy_is_put_on_a_proven_connection() {
    let gate = Stranger::new(
        |stored| leaf_of(&identity(), stored),
        |mut stream| async move {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            assert!(request.starts_with("PUT /control/v1/policy HTTP/1.1\r\n"), "{request}");
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            let _ = stream.read(&mut [0]).await;
        },
    )
    .await;
    let connection = gate.dial().await.unwrap();
    assert!(matches!(connection.standing(), DialedStanding::Enrolled { .. }));
    let push = PolicyPush {
        pod_uid: target().uid,
        snapshot: Snapshot {
            version: VERSION,
            generation: Generation { epoch: 1, counter: 1 },
            default_policy: DefaultPolicy::Deny,
            ports: vec![8888],
            policies: Vec::new(),
        },
    };
    let mut proven = connection
        .proven(gate.stored.authority.root(), SystemTime::now())
        .unwrap();
    proven.put_policy(&push).await.unwrap();
    assert_eq!(bundle(&gate.stored.roots).matches("BEGIN CERTIFICATE").count(), 1);
}

#[tokio::test]
async fn nobody_there_is_told_from_who_does_not_speak_the_protocol() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stranger = Stranger::sending("", "").await;
    stranger.address = listener.local_addr().unwrap();
    let closing = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    assert_eq!(stranger.dial().await.unwrap_err().as_str(), "handshake");
    closing.await.unwrap();
    assert_eq!(stranger.dial().await.unwrap_err().as_str(), "unreachable");
}

#[tokio::test]
async fn what_an_answer_says_of_the_clock_is_known_however_it_goes_on() {
    let dated =
        |date: &str, status: &str| answer(status, ENROLMENT).replacen("\r\n", &format!("\r\ndate: {date}\r\n"), 1);
    let hour = Duration::from_secs(3600);
    for (shown, status, right) in [
        (SystemTime::now(), "200 OK", true),
        (SystemTime::now() + hour, "200 OK", false),
        (SystemTime::now() - hour, "503 Service Unavailable", false),
    ] {
        let gate = Stranger::sending(dated(&httpdate::fmt_http_date(shown), status), "").await;
        let mut connection = gate.dial().await.unwrap();
        assert_eq!(connection.enrolment().await.is_ok(), status.starts_with("200"));
        assert_eq!(connection.skew().map(Skew::is_large), Some(!right), "{status}");
    }
    let silent = Stranger::sending(answer("200 OK", ENROLMENT), "").await;
    let mut connection = silent.dial().await.unwrap();
    connection.enrolment().await.unwrap();
    assert_eq!(connection.skew(), None);
}

/// A clock that stands still.
#[derive(Debug)]
struct At(UnixTime);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

#[tokio::test]
async fn who_takes_this_certificate_for_one_out_of_date_has_a_wrong_clock() {
    let hour = Duration::from_secs(3600);
    for (clock, word) in [
        (SystemTime::now() - hour, Some("clock")),
        (SystemTime::now() + 2 * hour, Some("clock")),
        (SystemTime::now(), None),
    ] {
        let since = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let gate = Stranger::strict(UnixTime::since_unix_epoch(since)).await;
        let asked = gate.asked().await;
        assert_eq!(asked.as_ref().err().map(DialError::as_str), word, "{asked:?}");
        assert!(asked.err().is_none_or(|error| error.may_be_disbelief()));
    }
}
