//! Where a run keeps its files, and how an interactive user finds them.

use anyhow::Context;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

/// Of the folders' names; the process ID follows.
const PREFIX: &str = "sandgate-cluster-";

/// The files of one run, removed with it. Only this user may look: the administrator's key is among them.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let parent = std::env::temp_dir();
        remove_abandoned(&parent);
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("making the folder {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
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
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A link to a folder at a place that `tests/cluster/exec` knows. The newest run has it.
#[derive(Debug)]
pub(crate) struct KeptLink {
    link: PathBuf,
    target: PathBuf,
}

impl KeptLink {
    pub(crate) fn new(link: &Path, folder: &Folder) -> anyhow::Result<Self> {
        let _ = fs::remove_file(link);
        symlink(folder.path(), link).with_context(|| format!("linking {}", link.display()))?;
        Ok(Self {
            link: link.to_owned(),
            target: folder.path().to_owned(),
        })
    }
}

impl Drop for KeptLink {
    fn drop(&mut self) {
        if fs::read_link(&self.link).is_ok_and(|target| target == self.target) {
            let _ = fs::remove_file(&self.link);
        }
    }
}
