//! Which connections make room when there are too many: those without a request under way, and of them the oldest of the
//! address that has the most. So nobody who only opens connections keeps API servers out.

use crate::inbound::ARRIVING;
use sandgate_mesh::listener::{ConnectionLimits, Newcomer, Newcomers};
use std::future::pending;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;

/// How many connections there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    /// In all, and from one address.
    pub(crate) limits: ConnectionLimits,
    /// Of those that haven't had a request yet; and as many between two.
    pub(crate) room: usize,
}

impl Places {
    /// An API server opens a connection for each call under way, and by its defaults has 600 requests under way at most.
    /// Those of the call before are closed at the same time, so it may be twice as many. Between calls it keeps 25.
    pub(crate) const ALL: Self = Self {
        limits: ConnectionLimits {
            // Both rooms, calls that arrive, and as many that are judged or answered.
            total: 2 * 1024 + 2 * ARRIVING,
            per_peer: 1280,
        },
        room: 1024,
    };

    /// The same shares of fewer.
    pub(crate) fn within(self, total: usize) -> Self {
        let share = |part: usize| (part * total / self.limits.total).max(1);
        Self {
            limits: ConnectionLimits {
                total,
                per_peer: share(self.limits.per_peer),
            },
            room: share(self.room),
        }
    }
}

/// Room for connections without a request under way.
pub(crate) struct Rooms {
    /// For those that haven't had one yet. Anybody can open one, and pushes out none of the others.
    newcomers: Newcomers,
    resting: Newcomers,
}

/// A connection's place in one of them, or in none while a request is under way.
pub(crate) struct Place<'a> {
    rooms: &'a Rooms,
    current: Option<Newcomer>,
    peer: IpAddr,
    requests: watch::Receiver<Counts>,
    /// How many of them had begun when the place was taken.
    begun: u64,
}

/// Tells the place of a connection about its requests.
#[derive(Clone)]
pub(crate) struct Requests(watch::Sender<Counts>);

/// A request, under way until it is dropped.
pub(crate) struct UnderWay(watch::Sender<Counts>);

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    begun: u64,
    under_way: u64,
}

impl Rooms {
    /// Two rooms for so many.
    pub(crate) fn new(each: usize) -> Self {
        Self {
            newcomers: Newcomers::new(each),
            resting: Newcomers::new(each),
        }
    }

    /// A place for one more connection, from `peer`. If need be, a newcomer loses its own, as [`Newcomers`] have it.
    pub(crate) fn enter(&self, peer: IpAddr) -> (Place<'_>, Requests) {
        let (tell, requests) = watch::channel(Counts::default());
        let place = Place {
            rooms: self,
            current: Some(self.newcomers.enter(peer)),
            peer,
            requests,
            begun: 0,
        };
        (place, Requests(tell))
    }
}

impl Place<'_> {
    /// Completes when another connection needs the place, and no request is under way on this one.
    pub(crate) async fn lost(&mut self) {
        loop {
            let Counts { begun, under_way } = *self.requests.borrow_and_update();
            if under_way > 0 {
                self.current = None;
            } else if self.begun < begun {
                self.current = Some(self.rooms.resting.enter(self.peer));
                self.begun = begun;
            }
            let displaced = async {
                match &mut self.current {
                    Some(place) => place.displaced().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = self.requests.changed() => {
                    if changed.is_err() {
                        // The connection has ended, and whoever waits here with it.
                        pending::<()>().await;
                    }
                }
                () = displaced => return,
            }
        }
    }
}

impl Requests {
    /// Whether there has been one.
    pub(crate) fn any(&self) -> bool {
        self.0.borrow().begun > 0
    }

    /// Completes if there has been none for so long.
    pub(crate) async fn none_within(&self, wait: Duration) {
        tokio::time::sleep(wait).await;
        if self.any() {
            pending::<()>().await;
        }
    }

    /// One more.
    pub(crate) fn begin(&self) -> UnderWay {
        self.0.send_modify(|counts| {
            counts.begun += 1;
            counts.under_way += 1;
        });
        UnderWay(self.0.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|counts| counts.under_way -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::net::Ipv4Addr;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn of_fewer_places_one_address_gets_as_small_a_part() {
        let few = Places::ALL.within(Places::ALL.limits.total / 16);
        assert_eq!(few.limits.per_peer, Places::ALL.limits.per_peer / 16);
        assert_eq!(few.room, Places::ALL.room / 16);
    }

    #[tokio::test]
    async fn newcomers_push_out_the_oldest_newcomer_and_no_connection_that_has_had_a_request() {
        let rooms = Rooms::new(2);
        let (mut old, requests) = rooms.enter(PEER);
        drop(requests.begin());
        assert!(old.lost().now_or_never().is_none());
        let (mut first, _first) = rooms.enter(PEER);
        let others = [rooms.enter(PEER), rooms.enter(PEER)];
        assert!(first.lost().now_or_never().is_some());
        assert!(old.lost().now_or_never().is_none());
        for (mut other, _other) in others {
            assert!(other.lost().now_or_never().is_none());
        }
    }

    #[tokio::test]
    async fn of_connections_at_rest_the_one_loses_its_place_that_is_used_least() {
        let rooms = Rooms::new(2);
        let mut all: Vec<_> = (0..3).map(|_| rooms.enter(PEER)).collect();
        for used in [0, 1, 0, 2] {
            let (place, requests) = &mut all[used];
            let under_way = requests.begin();
            assert!(place.lost().now_or_never().is_none());
            drop(under_way);
            place.lost().now_or_never();
        }
        let lost: Vec<_> = all
            .iter_mut()
            .map(|(place, _)| place.lost().now_or_never().is_some())
            .collect();
        assert_eq!(lost, [false, true, false]);
    }

    #[tokio::test]
    async fn a_connection_with_a_request_under_way_loses_no_place() {
        let rooms = Rooms::new(1);
        let (mut busy, requests) = rooms.enter(PEER);
        let _under_way = requests.begin();
        assert!(busy.lost().now_or_never().is_none());
        let _others = [rooms.enter(PEER), rooms.enter(PEER)];
        assert!(busy.lost().now_or_never().is_none());
    }
}
