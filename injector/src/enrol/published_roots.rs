//! Where roots are found by those whom nobody else tells them. Routers know the control plane by a `ConfigMap`, which is mounted
//! in their pods, before they have an identity. Gates whose identity the kubelet brings believe their peers by a
//! `ClusterTrustBundle`, which the kubelet brings beside it. Hides how both are kept as they should be.
//!
//! They hold no secret, but whoever may change one can pose as the control plane to a router that has no identity, or as a
//! router to such a gate: that is for administrators. The API server lets a bundle of our signer be changed only by who may
//! `attest` for it.

use super::Context;
use crate::anchors::Anchors;
use crate::kubernetes::{RequestError, bounded};
use crate::metrics::Metrics;
use crate::names::{FIELD_MANAGER, ROOTS_ENTRY, SIGNER, TRUST_BUNDLE};
use futures_util::StreamExt;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Resource;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use sandgate_mesh::telemetry::chain;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long to wait after a failure, and after each change: so a quarrel with another controller keeps nobody busy.
const PAUSE: Duration = Duration::from_secs(1);

/// A kind of object that holds roots, and for whom.
#[derive(Clone, Copy)]
struct Place<K> {
    kind: &'static str,
    readers: &'static str,
    /// What one holds.
    entry: fn(K) -> Option<String>,
    /// One of this name that holds these.
    object: fn(&str, &str) -> Value,
}

/// Looks after one object.
pub(super) struct PublishedRoots<K> {
    api: Api<K>,
    place: Place<K>,
    name: String,
    anchors: watch::Receiver<Option<Arc<Anchors>>>,
    metrics: Arc<Metrics>,
    /// What it holds; nothing is known before a first look.
    seen: Option<Seen>,
    /// What was written here last.
    written: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// There is no such object.
    Absent,
    /// There is one with this entry, if it has that.
    There(Option<String>),
}

impl PublishedRoots<ConfigMap> {
    /// The `ConfigMap` for routers.
    pub(super) fn for_routers(context: &Context) -> Self {
        let namespace = context.settings.own_namespace.as_str();
        let place = Place {
            kind: "ConfigMap",
            readers: "routers without an identity",
            entry: |found: ConfigMap| found.data.unwrap_or_default().remove(ROOTS_ENTRY),
            object: |name, roots| {
                json!({
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": name},
                    "data": {ROOTS_ENTRY: roots},
                })
            },
        };
        let api = Api::namespaced(context.client.clone(), namespace);
        Self::new(context, api, place, context.roots_config_map.clone())
    }
}

impl PublishedRoots<ClusterTrustBundle> {
    /// The bundle for gates whose identity the kubelet brings.
    pub(super) fn for_kubelets(context: &Context) -> Self {
        let place = Place {
            kind: "ClusterTrustBundle",
            readers: "gates with Pod Certificates",
            entry: |found: ClusterTrustBundle| Some(found.spec.trust_bundle),
            object: |name, roots| {
                json!({
                    "apiVersion": "certificates.k8s.io/v1",
                    "kind": "ClusterTrustBundle",
                    "metadata": {"name": name},
                    "spec": {"signerName": SIGNER, "trustBundle": roots},
                })
            },
        };
        Self::new(context, Api::all(context.client.clone()), place, TRUST_BUNDLE.into())
    }
}

impl<K> PublishedRoots<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    fn new(context: &Context, api: Api<K>, place: Place<K>, name: String) -> Self {
        Self {
            api,
            place,
            name,
            anchors: context.anchors.clone(),
            metrics: Arc::clone(&context.metrics),
            seen: None,
            written: None,
        }
    }

    /// Follows it for ever.
    pub(super) async fn run(mut self) {
        // By field, since only then does RBAC allow a watch of a named object.
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = watcher(self.api.clone(), config).default_backoff().boxed();
        // Whether the list that a watch begins with has named it.
        let mut listed = false;
        loop {
            tokio::select! {
                Some(event) = events.next() => match event {
                    Ok(event) => self.note(event, &mut listed),
                    Err(error) => {
                        self.failed(&error);
                        continue;
                    }
                },
                Ok(()) = self.anchors.changed() => {}
            }
            while let Err(error) = self.settle().await {
                self.failed(&error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn note(&mut self, event: watcher::Event<K>, listed: &mut bool) {
        match event {
            watcher::Event::Init => *listed = false,
            watcher::Event::Apply(found) | watcher::Event::InitApply(found) => {
                *listed = true;
                self.seen = Some(Seen::There((self.place.entry)(found)));
            }
            watcher::Event::InitDone if *listed => {}
            watcher::Event::InitDone | watcher::Event::Delete(_) => self.seen = Some(Seen::Absent),
        }
    }

    /// Writes what it should hold, if it is known to hold something else.
    async fn settle(&mut self) -> Result<(), RequestError> {
        let wanted = self.anchors.borrow_and_update().clone();
        let (Some(seen), Some(wanted)) = (&self.seen, wanted) else {
            return Ok(());
        };
        let wanted = wanted.as_pem();
        if *seen == Seen::There(Some(wanted.to_owned())) {
            return Ok(());
        }
        // Applied, so that what else is noted on it stays, and that it is made where somebody has deleted it.
        let object = (self.place.object)(&self.name, wanted);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        bounded(self.api.patch(&self.name, &params, &Patch::Apply(object))).await?;
        let (name, kind, readers) = (&self.name, self.place.kind, self.place.readers);
        match seen {
            Seen::There(None) => tracing::info!(kind, name, readers, "stored the roots"),
            Seen::There(found) if *found == self.written || self.written.is_none() => {
                tracing::info!(kind, name, readers, "brought the published roots up to date");
            }
            Seen::There(_) => tracing::warn!(kind, name, readers, "put the roots back: somebody had changed them"),
            Seen::Absent => tracing::warn!(kind, name, readers, "made the object with the roots: there was none"),
        }
        self.written = Some(wanted.to_owned());
        self.seen = Some(Seen::There(self.written.clone()));
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    fn failed(&self, error: &dyn std::error::Error) {
        self.metrics.failed("roots");
        let (name, kind, readers) = (&self.name, self.place.kind, self.place.readers);
        let next = "it is tried again, and its readers wait for it";
        tracing::warn!(
            kind,
            name,
            readers,
            error = chain(error),
            next,
            "can't look after the object with the roots"
        );
    }
}
