//! Health and metrics for probes and scrapers. Read-only: nothing here changes anything.

use crate::body::detail;
use crate::drain::Draining;
use crate::framing::{Limits, refusal};
use crate::listener::{self, ConnectionCount, ConnectionLimits, Newcomer, Newcomers};
use crate::serve;
use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus::{Encoder, Registry, TextEncoder};
use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until};

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

/// Connections whose request hasn't come whole. One of them makes room for one more.
const WAITING: usize = 768;
/// Requests that are answered at once.
const ANSWERED: usize = 256;
/// Connections from one address.
const CONNECTIONS_PER_PEER: usize = 16;
/// Time for a request's head, from the connection on.
const HEAD_TIME: Duration = Duration::from_secs(2);
/// Time for a reader to take something of its answer.
const IDLE_TIME: Duration = Duration::from_secs(10);

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
    /// Serves the admin port until the drain starts: one request a connection.
    pub async fn serve(self, listener: TcpListener, draining: Draining) {
        let caps = Caps {
            waiting: listener::fit_admin_connections(WAITING),
            answered: listener::fit_admin_connections(ANSWERED),
            head_time: HEAD_TIME,
        };
        self.serve_within(caps, listener, draining).await;
    }

    async fn serve_within(self, caps: Caps, listener: TcpListener, mut draining: Draining) {
        let limits = Arc::new(Limits {
            head_time: caps.head_time,
            idle_time: IDLE_TIME,
            ..Limits::default()
        });
        let count = ConnectionCount::new(ConnectionLimits {
            total: usize::MAX,
            per_peer: CONNECTIONS_PER_PEER,
        });
        let newcomers = Newcomers::new(caps.waiting);
        let answered = Arc::new(Semaphore::new(caps.answered));
        while let Some((stream, peer)) = listener::accept(&listener, &mut draining).await {
            let Ok(slot) = count.enter(listener::one_if_loopback(peer.ip())) else {
                continue;
            };
            let connection = Connection {
                admin: self.clone(),
                limits: Arc::clone(&limits),
                draining: draining.clone(),
                answered: Arc::clone(&answered),
                newcomer: newcomers.enter(peer.ip()),
            };
            tokio::spawn(async move {
                connection.serve(stream).await;
                drop(slot);
            });
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

/// How many connections the admin port takes, and for how long without a request.
#[derive(Clone, Copy)]
struct Caps {
    waiting: usize,
    answered: usize,
    head_time: Duration,
}

/// A connection to the admin port.
struct Connection {
    admin: Admin,
    limits: Arc<Limits>,
    draining: Draining,
    answered: Arc<Semaphore>,
    newcomer: Newcomer,
}

impl Connection {
    async fn serve(mut self, stream: TcpStream) {
        let head_time = self.limits.head_time;
        let deadline = Instant::now() + head_time;
        // A connection that says nothing costs a socket and little more.
        let speaks = tokio::select! {
            speaks = listener::speaks(&stream, head_time) => speaks,
            () = self.newcomer.displaced() => false,
        };
        if speaks {
            Box::pin(self.answer(stream, deadline)).await;
        }
    }

    async fn answer(self, stream: TcpStream, deadline: Instant) {
        let (hang_up, asked) = (Notify::new(), AtomicBool::new(false));
        let (admin, places) = (&self.admin, &self.answered);
        let answer = |request: Request<_>, _| {
            asked.store(true, Ordering::Relaxed);
            let (hang_up, place) = (&hang_up, places.try_acquire());
            async move {
                let Ok(_place) = place else {
                    return close_after(detail(StatusCode::SERVICE_UNAVAILABLE, "Too many requests at once."));
                };
                close_after(admin.respond(request, hang_up).await)
            }
        };
        let mut newcomer = self.newcomer;
        let overdue = async {
            tokio::select! {
                () = newcomer.displaced() => {}
                () = sleep_until(deadline) => {}
            }
            // Who has asked gets an answer.
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = serve::http1(stream, &self.limits, self.draining, answer) => {}
            () = hang_up.notified() => {}
            () = overdue => {}
        }
    }
}

fn close_after(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
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
        // A reset is a close, too.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
        rest(stream).await
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer)).await;
        let _ = read.expect("neither answered nor closed");
        answer
    }

    /// An admin port with such caps, and the drain that it lasts as long as.
    async fn served(caps: Caps) -> (SocketAddr, drain::Drain) {
        let admin = Admin {
            readiness: Some(Arc::new(|| Ok(()))),
            ..Admin::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, draining) = drain::channel();
        tokio::spawn(admin.serve_within(caps, listener, draining));
        (address, drain)
    }

    const PATIENT: Caps = Caps {
        waiting: 100,
        answered: 1,
        head_time: Duration::from_secs(3600),
    };

    #[tokio::test]
    async fn silent_neighbours_make_room_for_the_kubelets_probes() {
        let (address, _drain) = served(Caps { waiting: 3, ..PATIENT }).await;
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = ask(TcpStream::connect(address).await.unwrap()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // The oldest went, the youngest is served.
        assert_eq!(rest(silent.remove(0)).await, "");
        assert!(ask(silent.pop().unwrap()).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_connection_has_one_request_and_little_time_for_it() {
        let head_time = Duration::from_millis(50);
        let (address, _drain) = served(Caps { head_time, ..PATIENT }).await;
        assert_eq!(rest(TcpStream::connect(address).await.unwrap()).await, "");
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        let answer = rest(slow).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");

        let (address, _drain) = served(PATIENT).await;
        let answer = ask(TcpStream::connect(address).await.unwrap()).await;
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn all_of_loopback_is_one_peer_and_none_has_more_than_its_share() {
        let (address, _drain) = served(PATIENT).await;
        let mut silent = Vec::new();
        for neighbour in 2..18 {
            silent.push(connect_from([127, 0, 0, neighbour], address).await);
        }
        assert_eq!(silent.len(), CONNECTIONS_PER_PEER);
        assert_eq!(ask(connect_from([127, 0, 0, 1], address).await).await, "");
        silent.pop();
        let served = async { while ask(connect_from([127, 0, 0, 1], address).await).await.is_empty() {} };
        let served = tokio::time::timeout(Duration::from_secs(10), served).await;
        served.expect("the place never came free");
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
