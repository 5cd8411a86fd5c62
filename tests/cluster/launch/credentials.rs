//! The keys and certificates of one run: an authority, the API server's certificate, the administrator's, and the key
//! that signs ServiceAccount tokens.

use crate::folder::Folder;
use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};

/// The group that may do everything, whatever RBAC says.
const ADMINISTRATORS: &str = "system:masters";

/// Writes everything that the servers read: `ca.crt`, `apiserver.{crt,key}`, `admin.{crt,key}`,
/// `service-accounts.{key,pub}`.
pub(crate) fn write(folder: &Folder) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("sandgate-test-cluster", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    folder.write("ca.crt", &params.self_signed(&key)?.pem())?;
    let authority = Issuer::new(params, key);

    let mut server = CertificateParams::new(["localhost".to_owned(), "kubernetes.default.svc".to_owned()])?;
    server.distinguished_name = name("kube-apiserver", None);
    let loopback = SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST));
    server.subject_alt_names.push(loopback);
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue(folder, &authority, "apiserver", server)?;

    let mut admin = CertificateParams::default();
    admin.distinguished_name = name("sandgate-test-administrator", Some(ADMINISTRATORS));
    admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    issue(folder, &authority, "admin", admin)?;

    let tokens = KeyPair::generate()?;
    folder.write("service-accounts.key", &tokens.serialize_pem())?;
    folder.write("service-accounts.pub", &tokens.public_key_pem())
}

fn issue(
    folder: &Folder,
    authority: &Issuer<'_, KeyPair>,
    file: &str,
    mut params: CertificateParams,
) -> anyhow::Result<()> {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    folder.write(&format!("{file}.crt"), &params.signed_by(&key, authority)?.pem())?;
    folder.write(&format!("{file}.key"), &key.serialize_pem())
}

/// Kubernetes takes a client's user from the common name and its groups from the organisations.
fn name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

/// The administrator's configuration, for this harness and for `kubectl`. JSON is YAML.
pub(crate) fn write_kubeconfig(folder: &Folder, url: &str) -> anyhow::Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandgate-tests", "cluster": {
            "server": url,
            "certificate-authority": folder.join("ca.crt"),
        }}],
        "users": [{"name": "administrator", "user": {
            "client-certificate": folder.join("admin.crt"),
            "client-key": folder.join("admin.key"),
        }}],
        "contexts": [{"name": "sandgate-tests", "context": {"cluster": "sandgate-tests", "user": "administrator"}}],
        "current-context": "sandgate-tests",
    });
    let text = serde_json::to_string_pretty(&config).context("writing the kubeconfig")?;
    folder.write("kubeconfig", &text)
}
