//! What the API server says about a gate's pod, its token and its Sandbox: read at the moment when it counts, never from a
//! cache.

use super::pods::Target;
use crate::kubernetes::{RequestError, bounded};
use crate::names::{SANDBOX_GROUP, SANDBOX_PLURAL, TOKEN_AUDIENCE};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIGroup;
use kube::api::{Api, PostParams};
use kube::core::Request;
use kube::core::params::GetParams;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The API server.
#[derive(Clone)]
pub(super) struct Evidence {
    client: Client,
}

impl Evidence {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The pod of this name as it is stored now.
    ///
    /// # Errors
    /// The API server can't be asked.
    pub(super) async fn pod(&self, target: &Target) -> Result<Option<Value>, RequestError> {
        let request = Request::new(Pod::url_path(&(), Some(target.namespace.as_str())));
        self.found(request.get(target.name.as_str(), &GetParams::default()))
            .await
    }

    /// The metadata of the Sandbox of the same name, in this version or the one that the API server prefers.
    ///
    /// # Errors
    /// The API server can't be asked.
    pub(super) async fn sandbox(&self, target: &Target, version: Option<&str>) -> Result<Option<Value>, RequestError> {
        let preferred = match version {
            Some(_) => None,
            None => self.preferred_version().await?,
        };
        // Without any there are no Sandboxes in this cluster.
        let Some(version) = version.or(preferred.as_deref()) else {
            return Ok(None);
        };
        let namespace = &target.namespace;
        let path = format!("/apis/{SANDBOX_GROUP}/{version}/namespaces/{namespace}/{SANDBOX_PLURAL}");
        let request = Request::new(path);
        self.found(request.get_metadata(target.name.as_str(), &GetParams::default()))
            .await
    }

    /// The version of agent-sandbox's API that the API server prefers.
    async fn preferred_version(&self) -> Result<Option<String>, RequestError> {
        let group = http::Request::get(format!("/apis/{SANDBOX_GROUP}")).body(Vec::new());
        let group: Option<APIGroup> = self
            .found(group.map_err(kube::core::request::Error::BuildRequest))
            .await?;
        Ok(group.and_then(|group| Some(group.preferred_version?.version)))
    }

    async fn found<T: DeserializeOwned>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Option<T>, RequestError> {
        let request = request.map_err(kube::Error::BuildRequest)?;
        match bounded(self.client.request(request)).await {
            Ok(found) => Ok(Some(found)),
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
