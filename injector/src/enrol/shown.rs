//! Which gates have shown the identity that they were given: what a leader has seen for itself on a connection, and not what
//! somebody has written of a pod.

use sandgate_mesh::sandbox::PodUid;
use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The pods of these gates. Clones are the same set.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown(Arc<RwLock<HashSet<PodUid>>>);

impl Shown {
    // Nothing under these locks can panic halfway through a change.
    fn read(&self) -> RwLockReadGuard<'_, HashSet<PodUid>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashSet<PodUid>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contains(&self, uid: &PodUid) -> bool {
        self.read().contains(uid)
    }

    pub(super) fn note(&self, uid: &PodUid) {
        self.write().insert(uid.clone());
    }

    pub(super) fn gone(&self, uid: &PodUid) {
        self.write().remove(uid);
    }

    /// Keeps those that are known still.
    pub(super) fn retain(&self, known: impl Fn(&PodUid) -> bool) {
        self.write().retain(|uid| known(uid));
    }
}
