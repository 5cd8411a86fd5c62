//! Credentials -> one [`Caller`]. One file per kind of credential.

mod static_token;

use crate::config::Authentication;
use crate::error::RouterError;
use http::{HeaderMap, HeaderValue};
use sandgate_mesh::caller::{Caller, CallerName};
use sandgate_mesh::tls::FrontPeer;
use static_token::StaticToken;
use std::sync::Arc;

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
    token: Option<StaticToken>,
    anonymous: Authenticated,
}

impl Authenticator {
    pub(crate) fn new(authentication: &Authentication) -> anyhow::Result<Self> {
        let token = match authentication {
            Authentication::AllowAll => None,
            Authentication::StaticToken(token) => Some(StaticToken::new(token)?),
        };
        Ok(Self {
            token,
            anonymous: Caller::Anonymous.into(),
        })
    }

    /// The caller of a request that came over a connection with this client certificate, if any. Where a token is
    /// configured every request needs it, a certificate or not.
    pub(crate) fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&Authenticated>,
    ) -> Result<Authenticated, RouterError> {
        match (&self.token, certificate) {
            (Some(token), _) => token.check(headers),
            (None, Some(certificate)) => Ok(certificate.clone()),
            (None, None) => Ok(self.anonymous.clone()),
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
