//! A node that is started again, as after a loss of power, as far as one can be that shares its kernel with others: all of its
//! pods' processes end at once, and all that it keeps in memory is gone. The kernel's firewall stays, and so do the programs
//! that are no part of a node.

use rustix::process::{Signal, kill_process};
use sandgate_cluster_tests::processes::{HeldStill, in_pods, named};
use sandgate_cluster_tests::until;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What starts pods and containers.
const RUNTIME: &str = "containerd";
/// What is between it and a container's processes.
const SHIM: &str = "containerd-shim-runc-v2";

/// Starts it again; returns when its kubelet and its container runtime are others. Pods come back when those have seen what is
/// there.
pub(crate) async fn start_again() {
    let (kubelet, runtime) = (HeldStill::new("kubelet"), HeldStill::new(RUNTIME));
    let before = [named("kubelet"), named(RUNTIME)];
    // Nobody is left who would start or clean up anything.
    until("no process of a pod is left", async || {
        let left: Vec<_> = named(SHIM).into_iter().chain(in_pods()).collect();
        for process in &left {
            let _ = kill_process(*process, Signal::KILL);
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    forget();
    for process in before.iter().flatten() {
        kill_process(*process, Signal::KILL).unwrap();
    }
    drop((kubelet, runtime));
    until("there are another kubelet and another runtime", async || {
        let now = [named("kubelet"), named(RUNTIME)];
        let is_new = |(now, before): (&Vec<_>, &Vec<_>)| now.len() == 1 && now != before;
        if now.iter().zip(&before).all(is_new) {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
}

/// The run's folder, in which all of a node is.
fn folder() -> PathBuf {
    let kubeconfig =
        std::env::var_os("KUBECONFIG").expect("these tests need a node of their own: use tests/cluster/run");
    PathBuf::from(kubeconfig).parent().unwrap().to_owned()
}

/// What a node has in memory: pods' memory-backed volumes, the network namespaces of pods, what the runtime knows of what runs.
fn forget() {
    let folder = folder();
    let state = folder.join("containerd-state");
    let places = [folder.join("kubelet/pods"), state.clone(), "/run/netns".into()];
    let gone = mounts().into_iter().rev().filter(|mount| is_in(mount, &places));
    let mut count = 0;
    for mount in gone {
        let done = Command::new("umount").arg(&mount).output().unwrap();
        let told = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{}: {told}", mount.display());
        count += 1;
    }
    assert!(count > 0, "nothing was mounted for pods");
    fs::remove_dir_all(state).unwrap();
}

fn is_in(mount: &Path, places: &[PathBuf]) -> bool {
    places.iter().any(|place| mount.starts_with(place) && mount != place)
}

/// Where something is mounted, in the order in which it was.
fn mounts() -> Vec<PathBuf> {
    let told = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = told.lines().filter_map(|line| line.split(' ').nth(4));
    places.map(PathBuf::from).collect()
}
