//! The command that a run is for.

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Runs the command, which finds the cluster in its environment, and returns its exit code. Meanwhile `check` is asked
/// whether the cluster still runs.
pub(crate) async fn run(
    program: &OsString,
    arguments: &[OsString],
    environment: &[(&str, PathBuf)],
    mut check: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    let child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .spawn()
        .with_context(|| format!("running {}", Path::new(program).display()))?;
    let mut command = Running(child);
    let status = loop {
        match command.0.try_wait()? {
            Some(status) => break status,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        check()?;
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// A command that is asked to end when it is dropped, so that it can end what it started, and killed if it doesn't.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let give_up = Instant::now() + Duration::from_secs(5);
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        while let Ok(None) = self.0.try_wait() {
            if Instant::now() > give_up {
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::TERM);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
