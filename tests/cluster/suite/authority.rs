//! What whoever has the authority's Secret can read in it and make of it.

use crate::injector::secret;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use sandgate_cluster_tests::injector::System;
use sandgate_mesh::identity::{SandboxIdentity, WorkloadIdentity};
use sandgate_mesh::sandbox::SandboxKey;
use sandgate_tests::control::ControlPlane;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::SystemTime;

/// What is in the authority's Secret under this name, if anything.
pub(crate) async fn stored(system: &System, entry: &str) -> Option<String> {
    let secret = system.namespace.cluster().get(&secret(system)).await.unwrap();
    let bytes = secret["data"].get(entry)?.clone();
    let bytes: k8s_openapi::ByteString = serde_json::from_value(bytes).unwrap();
    Some(String::from_utf8(bytes.0).unwrap())
}

/// The root that signs, and its key.
pub(crate) async fn signs(system: &System) -> [String; 2] {
    [stored(system, "tls.crt").await, stored(system, "tls.key").await].map(Option::unwrap)
}

/// Who a ServiceAccount of the injector's namespace is.
pub(crate) fn workload(system: &System, account: &str) -> WorkloadIdentity {
    let own = system.namespace.name();
    format!("spiffe://cluster.local/ns/{own}/sa/{account}").parse().unwrap()
}

/// Who a pod's gate is.
pub(crate) fn identity_of(pod: &Value) -> SandboxIdentity {
    let text = |name: &str| pod["metadata"][name].as_str().unwrap();
    SandboxIdentity {
        trust_domain: "cluster.local".parse().unwrap(),
        sandbox: SandboxKey {
            namespace: text("namespace").parse().unwrap(),
            name: text("name").parse().unwrap(),
        },
        pod_uid: text("uid").parse().unwrap(),
    }
}

/// Somebody who has what a leader has, and may say to whoever is in a pod whatever they like.
pub(crate) fn control_plane(system: &System, signs: &[String; 2], pod: &Value, address: Ipv4Addr) -> ControlPlane {
    let own = workload(system, "sandbox-injector");
    let [chain, key] = leaf_under(&signs[0], &signs[1], &own.to_string(), false);
    let pem = [chain.as_str(), &key, &signs[0]];
    ControlPlane::with(&own, pem, (address, 14443).into(), identity_of(pod))
}

/// A leaf of the mesh as whoever has a root and its key can make it, for a server or for a client, and its key.
pub(crate) fn leaf_under(root: &str, root_key: &str, identity: &str, server: bool) -> [String; 2] {
    let key = KeyPair::generate().unwrap();
    let leaf = leaf(identity, server).signed_by(&key, &issuer(root, root_key));
    [leaf.unwrap().pem(), key.serialize_pem()]
}

/// The same for the key of a request that a gate or a router has made, which ends then.
pub(crate) fn leaf_for(
    request: &str,
    [root, root_key]: &[String; 2],
    leaf_of: (&str, bool),
    end: SystemTime,
) -> String {
    let request = CertificateSigningRequestParams::from_pem(request).unwrap();
    let mut params = leaf(leaf_of.0, leaf_of.1);
    params.not_after = date_time_ymd(1970, 1, 1) + end.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let leaf = params.signed_by(&request.public_key, &issuer(root, root_key));
    leaf.unwrap().pem()
}

fn issuer(root: &str, key: &str) -> Issuer<'static, KeyPair> {
    Issuer::from_ca_cert_pem(root, KeyPair::from_pem(key).unwrap()).unwrap()
}

fn leaf(identity: &str, server: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    params.extended_key_usages = vec![if server {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.is_ca = IsCa::ExplicitNoCa;
    params
}
