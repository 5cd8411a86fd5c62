//! The webhook's listener: TLS, then HTTP/1.1 or HTTP/2. The API server speaks HTTP/1.1 to a Service, HTTP/2 to loopback.

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
use sandgate_mesh::listener::{self, ConnectionCount, ConnectionLimits};
use sandgate_mesh::tls;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use warp::{Filter, Rejection, Reply};

/// Open connections, in all and from one address. An API server opens one for each call under way, and by its defaults has
/// 600 requests under way at most. Those of the call before are closed at the same time, so it may be twice as many.
const CONNECTIONS: ConnectionLimits = ConnectionLimits {
    total: 2560,
    per_peer: 1280,
};
/// Longer than API servers keep idle connections (90 s), so that they are the ones who close them: a request that meets a
/// connection in its last moment fails.
const IDLE_TIME: Duration = Duration::from_secs(180);
/// The longest head and the largest unread part of a body that a connection holds, in bytes.
const BUFFER: usize = 64 << 10;
/// Reviews under way on one HTTP/2 connection.
const STREAMS: u32 = 250;
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
}

impl<F> Https<F>
where
    F: Filter<Error = Rejection, Extract: Reply, Future: Send> + Clone + Send + Sync + 'static,
{
    /// Serves until the drain starts, and then lets reviews under way finish.
    pub(crate) async fn serve(self, listener: TcpListener, mut draining: Draining) {
        let limits = ConnectionLimits {
            // A process that has no file left can't reach its API server either.
            total: listener::fit_open_files(CONNECTIONS.total, "the webhook takes otherwise"),
            ..CONNECTIONS
        };
        let count = ConnectionCount::new(limits);
        let shared = Arc::new(self);
        while let Some((stream, peer)) = listener::accept(&listener, &mut draining).await {
            let Ok(slot) = count.enter(peer.ip()) else {
                shared.metrics.refused_connections.inc();
                continue;
            };
            let (shared, draining) = (Arc::clone(&shared), draining.clone());
            tokio::spawn(async move {
                shared.connection(stream, draining).await;
                drop(slot);
            });
        }
    }

    async fn connection(&self, stream: TcpStream, mut draining: Draining) {
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
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Load balancers look whether anybody listens, and go: no reason to fill a log.
                self.metrics.handshake_failures.inc();
                tracing::debug!(%error, "handshake refused");
                return;
            }
        };
        let routes = TowerToHyperService::new(warp::service(self.routes.clone()));
        let service = service_fn(|request: Request<Incoming>| {
            let leaving = self.leaving.has_started() && request.version() < Version::HTTP_2;
            let answer = routes.call(request);
            async move {
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
            result = &mut connection => result,
            () = draining.started() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(error, "a connection ended early");
        }
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
