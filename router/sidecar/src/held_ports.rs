//! Does a gate hold its ports? It says so by a lock on a file in its state folder, for whom the kubelet runs beside it: as
//! long as that one waits, the pod's next container isn't started.
//!
//! A socket that listens on the ports would say less: it may be an app's, under any user number that an app can take. The
//! folder is in the gate's container only, and a lock ends with its process, so none is left of a gate that crashed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILE: &str = "ports.lock";
/// How often it is looked at. A pod's start waits for it.
const INTERVAL: Duration = Duration::from_millis(5);

/// Says that the ports are held, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct HeldPorts {
    _lock: File,
}

impl HeldPorts {
    /// To be called while the ports are bound.
    ///
    /// # Errors
    /// The system's.
    pub fn say(folder: &Path) -> io::Result<Self> {
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(FILE))?;
        // Who looks has it for a moment.
        lock.lock()?;
        Ok(Self { _lock: lock })
    }
}

/// Why nothing is known of a gate that holds its ports.
#[derive(Debug, thiserror::Error)]
pub enum NotHeld {
    /// None has said so in time.
    #[error(
        "no gate with the state folder {} has bound its ports within {waited:?}; the log of the container says what keeps it",
        folder.display()
    )]
    Overdue {
        /// Where it would have.
        folder: PathBuf,
        /// How long that was waited for.
        waited: Duration,
    },
    /// It can't be found out.
    #[error("the state folder {} can't be used: {error}", folder.display())]
    Unknown {
        /// Which.
        folder: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// Returns as soon as the gate with this state folder holds its ports.
///
/// # Errors
/// See [`NotHeld`]; none does after `timeout`.
pub fn wait(folder: &Path, timeout: Duration) -> Result<(), NotHeld> {
    let since = Instant::now();
    loop {
        match held(folder) {
            Ok(true) => return Ok(()),
            Ok(false) if since.elapsed() < timeout => std::thread::sleep(INTERVAL),
            Ok(false) => {
                return Err(NotHeld::Overdue {
                    folder: folder.to_owned(),
                    waited: timeout,
                });
            }
            Err(error) => {
                return Err(NotHeld::Unknown {
                    folder: folder.to_owned(),
                    error,
                });
            }
        }
    }
}

fn held(folder: &Path) -> io::Result<bool> {
    let file = match File::open(folder.join(FILE)) {
        Ok(file) => file,
        // The gate makes it. The folder is there before any container is.
        Err(error) if error.kind() == ErrorKind::NotFound && folder.is_dir() => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    const NOW: Duration = Duration::ZERO;
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A folder that is removed in the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("sandgate-ports-{}-{number}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn overdue(folder: &Folder) -> bool {
        matches!(wait(&folder.0, NOW), Err(NotHeld::Overdue { .. }))
    }

    #[test]
    fn whoever_waits_goes_on_when_the_gate_says_so() {
        let folder = Folder::new();
        let path = folder.0.clone();
        let waiting = std::thread::spawn(move || wait(&path, PATIENCE));
        let held = HeldPorts::say(&folder.0).unwrap();
        waiting.join().unwrap().unwrap();
        // And whoever asks afterwards, as often as he likes.
        for _ in 0..3 {
            wait(&folder.0, NOW).unwrap();
        }
        let mode = std::fs::metadata(folder.0.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(held);
    }

    #[test]
    fn a_gate_that_is_gone_holds_nothing_and_the_next_one_does() {
        let folder = Folder::new();
        assert!(overdue(&folder));
        for _ in 0..2 {
            let held = HeldPorts::say(&folder.0).unwrap();
            wait(&folder.0, NOW).unwrap();
            drop(held);
            // The file is there still.
            assert!(folder.0.join(FILE).exists() && overdue(&folder));
        }
    }

    #[test]
    fn what_is_no_folder_is_told_at_once() {
        let folder = Folder::new();
        let file = folder.0.join("file");
        std::fs::write(&file, "").unwrap();
        for bad in [folder.0.join("absent"), file] {
            let error = wait(&bad, PATIENCE).unwrap_err();
            assert!(matches!(error, NotHeld::Unknown { .. }), "{error}");
            assert!(error.to_string().contains(bad.to_str().unwrap()), "{error}");
        }
    }
}
