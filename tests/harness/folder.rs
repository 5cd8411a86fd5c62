//! Files that programs read while they run, and the ways in which such files are replaced.

use sandgate_local::authority::Issued;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of its own, removed when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// An empty folder.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sandgate-processes-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Where something in it is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Replaces a file as careful programs do: complete under another name, then renamed.
    pub fn rename_over(&self, name: &str, content: impl AsRef<[u8]>) {
        let new = self.path(&format!("{name}.new"));
        std::fs::create_dir_all(new.parent().unwrap()).unwrap();
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
    }

    /// Replaces all files of the folder `volume` at once, as the kubelet does: they are links into `..data`, which is a
    /// link to the folder that holds this version of them.
    pub fn swap(&self, volume: &str, files: &[(&str, &str)]) {
        static VERSION: AtomicU32 = AtomicU32::new(0);
        let version = format!("..{}", VERSION.fetch_add(1, Ordering::Relaxed));
        let volume = self.path(volume);
        std::fs::create_dir_all(volume.join(&version)).unwrap();
        for (name, content) in files {
            std::fs::write(volume.join(&version).join(name), content).unwrap();
            if !volume.join(name).is_symlink() {
                symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
            }
        }
        let old = std::fs::read_link(volume.join("..data"));
        symlink(&version, volume.join("..data_tmp")).unwrap();
        std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        if let Ok(old) = old {
            std::fs::remove_dir_all(volume.join(old)).unwrap();
        }
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How files are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacing {
    /// All at once, see [`Folder::swap`].
    AtOnce,
    /// One after the other, see [`Folder::rename_over`].
    OneByOne,
}

/// Replaces a program's certificate, key and bundle.
pub fn put(folder: &Folder, program: &str, how: Replacing, issued: &Issued, bundle: &str) {
    let files = [
        ("tls.crt", issued.chain_pem.as_str()),
        ("tls.key", &issued.key_pem),
        ("ca.crt", bundle),
    ];
    match how {
        Replacing::AtOnce => folder.swap(program, &files),
        Replacing::OneByOne => {
            for (name, content) in files {
                folder.rename_over(&format!("{program}/{name}"), content);
            }
        }
    }
}
