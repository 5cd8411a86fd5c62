//! Credentials -> one [`Caller`]. One file per kind of credential.

mod static_token;
mod token_review;

use crate::api_server::ApiServer;
use crate::config::Authentication;
use crate::error::RouterError;
use crate::metrics::Metrics;
use crate::reviews::Verdict;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use sandgate_mesh::caller::{Caller, CallerName};
use sandgate_mesh::headers::only;
use sandgate_mesh::tls::FrontPeer;
use static_token::StaticToken;
use std::sync::Arc;
use token_review::TokenReviews;

/// A caller and how the sidecar is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated {
    pub(crate) caller: Arc<Caller>,
    pub(crate) assertion: HeaderValue,
}

impl From<Caller> for Authenticated {
    fn from(caller: Caller) -> Self {
        Self {
            assertion: caller.to_assertion(),
            caller: Arc::new(caller),
        }
    }
}

/// Decides who calls.
#[derive(Debug)]
pub(crate) struct Authenticator {
    credential: Credential,
    anonymous: Authenticated,
}

/// What callers present.
#[derive(Debug)]
enum Credential {
    /// Nothing, or a client certificate.
    Any,
    StaticToken(StaticToken),
    TokenReview(TokenReviews),
}

impl Authenticator {
    /// # Errors
    /// No way to an API server is configured, and there has to be one.
    pub(crate) async fn new(
        authentication: &Authentication,
        api_server: &ApiServer,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let credential = match authentication {
            Authentication::AllowAll => Credential::Any,
            Authentication::StaticToken(token) => Credential::StaticToken(StaticToken::new(token)?),
            Authentication::TokenReview(settings) => {
                let client = api_server.client().await?;
                Credential::TokenReview(TokenReviews::new(settings, client, metrics))
            }
        };
        Ok(Self {
            credential,
            anonymous: Caller::Anonymous.into(),
        })
    }

    /// The caller of a request that came over a connection with this client certificate, if any. Where a token is
    /// required every request needs it, a certificate or not.
    pub(crate) fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&Authenticated>,
    ) -> Verdict<'_, Authenticated> {
        let without_token = || Ok(certificate.unwrap_or(&self.anonymous).clone());
        match &self.credential {
            Credential::Any => Verdict::Known(without_token()),
            Credential::StaticToken(token) => Verdict::Known(token.check(headers)),
            Credential::TokenReview(reviews) => match bearer(headers) {
                Ok(Some(token)) => reviews.check(token),
                Ok(None) if reviews.require_token => Verdict::Known(Err(RouterError::NoCredential)),
                Ok(None) => Verdict::Known(without_token()),
                Err(error) => Verdict::Known(Err(error)),
            },
        }
    }
}

/// The bearer token of a head (RFC 6750 section 2.1), if it has an `Authorization` at all.
///
/// # Errors
/// It has another one, or several: two readers could take different ones.
fn bearer(headers: &HeaderMap) -> Result<Option<&[u8]>, RouterError> {
    let value = only(headers, &AUTHORIZATION).map_err(|_| RouterError::NoCredential)?;
    let Some(value) = value else { return Ok(None) };
    match value.as_bytes().split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Ok(Some(token.trim_ascii())),
        _ => Err(RouterError::NoCredential),
    }
}

/// The caller that a verified client certificate names; `None` where its name can't be one.
pub(crate) fn certificate_caller(peer: &FrontPeer) -> Option<Authenticated> {
    let caller = match peer {
        FrontPeer::Spiffe(id) => Caller::Spiffe(id.clone()),
        FrontPeer::CommonName(name) => Caller::Certificate {
            common_name: name.parse::<CallerName>().ok()?,
        },
    };
    Some(caller.into())
}
