//! The only door out. Nothing else in this program opens a socket to anything; what is dialed is the literal 127.0.0.1,
//! then `::1`, on a port that a [`Permit`] names. No resolver, no proxy, no redirect.

use crate::authorize::{LoopbackPort, Permit};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::contract::CONNECT_TIMEOUT;
use sandgate_mesh::exchange::Upstream;
use sandgate_mesh::framing::Limits;
use sandgate_mesh::pool::{Lease, Pool, PoolLimits};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

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

    /// A connection for one permitted request: a kept one of the same caller, or a new one.
    ///
    /// # Errors
    /// Nobody listens on the port, after 3 retries.
    pub async fn open(&self, permit: &Permit, caller: &Arc<Caller>) -> io::Result<Lease<Key>> {
        match self.pool.take(&(permit.port(), Arc::clone(caller))) {
            Some(lease) => Ok(lease),
            // Boxed, so that a request on a kept connection doesn't carry the room for it.
            None => Box::pin(self.open_new(permit, caller)).await,
        }
    }

    /// A new connection for one permitted request.
    ///
    /// # Errors
    /// Nobody listens on the port, after 3 retries.
    pub async fn open_new(&self, permit: &Permit, caller: &Arc<Caller>) -> io::Result<Lease<Key>> {
        let mut pauses = RETRY_PAUSES.iter();
        let stream = loop {
            match connect(permit.port()).await {
                Ok(stream) => break stream,
                Err(error) => match pauses.next() {
                    Some(pause) => tokio::time::sleep(*pause).await,
                    None => return Err(error),
                },
            }
        };
        let upstream = Upstream::start(stream, &self.framing).await.map_err(io::Error::other)?;
        Ok(self.pool.lease((permit.port(), Arc::clone(caller)), upstream))
    }

    /// Closes connections that lay idle for too long.
    pub fn sweep(&self) {
        self.pool.sweep();
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the door")]
async fn connect(port: LoopbackPort) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let attempt = TcpStream::connect(SocketAddr::new(ip, port.get()));
        match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
