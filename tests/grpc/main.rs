//! gRPC from end to end, by tonic's own client and server: through router and gate, and from a router that goes to the app
//! itself.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod app;
mod codec;
mod gate;

use app::{PIECE, Seen};
use bytes::Bytes;
use codec::Raw;
use futures_util::{StreamExt, stream};
use http::Request;
use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use sandgate_mesh::policy::model::DefaultPolicy;
use sandgate_tests::http2::{connect, head, status_and_detail, text};
use sandgate_tests::{Mesh, PATIENCE, RecordingApp, Step, closed_port, default_policy, ok, rule, token_holder};
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::{Code, Status};

/// A connection to a router, whose calls are for one port of `alpha`.
struct Channel {
    sender: SendRequest<Body>,
    port: u16,
}

impl GrpcService<Body> for Channel {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<http::Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        parts.headers.extend(head(self.port));
        Box::pin(self.sender.send_request(Request::from_parts(parts, body)))
    }
}

async fn client(router: SocketAddr, port: u16) -> Grpc<Channel> {
    let sender = connect(router).await;
    let origin = "http://grpc.example".parse().unwrap();
    let grpc = Grpc::with_origin(Channel { sender, port }, origin);
    grpc.max_decoding_message_size(usize::MAX)
}

fn method(name: &str) -> PathAndQuery {
    format!("/test.Echo/{name}").parse().unwrap()
}

async fn unary(grpc: &mut Grpc<Channel>, name: &str, message: Bytes) -> Result<tonic::Response<Bytes>, Status> {
    let call = grpc.unary(tonic::Request::new(message), method(name), Raw);
    timeout(PATIENCE, call).await.unwrap()
}

/// An app, and two routers that lead to it: through its gate, and straight.
async fn routes() -> (Mesh, Arc<Seen>, [SocketAddr; 2]) {
    let (app, seen) = app::start().await;
    let mesh = Mesh::open(app).await;
    let routers = mesh.run_both(&[]);
    (mesh, seen, routers)
}

#[tokio::test]
async fn the_four_kinds_of_calls_work_through_both_hops_and_straight() {
    let (mesh, seen, routers) = routes().await;
    for router in routers {
        let mut grpc = client(router, mesh.ports.app).await;
        let said = unary(&mut grpc, "Say", Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(said.metadata().get("x-app").unwrap(), "said");
        assert_eq!(said.into_inner(), "hello");

        let messages = stream::iter(["a", "b", "c"].map(Bytes::from));
        let collected = grpc.client_streaming(tonic::Request::new(messages), method("Collect"), Raw);
        let collected = timeout(PATIENCE, collected).await.unwrap().unwrap();
        assert_eq!(collected.into_inner(), "abc");

        let counted = grpc.server_streaming(tonic::Request::new(Bytes::from("200")), method("Count"), Raw);
        let counted = timeout(PATIENCE, counted).await.unwrap().unwrap();
        let counted: Vec<_> = timeout(PATIENCE, counted.into_inner().collect()).await.unwrap();
        assert_eq!(counted.len(), 200);
        assert_eq!(counted[199].as_ref().unwrap(), "200");

        // Word by word: each is sent when the one before it was answered.
        let (say, mut said) = mpsc::unbounded_channel();
        let words = stream::poll_fn(move |cx| said.poll_recv(cx));
        let talk = grpc.streaming(tonic::Request::new(words), method("Talk"), Raw);
        let mut heard = timeout(PATIENCE, talk).await.unwrap().unwrap().into_inner();
        for (word, louder) in [("one", "ONE"), ("two", "TWO"), ("three", "THREE")] {
            say.send(Bytes::from(word)).unwrap();
            let answer = timeout(PATIENCE, heard.message()).await.unwrap().unwrap();
            assert_eq!(answer.unwrap(), louder);
        }
        drop(say);
        assert!(timeout(PATIENCE, heard.message()).await.unwrap().unwrap().is_none());
    }
    assert_eq!(seen.calls.lock().unwrap().len(), 8);
}

#[tokio::test]
async fn many_calls_of_one_connection_run_at_once() {
    let (mesh, _, routers) = routes().await;
    for router in routers {
        let sender = connect(router).await;
        let port = mesh.ports.app;
        let calls = (0..40).map(|number: u32| {
            let channel = Channel {
                sender: sender.clone(),
                port,
            };
            let mut grpc = Grpc::with_origin(channel, "http://grpc.example".parse().unwrap());
            async move {
                let message = Bytes::from(number.to_string());
                unary(&mut grpc, "Say", message.clone()).await.unwrap().into_inner() == message
            }
        });
        let calls: Vec<bool> = stream::iter(calls).buffer_unordered(40).collect().await;
        assert!(calls.iter().all(|same| *same) && calls.len() == 40);
    }
}

#[tokio::test]
async fn large_messages_pass_whole() {
    let (mesh, _, routers) = routes().await;
    let message: Bytes = (0..6 * 1024 * 1024_u32)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect::<Vec<_>>()
        .into();
    for router in routers {
        let mut grpc = client(router, mesh.ports.app).await;
        let call = grpc.unary(tonic::Request::new(message.clone()), method("Say"), Raw);
        let said = timeout(6 * PATIENCE, call).await.unwrap().unwrap().into_inner();
        assert!(said == message, "{} bytes came back", said.len());
    }
}

#[tokio::test]
async fn the_app_learns_what_the_client_says_and_nothing_of_what_is_between() {
    let (mesh, seen, _) = routes().await;
    let mut grpc = client(mesh.router, mesh.ports.app).await;
    let mut request = tonic::Request::new(Bytes::new());
    request.set_timeout(Duration::from_secs(7));
    request.metadata_mut().insert("x-mine", "kept".parse().unwrap());
    request
        .metadata_mut()
        .insert_bin("x-mine-bin", tonic::metadata::MetadataValue::from_bytes(&[0, 255]));
    timeout(PATIENCE, grpc.unary(request, method("Say"), Raw))
        .await
        .unwrap()
        .unwrap();
    let head = seen.only_head();
    assert_eq!(head["grpc-timeout"], "7000000u");
    assert_eq!(head["te"], "trailers");
    assert_eq!(head["content-type"], "application/grpc");
    assert_eq!(
        (&head["x-mine"], &head["x-mine-bin"]),
        (&"kept".parse().unwrap(), &"AP8".parse().unwrap())
    );
    assert_eq!(head["x-forwarded-host"], "grpc.example");
    for name in head.keys().map(http::HeaderName::as_str) {
        assert!(
            !name.starts_with("x-sandbox-") && !name.starts_with("x-sandgate-"),
            "{name}"
        );
        assert!(
            !["authorization", "connection", "transfer-encoding"].contains(&name),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_status_comes_with_its_message_and_its_metadata() {
    let (mesh, _, routers) = routes().await;
    for router in routers {
        let mut grpc = client(router, mesh.ports.app).await;
        let status = unary(&mut grpc, "Fail", Bytes::new()).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::ResourceExhausted, "no more: \u{fc}")
        );
        assert_eq!(status.metadata().get("x-left").unwrap(), "0");
        let status = unary(&mut grpc, "Unknown", Bytes::new()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn a_call_that_its_client_gives_up_is_given_up_at_the_app() {
    let (mesh, seen, routers) = routes().await;
    for router in routers {
        let mut grpc = client(router, mesh.ports.app).await;
        let call = tokio::spawn(async move { unary(&mut grpc, "Hang", Bytes::new()).await });
        timeout(PATIENCE, seen.hangs.notified()).await.expect("no call");
        call.abort();
        timeout(PATIENCE, seen.given_up.notified()).await.expect("not given up");
    }
}

#[tokio::test]
async fn a_reset_by_the_app_keeps_its_reason_and_never_looks_like_an_end() {
    let (mesh, _, routers) = routes().await;
    for router in routers {
        let mut grpc = client(router, mesh.ports.app).await;
        let call = grpc.server_streaming(tonic::Request::new(Bytes::new()), method("Break"), Raw);
        let mut messages = timeout(PATIENCE, call).await.unwrap().unwrap().into_inner();
        assert_eq!(
            timeout(PATIENCE, messages.message()).await.unwrap().unwrap().unwrap(),
            "x"
        );
        let status = timeout(PATIENCE, messages.message()).await.unwrap().unwrap_err();
        let (mut cause, mut reset) = (status.source(), None);
        while let (Some(error), None) = (cause, reset) {
            reset = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
            cause = error.source();
        }
        assert_eq!(reset, Some(h2::Reason::CANCEL), "{status:?}");
    }
}

#[tokio::test]
async fn an_app_gets_no_further_ahead_of_a_slow_reader_than_the_windows_between_them() {
    let (mesh, seen, routers) = routes().await;
    for router in routers {
        let mut grpc = client(router, mesh.ports.app).await;
        let before = seen.pieces.load(Ordering::Relaxed);
        let call = grpc.server_streaming(tonic::Request::new(Bytes::new()), method("Flood"), Raw);
        let mut messages = timeout(PATIENCE, call).await.unwrap().unwrap().into_inner();
        let mut last = before;
        loop {
            sleep(Duration::from_millis(300)).await;
            let now = seen.pieces.load(Ordering::Relaxed);
            if now == last {
                break;
            }
            last = now;
        }
        let ahead = (last - before) * PIECE;
        assert!(ahead < 16 * 1024 * 1024, "{ahead} bytes");
        // It goes on when the reader does.
        for _ in 0..(last - before + 20) {
            timeout(PATIENCE, messages.message()).await.unwrap().unwrap().unwrap();
        }
        assert!(seen.pieces.load(Ordering::Relaxed) > last);
    }
}

#[tokio::test]
async fn a_policy_holds_for_each_call_and_an_app_hears_nothing_of_what_it_refuses() {
    let (app, seen) = app::start().await;
    let mesh = Mesh::start(app, |ports| {
        rule(token_holder(), ports.app, &["POST"], &["/test.Echo/Say"])
    })
    .await;
    let mut grpc = client(mesh.router, mesh.ports.app).await;
    assert!(unary(&mut grpc, "Fail", Bytes::new()).await.is_err());
    let call = |path: &'static str, more: &'static [(&'static str, &'static str)]| {
        let port = mesh.ports.app;
        async move {
            let mut sender = connect::<http_body_util::Full<Bytes>>(mesh.router).await;
            let mut request = Request::post(format!("http://grpc.example{path}")).body(http_body_util::Full::default());
            let headers = request.as_mut().unwrap().headers_mut();
            headers.extend(head(port));
            headers.insert("content-type", "application/grpc".parse().unwrap());
            for (name, value) in more {
                headers.insert(*name, value.parse().unwrap());
            }
            let answer = timeout(PATIENCE, sender.send_request(request.unwrap()))
                .await
                .unwrap()
                .unwrap();
            status_and_detail(answer).await
        }
    };
    let (status, detail) = call("/test.Echo/Fail", &[]).await;
    assert_eq!(
        (status, detail.as_str()),
        (403, "Refused by the sandbox policy of alpha.")
    );
    assert_eq!(
        call("/test.Echo/Say", &[("authorization", "Bearer wrong")]).await.0,
        401
    );
    assert_eq!(call("/test.Echo//Say", &[]).await.0, 400);
    assert_eq!(call("/test.Echo/Say", &[("x-sandbox-port", "1")]).await.0, 403);
    seen.assert_untouched("refused");
    // Whoever claims to be somebody else is who he is.
    let claimed = call("/test.Echo/Say", &[("x-sandgate-caller", "static:admin")]).await;
    assert_eq!(claimed.0, 200);
    assert!(!seen.only_head().contains_key("x-sandgate-caller"));
}

#[tokio::test]
async fn apps_that_do_not_speak_http2_or_are_not_there_are_told_of_as_over_http_1_1() {
    let silent = RecordingApp::answering(Step::Answer(ok("hello"))).await;
    let (_held, closed) = closed_port();
    let not_http2 = RecordingApp::start(|_| Step::Close(ok("hello"))).await;
    let garbage = RecordingApp::start(|_| Step::Close(vec![0xff; 100_000])).await;
    let ports = [not_http2.port(), garbage.port(), closed];
    let mesh = Mesh::start(silent, |own| {
        default_policy(DefaultPolicy::Authenticated, [&[own.app], &ports[..]].concat())
    })
    .await;
    for port in ports {
        let mut sender = connect::<http_body_util::Full<Bytes>>(mesh.router).await;
        let mut request = Request::post("http://grpc.example/a.B/C")
            .body(http_body_util::Full::default())
            .unwrap();
        request.headers_mut().extend(head(port));
        request
            .headers_mut()
            .insert("content-type", "application/grpc+proto".parse().unwrap());
        let answer = timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
        let (status, detail) = status_and_detail(answer).await;
        assert_eq!(
            (status, detail.as_str()),
            (502, "Could not connect to the backend sandbox: alpha"),
            "{port}"
        );
    }
    mesh.app.assert_untouched("none was for it");
}

#[tokio::test]
async fn what_is_no_call_of_grpc_reaches_the_app_in_http_1_1() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for content_type in ["application/grpc-web+proto", "application/json", "application/grpcx"] {
        let mut sender = connect::<http_body_util::Full<Bytes>>(mesh.router).await;
        let mut request = Request::post("http://grpc.example/a.B/C")
            .body(http_body_util::Full::from("x"))
            .unwrap();
        request.headers_mut().extend(head(mesh.ports.app));
        request
            .headers_mut()
            .insert("content-type", content_type.parse().unwrap());
        let answer = timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
        assert_eq!(
            (answer.status(), text(answer).await.as_str()),
            (http::StatusCode::OK, "hello")
        );
        let arrived = mesh.app.take_only_request();
        assert!(arrived.head.starts_with("POST /a.B/C HTTP/1.1\r\n"), "{}", arrived.head);
    }
}
