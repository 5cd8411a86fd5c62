//! The app behind each local gate when no real one is given.
//!
//! It shows what a sandbox sees of a request, offers the file endpoints of the agent-sandbox runtime on a temporary
//! folder, and streams a few server-sent events. It runs no commands. It has no access control of its own, as the real
//! runtime has none: it belongs on loopback, behind a gate.

mod answer;
mod files;
mod folder;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use answer::{Answer, Refusal};
pub use folder::DemoFolder;

/// Connections served at once; further ones wait in the listener's queue.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may stay without a complete request head. Longer than a gate keeps an idle connection, so that
/// the gate, not the app, ends it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(300);
/// How long running requests may go on after shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// Pause after a failed accept, so that an exhausted file table isn't polled in a hot loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Server-sent events in one answer to `/events`.
const EVENTS: u32 = 5;
/// Time between two of them.
const EVENT_INTERVAL: Duration = Duration::from_millis(200);

/// Serves the demo app of sandbox `name` until `shutdown` completes, then removes `files`.
///
/// HTTP/1.1 only. Requests still running at shutdown get two seconds. The future must not be dropped before it returns,
/// or running requests end at once.
pub async fn serve(name: &str, listener: TcpListener, files: DemoFolder, shutdown: impl Future<Output = ()>) {
    let app = Arc::new(App {
        name: name.into(),
        files,
    });
    let (closing, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(Arc::clone(&app), stream, closing.subscribe()));
                }
                Err(error) => {
                    tracing::warn!(sandbox = name, %error, "the demo app could not accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    closing.send_replace(true);
    let drained = timeout(SHUTDOWN_GRACE, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    if drained.is_err() {
        connections.shutdown().await;
    }
}

async fn serve_connection(app: Arc<App>, stream: TcpStream, mut closing: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(app.answer(request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // Also when the sender is gone.
        () = async { drop(closing.wait_for(|closing| *closing).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the demo app broke");
    }
}

/// One demo sandbox.
struct App {
    name: Box<str>,
    files: DemoFolder,
}

/// What a request asks for. File names are still percent-encoded.
enum Route<'a> {
    Upload,
    Download(&'a str),
    List(&'a str),
    Exists(&'a str),
    Execute,
    Events,
    /// Every other path.
    Mirror,
    /// A known endpoint, called with a method it doesn't have; holds those it has.
    WrongMethod(&'static str),
}

impl App {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let outcome = match route(request.method(), request.uri().path()) {
            Route::Upload => files::upload(&self.files, request).await,
            Route::Download(name) => files::download(&self.files, name).await,
            Route::List(name) => files::list(&self.files, name).await,
            Route::Exists(name) => files::exists(&self.files, name).await,
            Route::Execute => refuse_to_execute(request).await,
            Route::Events => Ok(events(&self.name)),
            Route::Mirror => self.mirror(request).await,
            Route::WrongMethod(allowed) => Ok(wrong_method(allowed)),
        };
        outcome.unwrap_or_else(|refusal| refusal.into_answer(&self.name))
    }

    /// Shows what arrived: the answer to "what does my sandbox see?".
    async fn mirror(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let (head, mut body) = request.into_parts();
        let body_bytes = answer::count(&mut body).await?;
        let seen = json!({
            "sandbox": self.name,
            "method": head.method.as_str(),
            "path": head.uri.to_string(),
            "headers": headers_by_name(&head.headers),
            "body_bytes": body_bytes,
            "caller": {
                "x_forwarded_for": values(&head.headers, "x-forwarded-for"),
                "x_request_id": values(&head.headers, "x-request-id"),
                "authorization_seen": head.headers.contains_key(AUTHORIZATION),
                "note": "This is all a sandbox learns about its caller: \
                         the router checks the caller's credential and keeps it.",
            },
        });
        Ok(answer::json(StatusCode::OK, format!("{seen:#}\n")))
    }
}

fn route<'a>(method: &Method, path: &'a str) -> Route<'a> {
    let (route, methods) = if path == "/upload" {
        (Route::Upload, "POST")
    } else if path == "/execute" {
        (Route::Execute, "POST")
    } else if path == "/events" {
        (Route::Events, "GET, HEAD")
    } else if let Some(name) = path.strip_prefix("/download/") {
        (Route::Download(name), "GET, HEAD")
    } else if let Some(name) = path.strip_prefix("/list/") {
        (Route::List(name), "GET, HEAD")
    } else if let Some(name) = path.strip_prefix("/exists/") {
        (Route::Exists(name), "GET, HEAD")
    } else {
        return Route::Mirror;
    };
    if methods.split(", ").any(|allowed| allowed == method.as_str()) {
        route
    } else {
        Route::WrongMethod(methods)
    }
}

fn wrong_method(allowed: &'static str) -> Answer {
    let detail = format!("this endpoint of the demo app takes {allowed} only");
    let mut answer = answer::detail(StatusCode::METHOD_NOT_ALLOWED, &detail);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

async fn refuse_to_execute(request: Request<Incoming>) -> Result<Answer, Refusal> {
    // Read the request to its end: an answer in the middle of it could be lost with the connection.
    answer::count(&mut request.into_body()).await?;
    let detail = "the demo app runs no commands; \
                  start a real runtime and put the gate in front of it with --sandbox NAME=PORT";
    Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, detail))
}

/// Every value of every header, in the order received per name. Bytes that aren't UTF-8 are replaced.
fn headers_by_name(headers: &HeaderMap) -> Map<String, Value> {
    headers
        .keys()
        .map(|name| (name.to_string(), values(headers, name.as_str())))
        .collect()
}

fn values(headers: &HeaderMap, name: &str) -> Value {
    headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect()
}

/// A short stream, to see that events arrive one by one and not all at the end.
fn events(sandbox: &str) -> Answer {
    let sandbox: Box<str> = sandbox.into();
    let (sender, body) = answer::stream(None);
    tokio::spawn(async move {
        for n in 1..=EVENTS {
            if n > 1 {
                sleep(EVENT_INTERVAL).await;
            }
            let data = json!({ "sandbox": sandbox, "n": n, "of": EVENTS });
            let event = format!("id: {n}\nevent: tick\ndata: {data}\n\n");
            if sender.send(Ok(Bytes::from(event))).await.is_err() {
                return;
            }
        }
    });
    let mut answer = Response::new(body);
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
