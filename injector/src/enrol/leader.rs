//! Which replica talks to gates: whoever holds a Lease (coordination.k8s.io/v1). Hides how it is got, kept and lost.
//!
//! Nobody's clock is compared with anybody else's. A holder counts from before it sent its last renewal that was taken, a
//! candidate from when it last saw the Lease change; the holder gives up in two thirds of the time that a candidate waits.
//! So at most one replica believes to hold it, unless one stands still between looking at its clock and acting: what it
//! does then bears an epoch that gates refuse ([`super::epoch`]).

use crate::kubernetes::{RequestError, bounded};
use crate::names::{FIELD_MANAGER, LEASE};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use std::time::Duration;
use tokio::time::Instant;

/// A replica that holds the Lease, or would like to.
#[derive(Debug)]
pub(super) struct Candidate {
    api: Api<Lease>,
    name: String,
    /// How long others wait after a holder was last heard of.
    duration: Duration,
    /// The version of the Lease that was seen last, and when it was seen first.
    seen: Option<(Option<String>, Instant)>,
    /// When the last renewal that was taken had been sent.
    held_since: Option<Instant>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Held,
    /// Another's, or another was faster.
    Lost,
}

/// What to do about the Lease as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Renew,
    Take,
    Wait,
}

impl Candidate {
    /// A replica under a name that no other has.
    pub(super) fn new(client: Client, namespace: &str, duration: Duration) -> Self {
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| FIELD_MANAGER.into());
        Self {
            api: Api::namespaced(client, namespace),
            name: format!("{host}_{:016x}", fastrand::u64(..)),
            duration,
            seen: None,
            held_since: None,
        }
    }

    /// Returns when this replica holds the Lease. Failures are told to `failed`, and the attempt is repeated.
    pub(super) async fn acquire(&mut self, mut failed: impl FnMut(&RequestError)) {
        loop {
            match self.attempt().await {
                Ok(Attempt::Held) => return,
                Ok(Attempt::Lost) => {}
                Err(error) => failed(&error),
            }
            // Replicas that started together don't ask together.
            tokio::time::sleep(self.pause().mul_f64(0.75 + 0.5 * fastrand::f64())).await;
        }
    }

    /// Keeps the Lease, and returns when this replica must act no more as if it held it.
    pub(super) async fn keep(&mut self, mut failed: impl FnMut(&RequestError)) {
        while let Some(since) = self.held_since {
            let end = since + self.duration.mul_f64(2.0 / 3.0);
            tokio::time::sleep_until(end.min(Instant::now() + self.pause())).await;
            match tokio::time::timeout_at(end, self.attempt()).await {
                Ok(Ok(Attempt::Held)) => {}
                Ok(Ok(Attempt::Lost)) | Err(_) => break,
                Ok(Err(error)) => failed(&error),
            }
            if Instant::now() >= end && self.held_since == Some(since) {
                break;
            }
        }
        self.held_since = None;
    }

    /// Gives the Lease back, so that nobody waits for it to run out.
    pub(super) async fn release(&mut self) {
        self.held_since = None;
        let Ok(Some(mut lease)) = bounded(self.api.get_opt(LEASE)).await else {
            return;
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(self.name.as_str()) {
            spec.holder_identity = None;
            // If that fails, it runs out.
            let _ = bounded(self.api.replace(LEASE, &params(), &lease)).await;
        }
    }

    fn pause(&self) -> Duration {
        self.duration / 8
    }

    /// Looks at the Lease and renews or takes it if that may be.
    async fn attempt(&mut self) -> Result<Attempt, RequestError> {
        let Some(mut lease) = bounded(self.api.get_opt(LEASE)).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(LEASE.into()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.taken(&LeaseSpec::default())),
            };
            let sent = Instant::now();
            return self.written(sent, bounded(self.api.create(&params(), &lease)).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let spec = match self.next_move(&lease, Instant::now()) {
            Move::Wait => {
                self.held_since = None;
                return Ok(Attempt::Lost);
            }
            Move::Renew => LeaseSpec {
                renew_time: Some(MicroTime(Timestamp::now())),
                ..spec
            },
            Move::Take => self.taken(&spec),
        };
        // With the version that was seen: of several candidates one is faster, and the others meet a conflict.
        lease.spec = Some(spec);
        let sent = Instant::now();
        self.written(sent, bounded(self.api.replace(LEASE, &params(), &lease)).await)
    }

    fn written(&mut self, sent: Instant, answer: Result<Lease, RequestError>) -> Result<Attempt, RequestError> {
        match answer {
            Ok(_) => {
                self.held_since = Some(sent);
                Ok(Attempt::Held)
            }
            Err(error) if error.is_conflict() || error.is_already_exists() => Ok(Attempt::Lost),
            Err(error) => Err(error),
        }
    }

    fn next_move(&mut self, lease: &Lease, now: Instant) -> Move {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == self.name {
            return Move::Renew;
        }
        let version = &lease.metadata.resource_version;
        let since = match &self.seen {
            Some((seen, since)) if seen == version => *since,
            _ => {
                self.seen = Some((version.clone(), now));
                now
            }
        };
        // The holder's own word, for it may be configured otherwise; and never less than this replica's.
        let told = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
        let patience = self.duration.max(Duration::from_secs(told));
        if holder.is_empty() || now >= since + patience {
            Move::Take
        } else {
            Move::Wait
        }
    }

    fn taken(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.name.clone()),
            // Whole seconds, and rather more than less.
            lease_duration_seconds: i32::try_from(self.duration.as_millis().div_ceil(1000)).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or_default().saturating_add(1)),
            ..before.clone()
        }
    }
}

fn params() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PostParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn candidate() -> Candidate {
        Candidate::new(crate::rig::unreachable(), "here", DURATION)
    }

    fn lease(holder: Option<&str>, version: &str, seconds: i32) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(Into::into),
                lease_duration_seconds: Some(seconds),
                ..LeaseSpec::default()
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_when_nobody_holds_it_or_its_holder_is_not_heard_of() {
        let (mut candidate, start) = (candidate(), Instant::now());
        let mut at = |seconds: u64, lease: &Lease| candidate.next_move(lease, start + Duration::from_secs(seconds));
        assert_eq!(at(0, &lease(None, "1", 15)), Move::Take);
        assert_eq!(at(0, &lease(Some(""), "1", 15)), Move::Take);
        let held = |version| lease(Some("other"), version, 15);
        assert_eq!(at(100, &held("2")), Move::Wait);
        assert_eq!(at(114, &held("2")), Move::Wait);
        assert_eq!(at(114, &held("3")), Move::Wait, "it was renewed");
        assert_eq!(at(128, &held("3")), Move::Wait);
        assert_eq!(at(129, &held("3")), Move::Take);
        assert_eq!(at(200, &lease(Some("other"), "4", 60)), Move::Wait);
        assert_eq!(
            at(230, &lease(Some("other"), "4", 60)),
            Move::Wait,
            "its holder counts otherwise"
        );
        assert_eq!(at(260, &lease(Some("other"), "4", 60)), Move::Take);
        assert_eq!(
            at(300, &lease(Some("other"), "5", -1)),
            Move::Wait,
            "whatever is written there"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_own_lease_is_renewed() {
        let (mut candidate, other) = (candidate(), candidate());
        let own = lease(Some(&candidate.name), "1", 15);
        assert_eq!(candidate.next_move(&own, Instant::now()), Move::Renew);
        assert_ne!(candidate.name, other.name);
    }

    #[tokio::test]
    async fn who_cannot_renew_steps_down_before_others_take_over() {
        let mut candidate = Candidate::new(crate::rig::unreachable(), "here", Duration::from_millis(300));
        let sent = Instant::now();
        candidate.held_since = Some(sent);
        let mut failures = 0;
        tokio::time::timeout(crate::rig::PATIENCE, candidate.keep(|_| failures += 1))
            .await
            .unwrap();
        assert!(sent.elapsed() >= Duration::from_millis(200) && failures > 0);
        assert_eq!(candidate.held_since, None);
    }

    #[tokio::test]
    async fn a_lease_tells_whole_seconds_and_counts_its_holders() {
        let candidate = Candidate::new(crate::rig::unreachable(), "here", Duration::from_millis(2500));
        let before = LeaseSpec {
            lease_transitions: Some(4),
            ..LeaseSpec::default()
        };
        let taken = candidate.taken(&before);
        assert_eq!(
            (taken.lease_duration_seconds, taken.lease_transitions),
            (Some(3), Some(5))
        );
    }
}
