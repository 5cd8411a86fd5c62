//! A set of files as a value that changes while the process runs.
//!
//! Files are read by content, once a period. That sees every way in which files change (kubelet's symlink swap, a
//! rename, a write in place), which inotify on the file doesn't. A set that was caught half written fails to parse, or
//! parses to a mixture that the next read replaces: either way the last good value serves until the set is whole.
//!
//! Reading is done with [`std::fs`] on the runtime's own thread: a few small files from a memory-backed volume take
//! microseconds, while a thread of the blocking pool would cost an idle process more memory than everything here.

use std::fmt::Display;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// The largest file that is read, in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// Why a set of files has no value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PollError {
    /// A file doesn't exist (yet).
    #[error("{what}: {path} does not exist; check the configured path and that its volume is mounted")]
    Missing {
        /// What the files hold.
        what: &'static str,
        /// The file.
        path: String,
    },
    /// A file couldn't be read, or is none.
    #[error("{what}: cannot read {path}: {cause}")]
    Unreadable {
        /// What the files hold.
        what: &'static str,
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// A file is longer than [`MAX_FILE`].
    #[error("{what}: {path} is larger than 1 MiB, which no file of this kind is; check the configured path")]
    TooLarge {
        /// What the files hold.
        what: &'static str,
        /// The file.
        path: String,
    },
    /// The files' contents don't make a value.
    #[error("{what} ({files}): {cause}")]
    Invalid {
        /// What the files hold.
        what: &'static str,
        /// The files, comma-separated.
        files: String,
        /// What the parser said.
        cause: String,
    },
}

/// How an attempt to load changed files went. For counters such as `cert_reloads_total{outcome}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The new value is in force.
    Success,
    /// The files changed, but make no value: the previous one stays in force.
    Failure,
}

impl Reload {
    /// The label of this outcome in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
    }
}

type Parse<T> = Box<dyn Fn(Vec<Vec<u8>>) -> Result<T, String> + Send>;
type Replace<T> = Box<dyn Fn(&T, &T) -> Result<(), String> + Send>;

/// Reads a set of files again and again, and publishes what they hold.
///
/// A program that refuses to start with bad files calls [`load`](Self::load) first; one that waits for its files
/// doesn't, and finds `None` in the channel until they appear. Both spawn [`run`](Self::run), which ends when every
/// receiver is gone.
pub struct Poller<T> {
    what: &'static str,
    paths: Vec<PathBuf>,
    parse: Parse<T>,
    replace: Replace<T>,
    on_reload: Box<dyn Fn(Reload) + Send>,
    value: watch::Sender<Option<Arc<T>>>,
    hasher: RandomState,
    // A digest and not the bytes, so that no second copy of a private key stays in memory.
    seen: Option<u64>,
    /// Whether what was seen last makes a value that must not replace the one in force yet.
    held_back: bool,
}

impl<T: Send + Sync + 'static> Poller<T> {
    /// A poller for `paths`, whose contents `parse` gets in that order. Nothing is read yet. `what` names the set in
    /// logs and errors, for example `"mesh credentials"`.
    pub fn new<E: Display>(
        what: &'static str,
        paths: Vec<PathBuf>,
        parse: impl Fn(Vec<Vec<u8>>) -> Result<T, E> + Send + 'static,
    ) -> (Self, watch::Receiver<Option<Arc<T>>>) {
        let (value, receiver) = watch::channel(None);
        let poller = Self {
            what,
            paths,
            parse: Box::new(move |files| parse(files).map_err(|error| error.to_string())),
            replace: Box::new(|_, _| Ok(())),
            on_reload: Box::new(|_| {}),
            value,
            hasher: RandomState::new(),
            seen: None,
            held_back: false,
        };
        (poller, receiver)
    }

    /// Asks `may` before a value (the first) is replaced by another (the second). As long as it says why not, the first
    /// stays in force, and the same files are judged again each period: what may not serve yet may do so later.
    #[must_use]
    pub fn replace_if(mut self, may: impl Fn(&T, &T) -> Result<(), String> + Send + 'static) -> Self {
        self.replace = Box::new(may);
        self
    }

    /// Calls `hook` after each attempt that [`run`](Self::run) makes to load changed files: once per change, not once
    /// per period.
    #[must_use]
    pub fn on_reload(mut self, hook: impl Fn(Reload) + Send + 'static) -> Self {
        self.on_reload = Box::new(hook);
        self
    }

    /// Reads the files now, so that the channel holds their value before anything else starts.
    ///
    /// # Errors
    /// A file is missing, unreadable or too large, or the parser refused the set. [`run`](Self::run) doesn't report the
    /// same failure again.
    pub fn load(&mut self) -> Result<(), PollError> {
        self.refresh().map(|_changed| ())
    }

    /// Reads the files every `period` until every receiver is gone. The caller spawns and owns this.
    pub async fn run(mut self, period: Duration) {
        // interval() panics on zero.
        let mut ticks = tokio::time::interval(period.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.value.closed() => return,
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        let what = self.what;
        let in_force = self.value.borrow().is_some();
        match self.refresh() {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(what, "loaded from changed files");
                (self.on_reload)(Reload::Success);
            }
            // Files that are still to come are no failure.
            Err(error @ PollError::Missing { .. }) if !in_force => tracing::info!(what, %error, "waiting for files"),
            Err(error) => {
                let consequence = if in_force {
                    "the previous one stays in force"
                } else {
                    "none is in force yet"
                };
                tracing::warn!(what, %error, consequence, "changed files are not usable");
                (self.on_reload)(Reload::Failure);
            }
        }
    }

    /// Whether a new value was published. Contents and failures that were seen last time are not looked at again.
    fn refresh(&mut self) -> Result<bool, PollError> {
        let found = self
            .paths
            .iter()
            .map(|path| read(self.what, path))
            .collect::<Result<Vec<_>, _>>();
        let digest = self.hasher.hash_one(&found);
        let seen_before = self.seen.replace(digest) == Some(digest);
        if seen_before && !self.held_back {
            return Ok(false);
        }
        self.held_back = false;
        let value = (self.parse)(found?).map_err(|cause| self.invalid(cause))?;
        let in_force = self.value.borrow().clone();
        if let Some(Err(cause)) = in_force.map(|in_force| (self.replace)(&in_force, &value)) {
            self.held_back = true;
            return if seen_before {
                Ok(false)
            } else {
                Err(self.invalid(cause))
            };
        }
        self.value.send_replace(Some(Arc::new(value)));
        Ok(true)
    }

    fn invalid(&self, cause: String) -> PollError {
        let files: Vec<_> = self.paths.iter().map(|path| path.display().to_string()).collect();
        PollError::Invalid {
            what: self.what,
            files: files.join(", "),
            cause,
        }
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, PollError> {
    let name = || path.display().to_string();
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => PollError::Missing { what, path: name() },
        _ => PollError::Unreadable {
            what,
            path: name(),
            cause: error.to_string(),
        },
    };
    // Checked before opening: opening a FIFO would block this thread until somebody writes to it.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(PollError::Unreadable {
            what,
            path: name(),
            cause: "it is not a regular file".into(),
        });
    }
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content))
        .map_err(failed)?;
    if content.len() as u64 > MAX_FILE {
        return Err(PollError::TooLarge { what, path: name() });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory of its own, removed with it.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sandgate-polled-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    type Number = (Poller<u32>, watch::Receiver<Option<Arc<u32>>>);

    fn number(path: PathBuf) -> Number {
        Poller::new("number", vec![path], |files| {
            String::from_utf8_lossy(&files[0]).parse::<u32>()
        })
    }

    fn current(value: &watch::Receiver<Option<Arc<u32>>>) -> Option<u32> {
        value.borrow().as_deref().copied()
    }

    #[test]
    fn a_value_that_may_not_take_the_place_is_held_back_and_judged_again() {
        let dir = Dir::new("held");
        let path = dir.write("n", b"5");
        let (poller, value) = number(path.clone());
        let (open, counts) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (gate, hook) = (Arc::clone(&open), Arc::clone(&counts));
        let may = move |old: &u32, new: &u32| match gate.load(Ordering::Relaxed) {
            0 if new < old => Err(format!("{new} after {old}")),
            _ => Ok(()),
        };
        let mut poller = poller.replace_if(may).on_reload(move |outcome| {
            hook.fetch_add(u32::from(outcome == Reload::Failure), Ordering::Relaxed);
        });
        poller.tick();
        dir.write("n", b"4");
        for _ in 0..3 {
            poller.tick();
            assert_eq!((current(&value), counts.load(Ordering::Relaxed)), (Some(5), 1));
        }
        open.store(1, Ordering::Relaxed);
        poller.tick();
        assert_eq!(current(&value), Some(4));
        drop(path);
    }

    #[test]
    fn a_bad_or_missing_file_keeps_the_old_value_and_counts_once() {
        let dir = Dir::new("bad");
        let path = dir.write("n", b"1");
        let (poller, value) = number(path.clone());
        let counts = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        let hook = Arc::clone(&counts);
        let mut poller = poller.on_reload(move |outcome| {
            let count = if outcome == Reload::Success { &hook.0 } else { &hook.1 };
            count.fetch_add(1, Ordering::Relaxed);
        });
        let counted = || (counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed));
        poller.load().unwrap();
        assert_eq!(
            (current(&value), counted()),
            (Some(1), (0, 0)),
            "the first load is no reload"
        );

        dir.write("n", b"two");
        (0..3).for_each(|_| poller.tick());
        assert_eq!((current(&value), counted()), (Some(1), (0, 1)));
        std::fs::remove_file(&path).unwrap();
        (0..3).for_each(|_| poller.tick());
        assert_eq!((current(&value), counted()), (Some(1), (0, 2)));
        dir.write("n", b"2");
        (0..3).for_each(|_| poller.tick());
        assert_eq!((current(&value), counted()), (Some(2), (1, 2)));
    }

    #[test]
    fn unchanged_content_wakes_nobody() {
        let dir = Dir::new("same");
        let (mut poller, mut value) = number(dir.write("n", b"1"));
        poller.load().unwrap();
        value.mark_unchanged();
        dir.write("n", b"1");
        poller.tick();
        assert!(!value.has_changed().unwrap());
    }

    #[test]
    fn a_symlink_swap_as_kubelet_makes_it_is_seen() {
        let dir = Dir::new("swap");
        dir.write("..one/n", b"1");
        dir.write("..two/n", b"2");
        std::os::unix::fs::symlink("..one", dir.0.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/n", dir.0.join("n")).unwrap();
        let (mut poller, value) = number(dir.0.join("n"));
        poller.load().unwrap();
        std::os::unix::fs::symlink("..two", dir.0.join("..data_tmp")).unwrap();
        std::fs::rename(dir.0.join("..data_tmp"), dir.0.join("..data")).unwrap();
        poller.tick();
        assert_eq!(current(&value), Some(2));
    }

    #[test]
    fn an_initial_load_reports_what_is_wrong_with_which_file() {
        let dir = Dir::new("initial");
        let error = |path: PathBuf| number(path).0.load().unwrap_err().to_string();
        assert!(error(dir.0.join("absent")).contains("absent does not exist"));
        assert!(error(dir.write("bad", b"x")).contains("bad): invalid digit"));
        assert!(error(dir.0.clone()).contains("not a regular file"));
        let huge = vec![b'1'; usize::try_from(MAX_FILE).unwrap() + 1];
        assert!(error(dir.write("huge", &huge)).contains("huge is larger than 1 MiB"));
    }

    #[tokio::test]
    async fn a_running_poller_waits_for_its_file_and_ends_with_its_last_receiver() {
        let dir = Dir::new("run");
        let (poller, mut value) = number(dir.0.join("n"));
        let running = tokio::spawn(poller.run(Duration::from_millis(2)));
        assert!(
            tokio::time::timeout(Duration::from_millis(20), value.changed())
                .await
                .is_err()
        );
        dir.write("n", b"7");
        value.wait_for(|value| value.as_deref() == Some(&7)).await.unwrap();
        drop(value);
        tokio::time::timeout(Duration::from_secs(5), running)
            .await
            .unwrap()
            .unwrap();
    }
}
