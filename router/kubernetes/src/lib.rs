//! What programs read of Kubernetes objects that tenants write.
//!
//! Hides what else is in such an object. A tenant may put a time of the year 10000 or two hundred levels of nothing into
//! `managedFields`, and into much else that nobody here needs. A whole page of a list can't be read because of one object
//! like that, so what isn't needed is skipped unread.

use futures_util::Stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::api::{Api, ObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;

/// Objects on a page of a list. Each may have a megabyte, and the text of a page is held twice while it is read: so
/// whoever may write objects can't make a program that lists them run out of memory.
const PAGE: u32 = 10;

/// An object of kind `K`, of which only these parts were read. Its metadata has name, namespace, UID, resource version,
/// labels and owner references, and nothing else.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    from = "Sent<Spec, Status>",
    bound = "Spec: DeserializeOwned + Default, Status: DeserializeOwned + Default"
)]
pub struct PartialObject<K, Spec = Unread, Status = Unread> {
    /// What was read of the metadata.
    pub metadata: ObjectMeta,
    /// Whether it is being deleted.
    pub is_being_deleted: bool,
    /// What was read of the specification.
    pub spec: Spec,
    /// What was read of the status.
    pub status: Status,
    kind: PhantomData<fn() -> K>,
}

/// A part that isn't read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unread;

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// As the API server sends it.
#[derive(Deserialize)]
struct Sent<Spec, Status> {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default = "Default::default")]
    spec: Option<Spec>,
    #[serde(default = "Default::default")]
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    // Whoever deletes an object chooses how much later this is.
    deletion_timestamp: Option<IgnoredAny>,
}

impl<K, Spec: Default, Status: Default> From<Sent<Spec, Status>> for PartialObject<K, Spec, Status> {
    fn from(sent: Sent<Spec, Status>) -> Self {
        let metadata = sent.metadata;
        Self {
            is_being_deleted: metadata.deletion_timestamp.is_some(),
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                uid: metadata.uid,
                resource_version: metadata.resource_version,
                labels: metadata.labels,
                owner_references: metadata.owner_references,
                ..ObjectMeta::default()
            },
            spec: sent.spec.unwrap_or_default(),
            status: sent.status.unwrap_or_default(),
            kind: PhantomData,
        }
    }
}

impl<K, Spec, Status> PartialObject<K, Spec, Status> {
    /// The same with something else in place of its specification.
    pub fn map_spec<Other>(self, change: impl FnOnce(Spec) -> Other) -> PartialObject<K, Other, Status> {
        PartialObject {
            metadata: self.metadata,
            is_being_deleted: self.is_being_deleted,
            spec: change(self.spec),
            status: self.status,
            kind: PhantomData,
        }
    }
}

impl<K: Resource<DynamicType = ()>, Spec, Status> Resource for PartialObject<K, Spec, Status> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What a watch of tenants' objects says, for ever. After a failure it goes on by itself, later and later.
pub fn watch<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher(api, config.page_size(PAGE)).default_backoff()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use kube::ResourceExt;
    use kube::core::ObjectList;

    #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        node_name: String,
    }

    type Seen = PartialObject<Pod, Spec>;

    fn listed(metadata: &str) -> ObjectList<Seen> {
        let list = format!(
            r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"7"}},"items":[
                {{"metadata":{{"name":"odd","namespace":"team-b","uid":"u-2",{metadata}}},"spec":{{"nodeName":"a"}}}},
                {{"metadata":{{"name":"box","namespace":"team-a","uid":"u-1","resourceVersion":"5","labels":{{"a":"b"}},
                    "ownerReferences":[{{"apiVersion":"v1","kind":"Sandbox","name":"box","uid":"s-1","controller":true}}]}},
                  "spec":{{"nodeName":"b"}},"status":{{"phase":"Running"}}}}]}}"#
        );
        serde_json::from_str(&list).unwrap()
    }

    #[test]
    fn what_one_tenant_writes_hides_no_other_tenants_objects() {
        let deep = format!("{}{}", r#"{"f:x":"#.repeat(500), "{}".to_owned() + &"}".repeat(500));
        for metadata in [
            r#""managedFields":[{"manager":"m","time":"9999-12-31T23:59:59Z"}]"#.to_owned(),
            format!(r#""managedFields":[{{"manager":"m","fieldsV1":{deep}}}]"#),
            r#""managedFields":7"#.to_owned(),
            r#""creationTimestamp":"12026-01-01T00:00:00Z""#.to_owned(),
            r#""deletionTimestamp":"12026-01-01T00:00:00Z""#.to_owned(),
            format!(r#""annotations":{{"a":"{}"}}"#, "\\u0001".repeat(1000)),
        ] {
            let list = listed(&metadata);
            let [odd, pod] = &list.items[..] else {
                panic!("{metadata}")
            };
            assert_eq!(odd.is_being_deleted, metadata.contains("deletion"), "{metadata}");
            assert_eq!(odd.name_any(), "odd");
            assert!(
                odd.metadata.managed_fields.is_none() && odd.annotations().is_empty(),
                "{metadata}"
            );
            assert_eq!(pod.name_any(), "box");
            assert_eq!(pod.namespace().as_deref(), Some("team-a"));
            assert_eq!(pod.uid().as_deref(), Some("u-1"));
            assert_eq!(pod.resource_version().as_deref(), Some("5"));
            assert_eq!(pod.labels()["a"], "b");
            assert_eq!(pod.owner_references()[0].uid, "s-1");
            assert_eq!(pod.spec.node_name, "b");
            assert!(!pod.is_being_deleted);
        }
    }

    #[test]
    fn what_is_missing_or_null_is_empty() {
        for text in [
            r#"{"metadata":{"name":"box"}}"#,
            r#"{"metadata":{"name":"box"},"spec":null,"status":null}"#,
            "{}",
        ] {
            let object: Seen = serde_json::from_str(text).unwrap();
            assert_eq!(object.spec, Spec::default(), "{text}");
        }
    }

    #[test]
    fn it_is_asked_for_as_what_it_is_part_of() {
        assert_eq!(Seen::url_path(&(), Some("team-a")), Pod::url_path(&(), Some("team-a")));
        assert_eq!(Seen::kind(&()), "Pod");
    }
}
