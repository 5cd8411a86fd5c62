//! The demo app's temporary folder and the names inside it.

use std::fs::DirBuilder;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use percent_encoding::percent_decode_str;
use tokio::fs;

use super::answer::Refusal;

/// Bytes one folder takes in during its life, everything counted in blocks; replaced files count again.
const CAPACITY: u64 = 256 << 20;
/// What the smallest file or folder costs on disk, in bytes.
const BLOCK: u64 = 4 << 10;
/// Nested folders in one name.
const MAX_DEPTH: usize = 32;

/// A private temporary folder, removed with everything in it when dropped.
///
/// Nobody but this user can look inside (mode 0700), and its name can't be guessed.
#[derive(Debug)]
pub struct DemoFolder {
    root: PathBuf,
    taken: AtomicU64,
    uploads: AtomicU64,
}

impl DemoFolder {
    /// Makes an empty folder in the system's folder for temporary files.
    ///
    /// # Errors
    /// When that folder can't be written.
    pub fn create() -> io::Result<Self> {
        let root = std::env::temp_dir().join(format!("sandgate-demo-{:016x}{:016x}", random(), random()));
        // Fails when the name exists, also as a symbolic link: nobody can prepare the folder for us.
        DirBuilder::new().mode(0o700).create(&root)?;
        let folder = Self {
            root,
            taken: AtomicU64::new(0),
            uploads: AtomicU64::new(0),
        };
        std::fs::create_dir(folder.files())?;
        std::fs::create_dir(folder.incoming())?;
        Ok(folder)
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// What callers see.
    fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    /// Uploads on their way in: on the same disk as the files, and out of their callers' sight.
    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// A fresh place for an upload.
    pub(super) fn incoming_file(&self) -> Incoming<'_> {
        let name = self.uploads.fetch_add(1, Ordering::Relaxed).to_string();
        Incoming {
            folder: self,
            path: self.incoming().join(name),
            taken: 0,
        }
    }

    /// Reserves `bytes` of the folder's capacity.
    fn take(&self, bytes: u64) -> Result<(), Refusal> {
        let taken = self.taken.fetch_add(bytes, Ordering::Relaxed);
        if taken.saturating_add(bytes) > CAPACITY {
            self.taken.fetch_sub(bytes, Ordering::Relaxed);
            let detail = "the demo app's folder has taken in its 256 MiB; restart sandgate-local to empty it";
            return Err(Refusal::new(StatusCode::INSUFFICIENT_STORAGE, detail));
        }
        Ok(())
    }

    /// Resolves `name` inside the folder. The path need not exist.
    ///
    /// The folder is the caller's root: a leading `/` changes nothing. Names with `..` or through a symbolic link are
    /// refused. Checking each step is enough, since nobody but this user can change what lies between two steps.
    pub(super) async fn resolve(&self, name: &str) -> Result<PathBuf, Refusal> {
        let mut path = self.files();
        for part in parts(name)? {
            path.push(part);
            match fs::symlink_metadata(&path).await {
                Ok(found) if found.is_symlink() => {
                    return Err(Refusal::new(
                        StatusCode::FORBIDDEN,
                        "this path leads through a symbolic link",
                    ));
                }
                Err(error) if !is_absent(&error) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(path)
    }

    /// Moves a finished upload to `name`, making the folders above it. An existing file is replaced at once.
    pub(super) async fn keep(&self, mut incoming: Incoming<'_>, name: &str) -> Result<(), Refusal> {
        if parts(name)?.is_empty() {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "the upload names no file"));
        }
        let path = self.resolve(name).await?;
        self.take(BLOCK.saturating_mul(parts(name)?.len() as u64))?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).await.map_err(|error| match error.kind() {
                io::ErrorKind::NotADirectory => io::ErrorKind::AlreadyExists.into(),
                _ => error,
            })?;
        }
        fs::rename(&incoming.path, &path).await?;
        incoming.taken = 0;
        Ok(())
    }
}

impl Drop for DemoFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.root) {
            tracing::warn!(folder = %self.root.display(), %error, "the demo app's folder could not be removed");
        }
    }
}

/// A file being uploaded. Unless it was kept, it is removed when dropped, and takes nothing of the folder's capacity any more.
pub(super) struct Incoming<'a> {
    folder: &'a DemoFolder,
    path: PathBuf,
    taken: u64,
}

impl Incoming<'_> {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reserves `bytes` more of the folder's capacity for it.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.folder.take(bytes)?;
        self.taken = self.taken.saturating_add(bytes);
        Ok(())
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        // Gone already when it was kept; anything else goes with the folder.
        let _ = std::fs::remove_file(&self.path);
        self.folder.taken.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

/// Decodes a file name as it stands in a request path, `%2F` included.
///
/// # Errors
/// When the result isn't UTF-8.
pub(super) fn decode(encoded: &str) -> Result<String, Refusal> {
    match percent_decode_str(encoded).decode_utf8() {
        Ok(name) => Ok(name.into_owned()),
        Err(_) => Err(Refusal::new(StatusCode::BAD_REQUEST, "the file name isn't UTF-8")),
    }
}

/// The steps of `name` below the folder; none for the folder itself.
fn parts(name: &str) -> Result<Vec<&str>, Refusal> {
    if name.chars().any(char::is_control) {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "the file name holds a control character",
        ));
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "the path leads out of the folder"));
    }
    if parts.len() > MAX_DEPTH {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "the path is nested too deep"));
    }
    Ok(parts)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A number nobody else can know: the standard library keys its hasher from the operating system's random source.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
