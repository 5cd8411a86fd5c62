//! What hyper makes of what a guard hands on.

use super::guarded::{Behind, Peer};
use super::model;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sandgate_mesh::framing::{Limits, RequestGuard, ResponseGuard, Violation, refusal};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    // Guards set timers, which need a runtime to belong to. Nothing drives it, so none fires.
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().unwrap();
}

/// A request as a service sees it, for comparison.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Whole {
        method: String,
        target: String,
        fields: Vec<(String, Vec<u8>)>,
        body: Vec<u8>,
        trailers: Vec<(String, Vec<u8>)>,
    },
    Refusal(Violation),
}

impl Seen {
    pub(super) fn of(request: &model::Request<'_>) -> Self {
        let [method, target, _] = request.head.start.map(|word| String::from_utf8(word.to_vec()).unwrap());
        Self::Whole {
            method,
            target: normal(&target),
            fields: sorted(&request.head.fields),
            body: request.body.clone(),
            trailers: sorted(&request.trailers),
        }
    }
}

/// The target as the http crate writes it.
fn normal(target: &str) -> String {
    if target.starts_with('/') {
        target.into()
    } else {
        target.parse::<http::Uri>().unwrap().to_string()
    }
}

/// Fields by name, in their own order under each.
pub(super) fn sorted(fields: &[model::Field<'_>]) -> Vec<(String, Vec<u8>)> {
    let text = |name: &[u8]| String::from_utf8(name.to_ascii_lowercase()).unwrap();
    let mut fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (text(name), value.to_vec()))
        .collect();
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}

fn sorted_map(map: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let fields: Vec<model::Field<'_>> = map
        .iter()
        .map(|(name, value)| (name.as_ref(), value.as_bytes()))
        .collect();
    sorted(&fields)
}

/// The requests that reach a service behind a guard: the complete ones, and what stands in for a refused one.
pub(super) fn serve(pieces: &[&[u8]], limits: &Arc<Limits>) -> Vec<Seen> {
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        let seen = Mutex::new(Vec::new());
        let (guard, _) = RequestGuard::new(Peer::new(pieces, Behind::FallSilent), Arc::clone(limits));
        let service = service_fn(|request: Request<Incoming>| async {
            if let Some(violation) = refusal(&request) {
                seen.lock().unwrap().push(Seen::Refusal(violation));
                return Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()));
            }
            let (head, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let trailers = body.trailers().map(sorted_map).unwrap_or_default();
                seen.lock().unwrap().push(Seen::Whole {
                    method: head.method.to_string(),
                    target: head.uri.to_string(),
                    fields: sorted_map(&head.headers),
                    body: body.to_bytes().to_vec(),
                    trailers,
                });
            }
            Ok(Response::new(Empty::new()))
        });
        // Errors and a connection that waits for more are both fine here: what counts is what the service saw.
        let _ = run(limits.server_builder().serve_connection(TokioIo::new(guard), service));
        seen.into_inner().unwrap()
    })
}

/// The status and fields of the response that a client behind a guard gets.
pub(super) fn fetch(pieces: &[&[u8]], limits: &Arc<Limits>) -> (u16, Vec<(String, Vec<u8>)>) {
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        let peer = Peer::new(pieces, Behind::FallSilent).answering();
        let (guard, expect) = ResponseGuard::new(peer, Arc::clone(limits));
        let response = run(async {
            let (mut sender, connection) = limits.client_builder().handshake(TokioIo::new(guard)).await.unwrap();
            expect.arm();
            let request = Request::builder()
                .uri("/")
                .header("host", "a")
                .body(Empty::<Bytes>::new())
                .unwrap();
            let mut response = pin!(sender.send_request(request));
            let mut connection = pin!(connection);
            let mut open = true;
            std::future::poll_fn(|cx| {
                // The connection first: it carries both the request and its answer.
                open = open && connection.as_mut().poll(cx).is_pending();
                response.as_mut().poll(cx)
            })
            .await
        });
        let response = response
            .expect("hyper waits for more")
            .expect("hyper refuses what the guard accepts");
        (response.status().as_u16(), sorted_map(response.headers()))
    })
}

/// Whether a task asked to be polled again.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls until it is ready, or waits for what never comes.
fn run<F: Future>(future: F) -> Option<F::Output> {
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    while woken.0.swap(false, Ordering::Relaxed) {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
    }
    None
}
