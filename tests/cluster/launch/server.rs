//! One program of a cluster as a process: how it is started, where its log is, and that it ends.

use crate::folder::Folder;
use anyhow::{Context, bail};
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How much of a log is shown of a program that has ended.
const LAST_LINES: usize = 20;

/// A process in the run's folder, with its log there. Dropping it ends it.
pub(crate) struct Server {
    name: &'static str,
    command: Command,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a program. A signal to the terminal's process group doesn't reach it, and it ends when this process does,
    /// even when that can't clean up.
    pub(crate) fn start(folder: &Folder, name: &'static str, program: &Path, flags: &[String]) -> anyhow::Result<Self> {
        Self::start_with_path(folder, name, program, flags, std::env::var_os("PATH"))
    }

    /// The same for a program that looks for others, in these folders.
    pub(crate) fn start_with_path(
        folder: &Folder,
        name: &'static str,
        program: &Path,
        flags: &[String],
        path: Option<OsString>,
    ) -> anyhow::Result<Self> {
        let program = program.canonicalize();
        let program = program.with_context(|| format!("{name} isn't there"))?;
        let log = folder.join(&format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("making {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command
            .args([OsStr::new("--pdeathsig=KILL"), OsStr::new("--"), program.as_os_str()])
            .args(flags)
            .current_dir(folder.path())
            // No proxy, no configuration of the user's.
            .env_clear()
            .env("PATH", path.unwrap_or_default())
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let child = spawn(&mut command)?;
        Ok(Self {
            name,
            command,
            child,
            log,
        })
    }

    /// Fails when it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} has ended ({status}); the end of its log:\n{}",
                self.name,
                self.log_tail(LAST_LINES)
            ),
        }
    }

    /// Starts it again if it has ended, as a system's manager of services does.
    pub(crate) fn revive(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            self.child = spawn(&mut self.command)?;
        }
        Ok(())
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The last lines of its log.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut tail: Vec<_> = text.lines().rev().take(lines).collect();
        tail.reverse();
        tail.join("\n")
    }
}

fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    let child = command.spawn();
    child.context("running setpriv (Debian's package util-linux has it)")
}

impl Drop for Server {
    fn drop(&mut self) {
        // At once: nothing that it holds is kept.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
