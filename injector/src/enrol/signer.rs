//! Whether a `PodCertificateRequest` (certificates.k8s.io/v1) is answered with a certificate: the second way in which gates get
//! their identity. The kubelet of a pod's node asks, and puts what it gets into the pod's volume; no gate is dialed for it.
//!
//! The API server has seen to it that whoever asks holds the key, and that a kubelet asks for pods of its node only, with
//! their own UID and ServiceAccount. The rest is judged here as an enrolment is, and by the same code.

use super::evidence::{Evidence, EvidenceError, StoredPod};
use super::namespaces::OptedIn;
use super::shown::Shown;
use super::verify::{self, Candidate, Refusal, Verified};
use crate::anchors::Anchors;
use crate::authority::{BACKDATED, SignError, Signed};
use crate::authority_keeper::Authority;
use crate::born::Terms;
use crate::kubernetes::{RequestError, bounded};
use crate::names::FIELD_MANAGER;
use crate::pod::text_at;
use crate::settings::Settings;
use crate::shape::{CERTIFICATE_SECONDS, Shapes};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sandgate_kubernetes::PartialObject;
use sandgate_mesh::credentials::Validity;
use sandgate_mesh::sandbox::{Namespace, PodUid, SandboxKey, SandboxName};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// The tag of a request's PEM.
const TAG: &str = "CERTIFICATE REQUEST";

/// What is read of a request. The author of its pod has more put into it, as much as he likes.
pub(super) type RequestObject = PartialObject<PodCertificateRequest, RequestSpec, RequestStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RequestSpec {
    pod_name: String,
    #[serde(rename = "podUID")]
    pod_uid: String,
    service_account_name: String,
    node_name: String,
    max_expiration_seconds: Option<u64>,
    #[serde(rename = "stubPKCS10Request")]
    stub_pkcs10_request: ByteString,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RequestStatus {
    conditions: Vec<IgnoredAny>,
}

/// What a kubelet asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// The request's own name and UID.
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) pod: SandboxKey,
    pub(super) pod_uid: PodUid,
    account: String,
    node: String,
    /// The longest life that it takes.
    most: Duration,
    csr_pem: String,
}

impl Asked {
    /// What a request asks for that nobody has answered. None of a pod whose name no sandbox can have.
    pub(super) fn of(request: &RequestObject) -> Option<Self> {
        if !request.status.conditions.is_empty() {
            return None;
        }
        let (metadata, spec) = (&request.metadata, &request.spec);
        Some(Self {
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
            pod: SandboxKey {
                namespace: metadata.namespace.as_deref()?.parse().ok()?,
                name: spec.pod_name.parse().ok()?,
            },
            pod_uid: spec.pod_uid.parse().ok()?,
            account: spec.service_account_name.clone(),
            node: spec.node_name.clone(),
            most: Duration::from_secs(spec.max_expiration_seconds.unwrap_or(u64::from(CERTIFICATE_SECONDS))),
            csr_pem: pem::encode(&pem::Pem::new(TAG, spec.stub_pkcs10_request.0.clone())),
        })
    }

    fn namespace(&self) -> &Namespace {
        &self.pod.namespace
    }

    fn pod_name(&self) -> &SandboxName {
        &self.pod.name
    }
}

/// How a request was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answered {
    /// With a certificate until then.
    Issued(SystemTime),
    /// With a refusal, for ever: the kubelet doesn't ask again.
    Denied(&'static str, String),
}

/// Why a request isn't answered yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// It may be otherwise later: the kubelet waits, and its pod with it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the API server can't be asked: {0}")]
    Api(#[from] RequestError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the root isn't known yet")]
    NoRoot,
}

impl From<EvidenceError> for Unanswered {
    fn from(error: EvidenceError) -> Self {
        match error {
            EvidenceError::Api(error) => error.into(),
            EvidenceError::Unreadable(what) => Refusal::Unreadable(what).into(),
        }
    }
}

impl Unanswered {
    /// `refused` or `failed`.
    pub(super) const fn outcome(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            _ => "failed",
        }
    }

    /// The word for it in metrics and logs.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.as_str(),
            Self::Api(_) => "api_server",
            Self::Sign(_) | Self::NoRoot => "authority",
        }
    }
}

/// Who answers.
pub(super) struct Signer {
    pub(super) client: Client,
    pub(super) evidence: Evidence,
    pub(super) settings: Settings,
    pub(super) shapes: Shapes,
    pub(super) authority: Authority,
    pub(super) anchors: watch::Receiver<Option<Arc<Anchors>>>,
    pub(super) opted_in: OptedIn,
    /// Which gates run, as far as this leader has seen for itself.
    pub(super) shown: Shown,
    /// How long certificates live.
    pub(super) lifetime: Duration,
}

impl Signer {
    /// Answers a request.
    ///
    /// # Errors
    /// Why it can't be answered now.
    pub(super) async fn answer(&self, asked: &Asked) -> Result<Answered, Unanswered> {
        let refusal = match self.verify(asked).await {
            Ok(verified) => match self.sign(asked, &verified) {
                Ok(signed) => return self.issue(asked, &signed).await,
                Err(Unanswered::Sign(SignError::Request(error))) => {
                    // What kubelets tell apart from other refusals.
                    return self.deny(asked, "UnsupportedKeyType", error.to_string()).await;
                }
                Err(error) => return Err(error),
            },
            Err(Unanswered::Refused(refusal)) if is_final(&refusal) => refusal,
            Err(error) => return Err(error),
        };
        self.deny(asked, refusal.as_str(), refusal.to_string()).await
    }

    async fn verify(&self, asked: &Asked) -> Result<Verified, Unanswered> {
        let (namespace, name) = (asked.namespace(), asked.pod_name());
        let pod = self.evidence.pod(namespace, name).await?;
        let candidate = self.candidate(asked, pod.as_ref().map(StoredPod::object))?;
        let version = candidate.owner().map(|owner| owner.version.as_str());
        let sandbox = self.evidence.sandbox(namespace, name, version).await?;
        Ok(candidate.verify_request(&asked.account, sandbox.as_ref(), &self.opted_in)?)
    }

    fn candidate(&self, asked: &Asked, pod: Option<&Value>) -> Result<Candidate, Unanswered> {
        let pod = verify::live(&asked.pod_uid, pod)?;
        check_request(asked, pod)?;
        let given = self.anchors.borrow().clone().ok_or(Unanswered::NoRoot)?;
        // Of a gate that has shown its identity, image and roots were looked at when it was given that. What the pod's status
        // says of it is no proof: others than the kubelet may have written that.
        let proven = verify::born_with(pod).filter(|_| self.shown.contains(&asked.pod_uid));
        let terms = Terms {
            shapes: self.shapes,
            settings: &self.settings,
            anchors: proven.as_ref().unwrap_or(&given),
            proven: proven.is_some(),
        };
        Ok(verify::injected(terms, asked.pod.clone(), &asked.pod_uid, pod)?)
    }

    fn sign(&self, asked: &Asked, verified: &Verified) -> Result<Signed, Unanswered> {
        let stored = self.authority.borrow().clone().ok_or(Unanswered::NoRoot)?;
        // It begins in the past, and all of it counts.
        let lifetime = self.lifetime.min(asked.most.saturating_sub(BACKDATED));
        Ok(stored
            .authority
            .sign_gate(&asked.csr_pem, verified.identity(), lifetime)?)
    }

    async fn issue(&self, asked: &Asked, signed: &Signed) -> Result<Answered, Unanswered> {
        let status = issued(signed, fastrand::f64()).ok_or(SignError::RootNotValid)?;
        self.tell(asked, &status).await?;
        Ok(Answered::Issued(signed.not_after))
    }

    async fn deny(&self, asked: &Asked, reason: &'static str, message: String) -> Result<Answered, Unanswered> {
        let status = PodCertificateRequestStatus {
            conditions: Some(vec![condition("Denied", camel(reason), message.clone())]),
            ..PodCertificateRequestStatus::default()
        };
        self.tell(asked, &status).await?;
        Ok(Answered::Denied(reason, message))
    }

    async fn tell(&self, asked: &Asked, status: &PodCertificateRequestStatus) -> Result<(), RequestError> {
        let api = Api::<PodCertificateRequest>::namespaced(self.client.clone(), asked.namespace().as_str());
        // With its UID: another may have the name by now.
        let patch = json!({"metadata": {"uid": asked.uid}, "status": status});
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let answer = bounded(api.patch_status(&asked.name, &params, &Patch::Merge(patch))).await;
        match answer {
            // There is nobody to be answered any more.
            Err(error) if error.is_not_found() => Ok(()),
            answer => answer.map(drop),
        }
    }
}

/// Whether nothing can make it right later. All else is left open: a denied kubelet never asks again for its pod.
const fn is_final(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::PodReplaced
            | Refusal::NotInjected
            | Refusal::RequestAccount
            | Refusal::RequestNode
            | Refusal::RequestUnexpected
            | Refusal::NoOwner
    )
}

/// Whether this pod's kubelet has cause to ask.
fn check_request(asked: &Asked, pod: &Value) -> Result<(), Refusal> {
    if text_at(pod, &["spec", "nodeName"]) != Some(asked.node.as_str()) {
        return Err(Refusal::RequestNode);
    }
    if verify::is_injected(pod) && !verify::has_pod_certificate(pod) {
        return Err(Refusal::RequestUnexpected);
    }
    Ok(())
}

/// What tells a kubelet of a certificate, and to ask for the next when half of its life or a little more is over.
fn issued(signed: &Signed, random: f64) -> Option<PodCertificateRequestStatus> {
    let leaf = CertificateDer::from_pem_slice(signed.chain_pem.as_bytes()).ok()?;
    let Validity { not_before, not_after } = Validity::of(&leaf).ok()?;
    let life = not_after.duration_since(not_before).ok()?;
    let renew = not_before + life.mul_f64(0.5 + 0.1 * random);
    let time = |time: SystemTime| Timestamp::try_from(time).ok().map(Time);
    Some(PodCertificateRequestStatus {
        conditions: Some(vec![condition("Issued", "Issued".into(), String::new())]),
        certificate_chain: Some(signed.chain_pem.clone()),
        not_before: time(not_before),
        begin_refresh_at: time(renew),
        not_after: time(not_after),
    })
}

fn condition(kind: &str, reason: String, message: String) -> Condition {
    Condition {
        type_: kind.into(),
        status: "True".into(),
        reason,
        message,
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    }
}

/// A word of ours as reasons in conditions are written.
fn camel(word: &str) -> String {
    let capital = |part: &str| {
        let mut letters = part.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    word.split('_').map(capital).collect()
}

#[cfg(test)]
#[path = "signer_tests.rs"]
pub(super) mod tests;
