//! Sends a request to its target over a kept or a new connection. Hides retries: only connections are retried, never a
//! request of which a byte was sent.

use crate::breaker::{Breakers, Dial, Dialed, TakenForGone};
use crate::config::Config;
use crate::error::RouterError;
use crate::metrics::{Metrics, Reason};
use crate::resolve::{Resolver, Unresolved};
use crate::routing::Route;
use crate::target::Target;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use sandgate_mesh::body::Upload;
use sandgate_mesh::contract::CONNECT_TIMEOUT;
use sandgate_mesh::credentials::{Credentials, MeshCredentials, Unfit};
use sandgate_mesh::exchange::{ExchangeError, Upstream};
use sandgate_mesh::framing::Limits;
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::identity::ExpectedSandbox;
use sandgate_mesh::pool::{Lease, Pool, PoolLimits};
use sandgate_mesh::standing::fit;
use sandgate_mesh::telemetry::chain;
use sandgate_mesh::tls::{self, HandshakeError};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// What log lines are filtered by that say why a request has no answer from its sandbox.
pub(crate) const UNANSWERED: &str = "sandbox_router::unanswered";

/// Idle connections that one worker keeps in all.
const IDLE_TOTAL: usize = 4096;
/// How long they are kept.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// One worker's way to the sandboxes.
#[derive(Debug)]
pub(crate) struct Forwarder {
    pool: Arc<Pool<Arc<Target>>>,
    framing: Arc<Limits>,
    credentials: Option<Credentials>,
    /// Those that kept connections were opened with.
    opened_with: Mutex<Option<Arc<MeshCredentials>>>,
    metrics: Arc<Metrics>,
    retries: u32,
    initial_delay: Duration,
    max_delay: Duration,
    head_timeout: Option<Duration>,
    /// Of all workers; `None` where every request dials.
    breakers: Option<Arc<Breakers>>,
}

/// How long an address is dialed of which only the client says that a pod is there. One that is there takes milliseconds, and
/// there is time for a packet to be lost once: it is sent again after a second.
const HEARSAY_TIMEOUT: Duration = Duration::from_millis(1500);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Connect(io::Error),
    #[error("timed out")]
    TimedOut,
    #[error("the request's own time was over")]
    OutOfTime,
    #[error("{0}")]
    Handshake(HandshakeError),
    #[error("the router has no mesh identity that is valid now: {0}")]
    NoIdentity(Unfit),
    #[error("nobody was there a moment ago, again and again")]
    TakenForGone,
}

impl DialError {
    /// Whether there is no host at that address any more. One that refuses is there, and how long a client waits says nothing
    /// about it.
    fn says_gone(&self) -> bool {
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        match self {
            Self::TimedOut => true,
            Self::Connect(error) => matches!(error.kind(), HostUnreachable | NetworkUnreachable | TimedOut),
            Self::OutOfTime | Self::Handshake(_) | Self::NoIdentity(_) | Self::TakenForGone => false,
        }
    }

    /// Whether another address may do better.
    fn is_nobody(&self) -> bool {
        self.says_gone() || matches!(self, Self::TakenForGone)
    }

    /// What it says of the host.
    fn found(&self) -> Dialed {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset};
        match self {
            _ if self.says_gone() => Dialed::Nobody,
            Self::Handshake(_) => Dialed::Somebody,
            Self::Connect(error) if matches!(error.kind(), ConnectionRefused | ConnectionReset) => Dialed::Somebody,
            // No more files or ports, no identity: that says something about the router.
            _ => Dialed::Unknown,
        }
    }
}

/// A request as what is logged of it names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Errand<'a> {
    pub(crate) route: &'a Route,
    pub(crate) request_id: Option<&'a HeaderValue>,
    /// The version of HTTP in which it travels.
    pub(crate) over: HttpVersion,
}

impl Errand<'_> {
    pub(crate) fn id(&self) -> &str {
        id_text(self.request_id)
    }
}

/// A request's ID, which is short and of few characters, or was made here.
pub(crate) fn id_text(request_id: Option<&HeaderValue>) -> &str {
    request_id.and_then(|id| id.to_str().ok()).unwrap_or_default()
}

impl Forwarder {
    pub(crate) fn new(
        config: &Config,
        framing: &Arc<Limits>,
        credentials: Option<Credentials>,
        metrics: &Arc<Metrics>,
        breakers: Option<Arc<Breakers>>,
    ) -> Self {
        let limits = PoolLimits {
            per_key: config.keepalive.div_ceil(config.workers),
            total: IDLE_TOTAL,
            idle_time: IDLE_TIME,
        };
        let opened_with = credentials.as_ref().and_then(|current| current.borrow().clone());
        Self {
            pool: Pool::new(limits),
            framing: Arc::clone(framing),
            opened_with: Mutex::new(opened_with),
            credentials,
            metrics: Arc::clone(metrics),
            retries: config.retries,
            initial_delay: config.retry_initial_delay,
            max_delay: config.retry_max_delay,
            head_timeout: config.response_header_timeout,
            breakers,
        }
    }

    /// Closes connections that lay idle for too long, and those that were opened with credentials that have been replaced:
    /// no connection is used for longer than the roots it was opened with, nor for longer than either end's leaf.
    pub(crate) fn sweep(&self) {
        let current = self.credentials.as_ref().and_then(|current| current.borrow().clone());
        let mut opened_with = self.opened_with.lock().unwrap_or_else(PoisonError::into_inner);
        let same = match (opened_with.as_ref(), current.as_ref()) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        if !same {
            *opened_with = current;
            self.pool.renew();
        }
        drop(opened_with);
        self.pool.sweep();
        if let Some(breakers) = &self.breakers {
            breakers.sweep();
        }
    }

    /// Whom gates see in this router, for the log.
    pub(crate) fn identity(&self) -> String {
        let current = self.credentials.as_ref().and_then(|current| current.borrow().clone());
        current.map_or_else(|| "none".into(), |current| current.identity().to_string())
    }

    /// Sends the `request` of `errand` and waits for its response head, within `budget`.
    pub(crate) async fn forward(
        &self,
        resolver: &Resolver,
        errand: Errand<'_>,
        target: Arc<Target>,
        mut request: Box<Request<Upload>>,
        budget: Duration,
    ) -> Result<(Lease<Arc<Target>>, Response<Incoming>), RouterError> {
        let deadline = request.body().started() + budget;
        let wait = self.head_timeout.map_or(budget, |limit| limit.min(budget));
        if let Some(mut lease) = self.pool.take(&target, errand.over) {
            match lease.upstream.send(request, wait).await {
                Ok(response) => return Ok((lease, response)),
                Err(ExchangeError::NotSent(unsent)) => request = unsent,
                Err(error) => return Err(self.explain(&error, errand)),
            }
        }
        // Boxed, as everything that a request on a kept connection doesn't need: hyper moves a request's future, and a large one
        // costs that request more than the allocation costs this.
        let mut lease = Box::pin(self.open(resolver, errand, target, budget, deadline)).await?;
        match lease.upstream.send(request, wait).await {
            Ok(response) => Ok((lease, response)),
            Err(error) => Err(self.explain(&error, errand)),
        }
    }

    /// A new connection to `target`, or to whatever is found in its place.
    async fn open(
        &self,
        resolver: &Resolver,
        errand: Errand<'_>,
        mut target: Arc<Target>,
        budget: Duration,
        deadline: Instant,
    ) -> Result<Lease<Arc<Target>>, RouterError> {
        let route = errand.route;
        let (mut resolved_again, mut hearsay) = (false, resolver.is_hearsay(route, &target));
        loop {
            match self.connect_with_retries(errand, &target, hearsay, deadline).await {
                Ok(lease) => return Ok(lease),
                // The client knows a pod that is gone; meanwhile there may be another.
                Err(error) if hearsay && error.is_nobody() => {
                    tracing::info!(target: UNANSWERED, sandbox = %route.sandbox, endpoint = %target.endpoint, error = chain(&error), "nobody is where the client says");
                    hearsay = false;
                    let again = resolver.resolve_without_hint(route, budget).await;
                    target = self.still_gated(again, errand)?;
                }
                // Another pod has that address now: look once more before giving up.
                Err(DialError::Handshake(HandshakeError::PeerIdentity(error))) if !resolved_again => {
                    tracing::warn!(target: UNANSWERED, sandbox = %route.sandbox, endpoint = %target.endpoint, %error, "not that sandbox's gate");
                    resolved_again = true;
                    self.pool.evict(&target);
                    resolver.evict(route, &target);
                    let again = resolver.resolve(route, budget).await;
                    target = self.still_gated(again, errand)?;
                    hearsay = resolver.is_hearsay(route, &target);
                }
                Err(error) => {
                    if error.says_gone() {
                        resolver.evict(route, &target);
                    }
                    return Err(self.no_connection(&error, errand, &target));
                }
            }
        }
    }

    /// Where a request leads that was resolved once more. It was made for a gate: what it says to one is not for an app to see.
    fn still_gated(
        &self,
        again: Result<Arc<Target>, Unresolved>,
        errand: Errand<'_>,
    ) -> Result<Arc<Target>, RouterError> {
        let again = again.map_err(|error| self.unresolved(&error, errand))?;
        match again.expected {
            None => Err(RouterError::Unreachable(errand.route.sandbox.name.clone())),
            Some(_) => Ok(again),
        }
    }

    /// Of an address that is `hearsay` it is asked once whether anybody is there.
    async fn connect_with_retries(
        &self,
        errand: Errand<'_>,
        target: &Arc<Target>,
        hearsay: bool,
        deadline: Instant,
    ) -> Result<Lease<Arc<Target>>, DialError> {
        let limit = if hearsay { HEARSAY_TIMEOUT } else { CONNECT_TIMEOUT };
        let mut pause = self.initial_delay;
        let mut left = self.retries;
        let mut failed = None;
        loop {
            let Ok(dial) = self.may_dial(target) else {
                return Err(failed.unwrap_or(DialError::TakenForGone));
            };
            // However long an attempt and its handshake may take, the request's own time ends them.
            let connected = timeout_at(deadline, self.connect(errand.over, target, limit)).await;
            let connected = connected.unwrap_or(Err(DialError::OutOfTime));
            if let Some(dial) = dial {
                dial.found(connected.as_ref().map_or_else(DialError::found, |_| Dialed::Somebody));
            }
            let error = match connected {
                Ok(lease) => return Ok(lease),
                Err(error) => error,
            };
            let is_dial = matches!(error, DialError::Connect(_) | DialError::TimedOut);
            let again = is_dial && !(hearsay && error.says_gone()) && !self.is_taken_for_gone(target);
            if !again || left == 0 || Instant::now() + pause >= deadline {
                return Err(error);
            }
            left -= 1;
            failed = Some(error);
            self.metrics.retried(&errand.route.sandbox.namespace);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.max_delay);
        }
    }

    /// Leave to dial, which is to be told what the dial found; an error where the host is taken for gone.
    fn may_dial<'a>(&'a self, target: &'a Arc<Target>) -> Result<Option<Dial<'a>>, TakenForGone> {
        let breakers = self.breakers.as_ref();
        breakers.map(|breakers| breakers.dial(target)).transpose()
    }

    fn is_taken_for_gone(&self, target: &Arc<Target>) -> bool {
        self.breakers.as_ref().is_some_and(|breakers| breakers.is_open(target))
    }

    async fn connect(
        &self,
        version: HttpVersion,
        target: &Arc<Target>,
        limit: Duration,
    ) -> Result<Lease<Arc<Target>>, DialError> {
        // Before the credentials are read: should they be replaced meanwhile, the connection isn't kept.
        let era = self.pool.era();
        // Before the dial: without an identity there is nothing to say to whoever answers.
        let as_whom = match &target.expected {
            None => None,
            Some(expected) => Some((self.fit()?, expected)),
        };
        let connected = timeout(limit, TcpStream::connect(target.endpoint)).await;
        let stream = connected
            .map_err(|_| DialError::TimedOut)?
            .map_err(DialError::Connect)?;
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        let (started, until) = match as_whom {
            None => (Upstream::start_in(version, stream, &self.framing).await, None),
            Some((credentials, expected)) => {
                let (stream, theirs) = handshake(version, stream, &credentials, expected).await?;
                let until = theirs.min(credentials.validity().not_after);
                (Upstream::start_in(version, stream, &self.framing).await, Some(until))
            }
        };
        let upstream = started.map_err(|error| DialError::Connect(io::Error::other(error)))?;
        Ok(self.pool.lease(era, Arc::clone(target), upstream, until))
    }

    fn fit(&self) -> Result<Arc<MeshCredentials>, DialError> {
        let credentials = self.credentials.as_ref().ok_or(DialError::NoIdentity(Unfit::Absent))?;
        fit(credentials, SystemTime::now()).map_err(DialError::NoIdentity)
    }

    /// What to answer where no sandbox of that name was found.
    pub(crate) fn unresolved(&self, error: &Unresolved, errand: Errand<'_>) -> RouterError {
        let (sandbox, request_id, reason) = (&errand.route.sandbox, errand.id(), error.reason());
        tracing::info!(target: UNANSWERED, %sandbox, request_id, reason, error = chain(error), "unknown sandbox");
        self.metrics.unresolved(&sandbox.namespace, reason);
        error.answer(&sandbox.name)
    }

    fn no_connection(&self, error: &DialError, errand: Errand<'_>, target: &Target) -> RouterError {
        let (sandbox, request_id) = (&errand.route.sandbox, errand.id());
        let name = sandbox.name.clone();
        let (reason, answer) = match error {
            DialError::Connect(_) | DialError::TakenForGone => (Reason::Dial, RouterError::Unreachable(name)),
            DialError::TimedOut | DialError::OutOfTime | DialError::Handshake(HandshakeError::TimedOut) => {
                (Reason::Timeout, RouterError::TimedOut(name))
            }
            // Without an identity a gate has nothing to say that could be believed, and closes.
            DialError::Handshake(HandshakeError::Io(_)) => (Reason::Tls, RouterError::NotReady(name)),
            DialError::NoIdentity(_) => (Reason::Tls, RouterError::NoIdentity),
            DialError::Handshake(_) => (Reason::Tls, RouterError::Unreachable(name)),
        };
        let endpoint = target.endpoint;
        tracing::info!(
            target: UNANSWERED, %sandbox, request_id, %endpoint, reason = reason.as_str(), error = chain(error),
            "can't connect"
        );
        self.metrics.error(&sandbox.namespace, reason);
        answer
    }

    fn explain(&self, error: &ExchangeError, errand: Errand<'_>) -> RouterError {
        let (sandbox, request_id) = (&errand.route.sandbox, errand.id());
        let name = sandbox.name.clone();
        let (reason, answer) = match error {
            // Whoever sent the body is no upstream.
            ExchangeError::Upload(error) => (None, RouterError::Upload(*error)),
            ExchangeError::TimedOut => (Some(Reason::Timeout), RouterError::TimedOut(name)),
            ExchangeError::Broken(_) | ExchangeError::NotSent(_) => (Some(Reason::Eof), RouterError::Broken(name)),
            ExchangeError::Malformed(_) => (Some(Reason::Other), RouterError::Broken(name)),
        };
        let logged = reason.map_or("upload", Reason::as_str);
        tracing::info!(target: UNANSWERED, %sandbox, request_id, reason = logged, error = chain(error), "no answer");
        if let Some(reason) = reason {
            self.metrics.error(&sandbox.namespace, reason);
        }
        answer
    }
}

async fn handshake(
    version: HttpVersion,
    stream: TcpStream,
    credentials: &MeshCredentials,
    expected: &ExpectedSandbox,
) -> Result<(tokio_rustls::client::TlsStream<TcpStream>, SystemTime), DialError> {
    let config = tls::router_client_config(version, credentials, expected)
        .map_err(|error| DialError::Connect(io::Error::other(error.to_string())))?;
    // Boxed: a handshake is large, and requests on kept connections never need one.
    Box::pin(tls::connect_mesh(stream, config))
        .await
        .map_err(DialError::Handshake)
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::ErrorKind;

    #[test]
    fn a_host_that_refuses_is_still_there() {
        let connect = |kind: ErrorKind| DialError::Connect(kind.into()).says_gone();
        assert!(DialError::TimedOut.says_gone());
        assert!(connect(ErrorKind::HostUnreachable) && connect(ErrorKind::NetworkUnreachable));
        assert!(!connect(ErrorKind::ConnectionRefused) && !connect(ErrorKind::ConnectionReset));
        assert!(!DialError::NoIdentity(Unfit::Absent).says_gone());
        // Nothing new was learned.
        assert!(!DialError::TakenForGone.says_gone() && DialError::TakenForGone.is_nobody());
        assert!(
            !DialError::OutOfTime.says_gone(),
            "a client that won't wait tells nothing"
        );
    }

    #[test]
    fn what_fails_at_the_router_itself_says_nothing_of_the_host() {
        let connect = |kind: ErrorKind| DialError::Connect(kind.into()).found();
        assert_eq!(DialError::TimedOut.found(), Dialed::Nobody);
        assert_eq!(connect(ErrorKind::HostUnreachable), Dialed::Nobody);
        assert_eq!(connect(ErrorKind::ConnectionRefused), Dialed::Somebody);
        let handshake = DialError::Handshake(HandshakeError::TimedOut);
        assert_eq!(handshake.found(), Dialed::Somebody);
        for own in [
            DialError::Connect(io::Error::from_raw_os_error(24)), // EMFILE
            DialError::Connect(ErrorKind::AddrNotAvailable.into()),
            DialError::NoIdentity(Unfit::Absent),
            DialError::OutOfTime,
            DialError::TakenForGone,
        ] {
            assert_eq!(own.found(), Dialed::Unknown, "{own}");
        }
    }
}
