//! Sandboxes whose addresses are given by hand.

use sandgate_mesh::contract::MESH_PORT;
use sandgate_mesh::sandbox::{PodUid, SandboxKey};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A sandbox whose address is given by hand: `NAMESPACE/NAME=IP[:MESHPORT][,uid=UID]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticSandbox {
    /// Which sandbox.
    pub key: SandboxKey,
    /// Its address.
    pub ip: IpAddr,
    /// Its gate's port.
    pub mesh_port: u16,
    /// Its pod's UID, where only that incarnation is meant.
    pub pod_uid: Option<PodUid>,
}

impl FromStr for StaticSandbox {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{text:?}: {why}; write it like team-a/alpha=10.0.0.7:14443,uid=8f1c");
        let (key, place) = text.split_once('=').ok_or_else(|| wrong("no '='"))?;
        let (namespace, name) = key.split_once('/').ok_or_else(|| wrong("no namespace"))?;
        let (address, uid) = match place.split_once(",uid=") {
            Some((address, uid)) => (address, Some(uid)),
            None => (place, None),
        };
        let (ip, mesh_port) = match address.parse::<SocketAddr>() {
            Ok(address) => (address.ip(), address.port()),
            Err(_) => (address.parse().map_err(|_| wrong("not an IP address"))?, MESH_PORT),
        };
        Ok(Self {
            key: SandboxKey {
                namespace: namespace.parse().map_err(|_| wrong("bad namespace"))?,
                name: name.parse().map_err(|_| wrong("bad name"))?,
            },
            ip,
            mesh_port,
            pod_uid: uid.map(|uid| uid.parse().map_err(|_| wrong("bad uid"))).transpose()?,
        })
    }
}

/// What is wrong with the list: a sandbox that is in it more than once, where only the last would count.
pub(super) fn repeated(sandboxes: &[StaticSandbox]) -> Vec<String> {
    let mut times: HashMap<&SandboxKey, usize> = HashMap::new();
    let mut problems = Vec::new();
    for StaticSandbox { key, .. } in sandboxes {
        let times = times.entry(key).or_default();
        *times += 1;
        if *times == 2 {
            problems.push(format!("--sandbox-endpoint: {key} is given more than once; keep one"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_sandboxes_are_parsed() {
        let sandbox: StaticSandbox = "a/b=10.0.0.7:1,uid=u".parse().unwrap();
        assert_eq!((sandbox.mesh_port, sandbox.pod_uid.unwrap().as_str()), (1, "u"));
        assert_eq!("a/b=::1".parse::<StaticSandbox>().unwrap().mesh_port, MESH_PORT);
        for bad in [
            "",
            "a/b",
            "a=1.2.3.4",
            "a/b=host",
            "A/b=1.2.3.4",
            "a/b=1.2.3.4,uid=",
            "a/b=1.2.3.4,x=1",
        ] {
            assert!(bad.parse::<StaticSandbox>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sandbox_that_is_given_several_times_is_named_once() {
        let read = |texts: &[&str]| -> Vec<StaticSandbox> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let twice = read(&[
            "a/b=10.0.0.1",
            "a/c=10.0.0.1",
            "c/b=10.0.0.1",
            "a/b=10.0.0.2",
            "a/b=10.0.0.1",
        ]);
        let problems = repeated(&twice);
        assert_eq!(problems, ["--sandbox-endpoint: a/b is given more than once; keep one"]);
        assert!(repeated(&twice[..3]).is_empty());
    }
}
