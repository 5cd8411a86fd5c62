//! What a collector gets of the router: one trace of each request through router and gate, and the metrics. And what it can't
//! do to requests.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use data_encoding::HEXLOWER;
use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::{span, status as span_status};
use rustix::process::Signal;
use sandgate_local::authority::{Authority, LeafSpec, Usage};
use sandgate_mesh::policy::model::DefaultPolicy;
use sandgate_mesh::tls;
use sandgate_tests::collector::{Attributes, Collector, Received};
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{ProcessMesh, Programs, json_lines, metric as scraped};
use sandgate_tests::{
    Mesh, PATIENCE, POD_UID, RecordingApp, Step, TOKEN, default_policy, field, programs, send, signer, status,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;

const PROGRAMS: Programs = programs!();

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn hexadecimal(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// Nobody wants to wait for other spans here.
const SOON: &str = "--otel-bsp-schedule-delay=20";

fn sampled() -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n")
}

/// The router's span and the gate's.
fn both(spans: &[Received]) -> (&Received, &Received) {
    let of = |service: &str| {
        spans
            .iter()
            .find(|span| span.resource["service.name"] == service)
            .unwrap()
    };
    (of("sandbox-router"), of("sandbox-sidecar"))
}

fn assert_attributes(found: &Attributes, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(
            found.get(*name).map(String::as_str),
            Some(*value),
            "{name} in {found:?}"
        );
    }
}

/// What the app was told of the trace.
fn trace_at(app: &RecordingApp) -> Vec<String> {
    field(&app.only_request().head, "traceparent")
        .into_iter()
        .map(String::from)
        .collect()
}

#[tokio::test]
async fn one_trace_shows_the_router_and_the_gate_below_the_clients_span() {
    let mut collector = Collector::grpc().await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = mesh.run_router(&[
        &format!("--otlp-endpoint={}", collector.url()),
        "--otel-resource-attributes=deployment.environment.name=test,cloud.region=a%2Cb",
        "--enable-otel-metrics=false",
        SOON,
    ]);
    let fields = format!(
        "{}tracestate: vendor=1\r\nUser-Agent: curl/8\r\nContent-Length: 4\r\n",
        sampled()
    );
    let response = send(router, mesh.head("POST /a%2Fb?secret=1 HTTP/1.1", &fields) + "body").await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(!response.to_ascii_lowercase().contains("x-sandgate"), "{response}");

    let spans = collector.spans(2).await;
    let (router, gate) = both(&spans);
    for Received { span, .. } in [router, gate] {
        assert_eq!(hexadecimal(&span.trace_id), TRACE);
        assert_eq!(
            (span.name.as_str(), span.trace_state.as_str()),
            ("HTTP POST", "vendor=1")
        );
        assert_eq!(span.kind, i32::from(span::SpanKind::Server));
        assert_eq!(span.status, None);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
    }
    assert_eq!(hexadecimal(&router.span.parent_span_id), PARENT);
    assert_eq!(gate.span.parent_span_id, router.span.span_id);
    assert!(gate.span.start_time_unix_nano >= router.span.start_time_unix_nano);
    assert!(gate.span.end_time_unix_nano <= router.span.end_time_unix_nano);
    // The app is sent to in the gate's span.
    let sent = format!("00-{TRACE}-{}-01", hexadecimal(&gate.span.span_id));
    assert_eq!(trace_at(&mesh.app), [sent]);

    let common = [
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("url.path", "/a%2Fb"),
        ("url.scheme", "http"),
        ("network.protocol.version", "1.1"),
        ("sandbox.id", "alpha"),
        ("sandbox.namespace", "default"),
    ];
    assert_attributes(&router.attributes, &common);
    assert_attributes(&gate.attributes, &common);
    let of_router = [
        ("client.address", "127.0.0.1"),
        ("user_agent.original", "curl/8"),
        ("http.request.body.size", "4"),
        ("http.response.body.size", "5"),
    ];
    assert_attributes(&router.attributes, &of_router);
    let port = mesh.ports.app.to_string();
    assert_attributes(
        &gate.attributes,
        &[("sandgate.decision", "allow"), ("server.port", &port)],
    );
    let resource = [
        ("deployment.environment.name", "test"),
        ("cloud.region", "a,b"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    assert_attributes(&router.resource, &resource);
    assert_attributes(
        &gate.resource,
        &[
            ("k8s.namespace.name", "default"),
            ("sandbox.id", "alpha"),
            ("k8s.pod.uid", POD_UID),
        ],
    );
    let told = format!("{spans:?}");
    assert!(!told.contains("secret") && !told.contains(TOKEN), "{told}");
}

#[tokio::test]
async fn what_becomes_of_a_request_is_its_spans_status() {
    let mut collector = Collector::grpc().await;
    let broken = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".to_vec();
    for (step, change, code, decision, error) in [
        (
            Step::Close(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".into()),
            "",
            500,
            Some("allow"),
            Some("500"),
        ),
        (Step::Close(Vec::new()), "", 502, Some("allow"), Some("502")),
        (Step::Close(broken), "", 200, Some("allow"), Some("broken")),
        (Step::Wait, "port", 403, Some("deny"), None),
        (Step::Wait, "token", 401, None, None),
    ] {
        let mesh = Mesh::start(RecordingApp::answering(step).await, |ports| {
            default_policy(DefaultPolicy::Authenticated, vec![ports.app])
        })
        .await;
        let router = mesh.run_router(&[&format!("--otlp-traces-endpoint={}", collector.url()), SOON]);
        let head = mesh.head("CHOSEN / HTTP/1.1", &sampled());
        let head = match change {
            "port" => head.replace(&format!("X-Sandbox-Port: {}", mesh.ports.app), "X-Sandbox-Port: 1"),
            "token" => head.replace(TOKEN, "guessed"),
            _ => head,
        };
        let before = collector.inbox().spans.len();
        assert_eq!(status(&send(router, head).await), code);
        let expected = before + 1 + usize::from(decision.is_some());
        let spans = collector.spans(expected).await;
        let spans = &spans[before..];
        let router = &spans[0];
        assert_eq!(
            (
                router.span.name.as_str(),
                router.attributes["http.request.method_original"].as_str()
            ),
            ("HTTP _OTHER", "CHOSEN")
        );
        assert_eq!(router.attributes.get("error.type").map(String::as_str), error, "{code}");
        let failed = router.span.status.as_ref().map(|status| status.code);
        assert_eq!(failed, error.map(|_| span_status::StatusCode::Error.into()), "{code}");
        let found = spans.get(1).and_then(|gate| gate.attributes.get("sandgate.decision"));
        assert_eq!(found.map(String::as_str), decision, "{code}");
        if change == "port" {
            mesh.app.assert_untouched("refused");
        }
    }
}

#[tokio::test]
async fn over_http_the_same_arrives_with_the_headers_that_were_asked_for() {
    let mut collector = Collector::http().await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = mesh.run_router(&[
        &format!("--otlp-endpoint={}/prefix/", collector.url()),
        "--otlp-protocol=http/protobuf",
        "--otlp-headers=x-api-key=a%20b,x-other=1",
        "--otlp-metrics-headers=x-api-key=metrics",
        "--otel-metric-export-interval=100",
        "--otel-service-name=edge",
        SOON,
    ]);
    assert_eq!(status(&send(router, mesh.head("GET / HTTP/1.1", "")).await), 200);
    let inbox = collector
        .until(|inbox| inbox.spans.len() == 2 && !inbox.metrics.is_empty())
        .await;
    let head = |path: &str| &inbox.heads.iter().find(|(found, _)| found == path).unwrap().1;
    assert_eq!(head("/prefix/v1/traces")["x-api-key"], "a b");
    assert_eq!(head("/prefix/v1/traces")["x-other"], "1");
    assert_eq!(head("/prefix/v1/metrics")["x-api-key"], "metrics");
    assert!(!head("/prefix/v1/metrics").contains_key("x-other"));
    let router = inbox
        .spans
        .iter()
        .find(|span| span.resource["service.name"] == "edge")
        .unwrap();
    // Without a client's span it is the first of a trace.
    assert!(router.span.parent_span_id.is_empty() && router.span.trace_id.iter().any(|byte| *byte != 0));
}

#[tokio::test]
async fn metrics_arrive_under_the_names_that_are_scraped() {
    let mut collector = Collector::grpc().await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let flags = [
        &format!("--otlp-metrics-endpoint={}", collector.url()),
        "--otel-metric-export-interval=100ms",
    ];
    let router = mesh.run_router(&flags);
    for _ in 0..3 {
        assert_eq!(status(&send(router, mesh.head("GET / HTTP/1.1", "")).await), 200);
    }
    let number = |point: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint| match point.value {
        Some(number_data_point::Value::AsDouble(value)) => value,
        _ => panic!("{point:?}"),
    };
    let requests = |data: &metric::Data| match data {
        metric::Data::Sum(sum) if sum.is_monotonic => sum.data_points.iter().map(number).sum::<f64>(),
        _ => panic!("{data:?}"),
    };
    let inbox = collector
        .until(|inbox| {
            let counted = inbox.metrics.get("sandbox_router_requests_total");
            counted.is_some_and(|metric| requests(metric.data.as_ref().unwrap()) > 2.5)
        })
        .await;
    let Some(metric::Data::Histogram(histogram)) = &inbox.metrics["sandbox_router_request_duration_seconds"].data
    else {
        panic!("{:?}", inbox.metrics)
    };
    let point = &histogram.data_points[0];
    assert_eq!(point.count, 3);
    assert_eq!(point.bucket_counts.iter().sum::<u64>(), 3);
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    assert!(matches!(
        inbox.metrics["sandbox_router_inflight_requests"].data,
        Some(metric::Data::Gauge(_))
    ));
    let labels: Vec<_> = point.attributes.iter().map(|label| label.key.as_str()).collect();
    assert_eq!(labels, ["code", "method", "sandbox_namespace"]);
    // Only what was asked for: nobody traces here.
    assert!(inbox.spans.is_empty());
}

#[tokio::test]
async fn what_a_client_does_not_record_is_passed_on_as_it_came_and_nothing_is_exported() {
    let mut collector = Collector::grpc().await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = mesh.run_router(&[&format!("--otlp-traces-endpoint={}", collector.url()), SOON]);
    let parent = format!("00-{TRACE}-{PARENT}-00");
    let fields = format!("traceparent: {parent}\r\ntracestate: vendor=1\r\n");
    assert_eq!(status(&send(router, mesh.head("GET / HTTP/1.1", &fields)).await), 200);
    assert_eq!(trace_at(&mesh.app), [parent]);
    assert!(mesh.app.only_request().head.contains("vendor=1"));
    // Spans are sent in the order of their ends: one of this request would come first.
    assert_eq!(
        status(&send(router, mesh.head("GET / HTTP/1.1", &sampled())).await),
        200
    );
    let spans = collector.spans(2).await;
    assert_eq!(hexadecimal(&both(&spans).0.span.parent_span_id), PARENT);
}

/// Listens, takes connections and says nothing.
async fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_collector_that_is_away_or_silent_costs_spans_and_nothing_else() {
    let app = RecordingApp::polite().await;
    let (silent, address) = silent().await;
    let away = {
        let (_listener, address) = self::silent().await;
        address
    };
    for (collector, protocol) in [(address, "grpc"), (address, "http/protobuf"), (away, "grpc")] {
        let endpoint = format!("--otlp-endpoint=http://{collector}");
        let protocol = format!("--otlp-protocol={protocol}");
        let flags = [endpoint.as_str(), &protocol, "--otlp-timeout=200ms", SOON];
        let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &flags).await;
        for _ in 0..20 {
            let request = mesh.head("GET /", "Connection: close\r\n");
            assert_eq!(status(&send(mesh.http, request).await), 200);
        }
        mesh.router.logs("the collector takes no exports", 1).await;
        // It was tried again before that.
        let failed = r#"sandbox_router_otlp_dropped_spans_total{reason="failed"}"#;
        let given_up = async {
            while scraped(mesh.metrics, failed).await.as_deref() == Some("0") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE * 6, given_up).await.unwrap();
        // Some more wait by then.
        assert_eq!(
            status(&send(mesh.http, mesh.head("GET /", "Connection: close\r\n")).await),
            200
        );
        mesh.router.signal(Signal::TERM);
        let left = mesh.router.ended().await;
        assert_eq!(left.code, Some(0), "{}", left.stderr);
        let told = left.stderr.matches("the collector takes no exports").count();
        assert!(told <= 2, "told once for each signal: {}", left.stderr);
    }
    drop(silent);
}

#[tokio::test]
async fn the_last_spans_are_exported_when_the_router_ends() {
    let mut collector = Collector::grpc().await;
    let app = RecordingApp::polite().await;
    let endpoint = format!("--otlp-endpoint={}", collector.url());
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[&endpoint]).await;
    assert_eq!(
        status(&send(mesh.http, mesh.head("GET /", "Connection: close\r\n")).await),
        200
    );
    mesh.router.signal(Signal::TERM);
    assert_eq!(mesh.router.ended().await.code, Some(0));
    let inbox = collector
        .until(|inbox| inbox.spans.len() == 2 && !inbox.metrics.is_empty())
        .await;
    assert!(inbox.metrics.contains_key("sandbox_router_build_info"));
}

#[tokio::test]
async fn lines_of_router_and_gate_name_the_span_that_they_are_of() {
    let mut collector = Collector::grpc().await;
    let app = RecordingApp::answering(Step::Close(Vec::new())).await;
    let endpoint = format!("--otlp-traces-endpoint={}", collector.url());
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[&endpoint, SOON]).await;
    let fields = format!("Connection: close\r\n{}", sampled());
    assert_eq!(status(&send(mesh.http, mesh.head("GET /", &fields)).await), 502);
    mesh.router.logs("\"log\":\"access\"", 1).await;
    mesh.sidecar.logs("\"log\":\"audit\"", 1).await;
    let spans = collector.spans(2).await;
    let (router, gate) = both(&spans);
    let (router, gate) = (hexadecimal(&router.span.span_id), hexadecimal(&gate.span.span_id));
    let lines = json_lines(&mesh.router.stderr());
    let access = lines.iter().find(|line| line["log"] == "access").unwrap();
    assert_eq!(
        (&access["trace_id"], &access["span_id"]),
        (&TRACE.into(), &router.as_str().into())
    );
    let event = lines
        .iter()
        .find(|line| line["message"] == "the gate answered itself")
        .unwrap();
    assert_eq!(
        (&event["span"]["trace_id"], &event["span"]["span_id"]),
        (&TRACE.into(), &router.as_str().into())
    );
    let audit = json_lines(&mesh.sidecar.stderr());
    let audit = audit.iter().find(|line| line["log"] == "audit").unwrap();
    assert_eq!(
        (&audit["trace_id"], &audit["span_id"]),
        (&TRACE.into(), &gate.as_str().into())
    );
}

#[tokio::test]
async fn headers_for_the_collector_are_in_no_log() {
    let mut collector = Collector::grpc().await;
    let app = RecordingApp::polite().await;
    let flags = [
        &format!("--otlp-endpoint={}", collector.url()),
        "--otlp-headers=authorization=Bearer%20collector-secret",
        "--log-level=trace",
        SOON,
    ];
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &flags).await;
    assert_eq!(
        status(&send(mesh.http, mesh.head("GET /", "Connection: close\r\n")).await),
        200
    );
    let inbox = collector.until(|inbox| inbox.spans.len() == 2).await;
    assert_eq!(inbox.heads[0].1["authorization"], "Bearer collector-secret");
    mesh.router.signal(Signal::TERM);
    let left = mesh.router.ended().await;
    let line = left.stderr.lines().find(|line| line.contains("collector-secret"));
    assert_eq!(line, None);
}

#[tokio::test]
async fn a_collector_over_tls_is_believed_under_the_roots_that_were_named_and_no_others() {
    let (authority, stranger) = (
        Authority::new("collectors").unwrap(),
        Authority::new("collectors").unwrap(),
    );
    let mut leaf = LeafSpec::new("collector", "", Usage::Server);
    leaf.uris.clear();
    leaf.dns.push("localhost".into());
    let builder = ServerConfig::builder_with_provider(tls::provider());
    let mut config = builder
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(signer(&authority.issue(&leaf).unwrap())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut collector = Collector::grpc_over_tls(config).await;
    let folder = Folder::new();
    folder.rename_over("good.crt", authority.root_pem());
    folder.rename_over("other.crt", stranger.root_pem());
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let endpoint = format!("--otlp-traces-endpoint=https://localhost:{}", collector.port());
    for name in ["other", "good"] {
        let roots = folder.path(&format!("{name}.crt"));
        let router = mesh.run_router(&[&endpoint, &format!("--otlp-certificate={}", roots.display()), SOON]);
        let head = mesh.head(&format!("GET /{name} HTTP/1.1"), "");
        assert_eq!(status(&send(router, head).await), 200);
    }
    for span in collector.spans(2).await {
        assert_eq!(span.attributes["url.path"], "/good");
    }
}
