//! App probes as JSON: what the injector writes and the gate reads, before it is checked.
//!
//! Fields are Kubernetes' own, so that the injector can tell from them what a pod's author wrote. Reading is strict: an
//! unknown field or value, a field twice, and `null` are errors. `docs/lockdown.md` is the reference for users.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// The format version that this release reads and writes.
pub const VERSION: u32 = 1;

/// Everything that one gate runs for the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Declarations {
    /// The format's version: [`VERSION`].
    pub version: u32,
    /// At most one of each kind per container.
    pub probes: Vec<Declaration>,
}

/// One probe or hook of a container. Exactly one of `http_get`, `tcp_socket` and `grpc` is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Declaration {
    /// The container's name.
    pub container: String,
    /// Which of its probes or hooks.
    pub kind: Kind,
    /// How long it may take; 1 to 3600.
    pub timeout_seconds: u32,
    /// An HTTP GET.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// A connection, and nothing on it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocket>,
    /// A health check of gRPC.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Grpc>,
}

/// The field of a container that declares a probe or hook. This is also how paths spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// `livenessProbe`
    LivenessProbe,
    /// `readinessProbe`
    ReadinessProbe,
    /// `startupProbe`
    StartupProbe,
    /// `lifecycle.postStart`
    PostStart,
    /// `lifecycle.preStop`
    PreStop,
}

impl Kind {
    /// Whether it is a lifecycle hook, which happens, and not a probe, which asks.
    pub const fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }

    /// The field's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LivenessProbe => "livenessProbe",
            Self::ReadinessProbe => "readinessProbe",
            Self::StartupProbe => "startupProbe",
            Self::PostStart => "postStart",
            Self::PreStop => "preStop",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `httpGet`. There is no `host`: only this pod's loopback is ever asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpGet {
    /// Path and query; `/` if absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The port's number.
    pub port: u16,
    /// The name by which the pod gives that port. It says where the number is from, and nothing to the gate.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// `HTTP` if absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Fields of the request's head.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub http_headers: Option<Vec<Header>>,
}

/// `scheme`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scheme {
    /// `HTTP`
    #[serde(rename = "HTTP")]
    Http,
    /// `HTTPS`
    #[serde(rename = "HTTPS")]
    Https,
}

/// One of `httpHeaders`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Header {
    /// The field's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// `tcpSocket`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TcpSocket {
    /// The port's number.
    pub port: u16,
    /// See [`HttpGet::port_name`].
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
}

/// `grpc`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Grpc {
    /// The port's number.
    pub port: u16,
    /// The service that is asked for; the server as a whole if absent or empty.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// Reads an optional field without serde's habit of taking `null` for an absent one.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
