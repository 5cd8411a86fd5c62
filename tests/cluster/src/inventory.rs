//! Everything that is in a cluster.

use crate::Cluster;
use kube::api::{Api, DynamicObject, ListParams};
use kube::discovery::{Discovery, verbs};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What comes and goes by itself: reports, and what the API server notes down for itself.
const EPHEMERAL: [&str; 3] = ["Event", "Lease", "ComponentStatus"];

/// Every object of every kind at one moment.
pub struct Inventory(BTreeMap<String, Value>);

impl Inventory {
    /// Lists all that can be listed.
    pub async fn take(cluster: &Cluster) -> Self {
        let discovery = Discovery::new(cluster.client()).run().await.unwrap();
        let mut found = BTreeMap::new();
        for (resource, capabilities) in discovery
            .groups()
            .flat_map(kube::discovery::ApiGroup::recommended_resources)
        {
            if !capabilities.supports_operation(verbs::LIST) || EPHEMERAL.contains(&resource.kind.as_str()) {
                continue;
            }
            let api = Api::<DynamicObject>::all_with(cluster.client(), &resource);
            // A kind whose definition another test has just changed is not served for a moment (429).
            let mut listed = api.list(&ListParams::default()).await;
            for _ in 0..30 {
                if !matches!(&listed, Err(kube::Error::Api(status)) if status.code == 429) {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                listed = api.list(&ListParams::default()).await;
            }
            for object in listed.unwrap() {
                let mut reference = json!({
                    "apiVersion": resource.api_version,
                    "kind": resource.kind,
                    "metadata": {"name": object.metadata.name},
                });
                if let Some(namespace) = object.metadata.namespace {
                    reference["metadata"]["namespace"] = json!(namespace);
                }
                found.insert(reference.to_string(), reference);
            }
        }
        Self(found)
    }

    /// What isn't in another inventory, as far as `Cluster::get` and `Cluster::delete` need it.
    pub fn without(&self, other: &Self) -> Vec<Value> {
        let new = self.0.iter().filter(|(key, _)| !other.0.contains_key(*key));
        new.map(|(_, reference)| reference.clone()).collect()
    }
}
