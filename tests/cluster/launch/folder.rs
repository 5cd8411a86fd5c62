//! Where a run keeps its files, and how an interactive user finds them.

use anyhow::{Context, bail};
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

/// Of the folders' names; the process ID follows.
const PREFIX: &str = "sandgate-cluster-";

/// The files of one run, removed with it. Only this user may look: the administrator's key is among them.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Whether it goes when this is dropped.
    owned: bool,
}

impl Folder {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let parent = std::env::temp_dir();
        remove_abandoned(&parent);
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("making the folder {}", path.display()))?;
        Ok(Self { path, owned: true })
    }

    /// The folder of the process that started this one, and removes it.
    pub(crate) fn of_another(path: PathBuf) -> Self {
        Self { path, owned: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.join("kubeconfig")
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> anyhow::Result<()> {
        fs::write(self.join(name), content).with_context(|| format!("writing {name}"))
    }
}

/// Removes what runs left behind that were killed: whose process is no more, or is this one.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("{} can't be removed: {error}", self.path.display());
        }
    }
}

/// A link to a folder at a place that `tests/cluster/exec` knows. One run at a time has it.
#[derive(Debug)]
pub(crate) struct KeptLink {
    link: PathBuf,
    // Held as long as the link is ours. The kernel lets go of it when this process ends, however it ends.
    _lock: File,
}

impl KeptLink {
    pub(crate) fn new(link: &Path, folder: &Folder) -> anyhow::Result<Self> {
        let lock = link.with_extension("lock");
        let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another run keeps its cluster{}: end that one first, or run without --keep",
                fs::read_link(link).map_or(String::new(), |kept| format!(" in {}", kept.display()))
            ),
            Err(TryLockError::Error(error)) => return Err(error).context("locking the place of the kept cluster"),
        }
        // Of a run that was killed.
        let _ = fs::remove_file(link);
        symlink(folder.path(), link).with_context(|| format!("linking {}", link.display()))?;
        let link = link.to_owned();
        Ok(Self { link, _lock: lock })
    }
}

impl Drop for KeptLink {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.link);
    }
}
