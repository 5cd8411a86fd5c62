//! The only door out. Nothing else in this program opens a socket to anything; what is dialed is the literal 127.0.0.1,
//! then `::1`, on a port that a [`Permit`] or a [`ProbePermit`] names. No resolver, no proxy, no redirect. Hides which
//! connection it is, a kept or a new one, and how often a new one is tried for.

use crate::authorize::{LoopbackPort, Permit, ProbePermit};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::contract::CONNECT_TIMEOUT;
use sandgate_mesh::exchange::Upstream;
use sandgate_mesh::framing::Limits;
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::pool::{Lease, Pool, PoolLimits};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Pauses before each further attempt at a port nobody listens on yet.
const RETRY_PAUSES: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// An idle connection serves one caller only: an app that poisons a connection harms nobody else.
pub type Key = (LoopbackPort, Arc<Caller>);

/// Opens connections to the app and keeps idle ones.
#[derive(Debug)]
pub struct Door {
    pool: Arc<Pool<Key>>,
    framing: Arc<Limits>,
}

/// The connection that a [`Permit`] was spent on.
#[derive(Debug)]
pub struct Opened<'a> {
    door: &'a Door,
    lease: Lease<Key>,
    key: Key,
    version: HttpVersion,
}

impl Door {
    /// A door that keeps at most `idle` connections.
    pub fn new(framing: Arc<Limits>, idle: usize) -> Self {
        let limits = PoolLimits {
            per_key: idle,
            total: idle,
            idle_time: Duration::from_secs(60),
        };
        Self {
            pool: Pool::new(limits),
            framing,
        }
    }

    /// A connection for the request that was permitted and travels in this version of HTTP: a kept one of the same caller, or
    /// until `deadline` a new one.
    ///
    /// # Errors
    /// Nobody listens on the port after 3 retries, or after fewer where the time is over before the next. Or whoever does
    /// takes no connection in time ([`TimedOut`](io::ErrorKind::TimedOut)).
    pub async fn open(&self, permit: Permit, version: HttpVersion, deadline: Instant) -> io::Result<Opened<'_>> {
        let key = permit.spend();
        let lease = match self.pool.take(&key, version) {
            Some(lease) => lease,
            // Boxed, so that a request on a kept connection doesn't carry the room for it.
            None => Box::pin(self.open_new(key.clone(), version, deadline)).await?,
        };
        Ok(Opened {
            door: self,
            lease,
            key,
            version,
        })
    }

    async fn open_new(&self, key: Key, version: HttpVersion, deadline: Instant) -> io::Result<Lease<Key>> {
        let era = self.pool.era();
        let stream = connect_with_retries(key.0, deadline).await?;
        let upstream = Upstream::start_in(version, stream, &self.framing).await;
        let upstream = upstream.map_err(io::Error::other)?;
        // An app proves nothing.
        Ok(self.pool.lease(era, key, upstream, None))
    }

    /// Closes connections that lay idle for too long.
    pub fn sweep(&self) {
        self.pool.sweep();
    }
}

impl Opened<'_> {
    /// The connection.
    pub const fn upstream(&mut self) -> &mut Upstream {
        &mut self.lease.upstream
    }

    /// The connection for as long as the answer lasts.
    pub fn into_lease(self) -> Lease<Key> {
        self.lease
    }

    /// A new connection in place of this one, which turned out to be closed before it took any of the request.
    ///
    /// # Errors
    /// See [`Door::open`].
    pub async fn replace(self, deadline: Instant) -> io::Result<Lease<Key>> {
        drop(self.lease);
        Box::pin(self.door.open_new(self.key, self.version, deadline)).await
    }
}

/// A connection for one run of a declared probe. The kubelet tries again, so this doesn't.
///
/// # Errors
/// Nobody listens on the port, or whoever does takes no connection.
pub async fn for_probe(permit: &ProbePermit) -> io::Result<TcpStream> {
    connect(permit.port()).await
}

async fn connect_with_retries(port: LoopbackPort, deadline: Instant) -> io::Result<TcpStream> {
    let mut pauses = RETRY_PAUSES.iter();
    loop {
        let attempt = timeout_at(deadline, connect(port)).await;
        let error = match attempt.unwrap_or_else(|elapsed| Err(elapsed.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        // Somebody who listens and takes no connection is there already, and has had the time of an attempt.
        let nobody_yet = error.kind() == io::ErrorKind::ConnectionRefused;
        match pauses.next() {
            Some(pause) if nobody_yet && Instant::now() + *pause < deadline => sleep(*pause).await,
            _ => return Err(error),
        }
    }
}

async fn connect(port: LoopbackPort) -> io::Result<TcpStream> {
    let first = match attempt(Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let second = attempt(Ipv6Addr::LOCALHOST.into(), port).await;
    second.map_err(|second| what_tells_more(first, second))
}

#[expect(clippy::disallowed_methods, reason = "this is the door")]
async fn attempt(ip: IpAddr, port: LoopbackPort) -> io::Result<TcpStream> {
    let attempt = TcpStream::connect(SocketAddr::new(ip, port.get()));
    let stream = timeout(CONNECT_TIMEOUT, attempt).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Of why there is no connection to either address: somebody who listens on one and is too busy outweighs nobody on the
/// other, and nobody there outweighs an address that the pod doesn't have.
fn what_tells_more(first: io::Error, second: io::Error) -> io::Error {
    let weight = |error: &io::Error| match error.kind() {
        io::ErrorKind::TimedOut => 2,
        io::ErrorKind::ConnectionRefused => 1,
        _ => 0,
    };
    if weight(&second) > weight(&first) {
        second
    } else {
        first
    }
}

#[cfg(test)]
#[path = "dial_tests.rs"]
pub(crate) mod tests;
