//! What a root process in the pod tries without `CAP_NET_ADMIN` and `CAP_NET_RAW`, with all else that a container may
//! have.

use crate::Test;
use crate::network::{APP, MESH, Network, assert_untouched, said, sidecar};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto, socket_with};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

pub(crate) const TESTS: &[Test] = crate::tests![
    root_without_net_admin_cannot_replace_the_rules,
    a_user_namespace_gives_no_power_over_the_pods_network,
    root_without_net_admin_cannot_change_interfaces,
    root_without_net_raw_cannot_see_packets_before_the_rules_do,
];

/// What a container of an injected pod may hold: Pod Security's baseline without `NET_RAW`.
const CONTAINER: [&str; 5] = [
    "setpriv",
    "--bounding-set",
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+mknod,\
     +audit_write,+setfcap",
    "--inh-caps",
    "-all",
];

/// The same for a thread.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// Runs each of these in the pod as a container's root; each must fail, and the app's port must stay closed.
fn assert_futile(network: &Network, attacks: &[&[&str]]) {
    let [app, mesh] = [APP, MESH].map(|port| network.pod.listen(port));
    network.lock_down();
    for attack in attacks {
        let output = network.pod.run(&[&CONTAINER[..], attack].concat());
        assert!(!output.status.success(), "{attack:?} succeeded: {}", said(&output));
    }
    network.assert_closed(APP);
    assert_untouched(&app);
    network.assert_open(MESH, &mesh);
}

fn root_without_net_admin_cannot_replace_the_rules(network: &Network) {
    let program = sidecar();
    let open_app = [program.to_str().unwrap(), "lockdown", "--mesh-port=8888"];
    assert_futile(network, &[&open_app]);
    // With the capability it works: the attack is a real one.
    let output = network.pod.run(&open_app);
    assert!(output.status.success(), "{}", said(&output));
    let app = network.pod.listen(APP + 1);
    network.assert_closed(APP + 1);
    assert_untouched(&app);
}

fn a_user_namespace_gives_no_power_over_the_pods_network(network: &Network) {
    let program = sidecar();
    let user = ["unshare", "--user", "--map-root-user"];
    let lockdown = [program.to_str().unwrap(), "lockdown", "--mesh-port=8888"];
    let pod = network.pod.name();
    let second_wire = [
        "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", pod,
    ];
    assert_futile(
        network,
        &[
            &[&user[..], &lockdown].concat(),
            &[&user[..], &["--net"], &second_wire].concat(),
        ],
    );
    // In a network of its own it is root indeed.
    let own = [&CONTAINER[..], &user, &["--net"], &lockdown].concat();
    let output = network.pod.run(&own);
    assert!(output.status.success(), "{}", said(&output));
    network.assert_closed(APP);
}

fn root_without_net_admin_cannot_change_interfaces(network: &Network) {
    assert_futile(
        network,
        &[
            &["ip", "link", "set", "eth0", "name", "lo0"],
            &["ip", "link", "set", "lo", "down"],
            &["ip", "link", "add", "dummy0", "type", "dummy"],
            &["ip", "link", "set", "eth0", "netns", "1"],
            &["ip", "address", "add", "10.77.0.3/24", "dev", "lo"],
            &["ip", "route", "add", "local", "10.78.0.0/24", "dev", "lo"],
            &["ip", "tuntap", "add", "tap0", "mode", "tap"],
        ],
    );
}

fn root_without_net_raw_cannot_see_packets_before_the_rules_do(network: &Network) {
    let open = |family, protocol: Option<Protocol>| {
        socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).map(drop)
    };
    let sockets = [
        (AddressFamily::PACKET, None),
        (AddressFamily::INET, Some(ipproto::TCP)),
        (AddressFamily::INET6, Some(ipproto::TCP)),
    ];
    network.pod.inside(|| {
        for (family, protocol) in sockets {
            assert_eq!(open(family, protocol), Ok(()), "{family:?} with every capability");
        }
        let sets = CapabilitySets {
            effective: CAPABILITIES,
            permitted: CAPABILITIES,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets).unwrap();
        for (family, protocol) in sockets {
            assert_eq!(open(family, protocol), Err(Errno::PERM), "{family:?}");
        }
    });
}
