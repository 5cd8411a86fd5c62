//! What the API server says about a gate's pod, its token and its Sandbox: read at the moment when it counts, never from a
//! cache.

use crate::kubernetes::{RequestError, bounded};
use crate::names::{SANDBOX_GROUP, SANDBOX_PLURAL, TOKEN_AUDIENCE};
use crate::review::MAX_OBJECT_PARSED;
use crate::review_size::ParsedSize;
use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Limited};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup;
use kube::api::{Api, PostParams};
use kube::client::Body;
use kube::core::params::GetParams;
use kube::core::{Request, Status};
use kube::{Client, Resource};
use sandgate_kubernetes::PartialObject;
use sandgate_mesh::sandbox::{Namespace, SandboxName};
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest object that is read, in bytes. The webhook admits none that comes near it.
const MOST_BYTES: usize = 2 << 20;
/// How many objects are read at once, as text.
const READS: usize = 8;
/// What a pod takes in memory at most for others not to wait for it.
const ORDINARY: usize = 256 << 10;
/// How many pods are looked at at once that take more: so many large ones of one tenant keep up each other, and nobody else.
const LARGE: usize = 8;

/// The API server.
#[derive(Clone)]
pub(super) struct Evidence {
    client: Client,
    reads: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A pod as it is stored.
pub(super) struct StoredPod {
    object: Value,
    /// One of the places for large ones, as long as this is kept.
    _place: Option<OwnedSemaphorePermit>,
}

impl StoredPod {
    pub(super) fn object(&self) -> &Value {
        &self.object
    }
}

/// What counts of a Sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sandbox {
    pub(super) uid: String,
    pub(super) is_being_deleted: bool,
}

/// Why something can't be said about an object.
#[derive(Debug, thiserror::Error)]
pub(super) enum EvidenceError {
    #[error(transparent)]
    Api(#[from] RequestError),
    /// Nobody but who wrote the object can change that.
    #[error("{0}")]
    Unreadable(&'static str),
}

impl Evidence {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            reads: Arc::new(Semaphore::new(READS)),
            large: Arc::new(Semaphore::new(LARGE)),
        }
    }

    /// The pod of this name as it is stored now.
    ///
    /// # Errors
    /// The API server can't be asked, or the pod is larger than what is admitted.
    pub(super) async fn pod(
        &self,
        namespace: &Namespace,
        name: &SandboxName,
    ) -> Result<Option<StoredPod>, EvidenceError> {
        let mut place = None;
        loop {
            // Until it is parsed: texts that wait would add up. Nobody closes it.
            let reading = self.reads.acquire().await;
            let request = Request::new(Pod::url_path(&(), Some(namespace.as_str())));
            let request = request.get(name.as_str(), &GetParams::default());
            let Some(text) = self.text(request).await? else {
                return Ok(None);
            };
            let unreadable = |_| EvidenceError::Unreadable("the pod as it is stored can't be read");
            let ParsedSize(size) = ParsedSize::of(&text).map_err(unreadable)?;
            if size > MAX_OBJECT_PARSED {
                let larger = "the pod as it is stored is larger than pods may be";
                return Err(EvidenceError::Unreadable(larger));
            }
            if size <= ORDINARY || place.is_some() {
                let object = serde_json::from_slice(&text).map_err(unreadable)?;
                return Ok(Some(StoredPod { object, _place: place }));
            }
            // It is read anew when there is a place for it, and none of its text waits for that.
            drop((text, reading));
            place = Arc::clone(&self.large).acquire_owned().await.ok();
        }
    }

    /// The Sandbox of the same name, in this version or the one that the API server prefers.
    ///
    /// # Errors
    /// The API server can't be asked.
    pub(super) async fn sandbox(
        &self,
        namespace: &Namespace,
        name: &SandboxName,
        version: Option<&str>,
    ) -> Result<Option<Sandbox>, EvidenceError> {
        let preferred = match version {
            Some(_) => None,
            None => self.preferred_version().await?,
        };
        // Without any there are no Sandboxes in this cluster.
        let Some(version) = version.or(preferred.as_deref()) else {
            return Ok(None);
        };
        let path = format!("/apis/{SANDBOX_GROUP}/{version}/namespaces/{namespace}/{SANDBOX_PLURAL}");
        let request = Request::new(path);
        let request = request.get_metadata(name.as_str(), &GetParams::default());
        let _reading = self.reads.acquire().await;
        let Some(text) = self.text(request).await? else {
            return Ok(None);
        };
        let sandbox: PartialObject<Pod> = serde_json::from_slice(&text)
            .map_err(|_| EvidenceError::Unreadable("the Sandbox as it is stored can't be read"))?;
        Ok(Some(Sandbox {
            uid: sandbox.metadata.uid.unwrap_or_default(),
            is_being_deleted: sandbox.is_being_deleted,
        }))
    }

    /// An object as the API server sends it. Its author chooses how long it is.
    async fn text(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Option<Bytes>, EvidenceError> {
        let request = request.map_err(kube::Error::BuildRequest).map_err(RequestError::Kube)?;
        let read = async {
            let answer = self.client.send(request.map(Body::from)).await?;
            let (status, body) = (
                answer.status(),
                Limited::new(answer.into_body(), MOST_BYTES).collect().await,
            );
            Ok((status, body.map(Collected::to_bytes)))
        };
        let (status, body) = bounded(read).await?;
        let body =
            body.map_err(|_| EvidenceError::Unreadable("the object as it is stored is longer than objects may be"))?;
        match status {
            http::StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(body)),
            status => {
                let said = serde_json::from_slice::<Status>(&body);
                let said = said.unwrap_or_else(|_| Status::failure(status.as_str(), "").with_code(status.as_u16()));
                Err(RequestError::Kube(kube::Error::Api(said.boxed())).into())
            }
        }
    }

    /// The version of agent-sandbox's API that the API server prefers.
    async fn preferred_version(&self) -> Result<Option<String>, RequestError> {
        let group = http::Request::get(format!("/apis/{SANDBOX_GROUP}")).body(Vec::new());
        let group =
            group.map_err(|error| kube::Error::BuildRequest(kube::core::request::Error::BuildRequest(error)))?;
        match bounded(self.client.request::<APIGroup>(group)).await {
            Ok(group) => Ok(group.preferred_version.map(|preferred| preferred.version)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whose token this is, as one for gates.
    ///
    /// # Errors
    /// The API server can't be asked.
    pub(super) async fn token(&self, token: String) -> Result<TokenReviewStatus, RequestError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token,
                audiences: Some(vec![TOKEN_AUDIENCE.into()]),
            },
            ..TokenReview::default()
        };
        let api = Api::<TokenReview>::all(self.client.clone());
        let reviewed = bounded(api.create(&PostParams::default(), &review)).await?;
        Ok(reviewed.status.unwrap_or_default())
    }
}
