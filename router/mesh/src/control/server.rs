//! The control API as gates and routers serve it: who may use it, and how its requests are read and answered. Hides HTTP and
//! TLS from [`super::enroller`], which decides.

pub use super::enroller::Identity;
use super::enroller::{Enrollee, Enroller, EnrolmentError, Taken};
use super::metrics::Pushed;
pub use super::metrics::{ControlMetrics, Pushes};
use super::state::State;
use super::{ENROLMENT_PATH, IDENTITY_PATH, IdentityGrant, MAX_BODY_BYTES, POLICY_PATH, PolicyPush};
use crate::body::{BodyError, detail, discard};
use crate::credentials::{Credentials, MeshCredentials, Unfit};
use crate::drain::Draining;
use crate::framing::{Limits, refusal};
use crate::identity::{PeerId, WorkloadIdentity};
use crate::listener::Newcomers;
use crate::policy::PolicySnapshot;
use crate::policy::model::Generation;
use crate::serve;
use crate::telemetry::{chain, utc};
use crate::tls::{self, Anchors, ControlTrust, MeshPeer, ServerTls, TlsError};
use anyhow::Context;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, EXPECT, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::DeserializeOwned;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

/// Control connections at the same time. One more ends the oldest, so that a control plane that is gone keeps out none that
/// took its place.
const MOST_CONNECTIONS: usize = 4;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(5);
/// How long a connection may be idle.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// Where an identity, and a gate's policy, come from if a control plane brings them.
#[derive(Debug, Clone)]
pub struct ControlSettings {
    /// Who may bring them.
    pub control_planes: Vec<WorkloadIdentity>,
    /// Under which roots, while no identity is in force that is valid.
    pub anchors: Anchors,
    /// Where what they bring is kept.
    pub state_folder: PathBuf,
}

/// The control API of one gate or router.
#[derive(Debug)]
pub struct Control {
    trust: ControlTrust,
    tls: ServerTls,
    enroller: Enroller,
    connections: Newcomers,
    limits: Arc<Limits>,
}

impl Control {
    /// The API of `own`, with what its folder has kept for it.
    ///
    /// # Errors
    /// There is no such folder, or the system gives no randomness.
    pub fn open(settings: ControlSettings, own: Enrollee, identity: Identity) -> anyhow::Result<Self> {
        let state = State::open(settings.state_folder)?;
        Ok(Self {
            trust: ControlTrust {
                role: own.role(),
                anchors: settings.anchors,
                control_planes: settings.control_planes,
                trust_domain: own.trust_domain().clone(),
                stand_in: stand_in().context("a key can't be made")?,
            },
            tls: ServerTls::default(),
            enroller: Enroller::new(own, identity, state),
            connections: Newcomers::new(MOST_CONNECTIONS),
            limits: Arc::new(Limits {
                idle_time: IDLE_TIME,
                ..Limits::default()
            }),
        })
    }

    /// The identity in force.
    pub fn credentials(&self) -> Credentials {
        self.enroller.credentials()
    }

    /// Why there is no identity that counts, in words: whether one came and by this clock is out of date, too.
    pub fn explain(&self, unfit: Unfit, now: SystemTime) -> String {
        match self.enroller.unfit() {
            Some(refused) => {
                let clock = utc(now);
                format!(
                    "{unfit}; one came and was refused: {refused}, and the clock here says {clock}; compare the clocks"
                )
            }
            None => unfit.to_string(),
        }
    }

    /// The policy in force; for a router there never is one.
    pub fn policy(&self) -> watch::Receiver<Option<Arc<PolicySnapshot>>> {
        self.enroller.policy()
    }

    /// Whether the peer is one that this API is for.
    pub fn is_control_plane(&self, peer: &PeerId) -> bool {
        matches!(peer, PeerId::Workload(id) if self.trust.control_planes.contains(id))
    }

    /// What a connection is served with now.
    ///
    /// # Errors
    /// Nobody could be believed: there are no roots yet.
    pub fn server_tls(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let identity = self.enroller.credentials().borrow().clone();
        self.server_tls_with(identity.as_ref(), SystemTime::now())
    }

    fn server_tls_with(
        &self,
        identity: Option<&Arc<MeshCredentials>>,
        now: SystemTime,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let anchors = self.trust.anchors.borrow().clone();
        let make = || tls::control_server_config(&self.trust, identity.map(Arc::as_ref), now);
        self.tls.get(identity, anchors.as_ref(), now, make)
    }

    /// Serves a control plane, which the handshake has proven the peer to be.
    pub async fn serve(
        self: Arc<Self>,
        metrics: ControlMetrics,
        stream: TlsStream<TcpStream>,
        peer: MeshPeer,
        address: SocketAddr,
        draining: Draining,
    ) {
        let mut place = self.connections.enter(address.ip());
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let (peer, displaced) = (Arc::new(Caller { id: peer.id, chain }), metrics.displaced.clone());
        let (control, limits, metrics) = (Arc::clone(&self), Arc::clone(&self.limits), Arc::new(metrics));
        let served = serve::http1(stream, &limits, draining, move |request, _| {
            let (control, metrics, peer) = (Arc::clone(&control), Arc::clone(&metrics), Arc::clone(&peer));
            async move { Box::pin(control.answer(&metrics, &peer, request)).await }
        });
        tokio::select! {
            () = served => {}
            () = place.displaced() => displaced.inc(),
        }
    }

    /// Answers one request. Never sheds: what this takes is bounded, and who fills a gate's memory must not keep out the
    /// policy that stops them.
    async fn answer(
        &self,
        metrics: &ControlMetrics,
        peer: &Caller,
        mut request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        if let Some(violation) = refusal(&request) {
            return detail(violation.status(), violation.detail());
        }
        let answer = self.dispatch(metrics, peer, &mut request).await;
        // Or closing the connection could overtake the answer.
        if !request.headers().contains_key(EXPECT) {
            discard(request.into_body()).await;
        }
        answer
    }

    async fn dispatch(
        &self,
        metrics: &ControlMetrics,
        peer: &Caller,
        request: &mut Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        if let Err(Unheard { status, text }) = self.check(peer) {
            return detail(status, &text);
        }
        let allowed = match request.uri().path() {
            ENROLMENT_PATH => Method::GET,
            IDENTITY_PATH => Method::PUT,
            POLICY_PATH if self.enroller.takes_policies() => Method::PUT,
            _ => return detail(StatusCode::NOT_FOUND, "There is nothing here."),
        };
        if *request.method() != allowed {
            let mut answer = detail(StatusCode::METHOD_NOT_ALLOWED, "The method is not allowed here.");
            let allowed = HeaderValue::from_str(allowed.as_str());
            answer
                .headers_mut()
                .extend(allowed.ok().map(|allowed| (ALLOW, allowed)));
            return answer;
        }
        match request.uri().path() {
            IDENTITY_PATH => self.identity(metrics, peer, request.body_mut()).await,
            POLICY_PATH => self.policy_push(metrics, peer, request.body_mut()).await,
            _ => self.enrolment(&peer.id),
        }
    }

    fn enrolment(&self, peer: &PeerId) -> Response<Full<Bytes>> {
        let enrolment = match self.enroller.enrolment() {
            Ok(enrolment) => enrolment,
            Err(error) => {
                tracing::error!(%peer, error = chain(&error), "a control plane asks for the enrolment, and there is none");
                return detail(error.status(), &error.to_string());
            }
        };
        match serde_json::to_vec(&enrolment) {
            Ok(body) => {
                let mut answer = Response::new(Full::from(body));
                let json = HeaderValue::from_static("application/json");
                answer.headers_mut().insert(CONTENT_TYPE, json);
                answer
            }
            Err(_) => detail(StatusCode::INTERNAL_SERVER_ERROR, "The enrolment can't be written."),
        }
    }

    /// Connections outlive certificates, and the roots that they are under.
    fn check(&self, peer: &Caller) -> Result<(), Unheard> {
        let identity = self.enroller.credentials().borrow().clone();
        let counts = tls::is_still_control_plane(&self.trust, identity.as_deref(), &peer.chain, SystemTime::now());
        counts.then_some(()).ok_or_else(|| Unheard {
            status: StatusCode::FORBIDDEN,
            text: "The certificate of this connection does not count any more; open another.".into(),
        })
    }

    /// Reads a body of somebody who is still a control plane when it has come.
    async fn hear<T: DeserializeOwned>(&self, peer: &Caller, body: &mut Incoming) -> Result<T, Unheard> {
        let heard = read(body).await?;
        self.check(peer)?;
        Ok(heard)
    }

    async fn identity(&self, metrics: &ControlMetrics, peer: &Caller, body: &mut Incoming) -> Response<Full<Bytes>> {
        let taken = self.hear(peer, body).await.map(|grant: IdentityGrant| {
            let generation = grant.generation;
            (generation, self.enroller.take_identity(grant))
        });
        finish("identity", &peer.id, taken, |outcome| {
            metrics.identities.count(outcome);
        })
    }

    async fn policy_push(&self, metrics: &ControlMetrics, peer: &Caller, body: &mut Incoming) -> Response<Full<Bytes>> {
        let taken = self
            .hear(peer, body)
            .await
            .map(|push: PolicyPush| (push.snapshot.generation, self.enroller.take_policy(&push)));
        finish("policy", &peer.id, taken, |outcome| {
            if let Some(policies) = &metrics.policies {
                policies.count(outcome);
            }
        })
    }
}

/// Who is at the other end of a connection, and what it has proven that with.
struct Caller {
    id: PeerId,
    chain: Vec<CertificateDer<'static>>,
}

/// Why a body isn't heard.
struct Unheard {
    status: StatusCode,
    text: String,
}

/// Reads a body of JSON.
async fn read<T: DeserializeOwned>(body: &mut Incoming) -> Result<T, Unheard> {
    let unheard = |error: BodyError| Unheard {
        status: error.status(),
        text: error.detail().into(),
    };
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(unheard(BodyError::TooLarge));
    }
    let whole = Limited::new(body, MAX_BODY_BYTES).collect();
    let whole = tokio::time::timeout(BODY_TIME, whole).await;
    let whole = whole.map_err(|_| unheard(BodyError::Silent))?;
    let whole = whole.map_err(|error| unheard(body_error(error)))?.to_bytes();
    // Its place only: a text that isn't understood may be anything.
    serde_json::from_slice(&whole).map_err(|error| Unheard {
        status: StatusCode::BAD_REQUEST,
        text: format!(
            "The body is not what is put here: line {}, column {}.",
            error.line(),
            error.column()
        ),
    })
}

fn body_error(error: Box<dyn Error + Send + Sync>) -> BodyError {
    if error.is::<LengthLimitError>() {
        return BodyError::TooLarge;
    }
    let framing = error.downcast::<hyper::Error>();
    framing.map_or(BodyError::Broken, |error| BodyError::from(*error))
}

/// Counts, tells the log and answers.
fn finish(
    what: &'static str,
    peer: &PeerId,
    taken: Result<(Generation, Result<Taken, EnrolmentError>), Unheard>,
    count: impl Fn(Pushed),
) -> Response<Full<Bytes>> {
    let (status, reason, text) = match taken {
        Ok((Generation { epoch, counter }, Ok(taken))) => {
            count(match taken {
                Taken::Changed => Pushed::Accepted,
                Taken::Unchanged => Pushed::Repeated,
            });
            if taken == Taken::Changed {
                tracing::info!(what, %peer, epoch, counter, "the control plane's is in force");
            }
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            return answer;
        }
        Ok((_, Err(error))) => (error.status(), chain(&error), error.to_string()),
        Err(Unheard { status, text }) => (status, text.clone(), text),
    };
    count(if status.is_server_error() {
        Pushed::Failed
    } else {
        Pushed::Refused
    });
    tracing::warn!(what, %peer, status = status.as_u16(), reason, "the control plane's was not taken");
    detail(status, &text)
}

/// A key and a certificate that says nothing. A control plane doesn't look at what it can't believe yet.
fn stand_in() -> anyhow::Result<Arc<CertifiedKey>> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = CertificateParams::default().self_signed(&key)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let key = tls::provider().key_provider.load_private_key(key)?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, LeafSpec, Usage};
    use crate::credentials::{Role, roots_from_pem};

    const OWN: &str = "spiffe://cluster.local/ns/team-a/sandbox/alpha/pod/u1";

    fn identity(authority: &Authority) -> Arc<MeshCredentials> {
        let issued = authority.issue(&LeafSpec::new("gate", OWN, Usage::Server)).unwrap();
        let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        let (bundle, domain) = (authority.root_pem().as_bytes(), "cluster.local".parse().unwrap());
        Arc::new(MeshCredentials::from_pem(Role::Sidecar, chain, key, bundle, &domain).unwrap())
    }

    #[test]
    fn a_tls_configuration_is_made_once_for_each_identity_and_anew_when_that_has_ended_or_roots_change() {
        let authority = Authority::new("mesh").unwrap();
        let PeerId::Sandbox(own) = OWN.parse().unwrap() else {
            panic!()
        };
        let roots = || roots_from_pem(authority.root_pem().as_bytes()).unwrap();
        let (believe, anchors) = watch::channel(Some(roots()));
        let settings = ControlSettings {
            control_planes: vec!["spiffe://cluster.local/ns/system/sa/injector".parse().unwrap()],
            anchors,
            state_folder: std::env::temp_dir(),
        };
        let granted = Identity::Granted {
            token_file: PathBuf::new(),
        };
        let control = Control::open(settings, Enrollee::Gate(own), granted).unwrap();
        let (first, second) = (identity(&authority), identity(&authority));
        let now = SystemTime::now();
        let end = first.validity().not_after + Duration::from_secs(1);
        let mut last: Option<Arc<ServerConfig>> = None;
        for (name, identity, at) in [
            ("born", None, now),
            ("enrolled", Some(&first), now),
            ("renewed", Some(&second), now),
            ("ended", Some(&second), end),
            ("valid again", Some(&second), now),
        ] {
            let [made, again] = [(); 2].map(|()| control.server_tls_with(identity, at).unwrap());
            assert!(Arc::ptr_eq(&made, &again), "{name}: made twice");
            let is_old = last.is_some_and(|last| Arc::ptr_eq(&last, &made));
            assert!(!is_old, "{name}: still the one before");
            last = Some(made);
        }
        let before = control.server_tls_with(None, now).unwrap();
        believe.send_replace(Some(roots()));
        assert!(!Arc::ptr_eq(&before, &control.server_tls_with(None, now).unwrap()));
        believe.send_replace(None);
        assert!(control.server_tls_with(None, now).is_err(), "nobody is believed");
        assert!(control.server_tls_with(Some(&first), now).is_ok(), "but under a bundle");
    }
}
