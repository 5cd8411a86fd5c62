//! Credentials that follow their files: whose they must be, and when they may replace those in force.

use super::{Credentials, CredentialsError, MeshCredentials, Role};
use crate::identity::{PeerId, SandboxIdentity, TrustDomain};
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

/// A router's credentials, which follow their files. See [`Poller`] for the two ways to start.
pub fn poll_router(files: MeshFiles, trust_domain: TrustDomain) -> (Poller<MeshCredentials>, Credentials) {
    poll(Role::Router, files, trust_domain, |_| Ok(()))
}

/// The credentials of the gate of `own`, which follow their files. Another sandbox's are refused: every router would.
pub fn poll_sidecar(files: MeshFiles, own: SandboxIdentity) -> (Poller<MeshCredentials>, Credentials) {
    poll(Role::Sidecar, files, own.trust_domain.clone(), move |found| {
        if matches!(found, PeerId::Sandbox(found) if *found == own) {
            return Ok(());
        }
        // Not a file that is half written: whoever issued it, or wrote the gate's flags, has to be told.
        tracing::error!(expected = %own, %found, "the certificate is not this gate's; compare it with the gate's flags");
        Err(CredentialsError::WrongSandbox {
            expected: Box::new(own.clone()),
            found: Box::new(found.clone()),
        })
    })
}

fn poll(
    role: Role,
    files: MeshFiles,
    trust_domain: TrustDomain,
    check: impl Fn(&PeerId) -> Result<(), CredentialsError> + Send + 'static,
) -> (Poller<MeshCredentials>, Credentials) {
    let (poller, credentials) = Poller::new(
        "mesh credentials",
        vec![files.chain, files.key, files.bundle],
        move |contents| {
            let mut contents = contents.into_iter();
            let mut next = || contents.next().unwrap_or_default();
            let (chain, key, bundle) = (next(), next(), next());
            let found = MeshCredentials::from_pem(role, &chain, &key, &bundle, &trust_domain)?;
            check(found.identity()).map(|()| found)
        },
    );
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
