//! What a change of roots means for gates while replicas learn of it one after the other, and a pod may be between its two
//! calls: a root that is new is given to no gate until every replica knows it, and one that is gone is still known for as
//! long.

use crate::anchors::Anchors;
use crate::authority::{Root, RootId};
use std::time::Duration;
use tokio::time::Instant;

/// Remembers since when roots are there, and until when they were.
pub(crate) struct RootChanges {
    /// How long it takes until every replica has read a change.
    grace: Duration,
    roots: Vec<Remembered>,
}

struct Remembered {
    root: Root,
    /// None if it was there when this replica started: the others may know it for as long as you like.
    since: Option<Instant>,
    until: Option<Instant>,
}

impl RootChanges {
    pub(crate) const fn new(grace: Duration) -> Self {
        Self {
            grace,
            roots: Vec::new(),
        }
    }

    /// The anchors of gates now that these roots are there, the one that signs first. One that was `retired` isn't given to
    /// anybody; gates that were born with it and another are known all the same.
    pub(crate) fn anchors(&mut self, current: &[Root], retired: Option<&Root>) -> Option<Anchors> {
        let (now, grace) = (Instant::now(), self.grace);
        let first = self.roots.is_empty();
        for root in current {
            match self.roots.iter_mut().find(|known| known.root == *root) {
                Some(known) => known.until = None,
                None => self.roots.push(Remembered {
                    root: root.clone(),
                    since: (!first).then_some(now),
                    until: None,
                }),
            }
        }
        self.roots.retain_mut(|known| {
            if current.contains(&known.root) {
                return true;
            }
            now.duration_since(*known.until.get_or_insert(now)) < grace
        });
        let is_settled = |root: &&Root| {
            let found = self.roots.iter().find(|known| known.root == **root);
            found.is_some_and(|known| known.since.is_none_or(|since| now.duration_since(since) >= grace))
        };
        // A gate must know the root that signs, or nobody could ever give it an identity.
        let given: Vec<_> = match current.first() {
            Some(signing) if is_settled(&signing) => current.iter().filter(is_settled).cloned().collect(),
            _ => current.to_vec(),
        };
        let known: Vec<_> = self
            .roots
            .iter()
            .map(|known| &known.root)
            .chain(retired)
            .cloned()
            .collect();
        Anchors::given_and_known(&given, &known).ok()
    }
}

/// Which roots have left for so long that whatever was served under them isn't any more, by any replica, as far as API servers
/// can tell.
pub(crate) struct Leaving {
    /// How long that takes.
    wait: Duration,
    /// Since when this replica knows of each.
    since: Vec<(RootId, Instant)>,
}

impl Leaving {
    pub(crate) const fn new(wait: Duration) -> Self {
        Self {
            wait,
            since: Vec::new(),
        }
    }

    /// Of the roots that have left, those that nobody is served under.
    pub(crate) fn gone(&mut self, left: &[RootId]) -> Vec<RootId> {
        let now = Instant::now();
        self.since.retain(|(root, _)| left.contains(root));
        for root in left {
            if !self.since.iter().any(|(known, _)| known == root) {
                self.since.push((*root, now));
            }
        }
        let gone = self
            .since
            .iter()
            .filter(|(_, since)| now.duration_since(*since) >= self.wait);
        gone.map(|(root, _)| *root).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority_stored::Stored;
    use crate::ca_bundle::pem;

    const GRACE: Duration = Duration::from_secs(60);

    fn root() -> Root {
        Stored::new().authority.root().clone()
    }

    fn text(roots: &[&Root]) -> String {
        pem(&roots.iter().map(|root| root.der()).collect::<Vec<_>>())
    }

    #[tokio::test(start_paused = true)]
    async fn a_next_root_is_known_at_once_and_given_when_every_replica_knows_it() {
        let (signing, next) = (root(), root());
        let (before, after) = ([signing.clone()], [signing.clone(), next.clone()]);
        let mut changes = RootChanges::new(GRACE);
        assert_eq!(changes.anchors(&[], None), None);
        assert_eq!(changes.anchors(&before, None).unwrap().as_pem(), text(&[&signing]));
        let anchors = changes.anchors(&after, None).unwrap();
        assert_eq!(anchors.as_pem(), text(&[&signing]));
        assert!(anchors.hold(&text(&[&signing, &next])));
        tokio::time::advance(GRACE).await;
        assert_eq!(
            changes.anchors(&after, None).unwrap().as_pem(),
            text(&[&signing, &next])
        );
        // It signs: the old one is given to nobody, and gates that are on their way still have it.
        let anchors = changes.anchors(std::slice::from_ref(&next), None).unwrap();
        assert_eq!(anchors.as_pem(), text(&[&next]));
        assert!(anchors.hold(&text(&[&signing, &next])));
        tokio::time::advance(GRACE).await;
        let anchors = changes.anchors(std::slice::from_ref(&next), None).unwrap();
        assert!(!anchors.hold(&text(&[&signing])) && anchors.hold(&text(&[&next])));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_replica_finds_at_its_start_is_given_at_once() {
        let (signing, next) = (root(), root());
        let anchors = RootChanges::new(GRACE).anchors(&[signing.clone(), next.clone()], None);
        assert_eq!(anchors.unwrap().as_pem(), text(&[&signing, &next]));
    }

    /// Or gates would know only a root under which nobody comes any more.
    #[tokio::test(start_paused = true)]
    async fn a_root_that_signs_is_given_at_once_however_new_it_is() {
        let (old, new) = (root(), root());
        let mut changes = RootChanges::new(GRACE);
        changes.anchors(std::slice::from_ref(&old), None);
        let anchors = changes.anchors(std::slice::from_ref(&new), None).unwrap();
        assert_eq!(anchors.as_pem(), text(&[&new]));
        assert!(anchors.hold(&text(&[&old])));
        let anchors = changes.anchors(&[new.clone(), old.clone()], None).unwrap();
        assert_eq!(anchors.as_pem(), text(&[&new, &old]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_that_comes_back_and_goes_again_is_known_for_as_long_as_before() {
        let (first, second) = (root(), root());
        let mut changes = RootChanges::new(GRACE);
        changes.anchors(std::slice::from_ref(&first), None);
        changes.anchors(std::slice::from_ref(&second), None);
        tokio::time::advance(GRACE / 2).await;
        changes.anchors(&[second.clone(), first.clone()], None);
        tokio::time::advance(GRACE).await;
        let anchors = changes.anchors(&[second], None).unwrap();
        assert!(anchors.hold(&text(&[&first])));
    }

    /// A pod that was born while the root was replaced, and whose gate has lost its state since.
    #[tokio::test(start_paused = true)]
    async fn a_retired_root_is_known_beside_the_one_that_signs_and_given_to_nobody() {
        let (retired, signing) = (root(), root());
        let anchors = RootChanges::new(GRACE).anchors(std::slice::from_ref(&signing), Some(&retired));
        let anchors = anchors.unwrap();
        assert_eq!(anchors.as_pem(), text(&[&signing]));
        assert!(anchors.hold(&text(&[&retired, &signing])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_that_left_is_gone_after_a_while_and_not_when_it_is_back() {
        let (old, other) = (root().id(), root().id());
        let mut leaving = Leaving::new(GRACE);
        assert_eq!(leaving.gone(&[old]), []);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(leaving.gone(&[old, other]), []);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(leaving.gone(&[old, other]), [old]);
        assert_eq!(leaving.gone(&[other]), []);
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(leaving.gone(&[old, other]), [other], "it left anew");
    }
}
