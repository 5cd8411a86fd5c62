//! Keeps what the authority's Secret holds at hand: for those who sign, and, without the key, for those who must only know
//! which roots there are, or which of them gates are given. Nobody else asks for the Secret.

use crate::anchors::Anchors;
use crate::authority_files::External;
use crate::authority_secret::AuthoritySecret;
use crate::authority_stored::Stored;
use crate::ca_bundle::Trusted;
use crate::metrics::Metrics;
use crate::root_changes::{Leaving, RootChanges};
use sandgate_mesh::telemetry::chain;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The name of the signing root in metrics.
const ROOT: &str = "root";

/// The authority; none before the Secret was read.
pub(crate) type Authority = watch::Receiver<Option<Arc<Stored>>>;

/// Has the Secret read now, and not at the next look: whoever acts on what others have written must not be late.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    ask: Arc<Notify>,
    looked: watch::Receiver<Option<Instant>>,
}

impl Fresh {
    /// Asks a keeper that has these.
    pub(crate) fn new(ask: &Arc<Notify>, looked: &watch::Sender<Option<Instant>>) -> Self {
        Self {
            ask: Arc::clone(ask),
            looked: looked.subscribe(),
        }
    }

    /// Returns when all that is told of the Secret is no older than this call. It is read as often as that takes, with a
    /// pause after each failure.
    pub(crate) async fn read(&self, pause: Duration) {
        let (asked, mut looked) = (Instant::now(), self.looked.clone());
        loop {
            self.ask.notify_one();
            let new = async { looked.wait_for(|at| at.is_some_and(|at| at >= asked)).await.is_ok() };
            match tokio::time::timeout(pause, new).await {
                Ok(true) => return,
                // Nobody looks any more: the process ends.
                Ok(false) => tokio::time::sleep(pause).await,
                Err(_) => {}
            }
        }
    }
}

/// Follows the Secret.
pub(crate) struct AuthorityKeeper {
    pub(crate) secret: AuthoritySecret,
    /// What files hold, where somebody else makes the authority.
    pub(crate) external: Option<External>,
    /// How often the Secret is looked at.
    pub(crate) check: Duration,
    /// How long to wait after a failure while nothing is known.
    pub(crate) retry: Duration,
    /// Tells those who sign.
    pub(crate) authority: watch::Sender<Option<Arc<Stored>>>,
    /// Tells which roots are trusted.
    pub(crate) trusted: watch::Sender<Trusted>,
    /// Tells what of them gates are given.
    pub(crate) anchors: watch::Sender<Option<Arc<Anchors>>>,
    pub(crate) changes: RootChanges,
    pub(crate) leaving: Leaving,
    /// Asks for a look.
    pub(crate) ask: Arc<Notify>,
    /// Tells when the last look began that has succeeded.
    pub(crate) looked: watch::Sender<Option<Instant>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl AuthorityKeeper {
    /// Follows it for ever.
    pub(crate) async fn run(mut self) {
        loop {
            let began = Instant::now();
            if self.look().await {
                self.looked.send_replace(Some(began));
            }
            let known = self.authority.borrow().is_some();
            let wait = if known { self.check } else { self.retry };
            // Who asked during the look is heard now.
            let _ = tokio::time::timeout(wait, self.ask.notified()).await;
        }
    }

    async fn look(&mut self) -> bool {
        let before = self.authority.borrow().clone();
        match self
            .secret
            .read_or_fill(before.as_deref(), self.external.as_ref())
            .await
        {
            Ok(found) => {
                self.tell(found, before.as_deref());
                true
            }
            Err(error) => {
                self.metrics.failed("authority");
                let next = if before.is_some() {
                    "the root in memory goes on signing"
                } else {
                    "no pod is admitted"
                };
                tracing::warn!(error = chain(&error), next, "can't read the root certificate");
                false
            }
        }
    }

    fn tell(&mut self, found: Stored, before: Option<&Stored>) {
        self.metrics.expires(ROOT, found.authority.root().not_after());
        // What gates are given also changes as time goes by.
        let former: Vec<_> = found.leaves.iter().chain(&found.retired).collect();
        let anchors = self.changes.anchors(&found.roots, &former);
        self.anchors.send_if_modified(|told| {
            let changed = told.as_deref() != anchors.as_ref();
            if changed {
                *told = anchors.map(Arc::new);
            }
            changed
        });
        // And so does which roots nobody is served under any more. Whoever is told of the new authority first may already
        // give out leafs that are verified under its root.
        let trusted = Trusted {
            roots: found.roots.clone(),
            retired: self.leaving.gone(found.left()),
        };
        self.trusted.send_if_modified(|told| {
            let changed = *told != trusted;
            *told = trusted;
            changed
        });
        if before.is_some_and(|before| before.is_same(&found)) {
            return;
        }
        self.authority.send_replace(Some(Arc::new(found)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper() -> AuthorityKeeper {
        AuthorityKeeper {
            secret: AuthoritySecret::new(crate::rig::unreachable(), "agent-sandbox-system", "sandgate-authority"),
            external: None,
            check: Duration::from_secs(30),
            retry: Duration::from_secs(1),
            authority: watch::channel(None).0,
            trusted: watch::channel(Trusted::default()).0,
            anchors: watch::channel(None).0,
            changes: RootChanges::new(Duration::from_secs(60)),
            leaving: Leaving::new(Duration::from_secs(60)),
            ask: Arc::default(),
            looked: watch::channel(None).0,
            metrics: Arc::new(Metrics::new().unwrap()),
        }
    }

    #[tokio::test]
    async fn what_was_read_stays_while_the_api_server_is_down() {
        let mut keeper = keeper();
        keeper.look().await;
        assert!(keeper.authority.borrow().is_none() && keeper.trusted.borrow().roots.is_empty());
        let stored = Stored::new();
        let root = stored.authority.root().clone();
        keeper.tell(stored, None);
        keeper.look().await;
        assert!(keeper.anchors.borrow().is_some());
        assert_eq!(*keeper.authority.borrow().as_ref().unwrap().authority.root(), root);
        assert_eq!(keeper.trusted.borrow().roots, [root]);
    }

    #[tokio::test]
    async fn only_what_has_changed_is_told() {
        let mut keeper = keeper();
        let (mut authority, mut roots) = (keeper.authority.subscribe(), keeper.trusted.subscribe());
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
        assert_eq!(keeper.trusted.borrow().roots.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_hears_when_the_secret_was_read_after_that_and_asks_again_until_it_was() {
        let (ask, looked) = (Arc::<Notify>::default(), watch::Sender::new(Some(Instant::now())));
        let fresh = Fresh::new(&ask, &looked);
        tokio::time::advance(Duration::from_secs(1)).await;
        let before = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let reading = tokio::spawn(async move { fresh.read(Duration::from_secs(1)).await });
        for _ in 0..3 {
            ask.notified().await;
        }
        // A look that had begun before says nothing about now.
        looked.send_replace(Some(before));
        ask.notified().await;
        assert!(!reading.is_finished());
        looked.send_replace(Some(Instant::now()));
        reading.await.unwrap();
    }
}
