use super::super::{Config, ConfigError};
use super::*;

fn read(flags: &[&str]) -> Result<Config, ConfigError> {
    let flags = ["--authz-mode=allow-all"].iter().chain(flags);
    Config::from_args(flags.map(Into::into).collect())
}

fn otlp(flags: &[&str]) -> Option<OtlpSettings> {
    read(flags).unwrap().otlp
}

/// The places of both signals.
fn places(flags: &[&str]) -> [Option<String>; 2] {
    let settings = otlp(flags);
    let traces = settings.as_ref().and_then(|settings| settings.traces.as_ref());
    let metrics = settings.as_ref().and_then(|settings| settings.metrics.as_ref());
    [
        traces.map(|traces| traces.export.endpoint.to_string()),
        metrics.map(|metrics| metrics.export.endpoint.to_string()),
    ]
}

#[test]
fn an_endpoint_switches_its_signal_on_and_an_explicit_false_wins() {
    let grpc = Some("http://c:4317/".to_owned());
    let general = "--otlp-endpoint=http://c:4317";
    for (flags, traces, metrics) in [
        (&[][..], false, false),
        (&["--otlp-endpoint="], false, false),
        (&[general], true, true),
        (&[general, "--enable-tracing=false"], false, true),
        (&[general, "--enable-otel-metrics=false"], true, false),
        (&["--otlp-traces-endpoint=http://c:4317"], true, false),
        (&["--otlp-metrics-endpoint=http://c:4317"], false, true),
        (&[general, "--otel-sdk-disabled=TRUE"], false, false),
        (&[general, "--otel-sdk-disabled=false"], true, true),
        (&[general, "--otel-sdk-disabled=true", "--enable-tracing"], false, false),
    ] {
        let expected = [traces, metrics].map(|on| grpc.clone().filter(|_| on));
        assert_eq!(places(flags), expected, "{flags:?}");
    }
    assert_eq!(
        places(&["--enable-tracing"]),
        [Some("http://localhost:4317/".into()), None]
    );
}

#[test]
fn over_http_each_signal_has_its_path_and_an_endpoint_of_its_own_is_taken_as_it_is() {
    let http = "--otlp-protocol=http/protobuf";
    for (flags, traces, metrics) in [
        (
            &["--enable-tracing", "--enable-otel-metrics"][..],
            "http://localhost:4318/v1/traces",
            "http://localhost:4318/v1/metrics",
        ),
        (
            &["--otlp-endpoint=https://c/otlp/"],
            "https://c/otlp/v1/traces",
            "https://c/otlp/v1/metrics",
        ),
        (
            &["--otlp-endpoint=http://c", "--otlp-traces-endpoint=http://t:1/x"],
            "http://t:1/x",
            "http://c/v1/metrics",
        ),
    ] {
        let flags = [flags, &[http]].concat();
        assert_eq!(places(&flags), [Some(traces.into()), Some(metrics.into())], "{flags:?}");
    }
    let mixed = otlp(&["--otlp-endpoint=http://c:1", "--otlp-traces-protocol=http/protobuf"]).unwrap();
    assert_eq!(mixed.traces.unwrap().export.protocol, OtlpProtocol::HttpProtobuf);
    assert_eq!(mixed.metrics.unwrap().export.protocol, OtlpProtocol::Grpc);
}

#[test]
fn what_is_said_of_one_signal_counts_more_than_what_is_said_of_both() {
    let settings = otlp(&[
        "--otlp-endpoint=http://c:4317",
        "--otlp-headers=a=1,b=%20x",
        "--otlp-traces-headers=a=2",
        "--otlp-timeout=2s",
        "--otlp-metrics-timeout=300",
        "--otel-metric-export-interval=1m",
        "--otel-bsp-schedule-delay=",
        "--otel-resource-attributes=service.name=x, k8s.pod.name = a%2Cb ",
    ])
    .unwrap();
    let (traces, metrics) = (settings.traces.unwrap(), settings.metrics.unwrap());
    assert_eq!(traces.export.headers["a"], "2");
    assert_eq!(
        (&metrics.export.headers["a"], &metrics.export.headers["b"]),
        (&"1".parse().unwrap(), &" x".parse().unwrap())
    );
    assert!(!traces.export.headers.contains_key("b"));
    let seconds = |time: Duration| time.as_secs_f64();
    assert!(
        (seconds(traces.export.timeout) - 2.0).abs() < 1e-9 && (seconds(metrics.export.timeout) - 0.3).abs() < 1e-9
    );
    assert_eq!((traces.delay, metrics.interval), (DELAY, Duration::from_secs(60)));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        settings.resource,
        [pair("service.name", "x"), pair("k8s.pod.name", "a,b")]
    );

    let named = otlp(&[
        "--enable-tracing",
        "--otel-service-name=edge",
        "--otel-resource-attributes=service.name=x,a=b",
    ]);
    assert_eq!(named.unwrap().resource, [pair("a", "b"), pair("service.name", "edge")]);
    assert_eq!(
        otlp(&["--enable-tracing"]).unwrap().resource,
        [pair("service.name", "sandbox-router")]
    );
}

#[test]
fn what_can_not_be_used_is_said_all_at_once_and_no_secret_with_it() {
    let error = read(&[
        "--otlp-endpoint=ftp://c:4317",
        "--otlp-metrics-protocol=http/json",
        "--otlp-headers=api-key:collector-secret",
        "--otlp-timeout=soon",
        "--otel-traces-sampler=jaeger_remote",
        "--otel-resource-attributes=nothing",
        "--otel-metric-export-interval=0",
        "--otel-sdk-disabled=perhaps",
    ])
    .unwrap_err();
    let both = read(&["--otlp-endpoint=http://c", "--otlp-protocol=http/json"])
        .unwrap_err()
        .to_string();
    assert_eq!(both.matches("http/json").count(), 1, "{both}");
    let text = error.to_string();
    for part in [
        "--otlp-endpoint (OTEL_EXPORTER_OTLP_ENDPOINT): begins with neither http:// nor https://",
        "--otlp-metrics-protocol (OTEL_EXPORTER_OTLP_METRICS_PROTOCOL): \"http/json\" is not supported; write grpc or http/protobuf",
        "--otlp-headers (OTEL_EXPORTER_OTLP_HEADERS): write name=value",
        "--otlp-timeout (OTEL_EXPORTER_OTLP_TIMEOUT): \"soon\" is no time above 0",
        "--otel-traces-sampler (OTEL_TRACES_SAMPLER): \"jaeger_remote\" is not supported",
        "--otel-resource-attributes (OTEL_RESOURCE_ATTRIBUTES): write name=value",
        "--otel-metric-export-interval (OTEL_METRIC_EXPORT_INTERVAL): \"0\" is no time above 0",
        "--otel-sdk-disabled (OTEL_SDK_DISABLED): write true or false",
    ] {
        assert_eq!(text.matches(part).count(), 1, "{part}: {text}");
    }
    assert!(!text.contains("collector-secret"), "{text}");
}

#[test]
fn an_endpoint_that_is_none_or_would_show_a_secret_is_refused() {
    for (endpoint, protocol) in [
        ("collector:4317", "grpc"),
        ("http://", "grpc"),
        ("http://user:collector-secret@c:4317", "grpc"),
        ("http://c:4317/?key=collector-secret", "http/protobuf"),
        ("http://c:4317/v1/traces", "grpc"),
        ("https://c d", "http/protobuf"),
    ] {
        let flags = [
            format!("--otlp-endpoint={endpoint}"),
            format!("--otlp-protocol={protocol}"),
        ];
        let text = read(&flags.each_ref().map(String::as_str)).unwrap_err().to_string();
        assert_eq!(text.matches("--otlp-endpoint (").count(), 1, "{endpoint}: {text}");
        assert!(!text.contains("collector-secret"), "{text}");
    }
    for header in ["host=a", "Content-Length=1", "te=x", "a b=1", "a=%0d%0a", "=1", "a=%ff"] {
        assert!(
            read(&["--enable-tracing", &format!("--otlp-headers={header}")]).is_err(),
            "{header}"
        );
    }
}

#[test]
fn headers_are_shown_nowhere() {
    let config = read(&["--enable-tracing", "--otlp-headers=api-key=collector-secret"]).unwrap();
    for text in [
        format!("{config:?}"),
        config.settings.to_string(),
        config.settings.yaml(),
    ] {
        assert!(!text.contains("collector-secret"), "{text}");
    }
    assert!(config.settings.yaml().contains("otlp-headers: \"<redacted>\""));
}
