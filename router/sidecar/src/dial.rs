//! The only door out. Nothing else in this program opens a socket to anything; what is dialed is the literal 127.0.0.1,
//! then `::1`, on a port that a [`Permit`] or a [`ProbePermit`] names. No resolver, no proxy, no redirect.

use crate::authorize::{LoopbackPort, Permit};
use crate::probe::ProbePermit;
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
    /// See [`Door::open_new`].
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
    /// After 3 retries nobody listens on the port, or whoever does takes no connection
    /// ([`TimedOut`](io::ErrorKind::TimedOut)).
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

/// A connection for one run of a declared probe. The kubelet tries again, so this doesn't.
///
/// # Errors
/// Nobody listens on the port, or whoever does takes no connection.
pub async fn for_probe(permit: &ProbePermit) -> io::Result<TcpStream> {
    connect(permit.port()).await
}

#[expect(clippy::disallowed_methods, reason = "this is the door")]
async fn connect(port: LoopbackPort) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(io::ErrorKind::ConnectionRefused);
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let attempt = TcpStream::connect(SocketAddr::new(ip, port.get()));
        match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            // Somebody who listens on one address and is too busy outweighs nobody on the other.
            Ok(Err(error)) if failure.kind() != io::ErrorKind::TimedOut => failure = error,
            Ok(Err(_)) => {}
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::{OwnPorts, RequestFacts, authorize};
    use http::Method;
    use sandgate_mesh::policy::PolicySnapshot;
    use sandgate_mesh::sandbox::AppPort;
    use tokio::net::TcpSocket;

    /// A door, and the permission to go to a port that is bound, where nobody listens yet.
    fn door() -> (Door, Permit, TcpSocket) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let snapshot = format!(
            r#"{{"version":1,"generation":{{"epoch":1,"counter":1}},"defaultPolicy":"anonymous","ports":[{port}],"policies":[]}}"#
        );
        let request = RequestFacts {
            direct: false,
            port: AppPort::new(port).unwrap(),
            method: &Method::GET,
            path: "/",
        };
        let snapshot = PolicySnapshot::parse(snapshot.as_bytes()).unwrap();
        let own = OwnPorts { mesh: 0, health: 0 };
        let permit = authorize(&Caller::Anonymous, &request, Some(&snapshot), &own).unwrap();
        (Door::new(Arc::default(), 1), permit, socket)
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_opens_during_the_retries_is_reached() {
        let (door, permit, socket) = door();
        let caller = Arc::new(Caller::Anonymous);
        let later = async {
            tokio::time::sleep(Duration::from_millis(1_300)).await;
            socket.listen(1).unwrap()
        };
        let (opened, _listener) = tokio::join!(door.open(&permit, &caller), later);
        assert!(opened.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_refuses_is_no_longer_tried_after_three_retries() {
        let (door, permit, _socket) = door();
        let started = tokio::time::Instant::now();
        let error = door.open(&permit, &Arc::new(Caller::Anonymous)).await.err();
        assert_eq!(error.map(|error| error.kind()), Some(io::ErrorKind::ConnectionRefused));
        assert_eq!(started.elapsed().as_millis(), 1_400);
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_takes_no_connection_is_told_from_one_where_nobody_listens() {
        let (door, permit, socket) = door();
        let _listener = socket.listen(1).unwrap();
        // A full queue: further attempts get no answer at all.
        let mut queued = Vec::new();
        while let Ok(stream) = connect(permit.port()).await {
            queued.push(stream);
        }
        let error = door.open(&permit, &Arc::new(Caller::Anonymous)).await.err();
        assert_eq!(error.map(|error| error.kind()), Some(io::ErrorKind::TimedOut));
    }
}
