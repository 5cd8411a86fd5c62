//! Who asserts a caller and isn't taken for a router? Most likely a router that the gate's flags don't name, or
//! misspell: so the log says both names. Hides how often: seldom, however many requests that makes fail.

use sandgate_mesh::identity::{PeerId, WorkloadIdentity};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How many are remembered. Further ones are not told until one of these is due again.
const MOST: usize = 16;
/// How long one is not told again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Peers that were told of lately.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<Vec<(PeerId, Instant)>>);

impl Strangers {
    /// Tells of `peer`, unless that was done lately.
    pub(crate) fn tell(&self, peer: &PeerId, routers: &[WorkloadIdentity]) {
        if self.is_due(peer) {
            let accepted: Vec<_> = routers.iter().map(ToString::to_string).collect();
            let accepted = accepted.join(", ");
            let text = "a peer asserted a caller, and isn't one of the gate's routers; if it is one, correct --router-identity";
            tracing::warn!(%peer, %accepted, "{text}");
        }
    }

    fn is_due(&self, peer: &PeerId) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        told.retain(|(_, at)| now.duration_since(*at) < AGAIN_AFTER);
        if told.len() >= MOST || told.iter().any(|(known, _)| known == peer) {
            return false;
        }
        told.push((peer.clone(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_peer_is_told_of_once_a_minute_and_many_cannot_make_the_gate_remember_them_all() {
        let strangers = Strangers::default();
        let peer = |number: usize| format!("spiffe://cluster.local/ns/a/sa/r{number}").parse().unwrap();
        assert!(strangers.is_due(&peer(0)));
        assert!(!strangers.is_due(&peer(0)));
        for number in 1..1000 {
            assert_eq!(strangers.is_due(&peer(number)), number < MOST, "{number}");
        }
        assert_eq!(strangers.0.lock().unwrap().len(), MOST);
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(strangers.is_due(&peer(999)));
        assert!(strangers.is_due(&peer(0)));
        assert_eq!(strangers.0.lock().unwrap().len(), 2);
    }
}
