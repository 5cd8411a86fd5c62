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
    /// The root that signs, and since when; none if it did when this replica started.
    signs: Option<(Root, Option<Instant>)>,
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
            signs: None,
        }
    }

    /// The anchors of gates now that these roots are there, the one that signs first. Of the `former` ones, which signed before,
    /// those that aren't current are given to nobody; gates that were born with them and others are known all the same. When
    /// every replica knows which root signs, no gate is made with former ones only.
    pub(crate) fn anchors(&mut self, current: &[Root], former: &[&Root]) -> Option<Anchors> {
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
            .chain(former.iter().copied())
            .cloned()
            .collect();
        let anchors = Anchors::given_and_known(&given, &known).ok()?;
        // Until then a replica may give gates the former one alone.
        if !self.signs_for_long(current.first()?, first, now) {
            return Some(anchors);
        }
        let stays = |root: &&Root| current.first() == Some(*root) || !former.contains(root);
        let stay: Vec<_> = current.iter().filter(stays).cloned().collect();
        Some(anchors.requiring(&stay))
    }

    /// Whether every replica knows by now that this root signs.
    fn signs_for_long(&mut self, signing: &Root, first: bool, now: Instant) -> bool {
        if self.signs.as_ref().is_none_or(|(root, _)| root != signing) {
            self.signs = Some((signing.clone(), (!first).then_some(now)));
        }
        let since = self.signs.as_ref().and_then(|(_, since)| *since);
        since.is_none_or(|since| now.duration_since(since) >= self.grace)
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
        assert_eq!(changes.anchors(&[], &[]), None);
        assert_eq!(changes.anchors(&before, &[]).unwrap().as_pem(), text(&[&signing]));
        let anchors = changes.anchors(&after, &[]).unwrap();
        assert_eq!(anchors.as_pem(), text(&[&signing]));
        assert!(anchors.hold(&text(&[&signing, &next])));
        tokio::time::advance(GRACE).await;
        assert_eq!(changes.anchors(&after, &[]).unwrap().as_pem(), text(&[&signing, &next]));
        // It signs: the old one is given to nobody, and gates that are on their way still have it.
        let anchors = changes.anchors(std::slice::from_ref(&next), &[]).unwrap();
        assert_eq!(anchors.as_pem(), text(&[&next]));
        assert!(anchors.hold(&text(&[&signing, &next])));
        tokio::time::advance(GRACE).await;
        let anchors = changes.anchors(std::slice::from_ref(&next), &[]).unwrap();
        assert!(!anchors.hold(&text(&[&signing])) && anchors.hold(&text(&[&next])));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_replica_finds_at_its_start_is_given_at_once() {
        let (signing, next) = (root(), root());
        let anchors = RootChanges::new(GRACE).anchors(&[signing.clone(), next.clone()], &[]);
        assert_eq!(anchors.unwrap().as_pem(), text(&[&signing, &next]));
    }

    /// Or gates would know only a root under which nobody comes any more.
    #[tokio::test(start_paused = true)]
    async fn a_root_that_signs_is_given_at_once_however_new_it_is() {
        let (old, new) = (root(), root());
        let mut changes = RootChanges::new(GRACE);
        changes.anchors(std::slice::from_ref(&old), &[]);
        let anchors = changes.anchors(std::slice::from_ref(&new), &[]).unwrap();
        assert_eq!(anchors.as_pem(), text(&[&new]));
        assert!(anchors.hold(&text(&[&old])));
        let anchors = changes.anchors(&[new.clone(), old.clone()], &[]).unwrap();
        assert_eq!(anchors.as_pem(), text(&[&new, &old]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_that_comes_back_and_goes_again_is_known_for_as_long_as_before() {
        let (first, second) = (root(), root());
        let mut changes = RootChanges::new(GRACE);
        changes.anchors(std::slice::from_ref(&first), &[]);
        changes.anchors(std::slice::from_ref(&second), &[]);
        tokio::time::advance(GRACE / 2).await;
        changes.anchors(&[second.clone(), first.clone()], &[]);
        tokio::time::advance(GRACE).await;
        let anchors = changes.anchors(&[second], &[]).unwrap();
        assert!(anchors.hold(&text(&[&first])));
    }

    /// A pod that was born while the root was replaced, and whose gate has lost its state since.
    #[tokio::test(start_paused = true)]
    async fn a_retired_root_is_known_beside_the_one_that_signs_and_given_to_nobody() {
        let (retired, signing) = (root(), root());
        let anchors = RootChanges::new(GRACE).anchors(std::slice::from_ref(&signing), &[&retired]);
        let anchors = anchors.unwrap();
        assert_eq!(anchors.as_pem(), text(&[&signing]));
        assert!(anchors.hold(&text(&[&retired, &signing])));
    }

    /// Or whoever writes pods could have one after the other that needs it, and it would stay for ever.
    #[tokio::test(start_paused = true)]
    async fn no_gate_is_made_with_roots_only_that_leave() {
        let (old, new) = (root(), root());
        let (old_only, both) = (text(&[&old]), text(&[&new, &old]));
        let mut changes = RootChanges::new(GRACE);
        let anchors = changes.anchors(std::slice::from_ref(&old), &[]).unwrap();
        assert!(anchors.admit(&old_only));
        let distribute = [old.clone(), new.clone()];
        changes.anchors(&distribute, &[]);
        tokio::time::advance(2 * GRACE).await;
        let anchors = changes.anchors(&distribute, &[]).unwrap();
        // Where roots are replaced by hand, the new one may sign for another replica already, and be all that it gives.
        assert!(
            [&old_only, &both, &text(&[&new])]
                .iter()
                .all(|text| anchors.admit(text))
        );
        // It signs: a replica that hasn't heard of it may still give the old one alone.
        let switch = [new.clone(), old.clone()];
        assert!(changes.anchors(&switch, &[&old]).unwrap().admit(&old_only));
        tokio::time::advance(GRACE).await;
        let anchors = changes.anchors(&switch, &[&old]).unwrap();
        assert!(!anchors.admit(&old_only) && anchors.admit(&both) && anchors.admit(&text(&[&new])));
        assert!(
            anchors.hold(&old_only) && anchors.of_any_day().admit(&old_only),
            "it may run"
        );
        let retire = std::slice::from_ref(&new);
        let anchors = changes.anchors(retire, &[&old]).unwrap();
        assert!(!anchors.admit(&old_only) && anchors.admit(&both));
        // A replica that has just started.
        let anchors = RootChanges::new(GRACE).anchors(retire, &[&old]).unwrap();
        assert!(!anchors.admit(&old_only) && anchors.admit(&both) && anchors.hold(&old_only));
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
