//! What a client's certificate proves, and until when: its last second, or when nobody vouches for it any more.

use crate::certificates::FrontTls;
use sandgate_mesh::tls::FrontClients;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio_rustls::rustls::pki_types::CertificateDer;

/// Why a certificate proves nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Its last second is past.
    Expired,
    /// Those whose certificates are taken have changed, and it isn't theirs.
    Withdrawn,
}

/// A client certificate that has been verified in a handshake.
#[derive(Debug)]
pub(crate) struct Proof {
    /// Leaf first.
    chain: Box<[CertificateDer<'static>]>,
    until: SystemTime,
    front: FrontTls,
    /// Whose certificates were taken in the handshake.
    verified_by: Arc<FrontClients>,
    withdrawn: AtomicBool,
}

impl Proof {
    /// What was proven by `chain`, which counts `until` then and was verified as one of `verified_by`.
    pub(crate) fn new(
        (chain, until): (Box<[CertificateDer<'static>]>, SystemTime),
        front: FrontTls,
        verified_by: Arc<FrontClients>,
    ) -> Self {
        Self {
            chain,
            until,
            front,
            verified_by,
            withdrawn: AtomicBool::new(false),
        }
    }

    /// How long it may still hold.
    pub(crate) fn remaining(&self) -> Duration {
        self.until.duration_since(SystemTime::now()).unwrap_or_default()
    }

    /// Whether it holds still, as far as somebody has waited for its [end](Self::over).
    pub(crate) fn check(&self) -> Result<(), Over> {
        if self.withdrawn.load(Ordering::Relaxed) {
            Err(Over::Withdrawn)
        } else if self.remaining().is_zero() {
            Err(Over::Expired)
        } else {
            Ok(())
        }
    }

    /// Completes when it holds no longer.
    pub(crate) async fn over(&self) -> Over {
        tokio::select! {
            biased;
            () = self.withdrawn() => Over::Withdrawn,
            () = tokio::time::sleep(self.remaining()) => Over::Expired,
        }
    }

    /// Completes when nobody vouches for it any more. Each change is looked at once, and only what concerns clients: a
    /// listener's own certificate is renewed often.
    pub(crate) async fn withdrawn(&self) {
        let mut front = self.front.clone();
        let mut verified_by = Arc::clone(&self.verified_by);
        loop {
            let current = front
                .borrow_and_update()
                .as_ref()
                .map(|front| Arc::clone(&front.clients));
            if let Some(current) = current.filter(|current| !Arc::ptr_eq(current, &verified_by)) {
                if !current.admit(&self.chain) {
                    self.withdrawn.store(true, Ordering::Relaxed);
                    return;
                }
                verified_by = current;
            }
            if front.changed().await.is_err() {
                // Nobody follows the files any more: the process ends.
                return std::future::pending().await;
            }
        }
    }
}
