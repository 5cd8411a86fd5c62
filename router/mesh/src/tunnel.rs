//! Two byte streams joined after an accepted upgrade. Bytes pass as they are; silence, lifetime and a drain end it.

use crate::drain::Draining;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::Instant;

/// Bytes read at once in each direction.
const CHUNK: usize = 16 * 1024;

/// How long a tunnel may last. Zero means without limit.
#[derive(Debug, Clone, Copy)]
pub struct TunnelLimits {
    /// Without a byte in either direction.
    pub idle: Duration,
    /// In all.
    pub lifetime: Duration,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(3600),
            lifetime: Duration::from_secs(86_400),
        }
    }
}

impl TunnelLimits {
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
}

impl TunnelEnd {
    /// Its name in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
        }
    }
}

struct Activity {
    started: Instant,
    millis: AtomicU64,
}

impl Activity {
    fn touch(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.millis.load(Ordering::Relaxed))
    }

    async fn idle(&self, limit: Duration) {
        if limit.is_zero() {
            std::future::pending::<()>().await;
        }
        while self.last() + limit > Instant::now() {
            tokio::time::sleep_until(self.last() + limit).await;
        }
    }
}

async fn lifetime(limit: Duration) {
    if limit.is_zero() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(limit).await;
}

/// Joins two streams until both have ended, one breaks or a limit is met. Holds `_draining` meanwhile, so that a drain
/// waits for the tunnel within its budget. Returns why it ended and the bytes moved from `a` to `b` and back.
pub async fn join<A, B>(a: A, b: B, limits: TunnelLimits, _draining: Draining) -> (TunnelEnd, u64, u64)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Activity {
        started: Instant::now(),
        millis: AtomicU64::new(0),
    };
    let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
    let ((a_read, a_write), (b_read, b_write)) = (split(a), split(b));
    let both = async {
        tokio::try_join!(
            pump(a_read, b_write, &activity, &up),
            pump(b_read, a_write, &activity, &down)
        )
    };
    let end = tokio::select! {
        result = both => if result.is_ok() { TunnelEnd::Closed } else { TunnelEnd::Broken },
        () = activity.idle(limits.idle) => TunnelEnd::Idle,
        () = lifetime(limits.lifetime) => TunnelEnd::Lifetime,
    };
    (end, up.into_inner(), down.into_inner())
}

/// [`join`]s two HTTP connections once both have switched protocols.
///
/// # Errors
/// One of them doesn't switch.
pub async fn join_upgraded(
    a: OnUpgrade,
    b: OnUpgrade,
    limits: TunnelLimits,
    draining: Draining,
) -> hyper::Result<(TunnelEnd, u64, u64)> {
    let (a, b) = tokio::try_join!(a, b)?;
    Ok(join(TokioIo::new(a), TokioIo::new(b), limits, draining).await)
}

async fn pump<R, W>(mut from: R, mut to: W, activity: &Activity, bytes: &AtomicU64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        activity.touch();
        let Some(read) = chunk.get(..length).filter(|read| !read.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(read).await?;
        to.flush().await?;
        bytes.fetch_add(length as u64, Ordering::Relaxed);
        activity.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn bytes_pass_both_ways_and_half_closes_too() {
        let ((mut client, a), (b, mut app)) = (duplex(64), duplex(64));
        let (_drain, draining) = crate::drain::channel();
        let tunnel = tokio::spawn(join(a, b, TunnelLimits::default(), draining));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut seen = String::new();
        app.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "question");
        app.write_all(b"late answer").await.unwrap();
        drop(app);
        seen.clear();
        client.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "late answer");
        assert_eq!(tunnel.await.unwrap(), (TunnelEnd::Closed, 8, 11));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_age_end_a_tunnel() {
        for (idle, lifetime, end) in [(60, 0, TunnelEnd::Idle), (0, 60, TunnelEnd::Lifetime)] {
            let ((_client, a), (b, _app)) = (duplex(64), duplex(64));
            let (_drain, draining) = crate::drain::channel();
            let limits = TunnelLimits {
                idle: Duration::from_secs(idle),
                lifetime: Duration::from_secs(lifetime),
            };
            assert_eq!(join(a, b, limits, draining).await.0, end);
        }
    }
}
