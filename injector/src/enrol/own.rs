//! What this process proves itself with to gates: leafs of its own, kept in memory and renewed ahead of their end. While the
//! root is replaced there are two, since a gate may know the control plane by one of the roots only.

use crate::authority::{Authority, Root};
use crate::authority_stored::Stored;
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
    credentials: Vec<Arc<MeshCredentials>>,
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

    /// Credentials under each root that signs or has signed and is trusted yet: at least one, and first the one that most
    /// gates know, which is the oldest.
    ///
    /// # Errors
    /// None can be issued.
    pub(super) fn credentials(&self, stored: &Stored) -> anyhow::Result<Vec<Arc<MeshCredentials>>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        if let Some(current) = &*current
            && current.roots == stored.roots
            && now < current.renew_at
        {
            return Ok(current.credentials.clone());
        }
        let authorities = stored.previous.iter().chain([&stored.authority]);
        let issued = authorities.map(|authority| self.issued(authority, &stored.roots));
        let credentials = issued.collect::<anyhow::Result<Vec<_>>>()?;
        *current = Some(Current {
            credentials: credentials.clone(),
            roots: stored.roots.clone(),
            renew_at: now + self.lifetime / 2,
        });
        Ok(credentials)
    }

    fn issued(&self, authority: &Authority, roots: &[Root]) -> anyhow::Result<Arc<MeshCredentials>> {
        let issued = authority.client_leaf(&self.identity, self.lifetime)?;
        let credentials = MeshCredentials::from_pem(
            Role::ControlPlane,
            issued.chain_pem.as_bytes(),
            issued.key_pem.as_bytes(),
            bundle(roots).as_bytes(),
            &self.identity.trust_domain,
        )?;
        Ok(Arc::new(credentials))
    }
}

/// Roots as gates are given them.
pub(super) fn bundle(roots: &[Root]) -> String {
    pem(&roots.iter().map(Root::der).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
    use rustls::RootCertStore;
    use rustls::sign::CertifiedKey;
    use rustls_pki_types::PrivateKeyDer;
    use sandgate_mesh::control::bundle_digest;
    use sandgate_mesh::identity::PeerId;
    use sandgate_mesh::tls::{self, ControlTrust, Dialed};
    use tokio::sync::watch;

    #[test]
    fn a_leaf_is_used_until_half_of_its_life_and_as_long_as_the_roots_are_the_same() {
        let identity: WorkloadIdentity = "spiffe://cluster.local/ns/here/sa/sandbox-injector".parse().unwrap();
        let (stored, other) = (Stored::new(), Stored::new());
        let own = OwnIdentity::new(identity.clone(), Duration::from_secs(3600));
        let one = |own: &OwnIdentity, stored: &Stored| match own.credentials(stored).unwrap().as_slice() {
            [one] => Arc::clone(one),
            several => panic!("{}", several.len()),
        };
        let first = one(&own, &stored);
        assert_eq!(*first.identity(), PeerId::Workload(identity.clone()));
        assert!(Arc::ptr_eq(&first, &one(&own, &stored)));
        assert!(!Arc::ptr_eq(&first, &one(&own, &other)));
        let short = OwnIdentity::new(identity, Duration::ZERO);
        assert!(!Arc::ptr_eq(&one(&short, &stored), &one(&short, &stored)));
    }

    /// Whether a gate that knows this root and no other believes whoever shows this.
    async fn is_believed_under(root: &Root, credentials: &MeshCredentials) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let chain = vec![CertificateParams::default().self_signed(&key).unwrap().der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = tls::provider().key_provider.load_private_key(key).unwrap();
        let PeerId::Workload(control_plane) = credentials.identity() else {
            panic!("no control plane's: {credentials:?}");
        };
        let gate = ControlTrust {
            role: Role::Sidecar,
            anchors: watch::channel(Some(Arc::new(roots))).1,
            control_planes: vec![control_plane.clone()],
            trust_domain: control_plane.trust_domain.clone(),
            stand_in: Arc::new(CertifiedKey::new(chain, key)),
        };
        let config = tls::control_server_config(&gate, None, SystemTime::now()).unwrap();
        let (dialing, dialed) = tokio::io::duplex(1 << 16);
        let expected = Dialed::Router(control_plane.clone());
        // In TLS 1.3 a client hears later whether it is believed.
        let (accepted, _) = tokio::join!(
            tls::accept_mesh(dialed, |_| Some(config)),
            tls::connect_control(dialing, credentials, &expected),
        );
        accepted.is_ok()
    }

    #[tokio::test]
    async fn while_the_root_is_replaced_there_is_a_leaf_under_each_that_may_be_the_only_one_that_a_gate_knows() {
        let identity: WorkloadIdentity = "spiffe://cluster.local/ns/here/sa/sandbox-injector".parse().unwrap();
        let own = OwnIdentity::new(identity, Duration::from_secs(3600));
        let before = Stored::new();
        let [distribute, switch, retire] = crate::rotation::steps::each_after(&before);
        let (old, new) = (before.authority.root().clone(), switch.authority.root().clone());
        let (under_old, under_new) = ([true, false], [false, true]);
        for (step, stored, expected) in [
            ("before", &before, &[under_old][..]),
            ("distribute", &distribute, &[under_old]),
            // Most gates know the old one yet.
            ("switch", &switch, &[under_old, under_new]),
            ("retire", &retire, &[under_new]),
        ] {
            let leafs = own.credentials(stored).unwrap();
            let mut believed = Vec::new();
            for leaf in &leafs {
                let under = [is_believed_under(&old, leaf).await, is_believed_under(&new, leaf).await];
                believed.push(under);
                let trusted = bundle_digest(&bundle(&stored.roots)).unwrap();
                assert_eq!(leaf.bundle_digest(), Some(trusted.as_str()), "{step}: whoever signs");
            }
            assert_eq!(believed, expected, "{step}");
        }
    }
}
