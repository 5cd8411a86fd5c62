//! The webhook's listener: TLS, then HTTP/1.1 or HTTP/2. The API server speaks HTTP/1.1 to a Service, HTTP/2 to loopback.

use crate::https_places::{Places, Rooms};
use crate::metrics::Metrics;
use crate::serving::Served;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Version};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use sandgate_mesh::drain::{DrainState, Draining};
use sandgate_mesh::listener::{self, ConnectionCount};
use sandgate_mesh::tls::{self, HandshakeError};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use warp::{Filter, Rejection, Reply};

/// Longer than API servers keep idle connections (90 s), so that they are the ones who close them: a request that meets a
/// connection in its last moment fails. That goes for new ones, too: Go opens some and keeps them for later.
const IDLE_TIME: Duration = Duration::from_secs(180);
/// How long a connection that lost its place may take to end. Its peer may not read the last answer.
const CLOSING_TIME: Duration = Duration::from_secs(5);
/// The longest head and the largest unread part of a body that a connection holds, in bytes.
const BUFFER: usize = 16 << 10;
/// Reviews under way on one HTTP/2 connection.
const STREAMS: u32 = 100;
/// How often failing handshakes are logged: an API server tries again for each pod.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How often a silent HTTP/2 peer is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);

/// What connections have in common.
pub(crate) struct Https<F> {
    /// What answers.
    pub(crate) routes: F,
    /// The certificate.
    pub(crate) served: Served,
    /// Whether clients should go elsewhere: connections end after their next answer.
    pub(crate) leaving: DrainState,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) failing: Failing,
}

impl<F> Https<F>
where
    F: Filter<Error = Rejection, Extract: Reply, Future: Send> + Clone + Send + Sync + 'static,
{
    /// Serves until the drain starts, and then lets reviews under way finish.
    pub(crate) async fn serve(self, listener: TcpListener, draining: Draining) {
        // A process that has no file left can't reach its API server either.
        let total = listener::fit_open_files(Places::ALL.limits.total, "the webhook takes otherwise");
        self.serve_within(Places::ALL.within(total), listener, draining).await;
    }

    pub(crate) async fn serve_within(self, places: Places, listener: TcpListener, mut draining: Draining) {
        let count = ConnectionCount::new(places.limits);
        let (shared, rooms) = (Arc::new(self), Arc::new(Rooms::new(places.room)));
        while let Some((stream, peer)) = listener::accept(&listener, &mut draining).await {
            let Ok(slot) = count.enter(peer.ip()) else {
                shared.metrics.refused_connections.inc();
                continue;
            };
            let (shared, rooms, draining) = (Arc::clone(&shared), Arc::clone(&rooms), draining.clone());
            tokio::spawn(async move {
                shared.connection(stream, peer.ip(), &rooms, draining).await;
                drop(slot);
            });
        }
    }

    async fn connection(&self, stream: TcpStream, peer: IpAddr, rooms: &Rooms, mut draining: Draining) {
        let (mut place, requests) = rooms.enter(peer);
        let usable = |served: &Served| {
            let served = served.borrow();
            served
                .as_ref()
                .filter(|served| served.valid_at(SystemTime::now()))
                .map(|served| Arc::clone(&served.tls))
        };
        let Some(config) = usable(&self.served) else { return };
        let accepted = tokio::select! {
            accepted = tls::accept_front(stream, config) => accepted,
            () = draining.started() => return,
            () = place.lost() => return self.metrics.refused_connections.inc(),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => return self.handshake_failed(peer, &error),
        };
        let routes = TowerToHyperService::new(warp::service(self.routes.clone()));
        let service = service_fn(|request: Request<Incoming>| {
            let leaving = self.leaving.has_started() && request.version() < Version::HTTP_2;
            let (answer, under_way) = (routes.call(request), requests.begin());
            async move {
                let _under_way = under_way;
                let mut answer = answer.await?;
                if leaving {
                    answer
                        .headers_mut()
                        .insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let builder = builder();
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let result = tokio::select! {
            biased;
            result = &mut connection => result,
            () = draining.started() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = requests.none_within(IDLE_TIME) => return,
            () = place.lost() => {
                if !requests.any() {
                    return self.metrics.refused_connections.inc();
                }
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(CLOSING_TIME, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            tracing::debug!(error, "a connection ended early");
        }
    }

    fn handshake_failed(&self, peer: IpAddr, error: &HandshakeError) {
        // Load balancers look whether anybody listens, and go. An API server that doesn't believe the certificate says so.
        if matches!(error, HandshakeError::Io(_)) {
            tracing::debug!(%peer, %error, "handshake broken off");
            return;
        }
        self.metrics.handshake_failures.inc();
        if let Some(failures) = self.failing.count() {
            let next = "if the peer is an API server: do the caBundles of the webhook configurations hold the root?";
            tracing::warn!(%peer, %error, failures, next, "TLS handshakes with the webhook fail");
        }
    }
}

/// Says once a minute how many handshakes have failed.
#[derive(Default)]
pub(crate) struct Failing(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    told: Option<Instant>,
    since: u64,
}

impl Failing {
    /// Counts one. How many there were since that was last told, where it is time to tell.
    fn count(&self) -> Option<u64> {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.since += 1;
        if recent.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return None;
        }
        recent.told = Some(Instant::now());
        Some(std::mem::take(&mut recent.since))
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME)
        .max_buf_size(BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

#[cfg(test)]
#[path = "https_tests.rs"]
mod tests;
