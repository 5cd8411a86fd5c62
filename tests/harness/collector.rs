//! A collector that takes OTLP over gRPC and over HTTP, and keeps what it was sent.

use crate::PATIENCE;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// Attributes by their names, each value as text.
pub type Attributes = BTreeMap<String, String>;

/// A span with what it is said to be of.
#[derive(Debug, Clone)]
pub struct Received {
    /// The span.
    pub span: Span,
    /// Its own attributes.
    pub attributes: Attributes,
    /// Those of its resource.
    pub resource: Attributes,
}

/// All that came.
#[derive(Debug, Clone, Default)]
pub struct Inbox {
    /// Spans in the order of their coming.
    pub spans: Vec<Received>,
    /// The metrics that came last, by name.
    pub metrics: BTreeMap<String, Metric>,
    /// The heads of all requests, and what they asked for.
    pub heads: Vec<(String, HeaderMap)>,
}

/// The collector.
pub struct Collector {
    address: SocketAddr,
    inbox: watch::Receiver<Inbox>,
}

fn attributes(list: &[KeyValue]) -> Attributes {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let all: Attributes = list
        .iter()
        .map(|attribute| (attribute.key.clone(), text(attribute)))
        .collect();
    assert_eq!(all.len(), list.len(), "an attribute occurs twice: {list:?}");
    all
}

impl Inbox {
    fn traces(&mut self, message: &[u8]) {
        for of in ExportTraceServiceRequest::decode(message).unwrap().resource_spans {
            let resource = attributes(&of.resource.unwrap().attributes);
            for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.spans.push(Received {
                    attributes: attributes(&span.attributes),
                    resource: resource.clone(),
                    span,
                });
            }
        }
    }

    fn metrics(&mut self, message: &[u8]) {
        for of in ExportMetricsServiceRequest::decode(message).unwrap().resource_metrics {
            for metric in of.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                self.metrics.insert(metric.name.clone(), metric);
            }
        }
    }
}

impl Collector {
    /// A collector over gRPC.
    pub async fn grpc() -> Self {
        Self::start(true, None).await
    }

    /// A collector over gRPC behind TLS.
    pub async fn grpc_over_tls(config: ServerConfig) -> Self {
        Self::start(true, Some(Arc::new(config))).await
    }

    /// A collector of protobuf messages over HTTP/1.1.
    pub async fn http() -> Self {
        Self::start(false, None).await
    }

    async fn start(grpc: bool, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, inbox) = watch::channel(Inbox::default());
        let sender = Arc::new(sender);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, tls) = (Arc::clone(&sender), tls.clone());
                let service = hyper::service::service_fn(move |request| take(Arc::clone(&sender), request, grpc));
                tokio::spawn(async move {
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let http1 = hyper::server::conn::http1::Builder::new();
                    let _ = match tls {
                        Some(config) => {
                            let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else {
                                return;
                            };
                            http2.serve_connection(TokioIo::new(stream), service).await
                        }
                        None if grpc => http2.serve_connection(TokioIo::new(stream), service).await,
                        None => http1.serve_connection(TokioIo::new(stream), service).await,
                    };
                });
            }
        });
        Self { address, inbox }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// All that came so far.
    pub fn inbox(&self) -> Inbox {
        self.inbox.borrow().clone()
    }

    /// Waits until what came is `enough`.
    pub async fn until(&mut self, enough: impl FnMut(&Inbox) -> bool) -> Inbox {
        let found = tokio::time::timeout(PATIENCE * 3, self.inbox.wait_for(enough)).await;
        found.expect("never came").unwrap().clone()
    }

    /// Waits until so many spans have come.
    pub async fn spans(&mut self, number: usize) -> Vec<Received> {
        let inbox = self.until(|inbox| inbox.spans.len() >= number).await;
        assert_eq!(inbox.spans.len(), number, "{:?}", inbox.spans);
        inbox.spans
    }
}

type Answer = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

async fn take(
    inbox: Arc<watch::Sender<Inbox>>,
    request: Request<Incoming>,
    grpc: bool,
) -> Result<Answer, hyper::Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await?.to_bytes();
    // RFC-less, but written down: a message has a byte for compression and four for its length before it.
    let message = if grpc { body.slice(5..) } else { body.clone() };
    if grpc {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        assert_eq!(body[..5], [[0].as_slice(), &length].concat());
        assert_eq!(head.headers["content-type"], "application/grpc");
    } else {
        assert_eq!(head.headers["content-type"], "application/x-protobuf");
    }
    inbox.send_modify(|inbox| {
        inbox.heads.push((path.clone(), head.headers));
        match path.as_str() {
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export" if grpc => inbox.traces(&message),
            "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" if grpc => inbox.metrics(&message),
            path if !grpc && path.ends_with("/traces") => inbox.traces(&message),
            path if !grpc && path.ends_with("/metrics") => inbox.metrics(&message),
            path => panic!("what is {path}?"),
        }
    });
    Ok(if grpc {
        let mut empty = BytesMut::new();
        empty.put_bytes(0, 5);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames = [Frame::data(empty.freeze()), Frame::trailers(trailers)].map(Ok);
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed();
        let mut response = Response::new(body);
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    } else {
        Response::new(Full::new(Bytes::new()).boxed())
    })
}
