//! The control groups of a node's pods: in one folder of this run's own, removed with it.

use anyhow::Context;
use std::fs;
use std::path::{Path, PathBuf};

/// Where every Linux mounts them.
const MOUNT: &str = "/sys/fs/cgroup";
/// Of the folders' names; the process ID follows.
const PREFIX: &str = "sandgate-";
/// What the kubelet counts and limits.
const CONTROLLERS: &str = "+cpu +cpuset +memory +pids";

/// A control group of this name in every hierarchy that the machine has.
#[derive(Debug)]
pub(crate) struct Cgroups {
    name: String,
}

impl Cgroups {
    pub(crate) fn make() -> anyhow::Result<Self> {
        remove_abandoned();
        let made = Self {
            name: format!("{PREFIX}{}", std::process::id()),
        };
        for hierarchy in hierarchies() {
            let group = hierarchy.join(&made.name);
            if hierarchy.join("cgroup.controllers").exists() {
                // Those that the machine has not delegated are missing, and the kubelet says which it can't do without.
                let _ = fs::write(hierarchy.join("cgroup.subtree_control"), CONTROLLERS);
            }
            fs::create_dir(&group).with_context(|| format!("making the control group {}", group.display()))?;
            // Version 1 makes cpusets empty, and nothing runs in an empty one.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let (Ok(all), true) = (fs::read(hierarchy.join(file)), group.join(file).exists()) {
                    fs::write(group.join(file), all).with_context(|| format!("{file} of {}", group.display()))?;
                }
            }
        }
        Ok(made)
    }

    /// Its name, as the kubelet takes it.
    pub(crate) fn root(&self) -> String {
        format!("/{}", self.name)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for hierarchy in hierarchies() {
            remove(&hierarchy.join(&self.name));
        }
    }
}

/// The mount point itself, or each folder in it where the hierarchies are separate (version 1, and hybrids of both).
fn hierarchies() -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return vec![mount.to_owned()];
    }
    let folders = fs::read_dir(mount).into_iter().flatten().flatten();
    let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

/// Control groups are removed one by one, innermost first. What doesn't go stays behind, and does no harm.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Removes what runs left behind that were killed.
fn remove_abandoned() {
    for hierarchy in hierarchies() {
        for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name
                .to_str()
                .and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
            if pid.is_some_and(|pid| pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()) {
                remove(&entry.path());
            }
        }
    }
}
