//! How often somebody may come: the generic cell rate algorithm (ITU-T I.371), which is a token bucket that needs one instant
//! for each client and no timer. Written here because the table needs what crates for it hide: whether a bucket is full, so
//! that nothing is remembered of whoever hasn't come for a while.

use std::num::NonZeroU32;
use std::time::Duration;
use tokio::time::Instant;

/// So many requests a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests per second that can go on for ever.
    pub per_second: NonZeroU32,
    /// Requests at once after a pause; afterwards one each time that the rate allows another.
    pub burst: NonZeroU32,
}

impl Rate {
    /// The time that a request takes up.
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second.get()
    }

    /// How far requests may be ahead of the rate.
    fn tolerance(self) -> Duration {
        self.interval() * (self.burst.get() - 1)
    }
}

/// What somebody has used of a rate: when all of it can be used again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    full_at: Instant,
}

impl Bucket {
    pub(super) fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    pub(super) fn is_full(self, now: Instant) -> bool {
        self.full_at <= now
    }

    /// The bucket after one more request at `now`; it has taken nothing where there was nothing left.
    ///
    /// # Errors
    /// How long it is until there is something left.
    pub(super) fn after_one(self, rate: Rate, now: Instant) -> Result<Self, Duration> {
        let full_at = self.full_at.max(now);
        let wait = full_at.duration_since(now).saturating_sub(rate.tolerance());
        if wait.is_zero() {
            Ok(Self {
                full_at: full_at + rate.interval(),
            })
        } else {
            Err(wait)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate {
            per_second: NonZeroU32::new(per_second).unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
        }
    }

    /// How many requests of a client that asks `per_second` times for `seconds` get through.
    fn admitted(rate: Rate, per_second: u32, seconds: u32) -> u32 {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let mut admitted = 0;
        for number in 0..per_second * seconds {
            let now = start + Duration::from_secs(1) / per_second * number;
            if let Ok(after) = bucket.after_one(rate, now) {
                bucket = after;
                admitted += 1;
            }
        }
        admitted
    }

    #[tokio::test]
    async fn a_burst_gets_through_and_then_the_rate() {
        for (rate, expected) in [
            (rate(10, 10), 10 + 99),
            (rate(10, 1), 100),
            (rate(10, 50), 50 + 99),
            (rate(1, 3), 3 + 9),
        ] {
            assert_eq!(admitted(rate, 1000, 10), expected, "{rate:?}");
        }
        assert_eq!(
            admitted(rate(10, 1), 10, 10),
            100,
            "whoever keeps to the rate is never refused"
        );
    }

    #[tokio::test]
    async fn the_wait_is_neither_too_short_nor_too_long_and_being_refused_costs_nothing() {
        let (rate, start) = (rate(2, 3), Instant::now());
        let mut bucket = Bucket::full(start);
        for _ in 0..3 {
            bucket = bucket.after_one(rate, start).unwrap();
        }
        let half = Duration::from_millis(500);
        for _ in 0..100 {
            assert_eq!(bucket.after_one(rate, start).unwrap_err(), half);
        }
        let early = start + half - Duration::from_nanos(1);
        assert_eq!(bucket.after_one(rate, early).unwrap_err(), Duration::from_nanos(1));
        assert!(bucket.after_one(rate, start + half).is_ok());
    }

    #[tokio::test]
    async fn a_bucket_is_full_again_after_as_long_as_its_requests_take_up() {
        let (rate, start) = (rate(2, 3), Instant::now());
        let mut bucket = Bucket::full(start);
        assert!(bucket.is_full(start));
        for _ in 0..3 {
            bucket = bucket.after_one(rate, start).unwrap();
        }
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(!bucket.is_full(after(1499)) && bucket.is_full(after(1500)));
    }

    #[tokio::test]
    async fn the_largest_and_the_smallest_rates_overflow_nothing() {
        let start = Instant::now();
        for rate in [rate(1, u32::MAX), rate(u32::MAX, u32::MAX), rate(1, 1)] {
            let mut bucket = Bucket::full(start);
            for _ in 0..1000 {
                bucket = bucket.after_one(rate, start).unwrap_or(bucket);
            }
        }
    }
}
