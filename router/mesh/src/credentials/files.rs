//! Credentials that follow their files: whose they must be, and when they may replace those in force.

use super::{Credentials, CredentialsError, MeshCredentials, Role};
use crate::identity::{SandboxIdentity, TrustDomain};
use crate::polled::Poller;
use std::path::PathBuf;
use std::time::SystemTime;

/// Where a process of the mesh finds its credentials, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshFiles {
    /// Leaf certificate and intermediates, leaf first.
    pub chain: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
    /// The trusted authorities.
    pub bundle: PathBuf,
}

/// Where a gate finds its credentials that a kubelet keeps, both PEM: Pod Certificates and Cluster Trust Bundles of
/// Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFiles {
    /// The private key, and after it the leaf certificate and intermediates: one file, so that no mixture can be read.
    pub credentials: PathBuf,
    /// The trusted authorities.
    pub roots: PathBuf,
}

/// A router's credentials, which follow their files. See [`Poller`] for the two ways to start.
pub fn poll_router(files: MeshFiles, trust_domain: TrustDomain) -> (Poller<MeshCredentials>, Credentials) {
    let files = [files.chain, files.key, files.bundle];
    poll(files, move |[chain, key, bundle]| {
        MeshCredentials::from_pem(Role::Router, &chain, &key, &bundle, &trust_domain)
    })
}

/// The credentials of the gate of `own`, which follow their files; see [`MeshCredentials::of_gate`].
pub fn poll_sidecar(files: MeshFiles, own: SandboxIdentity) -> (Poller<MeshCredentials>, Credentials) {
    let files = [files.chain, files.key, files.bundle];
    poll(files, move |[chain, key, bundle]| of_gate(&chain, &key, &bundle, &own))
}

/// The same where a kubelet keeps them.
pub fn poll_bundle(files: BundleFiles, own: SandboxIdentity) -> (Poller<MeshCredentials>, Credentials) {
    let files = [files.credentials, files.roots];
    poll(files, move |[both, roots]| of_gate(&both, &both, &roots, &own))
}

fn of_gate(
    chain: &[u8],
    key: &[u8],
    bundle: &[u8],
    own: &SandboxIdentity,
) -> Result<MeshCredentials, CredentialsError> {
    MeshCredentials::of_gate(chain, key, bundle, own).inspect_err(|error| {
        // Not a file that is half written: whoever issued it, or wrote the gate's flags, has to be told.
        if let CredentialsError::WrongIdentity { expected, found, .. } = error {
            let text = "the certificate is not this gate's; compare it with the gate's flags";
            tracing::error!(%expected, %found, "{text}");
        }
    })
}

fn poll<const FILES: usize>(
    files: [PathBuf; FILES],
    parse: impl Fn([Vec<u8>; FILES]) -> Result<MeshCredentials, CredentialsError> + Send + 'static,
) -> (Poller<MeshCredentials>, Credentials) {
    let (poller, credentials) = Poller::new("mesh credentials", files.into(), move |contents| {
        let mut contents = contents.into_iter();
        parse(std::array::from_fn(|_| contents.next().unwrap_or_default()))
    });
    (poller.replace_if(serves_on), credentials)
}

/// Credentials that serve are not replaced by ones that don't.
fn serves_on(in_force: &MeshCredentials, new: &MeshCredentials) -> Result<(), String> {
    let now = SystemTime::now();
    match new.validity().check(now) {
        Err(unfit) if in_force.valid_at(now) => Err(format!(
            "the new leaf of {} can't be used ({unfit}), and the previous one is valid",
            new.identity()
        )),
        _ => Ok(()),
    }
}
