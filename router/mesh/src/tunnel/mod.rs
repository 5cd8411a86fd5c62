//! Two byte streams joined after an accepted upgrade. Bytes pass as they are; silence, lifetime and a drain end it. A
//! WebSocket's frames are followed, so that both sides can be told why it ends (CONTRACT section 5): a close frame only ever
//! comes between two of theirs.

mod clock;
mod close;
mod way;
pub mod websocket;

use crate::drain::Draining;
use clock::Clock;
use close::Close;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use way::Way;
use websocket::Follower;

/// How long a tunnel that closes waits for the rest of a frame under way.
const REST_OF_FRAME: Duration = Duration::from_secs(1);
/// How long it then waits until both sides have taken the close frame and sent their own.
const CLOSES: Duration = Duration::from_secs(3);
/// How long it then waits until both streams are shut down.
const SHUTDOWN: Duration = Duration::from_secs(1);
/// Two connections that have agreed to switch protocols must have done so within this.
const SWITCH: Duration = Duration::from_secs(10);

/// How long a tunnel may last, and what may pass. Zero means without limit.
#[derive(Debug, Clone, Copy)]
pub struct TunnelLimits {
    /// Without a byte in either direction.
    pub idle: Duration,
    /// In all.
    pub lifetime: Duration,
    /// Payload bytes of one WebSocket message, all its fragments together, as they are on the wire.
    pub message: u64,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(3600),
            lifetime: Duration::from_secs(86_400),
            message: 16 * 1024 * 1024,
        }
    }
}

impl TunnelLimits {
    /// None at all.
    pub const UNLIMITED: Self = Self {
        idle: Duration::ZERO,
        lifetime: Duration::ZERO,
        message: 0,
    };

    /// The same limits, with a lifetime of at most `remaining`.
    #[must_use]
    pub fn within(self, remaining: Duration) -> Self {
        let lifetime = if self.lifetime.is_zero() {
            remaining
        } else {
            self.lifetime.min(remaining)
        };
        Self {
            // None at all would mean without limit.
            lifetime: lifetime.max(Duration::from_millis(1)),
            ..self
        }
    }
}

/// What the two sides have switched to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Frames that can be followed, and ended by one of our own.
    WebSocket,
    /// Anything else: only its bytes are known, so a limit cuts it, and a drain lets it be.
    Other,
}

/// Why a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelEnd {
    /// Both sides were done.
    Closed,
    /// One side broke.
    Broken,
    /// Nothing moved for too long.
    Idle,
    /// It lasted too long.
    Lifetime,
    /// A message was too long.
    TooBig,
    /// A frame came that the two sides may read in two ways.
    Malformed,
    /// The process ends.
    Drain,
}

impl TunnelEnd {
    /// Every end.
    pub const ALL: [Self; 7] = [
        Self::Closed,
        Self::Broken,
        Self::Idle,
        Self::Lifetime,
        Self::TooBig,
        Self::Malformed,
        Self::Drain,
    ];

    /// Its name in logs and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::TooBig => "message-too-big",
            Self::Malformed => "malformed-frame",
            Self::Drain => "drain",
        }
    }
}

/// A tunnel that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub end: TunnelEnd,
    /// Bytes that moved from downstream to upstream.
    pub up: u64,
    /// Bytes that moved from upstream to downstream.
    pub down: u64,
}

struct Tunnel<D, U> {
    downstream: D,
    upstream: U,
    up: Way,
    down: Way,
    /// Whose turn it is to be first.
    up_first: bool,
    clock: Clock,
}

impl<D, U> Tunnel<D, U>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    fn new(downstream: D, upstream: U, protocol: Protocol, limits: TunnelLimits) -> Self {
        let way = || Way::new((protocol == Protocol::WebSocket).then(|| Follower::new(limits.message)));
        Self {
            downstream,
            upstream,
            up: way(),
            down: way(),
            up_first: true,
            clock: Clock::start(limits),
        }
    }

    /// Passes bytes both ways until there is a reason to end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        // Before the bytes: a flood of them takes all that Tokio lets a task do at once, and the clock would never have its
        // turn. For the same reason the two ways take turns in being first.
        if let Poll::Ready(end) = self.clock.poll_over(cx) {
            return Poll::Ready(end);
        }
        self.up_first = !self.up_first;
        let Self {
            downstream,
            upstream,
            up,
            down,
            ..
        } = self;
        let polls = if self.up_first {
            let first = up.poll_pass(cx, downstream, upstream);
            [first, down.poll_pass(cx, upstream, downstream)]
        } else {
            let first = down.poll_pass(cx, upstream, downstream);
            [first, up.poll_pass(cx, downstream, upstream)]
        };
        // Both, as each forgets that it was asked.
        if up.has_moved() | down.has_moved() {
            self.clock.touch();
        }
        match polls {
            [Poll::Ready(Err(end)), _] | [_, Poll::Ready(Err(end))] => Poll::Ready(end),
            [Poll::Ready(Ok(())), Poll::Ready(Ok(()))] => Poll::Ready(TunnelEnd::Closed),
            _ => Poll::Pending,
        }
    }

    /// Tells both sides why the tunnel ends, and hears them out, each as far as it lets itself be told in time. Returns
    /// the bytes that had moved up and down before that.
    async fn close(&mut self, close: Close) -> (u64, u64) {
        let Self {
            downstream,
            upstream,
            up,
            down,
            ..
        } = self;
        let rest = poll_fn(|cx| {
            all([
                up.poll_finish(cx, downstream, upstream),
                down.poll_finish(cx, upstream, downstream),
            ])
        });
        let _ = timeout(REST_OF_FRAME, rest).await;
        let moved = (up.bytes(), down.bytes());

        let (upstream_knows, mut client) = up.close(close.masked());
        let (downstream_knows, mut app) = down.close(Some(close.unmasked()));
        let closes = poll_fn(|cx| {
            let told_up = up.poll_write_held(cx, upstream).map(drop);
            let told_down = down.poll_write_held(cx, downstream).map(drop);
            // Whoever wasn't told won't answer.
            let heard_client = downstream_knows.then(|| client.poll_close(cx, downstream));
            let heard_app = upstream_knows.then(|| app.poll_close(cx, upstream));
            let heard = |heard: Option<Poll<()>>| heard.unwrap_or(Poll::Ready(()));
            all([told_up, told_down, heard(heard_client), heard(heard_app)])
        });
        let _ = timeout(CLOSES, closes).await;

        let shutdown = poll_fn(|cx| {
            all([
                Pin::new(&mut *upstream).poll_shutdown(cx).map(drop),
                Pin::new(&mut *downstream).poll_shutdown(cx).map(drop),
            ])
        });
        let _ = timeout(SHUTDOWN, shutdown).await;
        moved
    }
}

fn all<const N: usize>(polls: [Poll<()>; N]) -> Poll<()> {
    if polls.iter().all(Poll::is_ready) {
        Poll::Ready(())
    } else {
        Poll::Pending
    }
}

/// Joins two streams until both have ended, one breaks or there is another reason to end. Holds `draining` meanwhile, so
/// that a drain waits for the tunnel within its budget. When `over` completes, its life is over.
pub async fn join<D, U>(
    downstream: D,
    upstream: U,
    protocol: Protocol,
    limits: TunnelLimits,
    mut draining: Draining,
    over: impl Future<Output = ()>,
) -> Ended
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut tunnel = Tunnel::new(downstream, upstream, protocol, limits);
    let end = tokio::select! {
        biased;
        // First, as the clock is.
        () = draining.started(), if protocol == Protocol::WebSocket => TunnelEnd::Drain,
        () = over => TunnelEnd::Lifetime,
        end = poll_fn(|cx| tunnel.poll_end(cx)) => end,
    };
    let (up, down) = match Close::of(end) {
        // In memory of its own: a tunnel that lies idle needs nothing of it.
        Some(close) if protocol == Protocol::WebSocket => Box::pin(tunnel.close(close)).await,
        _ => (tunnel.up.bytes(), tunnel.down.bytes()),
    };
    Ended { end, up, down }
}

/// Why two connections did not become a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum NotSwitched {
    /// One of them ended or broke.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// One of them went on with something else.
    #[error("a connection did not switch protocols within {SWITCH:?}")]
    TimedOut,
}

/// [`join`]s two HTTP connections once both have switched protocols. Until then the upstream one needs its `lease`, which
/// is larger than everything that a tunnel needs.
///
/// # Errors
/// One of them doesn't switch, or not soon.
pub async fn join_upgraded<L>(
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    lease: L,
    protocol: Protocol,
    limits: TunnelLimits,
    draining: Draining,
    over: impl Future<Output = ()>,
) -> Result<Ended, NotSwitched> {
    // What is left to do is to write the two heads.
    let switched = async { tokio::try_join!(downstream, upstream) };
    let (downstream, upstream) = timeout(SWITCH, switched).await.map_err(|_| NotSwitched::TimedOut)??;
    drop(lease);
    let (downstream, upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
    Ok(join(downstream, upstream, protocol, limits, draining, over).await)
}

#[cfg(test)]
mod tests;
