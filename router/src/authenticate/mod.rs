//! Credentials -> one [`Caller`]. One file per kind of credential.

mod bearer;
mod followed;
mod oidc;
mod scoped_token;
mod static_token;
mod token_review;
mod verified;

use crate::api_server::ApiServer;
use crate::config::Authentication;
use crate::error::RouterError;
use crate::metrics::Metrics;
use crate::reviews::Verdict;
use http::{HeaderMap, HeaderValue};
use oidc::OidcTokens;
use sandgate_mesh::caller::{Caller, CallerName};
use sandgate_mesh::scoped_token::Scope;
use sandgate_mesh::tls::FrontPeer;
use scoped_token::ScopedTokens;
use static_token::StaticToken;
use std::net::IpAddr;
use std::sync::Arc;
use token_review::TokenReviews;
pub(crate) use token_review::UserAttributes;

/// A caller and how the sidecar is told of it.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated {
    pub(crate) caller: Arc<Caller>,
    pub(crate) assertion: HeaderValue,
    /// All that the caller may ask for; `None`: anything.
    pub(crate) scope: Option<Arc<Scope>>,
    /// What else the API server knows the caller by. It is for that to hear again, and no gate is told.
    pub(crate) attributes: Option<Arc<UserAttributes>>,
}

impl From<Caller> for Authenticated {
    fn from(caller: Caller) -> Self {
        Self {
            assertion: caller.to_assertion(),
            caller: Arc::new(caller),
            scope: None,
            attributes: None,
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
    TokenReview(Box<TokenReviews>),
    ScopedToken(Box<ScopedTokens>),
    Oidc(Box<OidcTokens>),
}

impl Authenticator {
    /// Reads what belongs to the chosen credential. To be called inside a Tokio runtime.
    ///
    /// # Errors
    /// Files that can't be used, or no way to an API server where there has to be one.
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
                Credential::TokenReview(Box::new(TokenReviews::new(settings, client, metrics)))
            }
            Authentication::ScopedToken(files) => Credential::ScopedToken(Box::new(ScopedTokens::new(files, metrics)?)),
            Authentication::Oidc(settings) => Credential::Oidc(Box::new(OidcTokens::new(settings, metrics)?)),
        };
        Ok(Self {
            credential,
            anonymous: Caller::Anonymous.into(),
        })
    }

    /// The caller of a request that came over a connection with this client certificate, if any. Where a token is
    /// required every request needs it, a certificate or not. What others are asked about it is asked on behalf of whoever
    /// is at the address that `client` says.
    pub(crate) fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&Authenticated>,
        client: impl FnOnce() -> IpAddr,
    ) -> Verdict<'_, Authenticated> {
        let without_token = || Ok(certificate.unwrap_or(&self.anonymous).clone());
        match &self.credential {
            Credential::Any => Verdict::Known(without_token()),
            Credential::StaticToken(token) => Verdict::Known(token.check(headers)),
            Credential::TokenReview(reviews) => match bearer::bearer(headers) {
                Ok(Some(token)) => reviews.check(token, client),
                Ok(None) if reviews.require_token => Verdict::Known(Err(RouterError::NoCredential)),
                Ok(None) => Verdict::Known(without_token()),
                Err(error) => Verdict::Known(Err(error)),
            },
            Credential::ScopedToken(tokens) => Verdict::Known(tokens.check(headers)),
            Credential::Oidc(tokens) => tokens.check(headers),
        }
    }

    /// Whether anybody could be let in, or why not yet.
    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        match &self.credential {
            Credential::Oidc(tokens) => tokens.readiness(),
            Credential::Any | Credential::StaticToken(_) | Credential::TokenReview(_) | Credential::ScopedToken(_) => {
                Ok(())
            }
        }
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
