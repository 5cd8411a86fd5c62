//! What a process of a sandbox tries on the process whose ID it is given. A line for each way, `WAY denied` or `WAY got`; of
//! what doesn't exist there is none.
//!
//! The kernel asks the same question for `/proc/…/mem`, for another process's descriptors (`pidfd_getfd`) and for `ptrace`,
//! and a weaker one for the other files.

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::fs::{File, read_dir, read_link};
use std::io::{self, ErrorKind, Read, Write};

/// Descriptors that are tried.
const DESCRIPTORS: i32 = 64;

fn main() -> io::Result<()> {
    let pid = std::env::args().nth(1).unwrap_or_default();
    let there = |name: &str| format!("/proc/{pid}/{name}");
    // Its contents are somewhere in a space of 64 bits: whoever may open it may read them.
    say("mem", File::open(there("mem")).map(drop))?;
    for name in ["environ", "maps", "smaps", "auxv"] {
        let read = File::open(there(name)).and_then(|mut file| file.read(&mut [0]));
        say(name, read.map(drop))?;
    }
    for name in ["exe", "cwd", "root"] {
        say(name, read_link(there(name)).map(drop))?;
    }
    say("files below its root", read_dir(there("root/")).map(drop))?;
    for descriptor in 0..DESCRIPTORS {
        let path = there(&format!("fd/{descriptor}"));
        say("descriptor by its name", File::open(&path).map(drop))?;
        say("descriptor's name", read_link(&path).map(drop))?;
    }
    if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
        let process = pidfd_open(pid, PidfdFlags::empty());
        for descriptor in 0..DESCRIPTORS {
            let taken = process
                .as_ref()
                .map_err(|error| *error)
                .and_then(|process| pidfd_getfd(process, descriptor, PidfdGetfdFlags::empty()));
            say("descriptor", taken.map(drop).map_err(io::Error::from))?;
        }
    }
    Ok(())
}

fn say(way: &str, result: io::Result<()>) -> io::Result<()> {
    let outcome = match result {
        Ok(()) => "got",
        Err(error) if error.kind() == ErrorKind::PermissionDenied => "denied",
        // No such descriptor, or a kernel that can't.
        Err(_) => return Ok(()),
    };
    io::stdout().write_all(format!("{way} {outcome}\n").as_bytes())
}
