//! What lockdown leaves open, and what it closes.

use crate::Test;
use crate::network::{
    APP, HEALTH, MESH, Namespace, Network, PATIENCE, assert_untouched, families, greet, ip, said, sidecar,
};
use rustix::net::{AddressFamily, SendFlags, SocketType, bind, connect, ipproto, sendto, socket, sockopt};
use serde_json::json;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV6, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = crate::tests![
    only_the_gates_ports_can_be_reached_from_outside,
    the_source_port_opens_nothing,
    datagrams_and_pings_from_outside_are_dropped,
    connections_of_the_pods_own_get_their_answers,
    errors_about_the_pods_own_packets_arrive,
    neighbours_find_each_other_afresh,
    the_queries_by_which_switches_learn_who_listens_arrive,
    running_twice_changes_nothing_and_breaks_no_connection,
    a_run_with_other_ports_closes_the_old_ones,
    a_container_without_net_admin_says_what_it_lacks,
    the_gate_runs_the_probe_that_the_kubelet_cannot,
];

fn only_the_gates_ports_can_be_reached_from_outside(network: &Network) {
    let [app, mesh, health] = [APP, MESH, HEALTH].map(|port| network.pod.listen(port));
    // The wire is good, and the app is reached, until it is closed.
    network.assert_open(APP, &app);
    network.lock_down();
    network.assert_closed(APP);
    network.assert_closed(22);
    network.assert_open(MESH, &mesh);
    network.assert_open(HEALTH, &health);
    assert_untouched(&app);
    for addresses in families() {
        for ip in [addresses.loopback, addresses.pod] {
            network.pod.talk(&app, SocketAddr::new(ip, APP));
        }
    }
}

/// Rules that forget which side opened a connection let in whoever comes from the right port.
fn the_source_port_opens_nothing(network: &Network) {
    let [app, mesh] = [APP, MESH].map(|port| network.pod.listen(port));
    network.lock_down();
    for from in [53, 443, MESH, HEALTH] {
        for addresses in families() {
            let (own, other) = (
                SocketAddr::new(addresses.neighbour, from),
                SocketAddr::new(addresses.pod, APP),
            );
            let result = network.neighbour.inside(|| {
                let socket = socket(AddressFamily::of(own), SocketType::STREAM, None).unwrap();
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(Duration::from_millis(500))).unwrap();
                bind(&socket, &own).unwrap();
                connect(&socket, &other)
            });
            assert!(result.is_err(), "{own} to {other}");
        }
    }
    network.assert_open(MESH, &mesh);
    assert_untouched(&app);
}

trait Of {
    fn of(address: SocketAddr) -> Self;
}

impl Of for AddressFamily {
    fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::INET } else { Self::INET6 }
    }
}

fn datagrams_and_pings_from_outside_are_dropped(network: &Network) {
    let (app, mesh) = (network.pod.udp(APP), network.pod.listen(MESH));
    let (neighbour, pings) = (network.neighbour.udp(0), pings(network));
    let [ipv4, _] = families();
    let ping = || pings.send_to(&ECHO_REQUEST, SocketAddr::new(ipv4.pod, 0)).unwrap();
    let mut heard = [0; 64];
    for addresses in families() {
        neighbour
            .send_to(b"before", SocketAddr::new(addresses.pod, APP))
            .unwrap();
        let (length, _) = app.recv_from(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"before");
    }
    ping();
    pings.recv(&mut heard).unwrap();
    network.lock_down();
    for addresses in families() {
        for port in [APP, MESH, HEALTH] {
            neighbour
                .send_to(b"after", SocketAddr::new(addresses.pod, port))
                .unwrap();
        }
    }
    ping();
    // What was sent before this on the same wire would have arrived before it.
    network.assert_open(MESH, &mesh);
    for socket in [&app, &pings] {
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut heard).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// ICMP's, with its checksum.
const ECHO_REQUEST: [u8; 8] = [8, 0, 0xf7, 0xfe, 0, 1, 0, 0];

/// The neighbour's socket for echoes. It sends and receives as one for datagrams does.
fn pings(network: &Network) -> UdpSocket {
    let raw = || socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
    let socket = UdpSocket::from(network.neighbour.inside(raw));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn connections_of_the_pods_own_get_their_answers(network: &Network) {
    network.lock_down();
    let (tcp, udp) = (network.neighbour.listen(443), network.neighbour.udp(53));
    for addresses in families() {
        network.pod.talk(&tcp, SocketAddr::new(addresses.neighbour, 443));
        let resolver = network.pod.udp(0);
        resolver
            .send_to(b"?", SocketAddr::new(addresses.neighbour, 53))
            .unwrap();
        let mut heard = [0; 16];
        let (_, from) = udp.recv_from(&mut heard).unwrap();
        udp.send_to(b"answer", from).unwrap();
        let (length, _) = resolver.recv_from(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"answer");
    }
}

fn errors_about_the_pods_own_packets_arrive(network: &Network) {
    network.lock_down();
    for addresses in families() {
        let socket = network.pod.udp(0);
        socket.connect(SocketAddr::new(addresses.neighbour, 9)).unwrap();
        socket.send(b"anybody?").unwrap();
        // "Port unreachable", in ICMP and in ICMPv6.
        assert_eq!(
            socket.recv(&mut [0; 16]).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{addresses:?}"
        );
    }
}

fn neighbours_find_each_other_afresh(network: &Network) {
    let (mesh, outside) = (network.pod.listen(MESH), network.neighbour.listen(443));
    network.lock_down();
    for addresses in families() {
        forget(&network.pod);
        forget(&network.neighbour);
        network.neighbour.talk(&mesh, SocketAddr::new(addresses.pod, MESH));
        forget(&network.pod);
        forget(&network.neighbour);
        network.pod.talk(&outside, SocketAddr::new(addresses.neighbour, 443));
    }
}

/// Makes one side forget which hardware address has which IP address.
fn forget(side: &Namespace) {
    for family in ["-4", "-6"] {
        ip(&[family, "-n", side.name(), "neighbour", "flush", "dev", "eth0"]);
    }
}

/// A switch that gets no answer to these stops passing on the questions of neighbour discovery.
fn the_queries_by_which_switches_learn_who_listens_arrive(network: &Network) {
    network.lock_down();
    let (socket, eth0) = network.neighbour.inside(|| {
        let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
        let index = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        (socket, interface(&index, "eth0"))
    });
    let everybody = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, eth0);
    let mut query = [0; 24];
    query[0] = 130;
    let deadline = Instant::now() + PATIENCE;
    // Not sent at first: the neighbour makes sure that its link-local address is nobody else's.
    while queries(&network.pod) == 0 {
        assert!(Instant::now() < deadline, "no query arrives");
        let _ = sendto(&socket, &query, SendFlags::empty(), &everybody);
        std::thread::yield_now();
    }
}

/// The number of an interface, from the kernel's list of IPv6 addresses.
fn interface(addresses: &str, name: &str) -> u32 {
    let line = addresses.lines().find(|line| line.ends_with(name)).unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    u32::from_str_radix(number, 16).unwrap()
}

/// How many multicast listener queries came past the rules so far.
fn queries(pod: &Namespace) -> u64 {
    let counters = pod.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
    let counter = counters
        .lines()
        .find_map(|line| line.strip_prefix("Icmp6InGroupMembQueries"));
    counter.unwrap().trim().parse().unwrap()
}

fn running_twice_changes_nothing_and_breaks_no_connection(network: &Network) {
    let [app, mesh] = [APP, MESH].map(|port| network.pod.listen(port));
    let outside = network.neighbour.listen(443);
    network.lock_down();
    for addresses in families() {
        let (mut caller, mut gate) = network.neighbour.talk(&mesh, SocketAddr::new(addresses.pod, MESH));
        let (mut own, mut server) = network.pod.talk(&outside, SocketAddr::new(addresses.neighbour, 443));
        network.lock_down();
        greet(&mut caller, &mut gate);
        greet(&mut own, &mut server);
    }
    network.assert_closed(APP);
    assert_untouched(&app);
}

fn a_run_with_other_ports_closes_the_old_ones(network: &Network) {
    let [other, mesh] = [1443, MESH].map(|port| network.pod.listen(port));
    network.lock_down();
    let program = sidecar();
    let ports = ["--mesh-port=1443", "--health-port=1480"];
    let output = network
        .pod
        .run(&[&[program.to_str().unwrap(), "lockdown"], &ports[..]].concat());
    assert!(output.status.success(), "{}", said(&output));
    network.assert_open(1443, &other);
    network.assert_closed(MESH);
    assert_untouched(&mesh);
}

fn a_container_without_net_admin_says_what_it_lacks(network: &Network) {
    let app = network.pod.listen(APP);
    let program = sidecar();
    for without in ["-net_admin", "-all"] {
        let drop = ["setpriv", "--bounding-set", without, "--inh-caps", "-all"];
        let output = network
            .pod
            .run(&[&drop[..], &[program.to_str().unwrap(), "lockdown"]].concat());
        let log = said(&output);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("needs user 0 and the capability NET_ADMIN"), "{log}");
    }
    // It told the truth.
    network.assert_open(APP, &app);
}

/// A gate in the pod's namespace, killed when dropped.
struct Gate(Child);

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Gate {
    /// Starts a gate with this environment and waits until it listens on its usual ports.
    fn start(pod: &Namespace, probes: &str) -> Self {
        let mut command = Command::new("ip");
        // It ends with this program, however that ends.
        command.args(["netns", "exec", pod.name(), "setpriv", "--pdeathsig", "KILL"]);
        command.arg(sidecar()).args([
            "--namespace=default",
            "--sandbox=alpha",
            "--pod-uid=u",
            "--router-identity=spiffe://cluster.local/ns/a/sa/r",
            "--tls-cert-file=/run/none",
            "--tls-key-file=/run/none",
            "--trust-bundle-file=/run/none",
            "--policy-file=/run/none",
        ]);
        command.env("SANDGATE_APP_PROBES", probes);
        let mut gate = Self(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let log = BufReader::new(gate.0.stderr.take().unwrap());
        let listening = |line: &std::io::Result<String>| line.as_ref().unwrap().contains("\"message\":\"listening\"");
        let (sender, told) = std::sync::mpsc::channel();
        // Read on to the end, so that a full pipe never stops the gate.
        std::thread::spawn(move || log.lines().filter(listening).for_each(|line| drop(sender.send(line))));
        told.recv_timeout(PATIENCE).expect("the gate does not listen").unwrap();
        gate
    }
}

fn the_gate_runs_the_probe_that_the_kubelet_cannot(network: &Network) {
    // As sandbox apps do, and as the kubelet needs it without lockdown.
    let app = network.pod.listen(APP);
    network.lock_down();
    let kinds = ["readinessProbe", "livenessProbe"];
    let _gate = Gate::start(&network.pod, &probes(&kinds));
    network.assert_closed(APP);
    assert_untouched(&app);
    app.set_nonblocking(false).unwrap();
    for (addresses, kind) in families().into_iter().zip(kinds) {
        let head = std::thread::scope(|scope| {
            let served = scope.spawn(|| serve_one(&app));
            let mut kubelet = network
                .neighbour
                .connect(SocketAddr::new(addresses.pod, HEALTH))
                .unwrap();
            let request = format!("GET /app-probe/app/{kind} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            kubelet.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            kubelet.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            served.join().unwrap()
        });
        assert!(head.starts_with(&format!("GET /{kind} HTTP/1.1\r\n")), "{head}");
    }
}

/// What the injector would tell the gate of an app with these probes.
fn probes(kinds: &[&str]) -> String {
    let probe = |kind| {
        let get = json!({"path": format!("/{kind}"), "port": APP});
        json!({"container": "app", "kind": kind, "timeoutSeconds": 5, "httpGet": get})
    };
    let probes: Vec<_> = kinds.iter().map(probe).collect();
    json!({"version": 1, "probes": probes}).to_string()
}

/// Answers one request, and returns its head.
fn serve_one(app: &TcpListener) -> String {
    let (mut stream, peer) = app.accept().unwrap();
    assert!(peer.ip().to_canonical().is_loopback(), "{peer}");
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut bytes = [0; 1024];
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0);
        request.extend_from_slice(&bytes[..read]);
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    String::from_utf8(request).unwrap()
}
