//! Names and numbers that identify a sandbox. Each type is built once, at the edge, and cannot be wrong later.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

/// A name that isn't what its place allows. It doesn't repeat the name: that came from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, or longer than 63 bytes (RFC 1123 label as Kubernetes uses it).
    #[error("must be a DNS-1123 label: lower-case letters, digits and inner hyphens, at most 63 characters")]
    NotALabel,
    /// Not dot-separated labels, or longer than 253 bytes (RFC 1123 subdomain as Kubernetes uses it).
    #[error("must be a DNS-1123 subdomain: labels separated by dots, at most 253 characters")]
    NotASubdomain,
    /// Empty, longer than 63 bytes, or with characters outside `[A-Za-z0-9-]`.
    #[error("must be 1 to 63 letters, digits and hyphens")]
    NotAUid,
    /// Not ASCII digits in 1..=65535.
    #[error("must be a port number from 1 to 65535")]
    NotAPort,
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    bytes.len() <= 63
        && bytes.iter().all(inner)
        && bytes.first().is_some_and(|b| *b != b'-')
        && bytes.last().is_some_and(|b| *b != b'-')
}

/// Whether a text is dot-separated DNS-1123 labels, of at most 253 bytes together (RFC 1123 subdomain as Kubernetes uses it).
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_uid(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:ident, $error:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if $check(text) { Ok(Self(text.into())) } else { Err($error) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A Kubernetes namespace: a DNS-1123 label.
    Namespace, is_label, NameError::NotALabel
);
name_type!(
    /// A sandbox's name, which is its pod's name: a DNS-1123 label.
    SandboxName, is_label, NameError::NotALabel
);
name_type!(
    /// A container's name: a DNS-1123 label, unique in its pod.
    ContainerName, is_label, NameError::NotALabel
);
name_type!(
    /// A Kubernetes `ServiceAccount`'s name: a DNS-1123 subdomain.
    ServiceAccountName, is_subdomain, NameError::NotASubdomain
);
name_type!(
    /// A pod's UID as the API server gave it.
    PodUid, is_uid, NameError::NotAUid
);
name_type!(
    /// A Sandbox object's UID as the API server gave it.
    SandboxUid, is_uid, NameError::NotAUid
);

impl Serialize for PodUid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for PodUid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Which sandbox: its namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxKey {
    /// The namespace it lives in.
    pub namespace: Namespace,
    /// Its name, which is its pod's name.
    pub name: SandboxName,
}

impl fmt::Display for SandboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A TCP port an app may listen on: 1..=65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppPort(NonZeroU16);

impl AppPort {
    /// The port a request means when it names none ([`crate::contract::DEFAULT_APP_PORT`]).
    pub const DEFAULT: Self = match NonZeroU16::new(crate::contract::DEFAULT_APP_PORT) {
        Some(port) => Self(port),
        None => Self(NonZeroU16::MIN),
    };

    /// A port from its number; `None` for 0.
    pub const fn new(port: u16) -> Option<Self> {
        match NonZeroU16::new(port) {
            Some(port) => Some(Self(port)),
            None => None,
        }
    }

    /// The port's number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl FromStr for AppPort {
    type Err = NameError;
    /// ASCII digits only: no sign, no white space, no fraction. Leading zeros are accepted, as upstream does.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NameError::NotAPort);
        }
        text.parse().ok().and_then(Self::new).ok_or(NameError::NotAPort)
    }
}

impl fmt::Display for AppPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_rfc_1123_as_kubernetes_uses_it() {
        for good in ["a", "0", "a-b", "a1", &"x".repeat(63)] {
            assert!(good.parse::<SandboxName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-",
            "a-",
            "-a",
            "A",
            "a.b",
            "a_b",
            "a/b",
            "ä",
            "a\n",
            "a ",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<SandboxName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ports_are_ascii_digits_from_1_to_65535() {
        for good in ["1", "8888", "65535", "0080"] {
            assert!(good.parse::<AppPort>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "0",
            "65536",
            "+80",
            "-1",
            "80 ",
            " 80",
            "8e3",
            "٣",
            "99999999999999999999",
        ] {
            assert_eq!(bad.parse::<AppPort>(), Err(NameError::NotAPort), "{bad:?}");
        }
    }
}
