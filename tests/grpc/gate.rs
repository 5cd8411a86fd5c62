//! Who goes to the gate itself in HTTP/2 meets the same questions as in HTTP/1.1.

use crate::app;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::Full;
use hyper::client::conn::http2::SendRequest;
use hyper::ext::Protocol;
use sandgate_local::authority::Issued;
use sandgate_mesh::tls;
use sandgate_tests::http2::{PREFACE, over, status_and_detail};
use sandgate_tests::{Mesh, PATIENCE, ROUTER, WORKLOAD, exchange, status};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;

async fn connect(mesh: &Mesh, certificate: &Issued, protocol: &str) -> TlsStream<TcpStream> {
    let mut config = ClientConfig::clone(&mesh.client_config(Some(certificate)));
    config.alpn_protocols = vec![protocol.into()];
    let stream = TcpStream::connect(("127.0.0.1", mesh.ports.mesh)).await.unwrap();
    tls::connect_mesh(stream, Arc::new(config)).await.unwrap().0
}

fn call(port: u16, assertions: &[&'static str]) -> Request<Full<Bytes>> {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("x-sandbox-port", port.into());
    for assertion in assertions {
        headers.append("x-sandgate-caller", HeaderValue::from_static(assertion));
    }
    let mut request = Request::post("http://gate/test.Echo/Say")
        .body(Full::default())
        .unwrap();
    request.headers_mut().extend(headers);
    request
}

async fn asked(client: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> u16 {
    let answer = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    status_and_detail(answer).await.0
}

const SOMEBODY: &str = "v1;static;default";

#[tokio::test]
async fn a_peer_is_who_its_certificate_says_and_goes_where_it_may() {
    let (app, seen) = app::start().await;
    let mesh = Mesh::open(app).await;
    let issue = |identity: &str| mesh.authority.router(&identity.parse().unwrap()).unwrap();
    let (router, workload) = (issue(ROUTER), issue(WORKLOAD));
    let ports = mesh.ports;

    let mut client = over(connect(&mesh, &workload, "sandgate-h2/1").await).await;
    assert_eq!(asked(&mut client, call(ports.app, &[SOMEBODY])).await, 400);
    assert_eq!(asked(&mut client, call(ports.app, &[])).await, 403);

    let mut client = over(connect(&mesh, &router, "sandgate-h2/1").await).await;
    assert_eq!(asked(&mut client, call(ports.app, &[])).await, 400);
    assert_eq!(asked(&mut client, call(ports.app, &[SOMEBODY, SOMEBODY])).await, 400);
    assert_eq!(asked(&mut client, call(ports.app, &["v1;static"])).await, 400);
    assert_eq!(asked(&mut client, call(ports.mesh, &[SOMEBODY])).await, 403);
    assert_eq!(asked(&mut client, call(ports.health, &[SOMEBODY])).await, 403);
    let mut connects = call(ports.app, &[SOMEBODY]);
    *connects.method_mut() = Method::CONNECT;
    *connects.uri_mut() = "127.0.0.1:22".parse().unwrap();
    assert_eq!(asked(&mut client, connects).await, 405);
    let mut connects = call(ports.app, &[SOMEBODY]);
    *connects.method_mut() = Method::CONNECT;
    connects.extensions_mut().insert(Protocol::from_static("websocket"));
    let answer = timeout(PATIENCE, client.send_request(connects)).await.unwrap();
    assert!(answer.is_err(), "an extended CONNECT was answered");
    seen.assert_untouched("refused");

    let mut client = over(connect(&mesh, &router, "sandgate-h2/1").await).await;
    assert_eq!(asked(&mut client, call(ports.app, &[SOMEBODY])).await, 200);
    assert!(!seen.only_head().contains_key("x-sandgate-caller"));
}

#[tokio::test]
async fn a_connection_speaks_the_version_that_was_agreed_on_and_no_other() {
    let (app, seen) = app::start().await;
    let mesh = Mesh::open(app).await;
    let router = mesh.authority.router(&ROUTER.parse().unwrap()).unwrap();
    let http1 = exchange(connect(&mesh, &router, "sandgate-h1/1").await, PREFACE, false).await;
    assert_eq!(status(&http1), 400, "{http1}");
    let request = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Sandbox-Port: {}\r\nX-Sandgate-Caller: {SOMEBODY}\r\n\r\n",
        mesh.ports.app
    );
    let http2 = exchange(connect(&mesh, &router, "sandgate-h2/1").await, request, false).await;
    assert_eq!(status(&http2), 0, "{http2}");
    seen.assert_untouched("the other version");
}
