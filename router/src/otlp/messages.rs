//! Spans and metrics as OTLP's messages. Hides which attributes they have: those of OpenTelemetry's semantic conventions for
//! HTTP (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>), and the sandbox.

use super::tracer::{AtGate, Begun, End, Ended};
use crate::target::Target;
use http::{StatusCode, Version};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status, span, status};
use prometheus::proto::{self, MetricFamily, MetricType};
use sandgate_mesh::outcome::Outcome;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Who measured.
const SCOPE: &str = "sandgate";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The gate's name as a service.
const GATE: &str = "sandbox-sidecar";

/// Who exports.
#[derive(Debug, Clone)]
pub(super) struct Resource(v1::Resource);

impl Resource {
    /// With what was configured, and beside that what tells this router's process from others.
    pub(super) fn new(configured: &[(String, String)]) -> Self {
        let instance = format!("{:032x}", fastrand::u128(..));
        let own = [
            ("service.version", VERSION.to_owned()),
            ("service.instance.id", instance),
        ];
        let own = own
            .into_iter()
            .filter(|(own, _)| configured.iter().all(|(name, _)| name != own));
        let configured = configured.iter().map(|(name, value)| text(name, value.clone()));
        let attributes = configured.chain(own.map(|(name, value)| text(name, value))).collect();
        Self(resource(attributes))
    }

    /// The gate that `target` leads to.
    fn of_gate(target: &Target) -> v1::Resource {
        let mut attributes = vec![text("service.name", GATE.to_owned())];
        if let Some(expected) = &target.expected {
            attributes.push(text("k8s.namespace.name", expected.sandbox.namespace.to_string()));
            attributes.push(text("sandbox.id", expected.sandbox.name.to_string()));
            if let Some(uid) = &expected.pod_uid {
                attributes.push(text("k8s.pod.uid", uid.as_str().to_owned()));
                attributes.push(text("service.instance.id", uid.as_str().to_owned()));
            }
        }
        resource(attributes)
    }
}

fn resource(attributes: Vec<KeyValue>) -> v1::Resource {
    v1::Resource {
        attributes,
        ..v1::Resource::default()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: SCOPE.to_owned(),
        version: VERSION.to_owned(),
        ..InstrumentationScope::default()
    }
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn text(key: &str, value: String) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(
        key,
        any_value::Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)),
    )
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The spans of these requests: the router's, and each gate's under its own resource.
pub(super) fn spans(resource: &Resource, ended: &[Ended]) -> ExportTraceServiceRequest {
    let mut own = Vec::with_capacity(ended.len());
    let mut gates: HashMap<&Arc<Target>, Vec<Span>> = HashMap::new();
    for ended in ended {
        own.push(of_router(ended));
        if let Some(gate) = &ended.gate {
            gates.entry(&gate.gate).or_default().push(of_gate(ended, gate));
        }
    }
    let of = |resource, spans| ResourceSpans {
        resource: Some(resource),
        scope_spans: vec![ScopeSpans {
            scope: Some(scope()),
            spans,
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    };
    let gates = gates
        .into_iter()
        .map(|(gate, spans)| of(Resource::of_gate(gate), spans));
    ExportTraceServiceRequest {
        resource_spans: [of(resource.0.clone(), own)].into_iter().chain(gates).collect(),
    }
}

/// How many spans a message holds.
pub(super) fn count(ended: &[Ended]) -> u64 {
    let gates = ended.iter().filter(|ended| ended.gate.is_some()).count();
    (ended.len() + gates) as u64
}

fn of_router(Ended { begun, end, .. }: &Ended) -> Span {
    let mut attributes = of_both(begun, end, end.status);
    attributes.push(text("client.address", begun.client.to_string()));
    attributes.push(number("http.request.body.size", end.bytes_in));
    attributes.push(number("http.response.body.size", end.bytes_out));
    if let Some(agent) = &begun.user_agent {
        attributes.push(text("user_agent.original", agent.clone()));
    }
    let fault = if end.broken {
        Some("broken".to_owned())
    } else {
        fault(end.status)
    };
    let error = fault.map(|fault| attributes.push(text("error.type", fault)));
    Span {
        span_id: begun.context.span.to_bytes().to_vec(),
        parent_span_id: begun
            .parent
            .map(|parent| parent.to_bytes().to_vec())
            .unwrap_or_default(),
        end_time_unix_nano: nanoseconds(begun.at + end.took),
        attributes,
        status: error.map(|()| failed()),
        ..common(begun)
    }
}

/// A gate's span, up to its answer's head. It ends when that arrived: the way back is short, and clocks differ. Whatever a
/// gate claims, it is no longer than the router waited.
fn of_gate(Ended { begun, end, .. }: &Ended, gate: &AtGate) -> Span {
    let mut attributes = of_both(begun, end, gate.status);
    if let Some(to) = &end.to {
        attributes.push(number("server.port", to.route.port.get().into()));
    }
    if let Some(allowed) = gate.outcome.map_or(Some(true), Outcome::allowed) {
        let decision = if allowed { "allow" } else { "deny" };
        attributes.push(text("sandgate.decision", decision.to_owned()));
    }
    if let Some(outcome) = gate.outcome {
        attributes.push(text("sandgate.outcome", outcome.as_str().to_owned()));
    }
    let error = fault(gate.status).map(|fault| attributes.push(text("error.type", fault)));
    let took = gate.span.took.min(gate.answered);
    Span {
        span_id: gate.span.span.to_bytes().to_vec(),
        parent_span_id: begun.context.span.to_bytes().to_vec(),
        start_time_unix_nano: nanoseconds(begun.at + gate.answered.saturating_sub(took)),
        end_time_unix_nano: nanoseconds(begun.at + gate.answered),
        attributes,
        status: error.map(|()| failed()),
        ..common(begun)
    }
}

/// What a server's span says of a fault: what a client did wrong is none (semantic conventions, "Status").
fn fault(status: StatusCode) -> Option<String> {
    status.is_server_error().then(|| status.as_str().to_owned())
}

fn failed() -> Status {
    Status {
        code: status::StatusCode::Error.into(),
        ..Status::default()
    }
}

fn common(begun: &Begun) -> Span {
    let (is_known, is_remote) = (
        SpanFlags::ContextHasIsRemoteMask as u32,
        SpanFlags::ContextIsRemoteMask as u32,
    );
    Span {
        trace_id: begun.context.trace.to_bytes().to_vec(),
        trace_state: begun.state.clone(),
        flags: 1 | is_known | if begun.parent.is_some() { is_remote } else { 0 },
        name: format!("HTTP {}", method(begun)),
        kind: span::SpanKind::Server.into(),
        start_time_unix_nano: nanoseconds(begun.at),
        ..Span::default()
    }
}

fn method(begun: &Begun) -> &str {
    if begun.other_method.is_some() {
        "_OTHER"
    } else {
        begun.method
    }
}

/// Attributes of the router's span and the gate's.
fn of_both(begun: &Begun, end: &End, status: StatusCode) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("http.request.method", method(begun).to_owned()),
        number("http.response.status_code", status.as_u16().into()),
        text("url.path", begun.path.clone()),
        text("url.scheme", begun.scheme.to_str().unwrap_or_default().to_owned()),
        text("network.protocol.version", protocol(begun.version).to_owned()),
    ];
    attributes.extend(
        begun
            .other_method
            .iter()
            .map(|method| text("http.request.method_original", method.clone())),
    );
    if let Some(to) = &end.to {
        attributes.push(text("sandbox.id", to.route.sandbox.name.to_string()));
        attributes.push(text("sandbox.namespace", to.route.sandbox.namespace.to_string()));
    }
    attributes
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// All that Prometheus is shown, under the same names, as it is at `now`; counters count since `start`.
pub(super) fn metrics(
    resource: &Resource,
    families: &[MetricFamily],
    start: SystemTime,
    now: SystemTime,
) -> ExportMetricsServiceRequest {
    let times = (nanoseconds(start), nanoseconds(now));
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource.0.clone()),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope()),
                metrics: families.iter().filter_map(|family| metric_of(family, times)).collect(),
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
}

/// The router has no summaries.
fn metric_of(family: &MetricFamily, times: (u64, u64)) -> Option<Metric> {
    let cumulative = AggregationTemporality::Cumulative.into();
    let numbers = |value: fn(&proto::Metric) -> f64| {
        let point = |metric| number_point(metric, value(metric), times);
        family.get_metric().iter().map(point).collect()
    };
    let data = match family.get_field_type() {
        MetricType::COUNTER => metric::Data::Sum(Sum {
            data_points: numbers(|metric| metric.get_counter().get_value()),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        MetricType::GAUGE => metric::Data::Gauge(Gauge {
            data_points: numbers(|metric| metric.get_gauge().get_value()),
        }),
        MetricType::HISTOGRAM => metric::Data::Histogram(Histogram {
            data_points: family
                .get_metric()
                .iter()
                .map(|metric| histogram_point(metric, times))
                .collect(),
            aggregation_temporality: cumulative,
        }),
        MetricType::SUMMARY | MetricType::UNTYPED => return None,
    };
    Some(Metric {
        name: family.name().to_owned(),
        description: family.help().to_owned(),
        unit: if family.name().ends_with("_seconds") { "s" } else { "" }.to_owned(),
        data: Some(data),
        ..Metric::default()
    })
}

fn labels(metric: &proto::Metric) -> Vec<KeyValue> {
    let labels = metric.get_label().iter();
    labels
        .map(|label| text(label.name(), label.value().to_owned()))
        .collect()
}

fn number_point(metric: &proto::Metric, value: f64, (start, now): (u64, u64)) -> NumberDataPoint {
    NumberDataPoint {
        attributes: labels(metric),
        start_time_unix_nano: start,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    }
}

/// Prometheus counts in each bucket what is in the smaller ones too, and has none without a bound.
fn histogram_point(metric: &proto::Metric, (start, now): (u64, u64)) -> HistogramDataPoint {
    let histogram = metric.get_histogram();
    let (mut bounds, mut counts, mut below) = (Vec::new(), Vec::new(), 0);
    for bucket in histogram
        .get_bucket()
        .iter()
        .filter(|bucket| bucket.upper_bound().is_finite())
    {
        bounds.push(bucket.upper_bound());
        counts.push(bucket.cumulative_count().saturating_sub(below));
        below = bucket.cumulative_count();
    }
    counts.push(histogram.get_sample_count().saturating_sub(below));
    HistogramDataPoint {
        attributes: labels(metric),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count: histogram.get_sample_count(),
        sum: Some(histogram.get_sample_sum()),
        bucket_counts: counts,
        explicit_bounds: bounds,
        ..HistogramDataPoint::default()
    }
}
