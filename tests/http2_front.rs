//! HTTP/2 at the router's front by a real client: with TLS and by prior knowledge. What it makes of a request reaches the
//! app in HTTP/1.1, and nothing that has two readings does.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::SendRequest;
use sandgate_tests::front::{Front, NAME, config};
use sandgate_tests::http2::{block, connect, frame, head, over, status_and_detail, text};
use sandgate_tests::{Mesh, PATIENCE, POD_UID, RecordingApp, Step, field, ok, status};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

type Client = SendRequest<Full<Bytes>>;

fn get(mesh: &Mesh, path: &str) -> Request<Full<Bytes>> {
    let mut request = Request::get(format!("http://front.example{path}"))
        .body(Full::default())
        .unwrap();
    request.headers_mut().extend(head(mesh.ports.app));
    request
}

fn post(mesh: &Mesh, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = get(mesh, path).map(|_| Full::new(body.into()));
    *request.method_mut() = Method::POST;
    request
}

async fn answer(client: &mut Client, request: Request<Full<Bytes>>) -> http::Response<hyper::body::Incoming> {
    timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_request_over_http2_is_one_over_http_1_1_to_the_app() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for router in mesh.run_both(&[]) {
        let mut client: Client = connect(router).await;
        let mut request = post(&mesh, "/a%2Fb?c=%20d", "body");
        let headers = request.headers_mut();
        for (name, value) in [
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("te", "trailers"),
            ("x-two", "1"),
            ("x-two", "2"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        headers.insert("x-sandgate-caller", "static:admin".parse().unwrap());
        let found = answer(&mut client, request).await;
        assert_eq!((found.status(), text(found).await.as_str()), (StatusCode::OK, "hello"));
        let arrived = mesh.app.take_only_request();
        let app = format!("127.0.0.1:{}", mesh.ports.app);
        assert!(
            arrived.head.starts_with("POST /a%2Fb?c=%20d HTTP/1.1\r\n"),
            "{}",
            arrived.head
        );
        assert_eq!(arrived.data(), b"body");
        for (name, values) in [
            ("host", &[app.as_str()][..]),
            ("cookie", &["a=1; b=2"]),
            ("x-two", &["1", "2"]),
            ("x-forwarded-host", &["front.example"]),
            ("x-forwarded-proto", &["http"]),
            ("content-length", &["4"]),
            ("x-sandgate-caller", &[]),
            ("authorization", &[]),
            ("upgrade", &[]),
        ] {
            assert_eq!(field(&arrived.head, name), values, "{name}: {}", arrived.head);
        }
    }
}

#[tokio::test]
async fn over_tls_the_client_chooses_the_version_and_its_app_is_told_of_https() {
    let front = Front::open("off").await;
    let offered = |protocols: &[&[u8]]| {
        let mut config = ClientConfig::clone(&config(&front.authority, None));
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let https = front.https;
        async move {
            let stream = TcpStream::connect(https).await.unwrap();
            let connector = TlsConnector::from(Arc::new(config));
            connector.connect(NAME.try_into().unwrap(), stream).await.unwrap()
        }
    };
    for protocols in [&[&b"h2"[..]][..], &[b"http/1.1", b"h2"]] {
        let stream = offered(protocols).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut client: Client = over(stream).await;
        let found = answer(&mut client, get(&front.mesh, "/")).await;
        assert_eq!(found.status(), StatusCode::OK);
        let arrived = front.mesh.app.take_only_request().head;
        assert_eq!(field(&arrived, "x-forwarded-proto"), ["https"], "{arrived}");
    }
    for protocols in [&[&b"http/1.1"[..]][..], &[]] {
        let stream = offered(protocols).await;
        assert_ne!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let response = sandgate_tests::exchange(stream, front.mesh.head("GET / HTTP/1.1", ""), false).await;
        assert_eq!(status(&response), 200, "{response}");
    }
    front.mesh.app.forget();
    // Who agreed on one version and speaks the other is not understood.
    let preface = sandgate_tests::http2::PREFACE;
    for protocols in [&[&b"http/1.1"[..]][..], &[]] {
        let response = sandgate_tests::exchange(offered(protocols).await, preface, false).await;
        assert_eq!(status(&response), 400, "{response}");
    }
    let head = front.mesh.head("GET / HTTP/1.1", "");
    let response = sandgate_tests::exchange(offered(&[b"h2"]).await, head, false).await;
    assert_eq!(status(&response), 0, "{response}");
    front.mesh.app.assert_untouched("the other version");
}

#[tokio::test]
async fn a_preface_is_known_in_whatever_pieces_it_comes_and_nothing_else_is_one() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let start = [sandgate_tests::http2::PREFACE, &frame(4, 0, 0, &[])].concat();
    for piece in start.chunks(5) {
        stream.write_all(piece).await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    // Its own settings come, and then an acknowledgement of the client's.
    let acknowledgement = frame(4, 1, 0, &[]);
    let mut heard = Vec::new();
    while !heard
        .windows(acknowledgement.len())
        .any(|bytes| bytes == acknowledgement)
    {
        let read = timeout(PATIENCE, stream.read_buf(&mut heard)).await.unwrap().unwrap();
        assert_ne!(read, 0, "{heard:?}");
    }
    for almost in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
        "PRI * HTTP/1.1\r\n\r\n",
        "PRI / HTTP/2.0\r\n\r\n",
    ] {
        let response = mesh.send(almost).await;
        assert_eq!(status(&response), 400, "{almost:?}: {response}");
    }
    mesh.app.assert_untouched("no request");
}

#[tokio::test]
async fn many_streams_are_served_at_once_and_each_gets_its_own_answer() {
    let app = RecordingApp::serving(|mut stream| async move {
        let head = sandgate_tests::read_until(&mut stream, b"\r\n\r\n").await;
        sleep(Duration::from_millis(100)).await;
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let _ = stream.write_all(&ok(&path)).await;
    });
    let mesh = Mesh::open(app.await).await;
    let client: Client = connect(mesh.router).await;
    let answers = stream::iter(0..60).map(|number| {
        let mut client = client.clone();
        let request = get(&mesh, &format!("/{number}"));
        async move { text(answer(&mut client, request).await).await == format!("/{number}") }
    });
    let answers: Vec<bool> = answers.buffer_unordered(60).collect().await;
    assert!(answers.len() == 60 && answers.iter().all(|own| *own));
}

#[tokio::test]
async fn what_is_over_a_cap_or_can_be_read_in_two_ways_is_refused_in_the_words_of_http_1_1() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let mut client: Client = connect(mesh.router).await;
    let with = |headers: &[(&'static str, &str)]| {
        let mut request = get(&mesh, "/");
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request
    };
    let many = vec![("x-a", "b"); 100];
    for (name, request, status, detail) in [
        (
            "target",
            get(&mesh, &format!("/{}", "a".repeat(8 * 1024))),
            414,
            "Request target is too long.",
        ),
        (
            "head",
            with(&[("x-a", &"b".repeat(60 * 1024))]),
            431,
            "Header section is too large.",
        ),
        ("headers", with(&many), 431, "Too many header fields."),
        (
            "Host beside authority",
            with(&[("host", "other.example")]),
            400,
            "The request's authority is malformed, or is not its Host.",
        ),
        (
            "two lengths",
            with(&[("content-length", "0"), ("content-length", "0")]),
            400,
            "Content-Length is repeated.",
        ),
        (
            "two IDs",
            with(&[("x-sandbox-id", "beta")]),
            400,
            "Duplicate X-Sandbox-ID header.",
        ),
        (
            "two tokens",
            with(&[("authorization", "Bearer b")]),
            401,
            "Missing or invalid Authorization header.",
        ),
    ] {
        let found = status_and_detail(answer(&mut client, request).await).await;
        assert_eq!(found, (status, detail.to_owned()), "{name}");
        mesh.app.assert_untouched(name);
    }
    let mut request = get(&mesh, "/");
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "front.example:443".parse().unwrap();
    let found = status_and_detail(answer(&mut client, request).await).await;
    assert_eq!(found, (405, "CONNECT is not supported.".to_owned()));
    let mut request = get(&mesh, "/0");
    *request.method_mut() = Method::from_bytes(b"SANDGATE-REFUSED").unwrap();
    assert_eq!(answer(&mut client, request).await.status(), 400);
    mesh.app.assert_untouched("CONNECT and a reserved method");
    // All on one connection, which is as good as before.
    assert_eq!(answer(&mut client, get(&mesh, "/")).await.status(), 200);
}

#[tokio::test]
async fn trailers_pass_and_an_answer_that_breaks_off_never_looks_whole() {
    let with_trailers =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nab\r\n0\r\nx-sum: 7\r\n\r\n";
    let mesh = Mesh::open(RecordingApp::answering(Step::Answer(with_trailers.into())).await).await;
    for router in mesh.run_both(&[]) {
        let mut client: Client = connect(router).await;
        let mut request = get(&mesh, "/");
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let found = answer(&mut client, request).await;
        let body = timeout(PATIENCE, found.into_body().collect()).await.unwrap().unwrap();
        assert_eq!(body.trailers().unwrap()["x-sum"], "7");
        assert_eq!(body.to_bytes(), "ab");
    }
    for cut in [
        "Content-Length: 9\r\n\r\nab",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    ] {
        let answer_bytes = format!("HTTP/1.1 200 OK\r\n{cut}").into_bytes();
        let mesh = Mesh::open(RecordingApp::answering(Step::Close(answer_bytes)).await).await;
        let mut client: Client = connect(mesh.router).await;
        let found = answer(&mut client, get(&mesh, "/")).await;
        let body = timeout(PATIENCE, found.into_body().collect()).await.unwrap();
        assert!(body.is_err(), "{cut:?}");
        // Only that stream is lost.
        assert_eq!(answer(&mut client, get(&mesh, "/")).await.status(), 200);
    }
}

#[tokio::test]
async fn an_upload_that_its_client_gives_up_never_looks_whole_to_the_app() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let mut client: SendRequest<UnsyncBoxBody<Bytes, h2::Error>> = connect(mesh.router).await;
    let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"half")))]);
    let frames = frames.chain(stream::once(async {
        sleep(Duration::from_millis(200)).await;
        Err(h2::Error::from(h2::Reason::CANCEL))
    }));
    let request = post(&mesh, "/", "").map(|_| StreamBody::new(frames).boxed_unsync());
    assert!(timeout(PATIENCE, client.send_request(request)).await.unwrap().is_err());
    let seen = async {
        while mesh.app.requests().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert!(!mesh.app.only_request().complete);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_within_passes() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = mesh.run_router(&["--max-request-body-bytes=10"]);
    let mut client: Client = connect(router).await;
    let found = status_and_detail(answer(&mut client, post(&mesh, "/", "01234567890")).await).await;
    assert_eq!(found, (413, "Request body is too large.".to_owned()));
    mesh.app.assert_untouched("too large");
    assert_eq!(answer(&mut client, post(&mesh, "/", "0123456789")).await.status(), 200);
}

#[tokio::test]
async fn a_drain_tells_clients_to_go_elsewhere_and_lets_streams_finish() {
    let (ask, asked) = oneshot::channel::<()>();
    let ask = std::sync::Mutex::new(Some(ask));
    let app = RecordingApp::start(move |_| {
        if let Some(ask) = ask.lock().unwrap().take() {
            let _ = ask.send(());
        }
        std::thread::sleep(Duration::from_millis(500));
        Step::Answer(ok("late"))
    });
    let mesh = Mesh::open(app.await).await;
    let router = mesh.bind_router("default/alpha", POD_UID, &[]);
    let address = router.http_address();
    let (drain, drained) = oneshot::channel::<()>();
    let running = tokio::spawn(router.run(async {
        let _ = drained.await;
    }));
    let mut client: Client = connect(address).await;
    let request = get(&mesh, "/");
    let mut sender = client.clone();
    let under_way = tokio::spawn(async move { text(answer(&mut sender, request).await).await });
    timeout(PATIENCE, asked).await.unwrap().unwrap();
    drain.send(()).unwrap();
    assert_eq!(timeout(PATIENCE, under_way).await.unwrap().unwrap(), "late");
    timeout(PATIENCE, running).await.unwrap().unwrap().unwrap();
    assert!(
        timeout(PATIENCE, client.send_request(get(&mesh, "/")))
            .await
            .unwrap()
            .is_err()
    );
    assert_eq!(mesh.app.requests().len(), 1);
}

/// An app that speaks HTTP/2 and answers with `hints` informational heads and a final one.
async fn hinting(hints: usize) -> RecordingApp {
    RecordingApp::serving(move |mut stream| async move {
        let mut buffer = [0; 4096];
        let _ = stream.write_all(&frame(4, 0, 0, &[])).await;
        // Up to the header of a HEADERS frame of stream 1.
        let mut heard = Vec::new();
        while !heard.windows(6).any(|bytes| matches!(bytes, [1, _, 0, 0, 0, 1])) {
            match stream.read(&mut buffer).await {
                Ok(1..) => heard.extend_from_slice(&buffer),
                _ => return,
            }
        }
        let hint = frame(1, 4, 1, &block(&[(":status", "103")]));
        let last = frame(1, 5, 1, &block(&[(":status", "200"), ("grpc-status", "0")]));
        let _ = stream.write_all(&frame(4, 1, 0, &[])).await;
        let _ = stream.write_all(&[hint.repeat(hints), last].concat()).await;
        // Until nobody wants to hear more.
        while let Ok(1..) = stream.read(&mut buffer).await {}
    })
    .await
}

/// Over HTTP/1.1 it is `hostile_app` that tries this. h2 keeps every such head until it is asked for, and nobody asks.
#[tokio::test]
async fn an_app_that_speaks_http2_has_as_few_informational_answers_as_any() {
    // Heads are counted and not read: this answer has no trailers, and so one informational one more.
    for (hints, expected) in [(8, 200), (10, 502), (100_000, 502)] {
        let mesh = Mesh::open(hinting(hints).await).await;
        for router in mesh.run_both(&[]) {
            let mut client: Client = connect(router).await;
            let mut request = post(&mesh, "/hint", Bytes::new());
            let headers = request.headers_mut();
            headers.insert("content-type", "application/grpc".parse().unwrap());
            headers.insert("te", "trailers".parse().unwrap());
            assert_eq!(answer(&mut client, request).await.status(), expected, "{hints}");
        }
    }
}
