//! Tokens of an OIDC issuer: JWTs (RFC 7519) that the router verifies itself, as RFC 8725 advises.
//! Hides where the issuer's keys come from, and that a signature is verified once and then remembered.

mod claims;
mod fetch;
mod issuer;
mod jwt;
mod keys;

use super::followed::{Followed, follow};
use super::{Authenticated, bearer};
use crate::config::{OidcKeys, OidcSettings};
use crate::error::RouterError;
use crate::metrics::Metrics;
use crate::reviews::Verdict;
use http::HeaderMap;
use issuer::{Issuer, KeySource};
use jwt::Jwt;
use keys::KeySet;
use sandgate_mesh::caller::CallerError;
use sandgate_mesh::credentials::roots_from_pem;
use sandgate_mesh::polled::Reload;
use std::time::SystemTime;

/// Why a router isn't ready that could let nobody in: one that was ready before it is not replaced by it.
const NO_KEYS: &str = "the OIDC issuer's keys are not known yet";

/// Why a token isn't good. It repeats nothing of the token: that is a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("it is longer than 16 KiB")]
    TooLong,
    #[error("it is no signed JWT: three parts in base64url without padding")]
    Form,
    #[error("its header or claims are no JSON object in which each name occurs once")]
    Json,
    #[error("its header marks an extension as critical")]
    Critical,
    #[error("its `typ` is neither JWT nor at+jwt")]
    Type,
    #[error("its `alg` is none of --authz-oidc-signing-algs")]
    Algorithm,
    #[error("the issuer has no key with its `kid`")]
    UnknownKey,
    #[error("the key that it names is none for its `alg`")]
    OtherKey,
    #[error("it doesn't say with which of several keys it is signed")]
    WhichKey,
    #[error("its signature is of another key, or of something else")]
    Signature,
    #[error("its `iss` is not --authz-oidc-issuer-url")]
    Issuer,
    #[error("its `aud` has none of --authz-oidc-audiences")]
    Audience,
    #[error("it has no `exp`")]
    NoEnd,
    #[error("it has expired")]
    Expired,
    #[error("it isn't valid yet (`nbf`)")]
    TooEarly,
    #[error("it was issued in the future (`iat`); compare the clocks")]
    FromTheFuture,
    #[error("it lacks a claim that --authz-oidc-required-claim asks for")]
    Required,
    #[error("it has no name: the claim --authz-oidc-username-claim is missing or empty")]
    NoName,
    #[error("its `email` is not verified, or not said to be")]
    Unverified,
    #[error("a claim has another form than it must have: {0}")]
    Malformed(&'static str),
    #[error("its holder can't be a caller: {0}")]
    Name(#[from] CallerError),
}

/// What is to be said of a token.
enum Judged {
    Good(Authenticated),
    Bad(Refused),
    /// There are no keys to judge it by.
    NoKeys,
}

#[derive(Debug)]
enum Keys {
    Issuer(Issuer),
    File(Followed<KeySet>),
}

/// Holders of an issuer's tokens.
#[derive(Debug)]
pub(super) struct OidcTokens {
    settings: OidcSettings,
    keys: Keys,
}

impl OidcTokens {
    /// Reads the files, and follows them and the issuer from then on. To be called inside a Tokio runtime.
    ///
    /// # Errors
    /// A file that can't be used. That the issuer doesn't answer is no error.
    pub(super) fn new(settings: &OidcSettings, metrics: &Metrics) -> anyhow::Result<Self> {
        let refreshes = metrics.oidc_refreshes()?;
        let keys = match &settings.keys {
            OidcKeys::File(file) => {
                let on_reload = move |outcome: Reload| refreshes.with_label_values(&[outcome.as_str()]).inc();
                Keys::File(follow("OIDC issuer's keys", file, on_reload, |content| {
                    KeySet::parse(content).map_err(|error| error.to_string())
                })?)
            }
            OidcKeys::Issuer {
                discovery,
                ca_file,
                refresh,
            } => {
                let roots = follow(
                    "OIDC issuer's roots",
                    ca_file,
                    |_| {},
                    |content| roots_from_pem(content).map_err(|error| error.to_string()),
                )?;
                let source = KeySource {
                    issuer: settings.issuer.clone(),
                    discovery: discovery.clone(),
                    roots,
                    refresh: *refresh,
                };
                Keys::Issuer(Issuer::follow(source, refreshes))
            }
        };
        Ok(Self {
            settings: settings.clone(),
            keys,
        })
    }

    /// Whether there have been keys to let anybody in by.
    pub(super) fn readiness(&self) -> Result<(), &'static str> {
        match &self.keys {
            Keys::Issuer(issuer) if !issuer.has_answered() => Err(NO_KEYS),
            Keys::Issuer(_) | Keys::File(_) => Ok(()),
        }
    }

    /// Who presents a token.
    pub(super) fn check(&self, headers: &HeaderMap) -> Verdict<'_, Authenticated> {
        let token = match bearer::required(headers) {
            Ok(token) => token,
            Err(error) => return Verdict::Known(Err(error)),
        };
        let judged = self.judge(token, SystemTime::now());
        match (&judged, &self.keys) {
            (Judged::NoKeys | Judged::Bad(Refused::UnknownKey), Keys::Issuer(issuer)) if issuer.may_ask() => {
                Verdict::Asked(Box::pin(self.ask(issuer, token.to_vec())))
            }
            _ => Verdict::Known(self.verdict(judged)),
        }
    }

    async fn ask(&self, issuer: &Issuer, token: Vec<u8>) -> Result<Authenticated, RouterError> {
        issuer.ask().await;
        self.verdict(self.judge(&token, SystemTime::now()))
    }

    fn judge(&self, token: &[u8], now: SystemTime) -> Judged {
        let keys = match &self.keys {
            Keys::Issuer(issuer) => issuer.keys(),
            Keys::File(keys) => keys.borrow().clone(),
        };
        let Some(keys) = keys else { return Judged::NoKeys };
        let verified = keys.verified.get_or_verify(token, now, Refused::Expired, || {
            let jwt = Jwt::parse(token)?;
            if !self.settings.algorithms.contains(&jwt.algorithm) {
                return Err(Refused::Algorithm);
            }
            // Cheap things first: a signature costs more than all of them.
            let (caller, expires) = claims::caller(&jwt.claims, &self.settings, now)?;
            keys.verify(&jwt)?;
            Ok((caller.into(), expires))
        });
        match verified {
            Ok(holder) => Judged::Good(holder),
            Err(refused) => Judged::Bad(refused),
        }
    }

    fn verdict(&self, judged: Judged) -> Result<Authenticated, RouterError> {
        match judged {
            Judged::Good(holder) => Ok(holder),
            Judged::NoKeys => Err(RouterError::Unreviewed),
            // It may be signed with a key that the issuer couldn't tell of.
            Judged::Bad(Refused::UnknownKey) if matches!(&self.keys, Keys::Issuer(issuer) if issuer.has_failed()) => {
                Err(RouterError::Unreviewed)
            }
            Judged::Bad(refused) => {
                tracing::info!(reason = %refused, "a caller's token was refused");
                Err(RouterError::BadCredential)
            }
        }
    }
}
