//! Processes of this machine: on a node those of its pods too, as `tests/cluster/run node` has tests in the same process
//! namespace.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;

/// The processes of a program of this name.
pub fn named(name: &str) -> Vec<Pid> {
    let is_named = |pid: &Pid| {
        let told = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        // The kernel keeps fifteen bytes.
        told.is_ok_and(|told| told.trim_end() == &name[..name.len().min(15)]) && !has_ended(*pid)
    };
    all().into_iter().filter(is_named).collect()
}

/// The processes of a program of this name in a pod.
pub fn of_pod(name: &str, uid: &str) -> Vec<Pid> {
    let group = format!("pod{uid}");
    named(name)
        .into_iter()
        .filter(|pid| is_in_group(*pid, &group))
        .collect()
}

/// Every process of every pod.
pub fn in_pods() -> Vec<Pid> {
    all()
        .into_iter()
        .filter(|pid| is_in_group(*pid, "/kubepods/"))
        .collect()
}

/// Whether a process that hasn't ended is in a control group whose path holds this.
fn is_in_group(pid: Pid, group: &str) -> bool {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
    groups.is_ok_and(|groups| groups.contains(group)) && !has_ended(pid)
}

/// Whether it has, and nobody has asked yet how.
fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The second field is the program's name in parentheses and may hold anything.
    stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('Z'))
}

/// A program that is held still, as if its machine had stopped. It goes on when this is dropped.
pub struct HeldStill(Pid);

impl HeldStill {
    /// Holds the one process of a program of this name.
    pub fn new(name: &str) -> Self {
        let found = named(name);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        Self::process(found[0])
    }

    /// Holds this process.
    pub fn process(process: Pid) -> Self {
        kill_process(process, Signal::STOP).unwrap();
        Self(process)
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
