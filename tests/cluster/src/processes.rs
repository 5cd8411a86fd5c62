//! Processes of this machine: on a node those of its pods too, as `tests/cluster/run node` has tests in the same process
//! namespace.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;

/// The processes of a program of this name.
pub fn named(name: &str) -> Vec<Pid> {
    let is_named = |pid: &Pid| {
        let told = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        // The kernel keeps fifteen bytes.
        told.is_ok_and(|told| told.trim_end() == &name[..name.len().min(15)])
    };
    all().into_iter().filter(is_named).collect()
}

/// The processes of a program of this name in a pod.
pub fn of_pod(name: &str, uid: &str) -> Vec<Pid> {
    let group = format!("pod{uid}");
    let is_of_pod = |pid: &Pid| {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
        groups.is_ok_and(|groups| groups.contains(&group))
    };
    named(name).into_iter().filter(is_of_pod).collect()
}

/// A program that is held still, as if its machine had stopped. It goes on when this is dropped.
pub struct HeldStill(Pid);

impl HeldStill {
    /// Holds the one process of a program of this name.
    pub fn new(name: &str) -> Self {
        let found = named(name);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        kill_process(found[0], Signal::STOP).unwrap();
        Self(found[0])
    }
}

impl Drop for HeldStill {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn all() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(Pid::from_raw).collect()
}
