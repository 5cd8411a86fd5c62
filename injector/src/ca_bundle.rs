//! The `caBundle`s of our webhook configurations: the certificates by which API servers know this webhook.
//!
//! A bundle keeps every root of ours that is still valid, whichever replica put it there: API servers may meet a replica
//! that serves under an older root. Certificates of others, which would let them answer in this webhook's place, go.

use crate::authority::Root;
use crate::kubernetes::{RequestError, bounded};
use crate::metrics::Metrics;
use crate::names::FIELD_MANAGER;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::{Stream, StreamExt, stream};
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, ReplaceOperation};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::{Api, PartialObjectMeta, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sandgate_mesh::drain::Draining;
use serde::de::DeserializeOwned;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// How often both configurations are looked at although no event came.
const RESYNC: Duration = Duration::from_secs(60);
/// A pause after each change, so that a quarrel with another controller stays a slow one.
const PAUSE: Duration = Duration::from_millis(250);
/// The base64 letters of a PEM line (RFC 7468).
const PEM_LINE: usize = 64;

/// Which roots API servers are told to believe, and since when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Confirmed(Option<(Vec<Root>, Instant)>);

impl Confirmed {
    /// Whether every configuration that exists has held this root for so long.
    pub(crate) fn holds(&self, root: &Root, since: Duration) -> bool {
        let held = |(roots, at): &(Vec<Root>, Instant)| roots.contains(root) && at.elapsed() >= since;
        self.0.as_ref().is_some_and(held)
    }
}

/// Keeps both configurations of one name.
pub(crate) struct CaBundles {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) roots: watch::Receiver<Vec<Root>>,
    pub(crate) confirmed: watch::Sender<Confirmed>,
    pub(crate) metrics: Arc<Metrics>,
}

impl CaBundles {
    /// Follows the configurations until the drain starts.
    pub(crate) async fn run(mut self, mut draining: Draining) {
        let mut changes = stream::select(
            self.changes::<MutatingWebhookConfiguration>(),
            self.changes::<ValidatingWebhookConfiguration>(),
        );
        let mut ticks = tokio::time::interval(RESYNC);
        loop {
            tokio::select! {
                () = draining.started() => return,
                _ = ticks.tick() => {}
                Some(()) = changes.next() => {}
                Ok(()) = self.roots.changed() => {}
            }
            self.check().await;
        }
    }

    /// An item for each event about the configuration of this kind. A watch that fails is tried again, more and more
    /// slowly.
    fn changes<K: Configuration>(&self) -> impl Stream<Item = ()> + Unpin + Send + use<K> {
        let api = Api::<PartialObjectMeta<K>>::all(self.client.clone());
        // By field, since only then does RBAC allow a watch of a named object.
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let metrics = Arc::clone(&self.metrics);
        watcher(api, config)
            .default_backoff()
            .filter_map(move |event| {
                let seen = event.map(drop).map_err(|error| {
                    metrics.failed("ca_bundle");
                    tracing::warn!(kind = K::kind(&()).as_ref(), %error, "can't watch the webhook configuration");
                });
                std::future::ready(seen.ok())
            })
            .boxed()
    }

    async fn check(&mut self) {
        let roots = self.roots.borrow_and_update().clone();
        if roots.is_empty() {
            return;
        }
        let checked = async {
            let mutating = self.correct::<MutatingWebhookConfiguration>(&roots).await?;
            let validating = self.correct::<ValidatingWebhookConfiguration>(&roots).await?;
            Ok::<_, RequestError>(mutating || validating)
        };
        match checked.await {
            Ok(changed) => {
                let confirmed = self.confirmed.borrow().0.clone();
                let still = confirmed.filter(|(held, _)| !changed && *held == roots);
                if still.is_none() {
                    self.confirmed.send_replace(Confirmed(Some((roots, Instant::now()))));
                }
            }
            // Somebody was faster: the event that says so is on its way.
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                self.metrics.failed("ca_bundle");
                let (name, next) = (&self.name, "it is tried again within a minute");
                tracing::warn!(name, %error, next, "can't bring the caBundle of the webhook configurations up to date");
            }
        }
    }

    /// Whether it had to be changed.
    async fn correct<K: Configuration>(&self, roots: &[Root]) -> Result<bool, RequestError> {
        let api = Api::<K>::all(self.client.clone());
        let Some(found) = bounded(api.get_opt(&self.name)).await? else {
            return Ok(false);
        };
        let Some(patch) = correction(&found, roots, SystemTime::now()) else {
            return Ok(false);
        };
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        bounded(api.patch(&self.name, &params, &Patch::Json::<()>(patch))).await?;
        self.metrics.ca_bundle_updates.inc();
        tracing::info!(kind = K::kind(&()).as_ref(), name = self.name, "brought the caBundle up to date");
        tokio::time::sleep(PAUSE).await;
        Ok(true)
    }
}

/// A webhook configuration of either kind.
trait Configuration: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// How API servers reach each of its webhooks.
    fn webhooks(&self) -> Vec<&WebhookClientConfig>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<&WebhookClientConfig> {
        self.webhooks.iter().flatten().map(|webhook| &webhook.client_config).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<&WebhookClientConfig> {
        self.webhooks.iter().flatten().map(|webhook| &webhook.client_config).collect()
    }
}

/// The patch that makes the bundles right. It names the version that was found: with any other the API server refuses
/// it as a conflict.
fn correction(found: &impl Configuration, roots: &[Root], now: SystemTime) -> Option<JsonPatch> {
    let mut operations = vec![PatchOperation::Replace(ReplaceOperation {
        path: pointer(&["metadata", "resourceVersion"]),
        value: found.resource_version().unwrap_or_default().into(),
    })];
    for (index, config) in found.webhooks().into_iter().enumerate() {
        let there = config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice()).unwrap_or_default();
        let Some(bundle) = corrected(there, roots, now) else {
            continue;
        };
        let index = index.to_string();
        operations.push(PatchOperation::Add(AddOperation {
            path: pointer(&["webhooks", &index, "clientConfig", "caBundle"]),
            value: STANDARD.encode(bundle).into(),
        }));
    }
    (operations.len() > 1).then_some(JsonPatch(operations))
}

fn pointer(tokens: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(tokens.iter().copied())
}

/// The bundle with these roots and with every other root of ours that is still valid; none if it is right as it is.
fn corrected(bundle: &[u8], roots: &[Root], now: SystemTime) -> Option<String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bundle).collect();
    // What can't be read is none of ours.
    let (readable, found) = (found.is_ok(), found.unwrap_or_default());
    let ours = |der: &CertificateDer<'static>| Root::from_der(der.clone()).is_ok_and(|root| root.valid_at(now));
    let (mut kept, others): (Vec<_>, Vec<_>) = found.into_iter().partition(ours);
    let missing: Vec<_> = roots.iter().filter(|root| !kept.contains(root.der())).collect();
    if readable && others.is_empty() && missing.is_empty() {
        return None;
    }
    kept.extend(missing.into_iter().map(|root| root.der().clone()));
    Some(pem(&kept))
}

/// Certificates as PEM.
pub(crate) fn pem(certificates: &[impl AsRef<[u8]>]) -> String {
    let mut text = String::new();
    for der in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(der);
        let mut rest = encoded.as_str();
        while let Some((line, more)) = rest.split_at_checked(PEM_LINE.min(rest.len())).filter(|(line, _)| !line.is_empty()) {
            let _ = writeln!(text, "{line}");
            rest = more;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
#[path = "ca_bundle_tests.rs"]
mod tests;
