//! A machine of a node's own: this program a second time, in namespaces for network, mounts and processes, and with control
//! groups of its own. When it ends, all that was started in it ends with it, and nothing is left on the real machine.

use crate::cgroups::Cgroups;
use crate::folder::Folder;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Where the process ID of the machine's first process is, for whoever wants to enter.
const PID_FILE: &str = "machine.pid";
/// How long the machine has to end before it is switched off.
const SHUTDOWN: Duration = Duration::from_secs(15);
/// So often is looked whether it has started, or ended.
const INTERVAL: Duration = Duration::from_millis(20);
/// What programs of a node write at fixed places stays in the machine: these are empty there, whatever the real ones hold.
const OWN_PLACES: [&str; 4] = ["/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet"];
/// What containers are made of is in memory: on a disk the files of a whole system take long to come and to go.
const IMAGES: &str = "containerd";
/// Makes them so, and becomes the command.
const BEGIN: &str =
    "for place in $OWN_PLACES; do mkdir -p \"$place\"; mount -t tmpfs sandgate \"$place\"; done; exec \"$@\"";

/// A running machine. Dropping it shuts it down.
pub(crate) struct Machine {
    unshare: Child,
    first: Pid,
    // After the processes in them.
    _cgroups: Cgroups,
}

impl Machine {
    /// Starts this program with the same arguments in a machine that has this folder.
    pub(crate) fn start(folder: &Folder) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("a node needs root: it mounts file systems and makes network interfaces, in namespaces of its own");
        }
        let cgroups = Cgroups::make()?;
        let images = folder.join(IMAGES);
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig=KILL",
                "--",
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--fork",
            ])
            .args(["--kill-child=KILL", "--mount-proc", "--propagation", "private", "--"])
            .args(["sh", "-euc", BEGIN, "sh"])
            .arg(std::env::current_exe()?)
            .arg("--inside")
            .arg(folder.path())
            .arg(format!("--cgroup={}", cgroups.root()))
            .args(std::env::args_os().skip(1))
            .env("OWN_PLACES", format!("{} {}", OWN_PLACES.join(" "), images.display()));
        let mut unshare = command
            .spawn()
            .context("running setpriv and unshare (Debian's package util-linux has them)")?;
        let first = first_process(&mut unshare)?;
        folder.write(PID_FILE, &first.as_raw_nonzero().to_string())?;
        Ok(Self {
            unshare,
            first,
            _cgroups: cgroups,
        })
    }

    /// Waits until it ends; its exit code.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<u8> {
        loop {
            if let Some(status) = self.unshare.try_wait()? {
                let code = status.code().or(status.signal().map(|signal| 128 + signal));
                return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// The first process of the machine, as the real machine knows it: the only child of `unshare`.
fn first_process(unshare: &mut Child) -> anyhow::Result<Pid> {
    let id = unshare.id();
    loop {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let child = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        if let Some(pid) = child.and_then(Pid::from_raw) {
            return Ok(pid);
        }
        if let Some(status) = unshare.try_wait()? {
            bail!("the node's namespaces can't be made ({status})");
        }
        std::thread::sleep(INTERVAL);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shut_down();
        // Those that had to be made are empty, and only empty ones go.
        for place in OWN_PLACES.iter().filter(|place| place.starts_with("/var/lib/")) {
            let _ = fs::remove_dir(place);
        }
    }
}

impl Machine {
    fn shut_down(&mut self) {
        if let Ok(None) = self.unshare.try_wait() {
            // Its first process ends its command in good order. `unshare` itself holds signals off.
            let _ = kill_process(self.first, Signal::TERM);
        }
        let give_up = Instant::now() + SHUTDOWN;
        while let Ok(None) = self.unshare.try_wait() {
            if Instant::now() > give_up {
                // The kernel kills all others with it, and `unshare` ends when they are gone.
                let _ = kill_process(self.first, Signal::KILL);
                let _ = self.unshare.wait();
                return;
            }
            std::thread::sleep(INTERVAL);
        }
    }
}
