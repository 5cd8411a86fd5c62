//! The `caBundle`s of our webhook configurations: the certificates by which API servers know this webhook.
//!
//! A bundle keeps every root of ours that is still valid, whichever replica put it there: API servers may meet a replica
//! that serves under an older root. One that was retired goes, and so do certificates of others: they would let them answer
//! in this webhook's place.
//!
//! A configuration that isn't there is told, and a replica is ready all the same. It must be before there is one, or
//! tools that wait for each step of a release would never get to it; and once there is one again, somebody must answer.

use crate::authority::{Root, RootId};
use crate::kubernetes::{RequestError, bounded};
use crate::metrics::Metrics;
use crate::names::FIELD_MANAGER;
use crate::patch::{add, pointer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use json_patch::{Patch as JsonPatch, PatchOperation, ReplaceOperation};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sandgate_mesh::telemetry::chain;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// A pause after each change, so that a quarrel with another controller doesn't keep an API server busy.
const PAUSE: Duration = Duration::from_millis(100);

/// What API servers are to believe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trusted {
    /// Every root that counts, the one that signs first; none before the Secret was read.
    pub(crate) roots: Vec<Root>,
    /// Those that count no more, and under which no replica is served by now.
    pub(crate) retired: Vec<RootId>,
}

/// What API servers are told to believe, and since when. Where there is no configuration they ask nobody, so any root will
/// do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Confirmed(Option<(Trusted, Instant)>);

impl Confirmed {
    /// This, from now on.
    pub(crate) fn now(trusted: Trusted) -> Self {
        Self(Some((trusted, Instant::now())))
    }

    /// Whether this root has been among those that count for so long.
    pub(crate) fn holds(&self, root: &RootId, since: Duration) -> bool {
        let is = |held: &Root| held.id() == *root;
        let held = |(trusted, at): &(Trusted, Instant)| trusted.roots.iter().any(is) && at.elapsed() >= since;
        self.0.as_ref().is_some_and(held)
    }

    /// Whether these roots have left.
    pub(crate) fn is_rid_of(&self, roots: &[RootId]) -> bool {
        let left = |(trusted, _): &(Trusted, Instant)| roots.iter().all(|root| trusted.retired.contains(root));
        self.0.as_ref().is_some_and(left)
    }
}

/// Looks after one configuration: whether it is there, and its bundles as soon as there are roots to put into them.
#[derive(Clone)]
pub(crate) struct CaBundle {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) trusted: watch::Receiver<Trusted>,
    pub(crate) confirmed: watch::Sender<Confirmed>,
    pub(crate) metrics: Arc<Metrics>,
    /// How often the configuration is looked at although no event came.
    pub(crate) resync: Duration,
}

impl CaBundle {
    /// Follows the configuration of this kind for ever.
    pub(crate) async fn run<K: Configuration>(mut self) {
        let api = Api::<K>::all(self.client.clone());
        // By field, since only then does RBAC allow a watch of a named object.
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = watcher(api.clone(), config).default_backoff().boxed();
        let mut ticks = tokio::time::interval(self.resync);
        let mut seen = Seen::NotLooked;
        // Whether the list that a watch begins with has named it.
        let mut listed = false;
        loop {
            let before = seen.is_there();
            let looked = tokio::select! {
                _ = ticks.tick() => bounded(api.get_opt(&self.name)).await.map(|found| seen = found.into()),
                Ok(()) = self.trusted.changed() => Ok(()),
                // The object comes with the event: between a bad bundle and its correction no pod is admitted.
                Some(event) = events.next() => match event {
                    Ok(watcher::Event::Apply(found) | watcher::Event::InitApply(found)) => {
                        listed = true;
                        seen = Seen::There(found);
                        Ok(())
                    }
                    Ok(watcher::Event::Init) => {
                        listed = false;
                        continue;
                    }
                    Ok(watcher::Event::InitDone) if listed => continue,
                    Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => {
                        seen = Seen::Absent;
                        Ok(())
                    }
                    Err(error) => {
                        self.failed::<K>(&error);
                        continue;
                    }
                },
            };
            if looked.is_ok() {
                self.tell::<K>(before, seen.is_there());
            }
            let checked = match looked {
                Ok(()) => self.check(&api, &mut seen).await,
                Err(error) => Err(error),
            };
            match checked {
                Ok(()) => {}
                // Somebody was faster: the event that says so is on its way.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => self.failed::<K>(&error),
            }
        }
    }

    /// Tells whether the configuration is there: in the log when that has changed, in metrics always.
    fn tell<K: Configuration>(&self, before: Option<bool>, now: Option<bool>) {
        let Some(there) = now else { return };
        let (kind, name) = (K::kind(&()), &self.name);
        self.metrics.webhook_configuration(&kind, there);
        if !there {
            self.metrics.failed("ca_bundle");
        }
        match (before, there) {
            (Some(true) | None, false) => tracing::warn!(
                kind = kind.as_ref(),
                name,
                next =
                    "run `helm upgrade`, or apply the manifests; or is --webhook-configuration another name than its?",
                "the webhook configuration isn't there: API servers ask nobody about pods"
            ),
            (Some(false), true) => {
                tracing::info!(kind = kind.as_ref(), name, "the webhook configuration is there again");
            }
            (Some(true) | None, true) | (Some(false), false) => {}
        }
    }

    async fn check<K: Configuration>(&mut self, api: &Api<K>, seen: &mut Seen<K>) -> Result<(), RequestError> {
        let trusted = self.trusted.borrow_and_update().clone();
        if trusted.roots.is_empty() {
            return Ok(());
        }
        let patch = match seen {
            Seen::NotLooked => return Ok(()),
            Seen::Absent => None,
            Seen::There(found) => correction(found, &trusted, SystemTime::now()),
        };
        if let Some(patch) = patch {
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.into()),
                ..PatchParams::default()
            };
            *seen = Seen::There(bounded(api.patch(&self.name, &params, &Patch::Json::<()>(patch))).await?);
            self.metrics.ca_bundle_updates.inc();
            tracing::info!(
                kind = K::kind(&()).as_ref(),
                name = self.name,
                "brought the caBundle up to date"
            );
            self.confirmed.send_replace(Confirmed::now(trusted));
            tokio::time::sleep(PAUSE).await;
            return Ok(());
        }
        self.confirmed.send_if_modified(|confirmed| {
            let changed = confirmed.0.as_ref().is_none_or(|(held, _)| *held != trusted);
            if changed {
                *confirmed = Confirmed::now(trusted);
            }
            changed
        });
        Ok(())
    }

    fn failed<K: Configuration>(&self, error: &dyn Error) {
        self.metrics.failed("ca_bundle");
        let (kind, name) = (K::kind(&()), &self.name);
        tracing::warn!(
            kind = kind.as_ref(),
            name,
            error = chain(error),
            "can't look after the webhook configuration; it is tried again within a minute"
        );
    }
}

/// What the last look at a configuration has shown.
enum Seen<K> {
    NotLooked,
    Absent,
    There(K),
}

impl<K> Seen<K> {
    /// Unknown before the first look.
    fn is_there(&self) -> Option<bool> {
        match self {
            Self::NotLooked => None,
            Self::Absent => Some(false),
            Self::There(_) => Some(true),
        }
    }
}

impl<K> From<Option<K>> for Seen<K> {
    fn from(found: Option<K>) -> Self {
        found.map_or(Self::Absent, Self::There)
    }
}

/// A webhook configuration of either kind.
pub(crate) trait Configuration:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// How API servers reach each of its webhooks.
    fn webhooks(&self) -> Vec<&WebhookClientConfig>;
}

/// The two kinds have the same fields, and no type in common.
macro_rules! configurations {
    ($($kind:ty),+) => {$(
        impl Configuration for $kind {
            fn webhooks(&self) -> Vec<&WebhookClientConfig> {
                self.webhooks
                    .iter()
                    .flatten()
                    .map(|webhook| &webhook.client_config)
                    .collect()
            }
        }
    )+};
}

configurations!(MutatingWebhookConfiguration, ValidatingWebhookConfiguration);

/// The patch that makes the bundles right. It names the version that was found: with any other the API server refuses
/// it as a conflict.
fn correction(found: &impl Configuration, trusted: &Trusted, now: SystemTime) -> Option<JsonPatch> {
    let mut operations = vec![PatchOperation::Replace(ReplaceOperation {
        path: pointer(&["metadata", "resourceVersion"]),
        value: found.resource_version().unwrap_or_default().into(),
    })];
    for (index, config) in found.webhooks().into_iter().enumerate() {
        let there = config
            .ca_bundle
            .as_ref()
            .map(|bundle| bundle.0.as_slice())
            .unwrap_or_default();
        let Some(bundle) = corrected(there, trusted, now) else {
            continue;
        };
        let index = index.to_string();
        let place = pointer(&["webhooks", &index, "clientConfig", "caBundle"]);
        operations.push(add(place, STANDARD.encode(bundle).into()));
    }
    (operations.len() > 1).then_some(JsonPatch(operations))
}

/// The bundle with the roots that count and with every other root of ours that is still valid and wasn't retired; none if it
/// is right as it is.
fn corrected(bundle: &[u8], trusted: &Trusted, now: SystemTime) -> Option<String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bundle).collect();
    // What can't be read is none of ours.
    let (readable, found) = (found.is_ok(), found.unwrap_or_default());
    let counts = |root: Root| root.valid_at(now) && !trusted.retired.contains(&root.id());
    let ours = |der: &CertificateDer<'static>| Root::from_der(der.clone()).is_ok_and(counts);
    let (mut kept, others): (Vec<_>, Vec<_>) = found.into_iter().partition(ours);
    let missing: Vec<_> = trusted.roots.iter().filter(|root| !kept.contains(root.der())).collect();
    if readable && others.is_empty() && missing.is_empty() {
        return None;
    }
    kept.extend(missing.into_iter().map(|root| root.der().clone()));
    Some(pem(&kept))
}

/// Certificates as PEM.
pub(crate) fn pem(certificates: &[impl AsRef<[u8]>]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let encoded = |der: &[u8]| pem::encode_config(&Pem::new("CERTIFICATE", der), lines);
    certificates.iter().map(AsRef::as_ref).map(encoded).collect()
}

#[cfg(test)]
#[path = "ca_bundle_tests.rs"]
mod tests;
