//! The policy snapshot as JSON: what is written and read, before it is checked and compiled.
//!
//! Reading is strict: an unknown field or value, a field twice, and `null` are errors. A gate that skipped what it
//! doesn't know would enforce something else than was written. `docs/policy-snapshot.md` is the reference for users.

use serde::{Deserialize, Deserializer, Serialize};

/// The format version that this release reads and writes.
pub const VERSION: u32 = 1;

/// One sandbox's policies, in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Snapshot {
    /// The format's version: [`VERSION`].
    pub version: u32,
    /// Orders snapshots.
    pub generation: Generation,
    /// What holds while `policies` is empty.
    pub default_policy: DefaultPolicy,
    /// The app ports that `default_policy` covers.
    pub ports: Vec<u16>,
    /// The policies that select this sandbox.
    pub policies: Vec<Policy>,
}

/// Orders snapshots: a gate never goes back to a lower one. Compared by epoch, then counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Generation {
    /// Raised by each new leader of the control plane before its first push.
    pub epoch: u64,
    /// Raised with each snapshot of that leader.
    pub counter: u64,
}

/// Who may call a sandbox that no policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DefaultPolicy {
    /// Nobody.
    Deny,
    /// Everybody but [`Caller::Anonymous`](crate::caller::Caller::Anonymous).
    Authenticated,
    /// Everybody.
    Anonymous,
}

/// A named list of rules. Without rules it allows nothing, and still takes the default's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// Names it in audit lines. Unique in a snapshot.
    pub name: String,
    /// What it allows: each rule by itself.
    pub rules: Vec<Rule>,
}

/// Allows whom any of `from` matches what any of `to` matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    /// Who may call; not empty.
    pub from: Vec<Source>,
    /// What they may call; not empty.
    pub to: Vec<Target>,
}

/// Callers: whoever is on any of these lists. At least one must be there, and none may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Source {
    /// `ServiceAccount`s as `<namespace>/<name>`.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<Vec<String>>,
    /// Users by name; `static:<name>`, `scoped:<key id>`, `cert:<common name>`.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<String>>,
    /// Groups of users and `ServiceAccount`s.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// SPIFFE IDs, exact or `<prefix>/*`.
    #[serde(
        default,
        rename = "spiffeIDs",
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub spiffe_ids: Option<Vec<String>>,
    /// Everybody, with or without a credential.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
}

/// Requests: those that are on each of the lists given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Target {
    /// App ports; not empty.
    pub ports: Vec<u16>,
    /// HTTP methods; any if absent, never empty.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Paths, exact or `<prefix>/*`; any if absent, never empty.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
}

/// Reads an optional list without serde's habit of taking `null` for an absent one.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Vec::deserialize(deserializer).map(Some)
}
