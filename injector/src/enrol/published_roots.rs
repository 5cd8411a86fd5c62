//! Where routers find the roots by which they know the control plane before they have an identity: a `ConfigMap`, which is
//! mounted in their pods. Nobody injects those, so nothing else could tell them. Hides how it is kept as it should be.
//!
//! It holds no secret, but whoever may change it can pose as the control plane to a router that has no identity: in the own
//! namespace that is for administrators.

use super::Context;
use crate::anchors::Anchors;
use crate::kubernetes::{RequestError, bounded};
use crate::metrics::Metrics;
use crate::names::{FIELD_MANAGER, ROOTS_ENTRY};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long to wait after a failure, and after each change: so a quarrel with another controller keeps nobody busy.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks after the `ConfigMap`.
pub(super) struct PublishedRoots {
    api: Api<ConfigMap>,
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
    /// There is no `ConfigMap`.
    Absent,
    /// There is one with this entry, if it has that.
    There(Option<String>),
}

impl PublishedRoots {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            api: Api::namespaced(context.client.clone(), context.settings.own_namespace.as_str()),
            name: context.roots_config_map.clone(),
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

    fn note(&mut self, event: watcher::Event<ConfigMap>, listed: &mut bool) {
        match event {
            watcher::Event::Init => *listed = false,
            watcher::Event::Apply(found) | watcher::Event::InitApply(found) => {
                *listed = true;
                let entry = found.data.unwrap_or_default().remove(ROOTS_ENTRY);
                self.seen = Some(Seen::There(entry));
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
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.name},
            "data": {ROOTS_ENTRY: wanted},
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        bounded(self.api.patch(&self.name, &params, &Patch::Apply(object))).await?;
        let name = &self.name;
        match seen {
            Seen::There(None) => tracing::info!(name, "stored the roots for routers in the ConfigMap"),
            Seen::There(found) if *found == self.written || self.written.is_none() => {
                tracing::info!(name, "brought the roots for routers in the ConfigMap up to date");
            }
            Seen::There(_) => tracing::warn!(
                name,
                "put the roots for routers back: somebody had changed the ConfigMap"
            ),
            Seen::Absent => tracing::warn!(name, "made the ConfigMap with the roots for routers: there was none"),
        }
        self.written = Some(wanted.to_owned());
        self.seen = Some(Seen::There(self.written.clone()));
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    fn failed(&self, error: &dyn std::fmt::Display) {
        self.metrics.failed("roots");
        let (name, next) = (&self.name, "it is tried again; routers without an identity wait for it");
        tracing::warn!(name, %error, next, "can't look after the ConfigMap with the roots for routers");
    }
}
