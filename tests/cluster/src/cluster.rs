//! A connection to the API server. Objects are JSON as it goes over the wire, so that a test sees every byte that
//! admission changed and can send what no type would allow.

use crate::{PATIENCE, until};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, Request, Resource, Status};
use kube::discovery::{Scope, pinned_kind};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// What the API server says to a request: an object, or why not.
pub type Answer = Result<Value, Box<Status>>;

/// Who these tests are in `managedFields`.
const FIELD_MANAGER: &str = "sandgate-tests";

/// A connection as one user: the administrator, if nobody else is said.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) config: Config,
    client: kube::Client,
    kinds: Arc<Mutex<HashMap<GroupVersionKind, (ApiResource, Scope)>>>,
    leftovers: Arc<Mutex<Vec<Value>>>,
    test: Arc<str>,
}

impl Cluster {
    /// Connects to the cluster that `KUBECONFIG` names. `SANDGATE_CLUSTER` must be set as well, as `tests/cluster/run`
    /// does, so that tests never happen to a cluster that a shell merely points to.
    pub async fn connect() -> Self {
        let given = std::env::var_os("SANDGATE_CLUSTER").zip(std::env::var_os("KUBECONFIG"));
        let (_, path) = given.expect("these tests need a cluster of their own: use tests/cluster/run");
        let kubeconfig = Kubeconfig::read_from(path).unwrap();
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        config.proxy_url = None;
        // A test sees each refusal, also one that would pass at the second attempt.
        config.default_retry = false;
        config.read_timeout = Some(PATIENCE);
        Self::with(config, Arc::default(), Arc::default(), "test".into())
    }

    fn with(
        config: Config,
        kinds: Arc<Mutex<HashMap<GroupVersionKind, (ApiResource, Scope)>>>,
        leftovers: Arc<Mutex<Vec<Value>>>,
        test: Arc<str>,
    ) -> Self {
        Self {
            client: kube::Client::try_from(config.clone()).unwrap(),
            config,
            kinds,
            leftovers,
            test,
        }
    }

    /// The same for one test, which has leftovers of its own.
    pub(crate) fn for_test(&self, test: &str) -> Self {
        Self {
            leftovers: Arc::default(),
            test: test.into(),
            ..self.clone()
        }
    }

    /// The same as another user.
    pub(crate) fn with_config(&self, config: Config) -> Self {
        Self::with(config, self.kinds.clone(), self.leftovers.clone(), self.test.clone())
    }

    /// The client below, for watches and whatever else goes beyond one request.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The running test's name.
    pub(crate) fn test(&self) -> &str {
        &self.test
    }

    /// Deletes this object when the test has ended, however it ends.
    pub fn remove_afterwards(&self, object: &Value) {
        self.leftovers.lock().unwrap().push(object.clone());
    }

    /// Deletes what was to be removed, newest first.
    pub(crate) async fn tidy(&self) {
        let leftovers = std::mem::take(&mut *self.leftovers.lock().unwrap());
        for object in leftovers.iter().rev() {
            if object["kind"] == "Namespace" {
                self.empty(object).await;
            }
            let _ = self.delete(object).await;
        }
    }

    /// Deletes the pods of a namespace. Where no controller manager runs nobody else does, and the injector of a later test
    /// would go on looking after their gates.
    async fn empty(&self, namespace: &Value) {
        let name = namespace["metadata"]["name"].as_str().expect("a name");
        let pods = Api::<Pod>::namespaced(self.client(), name);
        let _ = pods
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await;
    }

    /// Creates an object in the namespace that it names, or in none.
    pub async fn create(&self, object: &Value) -> Answer {
        self.create_at(object["metadata"]["namespace"].as_str(), object, false)
            .await
    }

    /// Creates an object as it stands in `namespace`, or says what would come of it.
    pub(crate) async fn create_at(&self, namespace: Option<&str>, object: &Value, dry_run: bool) -> Answer {
        let params = PostParams {
            dry_run,
            field_manager: Some(FIELD_MANAGER.into()),
        };
        let request = self.request(object, namespace).await;
        self.send(request.create(&params, bytes(object)).unwrap()).await
    }

    /// Applies an object (server-side, by force), also one that is there already.
    pub async fn apply(&self, object: &Value) -> Answer {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.patch(object, &params, &Patch::Apply(object)).await
    }

    /// Applies every object; all must be taken. Returns them as they are then.
    pub async fn apply_all(&self, objects: &[Value]) -> Vec<Value> {
        let mut applied = Vec::new();
        for object in objects {
            let answer = self.apply(object).await;
            applied.push(answer.unwrap_or_else(|status| panic!("applying {}: {status}", describe(object))));
        }
        applied
    }

    /// Changes the object of this kind, namespace and name by a merge patch (RFC 7396).
    pub async fn merge(&self, object: &Value, patch: &Value) -> Answer {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        self.patch(object, &params, &Patch::Merge(patch)).await
    }

    /// What would come of [`Self::merge`].
    pub async fn try_merge(&self, object: &Value, patch: &Value) -> Answer {
        let params = PatchParams {
            dry_run: true,
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        self.patch(object, &params, &Patch::Merge(patch)).await
    }

    async fn patch(&self, object: &Value, params: &PatchParams, patch: &Patch<&Value>) -> Answer {
        let request = self.request(object, object["metadata"]["namespace"].as_str()).await;
        self.send(request.patch(name(object), params, patch).unwrap()).await
    }

    /// Replaces an object by this one.
    pub async fn replace(&self, object: &Value) -> Answer {
        let request = self.request(object, object["metadata"]["namespace"].as_str()).await;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        self.send(request.replace(name(object), &params, bytes(object)).unwrap())
            .await
    }

    /// The object of this kind, namespace and name as it is now.
    pub async fn get(&self, object: &Value) -> Answer {
        let request = self.request(object, object["metadata"]["namespace"].as_str()).await;
        self.send(request.get(name(object), &kube::api::GetParams::default()).unwrap())
            .await
    }

    /// Deletes the object of this kind, namespace and name.
    pub async fn delete(&self, object: &Value) -> Answer {
        let request = self.request(object, object["metadata"]["namespace"].as_str()).await;
        self.send(request.delete(name(object), &DeleteParams::default()).unwrap())
            .await
    }

    /// Sends any request, such as one for a subresource.
    pub async fn send(&self, request: http::Request<Vec<u8>>) -> Answer {
        match self.client.request(request).await {
            Ok(value) => Ok(value),
            Err(kube::Error::Api(status)) => Err(status),
            Err(error) => panic!("the API server gave no answer: {error}"),
        }
    }

    /// Requests for objects of this one's kind in this namespace.
    async fn request(&self, object: &Value, namespace: Option<&str>) -> Request {
        let (resource, scope) = self.kind(object).await;
        let namespace = namespace.filter(|_| scope == Scope::Namespaced);
        Request::new(DynamicObject::url_path(&resource, namespace))
    }

    /// How the API server serves this object's kind. A custom resource is served a moment after its definition was taken.
    async fn kind(&self, object: &Value) -> (ApiResource, Scope) {
        let text = |field: &str| {
            object[field]
                .as_str()
                .unwrap_or_else(|| panic!("no {field} in {object}"))
        };
        let (version, kind) = (text("apiVersion"), text("kind"));
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let gvk = GroupVersionKind::gvk(group, version, kind);
        if let Some(known) = self.kinds.lock().unwrap().get(&gvk) {
            return known.clone();
        }
        let what = format!("the API server knows {kind} of {group}/{version}");
        let (resource, capabilities) = until(&what, async || pinned_kind(&self.client, &gvk).await).await;
        let known = (resource, capabilities.scope);
        self.kinds.lock().unwrap().insert(gvk, known.clone());
        known
    }
}

/// The documents of a YAML text, without empty ones.
pub fn documents(yaml: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// What an object is, in words.
pub(crate) fn describe(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("object");
    format!(
        "{kind} {}",
        object["metadata"]["name"].as_str().unwrap_or("without a name")
    )
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"]
        .as_str()
        .unwrap_or_else(|| panic!("no name in {object}"))
}

fn bytes(object: &Value) -> Vec<u8> {
    serde_json::to_vec(object).unwrap()
}
