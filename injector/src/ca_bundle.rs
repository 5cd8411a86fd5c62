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
use futures_util::StreamExt;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, ReplaceOperation};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use std::fmt::{Debug, Display, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;

/// A pause after each change, so that a quarrel with another controller doesn't keep an API server busy.
const PAUSE: Duration = Duration::from_millis(100);
/// The base64 letters of a PEM line (RFC 7468).
const PEM_LINE: usize = 64;

/// Which roots API servers are told to believe, and since when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Confirmed(Option<(Vec<Root>, Instant)>);

impl Confirmed {
    /// These roots, from now on.
    pub(crate) fn now(roots: Vec<Root>) -> Self {
        Self(Some((roots, Instant::now())))
    }

    /// Whether the configuration has held this root for so long, or isn't there.
    pub(crate) fn holds(&self, root: &Root, since: Duration) -> bool {
        let held = |(roots, at): &(Vec<Root>, Instant)| roots.contains(root) && at.elapsed() >= since;
        self.0.as_ref().is_some_and(held)
    }
}

/// Keeps the bundles of one configuration.
#[derive(Clone)]
pub(crate) struct CaBundle {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) roots: watch::Receiver<Vec<Root>>,
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
        let mut found = None;
        loop {
            let looked = tokio::select! {
                _ = ticks.tick() => bounded(api.get_opt(&self.name)).await.map(|current| found = current),
                Ok(()) = self.roots.changed() => Ok(()),
                // The object comes with the event: between a bad bundle and its correction no pod is admitted.
                Some(event) = events.next() => match event {
                    Ok(watcher::Event::Apply(current) | watcher::Event::InitApply(current)) => {
                        found = Some(current);
                        Ok(())
                    }
                    Ok(watcher::Event::Delete(_)) => {
                        found = None;
                        Ok(())
                    }
                    Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
                    Err(error) => {
                        self.failed::<K>(&error);
                        continue;
                    }
                },
            };
            let checked = match looked {
                Ok(()) => self.check(&api, &mut found).await,
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

    async fn check<K: Configuration>(&mut self, api: &Api<K>, found: &mut Option<K>) -> Result<(), RequestError> {
        let roots = self.roots.borrow_and_update().clone();
        if roots.is_empty() {
            return Ok(());
        }
        let patch = found
            .as_ref()
            .and_then(|found| correction(found, &roots, SystemTime::now()));
        if let Some(patch) = patch {
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.into()),
                ..PatchParams::default()
            };
            *found = Some(bounded(api.patch(&self.name, &params, &Patch::Json::<()>(patch))).await?);
            self.metrics.ca_bundle_updates.inc();
            tracing::info!(
                kind = K::kind(&()).as_ref(),
                name = self.name,
                "brought the caBundle up to date"
            );
            self.confirmed.send_replace(Confirmed::now(roots));
            tokio::time::sleep(PAUSE).await;
            return Ok(());
        }
        self.confirmed.send_if_modified(|confirmed| {
            let changed = confirmed.0.as_ref().is_none_or(|(held, _)| *held != roots);
            if changed {
                *confirmed = Confirmed::now(roots);
            }
            changed
        });
        Ok(())
    }

    fn failed<K: Configuration>(&self, error: &impl Display) {
        self.metrics.failed("ca_bundle");
        let (kind, name) = (K::kind(&()), &self.name);
        tracing::warn!(kind = kind.as_ref(), name, %error, "can't keep the caBundle; it is tried again within a minute");
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
fn correction(found: &impl Configuration, roots: &[Root], now: SystemTime) -> Option<JsonPatch> {
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
        while let Some((line, more)) = rest
            .split_at_checked(PEM_LINE.min(rest.len()))
            .filter(|(line, _)| !line.is_empty())
        {
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
