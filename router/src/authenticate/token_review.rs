//! Who the API server says the holder of a bearer token is (`TokenReview`), and for how long that is believed.

use super::Authenticated;
use crate::config::TokenReviewSettings;
use crate::error::RouterError;
use crate::limits::Who;
use crate::metrics::Metrics;
use crate::reviews::{Answer, Key, Outcome, Reviews, Verdict};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::Client;
use kube::api::{Api, PostParams};
use sandgate_mesh::caller::{Caller, CallerError, Groups};
use sandgate_mesh::telemetry::{LONGEST_TEXT, chain, cut};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Longest token that is asked about, in bytes: many times what an API server issues.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Whom Kubernetes calls nobody in particular.
const ANONYMOUS: &str = "system:anonymous";

/// Longest UID and extra of a user in bytes, as JSON: each token that is remembered has its own.
const MAX_ATTRIBUTE_BYTES: usize = 16 * 1024;

/// What an API server says of a user beside name and groups. An authorizer may narrow a token's rights by it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct UserAttributes {
    pub(crate) uid: Option<String>,
    pub(crate) extra: Option<BTreeMap<String, Vec<String>>>,
    /// Both as JSON, of which two users' is the same only if both are.
    pub(crate) json: String,
}

impl UserAttributes {
    /// Those of a user that has any.
    fn of(user: &UserInfo) -> Result<Option<Arc<Self>>, Refused> {
        let uid = user.uid.clone().filter(|uid| !uid.is_empty());
        let extra = user.extra.clone().filter(|extra| !extra.is_empty());
        if uid.is_none() && extra.is_none() {
            return Ok(None);
        }
        let json = serde_json::json!([uid, extra]).to_string();
        if json.len() > MAX_ATTRIBUTE_BYTES {
            return Err(Refused::Attributes);
        }
        Ok(Some(Arc::new(Self { uid, extra, json })))
    }
}

/// Holders of tokens, as the API server knows them.
#[derive(Debug)]
pub(super) struct TokenReviews {
    pub(super) require_token: bool,
    audiences: Arc<[String]>,
    api: Api<TokenReview>,
    reviews: Reviews<Authenticated>,
}

/// Why whoever has a token isn't let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refused {
    /// With what it says of that.
    #[error("the API server doesn't take the token: {0}")]
    Token(String),
    #[error("the token is for none of --authz-tokenreview-audiences")]
    Audience,
    #[error("the token is nobody's in particular")]
    Anonymous,
    #[error("the token's user has a UID and extra of more than 16 KiB")]
    Attributes,
    #[error("the token's user can't be a caller: {0}")]
    Name(#[from] CallerError),
}

impl TokenReviews {
    pub(super) fn new(settings: &TokenReviewSettings, client: Client, metrics: &Metrics) -> Self {
        let (ttl, size) = (settings.ttl, settings.cache_size.get());
        Self {
            require_token: settings.require_token,
            audiences: settings.audiences.as_slice().into(),
            api: Api::all(client),
            reviews: Reviews::new("token", ttl, size, metrics.reviews("token")),
        }
    }

    /// Who has this token, which comes from the address that `client` says.
    pub(super) fn check(&self, token: &[u8], client: impl FnOnce() -> IpAddr) -> Verdict<'_, Authenticated> {
        // No token that somebody issues is longer, or holds anything else.
        let is_token = token.len() <= MAX_TOKEN_BYTES && token.iter().all(u8::is_ascii_graphic);
        let text = std::str::from_utf8(token).ok();
        let Some(token) = text.filter(|token| is_token && !token.is_empty()) else {
            return Verdict::Known(Err(RouterError::BadCredential));
        };
        let key = Key::of(&[token.as_bytes()]);
        match self.reviews.find(&key) {
            Some(outcome) => Verdict::Known(holder(outcome)),
            None => Verdict::Asked(Box::pin(self.ask(key, Who::At(client()), token.to_owned()))),
        }
    }

    async fn ask(&self, key: Key, who: Who, token: String) -> Result<Authenticated, RouterError> {
        let (api, audiences) = (self.api.clone(), Arc::clone(&self.audiences));
        holder(self.reviews.ask(key, who, review(api, audiences, token)).await)
    }
}

fn holder(outcome: Outcome<Authenticated>) -> Result<Authenticated, RouterError> {
    match outcome {
        Ok(Answer::Yes(holder)) => Ok(holder),
        Ok(Answer::No) => Err(RouterError::BadCredential),
        Err(unanswered) => Err(unanswered.into()),
    }
}

/// Asks the API server once. The error is for the log, and doesn't hold the token.
async fn review(
    api: Api<TokenReview>,
    audiences: Arc<[String]>,
    token: String,
) -> Result<Answer<Authenticated>, String> {
    let spec = TokenReviewSpec {
        token: token.clone(),
        audiences: (!audiences.is_empty()).then(|| audiences.to_vec()),
    };
    let question = TokenReview {
        spec,
        ..TokenReview::default()
    };
    // Nobody promises that an error doesn't repeat what was sent.
    let shown = |text: String| cut(&text.replace(&token, "…"), LONGEST_TEXT).into_owned();
    let answer = api.create(&PostParams::default(), &question).await;
    let answer = answer.map_err(|error| shown(chain(&error)))?;
    Ok(match known(answer.status.unwrap_or_default(), &audiences) {
        Ok(holder) => Answer::Yes(holder),
        Err(refused) => {
            tracing::info!(reason = shown(refused.to_string()), "a caller's token was refused");
            Answer::No
        }
    })
}

/// The caller that the API server names.
fn known(status: TokenReviewStatus, audiences: &[String]) -> Result<Authenticated, Refused> {
    if status.authenticated != Some(true) {
        return Err(Refused::Token(status.error.unwrap_or_default()));
    }
    // An API server that knows no audiences takes any token that opens its API: the audience must come back.
    let confirmed = status.audiences.unwrap_or_default();
    if !audiences.is_empty() && !confirmed.iter().any(|audience| audiences.contains(audience)) {
        return Err(Refused::Audience);
    }
    let user = status.user.unwrap_or_default();
    let attributes = UserAttributes::of(&user)?;
    let name = user.username.unwrap_or_default();
    if name == ANONYMOUS {
        return Err(Refused::Anonymous);
    }
    let groups = Groups::new(user.groups.unwrap_or_default())?;
    Ok(Authenticated {
        attributes,
        ..Caller::of_kubernetes(&name, groups)?.into()
    })
}
