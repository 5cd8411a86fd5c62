//! Scoped tokens (CONTRACT section 6): who holds one is named by the key that signed it, and may ask for what it is bound to.
//! Hides that keys follow files, and that a signature is verified once and then remembered.

use super::followed::{Followed, follow};
use super::verified::Verified;
use super::{Authenticated, bearer};
use crate::config::ScopedTokenFiles;
use crate::error::RouterError;
use crate::metrics::Metrics;
use http::HeaderMap;
use sandgate_mesh::caller::{Caller, CallerName};
use sandgate_mesh::polled::Reload;
use sandgate_mesh::scoped_token::{Claims, KeyId, PublicKeys, Scope, Secrets, Token, TokenError, V1_HOLDER, Version};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Public keys, and the tokens that were verified under just these.
#[derive(Debug)]
struct Keys {
    keys: PublicKeys,
    verified: Verified,
}

/// The keys of both versions, as the files have them now.
#[derive(Debug)]
pub(super) struct ScopedTokens {
    secrets: Option<Followed<Secrets>>,
    keys: Option<Followed<Keys>>,
    v1_holder: Authenticated,
}

impl ScopedTokens {
    /// Reads the files, and follows them from then on. To be called inside a Tokio runtime.
    ///
    /// # Errors
    /// A file that can't be used.
    pub(super) fn new(files: &ScopedTokenFiles, metrics: &Metrics) -> anyhow::Result<Self> {
        let reloads = metrics.scoped_token_reloads()?;
        let on_reload = || {
            let reloads = reloads.clone();
            move |outcome: Reload| reloads.with_label_values(&[outcome.as_str()]).inc()
        };
        let secrets = |file: &Path| {
            follow("scoped-token secrets", file, on_reload(), |content| {
                let secrets = Secrets::parse(content).map_err(|error| error.to_string())?;
                tracing::info!(secrets = secrets.count(), "v1 tokens are verified");
                Ok(secrets)
            })
        };
        let keys = |file: &Path| {
            follow("scoped-token public keys", file, on_reload(), |content| {
                let keys = PublicKeys::parse(content).map_err(|error| error.to_string())?;
                let ids: Vec<&str> = keys.ids().map(KeyId::as_str).collect();
                tracing::info!(keys = ids.join(","), "v2 tokens are verified");
                let verified = Verified::default();
                Ok(Keys { keys, verified })
            })
        };
        Ok(Self {
            secrets: files.secrets.as_deref().map(secrets).transpose()?,
            keys: files.public_keys.as_deref().map(keys).transpose()?,
            v1_holder: holder(V1_HOLDER)?,
        })
    }

    /// Who presents a token, and what it is good for: whoever hears of it holds the request to that.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<Authenticated, RouterError> {
        let token = std::str::from_utf8(bearer::required(headers)?).map_err(|_| RouterError::BadCredential)?;
        self.judge(token, SystemTime::now()).map_err(|error| {
            tracing::debug!(%error, "a scoped token was refused");
            RouterError::BadCredential
        })
    }

    fn judge(&self, text: &str, now: SystemTime) -> Result<Authenticated, TokenError> {
        let token = Token::parse(text)?;
        match token.version() {
            Version::V1 => {
                let claims = current(self.secrets.as_ref())?.verify(&token, now)?;
                Ok(bound(self.v1_holder.clone(), claims.scope))
            }
            Version::V2 => {
                let Keys { keys, verified } = &*current(self.keys.as_ref())?;
                verified.get_or_verify(text.as_bytes(), now, TokenError::Expired, || {
                    let (id, Claims { scope, expires }) = keys.verify(&token, now)?;
                    let holder = holder(id.as_str()).map_err(|_| TokenError::UnknownKey)?;
                    Ok((bound(holder, scope), expires))
                })
            }
        }
    }
}

fn current<T>(polled: Option<&Followed<T>>) -> Result<Arc<T>, TokenError> {
    polled.and_then(|keys| keys.borrow().clone()).ok_or(TokenError::NoKey)
}

fn holder(key_id: &str) -> anyhow::Result<Authenticated> {
    let key_id: CallerName = key_id.parse()?;
    Ok(Caller::Scoped { key_id }.into())
}

fn bound(holder: Authenticated, scope: Scope) -> Authenticated {
    Authenticated {
        scope: Some(Arc::new(scope)),
        ..holder
    }
}

#[cfg(test)]
#[path = "scoped_token_tests.rs"]
mod tests;
