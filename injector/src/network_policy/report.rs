//! Tells operators what became of our policies, and which policies of others open what ours keep closed.

use super::reconcile::Seen;
use crate::metrics::Metrics;
use crate::names::{FIELD_MANAGER, NETWORK_POLICY};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait for an Event to be taken. It is a courtesy: what it says is in the log too.
const EVENT_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest text of an Event in bytes, as the API server has it.
const NOTE: usize = 1024;

/// What was told, so that it isn't told twice.
pub(super) struct Report {
    recorder: Recorder,
    metrics: Arc<Metrics>,
    /// By namespace and policy.
    openings: HashMap<String, BTreeMap<String, String>>,
}

impl Report {
    pub(super) fn new(client: &Client, metrics: &Arc<Metrics>) -> Self {
        Self {
            recorder: Recorder::new(client.clone(), Reporter::from(FIELD_MANAGER)),
            metrics: Arc::clone(metrics),
            openings: HashMap::new(),
        }
    }

    /// Where something was told.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &String> {
        self.openings.keys()
    }

    /// A namespace has its policy now.
    pub(super) fn created(&self, namespace: &str) {
        self.metrics.network_policy("created");
        tracing::info!(namespace, "created NetworkPolicy {NETWORK_POLICY}");
    }

    /// A policy is again what it was.
    pub(super) async fn repaired(&self, namespace: &str, policy: ObjectReference, cause: &str) {
        self.metrics.network_policy("repaired");
        tracing::warn!(namespace, cause, "repaired NetworkPolicy {NETWORK_POLICY}");
        let note = format!("{cause}; without it the sandboxes of this namespace can be reached past their gates");
        self.publish(&policy, "GateNetworkPolicyRepaired", "Repair", note).await;
    }

    /// A namespace doesn't need its policy any more.
    pub(super) fn removed(&self, namespace: &str) {
        self.metrics.network_policy("removed");
        tracing::info!(namespace, "removed NetworkPolicy {NETWORK_POLICY}");
    }

    /// Tells what the other policies of a namespace open, each once as long as it opens the same.
    pub(super) async fn tell(&mut self, namespace: &str, others: &[Arc<Seen>]) {
        let before = self.openings.remove(namespace).unwrap_or_default();
        let mut now = BTreeMap::new();
        for policy in others {
            let (name, Some(opening)) = (policy.name_any(), policy.spec.opening.clone()) else {
                continue;
            };
            if before.get(&name) != Some(&opening) {
                let next = "close it, or tell callers to come through the router";
                tracing::warn!(
                    namespace,
                    policy = name,
                    opening,
                    next,
                    "a NetworkPolicy leads past the gates"
                );
                let note = format!("{opening} of pods with a gate: whoever it lets in isn't checked there");
                let policy = policy.object_ref(&());
                self.publish(&policy, "NetworkPolicyOpensSandboxes", "Report", note)
                    .await;
            }
            now.insert(name, opening);
        }
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            tracing::info!(
                namespace,
                policy = name,
                "the NetworkPolicy no longer leads past the gates"
            );
        }
        if !now.is_empty() {
            self.openings.insert(namespace.to_owned(), now);
        }
        let all = self.openings.values().map(BTreeMap::len).sum::<usize>();
        self.metrics
            .network_policy_openings
            .set(i64::try_from(all).unwrap_or(i64::MAX));
    }

    async fn publish(&self, about: &ObjectReference, reason: &str, action: &str, mut note: String) {
        while note.len() > NOTE {
            note.pop();
        }
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        let published = tokio::time::timeout(EVENT_TIMEOUT, self.recorder.publish(&event, about)).await;
        let failure = published
            .map_err(|elapsed| elapsed.to_string())
            .and_then(|done| done.map_err(|e| e.to_string()));
        if let Err(error) = failure {
            tracing::warn!(namespace = about.namespace, error, "can't publish an Event");
        }
    }
}
