//! Who has how many requests under way, and what is left of everybody's rate. Hides that hardly anything is remembered:
//! whoever has nothing under way and may come as often as ever has no entry.

use super::rate::{Bucket, Rate};
use foldhash::HashMap;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Entries of a table at most, about 10 MiB. As many as connections by default, so that only rates can fill it.
const ENTRIES: usize = 65_536;
/// Entries of which nobody looks whether they can go.
const FEW: usize = 1024;
/// How often a full table is looked through at most.
const PAUSE: Duration = Duration::from_secs(1);

/// What one may have. At least one of the two is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// How often requests may come.
    pub rate: Option<Rate>,
    /// How many may be under way.
    pub concurrent: Option<NonZeroUsize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The rate is used up, for so long.
    Rate(Rate, Duration),
    /// So many are under way.
    Concurrent(NonZeroUsize),
    /// No further entry fits.
    Table,
}

#[derive(Debug)]
struct Entry<G> {
    under_way: usize,
    bucket: Bucket,
    /// Who has made it.
    by: G,
}

impl<G> Entry<G> {
    fn is_idle(&self, now: Instant) -> bool {
        self.under_way == 0 && self.bucket.is_full(now)
    }
}

#[derive(Debug)]
struct Entries<K, G> {
    by_key: HashMap<K, Entry<G>>,
    /// How many each has made.
    made: HashMap<G, usize>,
    /// With so many entries it is time to look which ones can go.
    look_at: usize,
    looked: Option<Instant>,
}

/// What is counted by `K`. Entries are made on behalf of a `G`, and none can make more than half of them.
#[derive(Debug)]
pub(super) struct Table<K, G> {
    share: Share,
    size: usize,
    entries: Arc<Mutex<Entries<K, G>>>,
}

/// A request's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place<K: Hash + Eq, G: Hash + Eq> {
    key: K,
    entries: Arc<Mutex<Entries<K, G>>>,
}

impl<K: Hash + Eq + Clone, G: Hash + Eq + Clone> Table<K, G> {
    pub(super) fn new(share: Share) -> Self {
        Self::of_size(share, ENTRIES)
    }

    fn of_size(share: Share, size: usize) -> Self {
        Self {
            share,
            size,
            entries: Arc::new(Mutex::new(Entries {
                by_key: HashMap::default(),
                made: HashMap::default(),
                look_at: FEW,
                looked: None,
            })),
        }
    }

    /// A place for one more request of `key`, whose entry, if there is none, is made on behalf of `by`.
    ///
    /// # Errors
    /// [`Full`]. Then nothing was used up.
    pub(super) fn enter(&self, key: K, by: &G) -> Result<Place<K, G>, Full> {
        let now = Instant::now();
        let mut entries = lock(&self.entries);
        let known = entries.by_key.get(&key);
        let (under_way, bucket) = known.map_or((0, Bucket::full(now)), |entry| (entry.under_way, entry.bucket));
        let bucket = match self.share.rate {
            Some(rate) => bucket.after_one(rate, now).map_err(|wait| Full::Rate(rate, wait))?,
            None => bucket,
        };
        if let Some(limit) = self.share.concurrent.filter(|limit| under_way >= limit.get()) {
            return Err(Full::Concurrent(limit));
        }
        if let Some(entry) = entries.by_key.get_mut(&key) {
            (entry.under_way, entry.bucket) = (under_way + 1, bucket);
        } else {
            entries.make_room(self.size, by, now)?;
            let by = by.clone();
            *entries.made.entry(by.clone()).or_default() += 1;
            let under_way = 1;
            entries.by_key.insert(key.clone(), Entry { under_way, bucket, by });
        }
        drop(entries);
        Ok(Place {
            key,
            entries: Arc::clone(&self.entries),
        })
    }
}

impl<K: Hash + Eq, G: Hash + Eq> Entries<K, G> {
    /// Makes room for one entry of `by`. Only those go that say nothing any more: nobody can push out somebody else's.
    fn make_room(&mut self, size: usize, by: &G, now: Instant) -> Result<(), Full> {
        let is_full = |entries: &Self| {
            let made = entries.made.get(by).copied().unwrap_or(0);
            entries.by_key.len() >= size || made >= size / 2
        };
        let just_looked = self.looked.is_some_and(|looked| now.duration_since(looked) < PAUSE);
        // The first costs each new entry a look at two others on average; the second is for when most of them can't go.
        if self.by_key.len() >= self.look_at || (is_full(self) && !just_looked) {
            self.looked = Some(now);
            let made = &mut self.made;
            self.by_key.retain(|_, entry| {
                let goes = entry.is_idle(now);
                if goes {
                    one_less(made, &entry.by);
                }
                !goes
            });
            self.look_at = (self.by_key.len() * 2).max(FEW);
        }
        if is_full(self) { Err(Full::Table) } else { Ok(()) }
    }
}

fn one_less<G: Hash + Eq>(made: &mut HashMap<G, usize>, by: &G) {
    if let Some(count) = made.get_mut(by) {
        *count -= 1;
        if *count == 0 {
            made.remove(by);
        }
    }
}

// Nothing under this lock can panic halfway through a change.
fn lock<K, G>(entries: &Mutex<Entries<K, G>>) -> MutexGuard<'_, Entries<K, G>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq, G: Hash + Eq> Drop for Place<K, G> {
    fn drop(&mut self) {
        let mut entries = lock(&self.entries);
        let entries = &mut *entries;
        let Some(entry) = entries.by_key.get_mut(&self.key) else {
            return;
        };
        entry.under_way = entry.under_way.saturating_sub(1);
        if entry.is_idle(Instant::now())
            && let Some(entry) = entries.by_key.remove(&self.key)
        {
            one_less(&mut entries.made, &entry.by);
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
