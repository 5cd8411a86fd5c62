//! The addresses of a node's pods, as the network plugin `host-local` keeps them: a file for each that is taken, and one that
//! says which was given last.

use crate::install::PATIENCE;
use sandgate_cluster_tests::until_within;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Where the launcher has the plugin keep them: beside the kubeconfig, under the network's name.
fn folder() -> PathBuf {
    let kubeconfig =
        std::env::var_os("KUBECONFIG").expect("these tests need a node of their own: use tests/cluster/run");
    PathBuf::from(kubeconfig).with_file_name("addresses").join("sandgate")
}

/// Returns when no pod has this address.
pub(crate) async fn until_free(ip: &str) {
    let taken = folder().join(ip);
    until_within(PATIENCE, &format!("nobody has {ip}"), async || {
        std::fs::read_to_string(&taken).map_or(Ok(()), Err)
    })
    .await;
}

/// Has the next pod get this address, if it is free: they are given in turn, and this one's turn comes after the one before it.
pub(crate) fn give_next(ip: &str) {
    let ip: Ipv4Addr = ip.parse().unwrap();
    let before = Ipv4Addr::from(u32::from(ip) - 1);
    std::fs::write(folder().join("last_reserved_ip.0"), before.to_string()).unwrap();
}
