//! The files in which somebody else gives the injector its authority. Every replica reads them; the leader has the authority's
//! Secret take them over, as a replacement of the root. What signs is always what stands in the Secret.

use crate::authority::{ExternalAuthority, ExternalError};
use crate::config::serve::AuthorityFiles;
use crate::metrics::Metrics;
use sandgate_mesh::identity::WorkloadIdentity;
use sandgate_mesh::polled::{Poller, Reload};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How often the files are looked at.
const POLL_PERIOD: Duration = Duration::from_secs(1);
/// The name of what is in them in metrics: of its end, and of failures.
pub(crate) const NAME: &str = "authority_files";

/// What the files hold; none before they hold an authority that can be used.
pub(crate) type External = watch::Receiver<Option<Arc<ExternalAuthority>>>;

/// Follows the files. What they hold now is known when this returns; files that are bad, or still to come, are told and no
/// error: the root that is in the Secret goes on serving.
pub(crate) fn follow(files: AuthorityFiles, own: WorkloadIdentity, metrics: &Arc<Metrics>) -> External {
    let gauges = Arc::clone(metrics);
    let parse = move |files: Vec<Vec<u8>>| {
        let mut files = files.into_iter();
        let (chain, key) = (files.next().unwrap_or_default(), files.next().unwrap_or_default());
        let found = ExternalAuthority::from_pem(&chain, &key, &own, SystemTime::now())?;
        gauges.expires(NAME, found.root().not_after());
        Ok::<_, ExternalError>(found)
    };
    let (poller, external) = Poller::new("authority", vec![files.certificate, files.key], parse);
    let counters = Arc::clone(metrics);
    let mut poller = poller.on_reload(move |reload| {
        if reload == Reload::Failure {
            counters.failed(NAME);
        }
    });
    if let Err(error) = poller.load() {
        metrics.failed(NAME);
        let next = "a root that is in the Secret goes on serving; without one no pod is admitted";
        tracing::error!(%error, next, "the authority in the files can't be used");
    }
    tokio::spawn(poller.run(POLL_PERIOD));
    external
}
