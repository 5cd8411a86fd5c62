//! Idle upstream connections, kept by a key that says whom they lead to and on whose behalf. Hides when a kept
//! connection may still be used.

use crate::exchange::Upstream;
use crate::http2::HttpVersion;
use foldhash::HashMap;
use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// How long connections above [`PoolLimits::per_key`] are kept. Requests come in bursts: closing what is needed again a
/// moment later would cost a handshake each.
pub const LINGER: Duration = Duration::from_secs(1);

/// How many idle connections are kept, of all versions of HTTP together, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Connections for one key that may lie idle for longer than [`LINGER`]; 0 keeps none at all.
    pub per_key: usize,
    /// Idle connections in all.
    pub total: usize,
    /// How long a connection may lie idle.
    pub idle_time: Duration,
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    until: Option<SystemTime>,
    /// The sweep that it was put back after.
    since: u64,
}

impl Idle {
    /// Whether what its ends have proven still holds. Only a connection on which something was proven costs a look at the
    /// clock.
    fn is_proven(&self) -> bool {
        self.until.is_none_or(|until| SystemTime::now() < until)
    }
}

#[derive(Debug)]
struct Kept<K> {
    by_key: HashMap<K, VecDeque<Idle>>,
    total: usize,
    /// Sweeps so far: the pool's clock, one tick per [`LINGER`]. Fine enough here, and free to read.
    sweeps: u64,
    /// A connection of an earlier era doesn't come back.
    era: Era,
}

/// The time between two renewals of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Era(u64);

/// Idle connections by key.
#[derive(Debug)]
pub struct Pool<K> {
    kept: Mutex<Kept<K>>,
    limits: PoolLimits,
    /// [`PoolLimits::idle_time`] in sweeps.
    idle_sweeps: u64,
}

/// A connection in use, which goes back to its pool with [`Lease::give_back`] and is closed when dropped.
#[derive(Debug)]
pub struct Lease<K: Hash + Eq> {
    pool: Arc<Pool<K>>,
    key: K,
    era: Era,
    until: Option<SystemTime>,
    /// The connection.
    pub upstream: Upstream,
}

impl<K: Hash + Eq> Pool<K> {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Arc<Self> {
        Arc::new(Self {
            kept: Mutex::new(Kept {
                by_key: HashMap::default(),
                total: 0,
                sweeps: 0,
                era: Era(0),
            }),
            idle_sweeps: u64::try_from(limits.idle_time.as_nanos().div_ceil(LINGER.as_nanos())).unwrap_or(u64::MAX),
            limits,
        })
    }

    // Nothing here can panic halfway through a change.
    fn lock(&self) -> MutexGuard<'_, Kept<K>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the most recently used connection for `key` that speaks this `version` of HTTP and can still be used.
    pub fn take(self: &Arc<Self>, key: &K, version: HttpVersion) -> Option<Lease<K>>
    where
        K: Clone,
    {
        let mut kept = self.lock();
        let kept = &mut *kept;
        let idle = kept.by_key.get_mut(key)?;
        // The others are left to the sweep. One that isn't ready may have been answered before its request was sent whole,
        // and is given that time to send it.
        let usable = |idle: &Idle| {
            idle.upstream.version() == version
                && idle.upstream.is_ready()
                && kept.sweeps - idle.since < self.idle_sweeps
                && idle.is_proven()
        };
        let found = idle.iter().rposition(usable).and_then(|place| idle.remove(place))?;
        kept.total -= 1;
        Some(Lease {
            pool: Arc::clone(self),
            key: key.clone(),
            era: kept.era,
            until: found.until,
            upstream: found.upstream,
        })
    }

    /// The era that a connection belongs to which is going to be opened. To be asked before anything is read that the
    /// connection will be opened with: a renewal in between must find it.
    pub fn era(&self) -> Era {
        self.lock().era
    }

    /// A lease of a connection that was opened in `era`, and of which what its ends have proven holds `until` then; `None`
    /// where nothing was proven.
    pub fn lease(self: &Arc<Self>, era: Era, key: K, upstream: Upstream, until: Option<SystemTime>) -> Lease<K> {
        Lease {
            pool: Arc::clone(self),
            key,
            era,
            until,
            upstream,
        }
    }

    fn put(&self, key: K, era: Era, until: Option<SystemTime>, upstream: Upstream) {
        if upstream.is_closed() || self.limits.per_key == 0 {
            return;
        }
        let mut kept = self.lock();
        let of_key = kept.by_key.get(&key).map_or(0, VecDeque::len);
        // What one key has had a burst of leaves room for what others keep.
        let total = self.limits.total;
        let room = if of_key < self.limits.per_key {
            total
        } else {
            total - total / 4
        };
        if kept.total >= room || era != kept.era {
            return;
        }
        let since = kept.sweeps;
        let idle = Idle { upstream, until, since };
        kept.by_key.entry(key).or_default().push_back(idle);
        kept.total += 1;
    }

    /// Closes every idle connection for `key`.
    pub fn evict(&self, key: &K) {
        let mut kept = self.lock();
        if let Some(idle) = kept.by_key.remove(key) {
            kept.total -= idle.len();
        }
    }

    /// Closes every idle connection, and those in use when they would come back: what they were opened with is no longer
    /// what connections are opened with.
    pub fn renew(&self) {
        let mut kept = self.lock();
        kept.era.0 += 1;
        kept.by_key.clear();
        kept.total = 0;
    }

    /// Closes the connections that lay idle for too long or that their peers closed. To be called every [`LINGER`].
    pub fn sweep(&self) {
        let mut kept = self.lock();
        let kept = &mut *kept;
        kept.sweeps += 1;
        let age = |idle: &Idle| kept.sweeps - idle.since;
        for idle in kept.by_key.values_mut() {
            idle.retain(|idle| !idle.upstream.is_closed() && age(idle) < self.idle_sweeps && idle.is_proven());
            // The longest idle stand in front. More than one sweep ago is LINGER ago at least.
            let surplus = idle.len().saturating_sub(self.limits.per_key);
            let lingered = idle.iter().take(surplus).take_while(|idle| age(idle) > 1).count();
            idle.drain(..lingered);
        }
        kept.by_key.retain(|_, idle| !idle.is_empty());
        kept.total = kept.by_key.values().map(VecDeque::len).sum();
    }
}

impl<K: Hash + Eq> Lease<K> {
    /// Whom the connection leads to.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Keeps the connection for the next request.
    pub fn give_back(mut self) {
        self.upstream.finish();
        self.pool.put(self.key, self.era, self.until, self.upstream);
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
