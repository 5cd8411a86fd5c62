//! The router's certificates that follow files: its identity in the mesh, and what its HTTPS listener shows.

use crate::config::{Config, Https, MeshIdentity, NO_IDENTITY};
use crate::enrolment::EnrolmentListener;
use crate::metrics::Metrics;
use anyhow::Context;
use sandgate_mesh::credentials::{Credentials, FrontCredentials, poll_router, roots_from_pem};
use sandgate_mesh::polled::{PollError, Poller};
use sandgate_mesh::telemetry::{seconds_since_1970, utc};
use sandgate_mesh::tls::{self, FrontClients, MtlsMode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

/// How often certificate files are looked at.
pub(crate) const POLL_PERIOD: Duration = Duration::from_secs(1);

/// The HTTPS listener as it is now.
pub(crate) type FrontTls = watch::Receiver<Option<Arc<Front>>>;

/// What the HTTPS listener does in handshakes.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) config: Arc<ServerConfig>,
    /// The same ones for as long as their bundle is the same.
    pub(crate) clients: Arc<FrontClients>,
}

/// The router's own identity, and the port on which control planes bring it, if that is how it comes.
///
/// # Errors
/// None is configured, its files can't be used, or the port is taken.
pub(crate) fn mesh_identity(
    config: &Config,
    metrics: &Metrics,
) -> anyhow::Result<(Option<Credentials>, Option<EnrolmentListener>)> {
    match config.mesh_identity.clone().context(NO_IDENTITY)? {
        MeshIdentity::Files(files) => {
            let (poller, credentials) = poll_router(files, config.trust_domain.clone());
            follow(poller, metrics)?;
            Ok((Some(credentials), None))
        }
        MeshIdentity::Enrolment(enrolment) => {
            let listener = EnrolmentListener::bind(&enrolment, metrics)?;
            Ok((Some(listener.credentials()), Some(listener)))
        }
    }
}

/// What the HTTPS listener proves itself with, and whom it asks for.
///
/// # Errors
/// The files can't be used.
pub(crate) fn front_tls(https: &Https, metrics: &Metrics) -> anyhow::Result<FrontTls> {
    let mut paths = vec![https.chain.clone(), https.key.clone()];
    paths.extend(https.client_ca.clone());
    let mtls = https.mtls;
    let not_after = metrics.https_certificate_not_after()?;
    let known = Mutex::new(None);
    let parse = move |files: Vec<Vec<u8>>| -> anyhow::Result<Front> {
        let mut files = files.into_iter();
        let (chain, key) = (files.next().context("no certificate")?, files.next().context("no key")?);
        let clients = clients(files.next(), mtls, &known)?;
        let credentials = FrontCredentials::from_pem(&chain, &key)?;
        let validity = credentials.validity();
        if let Err(unfit) = validity.check(SystemTime::now()) {
            let (not_before, not_after) = (utc(validity.not_before), utc(validity.not_after));
            tracing::warn!(what = "HTTPS certificate", %unfit, %not_before, %not_after, "clients will refuse it");
        }
        let config = tls::front_server_config(&credentials, &clients)?;
        not_after.set(i64::try_from(seconds_since_1970(validity.not_after)).unwrap_or(i64::MAX));
        Ok(Front { config, clients })
    };
    let (poller, config) = Poller::new("HTTPS certificate", paths, move |files| {
        parse(files).map_err(|error| format!("{error:#}"))
    });
    follow(poller, metrics)?;
    Ok(config)
}

/// Whose certificates were taken last, and by which bundle.
struct Known {
    bundle: Option<Vec<u8>>,
    clients: Arc<FrontClients>,
}

/// Whose certificates the listener takes, by this bundle. Those that are `known` already, if it is theirs: connections look at
/// their client once more when others come.
fn clients(bundle: Option<Vec<u8>>, mtls: MtlsMode, known: &Mutex<Option<Known>>) -> anyhow::Result<Arc<FrontClients>> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = known.as_ref().filter(|known| known.bundle == bundle) {
        return Ok(Arc::clone(&known.clients));
    }
    let roots = bundle.as_deref().map(roots_from_pem).transpose()?;
    let clients = Arc::new(FrontClients::new(roots.as_ref(), mtls)?);
    *known = Some(Known {
        bundle,
        clients: Arc::clone(&clients),
    });
    Ok(clients)
}

/// Loads the files now, and follows them from then on.
fn follow<T: Send + Sync + 'static>(poller: Poller<T>, metrics: &Metrics) -> Result<(), PollError> {
    let mut poller = poller.on_reload(metrics.on_cert_reload());
    poller.load()?;
    tokio::spawn(poller.run(POLL_PERIOD));
    Ok(())
}
