//! Keeps one `NetworkPolicy` in each opted-in namespace.
//!
//! Replicas don't divide the work. Whoever is first corrects a deviation, and the attempts of others meet a conflict: so
//! each correction is counted and told once.

use super::report::Report;
use super::{expected, opening};
use crate::kubernetes::{RequestError, bounded};
use crate::metrics::Metrics;
use crate::names::{ENABLED, FIELD_MANAGER, INJECT_LABEL, MANAGED_BY_LABEL, NETWORK_POLICY};
use crate::patch::{add, pointer};
use crate::settings::Settings;
use futures_util::{Stream, StreamExt, future, stream};
use json_patch::Patch as JsonPatch;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, ObjectMeta, PartialObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use sandgate_kubernetes::{PartialObject, watch};
use sandgate_mesh::telemetry::chain;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long to wait before a namespace is tried again that something failed for.
const RETRY: Duration = Duration::from_secs(5);
/// How often everything is looked at although no event came.
const RESYNC: Duration = Duration::from_secs(600);
/// How long no policy is made while it would have no owner.
const ORPHANED: Duration = Duration::from_secs(10);

/// What a reconciler works with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    /// The configuration whose removal takes the policies along.
    pub(crate) webhook_configuration: String,
    /// Whether there should be policies at all; if not, those that are there go.
    pub(crate) enabled: bool,
    pub(crate) metrics: Arc<Metrics>,
}

/// Something that may have changed.
enum Change {
    /// One namespace.
    Namespace(String),
    /// Anything: a watch has started over.
    Listed(Watched),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Watched {
    Namespaces,
    Policies,
}

/// A policy as the API server sends it.
type Sent = PartialObject<NetworkPolicy, NetworkPolicySpec>;
/// What is kept of a policy: whoever may write many large ones fills nobody's memory.
pub(super) type Seen = PartialObject<NetworkPolicy, Kept>;

/// What is kept of a policy's specification.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    /// All of it, of a policy of our name.
    own: Option<NetworkPolicySpec>,
    /// What another one opens, in words.
    pub(super) opening: Option<String>,
}

/// What should be in a namespace.
#[derive(PartialEq, Eq)]
enum Wanted {
    Policy,
    Nothing,
    /// Whatever is there: the namespace is going away.
    Anything,
}

/// Keeps the policies.
pub(crate) struct Reconciler {
    context: Context,
    expected: NetworkPolicySpec,
    namespaces: Store<PartialObject<Namespace>>,
    policies: Store<Seen>,
    /// Where our policy was in place: when it is missing there, somebody deleted it.
    placed: BTreeSet<String>,
    owner: Option<OwnerReference>,
    /// Whether it was told that there is none.
    told_ownerless: bool,
    /// Where both the policy and its owner are missing, and since when.
    orphaned: BTreeMap<String, Instant>,
    report: Report,
}

impl Reconciler {
    /// Follows namespaces and policies for ever.
    pub(crate) async fn run(context: Context) {
        let (namespaces, writer) = store();
        let opted_in = watcher::Config::default().labels(&format!("{INJECT_LABEL}={ENABLED}"));
        let found = watch(Api::<PartialObject<Namespace>>::all(context.client.clone()), opted_in).reflect(writer);
        let of_namespaces = changes(found, &context.metrics, Watched::Namespaces, |found| {
            Some(found.name_any())
        });

        let (policies, writer) = store();
        let (all, settings) = (Api::<Sent>::all(context.client.clone()), context.settings.clone());
        let found = watch(all, watcher::Config::default());
        let found = found.map(move |event| Ok(kept(&settings, event?))).reflect(writer);
        let of_policies = changes(found, &context.metrics, Watched::Policies, ResourceExt::namespace);

        let mut changes = stream::select(of_namespaces, of_policies);
        let mut reconciler = Self {
            expected: expected(&context.settings),
            report: Report::new(&context.client, &context.metrics),
            placed: BTreeSet::new(),
            owner: None,
            told_ownerless: false,
            orphaned: BTreeMap::new(),
            context,
            namespaces,
            policies,
        };
        let (mut listed, mut pending, mut failed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut resync, mut retry) = (tokio::time::interval(RESYNC), tokio::time::interval(RETRY));
        loop {
            tokio::select! {
                Some(change) = changes.next() => match change {
                    Change::Namespace(namespace) => { pending.insert(namespace); }
                    Change::Listed(watched) => {
                        listed.insert(watched);
                        pending.extend(reconciler.all());
                    }
                },
                _ = resync.tick() => {
                    reconciler.find_owner().await;
                    pending.extend(reconciler.all());
                }
                _ = retry.tick() => pending.append(&mut failed),
            }
            // Half of the picture looks as if somebody had removed the rest.
            while listed.len() == 2
                && let Some(namespace) = pending.pop_first()
            {
                if !reconciler.settle(&namespace).await {
                    failed.insert(namespace);
                }
            }
        }
    }

    /// Every namespace that has, had or should have a policy of ours.
    fn all(&self) -> BTreeSet<String> {
        let opted_in = self
            .namespaces
            .state()
            .into_iter()
            .map(|namespace| namespace.name_any());
        let ours = self.policies.state_filter(|policy| policy.name_any() == NETWORK_POLICY);
        let ours = ours.into_iter().filter_map(|policy| policy.namespace());
        let told = self.report.namespaces().chain(&self.placed).cloned();
        opted_in.chain(ours).chain(told).collect()
    }

    fn wanted(&self, namespace: &str) -> Wanted {
        let excluded = self.context.settings.excludes(namespace);
        match self.namespaces.get(&ObjectRef::new(namespace)) {
            Some(found) if found.is_being_deleted => Wanted::Anything,
            Some(_) if self.context.enabled && !excluded => Wanted::Policy,
            _ => Wanted::Nothing,
        }
    }

    /// Whether everything in a namespace is as it should be now.
    async fn settle(&mut self, namespace: &str) -> bool {
        let wanted = self.wanted(namespace);
        let settled = self.reconcile(namespace, &wanted).await;
        let others = self.policies.state_filter(|policy| {
            wanted == Wanted::Policy
                && policy.metadata.namespace.as_deref() == Some(namespace)
                && policy.metadata.name.as_deref() != Some(NETWORK_POLICY)
        });
        self.report.tell(namespace, &others).await;
        settled
            .map_err(|error| {
                self.context.metrics.failed("network_policy");
                let next = "it is tried again in a few seconds";
                tracing::warn!(
                    namespace,
                    error = chain(&error),
                    next,
                    "can't bring NetworkPolicy {NETWORK_POLICY} up to date"
                );
            })
            .is_ok_and(|()| !self.orphaned.contains_key(namespace))
    }

    async fn reconcile(&mut self, namespace: &str, wanted: &Wanted) -> Result<(), RequestError> {
        let found = self.policies.get(&ObjectRef::new(NETWORK_POLICY).within(namespace));
        match (wanted, found) {
            (Wanted::Policy, Some(found)) if self.is_right(&found) => {
                self.placed.insert(namespace.to_owned());
            }
            (Wanted::Policy, Some(found)) => self.replace(namespace, &found).await?,
            (Wanted::Policy, None) => self.create(namespace).await?,
            (Wanted::Nothing, Some(found)) if is_ours(&found) => self.remove(namespace, &found).await?,
            (Wanted::Nothing, _) => {
                self.placed.remove(namespace);
            }
            (Wanted::Anything, _) => {}
        }
        Ok(())
    }

    fn is_right(&self, found: &Seen) -> bool {
        let owned = self
            .owner
            .as_ref()
            .is_none_or(|owner| found.owner_references().contains(owner));
        found.spec.own.as_ref() == Some(&self.expected) && is_ours(found) && owned
    }

    /// Without an owner, the release is being installed, and the owner comes next; or it is being uninstalled, and this
    /// process is ended next. A policy without an owner would then close ports for ever, so there is none until it shows
    /// that this process goes on by itself.
    fn awaits_owner(&mut self, namespace: &str) -> bool {
        if self.owner.is_some() {
            self.orphaned.remove(namespace);
            return false;
        }
        let since = self.orphaned.entry(namespace.to_owned()).or_insert_with(Instant::now);
        since.elapsed() < ORPHANED || self.orphaned.remove(namespace).is_none()
    }

    async fn create(&mut self, namespace: &str) -> Result<(), RequestError> {
        self.find_owner().await;
        if self.awaits_owner(namespace) {
            return Ok(());
        }
        let policy = NetworkPolicy {
            metadata: ObjectMeta {
                name: Some(NETWORK_POLICY.into()),
                labels: Some(BTreeMap::from([(MANAGED_BY_LABEL.into(), FIELD_MANAGER.into())])),
                owner_references: self.owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(self.expected.clone()),
        };
        match bounded(self.api::<NetworkPolicy>(namespace).create(&params(), &policy)).await {
            Ok(_) if self.placed.insert(namespace.to_owned()) => self.report.created(namespace),
            Ok(created) => {
                let cause = "somebody deleted it";
                self.report.repaired(namespace, created.object_ref(&()), cause).await;
            }
            // Another replica's, which the watch will show.
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Puts back what is ours and leaves what else others have noted on the object.
    async fn replace(&mut self, namespace: &str, found: &Seen) -> Result<(), RequestError> {
        self.find_owner().await;
        let mut labels = found.labels().clone();
        labels.insert(MANAGED_BY_LABEL.into(), FIELD_MANAGER.into());
        let mut owners = found.owner_references().to_vec();
        if let Some(owner) = &self.owner {
            owners.retain(|other| other.kind != owner.kind || other.name != owner.name);
            owners.push(owner.clone());
        }
        let changed = found.spec.own.as_ref() != Some(&self.expected);
        // With the version that was found: whoever was faster wins, and the watch shows what came of it.
        let patch = JsonPatch(vec![
            add(
                pointer(&["metadata", "resourceVersion"]),
                json!(found.resource_version()),
            ),
            add(pointer(&["metadata", "labels"]), json!(labels)),
            add(pointer(&["metadata", "ownerReferences"]), json!(owners)),
            add(pointer(&["spec"]), json!(self.expected)),
        ]);
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        let (api, patch) = (self.api::<Sent>(namespace), Patch::Json::<()>(patch));
        let patched = api.patch(NETWORK_POLICY, &params, &patch);
        match bounded(patched).await {
            Ok(patched) if changed => {
                let cause = "somebody changed it";
                self.report.repaired(namespace, patched.object_ref(&()), cause).await;
            }
            Ok(_) => {}
            Err(error) if error.is_conflict() || error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        }
        self.placed.insert(namespace.to_owned());
        Ok(())
    }

    async fn remove(&mut self, namespace: &str, found: &Seen) -> Result<(), RequestError> {
        let only_this = DeleteParams {
            preconditions: Some(Preconditions {
                uid: found.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match bounded(self.api::<Sent>(namespace).delete(NETWORK_POLICY, &only_this)).await {
            Ok(_) => self.report.removed(namespace),
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        self.placed.remove(namespace);
        Ok(())
    }

    /// With the webhook configuration the cluster's garbage collector removes the policies: what is left of an
    /// uninstalled release must not close ports for ever.
    async fn find_owner(&mut self) {
        type Found = PartialObjectMeta<MutatingWebhookConfiguration>;
        let api = Api::<Found>::all(self.context.client.clone());
        match bounded(api.get_opt(&self.context.webhook_configuration)).await {
            Ok(found) => {
                self.owner = found.and_then(|found| {
                    Some(OwnerReference {
                        api_version: Found::api_version(&()).into_owned(),
                        kind: Found::kind(&()).into_owned(),
                        name: found.name_any(),
                        uid: found.uid()?,
                        ..OwnerReference::default()
                    })
                });
                let ownerless = self.owner.is_none();
                if ownerless && !self.told_ownerless {
                    let name = &self.context.webhook_configuration;
                    let next = "run `helm upgrade`, or apply the manifests: without it nothing removes the policies that are \
                                made now when Sandgate is uninstalled";
                    tracing::warn!(
                        name,
                        next,
                        "the MutatingWebhookConfiguration that owns the NetworkPolicies isn't there"
                    );
                }
                self.told_ownerless = ownerless;
            }
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "can't read the MutatingWebhookConfiguration that owns the NetworkPolicies"
                );
            }
        }
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.context.client.clone(), namespace)
    }
}

fn params() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PostParams::default()
    }
}

fn is_ours(policy: &Seen) -> bool {
    policy
        .labels()
        .get(MANAGED_BY_LABEL)
        .is_some_and(|manager| manager == FIELD_MANAGER)
}

/// What is kept of what a watch says.
fn kept(settings: &Settings, event: watcher::Event<Sent>) -> watcher::Event<Seen> {
    match event {
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
        watcher::Event::InitApply(sent) => watcher::Event::InitApply(kept_of(settings, sent)),
        watcher::Event::Apply(sent) => watcher::Event::Apply(kept_of(settings, sent)),
        watcher::Event::Delete(sent) => watcher::Event::Delete(kept_of(settings, sent)),
    }
}

fn kept_of(settings: &Settings, mut sent: Sent) -> Seen {
    if sent.metadata.name.as_deref() == Some(NETWORK_POLICY) {
        return sent.map_spec(|spec| Kept {
            own: Some(spec),
            opening: None,
        });
    }
    (sent.metadata.labels, sent.metadata.owner_references) = (None, None);
    sent.map_spec(|spec| Kept {
        own: None,
        opening: opening(settings, &spec),
    })
}

/// From the events of a watch to the namespaces that they concern.
fn changes<K: Send + 'static>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    metrics: &Arc<Metrics>,
    watched: Watched,
    namespace: impl Fn(&K) -> Option<String> + Send + 'static,
) -> impl Stream<Item = Change> + Unpin + Send + 'static {
    let metrics = Arc::clone(metrics);
    let change = move |event: watcher::Result<watcher::Event<K>>| match event {
        Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object)) => namespace(&object).map(Change::Namespace),
        Ok(watcher::Event::InitDone) => Some(Change::Listed(watched)),
        Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
        Err(error) => {
            metrics.failed("network_policy");
            tracing::warn!(error = chain(&error), "can't watch namespaces and NetworkPolicies");
            None
        }
    };
    events.filter_map(move |event| future::ready(change(event))).boxed()
}
