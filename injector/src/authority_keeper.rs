//! Keeps what the authority's Secret holds at hand: for those who sign, and, without the key, for those who must only know
//! which roots there are, or which of them gates are given. Nobody else asks for the Secret.

use crate::anchors::Anchors;
use crate::authority::Root;
use crate::authority_secret::{AuthoritySecret, Stored};
use crate::metrics::Metrics;
use crate::root_changes::RootChanges;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The name of the signing root in metrics.
const ROOT: &str = "root";

/// The authority; none before the Secret was read.
pub(crate) type Authority = watch::Receiver<Option<Arc<Stored>>>;

/// Follows the Secret.
pub(crate) struct AuthorityKeeper {
    pub(crate) secret: AuthoritySecret,
    /// How often the Secret is looked at.
    pub(crate) check: Duration,
    /// How long to wait after a failure while nothing is known.
    pub(crate) retry: Duration,
    /// Tells those who sign.
    pub(crate) authority: watch::Sender<Option<Arc<Stored>>>,
    /// Tells which roots are trusted, the one that signs first; none before the Secret was read.
    pub(crate) roots: watch::Sender<Vec<Root>>,
    /// Tells what of them gates are given.
    pub(crate) anchors: watch::Sender<Option<Arc<Anchors>>>,
    pub(crate) changes: RootChanges,
    pub(crate) metrics: Arc<Metrics>,
}

impl AuthorityKeeper {
    /// Follows it for ever.
    pub(crate) async fn run(mut self) {
        loop {
            self.look().await;
            let known = self.authority.borrow().is_some();
            tokio::time::sleep(if known { self.check } else { self.retry }).await;
        }
    }

    async fn look(&mut self) {
        let before = self.authority.borrow().clone();
        match self.secret.read_or_fill(before.as_deref()).await {
            Ok(found) => self.tell(found, before.as_deref()),
            Err(error) => {
                self.metrics.failed("authority");
                let next = if before.is_some() {
                    "the root in memory goes on signing"
                } else {
                    "no pod is admitted"
                };
                tracing::warn!(%error, next, "can't read the root certificate");
            }
        }
    }

    fn tell(&mut self, found: Stored, before: Option<&Stored>) {
        self.metrics.expires(ROOT, found.authority.root().not_after());
        // What gates are given also changes as time goes by.
        let anchors = self.changes.anchors(&found.roots);
        self.anchors.send_if_modified(|told| {
            let changed = told.as_deref() != anchors.as_ref();
            if changed {
                *told = anchors.map(Arc::new);
            }
            changed
        });
        if before.is_some_and(|before| before.is_same(&found)) {
            return;
        }
        // Whoever is told of the new authority first may already give out leafs that are verified under its root.
        self.roots.send_if_modified(|roots| {
            let changed = *roots != found.roots;
            roots.clone_from(&found.roots);
            changed
        });
        self.authority.send_replace(Some(Arc::new(found)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper() -> AuthorityKeeper {
        AuthorityKeeper {
            secret: AuthoritySecret::new(crate::rig::unreachable(), "agent-sandbox-system", "sandgate-authority"),
            check: Duration::from_secs(30),
            retry: Duration::from_secs(1),
            authority: watch::channel(None).0,
            roots: watch::channel(Vec::new()).0,
            anchors: watch::channel(None).0,
            changes: RootChanges::new(Duration::from_secs(60)),
            metrics: Arc::new(Metrics::new().unwrap()),
        }
    }

    #[tokio::test]
    async fn what_was_read_stays_while_the_api_server_is_down() {
        let mut keeper = keeper();
        keeper.look().await;
        assert!(keeper.authority.borrow().is_none() && keeper.roots.borrow().is_empty());
        let stored = Stored::new();
        let root = stored.authority.root().clone();
        keeper.tell(stored, None);
        keeper.look().await;
        assert!(keeper.anchors.borrow().is_some());
        assert_eq!(*keeper.authority.borrow().as_ref().unwrap().authority.root(), root);
        assert_eq!(*keeper.roots.borrow(), [root]);
    }

    #[tokio::test]
    async fn only_what_has_changed_is_told() {
        let mut keeper = keeper();
        let (mut authority, mut roots) = (keeper.authority.subscribe(), keeper.roots.subscribe());
        let mut told = || {
            let changed = (authority.has_changed().unwrap(), roots.has_changed().unwrap());
            authority.mark_unchanged();
            roots.mark_unchanged();
            changed
        };
        let first = Stored::new();
        keeper.tell(first.read_again(), None);
        assert_eq!(told(), (true, true));
        keeper.tell(first.read_again(), Some(&first));
        assert_eq!(told(), (false, false));
        keeper.tell(first.with_next(&Stored::new()), Some(&first));
        assert_eq!(told(), (true, true));
        assert_eq!(keeper.roots.borrow().len(), 2);
    }
}
