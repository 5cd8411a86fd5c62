//! The control API: what a control plane says to a gate or a router that it has dialed, and what that answers. HTTP/1.1 over
//! the mesh port under [`ALPN_CONTROL`](crate::contract::ALPN_CONTROL), JSON bodies, strict both ways. [`server`] is the end
//! that is dialed.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET` [`ENROLMENT_PATH`] | | 200 [`Enrolment`] |
//! | `PUT` [`IDENTITY_PATH`] | [`IdentityGrant`] | 204 |
//! | `PUT` [`POLICY_PATH`], of gates only | [`PolicyPush`] | 204 |
//!
//! Errors are `{"detail":"<text>"}`: 400 what can't be read or used, 403 a control plane whose certificate counts no more, 409 a
//! [`Generation`] below the floor, 500 and 503 what is for the gate or the router to mend; 404, 405, 408 and 413 as everywhere.
//! Who is no control plane of theirs gets none of them: its handshake fails. Each PUT may be repeated.
//!
//! The floor is the highest generation of what is in force, identity and policy. An identity for the leaf in force and with
//! another bundle changes what is believed, and no more.

mod enroller;
mod metrics;
pub mod server;
mod state;

pub use enroller::Enrollee;

use crate::credentials::{Part, certificates};
use crate::policy::model::{Generation, Snapshot};
use crate::sandbox::PodUid;
use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Asks for what enrols whoever was dialed.
pub const ENROLMENT_PATH: &str = "/control/v1/enrolment";
/// Gives it an identity.
pub const IDENTITY_PATH: &str = "/control/v1/identity";
/// Gives a gate a policy.
pub const POLICY_PATH: &str = "/control/v1/policy";
/// The largest body in either direction, in bytes: a policy snapshot and what is around it.
pub const MAX_BODY_BYTES: usize = crate::policy::MAX_SNAPSHOT_BYTES + 4096;

/// What enrols a gate or a router: the proof of where it runs, and the key that it wants signed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Enrolment {
    /// The pod that it believes to run in.
    pub pod_uid: PodUid,
    /// A PKCS#10 request in PEM for a fresh key. No name in it counts. Empty where the identity comes from elsewhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub csr: String,
    /// The pod's own token for the audience `sandgate`; empty likewise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// The lowest generation that it takes.
    pub floor: Generation,
    /// The [`policy_digest`] of the policy in force, if there is one.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub policy_digest: Option<String>,
    /// The [`bundle_digest`] of the roots in force, if there is an identity.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub bundle_digest: Option<String>,
}

/// Reads an optional text without serde's habit of taking `null` for an absent one.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

/// Names a snapshot by what is in it: SHA-256, in hexadecimal, of the JSON that [`Snapshot`] is written as.
pub fn policy_digest(snapshot: &Snapshot) -> String {
    let written = serde_json::to_vec(snapshot).unwrap_or_default();
    HEXLOWER.encode(digest(&SHA256, &written).as_ref())
}

/// Names the roots of a bundle by what they are: SHA-256, in hexadecimal, of the DER of its certificates, each once and sorted
/// by their bytes. So neither their order nor how they are written matters. None for what isn't PEM of certificates.
pub fn bundle_digest(pem: &str) -> Option<String> {
    let mut roots = certificates(Part::Bundle, pem.as_bytes()).ok()?;
    roots.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    roots.dedup();
    let mut hash = Context::new(&SHA256);
    for root in &roots {
        hash.update(root);
    }
    Some(HEXLOWER.encode(hash.finish().as_ref()))
}

/// Names a certificate by what it is: SHA-256 of its DER, as `openssl x509 -fingerprint -sha256` has it.
pub fn certificate_digest(der: &[u8]) -> [u8; 32] {
    let mut named = [0; 32];
    named.copy_from_slice(digest(&SHA256, der).as_ref());
    named
}

impl fmt::Debug for Enrolment {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolment")
            .field("pod_uid", &self.pod_uid)
            .field("floor", &self.floor)
            .finish_non_exhaustive()
    }
}

/// An identity for a gate or a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IdentityGrant {
    /// The pod it is for.
    pub pod_uid: PodUid,
    /// Orders what control planes say.
    pub generation: Generation,
    /// The leaf for the key of [`Enrolment::csr`] and its intermediates, PEM, leaf first.
    pub chain: String,
    /// The roots that it verifies its peers under, PEM.
    pub bundle: String,
}

/// A policy for a gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PolicyPush {
    /// The pod it is for.
    pub pod_uid: PodUid,
    /// The snapshot, with its generation.
    pub snapshot: Snapshot,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;

    const ENROLMENT: &str = r#"{"podUid":"u1","csr":"c","token":"secret","floor":{"epoch":1,"counter":2}}"#;

    #[test]
    fn what_is_said_is_read_strictly_and_the_token_is_not_for_logs() {
        let read: Enrolment = serde_json::from_str(ENROLMENT).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), ENROLMENT);
        assert!(!format!("{read:?}").contains("secret"));
        for (from, to) in [
            ("\"u1\"", "\"../u1\""),
            ("\"u1\"", "\"\""),
            ("\"counter\":2", "\"counter\":-2"),
            ("}}", "},\"policyDigest\":null}"),
            ("}}", "},\"bundleDigest\":null}"),
            ("}}", "},\"also\":1}"),
            ("\"csr\":\"c\"", "\"csr\":null"),
            ("\"csr\":\"c\"", "\"csr\":\"c\",\"csr\":\"d\""),
        ] {
            let bad = ENROLMENT.replace(from, to);
            assert!(serde_json::from_str::<Enrolment>(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_digest_names_one_snapshot_and_follows_each_part_of_it() {
        let text =
            r#"{"version":1,"generation":{"epoch":1,"counter":1},"defaultPolicy":"deny","ports":[80],"policies":[]}"#;
        let of = |text: &str| policy_digest(&serde_json::from_str(text).unwrap());
        assert_eq!(
            of(text),
            "191cc232bd0a42414af415dc9bd02df879d360bc522c9ff64605a53b0408e84d",
            "as `sha256sum` has it"
        );
        assert_eq!(of(text), of(&text.replace(',', ", ")));
        for (from, to) in [("\"counter\":1", "\"counter\":2"), ("deny", "anonymous"), ("80", "81")] {
            assert_ne!(of(text), of(&text.replace(from, to)), "{to}");
        }
    }

    #[test]
    fn a_digest_of_a_bundle_follows_its_roots_and_not_how_they_are_written() {
        let [a, b] = ["a", "b"].map(|name| Authority::new(name).unwrap().root_pem().to_owned());
        let both = bundle_digest(&format!("{a}{b}")).unwrap();
        assert_eq!(both.len(), 64);
        for same in [
            format!("{b}{a}"),
            format!("{a}{b}{a}"),
            format!("# roots\n{a}\n\n{}", b.replace('\n', "\r\n")),
        ] {
            assert_eq!(bundle_digest(&same).as_ref(), Some(&both), "{same}");
        }
        assert_ne!(bundle_digest(&a).unwrap(), both);
        assert_ne!(bundle_digest(&a), bundle_digest(&b));
        for bad in ["", "a", &a[..a.len() / 2], &a.replace("CERTIFICATE", "PUBLIC KEY")] {
            assert_eq!(bundle_digest(bad), None, "{bad}");
        }
    }
}
