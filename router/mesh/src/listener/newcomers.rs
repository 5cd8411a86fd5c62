//! Which connection makes room when too many have proven nothing yet. Hides how it is found without looking at all of them.

use super::one_if_loopback;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Connections whose peers have not proven anything yet. When there are too many, one of the address that has the most
/// makes room, its oldest: a peer that stalls can't keep out one that doesn't, and whoever floods pushes out itself.
#[derive(Debug, Clone)]
pub struct Newcomers {
    most: usize,
    waiting: Arc<Mutex<Waiting>>,
}

/// What one address has, by age.
type Share = BTreeMap<u64, oneshot::Sender<()>>;
/// Where an address stands among all: how many it has, and then how old the oldest of them is.
type Rank = (usize, Reverse<u64>, IpAddr);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    total: usize,
    shares: HashMap<IpAddr, Share>,
    /// Who makes room first is last.
    ranks: BTreeSet<Rank>,
}

/// A place among the newcomers, free again when dropped.
#[derive(Debug)]
pub struct Newcomer {
    peer: IpAddr,
    number: u64,
    waiting: Arc<Mutex<Waiting>>,
    displaced: oneshot::Receiver<()>,
}

impl Newcomers {
    /// Room for so many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Arc::default(),
        }
    }

    /// A place for one more, from `peer`. Loopback is one address, however it is written. If need be, the oldest loses its
    /// place of the address that has the most; of several that have as many, the one that has waited longest.
    pub fn enter(&self, peer: IpAddr) -> Newcomer {
        let peer = one_if_loopback(peer);
        let (keep, displaced) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let number = waiting.next;
        waiting.next += 1;
        waiting.change(peer, |share| {
            share.insert(number, keep);
        });
        if waiting.total > self.most
            && let Some((_, _, peer)) = waiting.ranks.last().copied()
        {
            waiting.change(peer, |share| {
                share.pop_first();
            });
        }
        Newcomer {
            peer,
            number,
            waiting: Arc::clone(&self.waiting),
            displaced,
        }
    }
}

impl Waiting {
    /// Changes what an address has, and all that follows from that.
    fn change(&mut self, peer: IpAddr, change: impl FnOnce(&mut Share)) {
        let share = self.shares.entry(peer).or_default();
        if let Some(rank) = rank(peer, share) {
            self.ranks.remove(&rank);
        }
        self.total -= share.len();
        change(share);
        self.total += share.len();
        match rank(peer, share) {
            Some(rank) => {
                self.ranks.insert(rank);
            }
            None => {
                self.shares.remove(&peer);
            }
        }
    }
}

fn rank(peer: IpAddr, share: &Share) -> Option<Rank> {
    let (oldest, _) = share.first_key_value()?;
    Some((share.len(), Reverse(*oldest), peer))
}

impl Newcomer {
    /// Completes when a newer connection needs the place.
    pub async fn displaced(&mut self) {
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.change(self.peer, |share| {
            share.remove(&self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot::error::TryRecvError;

    impl Newcomer {
        fn is_displaced(&mut self) -> bool {
            !matches!(self.displaced.try_recv(), Err(TryRecvError::Empty))
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_oldest_makes_room_for_the_newest() {
        let newcomers = Newcomers::new(2);
        let peer = address("10.0.0.1");
        let (mut first, mut second) = (newcomers.enter(peer), newcomers.enter(peer));
        drop(newcomers.enter(peer));
        assert!(first.is_displaced());
        let mut third = newcomers.enter(peer);
        assert!(!second.is_displaced() && !third.is_displaced());
    }

    #[test]
    fn a_flood_from_one_address_ends_no_handshake_of_another() {
        for flood in [&["10.0.0.9"][..], &["127.0.0.1", "127.0.0.2", "127.9.9.9", "::1"]] {
            let newcomers = Newcomers::new(8);
            let peers = ["10.0.0.1", "10.0.0.1", "10.0.0.2", "fd00::1"];
            let mut others = peers.map(|peer| newcomers.enter(address(peer)));
            let mut flooding: Vec<_> = (0..100)
                .map(|n| newcomers.enter(address(flood[n % flood.len()])))
                .collect();
            // Who comes while it lasts is let in as well.
            let mut later = newcomers.enter(address("10.0.0.3"));
            flooding.extend((0..100).map(|n| newcomers.enter(address(flood[n % flood.len()]))));
            for (peer, other) in peers.iter().zip(&mut others) {
                assert!(!other.is_displaced(), "{peer} was pushed out by {flood:?}");
            }
            assert!(!later.is_displaced(), "pushed out by {flood:?}");
            let kept: Vec<_> = flooding.iter_mut().map(|one| !one.is_displaced()).collect();
            assert_eq!(kept, [&[false; 197][..], &[true; 3]].concat(), "{flood:?}");
        }
    }

    #[test]
    fn of_addresses_with_as_many_the_one_that_waits_longest_makes_room() {
        let newcomers = Newcomers::new(4);
        let mut all: Vec<_> = ["10.0.0.1", "10.0.0.2", "10.0.0.2", "10.0.0.1", "10.0.0.3"]
            .map(|peer| newcomers.enter(address(peer)))
            .into();
        let displaced: Vec<_> = all.iter_mut().map(Newcomer::is_displaced).collect();
        assert_eq!(displaced, [true, false, false, false, false]);
    }

    #[test]
    fn places_are_free_again_and_nothing_is_kept_of_who_had_them() {
        let newcomers = Newcomers::new(2);
        let held: Vec<_> = (0..100_u8)
            .map(|n| newcomers.enter(IpAddr::from([10, 0, 0, n % 5])))
            .collect();
        drop(held);
        let waiting = newcomers.waiting.lock().unwrap();
        assert_eq!((waiting.total, waiting.shares.len(), waiting.ranks.len()), (0, 0, 0));
    }
}
