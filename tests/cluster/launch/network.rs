//! The network of a node: a bridge that pods are plugged into, in the network namespace that this process is in.

use anyhow::{Context, bail};
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

/// The bridge.
pub(crate) const BRIDGE: &str = "sg0";
/// The node's address, which is the pods' gateway.
pub(crate) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Where pods' addresses are from.
pub(crate) const POD_NETWORK: &str = "10.244.0.0/24";

/// What a pod's way to another and to a Service needs of the kernel.
const SETTINGS: &[&str] = &[
    "net/ipv4/ip_forward",
    // kube-proxy's and kube-router's rules must see what goes from pod to pod.
    "net/bridge/bridge-nf-call-iptables",
];

/// Makes it. Must run in a namespace of its own: a machine's own network is nobody's to change.
pub(crate) fn make() -> anyhow::Result<()> {
    if fs::exists(format!("/sys/class/net/{BRIDGE}"))? || has_default_route()? {
        bail!("this network namespace is in use, so the node's network isn't made in it");
    }
    let node = format!("{NODE_ADDRESS}/24");
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["address", "add", &node, "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    // Services' addresses are on no network: kube-proxy's rules see a packet only if it has a way to go.
    ip(&["route", "add", "default", "dev", BRIDGE])?;
    for setting in SETTINGS {
        let file = format!("/proc/sys/{setting}");
        fs::write(&file, "1").with_context(|| format!("{file} can't be set: the kernel lacks what a node needs"))?;
    }
    Ok(())
}

/// The kernel lists routes of this process's network namespace there; the default one leads to 0.0.0.0.
fn has_default_route() -> anyhow::Result<bool> {
    let routes = fs::read_to_string("/proc/self/net/route").context("reading the routes")?;
    Ok(routes.lines().any(|route| route.split('\t').nth(1) == Some("00000000")))
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let done = Command::new("ip").args(arguments).output();
    let done = done.context("running ip (Debian's package iproute2 has it)")?;
    if !done.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(())
}
