//! What this process proves itself with to gates: a leaf of its own, kept in memory and renewed ahead of its end.

use crate::authority::Root;
use crate::authority_secret::Stored;
use crate::ca_bundle::pem;
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::identity::WorkloadIdentity;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// The control plane's own identity.
pub(super) struct OwnIdentity {
    identity: WorkloadIdentity,
    lifetime: Duration,
    current: Mutex<Option<Current>>,
}

struct Current {
    credentials: Arc<MeshCredentials>,
    roots: Vec<Root>,
    renew_at: SystemTime,
}

impl OwnIdentity {
    pub(super) fn new(identity: WorkloadIdentity, lifetime: Duration) -> Self {
        Self {
            identity,
            lifetime,
            current: Mutex::new(None),
        }
    }

    /// Credentials under the root that signs now.
    ///
    /// # Errors
    /// None can be issued.
    pub(super) fn credentials(&self, stored: &Stored) -> anyhow::Result<Arc<MeshCredentials>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        if let Some(current) = &*current
            && current.roots == stored.roots
            && now < current.renew_at
        {
            return Ok(Arc::clone(&current.credentials));
        }
        let issued = stored.authority.client_leaf(&self.identity, self.lifetime)?;
        let credentials = MeshCredentials::from_pem(
            Role::ControlPlane,
            issued.chain_pem.as_bytes(),
            issued.key_pem.as_bytes(),
            bundle(&stored.roots).as_bytes(),
            &self.identity.trust_domain,
        )?;
        let credentials = Arc::new(credentials);
        *current = Some(Current {
            credentials: Arc::clone(&credentials),
            roots: stored.roots.clone(),
            renew_at: now + self.lifetime / 2,
        });
        Ok(credentials)
    }
}

/// Roots as gates are given them.
pub(super) fn bundle(roots: &[Root]) -> String {
    pem(&roots.iter().map(Root::der).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandgate_mesh::identity::PeerId;

    #[test]
    fn a_leaf_is_used_until_half_of_its_life_and_as_long_as_the_roots_are_the_same() {
        let identity: WorkloadIdentity = "spiffe://cluster.local/ns/here/sa/sandbox-injector".parse().unwrap();
        let (stored, other) = (Stored::new(), Stored::new());
        let own = OwnIdentity::new(identity.clone(), Duration::from_secs(3600));
        let first = own.credentials(&stored).unwrap();
        assert_eq!(*first.identity(), PeerId::Workload(identity.clone()));
        assert!(Arc::ptr_eq(&first, &own.credentials(&stored).unwrap()));
        let changed = own.credentials(&other).unwrap();
        assert!(!Arc::ptr_eq(&first, &changed));
        let short = OwnIdentity::new(identity, Duration::ZERO);
        let first = short.credentials(&stored).unwrap();
        assert!(!Arc::ptr_eq(&first, &short.credentials(&stored).unwrap()));
    }
}
