//! What a token says: JSON with one spelling of each meaning.

use super::{BASE64URL, TokenError, Version};
use crate::sandbox::{AppPort, Namespace, SandboxKey, SandboxName, SandboxUid};
use crate::telemetry::seconds_since_1970;
use http::Method;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// What a token is good for. What it doesn't bind is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The one sandbox.
    pub sandbox: SandboxKey,
    /// The one Sandbox object of that name.
    pub uid: Option<SandboxUid>,
    /// The one port of the app.
    pub port: Option<AppPort>,
    /// The one method.
    pub method: Option<Method>,
    /// The one path, as it is forwarded.
    pub path: Option<ScopePath>,
}

/// What a token claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// What it is good for.
    pub scope: Scope,
    /// The second, counted from 1970, at which it is good no more.
    pub expires: u64,
}

/// Not a path that a token can bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must begin with `/` and hold visible ASCII characters only, without query and fragment, escaped as in the request"
)]
pub struct PathError;

/// The path of a request as it is forwarded, with its escapes and without a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopePath(Box<str>);

impl ScopePath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ScopePath {
    type Err = PathError;
    fn from_str(text: &str) -> Result<Self, PathError> {
        let allowed = |b: u8| b.is_ascii_graphic() && b != b'?' && b != b'#';
        if text.starts_with('/') && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(PathError)
        }
    }
}

/// The claims as JSON, in the order in which upstream writes them.
#[derive(Serialize)]
struct Written<'a> {
    ns: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    exp: u64,
}

/// The same as it is read. A repeated name is an error of serde's own; `null` is no way to leave something out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    #[serde(deserialize_with = "parsed")]
    ns: Namespace,
    #[serde(deserialize_with = "parsed")]
    name: SandboxName,
    #[serde(default, deserialize_with = "given")]
    uid: Option<SandboxUid>,
    #[serde(default, deserialize_with = "port")]
    port: Option<AppPort>,
    #[serde(default, deserialize_with = "given")]
    method: Option<Method>,
    #[serde(default, deserialize_with = "given")]
    path: Option<ScopePath>,
    exp: u64,
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn given<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<Option<T>, D::Error> {
    parsed(deserializer).map(Some)
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AppPort>, D::Error> {
    let port = AppPort::new(u16::deserialize(deserializer)?);
    port.map(Some).ok_or_else(|| D::Error::custom("port 0"))
}

impl Scope {
    /// Whether it binds nothing but the sandbox.
    pub const fn is_plain(&self) -> bool {
        matches!(
            self,
            Self {
                uid: None,
                port: None,
                method: None,
                path: None,
                ..
            }
        )
    }
}

impl Claims {
    /// Whether a token has no second left at `now`.
    pub fn has_expired(&self, now: SystemTime) -> bool {
        seconds_since_1970(now) >= self.expires
    }

    /// The end as a point in time; `None` if it is beyond any.
    pub fn expires_at(&self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.expires))
    }

    /// Reads the claims of a token of that version.
    pub(super) fn decode(version: Version, encoded: &str) -> Result<Self, TokenError> {
        let json = BASE64URL.decode(encoded.as_bytes()).map_err(|_| TokenError::Encoding)?;
        // serde takes an array for an object, too.
        if !json.starts_with(b"{") {
            return Err(TokenError::Claims);
        }
        let read: Read = serde_json::from_slice(&json).map_err(|_| TokenError::Claims)?;
        let scope = Scope {
            sandbox: SandboxKey {
                namespace: read.ns,
                name: read.name,
            },
            uid: read.uid,
            port: read.port,
            method: read.method,
            path: read.path,
        };
        if version == Version::V1 && !scope.is_plain() {
            return Err(TokenError::Claims);
        }
        Ok(Self {
            scope,
            expires: read.exp,
        })
    }

    /// The claims as a token has them.
    pub(super) fn encode(&self) -> String {
        let Scope {
            sandbox,
            uid,
            port,
            method,
            path,
        } = &self.scope;
        let written = Written {
            ns: sandbox.namespace.as_str(),
            name: sandbox.name.as_str(),
            uid: uid.as_ref().map(SandboxUid::as_str),
            port: port.map(AppPort::get),
            method: method.as_ref().map(Method::as_str),
            path: path.as_ref().map(ScopePath::as_str),
            exp: self.expires,
        };
        // Texts and numbers are always JSON; if that ever broke, the token must be refused, not guessed.
        BASE64URL.encode(&serde_json::to_vec(&written).unwrap_or_default())
    }
}
