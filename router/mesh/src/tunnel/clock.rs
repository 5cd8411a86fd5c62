//! When a tunnel has lasted too long. One timer for both limits, which is set again only when it has gone off.

use super::{TunnelEnd, TunnelLimits};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug)]
pub(super) struct Clock {
    idle: Option<Duration>,
    /// When a byte moved last.
    moved: Instant,
    /// The end of the tunnel's life.
    end: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    pub(super) fn start(limits: TunnelLimits) -> Self {
        let now = Instant::now();
        let limited = |limit: Duration| Some(limit).filter(|limit| !limit.is_zero());
        let mut clock = Self {
            idle: limited(limits.idle),
            moved: now,
            end: limited(limits.lifetime).and_then(|lifetime| now.checked_add(lifetime)),
            timer: None,
        };
        clock.timer = clock.next().map(|(at, _)| Box::pin(sleep_until(at)));
        clock
    }

    pub(super) fn touch(&mut self) {
        self.moved = Instant::now();
    }

    /// Completes when a limit is met.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        let next = self.next();
        let (Some(timer), Some((at, end))) = (&mut self.timer, next) else {
            return Poll::Pending;
        };
        loop {
            ready!(timer.as_mut().poll(cx));
            if at <= Instant::now() {
                return Poll::Ready(end);
            }
            timer.as_mut().reset(at);
        }
    }

    /// Which limit is met first, as things stand, and when.
    fn next(&self) -> Option<(Instant, TunnelEnd)> {
        let idle = self.idle.and_then(|idle| self.moved.checked_add(idle));
        let idle = idle.map(|at| (at, TunnelEnd::Idle));
        let lifetime = self.end.map(|at| (at, TunnelEnd::Lifetime));
        idle.into_iter().chain(lifetime).min_by_key(|(at, _)| *at)
    }
}
