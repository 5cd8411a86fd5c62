//! Sends a request to its target over a kept or a new connection. Hides retries: only connections are retried, never a
//! request of which a byte was sent.

use crate::config::Config;
use crate::error::RouterError;
use crate::metrics::Metrics;
use crate::resolve::{Resolver, Target};
use crate::routing::Route;
use http::{Request, Response};
use hyper::body::Incoming;
use sandgate_mesh::body::Upload;
use sandgate_mesh::contract::CONNECT_TIMEOUT;
use sandgate_mesh::credentials::MeshCredentials;
use sandgate_mesh::exchange::{ExchangeError, Upstream};
use sandgate_mesh::framing::Limits;
use sandgate_mesh::identity::ExpectedSandbox;
use sandgate_mesh::pool::{Lease, Pool, PoolLimits};
use sandgate_mesh::tls::{self, HandshakeError};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// Idle connections that one worker keeps in all.
const IDLE_TOTAL: usize = 4096;
/// How long they are kept.
const IDLE_TIME: Duration = Duration::from_secs(60);

pub(crate) type Credentials = watch::Receiver<Option<Arc<MeshCredentials>>>;

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
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Connect(io::Error),
    #[error("timed out")]
    TimedOut,
    #[error("{0}")]
    Handshake(HandshakeError),
    #[error("the router has no mesh identity that is valid now")]
    NoIdentity,
}

impl Forwarder {
    pub(crate) fn new(
        config: &Config,
        framing: &Arc<Limits>,
        credentials: Option<Credentials>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let limits = PoolLimits {
            per_key: config.keepalive.div_ceil(config.workers),
            total: IDLE_TOTAL,
            idle_time: IDLE_TIME,
        };
        Self {
            pool: Pool::new(limits),
            framing: Arc::clone(framing),
            opened_with: Mutex::new(credentials.as_ref().and_then(|current| current.borrow().clone())),
            credentials,
            metrics: Arc::clone(metrics),
            retries: config.retries,
            initial_delay: config.retry_initial_delay,
            max_delay: config.retry_max_delay,
            head_timeout: config.response_header_timeout,
        }
    }

    /// Closes connections that lay idle for too long, and those that were opened with credentials that have been replaced:
    /// no connection is used for longer than the leaf and the roots it was opened with.
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
    }

    /// Sends `request` and waits for its response head, within `budget`.
    pub(crate) async fn forward(
        &self,
        resolver: &Resolver,
        route: &Route,
        mut target: Arc<Target>,
        mut request: Box<Request<Upload>>,
        budget: Duration,
    ) -> Result<(Lease<Arc<Target>>, Response<Incoming>), RouterError> {
        let deadline = request.body().started() + budget;
        let name = &route.sandbox.name;
        let wait = self.head_timeout.map_or(budget, |limit| limit.min(budget));
        if let Some(mut lease) = self.pool.take(&target) {
            match lease.upstream.send(request, wait).await {
                Ok(response) => return Ok((lease, response)),
                Err(ExchangeError::NotSent(unsent)) => request = unsent,
                Err(error) => return Err(self.explain(&error, route)),
            }
        }
        let mut resolved_again = false;
        let upstream = loop {
            // Boxed, as everything that a request on a kept connection doesn't need: hyper moves a request's future, and
            // a large one costs that request more than the allocation costs this.
            match Box::pin(self.connect_with_retries(&target, deadline)).await {
                Ok(upstream) => break upstream,
                // Another pod has that address now: look once more before giving up.
                Err(DialError::Handshake(HandshakeError::PeerIdentity(error))) if !resolved_again => {
                    tracing::warn!(sandbox = %route.sandbox, endpoint = %target.endpoint, %error, "not that sandbox's gate");
                    resolved_again = true;
                    self.pool.evict(&target);
                    target = resolver
                        .resolve(route, budget)
                        .await
                        .ok_or(RouterError::Unreachable(name.clone()))?;
                }
                Err(error) => return Err(self.no_connection(&error, route, &target)),
            }
        };
        let mut lease = self.pool.lease(target, upstream);
        match lease.upstream.send(request, wait).await {
            Ok(response) => Ok((lease, response)),
            Err(error) => Err(self.explain(&error, route)),
        }
    }

    async fn connect_with_retries(&self, target: &Target, deadline: Instant) -> Result<Upstream, DialError> {
        let mut pause = self.initial_delay;
        let mut left = self.retries;
        loop {
            // However long an attempt and its handshake may take, the request's own time ends them.
            let error = match timeout_at(deadline, self.connect(target)).await {
                Ok(Ok(upstream)) => return Ok(upstream),
                Ok(Err(error)) => error,
                Err(_) => return Err(DialError::TimedOut),
            };
            let again = matches!(error, DialError::Connect(_) | DialError::TimedOut);
            if !again || left == 0 || Instant::now() + pause >= deadline {
                return Err(error);
            }
            left -= 1;
            self.metrics.retries.inc();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.max_delay);
        }
    }

    async fn connect(&self, target: &Target) -> Result<Upstream, DialError> {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(target.endpoint)).await;
        let stream = connected
            .map_err(|_| DialError::TimedOut)?
            .map_err(DialError::Connect)?;
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        let started = match &target.expected {
            None => Upstream::start(stream, &self.framing).await,
            Some(expected) => Upstream::start(self.handshake(stream, expected).await?, &self.framing).await,
        };
        started.map_err(|error| DialError::Connect(io::Error::other(error)))
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        expected: &ExpectedSandbox,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, DialError> {
        let current = self
            .credentials
            .as_ref()
            .and_then(|credentials| credentials.borrow().clone());
        let credentials = current
            .filter(|found| found.valid_at(SystemTime::now()))
            .ok_or(DialError::NoIdentity)?;
        let config = tls::router_client_config(&credentials, expected)
            .map_err(|error| DialError::Connect(io::Error::other(error.to_string())))?;
        // Boxed: a handshake is large, and requests on kept connections never need one.
        Box::pin(tls::connect_mesh(stream, config))
            .await
            .map_err(DialError::Handshake)
    }

    fn no_connection(&self, error: &DialError, route: &Route, target: &Target) -> RouterError {
        let name = route.sandbox.name.clone();
        tracing::info!(sandbox = %route.sandbox, endpoint = %target.endpoint, %error, "can't connect");
        let (reason, answer) = match error {
            DialError::Connect(_) => ("dial", RouterError::Unreachable(name)),
            DialError::TimedOut | DialError::Handshake(HandshakeError::TimedOut) => {
                ("timeout", RouterError::TimedOut(name))
            }
            // Without an identity a gate has nothing to say that could be believed, and closes.
            DialError::Handshake(HandshakeError::Io(_)) | DialError::NoIdentity => ("tls", RouterError::NotReady(name)),
            DialError::Handshake(_) => ("tls", RouterError::Unreachable(name)),
        };
        self.metrics.error(&route.sandbox.namespace, reason);
        answer
    }

    fn explain(&self, error: &ExchangeError, route: &Route) -> RouterError {
        let name = route.sandbox.name.clone();
        tracing::info!(sandbox = %route.sandbox, %error, "no answer");
        let (reason, answer) = match error {
            ExchangeError::Upload(error) => return RouterError::Upload(*error),
            ExchangeError::TimedOut => ("timeout", RouterError::TimedOut(name)),
            ExchangeError::Broken(_) | ExchangeError::NotSent(_) => ("eof", RouterError::Broken(name)),
            ExchangeError::Malformed(_) => ("other", RouterError::Broken(name)),
        };
        self.metrics.error(&route.sandbox.namespace, reason);
        answer
    }
}
