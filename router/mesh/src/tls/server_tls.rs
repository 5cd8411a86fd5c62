//! TLS configurations of a listener, each made once for all connections that it serves: making one parses roots and builds a
//! verifier, and whoever can connect would make a process do so again and again. Hides when one has to be made anew.

use super::TlsError;
use crate::credentials::MeshCredentials;
use rustls::{RootCertStore, ServerConfig};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// The configuration that was made last.
#[derive(Debug, Default)]
pub struct ServerTls(Mutex<Option<Made>>);

#[derive(Debug)]
struct Made {
    /// Kept, so that no other identity can be in its place in memory.
    from: Option<Arc<MeshCredentials>>,
    /// Likewise.
    anchors: Option<Arc<RootCertStore>>,
    was_valid: bool,
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// The configuration for `identity` as it counts at `now`, beside these `anchors`, if any: the last one, if that was made
    /// from the same, and as long as the identity's validity hasn't begun or ended meanwhile. Otherwise `make` makes it.
    ///
    /// # Errors
    /// What `make` says.
    pub fn get(
        &self,
        identity: Option<&Arc<MeshCredentials>>,
        anchors: Option<&Arc<RootCertStore>>,
        now: SystemTime,
        make: impl FnOnce() -> Result<Arc<ServerConfig>, TlsError>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let is_valid = identity.is_some_and(|identity| identity.valid_at(now));
        let same = |made: &&Made| {
            made.was_valid == is_valid
                && made.from.as_ref().map(Arc::as_ptr) == identity.map(Arc::as_ptr)
                && made.anchors.as_ref().map(Arc::as_ptr) == anchors.map(Arc::as_ptr)
        };
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = last.as_ref().filter(same) {
            return Ok(Arc::clone(&made.config));
        }
        let config = make()?;
        *last = Some(Made {
            from: identity.cloned(),
            anchors: anchors.cloned(),
            was_valid: is_valid,
            config: Arc::clone(&config),
        });
        Ok(config)
    }
}
