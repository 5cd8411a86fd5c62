//! Which identity does a gate or a router take from its control planes, and which policy does a gate? Hides the key that waits for its certificate, the
//! floor below which nothing is taken, and that nothing counts before it is kept.

use super::state::{KeptIdentity, State};
use super::{Enrolment, IdentityGrant, PolicyPush, bundle_digest, policy_digest};
use crate::credentials::{Credentials, CredentialsError, MeshCredentials, Role, Unfit};
use crate::identity::{SandboxIdentity, TrustDomain, WorkloadIdentity};
use crate::policy::model::{Generation, Snapshot};
use crate::policy::{PolicySnapshot, SnapshotError};
use crate::sandbox::PodUid;
use crate::telemetry::seconds_since_1970;
use http::StatusCode;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tokio::sync::watch;

/// The longest token that is read, in bytes.
const MAX_TOKEN: u64 = 16 * 1024;
/// How far an epoch may be ahead of this clock, which control planes make epochs of: in seconds, more than eleven days. One that
/// is as far ahead as can be would leave no higher one to those who come later.
const MOST_AHEAD: u64 = 1_000_000;

/// Whom a program is to be enrolled as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrollee {
    /// The gate of this sandbox.
    Gate(SandboxIdentity),
    /// A router of this identity, which it may share with others.
    Router {
        /// Who it is to be.
        identity: WorkloadIdentity,
        /// The pod that it runs in.
        pod_uid: PodUid,
    },
}

impl Enrollee {
    /// Which end of the mesh it is.
    pub fn role(&self) -> Role {
        match self {
            Self::Gate(_) => Role::Sidecar,
            Self::Router { .. } => Role::Router,
        }
    }

    /// The pod that it runs in.
    pub fn pod_uid(&self) -> &PodUid {
        match self {
            Self::Gate(own) => &own.pod_uid,
            Self::Router { pod_uid, .. } => pod_uid,
        }
    }

    /// Its trust domain, and its control planes'.
    pub fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Gate(own) => &own.trust_domain,
            Self::Router { identity, .. } => &identity.trust_domain,
        }
    }

    /// What a grant makes of a key, if that is exactly who this is.
    fn credentials(&self, key: &str, grant: &IdentityGrant) -> Result<MeshCredentials, EnrolmentError> {
        let (chain, key, bundle) = (grant.chain.as_bytes(), key.as_bytes(), grant.bundle.as_bytes());
        let found = match self {
            Self::Gate(own) => MeshCredentials::of_gate(chain, key, bundle, own),
            Self::Router { identity, .. } => MeshCredentials::of_router(chain, key, bundle, identity),
        };
        found.map_err(|error| match error {
            CredentialsError::KeyMismatch => EnrolmentError::ForeignKey,
            other => EnrolmentError::Credentials(other),
        })
    }
}

/// Where the identity comes from.
#[derive(Debug)]
pub enum Identity {
    /// Control planes grant it.
    Granted {
        /// What proves to them in which pod this runs; read anew each time.
        token_file: PathBuf,
    },
    /// Somebody else gives it, as a kubelet does: control planes bring no more than policies.
    Given(Credentials),
}

/// Why nothing was taken, or given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolmentError {
    /// It is for somebody else.
    #[error("this is the pod {own}, and what was sent is for {found}")]
    OtherPod { own: PodUid, found: PodUid },
    /// An old control plane, or an old message.
    #[error("generation {}.{} is below the floor, {}.{}", .found.epoch, .found.counter, .floor.epoch, .floor.counter)]
    Stale { found: Generation, floor: Generation },
    /// One that would lock out all who come later.
    #[error(
        "epoch {epoch} is too high: none is taken above {highest}, the seconds of this clock and {MOST_AHEAD} more"
    )]
    FarAhead { epoch: u64, highest: u64 },
    /// The leaf has nothing to do with the keys here.
    #[error("the chain's leaf is not for the key of the enrolment; ask for that again")]
    ForeignKey,
    /// Whoever sent it takes this for another.
    #[error("the identity comes from files here, and none is taken from a control plane")]
    NotAsked,
    /// The grant makes no credentials.
    #[error("the identity can't be used: {0}")]
    Credentials(CredentialsError),
    /// It doesn't serve.
    #[error("the identity can't be used: {0}; compare the clocks")]
    Unfit(#[from] Unfit),
    /// The snapshot can't be enforced.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is no proof of where this runs.
    #[error("the token can't be read")]
    NoToken(#[source] io::Error),
    /// The system gives no randomness.
    #[error("a key can't be made")]
    NoKey(#[source] rcgen::Error),
    /// What isn't kept would be gone after a crash.
    #[error("what was sent can't be kept")]
    NotKept(#[source] io::Error),
}

impl EnrolmentError {
    /// What the control plane is told beside the text.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Stale { .. } => StatusCode::CONFLICT,
            Self::OtherPod { .. }
            | Self::FarAhead { .. }
            | Self::ForeignKey
            | Self::NotAsked
            | Self::Credentials(_)
            | Self::Unfit(_)
            | Self::Snapshot(_) => StatusCode::BAD_REQUEST,
            Self::NoToken(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoKey(_) | Self::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What became of something that was sent, and is in force now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It wasn't before.
    Changed,
    /// It was already.
    Unchanged,
}

/// What has been enrolled, and what is being enrolled.
#[derive(Default)]
struct Held {
    /// A key without a certificate, and the request for one. In memory only: it proves nothing yet.
    pending: Option<(KeyPair, String)>,
    identity: Option<KeptIdentity>,
    policy: Option<(Generation, String)>,
    /// Why the identity that came last wasn't taken, if by this clock it doesn't count.
    unfit: Option<Unfit>,
}

impl Held {
    fn floor(&self) -> Generation {
        let identity = self.identity.as_ref().map(|kept| kept.grant.generation);
        let policy = self.policy.as_ref().map(|(generation, _)| *generation);
        let lowest = Generation { epoch: 0, counter: 0 };
        identity.max(policy).unwrap_or(lowest)
    }
}

/// What [`Identity`] says, with the identities that were granted.
enum Source {
    Granted {
        token_file: PathBuf,
        in_force: watch::Sender<Option<Arc<MeshCredentials>>>,
    },
    Given(Credentials),
}

/// The side of an enrolment that is dialed.
pub(crate) struct Enroller {
    own: Enrollee,
    state: State,
    credentials: Source,
    policy: watch::Sender<Option<Arc<PolicySnapshot>>>,
    held: Mutex<Held>,
}

impl fmt::Debug for Enroller {
    /// Without keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enroller")
            .field("own", &self.own)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Enroller {
    /// Of `own`, with what `state` has kept for it.
    pub(crate) fn new(own: Enrollee, identity: Identity, state: State) -> Self {
        let mut held = Held::default();
        let check_pod = |uid: &PodUid| {
            let is_own = (uid == own.pod_uid()).then_some(());
            is_own.ok_or_else(|| format!("it is of the pod {uid}"))
        };
        let mut kept = || {
            state.identity(|kept| {
                check_pod(&kept.grant.pod_uid)?;
                let found = own
                    .credentials(&kept.key, &kept.grant)
                    .map_err(|error| error.to_string())?;
                held.identity = Some(kept);
                Ok(Arc::new(found))
            })
        };
        let credentials = match identity {
            Identity::Granted { token_file } => Source::Granted {
                token_file,
                in_force: watch::Sender::new(kept()),
            },
            Identity::Given(credentials) => Source::Given(credentials),
        };
        let policy = state.policy(|push| {
            check_pod(&push.pod_uid)?;
            let found = compiled(&push.snapshot).map_err(|error| error.to_string())?;
            held.policy = Some((found.generation(), policy_digest(&push.snapshot)));
            Ok(Arc::new(found))
        });
        Self {
            own,
            state,
            credentials,
            policy: watch::Sender::new(policy),
            held: Mutex::new(held),
        }
    }

    /// The identity in force.
    pub(crate) fn credentials(&self) -> Credentials {
        match &self.credentials {
            Source::Granted { in_force, .. } => in_force.subscribe(),
            Source::Given(credentials) => credentials.clone(),
        }
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> watch::Receiver<Option<Arc<PolicySnapshot>>> {
        self.policy.subscribe()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the identity that came last wasn't taken, if by this clock it doesn't count.
    pub(crate) fn unfit(&self) -> Option<Unfit> {
        self.held().unfit
    }

    /// Whether policies are for it.
    pub(crate) fn takes_policies(&self) -> bool {
        matches!(self.own, Enrollee::Gate(_))
    }

    /// What enrols it: the same request until it is granted, and then one for another key. Where the identity comes from
    /// elsewhere, only what it has.
    pub(crate) fn enrolment(&self) -> Result<Enrolment, EnrolmentError> {
        let token_file = match &self.credentials {
            Source::Granted { token_file, .. } => token_file,
            Source::Given(credentials) => return Ok(self.given(credentials)),
        };
        let token = read_token(token_file).map_err(EnrolmentError::NoToken)?;
        let mut held = self.held();
        let csr = if let Some((_, csr)) = &held.pending {
            csr.clone()
        } else {
            let (key, csr) = new_request().map_err(EnrolmentError::NoKey)?;
            held.pending = Some((key, csr.clone()));
            csr
        };
        Ok(Enrolment {
            pod_uid: self.own.pod_uid().clone(),
            csr,
            token,
            floor: held.floor(),
            policy_digest: held.policy.as_ref().map(|(_, digest)| digest.clone()),
            bundle_digest: held
                .identity
                .as_ref()
                .and_then(|kept| bundle_digest(&kept.grant.bundle)),
        })
    }

    fn given(&self, credentials: &Credentials) -> Enrolment {
        let held = self.held();
        let in_force = credentials.borrow();
        let bundle_digest = in_force.as_ref().and_then(|found| found.bundle_digest());
        Enrolment {
            pod_uid: self.own.pod_uid().clone(),
            csr: String::new(),
            token: String::new(),
            floor: held.floor(),
            policy_digest: held.policy.as_ref().map(|(_, digest)| digest.clone()),
            bundle_digest: bundle_digest.map(str::to_owned),
        }
    }

    /// Takes an identity: for the key that waits for one, or for the one in force with another bundle.
    pub(crate) fn take_identity(&self, grant: IdentityGrant) -> Result<Taken, EnrolmentError> {
        let Source::Granted {
            in_force: published, ..
        } = &self.credentials
        else {
            return Err(EnrolmentError::NotAsked);
        };
        let mut held = self.held();
        self.check(&grant.pod_uid, grant.generation, held.floor())?;
        let in_force = held.identity.as_ref().filter(|kept| kept.grant.chain == grant.chain);
        let key = match (in_force, &held.pending) {
            (Some(kept), _) => kept.key.clone(),
            (None, Some((key, _))) => key.serialize_pem(),
            (None, None) => return Err(EnrolmentError::ForeignKey),
        };
        let found = self.own.credentials(&key, &grant)?;
        // Nothing that serves gives way to what doesn't, and what doesn't has no use.
        if let Err(unfit) = found.validity().check(SystemTime::now()) {
            held.unfit = Some(unfit);
            return Err(unfit.into());
        }
        if in_force.is_some_and(|kept| kept.grant == grant) {
            return Ok(Taken::Unchanged);
        }
        let renewed = in_force.is_none();
        let same_bundle = in_force.is_some_and(|kept| kept.grant.bundle == grant.bundle);
        let kept = KeptIdentity { key, grant };
        self.state.keep_identity(&kept).map_err(EnrolmentError::NotKept)?;
        held.identity = Some(kept);
        held.unfit = None;
        if renewed {
            held.pending = None;
        }
        if same_bundle {
            return Ok(Taken::Unchanged);
        }
        published.send_replace(Some(Arc::new(found)));
        Ok(Taken::Changed)
    }

    /// Takes a policy.
    pub(crate) fn take_policy(&self, push: &PolicyPush) -> Result<Taken, EnrolmentError> {
        let mut held = self.held();
        self.check(&push.pod_uid, push.snapshot.generation, held.floor())?;
        let digest = policy_digest(&push.snapshot);
        if held.policy.as_ref().is_some_and(|(_, in_force)| *in_force == digest) {
            return Ok(Taken::Unchanged);
        }
        let found = compiled(&push.snapshot)?;
        self.state.keep_policy(push).map_err(EnrolmentError::NotKept)?;
        held.policy = Some((found.generation(), digest));
        self.policy.send_replace(Some(Arc::new(found)));
        Ok(Taken::Changed)
    }

    fn check(&self, pod: &PodUid, found: Generation, floor: Generation) -> Result<(), EnrolmentError> {
        let own = self.own.pod_uid();
        if pod != own {
            let (own, found) = (own.clone(), pod.clone());
            return Err(EnrolmentError::OtherPod { own, found });
        }
        if found < floor {
            return Err(EnrolmentError::Stale { found, floor });
        }
        let highest = seconds_since_1970(SystemTime::now()).saturating_add(MOST_AHEAD);
        // What is in force may be repeated whatever the clock says now.
        if found.epoch > highest.max(floor.epoch) {
            let epoch = found.epoch;
            return Err(EnrolmentError::FarAhead { epoch, highest });
        }
        Ok(())
    }
}

fn compiled(snapshot: &Snapshot) -> Result<PolicySnapshot, SnapshotError> {
    let written = serde_json::to_vec(snapshot).map_err(SnapshotError::Format)?;
    PolicySnapshot::parse(&written)
}

/// A fresh key and the request for its certificate, which names nobody: who this is, the token says.
fn new_request() -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

/// The token as it is now: the kubelet replaces it long before it ends.
fn read_token(path: &Path) -> io::Result<String> {
    let mut token = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_TOKEN + 1).read_to_string(&mut token));
    let wrong = |text: &str| Err(io::Error::other(format!("{}: {text}", path.display())));
    match read {
        Err(error) => wrong(&error.to_string()),
        Ok(_) if token.len() as u64 > MAX_TOKEN => wrong("larger than 16 KiB"),
        Ok(_) if token.trim().is_empty() => wrong("empty"),
        Ok(_) => Ok(token.trim().to_owned()),
    }
}

#[cfg(test)]
#[path = "enroller_tests.rs"]
mod tests;
