//! Accepting connections: addresses as Go writes them, caps per process and per peer, and parking, so that a connection
//! which never says anything costs a socket and little more.

mod newcomers;

use crate::drain::Draining;
use crate::http2::HttpVersion;
pub use newcomers::{Newcomer, Newcomers};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// How long to wait after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that the kernel may hold before they are accepted.
const BACKLOG: i32 = 1024;

/// Files that a process has open beside its connections and its admin ports': listeners, logs, clients that are told of a
/// cap, what it reads again.
const OTHER_FILES: u64 = 256;

/// With so many files a process has room for all that its admin ports may hold; with fewer, for a part of it.
const ENOUGH_FILES: u64 = 16_384;
/// Connections that a process's two admin ports may hold in all.
const ADMIN_CONNECTIONS: u64 = 2 * 1024;

/// How many of the `wanted` connections to an admin port this process has files for.
pub(crate) fn fit_admin_connections(wanted: usize) -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH_FILES);
    let files = usize::try_from(files.min(ENOUGH_FILES)).unwrap_or(usize::MAX);
    let enough = usize::try_from(ENOUGH_FILES).unwrap_or(usize::MAX);
    (wanted.saturating_mul(files) / enough).max(1)
}

/// How many connections `files` are enough for, each with another one upstream.
fn connections_within(files: u64) -> u64 {
    let admin = ADMIN_CONNECTIONS * files.min(ENOUGH_FILES) / ENOUGH_FILES;
    files.saturating_sub(OTHER_FILES + admin) / 2
}

/// Lets this process open as many files as the system grants, and returns how many of the `wanted` connections that is
/// enough for, each with another one upstream. Whoever accepts more can't dial for anybody. `source` is what asks for so
/// many, as the log names it.
///
/// Systems grant many, but give only 1,024 to who doesn't ask.
pub fn fit_open_files(wanted: usize, source: &str) -> usize {
    let granted = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: granted.maximum,
        maximum: granted.maximum,
    };
    let raised = setrlimit(Resource::Nofile, all).is_ok();
    let files = if raised { granted.maximum } else { granted.current };
    let fitting = files.map_or(u64::MAX, connections_within);
    let fitting = usize::try_from(fitting).unwrap_or(usize::MAX).max(1);
    if fitting < wanted {
        tracing::info!(
            wanted,
            fitting,
            "the limit of open files allows fewer connections than {source}"
        );
    }
    fitting.min(wanted)
}

/// Parses `:8080`, `127.0.0.1:8080`, `[::1]:8080` or `localhost:8080`. Without a host, every address of the machine is meant.
/// No other name is looked up.
///
/// # Errors
/// A sentence that says what was expected.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{text:?} is not an address; write it like :8080, 127.0.0.1:8080 or [::1]:8080");
    let at = |ip: IpAddr, port: &str| Ok(SocketAddr::new(ip, port.parse().map_err(|_| wrong())?));
    match text.split_once(':') {
        Some(("", port)) => at(Ipv6Addr::UNSPECIFIED.into(), port),
        Some(("localhost", port)) => at(Ipv4Addr::LOCALHOST.into(), port),
        _ => text.parse().map_err(|_| wrong()),
    }
}

/// Listens on an address. Where the machine has no IPv6, "every address" means every IPv4 address.
///
/// # Errors
/// The system's, with the address: taken, or not this machine's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listened = listen(address).or_else(|error| {
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && error.kind() != io::ErrorKind::AddrInUse {
            listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        } else {
            Err(error)
        }
    });
    listened.map_err(|error| io::Error::new(error.kind(), format!("can't listen on {address}: {error}")))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    // Only for restarts while old connections linger; never SO_REUSEPORT, which would let a neighbour share the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG.unsigned_abs())
}

/// Accepts the next connection, without Nagle's delay. Ends with `None` when the drain starts.
pub async fn accept(listener: &TcpListener, draining: &mut Draining) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.started() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                return Some((stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits until a fresh connection's first byte has come, without reading it. Says whether one came within `wait`.
pub async fn speaks(stream: &TcpStream, wait: Duration) -> bool {
    matches!(tokio::time::timeout(wait, stream.peek(&mut [0])).await, Ok(Ok(1)))
}

/// What a client that means HTTP/2 without asking begins with (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// After what time a preface that comes in pieces is looked at again, for the first time and at most. Clients send it whole;
/// each look is twice as far from the last, or many that never go on would keep the program busy.
const PREFACE_PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// Which HTTP a fresh connection's first bytes are, without reading them; `None` if none come within `wait`. A preface that
/// has begun has `whole` to end, or is none.
pub async fn first_bytes(stream: &TcpStream, wait: Duration, whole: Duration) -> Option<HttpVersion> {
    let mut bytes = [0; PREFACE.len()];
    let first = tokio::time::timeout(wait, stream.peek(&mut bytes)).await;
    let mut length = first.ok()?.ok().filter(|length| *length > 0)?;
    let until = Instant::now() + whole;
    let [mut pause, longest] = PREFACE_PAUSES;
    loop {
        let seen = bytes.get(..length).unwrap_or_default();
        if seen == PREFACE {
            return Some(HttpVersion::Http2);
        }
        if !PREFACE.starts_with(seen) || Instant::now() >= until {
            return Some(HttpVersion::Http1);
        }
        // What was looked at is still there, so that there is nothing to be woken by.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
        length = stream.peek(&mut bytes).await.ok()?;
    }
}

/// All loopback addresses are one peer: whoever has one of them has them all.
pub(crate) fn one_if_loopback(peer: IpAddr) -> IpAddr {
    if peer.is_loopback() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        peer
    }
}

/// How many connections may be open at once.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// In all.
    pub total: usize,
    /// From one address.
    pub per_peer: usize,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// Which limit leaves no place for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// [`ConnectionLimits::total`].
    Total,
    /// [`ConnectionLimits::per_peer`].
    Peer,
}

/// Counts open connections.
#[derive(Debug, Clone)]
pub struct ConnectionCount {
    limits: ConnectionLimits,
    counts: Arc<Mutex<Counts>>,
}

/// A place among the open connections, free again when dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    peer: IpAddr,
    counts: Arc<Mutex<Counts>>,
}

impl ConnectionCount {
    /// A count with nothing open.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            counts: Arc::default(),
        }
    }

    /// A place for one more connection from `peer`.
    ///
    /// # Errors
    /// The limit that is met.
    pub fn enter(&self, peer: IpAddr) -> Result<ConnectionSlot, Full> {
        self.enter_within(peer, self.limits.per_peer)
    }

    /// A place for a peer that may have them all: one that is known, and speaks for many.
    ///
    /// # Errors
    /// [`Full::Total`].
    pub fn enter_trusted(&self, peer: IpAddr) -> Result<ConnectionSlot, Full> {
        self.enter_within(peer, self.limits.total)
    }

    fn enter_within(&self, peer: IpAddr, per_peer: usize) -> Result<ConnectionSlot, Full> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = counts.by_peer.get(&peer).copied().unwrap_or(0);
        if counts.total >= self.limits.total {
            return Err(Full::Total);
        }
        if of_peer >= per_peer {
            return Err(Full::Peer);
        }
        counts.total += 1;
        counts.by_peer.insert(peer, of_peer + 1);
        Ok(ConnectionSlot {
            peer,
            counts: Arc::clone(&self.counts),
        })
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        if let Some(of_peer) = counts.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                counts.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_go_reads_them() {
        assert_eq!(parse_address(":8080"), Ok("[::]:8080".parse().unwrap()));
        assert_eq!(parse_address("127.0.0.1:1"), Ok("127.0.0.1:1".parse().unwrap()));
        assert_eq!(parse_address("localhost:1"), Ok("127.0.0.1:1".parse().unwrap()));
        assert_eq!(parse_address("[::1]:1"), Ok("[::1]:1".parse().unwrap()));
        for bad in [
            "",
            "8080",
            ":",
            ":x",
            ":65536",
            "localhost",
            "localhost:",
            "example.org:1",
            "::1:1",
            "1.2.3.4",
        ] {
            assert!(parse_address(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn connections_leave_files_for_everything_else() {
        for (files, connections) in [(100, 0), (400, 47), (1024, 320), (4096, 1664), (1_048_576, 523_136)] {
            assert_eq!(connections_within(files), connections, "{files}");
        }
    }

    #[test]
    fn connections_are_capped_per_process_and_per_peer() {
        let count = ConnectionCount::new(ConnectionLimits { total: 3, per_peer: 2 });
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = count.enter(a).unwrap();
        let _second = count.enter(a).unwrap();
        assert_eq!(count.enter(a).unwrap_err(), Full::Peer);
        let _third = count.enter(b).unwrap();
        assert_eq!(count.enter(b).unwrap_err(), Full::Total);
        drop(first);
        assert!(count.enter(b).is_ok());
        assert_eq!(count.open(), 2);
        let trusted = count.enter_trusted(b);
        assert!(trusted.is_ok());
        assert_eq!(count.enter_trusted(b).unwrap_err(), Full::Total);
    }
}
