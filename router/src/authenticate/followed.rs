//! Files that credentials are verified by, as they are now.

use crate::certificates::POLL_PERIOD;
use sandgate_mesh::polled::{Poller, Reload};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// What a file holds.
pub(super) type Followed<T> = watch::Receiver<Option<Arc<T>>>;

/// Reads a file, and follows it from then on. To be called inside a Tokio runtime.
///
/// # Errors
/// A file that can't be used.
pub(super) fn follow<T: Send + Sync + 'static>(
    what: &'static str,
    file: &Path,
    on_reload: impl Fn(Reload) + Send + 'static,
    parse: impl Fn(&[u8]) -> Result<T, String> + Send + 'static,
) -> anyhow::Result<Followed<T>> {
    let files = vec![file.to_owned()];
    let (poller, value) = Poller::new(what, files, move |files: Vec<Vec<u8>>| parse(&files.concat()));
    let mut poller = poller.on_reload(on_reload);
    poller.load()?;
    tokio::spawn(poller.run(POLL_PERIOD));
    Ok(value)
}
