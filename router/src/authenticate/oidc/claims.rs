//! What a token says of its holder, and whether that makes a caller.

use super::Refused;
use super::jwt::Object;
use crate::config::OidcSettings;
use sandgate_mesh::caller::{Caller, Groups, MAX_GROUPS};
use sandgate_mesh::telemetry::seconds_since_1970;
use serde_json::Value;
use std::time::SystemTime;

/// The latest time that a claim may name, in seconds since 1970: all up to here are exact as floating-point numbers.
const LATEST: f64 = 9_007_199_254_740_992.0;

/// The caller that a verified token names, and the second, counted from 1970, at which the token is good no more.
pub(super) fn caller(claims: &Object, settings: &OidcSettings, now: SystemTime) -> Result<(Caller, u64), Refused> {
    if text(claims, "iss")? != Some(settings.issuer.as_str()) {
        return Err(Refused::Issuer);
    }
    let audiences = claims
        .get("aud")
        .ok_or(Refused::Audience)
        .and_then(|value| texts(value, "aud"))?;
    if !audiences
        .iter()
        .any(|audience| settings.audiences.iter().any(|ours| ours == audience))
    {
        return Err(Refused::Audience);
    }
    let expires = check_times(claims, settings.leeway.as_secs(), seconds_since_1970(now))?;
    for (claim, value) in &settings.required {
        if text(claims, claim)? != Some(value) {
            return Err(Refused::Required);
        }
    }
    let (claim, prefix) = &settings.username;
    let name = text(claims, claim)?
        .filter(|name| !name.is_empty())
        .ok_or(Refused::NoName)?;
    // Whoever can register somebody else's address would be that user.
    if claim == "email"
        && claims
            .get("email_verified")
            .is_some_and(|verified| *verified != Value::Bool(true))
    {
        return Err(Refused::Unverified);
    }
    let caller = Caller::User {
        name: prefix.with(name).parse()?,
        groups: groups(claims, settings)?,
    };
    Ok((caller, expires))
}

fn groups(claims: &Object, settings: &OidcSettings) -> Result<Groups, Refused> {
    let Some((claim, prefix)) = &settings.groups else {
        return Ok(Groups::default());
    };
    let Some(value) = claims.get(claim) else {
        return Ok(Groups::default());
    };
    let names = texts(value, "groups")?;
    if names.iter().any(|name| name.is_empty()) {
        return Err(Refused::Malformed("groups"));
    }
    // One too many is what `Groups` complains of; more need no prefix first.
    let names = names.iter().take(MAX_GROUPS + 1).map(|name| prefix.with(name));
    Ok(Groups::new(names)?)
}

/// Checks the times, and returns the second at which the token is good no more.
fn check_times(claims: &Object, leeway: u64, now: u64) -> Result<u64, Refused> {
    let expires = time(claims, "exp")?.ok_or(Refused::NoEnd)?.saturating_add(leeway);
    if now >= expires {
        return Err(Refused::Expired);
    }
    let latest = now.saturating_add(leeway);
    if time(claims, "nbf")?.is_some_and(|begin| begin > latest) {
        return Err(Refused::TooEarly);
    }
    if time(claims, "iat")?.is_some_and(|issued| issued > latest) {
        return Err(Refused::FromTheFuture);
    }
    Ok(expires)
}

/// A point in time (RFC 7519's `NumericDate`), in whole seconds since 1970.
fn time(claims: &Object, claim: &'static str) -> Result<Option<u64>, Refused> {
    let Some(value) = claims.get(claim) else {
        return Ok(None);
    };
    let seconds = value.as_f64().filter(|seconds| (0.0..LATEST).contains(seconds));
    let seconds = seconds.ok_or(Refused::Malformed(claim))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in range")]
    Ok(Some(seconds as u64))
}

fn text<'a>(claims: &'a Object, claim: &str) -> Result<Option<&'a str>, Refused> {
    match claims.get(claim) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refused::Malformed("a text")),
    }
}

/// A text, or a list of nothing but texts.
fn texts<'a>(value: &'a Value, what: &'static str) -> Result<Vec<&'a str>, Refused> {
    match value {
        Value::String(text) => Ok(vec![text]),
        Value::Array(values) => {
            let texts = values
                .iter()
                .map(|value| value.as_str().ok_or(Refused::Malformed(what)));
            texts.collect()
        }
        _ => Err(Refused::Malformed(what)),
    }
}

#[cfg(test)]
#[path = "claims_tests.rs"]
mod tests;
