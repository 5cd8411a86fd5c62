//! Follows pods and namespaces at the API server, and tells the table.

use super::PodCache;
use super::seen::{PodObject, Sighting, key, seen};
use foldhash::HashSet;
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt};
use sandgate_kubernetes::{PartialObject, watch};
use sandgate_mesh::contract::{ENABLED, INJECT_LABEL, SANDBOX_HASH_LABEL};
use sandgate_mesh::sandbox::Namespace;
use sandgate_mesh::telemetry::chain;
use std::pin::pin;

/// Where pods are heard of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// The one namespace that is looked at; without one, all.
    pub namespace: Option<Namespace>,
}

/// Starts to follow pods, for as long as the process lives, and with `gates` namespaces: where there are none, it makes no
/// difference which namespaces have opted in, and upstream's `ClusterRole` doesn't allow to look at them. That no API server
/// answers is no error: what it says counts when it does.
pub(crate) fn follow(client: Client, source: &Source, gates: bool, cache: PodCache) {
    let pods: Api<PodObject> = match &source.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace.as_str()),
        None => Api::all(client.clone()),
    };
    let pods = watch(pods, watcher::Config::default().labels(SANDBOX_HASH_LABEL));
    tokio::spawn(follow_pods(pods, cache.clone()));
    if !gates {
        cache.change(|table| table.replace_opted_in(HashSet::default()));
        return;
    }
    let mut opted_in = watcher::Config::default().labels(&format!("{INJECT_LABEL}={ENABLED}"));
    if let Some(namespace) = &source.namespace {
        opted_in = opted_in.fields(&format!("metadata.name={namespace}"));
    }
    let namespaces = Api::<NamespaceObject>::all(client);
    tokio::spawn(follow_namespaces(watch(namespaces, opted_in), cache));
}

async fn follow_pods(events: impl Stream<Item = watcher::Result<Event<PodObject>>>, cache: PodCache) {
    let mut events = pin!(events);
    // Those of a list that isn't complete yet.
    let mut listed: Vec<Sighting> = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => listed.extend(seen(&pod)),
            Ok(Event::InitDone) => {
                let listed = std::mem::take(&mut listed);
                cache.change(|table| table.replace_pods(listed));
                tracing::info!(pods = cache.len(), "the pods of sandboxes are known");
            }
            Ok(Event::Apply(pod)) => {
                if let Some(sighting) = seen(&pod) {
                    cache.change(|table| table.see(sighting));
                }
            }
            Ok(Event::Delete(pod)) => {
                if let Some(key) = key(&pod) {
                    cache.change(|table| table.remove(&key));
                }
            }
            Err(error) => failed(&cache, "pods", &error),
        }
    }
}

type NamespaceObject = PartialObject<v1::Namespace>;

async fn follow_namespaces(events: impl Stream<Item = watcher::Result<Event<NamespaceObject>>>, cache: PodCache) {
    let mut events = pin!(events);
    let mut listed: HashSet<Namespace> = HashSet::default();
    let name = |namespace: &NamespaceObject| namespace.name_any().parse::<Namespace>().ok();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(namespace)) => listed.extend(name(&namespace)),
            Ok(Event::InitDone) => {
                let listed = std::mem::take(&mut listed);
                tracing::info!(namespaces = listed.len(), "the opted-in namespaces are known");
                cache.change(|table| table.replace_opted_in(listed));
            }
            Ok(Event::Apply(namespace)) => {
                if let Some(name) = name(&namespace) {
                    cache.change(|table| table.opted_in(name, true));
                }
            }
            // Also one that has lost the label: the watch tells of it as of one that is gone.
            Ok(Event::Delete(namespace)) => {
                if let Some(name) = name(&namespace) {
                    cache.change(|table| table.opted_in(name, false));
                }
            }
            Err(error) => failed(&cache, "namespaces", &error),
        }
    }
}

fn failed(cache: &PodCache, what: &'static str, error: &watcher::Error) {
    cache.failed();
    tracing::warn!(
        what,
        error = chain(error),
        "can't follow the API server; what it said last counts on"
    );
}
