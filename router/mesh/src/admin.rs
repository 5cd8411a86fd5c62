//! Health and metrics for probes and scrapers. Read-only: nothing here changes anything.

use crate::body::detail;
use crate::drain::Draining;
use crate::framing::{Limits, refusal};
use crate::{listener, serve};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus::{Encoder, Registry, TextEncoder};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Says why the process is not ready, or `Ok` when it is.
pub type Readiness = Arc<dyn Fn() -> Result<(), Cow<'static, str>> + Send + Sync>;

/// Runs the app's probe that a path names, see [`crate::probe`]; `None` if it names none.
pub type AppProbeRunner = Arc<dyn Fn(&str) -> Option<RunningProbe> + Send + Sync>;

/// A probe under way.
pub type RunningProbe = Pin<Box<dyn Future<Output = ProbeAnswer> + Send>>;

/// What the kubelet is told of the app's probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// 200.
    Success,
    /// 503.
    Failure,
    /// No answer, the connection ends. The kubelet takes any answer for a lifecycle hook's success.
    NoAnswer,
}

/// Connections that the admin port serves at once. The oldest makes room for one more.
const CONNECTIONS: usize = 64;
/// Connections from one address. No more are taken.
const CONNECTIONS_PER_PEER: usize = 32;

/// What the admin port answers. Each part is there only where it is set.
#[derive(Clone, Default)]
pub struct Admin {
    /// Serves `/healthz` and `/readyz`.
    pub readiness: Option<Readiness>,
    /// Serves `/metrics`.
    pub metrics: Option<Registry>,
    /// Serves the app's probes.
    pub app_probes: Option<AppProbeRunner>,
}

impl Admin {
    /// Serves the admin port until the drain starts.
    pub async fn serve(self, listener: TcpListener, mut draining: Draining) {
        let limits = Arc::new(Limits {
            idle_time: Duration::from_secs(60),
            ..Limits::default()
        });
        let count = listener::ConnectionCount::new(listener::ConnectionLimits {
            total: usize::MAX,
            per_peer: CONNECTIONS_PER_PEER,
        });
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        while let Some((stream, peer)) = listener::accept(&listener, &mut draining).await {
            let Some(slot) = count.enter(peer.ip()) else { continue };
            // A probe takes moments. So those who hold all places can't keep the kubelet out.
            open.retain(|connection| !connection.is_finished());
            if open.len() >= CONNECTIONS {
                open.pop_front().iter().for_each(AbortHandle::abort);
            }
            let (admin, limits, draining) = (self.clone(), Arc::clone(&limits), draining.clone());
            let connection = tokio::spawn(async move {
                let hang_up = Notify::new();
                let answer = |request: Request<_>, _| admin.respond(request, &hang_up);
                tokio::select! {
                    () = serve::http1(stream, &limits, draining, answer) => {}
                    () = hang_up.notified() => {}
                }
                drop(slot);
            });
            open.push_back(connection.abort_handle());
        }
    }

    /// Answers one request, or asks for the connection's end.
    async fn respond<B>(&self, request: Request<B>, hang_up: &Notify) -> Response<Full<Bytes>> {
        let Some(probe) = self.app_probe(&request) else {
            return self.answer(&request);
        };
        match probe.await {
            ProbeAnswer::Success => plain(StatusCode::OK, Cow::Borrowed("ok")),
            ProbeAnswer::Failure => plain(StatusCode::SERVICE_UNAVAILABLE, Cow::Borrowed("failed")),
            ProbeAnswer::NoAnswer => {
                hang_up.notify_one();
                std::future::pending().await
            }
        }
    }

    fn app_probe<B>(&self, request: &Request<B>) -> Option<RunningProbe> {
        let run = self.app_probes.as_ref()?;
        let asks = matches!(*request.method(), Method::GET | Method::HEAD) && refusal(request).is_none();
        asks.then(|| run(request.uri().path()))?
    }

    /// Answers one request for health or metrics.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if let Some(violation) = refusal(request) {
            return detail(violation.status(), violation.detail());
        }
        let path = request.uri().path();
        let known = match (path, &self.readiness, &self.metrics) {
            ("/healthz", Some(_), _) => Some(healthy()),
            ("/readyz", Some(readiness), _) => Some(ready(readiness)),
            ("/metrics", _, Some(registry)) => Some(metrics(registry)),
            _ => None,
        };
        match known {
            None => detail(StatusCode::NOT_FOUND, "Not found."),
            Some(_) if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                let mut response = detail(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD are allowed.");
                response
                    .headers_mut()
                    .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                response
            }
            Some(response) => response,
        }
    }
}

/// The answer of `/healthz` as existing probes know it.
pub fn healthy() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(r#"{"status":"ok"}"#));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn ready(readiness: &Readiness) -> Response<Full<Bytes>> {
    match readiness() {
        Ok(()) => plain(StatusCode::OK, Cow::Borrowed("ok")),
        Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

fn plain(status: StatusCode, text: Cow<'static, str>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text.into_owned()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    let mut text = Vec::new();
    if TextEncoder::new().encode(&registry.gather(), &mut text).is_err() {
        return detail(StatusCode::INTERNAL_SERVER_ERROR, "Metrics can't be encoded.");
    }
    let mut response = Response::new(Full::from(text));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream};

    /// A connection to `address` from an address of its own on loopback.
    async fn connect_from(own: [u8; 4], address: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((own, 0).into()).unwrap();
        socket.connect(address).await.unwrap()
    }

    /// What comes of a request on a connection; nothing if it is closed.
    async fn ask(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        let request = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let talk = async {
            // A reset is a close, too.
            let _ = stream.write_all(request).await;
            let _ = stream.read_to_string(&mut answer).await;
        };
        let talk = tokio::time::timeout(Duration::from_secs(10), talk).await;
        talk.expect("neither answered nor closed");
        answer
    }

    #[tokio::test]
    async fn idle_neighbours_cannot_keep_the_kubelets_probes_out() {
        let admin = Admin {
            readiness: Some(Arc::new(|| Ok(()))),
            ..Admin::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_drain, draining) = drain::channel();
        tokio::spawn(admin.serve(listener, draining));
        let mut idle = Vec::new();
        for neighbour in 2..8 {
            for _ in 0..CONNECTIONS_PER_PEER {
                idle.push(connect_from([127, 0, 0, neighbour], address).await);
            }
        }
        let answer = ask(connect_from([127, 0, 0, 1], address).await).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // The oldest went, the youngest are served, and one address has no more than its share.
        assert_eq!(ask(idle.remove(0)).await, "");
        assert_eq!(ask(connect_from([127, 0, 0, 7], address).await).await, "");
        assert!(ask(idle.pop().unwrap()).await.starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn probes_see_health_and_the_reason_for_not_being_ready() {
        let admin = Admin {
            readiness: Some(Arc::new(|| Err("draining".into()))),
            ..Admin::default()
        };
        let status = |method: Method, path: &str| {
            admin
                .answer(&Request::builder().method(method).uri(path).body(()).unwrap())
                .status()
                .as_u16()
        };
        assert_eq!(status(Method::GET, "/healthz"), 200);
        assert_eq!(status(Method::HEAD, "/healthz"), 200);
        assert_eq!(status(Method::GET, "/readyz"), 503);
        assert_eq!(status(Method::POST, "/readyz"), 405);
        assert_eq!(status(Method::GET, "/metrics"), 404);
        assert_eq!(status(Method::GET, "/"), 404);
    }
}
