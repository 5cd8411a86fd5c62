//! The certificate under which the webhook is served, and its renewal.
//!
//! Either the injector's own authority issues it, or it comes from files (cert-manager, a Secret that is mounted).
//! Connections take whatever is current when they begin, and keep it.

use crate::authority::{Root, RootId, SERVING_LIFETIME, ServingName};
use crate::authority_keeper::Authority;
use crate::authority_stored::Stored;
use crate::ca_bundle::Confirmed;
use crate::metrics::Metrics;
use crate::root_changes::Leaving;
use crate::rotation::blockers::Waits;
use rustls::ServerConfig;
use sandgate_mesh::credentials::FrontCredentials;
use sandgate_mesh::polled::{PollError, Poller};
use sandgate_mesh::tls;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How often certificate files are looked at.
const POLL_PERIOD: Duration = Duration::from_secs(1);
/// The name of the certificate in metrics.
const SERVING: &str = "serving";

/// What new connections are served with; none until there is a certificate.
pub(crate) type Served = watch::Receiver<Option<Arc<Serving>>>;

/// A certificate in use.
pub(crate) struct Serving {
    pub(crate) tls: Arc<ServerConfig>,
    /// The root of the injector's own that it is under; none of one from files.
    pub(crate) under: Option<RootId>,
    not_after: SystemTime,
}

impl Serving {
    pub(crate) fn new(credentials: &FrontCredentials, under: Option<RootId>) -> Result<Self, tls::TlsError> {
        Ok(Self {
            tls: tls::webhook_server_config(credentials)?,
            under,
            not_after: credentials.validity().not_after,
        })
    }

    /// Whether API servers can believe it at `time`.
    pub(crate) fn valid_at(&self, time: SystemTime) -> bool {
        time <= self.not_after
    }
}

/// A certificate that follows its files. They must be there.
///
/// # Errors
/// They aren't, or hold no certificate with its key.
pub(crate) fn from_files(chain: PathBuf, key: PathBuf, metrics: &Arc<Metrics>) -> Result<Served, PollError> {
    let gauges = Arc::clone(metrics);
    let parse = move |files: Vec<Vec<u8>>| {
        let mut files = files.into_iter();
        let (chain, key) = (files.next().unwrap_or_default(), files.next().unwrap_or_default());
        let credentials = FrontCredentials::from_pem(&chain, &key).map_err(|error| error.to_string())?;
        gauges.expires(SERVING, credentials.validity().not_after);
        Serving::new(&credentials, None).map_err(|error| error.to_string())
    };
    let (poller, served) = Poller::new("webhook certificate", vec![chain, key], parse);
    let counters = Arc::clone(metrics);
    let mut poller = poller.on_reload(move |reload| counters.renewed(reload.as_str()));
    poller.load()?;
    tokio::spawn(poller.run(POLL_PERIOD));
    Ok(served)
}

/// When things happen. Tests choose shorter times.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long an issued certificate lives.
    pub lifetime: Duration,
    /// How often the Secret and the certificate are looked at. Often, so that a process that was paused renews soon.
    pub check: Duration,
    /// How long to wait after a failure while there is no root, or no certificate at all.
    pub retry: Duration,
    /// How long a new root must be in the webhook configurations before anything is served under it: API servers follow
    /// those with a delay.
    pub settle: Duration,
    /// How often the webhook configurations are looked at although no event came.
    pub resync: Duration,
    /// How long the replica that looks after gates may be silent before another takes over.
    pub lease: Duration,
}

impl Timing {
    /// How long it takes until every replica has read a change of the Secret: two looks of theirs.
    pub(crate) fn replicas(&self) -> Duration {
        2 * self.check
    }

    /// How long a step of the root's replacement waits for what nobody can see. Replicas are served under a root as late as API
    /// servers have followed its `caBundle`.
    pub(crate) fn waits(&self) -> Waits {
        Waits {
            replicas: self.replicas() + self.settle,
            api_servers: self.settle,
        }
    }

    /// Says when no API server needs a root any more that has left: they follow once more.
    pub(crate) fn leaving(&self) -> Leaving {
        Leaving::new(self.waits().replicas + self.settle)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lifetime: SERVING_LIFETIME,
            check: Duration::from_secs(30),
            retry: Duration::from_secs(1),
            settle: Duration::from_secs(10),
            resync: Duration::from_secs(60),
            lease: Duration::from_secs(15),
        }
    }
}

/// Issues certificates in process.
pub(crate) struct Issuer {
    pub(crate) authority: Authority,
    pub(crate) names: Vec<ServingName>,
    pub(crate) timing: Timing,
    /// Say which roots are in which webhook configuration; none where somebody else looks after those.
    pub(crate) confirmed: Vec<watch::Receiver<Confirmed>>,
    pub(crate) served: watch::Sender<Option<Arc<Serving>>>,
    pub(crate) metrics: Arc<Metrics>,
    /// What is served; none before anything is.
    pub(crate) current: Option<Current>,
}

/// What is served, as its issuer knows it.
pub(crate) struct Current {
    root: Root,
    not_after: SystemTime,
    renew_at: SystemTime,
}

impl Issuer {
    /// Looks after the certificate for ever.
    pub(crate) async fn run(mut self) {
        loop {
            self.check();
            let wait = if self.current.is_none() {
                self.timing.retry
            } else {
                self.timing.check
            };
            tokio::select! {
                Ok(()) = self.authority.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn check(&mut self) {
        let Some(stored) = self.authority.borrow_and_update().clone() else {
            return;
        };
        if self.is_due(stored.authority.root()) {
            match self.issue(&stored) {
                Ok(issued) => self.current = Some(issued),
                Err(error) => {
                    self.metrics.renewed("failure");
                    tracing::error!(%error, "can't issue the webhook's certificate");
                }
            }
        }
    }

    fn is_due(&self, root: &Root) -> bool {
        let Some(current) = &self.current else { return true };
        let now = SystemTime::now();
        if current.root == *root {
            return now >= current.renew_at;
        }
        // Served too early, the new root is one that API servers don't know; served too late, nobody is any worse off.
        let settled = |confirmed: &watch::Receiver<Confirmed>| confirmed.borrow().holds(&root.id(), self.timing.settle);
        self.confirmed.iter().all(settled) || now >= current.not_after
    }

    fn issue(&self, stored: &Stored) -> anyhow::Result<Current> {
        let issued = stored.authority.serving(&self.names, self.timing.lifetime)?;
        let credentials = FrontCredentials::from_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes())?;
        let under = Some(stored.authority.root().id());
        self.served
            .send_replace(Some(Arc::new(Serving::new(&credentials, under)?)));
        self.metrics.expires(SERVING, issued.not_after);
        self.metrics.renewed("success");
        tracing::info!(names = ?self.names, "issued the webhook's certificate");
        Ok(Current {
            root: stored.authority.root().clone(),
            not_after: issued.not_after,
            renew_at: SystemTime::now() + renewal(self.timing.lifetime, fastrand::f64()),
        })
    }
}

/// At about half of the lifetime: replicas that started together don't renew together.
fn renewal(lifetime: Duration, random: f64) -> Duration {
    lifetime.mul_f64(0.45 + 0.1 * random)
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
