//! The keys and certificates of one run: an authority, the API server's certificate, one for each client, and the key
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

/// Somebody whom the API server knows by a certificate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client {
    /// The beginning of its files' names.
    pub(crate) file: &'static str,
    /// Its user.
    pub(crate) user: &'static str,
    /// The group that it is in, if any.
    pub(crate) group: Option<&'static str>,
}

/// Whoever runs this.
pub(crate) const ADMINISTRATOR: Client = Client {
    file: "admin",
    user: "sandgate-test-administrator",
    group: Some(ADMINISTRATORS),
};

impl Client {
    /// Where its configuration is in the run's folder.
    pub(crate) fn kubeconfig(&self) -> String {
        if self.file == ADMINISTRATOR.file {
            return "kubeconfig".to_owned();
        }
        format!("{}.kubeconfig", self.file)
    }

    /// Writes its configuration, for the harness, for `kubectl` and for the programs of a node. JSON is YAML.
    pub(crate) fn write_kubeconfig(&self, folder: &Folder, url: &str) -> anyhow::Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "sandgate-tests", "cluster": {
                "server": url,
                "certificate-authority": folder.join("ca.crt"),
            }}],
            "users": [{"name": self.file, "user": {
                "client-certificate": folder.join(&format!("{}.crt", self.file)),
                "client-key": folder.join(&format!("{}.key", self.file)),
            }}],
            "contexts": [{"name": "sandgate-tests", "context": {"cluster": "sandgate-tests", "user": self.file}}],
            "current-context": "sandgate-tests",
        });
        let text = serde_json::to_string_pretty(&config).context("writing a kubeconfig")?;
        folder.write(&self.kubeconfig(), &text)
    }
}

/// Writes everything that the servers read: `ca.crt`, `apiserver.{crt,key}`, `service-accounts.{key,pub}`, and a
/// certificate with its key for each client. The API server's is for these addresses.
pub(crate) fn write(folder: &Folder, addresses: &[Ipv4Addr], clients: &[Client]) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("sandgate-test-cluster", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    folder.write("ca.crt", &params.self_signed(&key)?.pem())?;
    let authority = Issuer::new(params, key);

    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ];
    let mut server = CertificateParams::new(names.map(str::to_owned))?;
    server.distinguished_name = name("kube-apiserver", None);
    let addresses = addresses.iter().map(|ip| SanType::IpAddress(IpAddr::V4(*ip)));
    server.subject_alt_names.extend(addresses);
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    issue(folder, &authority, "apiserver", server)?;

    for client in clients {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(client.user, client.group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        issue(folder, &authority, client.file, params)?;
    }

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
