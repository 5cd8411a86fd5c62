//! Which namespaces have opted in: a watch of those that are labelled so, and what it has seen last.

use crate::names::{ENABLED, INJECT_LABEL};
use crate::settings::Settings;
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1;
use kube::api::Api;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use sandgate_kubernetes::{PartialObject, watch};
use sandgate_mesh::sandbox::Namespace;
use sandgate_mesh::telemetry::chain;
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

/// The namespaces that have opted in, as far as it is known now. Clones are the same set.
#[derive(Debug, Clone, Default)]
pub(super) struct OptedIn(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    namespaces: HashSet<Namespace>,
    /// Whether all have been listed once.
    complete: bool,
}

/// What a watch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// All that have opted in.
    Listed(HashSet<Namespace>),
    In(Namespace),
    Out(Namespace),
    /// It failed, and goes on by itself.
    Failed(String),
}

type Seen = PartialObject<v1::Namespace>;

impl OptedIn {
    /// This one, for ever.
    pub(super) fn only(namespace: Namespace) -> Self {
        Self(Arc::new(RwLock::new(Known {
            namespaces: HashSet::from([namespace]),
            complete: true,
        })))
    }

    pub(super) fn contains(&self, namespace: &Namespace) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.namespaces.contains(namespace)
    }

    /// Whether those that aren't known to have opted in haven't, and not merely weren't seen yet.
    pub(super) fn is_known(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).complete
    }

    /// Takes note of a change, and says which namespaces have opted in or out with it.
    ///
    /// # Errors
    /// It is a failure.
    pub(super) fn note(&self, change: Change) -> Result<HashSet<Namespace>, String> {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Known { namespaces, complete } = &mut *known;
        let mut changed = HashSet::new();
        match change {
            Change::Listed(all) => {
                changed = namespaces.symmetric_difference(&all).cloned().collect();
                (*namespaces, *complete) = (all, true);
            }
            Change::In(namespace) => {
                if namespaces.insert(namespace.clone()) {
                    changed.insert(namespace);
                }
            }
            Change::Out(namespace) => changed.extend(namespaces.take(&namespace)),
            Change::Failed(error) => return Err(error),
        }
        Ok(changed)
    }
}

/// Follows the namespaces that have opted in, but for those in which nothing is injected.
pub(super) fn changes(client: Client, settings: &Settings) -> Pin<Box<dyn Stream<Item = Change> + Send>> {
    let opted_in = watcher::Config::default().labels(&format!("{INJECT_LABEL}={ENABLED}"));
    let events = watch(Api::<Seen>::all(client), opted_in);
    let (settings, mut listed) = (settings.clone(), HashSet::new());
    events
        .filter_map(move |event| std::future::ready(change(&settings, &mut listed, event)))
        .boxed()
}

/// What an event means, with those that were listed since a list began.
fn change(
    settings: &Settings,
    listed: &mut HashSet<Namespace>,
    event: watcher::Result<watcher::Event<Seen>>,
) -> Option<Change> {
    let name = |seen: &Seen| {
        let name: Namespace = seen.name_any().parse().ok()?;
        (!settings.excludes(name.as_str())).then_some(name)
    };
    match event {
        Ok(watcher::Event::Init) => {
            listed.clear();
            None
        }
        Ok(watcher::Event::InitApply(seen)) => {
            listed.extend(name(&seen));
            None
        }
        Ok(watcher::Event::InitDone) => Some(Change::Listed(std::mem::take(listed))),
        Ok(watcher::Event::Apply(seen)) => name(&seen).map(Change::In),
        Ok(watcher::Event::Delete(seen)) => name(&seen).map(Change::Out),
        Err(error) => Some(Change::Failed(chain(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings;
    use serde_json::json;
    use watcher::Event;

    fn names(names: &[&str]) -> HashSet<Namespace> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn seen(name: &str) -> Seen {
        serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
    }

    #[test]
    fn namespaces_opt_in_and_out_one_by_one_and_also_when_the_watch_was_blind() {
        let (settings, mut listed) = (settings(), HashSet::new());
        let opted_in = OptedIn::default();
        let mut note = |event| {
            let change = change(&settings, &mut listed, Ok(event));
            change.map(|change| opted_in.note(change).unwrap())
        };
        assert_eq!(note(Event::Init), None);
        assert_eq!(note(Event::InitApply(seen("a"))), None);
        assert_eq!(note(Event::InitApply(seen("b"))), None);
        assert!(!opted_in.is_known());
        assert_eq!(note(Event::InitDone), Some(names(&["a", "b"])));
        assert!(opted_in.is_known());
        assert_eq!(note(Event::Apply(seen("b"))), Some(names(&[])));
        assert_eq!(note(Event::Apply(seen("c"))), Some(names(&["c"])));
        assert_eq!(note(Event::Delete(seen("a"))), Some(names(&["a"])));
        assert_eq!(note(Event::Init), None);
        assert_eq!(note(Event::InitApply(seen("c"))), None);
        assert!(opted_in.contains(&"b".parse().unwrap()), "until the list is whole");
        assert_eq!(note(Event::InitDone), Some(names(&["b"])));
        let opted: Vec<_> = ["a", "b", "c"]
            .map(|name| opted_in.contains(&name.parse().unwrap()))
            .into();
        assert_eq!(opted, [false, false, true]);
    }

    #[test]
    fn namespaces_in_which_nothing_is_injected_opt_in_to_nothing() {
        let (settings, mut listed) = (settings(), HashSet::new());
        for name in ["kube-system", "kube-node-lease", settings.own_namespace.as_str()] {
            assert_eq!(change(&settings, &mut listed, Ok(Event::Apply(seen(name)))), None);
            assert_eq!(change(&settings, &mut listed, Ok(Event::InitApply(seen(name)))), None);
        }
        assert!(listed.is_empty());
    }
}
