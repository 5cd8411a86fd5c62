//! What a gate or a router keeps so that its own crash needs nobody's help: the identity, and a gate's policy, that control
//! planes brought. Hides how files are written and read back: one for each thing, for its own eyes only, whole or not at all.
//!
//! The folder is memory and ends with the pod. So nothing waits for a disk, and a file that can't be read back is a fault to
//! tell of: the program goes on without it, as one that is still to be enrolled.

use super::{IdentityGrant, PolicyPush};
use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest file that is read, in bytes: the largest body of the control API, and a key.
const MAX_FILE: u64 = 2 * 1024 * 1024;
const IDENTITY: &str = "identity.json";
const POLICY: &str = "policy.json";

/// An identity with all that belongs to it, so that no part of one can be kept without the others.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct KeptIdentity {
    /// The private key, PKCS#8 in PEM.
    pub(super) key: String,
    /// What the control plane made of it.
    pub(super) grant: IdentityGrant,
}

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct State {
    folder: PathBuf,
}

impl State {
    /// The state in `folder`, which must be there.
    ///
    /// # Errors
    /// It isn't.
    pub(super) fn open(folder: PathBuf) -> anyhow::Result<Self> {
        let shown = folder.display();
        let found = std::fs::metadata(&folder).with_context(|| format!("the state folder {shown} can't be used"))?;
        anyhow::ensure!(found.is_dir(), "the state folder {shown} is not a folder");
        Ok(Self { folder })
    }

    /// The identity that was kept, if it can be used: `check` says so. Otherwise the log is told why not.
    pub(super) fn identity<T>(&self, check: impl FnOnce(KeptIdentity) -> Result<T, String>) -> Option<T> {
        self.read(IDENTITY, check)
    }

    /// The same for the policy.
    pub(super) fn policy<T>(&self, check: impl FnOnce(PolicyPush) -> Result<T, String>) -> Option<T> {
        self.read(POLICY, check)
    }

    /// Keeps an identity in place of any other.
    ///
    /// # Errors
    /// The system's. The one that was kept is still whole then.
    pub(super) fn keep_identity(&self, identity: &KeptIdentity) -> io::Result<()> {
        self.write(IDENTITY, &serde_json::to_vec(identity)?)
    }

    /// The same for a policy.
    ///
    /// # Errors
    /// The system's, likewise.
    pub(super) fn keep_policy(&self, policy: &PolicyPush) -> io::Result<()> {
        self.write(POLICY, &serde_json::to_vec(policy)?)
    }

    fn read<R: DeserializeOwned, T>(&self, name: &str, check: impl FnOnce(R) -> Result<T, String>) -> Option<T> {
        let path = self.folder.join(name);
        let content = match read_whole(&path) {
            Ok(content) => Ok(content),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        // serde_json names what it found by its place only, and so no part of a key.
        let parsed = content.and_then(|content| {
            let at = |error: serde_json::Error| format!("damaged at line {}, column {}", error.line(), error.column());
            serde_json::from_slice(&content).map_err(at)
        });
        match parsed.and_then(check) {
            Ok(found) => {
                tracing::info!(file = %path.display(), "taken up again after a restart");
                Some(found)
            }
            Err(error) => {
                let text = "what was kept can't be used, and is left aside until the control plane brings it again";
                tracing::warn!(file = %path.display(), error, "{text}");
                None
            }
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let new = self.folder.join(format!("{name}.new"));
        // A crash may have left one. It is not written into: whoever holds it open would read along.
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(content);
        drop(file);
        written
            .and_then(|()| std::fs::rename(&new, self.folder.join(name)))
            .inspect_err(|_| drop(std::fs::remove_file(&new)))
    }
}

fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(io::Error::new(ErrorKind::InvalidData, "larger than 2 MiB"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Generation;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A folder that is removed in the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("sandgate-state-{}-{number}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn kept(key: &str) -> KeptIdentity {
        KeptIdentity {
            key: key.into(),
            grant: IdentityGrant {
                pod_uid: "u1".parse().unwrap(),
                generation: Generation { epoch: 1, counter: 2 },
                chain: "chain".into(),
                bundle: "bundle".into(),
            },
        }
    }

    fn read(state: &State) -> Option<KeptIdentity> {
        state.identity(Ok)
    }

    #[test]
    fn what_is_kept_is_read_back_and_nobody_else_can_read_it() {
        let folder = Folder::new();
        let state = State::open(folder.0.clone()).unwrap();
        assert!(read(&state).is_none());
        // Left by a crash, for everybody to read.
        std::fs::write(folder.0.join("identity.json.new"), "half").unwrap();
        for key in ["first", "second"] {
            state.keep_identity(&kept(key)).unwrap();
            assert!(read(&state) == Some(kept(key)), "{key}");
            let mode = std::fs::metadata(folder.0.join(IDENTITY)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "nothing beside it");
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_what_was_kept_whole() {
        let folder = Folder::new();
        let state = State::open(folder.0.clone()).unwrap();
        state.keep_identity(&kept("first")).unwrap();
        // In the way of whoever writes, root or not.
        std::fs::create_dir_all(folder.0.join("identity.json.new/full")).unwrap();
        assert!(state.keep_identity(&kept("second")).is_err());
        assert!(read(&state) == Some(kept("first")));
    }

    #[test]
    fn a_file_that_is_damaged_or_not_ours_is_left_aside() {
        let folder = Folder::new();
        let state = State::open(folder.0.clone()).unwrap();
        state.keep_identity(&kept("key")).unwrap();
        let path = folder.0.join(IDENTITY);
        let whole = std::fs::read_to_string(&path).unwrap();
        for damaged in [
            String::new(),
            whole[..whole.len() / 2].into(),
            whole.replace("\"key\"", "\"kex\""),
            format!("{whole}{whole}"),
            whole.replace("\"key\":\"key\"", "\"key\":\"key\",\"also\":1"),
            format!("{whole}{}", " ".repeat(usize::try_from(MAX_FILE).unwrap())),
        ] {
            std::fs::write(&path, &damaged).unwrap();
            assert!(read(&state).is_none(), "{damaged}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(state.identity(|_| Err::<(), _>("another pod's".into())).is_none());
        assert!(read(&state).is_some());
    }

    #[test]
    fn the_folder_must_be_one() {
        let folder = Folder::new();
        let file = folder.0.join("file");
        std::fs::write(&file, "").unwrap();
        for bad in [folder.0.join("absent"), file] {
            let error = State::open(bad.clone()).unwrap_err().to_string();
            assert!(
                error.contains("the state folder") && error.contains(bad.to_str().unwrap()),
                "{error}"
            );
        }
    }
}
