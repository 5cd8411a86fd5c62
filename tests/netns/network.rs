//! A pod and a neighbour, each in a network namespace of its own, with a wire between them.

use rustix::fs::{Mode, OFlags, open};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longest wait for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Wait for what must not happen. On this wire it would have happened after some microseconds.
const SILENCE: Duration = Duration::from_millis(500);

/// The app's port.
pub(crate) const APP: u16 = 8888;
/// The gate's mesh port.
pub(crate) const MESH: u16 = 14443;
/// The gate's health port.
pub(crate) const HEALTH: u16 = 14480;

/// The two ends' addresses in one family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) pod: IpAddr,
    pub(crate) neighbour: IpAddr,
    pub(crate) loopback: IpAddr,
}

/// IPv4 and IPv6: each test does everything in both.
pub(crate) fn families() -> [Addresses; 2] {
    let addresses = |pod: &str, neighbour: &str, loopback: &str| Addresses {
        pod: pod.parse().unwrap(),
        neighbour: neighbour.parse().unwrap(),
        loopback: loopback.parse().unwrap(),
    };
    [
        addresses("10.77.0.2", "10.77.0.1", "127.0.0.1"),
        addresses("fd77::2", "fd77::1", "::1"),
    ]
}

/// One end of the wire.
#[derive(Debug)]
pub(crate) struct Namespace(String);

/// Both ends. The namespaces are deleted when this is dropped.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) pod: Namespace,
    pub(crate) neighbour: Namespace,
}

impl Network {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            pod: Namespace(format!("pod-{number}")),
            neighbour: Namespace(format!("neighbour-{number}")),
        };
        let (pod, neighbour) = (network.pod.0.as_str(), network.neighbour.0.as_str());
        for name in [pod, neighbour] {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        ip(&[
            "-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", neighbour,
        ]);
        for Addresses {
            pod: own,
            neighbour: other,
            ..
        } in families()
        {
            let bits = if own.is_ipv4() { "24" } else { "64" };
            // Nobody else has these addresses, so IPv6 needn't wait to find out.
            let at_once: &[&str] = if own.is_ipv4() { &[] } else { &["nodad"] };
            for (name, address) in [(pod, own), (neighbour, other)] {
                let address = format!("{address}/{bits}");
                ip(&[&["-n", name, "address", "add", &address, "dev", "eth0"], at_once].concat());
            }
        }
        for name in [pod, neighbour] {
            ip(&["-n", name, "link", "set", "eth0", "up"]);
        }
        network
    }

    /// Locks the pod down with the usual ports.
    pub(crate) fn lock_down(&self) {
        let output = self.pod.run(&[sidecar().to_str().unwrap(), "lockdown"]);
        let log = said(&output);
        assert!(output.status.success(), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("\"mesh\":14443,\"health\":14480"), "{log}");
    }

    /// Fails unless the neighbour's attempts to connect to this port of the pod get no answer at all, in both families.
    pub(crate) fn assert_closed(&self, port: u16) {
        for addresses in families() {
            let result = self.neighbour.inside(|| {
                let address = SocketAddr::new(addresses.pod, port);
                TcpStream::connect_timeout(&address, SILENCE).map(drop)
            });
            assert_eq!(
                result.map_err(|error| error.kind()),
                Err(ErrorKind::TimedOut),
                "{addresses:?} {port}"
            );
        }
    }

    /// Fails unless what listens on this port of the pod can talk with the neighbour in both families.
    pub(crate) fn assert_open(&self, port: u16, listener: &TcpListener) {
        for addresses in families() {
            self.neighbour.talk(listener, SocketAddr::new(addresses.pod, port));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for Namespace(name) in [&self.pod, &self.neighbour] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

impl Namespace {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// Does something on a thread in this namespace. Sockets that are made there stay there.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let path = format!("/run/netns/{}", self.0);
            let namespace = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            act()
        };
        let ended = std::thread::scope(|scope| scope.spawn(enter).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Listens on every address of it.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        let listener = self.inside(|| TcpListener::bind(("::", port)).unwrap());
        // It bounds the wait for a connection.
        set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE)).unwrap();
        listener
    }

    /// A socket on every address of it.
    pub(crate) fn udp(&self, port: u16) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind(("::", port)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A connection from here.
    pub(crate) fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect_timeout(&address, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Connects from here to a listener and says something both ways.
    pub(crate) fn talk(&self, listener: &TcpListener, address: SocketAddr) -> (TcpStream, TcpStream) {
        let connected = self.connect(address);
        let mut client = connected.unwrap_or_else(|error| panic!("{address} from {}: {error}", self.0));
        listener.set_nonblocking(false).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        greet(&mut client, &mut server);
        (client, server)
    }

    /// Runs a command here to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new("ip");
        let command = command.args(["netns", "exec", &self.0]).args(args);
        command.stdin(Stdio::null()).output().unwrap()
    }
}

/// Says something both ways over a connection.
pub(crate) fn greet(client: &mut TcpStream, server: &mut TcpStream) {
    let mut heard = [0; 4];
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"ping");
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"pong");
}

/// Fails if a connection waits to be accepted: the app would have seen it.
pub(crate) fn assert_untouched(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Runs `ip`.
pub(crate) fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", said(&output));
}

/// All that a command said.
pub(crate) fn said(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(both).unwrap()
}

/// The gate's program, which cargo puts beside this one.
pub(crate) fn sidecar() -> PathBuf {
    let program = std::env::current_exe()
        .unwrap()
        .with_file_name("sandbox-sidecar-under-test");
    assert!(program.exists(), "{} is not built", program.display());
    program
}
