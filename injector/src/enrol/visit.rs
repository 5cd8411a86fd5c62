//! One visit to one gate, from the dial to the policy: what it has already is left alone, and what it lacks it gets only
//! after all that proves who it is. [`super::visit_certified`] is the same
//! for a gate whose identity the kubelet brings, and [`super::visit_router`] for a router.

use super::clock::Clock;
use super::dial::{Connection, DialError, Proven, dial, gate};
use super::evidence::{Evidence, EvidenceError, StoredPod};
use super::holders::Proof;
use super::namespaces::OptedIn;
use super::own::{OwnIdentity, bundle};
use super::pods::Target;
use super::policy;
use super::queue::{self, Next, Trouble};
use super::shown::Shown;
use super::verify::{self, Refusal, Verified};
use crate::anchors::Anchors;
use crate::authority::{Root, SignError, Signed};
use crate::authority_keeper::Authority;
use crate::authority_stored::Stored;
use crate::born::Terms;
use crate::kubernetes::RequestError;
use crate::settings::Settings;
use crate::shape::Shapes;
use sandgate_mesh::control::{Enrolment, IdentityGrant, PolicyPush, bundle_digest, policy_digest};
use sandgate_mesh::credentials::MeshCredentials;
use sandgate_mesh::policy::model::{DefaultPolicy, Generation, Snapshot};
use sandgate_mesh::tls::{Dialed, DialedStanding, NotEnrolled};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// The longest visit. Each step has a limit of its own; this is for a gate that uses them up one after the other.
const VISIT_TIME: Duration = Duration::from_secs(30);
/// No identity is renewed more often than in this part of its life, however soon the root ends.
const SHORTEST: f64 = 0.05;

/// Whom a visitor looks after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    Gates,
    Routers,
}

impl Party {
    /// The word for one of them.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Gates => "gate",
            Self::Routers => "router",
        }
    }
}

/// Who makes the visits of one leader.
pub(super) struct Visitor {
    pub(super) party: Party,
    pub(super) evidence: Evidence,
    pub(super) settings: Settings,
    pub(super) shapes: Shapes,
    pub(super) default_policy: DefaultPolicy,
    pub(super) authority: Authority,
    pub(super) anchors: watch::Receiver<Option<Arc<Anchors>>>,
    pub(super) opted_in: OptedIn,
    pub(super) shown: Shown,
    pub(super) own: OwnIdentity,
    /// How long identities live.
    pub(super) lifetime: Duration,
    /// When each has ended that a former leader gave.
    pub(super) former_until: SystemTime,
    pub(super) epoch: u64,
    /// What was said last in this epoch.
    pub(super) counter: AtomicU64,
}

/// What a visit has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// It has its first identity, and a gate its policy.
    Enrolled,
    /// It has a new identity before the end of the old one.
    Renewed,
    /// It has a new policy.
    Policy,
    /// It had all, but perhaps the generation of this epoch.
    Nothing,
}

impl Done {
    /// The word for it in metrics and logs.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Renewed => "renewed",
            Self::Policy => "policy",
            Self::Nothing => "current",
        }
    }
}

/// A gate, or a router, that is as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) done: Done,
    /// What it has shown: its identity, and its roots.
    pub(super) proof: Proof,
}

/// Why it isn't as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum VisitError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the API server can't be asked: {0}")]
    Api(#[from] RequestError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("an identity was taken and isn't shown: {}", .0.as_ref().map_or("it shows an older one".to_owned(), ToString::to_string))]
    NotShown(Option<NotEnrolled>),
    #[error("the kubelet's certificate isn't shown: {0}; look at the pod's events and its PodCertificateRequests")]
    NoCertificate(NotEnrolled),
    #[error("the kubelet hasn't brought the roots that are in force yet")]
    AwaitsRoots(Proof),
    #[error("the control plane has no identity of its own: {0}")]
    Own(anyhow::Error),
    #[error("the visit took longer than {} s", VISIT_TIME.as_secs())]
    TooLong,
    #[error("a defect of this program")]
    Panicked,
}

impl From<EvidenceError> for VisitError {
    fn from(error: EvidenceError) -> Self {
        match error {
            EvidenceError::Api(error) => error.into(),
            EvidenceError::Unreadable(what) => Refusal::Unreadable(what).into(),
        }
    }
}

impl VisitError {
    /// What was shown all the same.
    pub(super) const fn proof(&self) -> Option<&Proof> {
        match self {
            Self::AwaitsRoots(proof) => Some(proof),
            _ => None,
        }
    }

    /// `refused` or `failed`.
    pub(super) const fn outcome(&self) -> &'static str {
        match self.trouble() {
            Trouble::Refused => "refused",
            Trouble::Failed => "failed",
        }
    }

    /// The word for it in metrics and logs.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.as_str(),
            Self::Dial(error) => error.as_str(),
            Self::Api(_) => "api_server",
            Self::Sign(SignError::Request(_)) => "csr",
            Self::Sign(_) | Self::Own(_) => "authority",
            Self::NotShown(_) => "not_shown",
            Self::NoCertificate(_) => "no_certificate",
            Self::AwaitsRoots(_) => "awaits_roots",
            Self::TooLong => "too_long",
            Self::Panicked => "panicked",
        }
    }

    pub(super) const fn trouble(&self) -> Trouble {
        match self {
            Self::Refused(_) | Self::Sign(SignError::Request(_)) => Trouble::Refused,
            _ => Trouble::Failed,
        }
    }
}

/// Where a gate or a router stands, as far as it has proven it.
pub(super) enum Standing {
    /// It has an identity that lasts, until then.
    Lasting(SystemTime),
    /// It has one that has to be renewed.
    Ending,
    /// It has none.
    Nothing,
}

impl Visitor {
    /// Makes a visit within bounded time. What it learns of the clock of who is visited is noted there, however it ends.
    ///
    /// # Errors
    /// What keeps who is visited from being as it should be.
    pub(super) async fn visit(&self, visit: &queue::Visit, clock: &Clock) -> Result<Settled, VisitError> {
        let (target, renew) = (&visit.target, visit.renew);
        let visiting = async {
            match self.party {
                Party::Gates => self.bring_up_to_date(target, renew, clock).await,
                Party::Routers => self.bring_router_up_to_date(target, renew, clock).await,
            }
        };
        let visited = tokio::time::timeout(VISIT_TIME, visiting).await;
        visited.map_err(|_| VisitError::TooLong)?
    }

    /// When to visit a gate again whose identity ends then: when half of its life or a little more is over, so that gates
    /// that were enrolled together aren't renewed together.
    pub(super) fn next(&self, until: SystemTime) -> Next {
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        let needed = self.lifetime.mul_f64(0.4 + 0.1 * fastrand::f64());
        Next::After(left.saturating_sub(needed).max(self.lifetime.mul_f64(SHORTEST)))
    }

    async fn bring_up_to_date(&self, target: &Target, renew: bool, clock: &Clock) -> Result<Settled, VisitError> {
        let stored = self.stored()?;
        let own = self.own.credentials(&stored).map_err(VisitError::Own)?;

        let expected = gate(target, &self.settings.trust_domain);
        let (connection, enrolment, credentials) = match reach(target, &expected, &own).await {
            Ok(reached) => reached,
            Err(VisitError::Dial(error)) => return Err(self.explained(target, error).await),
            Err(error) => return Err(error),
        };
        clock.note(connection.skew());
        let (root, in_force) = (stored.authority.root(), bundle_digest(&bundle(&stored.roots)));
        // A former leader may have told it other roots, or may not have come to tell it these; and of the same roots another
        // may have signed then.
        let renew = renew || enrolment.bundle_digest != in_force || !connection.is_under(root);
        // As it is stored, by its name: what was watched may be old, and another pod may have the name by now.
        let pod = self.evidence.pod(&target.namespace, &target.name).await?;
        let pod = verify::dialed(target, pod.as_ref().map(StoredPod::object))?;
        if verify::has_pod_certificate(pod) {
            return self
                .bring_policy_up_to_date(target, connection, &enrolment, &stored, pod)
                .await;
        }
        let standing = self.standing(connection.standing(), renew);

        if let Standing::Lasting(until) = standing {
            let done = self
                .compare_policy(target, connection, root, until, &enrolment, pod)
                .await?;
            let proof = proof(&stored, until);
            return Ok(Settled { done, proof });
        }

        let anchors = match standing {
            Standing::Nothing => None,
            Standing::Ending | Standing::Lasting(_) => verify::born_with(pod),
        };
        let verified = self.verify(target, pod, anchors, &enrolment).await?;
        let signed = self.sign(&stored, &verified, &enrolment)?;
        let given = self.give(connection, target, &expected, credentials, &stored, signed);
        let (mut gate, proof) = given.await?;
        self.push_policy(&mut gate, target, pod).await?;
        let done = match standing {
            Standing::Nothing => Done::Enrolled,
            Standing::Ending | Standing::Lasting(_) => Done::Renewed,
        };
        Ok(Settled { done, proof })
    }

    /// Gives a gate that has an identity its policy, unless it has that.
    pub(super) async fn compare_policy(
        &self,
        target: &Target,
        connection: Connection,
        root: &Root,
        until: SystemTime,
        enrolment: &Enrolment,
        pod: &Value,
    ) -> Result<Done, VisitError> {
        // What a gate has is compared under the generation that it has it under.
        let same = enrolment.policy_digest == Some(policy_digest(&self.snapshot(pod, enrolment.floor)));
        // In a new epoch it is told all the same: what a former leader has sent and the network still holds back must
        // find a floor that it is below.
        if !same || enrolment.floor.epoch < self.epoch {
            let mut gate = connection.proven(root, until).map_err(VisitError::NotShown)?;
            self.push_policy(&mut gate, target, pod).await?;
        }
        Ok(if same { Done::Nothing } else { Done::Policy })
    }

    /// Gives an identity to whoever holds the key that it is for, and returns when that has been shown: only then may it be
    /// told anything else.
    ///
    /// # Errors
    /// It wasn't taken, or isn't shown.
    pub(super) async fn give(
        &self,
        mut connection: Connection,
        target: &Target,
        expected: &Dialed,
        credentials: &MeshCredentials,
        stored: &Stored,
        signed: Signed,
    ) -> Result<(Proven, Proof), VisitError> {
        let grant = IdentityGrant {
            pod_uid: target.uid.clone(),
            generation: self.generation(),
            chain: signed.chain_pem,
            bundle: bundle(&stored.roots),
        };
        connection.put_identity(&grant).await?;
        drop(connection);
        let connection = dial(target, expected, credentials).await?;
        let shown = connection.proven(stored.authority.root(), signed.not_after);
        let proven = shown.map_err(VisitError::NotShown)?;
        Ok((proven, proof(stored, signed.not_after)))
    }

    /// A gate that doesn't believe this control plane may have been given another when it was born.
    async fn explained(&self, target: &Target, error: DialError) -> VisitError {
        if !matches!(error, DialError::Handshake(_) | DialError::Broken(_)) {
            return error.into();
        }
        let Ok(pod) = self.evidence.pod(&target.namespace, &target.name).await else {
            return error.into();
        };
        let held = verify::dialed(target, pod.as_ref().map(StoredPod::object))
            .and_then(|pod| verify::settings_hold(&self.settings, pod));
        held.map_or_else(VisitError::from, |()| error.into())
    }

    pub(super) fn stored(&self) -> Result<Arc<Stored>, VisitError> {
        let stored = self.authority.borrow().clone();
        stored.ok_or_else(unknown_root)
    }

    pub(super) fn standing(&self, proven: &DialedStanding, renew: bool) -> Standing {
        match proven {
            DialedStanding::Unproven(_) => Standing::Nothing,
            DialedStanding::Enrolled { until } => {
                let left = until.duration_since(SystemTime::now()).unwrap_or_default();
                if left > self.lifetime / 2 && !renew {
                    Standing::Lasting(*until)
                } else {
                    Standing::Ending
                }
            }
        }
    }

    /// With `anchors` in place of those that gates are given now: the roots of a gate that has shown its identity.
    async fn verify(
        &self,
        target: &Target,
        pod: &Value,
        anchors: Option<Anchors>,
        enrolment: &Enrolment,
    ) -> Result<Verified, VisitError> {
        let proven = anchors.is_some();
        let anchors = match anchors {
            Some(anchors) => Arc::new(anchors),
            None => self.anchors.borrow().clone().ok_or_else(unknown_root)?,
        };
        let terms = Terms {
            shapes: self.shapes,
            settings: &self.settings,
            anchors: &anchors,
            proven,
        };
        let candidate = verify::candidate(terms, target, &enrolment.pod_uid, pod)?;
        let version = candidate.owner().map(|owner| owner.version.as_str());
        let sandbox = self.evidence.sandbox(&target.namespace, &target.name, version).await?;
        let token = self.evidence.token(enrolment.token.clone()).await?;
        Ok(candidate.verify(&token, sandbox.as_ref(), &self.opted_in)?)
    }

    fn sign(&self, stored: &Stored, verified: &Verified, enrolment: &Enrolment) -> Result<Signed, SignError> {
        let authority = &stored.authority;
        authority.sign_gate(&enrolment.csr, verified.identity(), self.lifetime)
    }

    /// Policy comes last of all that is said to a gate, so its floor is its policy's generation.
    async fn push_policy(&self, gate: &mut Proven, target: &Target, pod: &Value) -> Result<(), VisitError> {
        let push = PolicyPush {
            pod_uid: target.uid.clone(),
            snapshot: self.snapshot(pod, self.generation()),
        };
        Ok(gate.put_policy(&push).await?)
    }

    fn snapshot(&self, pod: &Value, generation: Generation) -> Snapshot {
        policy::snapshot(pod, self.default_policy, generation)
    }

    pub(super) fn generation(&self) -> Generation {
        Generation {
            epoch: self.epoch,
            counter: self.counter.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// What it has shown by now, and until when: the roots that are in force, and an identity under the one that signs.
pub(super) fn proof(stored: &Stored, until: SystemTime) -> Proof {
    Proof {
        roots: stored.roots.iter().map(Root::id).collect(),
        under: stored.authority.root().id(),
        until,
    }
}

/// Dials a gate, or a router, with whatever it may know the control plane by, and asks what enrols it. While the root is replaced, gates
/// that have lost their identity know the roots that they were born with, and others those that they were told last.
pub(super) async fn reach<'a>(
    target: &Target,
    expected: &Dialed,
    own: &'a [Arc<MeshCredentials>],
) -> Result<(Connection, Enrolment, &'a MeshCredentials), VisitError> {
    let mut disbelieved = None;
    for credentials in own {
        let asked = async {
            let mut connection = dial(target, expected, credentials).await?;
            let enrolment = connection.enrolment().await?;
            Ok::<_, DialError>((connection, enrolment, credentials.as_ref()))
        };
        match asked.await {
            Err(error) if error.may_be_disbelief() => disbelieved = Some(error),
            answer => return Ok(answer?),
        }
    }
    Err(disbelieved.map_or_else(unknown_root, VisitError::Dial))
}

fn unknown_root() -> VisitError {
    VisitError::Own(anyhow::anyhow!("the root isn't known yet"))
}
