//! A namespace of a test's own.

use crate::{Answer, Cluster, cluster::describe};
use serde_json::{Value, json};

/// How much of a test's name is in its namespaces' names: those have 63 bytes, five of which the API server chooses.
const NAME_BYTES: usize = 50;

/// A namespace, as one user sees it.
#[derive(Clone)]
pub struct Namespace {
    cluster: Cluster,
    name: String,
}

impl Cluster {
    /// A new namespace with these labels and a ServiceAccount `default`, for the length of the test.
    pub async fn namespace(&self, labels: &[(&str, &str)]) -> Namespace {
        let labels: Value = labels
            .iter()
            .map(|(key, value)| (key.to_string(), json!(value)))
            .collect();
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"generateName": prefix(self.test()), "labels": labels},
        });
        let answer = self.create(&namespace).await;
        let created = answer.unwrap_or_else(|status| panic!("creating a namespace: {status}"));
        self.remove_afterwards(&created);
        let namespace = Namespace {
            cluster: self.clone(),
            name: created["metadata"]["name"].as_str().unwrap().to_owned(),
        };
        // Where no controller manager runs, nobody else makes it, and without it no pod is admitted.
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        match namespace.create(&account).await {
            Err(status) if !status.is_already_exists() => panic!("creating the ServiceAccount default: {status}"),
            _ => namespace,
        }
    }
}

impl Namespace {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster that it is in, as the same user.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The same namespace as another user sees it.
    #[must_use]
    pub fn seen_by(&self, user: &Cluster) -> Self {
        Self {
            cluster: user.clone(),
            name: self.name.clone(),
        }
    }

    /// Creates an object here, sent as it stands: the namespace is in the URL, and only there unless the object has it.
    pub async fn create(&self, object: &Value) -> Answer {
        self.cluster.create_at(Some(&self.name), object, false).await
    }

    /// What would come of creating an object here.
    pub async fn dry_run(&self, object: &Value) -> Answer {
        self.cluster.create_at(Some(&self.name), object, true).await
    }

    /// Creates an object here that must be taken, and returns it as it was stored.
    pub async fn admitted(&self, object: &Value) -> Value {
        let answer = self.create(object).await;
        answer.unwrap_or_else(|status| panic!("{} was refused: {status}", describe(object)))
    }

    /// Creates an object here that must be refused, and returns the reason given.
    pub async fn refused(&self, object: &Value) -> String {
        match self.create(object).await {
            Ok(stored) => panic!("{} was taken: {stored}", describe(object)),
            Err(status) => status.message,
        }
    }

    /// Adds an ephemeral container to a pod, as `kubectl debug` does.
    pub async fn debug(&self, pod: &Value, container: &Value) -> Answer {
        let patch = json!({"spec": {"ephemeralContainers": [container]}});
        self.change_part(pod, "ephemeralcontainers", &patch).await
    }

    /// Posts an object to a place in this namespace.
    pub async fn post(&self, place: &[&str], object: &Value) -> Answer {
        let path = format!("/api/v1/namespaces/{}/{}", self.name, place.join("/"));
        let request = http::Request::post(path).body(serde_json::to_vec(object).unwrap());
        self.cluster.send(request.unwrap()).await
    }

    /// Changes a pod through one of its subresources, by a strategic merge patch.
    pub async fn change_part(&self, pod: &Value, sub_resource: &str, patch: &Value) -> Answer {
        let (namespace, name) = (&self.name, pod["metadata"]["name"].as_str().unwrap());
        let request = http::Request::patch(format!("/api/v1/namespaces/{namespace}/pods/{name}/{sub_resource}"))
            .header("content-type", "application/strategic-merge-patch+json")
            .body(serde_json::to_vec(patch).unwrap());
        self.cluster.send(request.unwrap()).await
    }
}

/// A test's name as the beginning of a DNS label.
fn prefix(test: &str) -> String {
    let name = test.rsplit("::").next().unwrap_or(test);
    let name: String = name.replace('_', "-").chars().take(NAME_BYTES).collect();
    format!("{name}-")
}
