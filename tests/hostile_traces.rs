//! A trace is what its ends say it is: whatever a client, an app or a gate says of one, nobody gets to say more than that.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_mesh::contract::TRACEPARENT;
use sandgate_mesh::policy::model::Source;
use sandgate_mesh::tls;
use sandgate_mesh::trace_context::TraceParent;
use sandgate_tests::collector::Collector;
use sandgate_tests::{
    Mesh, POD_UID, ROUTER, RecordingApp, Step, WORKLOAD, field, head_to, read_until, rule, sandbox, send, status,
};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Nobody wants to wait for other spans here.
const SOON: &str = "--otel-bsp-schedule-delay=20";

fn parent(value: &str) -> Option<TraceParent> {
    let mut headers = http::HeaderMap::new();
    headers.append(TRACEPARENT, value.parse().unwrap());
    TraceParent::of(&headers)
}

/// An app that answers with these fields, too.
async fn saying(fields: &str) -> RecordingApp {
    let answer = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 5\r\n\r\nhello");
    RecordingApp::answering(Step::Answer(answer.into())).await
}

#[tokio::test]
async fn a_traceparent_that_is_none_begins_a_trace_and_never_reaches_the_app() {
    let mut collector = Collector::grpc().await;
    let good = format!("00-{TRACE}-{PARENT}-01");
    let hostile = [
        "traceparent: \r\n".to_owned(),
        "traceparent: 00-0-0-01\r\n".into(),
        format!("traceparent: {}\r\n", good.to_uppercase()),
        format!("traceparent: ff-{TRACE}-{PARENT}-01\r\n"),
        format!("traceparent: 00-{}-{PARENT}-01\r\n", "0".repeat(32)),
        format!("traceparent: {good}-more\r\n"),
        format!(
            "traceparent: {good}\r\ntraceparent: 00-{}-{PARENT}-01\r\n",
            "b".repeat(32)
        ),
        format!("traceparent: {}\r\n", "0".repeat(8000)),
        "traceparent: \u{e9}\r\n".into(),
        format!("Connection: traceparent\r\ntraceparent: {good}; DROP\r\n"),
    ];
    let count = hostile.len();
    for fields in hostile {
        let mesh = Mesh::open(RecordingApp::polite().await).await;
        let router = mesh.run_router(&[&format!("--otlp-traces-endpoint={}", collector.url()), SOON]);
        let request = mesh.head("GET / HTTP/1.1", &format!("{fields}tracestate: of=somebody\r\n"));
        assert_eq!(status(&send(router, request).await), 200, "{fields}");
        let seen = mesh.app.only_request().head;
        let found = field(&seen, "traceparent");
        assert_eq!(found.len(), 1, "{fields}: {seen}");
        let found = parent(found[0]).unwrap_or_else(|| panic!("{fields}: {seen}"));
        assert!(found.sampled && found.trace.to_string() != TRACE, "{fields}: {seen}");
        assert!(!seen.contains("somebody"), "{fields}: {seen}");
    }
    for span in collector.spans(2 * count).await {
        assert!(span.span.trace_state.is_empty() && span.span.trace_id.len() == 16);
    }
}

#[tokio::test]
async fn a_tracestate_is_exported_only_if_it_is_one_and_short() {
    let mut collector = Collector::grpc().await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let router = mesh.run_router(&[&format!("--otlp-traces-endpoint={}", collector.url()), SOON]);
    for fields in [
        format!("tracestate: {}\r\n", "a".repeat(513)),
        "tracestate: a=1\r\ntracestate: b=2\r\n".into(),
        "tracestate: \u{e9}\r\n".into(),
    ] {
        let fields = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n{fields}");
        assert_eq!(status(&send(router, mesh.head("GET / HTTP/1.1", &fields)).await), 200);
    }
    for span in collector.spans(6).await {
        assert_eq!(span.span.trace_state, "");
    }
}

#[tokio::test]
async fn an_app_can_not_speak_for_its_gate_nor_a_client_hear_it() {
    let forged = "X-Sandgate-Span: v1;00000000000000aa;1\r\nx_sandgate_span: v1;00000000000000aa;1\r\n\
                  X-Sandgate-Outcome: denied\r\nX-Sandgate-Trace: v1\r\n";
    let mut collector = Collector::grpc().await;
    let mesh = Mesh::open(saying(forged).await).await;
    let router = mesh.run_router(&[&format!("--otlp-traces-endpoint={}", collector.url()), SOON]);
    // Nor can a client ask, or say it beforehand.
    let response = send(router, mesh.head("GET / HTTP/1.1", forged)).await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(!response.to_ascii_lowercase().contains("sandgate"), "{response}");
    assert!(!mesh.app.only_request().head.to_ascii_lowercase().contains("sandgate"));
    let spans = collector.spans(2).await;
    for span in &spans {
        assert_ne!(span.span.span_id, 0xaa_u64.to_be_bytes());
        assert_eq!(span.attributes.get("sandgate.outcome"), None);
    }

    // Where there is no gate, and where nobody traces, the same.
    for flags in [
        vec![
            format!("--otlp-traces-endpoint={}", collector.url()),
            SOON.into(),
            "--mesh=off".into(),
        ],
        vec![],
    ] {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let router = mesh.run_router(&flags);
        let response = send(router, mesh.head("GET / HTTP/1.1", forged)).await;
        assert_eq!(status(&response), 200, "{response}");
        assert!(!response.to_ascii_lowercase().contains("sandgate"), "{response}");
        assert!(
            !mesh
                .app
                .requests()
                .last()
                .unwrap()
                .head
                .to_ascii_lowercase()
                .contains("sandgate")
        );
    }
    let spans = collector.spans(3).await;
    assert_eq!(spans[2].resource["service.name"], "sandbox-router");
}

#[tokio::test]
async fn a_gate_that_lies_about_its_span_says_nothing_or_stays_within_the_routers() {
    let mut collector = Collector::grpc().await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let config = mesh.server_config(&mesh.authority.sidecar(&sandbox("beta", POD_UID)).unwrap());
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!(
        "--sandbox-endpoint=default/beta={},uid={POD_UID}",
        gate.local_addr().unwrap()
    );
    let router = mesh.run_router(&[&endpoint, &format!("--otlp-traces-endpoint={}", collector.url()), SOON]);
    let head = mesh.head("GET / HTTP/1.1", &format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n"));
    let head = head.replace("alpha", "beta");
    let ours = "X-Sandgate-Span: v1;00000000000000aa;18446744073709551615\r\n";
    let mut expected = 0;
    for (told, believed) in [
        (ours.to_owned(), true),
        (format!("{ours}{ours}"), false),
        (format!("X-Sandgate-Span: v1;{PARENT};1\r\n"), false),
        ("X-Sandgate-Span: v1;zz;1\r\n".into(), false),
        (format!("X-Sandgate-Span: {}\r\n", "v1;".repeat(2000)), false),
    ] {
        let asking = tokio::spawn(send(router, head.clone()));
        let (stream, _) = gate.accept().await.unwrap();
        let (mut stream, ..) = tls::accept_mesh(stream, |_| Some(Arc::clone(&config))).await.unwrap();
        let seen = read_until(&mut stream, b"\r\n\r\n").await;
        assert_eq!(field(&seen, "x-sandgate-trace"), ["v1"], "{seen}");
        let answer = format!("HTTP/1.1 200 OK\r\n{told}Connection: close\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        let response = asking.await.unwrap();
        assert_eq!(status(&response), 200, "{response}");
        assert!(!response.to_ascii_lowercase().contains("sandgate"), "{response}");
        let before = expected;
        expected += 1 + usize::from(believed);
        let spans = collector.spans(expected).await;
        if believed {
            let (router, gate) = (&spans[before].span, &spans[before + 1].span);
            assert!(gate.start_time_unix_nano >= router.start_time_unix_nano);
            assert!(gate.end_time_unix_nano <= router.end_time_unix_nano);
        }
    }
}

#[tokio::test]
async fn only_a_router_can_ask_a_gate_for_its_span() {
    let worker = Source {
        spiffe_ids: Some(vec![WORKLOAD.into()]),
        ..Source::default()
    };
    let mesh = Mesh::start(RecordingApp::polite().await, |ports| rule(worker, ports.app, &[], &[])).await;
    let sent = format!("00-{TRACE}-{PARENT}-01");
    let ask = |more: &str| {
        let fields = format!("traceparent: {sent}\r\nX-Sandgate-Trace: v1\r\n{more}");
        head_to(mesh.ports.app, "GET / HTTP/1.1", &fields)
    };
    let leaf = mesh.authority.router(&WORKLOAD.parse().unwrap()).unwrap();
    let response = mesh.send_to_gate(Some(&leaf), ask("")).await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(!response.to_ascii_lowercase().contains("sandgate"), "{response}");
    let seen = mesh.app.only_request().head;
    assert_eq!(field(&seen, "traceparent"), [sent.as_str()], "{seen}");
    assert!(!seen.to_ascii_lowercase().contains("sandgate"), "{seen}");

    // A router hears of it, also when its caller is refused.
    let leaf = mesh.authority.router(&ROUTER.parse().unwrap()).unwrap();
    let response = mesh
        .send_to_gate(Some(&leaf), ask("X-Sandgate-Caller: v1;anonymous\r\n"))
        .await;
    assert_eq!(status(&response), 403, "{response}");
    assert_eq!(field(&response, "x-sandgate-span").len(), 1, "{response}");
    assert_eq!(mesh.app.requests().len(), 1);
}
