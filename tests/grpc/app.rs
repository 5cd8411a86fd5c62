//! An app that serves gRPC: messages are bytes, methods are what the tests need.

use crate::codec::Raw;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::{HeaderMap, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandgate_tests::RecordingApp;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use tonic::body::Body;
use tonic::server::{ClientStreamingService, Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Status, Streaming};

/// Bytes of one message of a flood.
pub(crate) const PIECE: usize = 16 * 1024;

/// What the app has seen and done.
#[derive(Default)]
pub(crate) struct Seen {
    /// Each call's path and head.
    pub(crate) calls: Mutex<Vec<(String, HeaderMap)>>,
    /// Messages of floods so far.
    pub(crate) pieces: AtomicUsize,
    /// Told when a call that hangs is given up.
    pub(crate) given_up: Notify,
    /// Told when a call that hangs has begun.
    pub(crate) hangs: Notify,
}

impl Seen {
    /// The only call's head.
    pub(crate) fn only_head(&self) -> HeaderMap {
        let calls = self.calls.lock().unwrap();
        assert_eq!(calls.len(), 1, "{calls:?}");
        calls[0].1.clone()
    }

    pub(crate) fn assert_untouched(&self, context: &str) {
        let calls = self.calls.lock().unwrap();
        assert!(calls.is_empty(), "{context}: {calls:?}");
    }
}

/// Starts it.
pub(crate) async fn start() -> (RecordingApp, Arc<Seen>) {
    let seen = Arc::<Seen>::default();
    let record = Arc::clone(&seen);
    let app = RecordingApp::serving(move |stream| {
        let seen = Arc::clone(&record);
        async move {
            let service = service_fn(move |request| {
                let seen = Arc::clone(&seen);
                async move { Ok::<_, Infallible>(answer(&seen, request).await) }
            });
            let server = http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        }
    });
    (app.await, seen)
}

async fn answer(seen: &Arc<Seen>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    seen.calls
        .lock()
        .unwrap()
        .push((path.clone(), request.headers().clone()));
    let seen = Arc::clone(seen);
    let mut grpc = Grpc::new(Raw).max_decoding_message_size(usize::MAX);
    match path.as_str() {
        "/test.Echo/Say" => grpc.unary(Say, request).await,
        "/test.Echo/Collect" => grpc.client_streaming(Collect, request).await,
        "/test.Echo/Count" => grpc.server_streaming(Count, request).await,
        "/test.Echo/Talk" => grpc.streaming(Talk, request).await,
        "/test.Echo/Flood" => grpc.server_streaming(Flood(seen), request).await,
        "/test.Echo/Hang" => grpc.unary(Hang(seen), request).await,
        "/test.Echo/Fail" => grpc.unary(Fail, request).await,
        "/test.Echo/Break" => broken_off(),
        _ => Status::unimplemented("no such method").into_http(),
    }
}

/// An answer of which one message comes, and then a reset that says that the call was cancelled.
fn broken_off() -> Response<Body> {
    let message = Frame::data(Bytes::from_static(&[0, 0, 0, 0, 1, b'x']));
    // What hyper resets the stream with.
    let cancel = Status::from_error(Box::new(h2::Error::from(h2::Reason::CANCEL)));
    let frames = stream::iter([Ok(message)]).chain(stream::once(async move {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        Err(cancel)
    }));
    let body = Body::new(StreamBody::new(frames.boxed()));
    let answer = Response::builder().header("content-type", "application/grpc");
    answer.body(body).unwrap()
}

type Pending<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;
type Messages = BoxStream<'static, Result<Bytes, Status>>;

struct Say;

impl UnaryService<Bytes> for Say {
    type Response = Bytes;
    type Future = Pending<Bytes>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let mut response = tonic::Response::new(request.into_inner());
        response.metadata_mut().insert("x-app", "said".parse().unwrap());
        Box::pin(async { Ok(response) })
    }
}

struct Collect;

impl ClientStreamingService<Bytes> for Collect {
    type Response = Bytes;
    type Future = Pending<Bytes>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async {
            let mut messages = request.into_inner();
            let mut all = Vec::new();
            while let Some(message) = messages.message().await? {
                all.extend_from_slice(&message);
            }
            Ok(tonic::Response::new(all.into()))
        })
    }
}

struct Count;

impl ServerStreamingService<Bytes> for Count {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Pending<Messages>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let to: u32 = std::str::from_utf8(request.get_ref()).unwrap().parse().unwrap();
        let messages = stream::iter((1..=to).map(|number| Ok(Bytes::from(number.to_string()))));
        Box::pin(async { Ok(tonic::Response::new(messages.boxed())) })
    }
}

struct Talk;

impl StreamingService<Bytes> for Talk {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Pending<Messages>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let louder = |message: Result<Bytes, Status>| message.map(|message| message.to_ascii_uppercase().into());
        let messages = request.into_inner().map(louder);
        Box::pin(async { Ok(tonic::Response::new(messages.boxed())) })
    }
}

struct Flood(Arc<Seen>);

impl ServerStreamingService<Bytes> for Flood {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Pending<Messages>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        let seen = Arc::clone(&self.0);
        let messages = stream::repeat_with(move || {
            seen.pieces.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from(vec![b'x'; PIECE]))
        });
        Box::pin(async { Ok(tonic::Response::new(messages.boxed())) })
    }
}

struct Hang(Arc<Seen>);

struct GivenUp(Arc<Seen>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.given_up.notify_one();
    }
}

impl UnaryService<Bytes> for Hang {
    type Response = Bytes;
    type Future = Pending<Bytes>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        let guard = GivenUp(Arc::clone(&self.0));
        self.0.hangs.notify_one();
        Box::pin(async move {
            std::future::pending::<()>().await;
            drop(guard);
            Err(Status::internal("never"))
        })
    }
}

struct Fail;

impl UnaryService<Bytes> for Fail {
    type Response = Bytes;
    type Future = Pending<Bytes>;

    fn call(&mut self, _: tonic::Request<Bytes>) -> Self::Future {
        let mut status = Status::resource_exhausted("no more: \u{fc}");
        status.metadata_mut().insert("x-left", "0".parse().unwrap());
        Box::pin(async { Err(status) })
    }
}
