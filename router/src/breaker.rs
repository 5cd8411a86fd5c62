//! A circuit breaker for hosts that are gone: where several dials in a row found nobody, requests are refused at once for a
//! while, and then one of them is let through to see. Without it each would hold its connection and its memory until its
//! dial has timed out.
//!
//! It is the host that counts, together with the identity that is expected there: a sandbox's next pod is another.

use crate::metrics::{BreakerMetrics, Metrics};
use crate::target::Target;
use foldhash::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Hosts that are remembered at most. Requests to further ones dial, as they do without a breaker.
const HOSTS: usize = 4096;

/// When a host is taken for gone, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// So many dials in a row have found nobody.
    pub failures: NonZeroU32,
    /// The first of these is not longer ago.
    pub window: Duration,
    /// How long nobody dials then.
    pub open_time: Duration,
}

/// What a dial has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialed {
    /// Somebody was there, be it only to refuse.
    Somebody,
    /// There is no host.
    Nobody,
    /// It ended before it was known.
    Unknown,
}

/// Nobody is to dial there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TakenForGone;

/// A host where the last dial found nobody.
#[derive(Debug)]
struct Host {
    failures: u32,
    /// When the first of them happened.
    since: Instant,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everybody dials.
    Closed,
    /// Nobody dials before that; then one may try.
    Open(Instant),
    /// One tries.
    HalfOpen,
}

impl State {
    const fn is_closed(self) -> bool {
        matches!(self, Self::Closed)
    }
}

/// The hosts that are gone. All workers share them.
#[derive(Debug)]
pub(crate) struct Breakers {
    settings: BreakerSettings,
    hosts: Mutex<HashMap<Arc<Target>, Host>>,
    metrics: BreakerMetrics,
}

/// A dial that may be made. What it finds is to be told; if nothing is, because its request ended first, it found nothing out.
#[derive(Debug)]
pub(crate) struct Dial<'a> {
    breakers: &'a Breakers,
    target: &'a Arc<Target>,
    is_probe: bool,
    found: Dialed,
}

impl Breakers {
    /// Those of a router with these settings; `None` where it is to dial always.
    ///
    /// # Errors
    /// A metric of that name is registered already.
    pub(crate) fn of(settings: Option<BreakerSettings>, metrics: &Metrics) -> prometheus::Result<Option<Self>> {
        let breakers = |settings| Ok(Self::new(settings, metrics.breakers()?));
        settings.map(breakers).transpose()
    }

    fn new(settings: BreakerSettings, metrics: BreakerMetrics) -> Self {
        Self {
            settings,
            hosts: Mutex::default(),
            metrics,
        }
    }

    // Nothing under this lock can panic halfway through a change.
    fn hosts(&self) -> MutexGuard<'_, HashMap<Arc<Target>, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to dial `target`.
    ///
    /// # Errors
    /// Its host is taken for gone.
    pub(crate) fn dial<'a>(&'a self, target: &'a Arc<Target>) -> Result<Dial<'a>, TakenForGone> {
        let now = Instant::now();
        let mut hosts = self.hosts();
        let is_probe = match hosts.get_mut(target) {
            None => false,
            Some(host) => match host.state {
                State::Closed => false,
                State::Open(until) if until <= now => {
                    host.state = State::HalfOpen;
                    true
                }
                State::Open(_) | State::HalfOpen => {
                    self.metrics.refused.inc();
                    return Err(TakenForGone);
                }
            },
        };
        Ok(Dial {
            breakers: self,
            target,
            is_probe,
            found: Dialed::Unknown,
        })
    }

    /// Whether `target` is taken for gone.
    pub(crate) fn is_open(&self, target: &Arc<Target>) -> bool {
        self.hosts().get(target).is_some_and(|host| !host.state.is_closed())
    }

    fn found(&self, target: &Arc<Target>, found: Dialed, is_probe: bool) {
        let mut hosts = self.hosts();
        match found {
            // Also of a dial that began before others found nobody: it is the younger news.
            Dialed::Somebody => {
                if hosts.remove(target).is_some_and(|host| !host.state.is_closed()) {
                    self.metrics.open.dec();
                }
            }
            Dialed::Nobody => self.failed(&mut hosts, target, is_probe),
            Dialed::Unknown => {
                if let Some(host) = hosts.get_mut(target).filter(|_| is_probe) {
                    host.state = State::Open(Instant::now());
                }
            }
        }
    }

    fn failed(&self, hosts: &mut HashMap<Arc<Target>, Host>, target: &Arc<Target>, is_probe: bool) {
        let BreakerSettings {
            failures,
            window,
            open_time,
        } = self.settings;
        let now = Instant::now();
        if hosts.len() >= HOSTS && !hosts.contains_key(target) {
            self.forget(hosts, now);
            if hosts.len() >= HOSTS {
                return;
            }
        }
        let first = || Host {
            failures: 0,
            since: now,
            state: State::Closed,
        };
        let host = hosts.entry(Arc::clone(target)).or_insert_with(first);
        if host.state.is_closed() {
            if now.duration_since(host.since) > window {
                (host.failures, host.since) = (0, now);
            }
            host.failures += 1;
            if host.failures >= failures.get() {
                host.state = State::Open(now + open_time);
                self.metrics.open.inc();
                tracing::info!(endpoint = %target.endpoint, "nobody is there; requests are refused for a moment");
            }
        } else if is_probe {
            host.state = State::Open(now + open_time);
        }
        // Those that were under way when it opened say nothing new.
    }

    /// Forgets hosts that nobody has asked for in a while.
    pub(crate) fn sweep(&self) {
        let mut hosts = self.hosts();
        if !hosts.is_empty() {
            self.forget(&mut hosts, Instant::now());
        }
    }

    fn forget(&self, hosts: &mut HashMap<Arc<Target>, Host>, now: Instant) {
        let window = self.settings.window;
        hosts.retain(|_, host| match host.state {
            State::Closed => now.duration_since(host.since) <= window,
            State::Open(until) => {
                let stays = now.saturating_duration_since(until) <= window;
                if !stays {
                    self.metrics.open.dec();
                }
                stays
            }
            // Whoever tries says what it found, or that it ended.
            State::HalfOpen => true,
        });
    }
}

impl Dial<'_> {
    /// Tells what it has found.
    pub(crate) fn found(mut self, found: Dialed) {
        self.found = found;
    }
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        self.breakers.found(self.target, self.found, self.is_probe);
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
