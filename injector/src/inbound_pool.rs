//! The memory of bodies. When it is short, the oldest body that isn't whole yet makes room: senders that stall keep
//! nobody out.

use crate::inbound::CallError;
use bytes::Buf;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// What a pool holds at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolLimits {
    /// Bytes of one body.
    pub(crate) body: usize,
    /// Bytes of all bodies.
    pub(crate) bytes: usize,
    /// Bodies that aren't whole.
    pub(crate) arriving: usize,
}

/// Bodies that arrive or are judged.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    limits: PoolLimits,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// Of bodies that are whole, too.
    bytes: usize,
    by_age: BTreeMap<u64, Part>,
}

/// What has arrived of a body.
#[derive(Debug)]
struct Part {
    bytes: Vec<u8>,
    /// Dropped with the rest when the body has to make room.
    _keep: oneshot::Sender<Infallible>,
}

/// A body's place while it arrives, free again when dropped.
#[derive(Debug)]
pub(crate) struct Arrival {
    number: u64,
    pool: Pool,
    displaced: oneshot::Receiver<Infallible>,
}

/// A whole body. It counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Body {
    bytes: Vec<u8>,
    pool: Pool,
}

impl Pool {
    pub(crate) fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            held: Arc::default(),
        }
    }

    /// A place for one more. The oldest that isn't whole loses its own if need be.
    pub(crate) fn enter(&self) -> Arrival {
        let (keep, displaced) = oneshot::channel();
        let mut held = self.held();
        let number = held.next;
        held.next += 1;
        let part = Part {
            bytes: Vec::new(),
            _keep: keep,
        };
        held.by_age.insert(number, part);
        if held.by_age.len() > self.limits.arriving {
            held.displace_other_than(number);
        }
        Arrival {
            number,
            pool: self.clone(),
            displaced,
        }
    }

    /// Bytes held now.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.held().bytes
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Frees the oldest body but this one. Says whether there was one.
    fn displace_other_than(&mut self, number: u64) -> bool {
        let oldest = self.by_age.keys().find(|other| **other != number).copied();
        oldest.is_some_and(|oldest| self.take(oldest).is_some())
    }

    fn take(&mut self, number: u64) -> Option<Part> {
        let part = self.by_age.remove(&number)?;
        self.bytes -= part.bytes.capacity();
        Some(part)
    }
}

impl Arrival {
    /// Whether the body is in this pool.
    pub(crate) fn is_of(&self, pool: &Pool) -> bool {
        Arc::ptr_eq(&self.pool.held, &pool.held)
    }

    /// Whether the body would be too long for this pool with so many more bytes.
    pub(crate) fn overflows(&self, more: usize) -> bool {
        let held = self.pool.held();
        let part = held.by_age.get(&self.number);
        part.is_some_and(|part| part.bytes.len().saturating_add(more) > self.pool.limits.body)
    }

    /// Adds what came. Others lose their places for it if need be.
    ///
    /// # Errors
    /// The body is too long, has lost its place, or nobody else can make room.
    pub(crate) fn append(&mut self, mut chunk: impl Buf) -> Result<(), CallError> {
        let limits = self.pool.limits;
        let mut held = self.pool.held();
        let part = held.by_age.get(&self.number).ok_or(CallError::Busy)?;
        let (length, capacity) = (part.bytes.len(), part.bytes.capacity());
        let needed = length.saturating_add(chunk.remaining());
        if needed > limits.body {
            return Err(CallError::TooLong);
        }
        let grown = if needed > capacity {
            // As a Vec grows, but not past what a body may be.
            needed.max((2 * capacity).min(limits.body))
        } else {
            capacity
        };
        while held.bytes + grown - capacity > limits.bytes {
            if !held.displace_other_than(self.number) {
                return Err(CallError::Busy);
            }
        }
        let part = held.by_age.get_mut(&self.number).ok_or(CallError::Busy)?;
        part.bytes.reserve_exact(grown - length);
        while chunk.has_remaining() {
            let piece = chunk.chunk();
            part.bytes.extend_from_slice(piece);
            let length = piece.len();
            chunk.advance(length);
        }
        let now = part.bytes.capacity();
        held.bytes = held.bytes + now - capacity;
        Ok(())
    }

    /// Moves the body to another pool, where it is the youngest.
    ///
    /// # Errors
    /// It has lost its place here, or finds no room there.
    pub(crate) fn move_to(&mut self, pool: &Pool) -> Result<(), CallError> {
        let part = self.pool.held().take(self.number).ok_or(CallError::Busy)?;
        let mut arrival = pool.enter();
        arrival.append(part.bytes.as_slice())?;
        *self = arrival;
        Ok(())
    }

    /// The body, which is whole now and loses its place to nobody.
    ///
    /// # Errors
    /// It has lost its place.
    pub(crate) fn finish(self) -> Result<Body, CallError> {
        let part = {
            let mut held = self.pool.held();
            let part = held.take(self.number).ok_or(CallError::Busy)?;
            held.bytes += part.bytes.capacity();
            part
        };
        Ok(Body {
            bytes: part.bytes,
            pool: self.pool.clone(),
        })
    }

    /// Completes when another body needs the place.
    pub(crate) async fn displaced(&mut self) {
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.pool.held().take(self.number);
    }
}

impl Body {
    /// What was sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.pool.held().bytes -= self.bytes.capacity();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn pool() -> Pool {
        Pool::new(PoolLimits {
            body: 6,
            bytes: 10,
            arriving: 3,
        })
    }

    fn some(length: usize) -> Bytes {
        Bytes::from(vec![b' '; length])
    }

    #[test]
    fn the_oldest_body_that_is_not_whole_makes_room_for_the_bytes_of_another() {
        let pool = pool();
        let (mut first, mut second, mut third) = (pool.enter(), pool.enter(), pool.enter());
        first.append(some(5)).unwrap();
        second.append(some(5)).unwrap();
        third.append(some(1)).unwrap();
        assert!(matches!(first.append(some(1)), Err(CallError::Busy)));
        assert_eq!(pool.bytes(), 6, "what it held is free");
        assert!(matches!(first.finish(), Err(CallError::Busy)));
        assert_eq!(second.finish().unwrap().bytes().len(), 5);
        assert_eq!(third.finish().unwrap().bytes().len(), 1);
        assert_eq!(pool.bytes(), 0);
    }

    #[test]
    fn a_whole_body_makes_room_for_nobody() {
        let pool = pool();
        let mut whole = pool.enter();
        whole.append(some(6)).unwrap();
        let whole = whole.finish().unwrap();
        let mut next = pool.enter();
        next.append(some(4)).unwrap();
        assert!(matches!(next.append(some(1)), Err(CallError::Busy)));
        drop(whole);
        next.append(some(1)).unwrap();
    }

    #[tokio::test]
    async fn too_many_bodies_that_say_nothing_make_room_too() {
        let pool = pool();
        let (mut first, _second, _third, _fourth) = (pool.enter(), pool.enter(), pool.enter(), pool.enter());
        tokio::time::timeout(crate::rig::PATIENCE, first.displaced())
            .await
            .unwrap();
    }

    #[test]
    fn a_body_takes_no_more_than_its_share_however_it_comes() {
        let pool = pool();
        let mut body = pool.enter();
        for _ in 0..6 {
            assert!(!body.overflows(1));
            body.append(some(1)).unwrap();
            assert!(pool.bytes() <= 6, "{}", pool.bytes());
        }
        assert!(body.overflows(1));
        assert!(matches!(body.append(some(1)), Err(CallError::TooLong)));
        drop(body);
        assert_eq!(pool.bytes(), 0);
    }
}
