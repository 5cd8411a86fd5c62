//! The gates, and the authority in memory that keeps them and the router in certificates.

use crate::apps::Apps;
use crate::authority::Authority;
use crate::cli::{Failure, Options};
use crate::policies::Policies;
use anyhow::Context;
use sandbox_sidecar::authorize::OwnPorts;
use sandbox_sidecar::{Caps, Gate, Settings};
use sandgate_mesh::contract::DEFAULT_TRUST_DOMAIN;
use sandgate_mesh::credentials::{Credentials, MeshCredentials, Role};
use sandgate_mesh::drain::{self, Drain};
use sandgate_mesh::identity::{SandboxIdentity, TrustDomain, WorkloadIdentity};
use sandgate_mesh::sandbox::{PodUid, SandboxKey};
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Whom the gates let in.
const ROUTER: &str = "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router";
/// A leaf is renewed at this age, which is half its life.
const RENEW_AFTER: Duration = Duration::from_secs(12 * 60 * 60);
/// How often that age is compared with the clock: one long timer would stand still while the machine sleeps.
const RENEW_CHECK: Duration = Duration::from_secs(60);

/// Where the router finds a gate, and whom it must meet there.
pub(crate) struct GateAddress {
    pub(crate) key: SandboxKey,
    pub(crate) uid: PodUid,
    pub(crate) port: u16,
}

/// The gates and what they live on.
pub(crate) struct Gates {
    pub(crate) places: Vec<GateAddress>,
    pub(crate) router_credentials: Credentials,
    pub(crate) drain: Drain,
    _policies: Policies,
}

impl Gates {
    /// Starts one gate for each app, each with an identity of its own. `proxy_timeout` is theirs.
    pub(crate) async fn start(options: &Options, apps: &Apps, proxy_timeout: Duration) -> Result<Self, Failure> {
        let mut policies = Policies::load(options.policy.as_deref())?;
        let trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN.parse().context("the trust domain")?;
        let router: WorkloadIdentity = ROUTER.parse().context("the router's identity")?;
        let mut issuer = Issuer::new(trust_domain.clone())?;
        let (drain, draining) = drain::channel();
        let mut places = Vec::new();
        for sandbox in &apps.sandboxes {
            let key = SandboxKey {
                namespace: options.namespace.clone(),
                name: sandbox.name.clone(),
            };
            let uid = pod_uid()?;
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
            let listener = listener.with_context(|| format!("the gate of sandbox {} can't listen", sandbox.name))?;
            let port = listener.local_addr().context("a gate's own address")?.port();
            let identity = SandboxIdentity {
                trust_domain: trust_domain.clone(),
                sandbox: key.clone(),
                pod_uid: uid.clone(),
            };
            let settings = Settings {
                sandbox: key.clone(),
                pod_uid: uid.clone(),
                routers: vec![router.clone()],
                // No health port: 0 is no app's.
                own_ports: OwnPorts { mesh: port, health: 0 },
                caps: Caps::default(),
                framing: Arc::default(),
                proxy_timeout,
                audit: true,
            };
            let credentials = issuer.credentials(Subject::Sidecar(identity))?;
            let gate = Gate::new(settings, credentials, policies.of(sandbox)?)
                .with_context(|| format!("the gate of sandbox {} can't start", sandbox.name))?;
            tokio::spawn(gate.serve(listener, draining.clone()));
            places.push(GateAddress { key, uid, port });
        }
        let router_credentials = issuer.credentials(Subject::Router(router))?;
        tokio::spawn(issuer.renew());
        Ok(Self {
            places,
            router_credentials,
            drain,
            _policies: policies,
        })
    }
}

/// Whom a leaf is for.
enum Subject {
    Sidecar(SandboxIdentity),
    Router(WorkloadIdentity),
}

/// A subject, when its leaf was issued, and where it is published.
struct Leaf {
    subject: Subject,
    issued: SystemTime,
    credentials: watch::Sender<Option<Arc<MeshCredentials>>>,
}

/// The certificate authority, and everybody it keeps in certificates.
struct Issuer {
    authority: Authority,
    trust_domain: TrustDomain,
    leafs: Vec<Leaf>,
}

impl Issuer {
    fn new(trust_domain: TrustDomain) -> anyhow::Result<Self> {
        Ok(Self {
            authority: Authority::new("sandgate-local").context("the certificate authority can't be made")?,
            trust_domain,
            leafs: Vec::new(),
        })
    }

    fn credentials(&mut self, subject: Subject) -> anyhow::Result<Credentials> {
        let (sender, receiver) = watch::channel(Some(Arc::new(self.issue(&subject)?)));
        self.leafs.push(Leaf {
            subject,
            issued: SystemTime::now(),
            credentials: sender,
        });
        Ok(receiver)
    }

    fn issue(&self, subject: &Subject) -> anyhow::Result<MeshCredentials> {
        let (role, issued) = match subject {
            Subject::Sidecar(identity) => (Role::Sidecar, self.authority.sidecar(identity)),
            Subject::Router(identity) => (Role::Router, self.authority.router(identity)),
        };
        let issued = issued.context("a certificate can't be issued")?;
        let bundle = self.authority.root_pem().as_bytes();
        let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
        MeshCredentials::from_pem(role, chain, key, bundle, &self.trust_domain)
            .context("an issued certificate is not usable")
    }

    /// Renews every leaf at half its life, for as long as the process runs.
    async fn renew(mut self) {
        loop {
            tokio::time::sleep(RENEW_CHECK).await;
            self.renew_due(SystemTime::now());
        }
    }

    fn renew_due(&mut self, now: SystemTime) {
        let mut leafs = std::mem::take(&mut self.leafs);
        // A clock that was set back also makes a leaf due: it may not be valid yet.
        let due = |leaf: &&mut Leaf| now.duration_since(leaf.issued).map_or(true, |age| age >= RENEW_AFTER);
        for leaf in leafs.iter_mut().filter(due) {
            match self.issue(&leaf.subject) {
                Ok(credentials) => {
                    leaf.issued = now;
                    leaf.credentials.send_replace(Some(Arc::new(credentials)));
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "a certificate could not be renewed"),
            }
        }
        self.leafs = leafs;
    }
}

pub(crate) fn random() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("cannot read randomness from /dev/urandom")?;
    Ok(u128::from_be_bytes(bytes))
}

/// A random UUID (version 4), as the API server gives to a pod.
fn pod_uid() -> anyhow::Result<PodUid> {
    uuid(random()?).parse().context("a random pod UID")
}

fn uuid(random: u128) -> String {
    let bits = random & !(0xf << 76) & !(0b11 << 62) | (4 << 76) | (0b10 << 62);
    let digits = format!("{bits:032x}");
    let mut text = String::with_capacity(36);
    for (index, digit) in digits.chars().enumerate() {
        if matches!(index, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_look_like_those_of_pods() {
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_ne!(pod_uid().unwrap(), pod_uid().unwrap());
    }

    #[test]
    fn leafs_are_renewed_at_half_their_life_and_not_before() {
        let mut issuer = Issuer::new(DEFAULT_TRUST_DOMAIN.parse().unwrap()).unwrap();
        let mut credentials = issuer.credentials(Subject::Router(ROUTER.parse().unwrap())).unwrap();
        credentials.mark_unchanged();
        let now = SystemTime::now();
        issuer.renew_due(now + RENEW_AFTER / 2);
        assert!(!credentials.has_changed().unwrap());
        issuer.renew_due(now + RENEW_AFTER);
        assert!(credentials.has_changed().unwrap());
        credentials.mark_unchanged();
        issuer.renew_due(now);
        assert!(credentials.has_changed().unwrap(), "the clock was set back");
    }
}
