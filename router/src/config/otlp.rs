//! Traces and metrics by OTLP, as flags and as the variables that OpenTelemetry gives them
//! (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>). Hides which of them holds for which signal.

use super::Sampler;
use clap::Args;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use sandgate_mesh::command_line::Secret;
use sandgate_mesh::duration;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

/// How pairs are written.
const PAIRS: &str = "write name=value, with commas between them and percent-encoded values";
const HEADING: &str = "Traces and metrics by OTLP";
/// What the existing router is called there.
const SERVICE: &str = "sandbox-router";
/// As OpenTelemetry's specification has it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same for how long a span waits for others.
const DELAY: Duration = Duration::from_secs(5);
/// The same for the time between two exports of metrics.
const INTERVAL: Duration = Duration::from_secs(60);

/// The flags.
#[derive(Debug, Args)]
#[expect(clippy::doc_markdown, reason = "clap prints these comments as they stand")]
pub(super) struct OtlpFlags {
    /// Export a span for each request, and for its part at the gate [default: whether an endpoint for traces is set].
    #[arg(long, value_name = "BOOLEAN", help_heading = HEADING)]
    enable_tracing: Option<bool>,
    /// Export the metrics by OTLP as well [default: whether an endpoint for metrics is set].
    #[arg(long, value_name = "BOOLEAN", help_heading = HEADING)]
    enable_otel_metrics: Option<bool>,
    /// URL of the collector, http:// or https://, for both signals. With http/protobuf, /v1/traces and /v1/metrics are
    /// appended [default: port 4317 of localhost, or 4318 with http/protobuf].
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", help_heading = HEADING)]
    otlp_endpoint: Option<String>,
    /// URL for traces alone. Nothing is appended to it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value_name = "URL", help_heading = HEADING)]
    otlp_traces_endpoint: Option<String>,
    /// URL for metrics alone. Nothing is appended to it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", value_name = "URL", help_heading = HEADING)]
    otlp_metrics_endpoint: Option<String>,
    /// How the collector is spoken to: grpc or http/protobuf [default: grpc].
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", value_name = "PROTOCOL", help_heading = HEADING)]
    otlp_protocol: Option<String>,
    /// The same for traces alone.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", value_name = "PROTOCOL", help_heading = HEADING)]
    otlp_traces_protocol: Option<String>,
    /// The same for metrics alone.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", value_name = "PROTOCOL", help_heading = HEADING)]
    otlp_metrics_protocol: Option<String>,
    /// Headers for the collector, as name=value with commas between them and percent-encoded values.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", hide_env_values = true, value_name = "HEADERS", help_heading = HEADING)]
    otlp_headers: Option<Secret>,
    /// Headers for traces, instead.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_HEADERS", hide_env_values = true, value_name = "HEADERS", help_heading = HEADING)]
    otlp_traces_headers: Option<Secret>,
    /// Headers for metrics, instead.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_METRICS_HEADERS", hide_env_values = true, value_name = "HEADERS", help_heading = HEADING)]
    otlp_metrics_headers: Option<Secret>,
    /// How long the collector may take for one export: milliseconds, or a duration with its unit [default: 10s].
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TIMEOUT", value_name = "TIME", help_heading = HEADING)]
    otlp_timeout: Option<String>,
    /// The same for traces alone.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", value_name = "TIME", help_heading = HEADING)]
    otlp_traces_timeout: Option<String>,
    /// The same for metrics alone.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", value_name = "TIME", help_heading = HEADING)]
    otlp_metrics_timeout: Option<String>,
    /// PEM file with the roots that an https:// collector is verified under, instead of the system's; read at the start.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE", value_name = "FILE", help_heading = HEADING)]
    otlp_certificate: Option<PathBuf>,
    /// Name of the service in traces and metrics [default: sandbox-router].
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME", help_heading = HEADING)]
    otel_service_name: Option<String>,
    /// What else is said of this router, as name=value with commas between them and percent-encoded values.
    #[arg(long, env = "OTEL_RESOURCE_ATTRIBUTES", value_name = "ATTRIBUTES", help_heading = HEADING)]
    otel_resource_attributes: Option<String>,
    /// Which requests are traced: always_on, always_off, traceidratio, or one of these behind parentbased_, which leaves the
    /// choice to a client that has made it [default: parentbased_always_on].
    #[arg(long, env = "OTEL_TRACES_SAMPLER", value_name = "SAMPLER", help_heading = HEADING)]
    otel_traces_sampler: Option<String>,
    /// For traceidratio: the part of traces that is kept, from 0 to 1 [default: 1].
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "RATIO", help_heading = HEADING)]
    otel_traces_sampler_arg: Option<String>,
    /// How long spans are gathered before they are exported together: milliseconds, or a duration with its unit [default: 5s].
    #[arg(long, env = "OTEL_BSP_SCHEDULE_DELAY", value_name = "TIME", help_heading = HEADING)]
    otel_bsp_schedule_delay: Option<String>,
    /// Time between two exports of metrics: milliseconds, or a duration with its unit [default: 60s].
    #[arg(long, env = "OTEL_METRIC_EXPORT_INTERVAL", value_name = "TIME", help_heading = HEADING)]
    otel_metric_export_interval: Option<String>,
    /// `true` exports nothing, whatever else is set.
    #[arg(long, env = "OTEL_SDK_DISABLED", value_name = "BOOLEAN", help_heading = HEADING)]
    otel_sdk_disabled: Option<String>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// Protobuf messages in HTTP/1.1 POST requests.
    HttpProtobuf,
}

impl OtlpProtocol {
    /// Where a collector is that nothing else is said of.
    const fn default_endpoint(self) -> &'static str {
        match self {
            Self::Grpc => "http://localhost:4317",
            Self::HttpProtobuf => "http://localhost:4318",
        }
    }
}

/// Where one signal goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtlpExport {
    /// What is asked for: with gRPC, without a path.
    pub endpoint: Uri,
    /// How.
    pub protocol: OtlpProtocol,
    /// With these headers, each of which may hold a secret.
    pub headers: HeaderMap,
    /// How long one export may take.
    pub timeout: Duration,
    /// The roots of an https collector, if not the system's.
    pub roots: Option<PathBuf>,
}

/// How spans are exported.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpTraces {
    /// Where to.
    pub export: OtlpExport,
    /// Those of which requests.
    pub sampler: Sampler,
    /// How long one waits for others.
    pub delay: Duration,
}

/// How metrics are exported.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpMetrics {
    /// Where to.
    pub export: OtlpExport,
    /// How often.
    pub interval: Duration,
}

/// What is exported by OTLP. At least one of the signals.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpSettings {
    /// Spans.
    pub traces: Option<OtlpTraces>,
    /// Metrics.
    pub metrics: Option<OtlpMetrics>,
    /// Who exports, `service.name` among it.
    pub resource: Vec<(String, String)>,
}

/// The flags of one signal.
struct OfSignal<'a> {
    path: &'static str,
    endpoint: Option<&'a str>,
    protocol: Option<&'a str>,
    headers: Option<&'a str>,
    timeout: Option<&'a str>,
    /// Their flags begin so.
    flags: &'static str,
}

/// A value that says anything: an empty variable is as none.
fn given(value: Option<&str>) -> Option<&str> {
    value.map(str::trim).filter(|text| !text.is_empty())
}

/// Notes what is wrong with a flag or its variable: once, if it holds for both signals.
fn note(problems: &mut Vec<String>, flag: &str, problem: impl Display) {
    let name = flag.trim_start_matches("--").replace('-', "_").to_uppercase();
    let variable = name.replace("OTLP", "OTEL_EXPORTER_OTLP");
    let problem = format!("{flag} ({variable}): {problem}");
    if !problems.contains(&problem) {
        problems.push(problem);
    }
}

impl OtlpFlags {
    /// What they say. `None` if nothing is exported.
    pub(super) fn settings(&self, problems: &mut Vec<String>) -> Option<OtlpSettings> {
        if self.is_disabled(problems) {
            return None;
        }
        let traces = OfSignal {
            path: "/v1/traces",
            endpoint: self.otlp_traces_endpoint.as_deref(),
            protocol: self.otlp_traces_protocol.as_deref(),
            headers: self.otlp_traces_headers.as_deref(),
            timeout: self.otlp_traces_timeout.as_deref(),
            flags: "--otlp-traces",
        };
        let metrics = OfSignal {
            path: "/v1/metrics",
            endpoint: self.otlp_metrics_endpoint.as_deref(),
            protocol: self.otlp_metrics_protocol.as_deref(),
            headers: self.otlp_metrics_headers.as_deref(),
            timeout: self.otlp_metrics_timeout.as_deref(),
            flags: "--otlp-metrics",
        };
        let is_on = |choice: Option<bool>, signal: &OfSignal<'_>| {
            let endpoint = given(signal.endpoint).or_else(|| given(self.otlp_endpoint.as_deref()));
            choice.unwrap_or(endpoint.is_some())
        };
        let mut export = |signal: &OfSignal<'_>, choice| is_on(choice, signal).then(|| self.export(signal, problems));
        let traces = export(&traces, self.enable_tracing);
        let metrics = export(&metrics, self.enable_otel_metrics);
        if traces.is_none() && metrics.is_none() {
            return None;
        }
        let (delay, interval) = (&self.otel_bsp_schedule_delay, &self.otel_metric_export_interval);
        let delay = time("--otel-bsp-schedule-delay", delay.as_deref(), DELAY, problems);
        let interval = time("--otel-metric-export-interval", interval.as_deref(), INTERVAL, problems);
        let sampler = self.sampler(problems);
        Some(OtlpSettings {
            traces: traces.flatten().map(|export| OtlpTraces { export, sampler, delay }),
            metrics: metrics.flatten().map(|export| OtlpMetrics { export, interval }),
            resource: self.resource(problems),
        })
    }

    fn is_disabled(&self, problems: &mut Vec<String>) -> bool {
        let text = given(self.otel_sdk_disabled.as_deref()).unwrap_or("false");
        let is = |value: &str| text.eq_ignore_ascii_case(value);
        if !is("true") && !is("false") {
            note(problems, "--otel-sdk-disabled", "write true or false");
        }
        is("true")
    }

    fn sampler(&self, problems: &mut Vec<String>) -> Sampler {
        let name = given(self.otel_traces_sampler.as_deref()).unwrap_or_default();
        let argument = given(self.otel_traces_sampler_arg.as_deref()).unwrap_or_default();
        let sampler = Sampler::parse(name, argument);
        sampler.map_err(|error| problems.push(error)).unwrap_or_default()
    }

    fn export(&self, signal: &OfSignal<'_>, problems: &mut Vec<String>) -> Option<OtlpExport> {
        // The signal's own counts more.
        let either = |name: &str, own, general| {
            let own = given(own).map(|text| (format!("{}-{name}", signal.flags), text));
            own.or_else(|| given(general).map(|text| (format!("--otlp-{name}"), text)))
        };
        let protocol = either("protocol", signal.protocol, self.otlp_protocol.as_deref());
        let protocol = match protocol {
            None | Some((_, "grpc")) => OtlpProtocol::Grpc,
            Some((_, "http/protobuf")) => OtlpProtocol::HttpProtobuf,
            Some((flag, text)) => {
                let problem = format!("{text:?} is not supported; write grpc or http/protobuf");
                note(problems, &flag, problem);
                return None;
            }
        };
        let headers = either("headers", signal.headers, self.otlp_headers.as_deref());
        let headers = headers.map(|(flag, text)| headers_of(&flag, text, problems));
        let timeout = either("timeout", signal.timeout, self.otlp_timeout.as_deref());
        let timeout = timeout.map_or(TIMEOUT, |(flag, text)| time(&flag, Some(text), TIMEOUT, problems));
        let place = either("endpoint", signal.endpoint, self.otlp_endpoint.as_deref());
        let (flag, text) = place.unwrap_or_else(|| ("--otlp-endpoint".into(), protocol.default_endpoint()));
        // Only to what holds for both signals is each one's own path appended.
        let path = if given(signal.endpoint).is_some() {
            ""
        } else {
            signal.path
        };
        let endpoint = endpoint(text, protocol, path);
        Some(OtlpExport {
            endpoint: endpoint.map_err(|problem| note(problems, &flag, problem)).ok()?,
            protocol,
            headers: headers.unwrap_or_default(),
            timeout,
            roots: self.otlp_certificate.clone(),
        })
    }

    /// The service's name of its own variable counts more than one among the attributes.
    fn resource(&self, problems: &mut Vec<String>) -> Vec<(String, String)> {
        let text = self.otel_resource_attributes.as_deref().unwrap_or_default();
        let mut resource = pairs(text).unwrap_or_else(|| {
            note(problems, "--otel-resource-attributes", PAIRS);
            Vec::new()
        });
        let name = given(self.otel_service_name.as_deref()).map(String::from);
        if name.is_some() || resource.iter().all(|(name, _)| name != "service.name") {
            resource.retain(|(name, _)| name != "service.name");
            resource.push(("service.name".into(), name.unwrap_or_else(|| SERVICE.into())));
        }
        resource
    }
}

/// Pairs as W3C Baggage has them, without properties.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let decoded = |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
        Some((decoded(name).filter(|name| !name.is_empty())?, decoded(value)?))
    };
    pairs.map(pair).collect()
}

/// Headers that aren't shown to anybody. What is wrong with them is told without what they say.
fn headers_of(flag: &str, text: &str, problems: &mut Vec<String>) -> HeaderMap {
    let framing = [
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "transfer-encoding",
    ];
    let header = |(name, value): (String, String)| {
        let name: HeaderName = name.parse().ok()?;
        let mut value = HeaderValue::try_from(value).ok()?;
        value.set_sensitive(true);
        (!framing.contains(&name.as_str())).then_some((name, value))
    };
    let headers: Option<HeaderMap> = pairs(text).and_then(|pairs| pairs.into_iter().map(header).collect());
    headers.unwrap_or_else(|| {
        note(
            problems,
            flag,
            format_args!("{PAIRS}; what it says isn't shown here, as it is a secret"),
        );
        HeaderMap::new()
    })
}

/// The time that a flag gives, or `default`.
fn time(flag: &str, text: Option<&str>, default: Duration, problems: &mut Vec<String>) -> Duration {
    let Some(text) = given(text) else { return default };
    let milliseconds = text.parse().map(Duration::from_millis);
    let time = milliseconds.map_or_else(|_| duration::parse_above_zero(text), Ok);
    time.ok().filter(|time| !time.is_zero()).unwrap_or_else(|| {
        let problem = format!("{text:?} is no time above 0; write milliseconds, or a duration like 10s");
        note(problems, flag, problem);
        default
    })
}

/// What is asked for, `path` appended where that is a place of its own.
fn endpoint(text: &str, protocol: OtlpProtocol, path: &str) -> Result<Uri, String> {
    let uri: Uri = text
        .parse()
        .map_err(|_| "is no URL; write it like http://collector:4317")?;
    let known = [Scheme::HTTP, Scheme::HTTPS];
    let scheme = uri.scheme().filter(|scheme| known.contains(scheme));
    let scheme = scheme.ok_or("begins with neither http:// nor https://")?.clone();
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let authority: Authority = authority.ok_or("names no host")?.clone();
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err(
            "holds a user or a query, which would be shown in logs; put what is secret into --otlp-headers".into(),
        );
    }
    let path = match protocol {
        OtlpProtocol::Grpc if uri.path().trim_matches('/').is_empty() => "/".to_owned(),
        OtlpProtocol::Grpc => return Err("has a path, and gRPC has none; is it meant for http/protobuf?".into()),
        OtlpProtocol::HttpProtobuf if path.is_empty() => uri.path().to_owned(),
        OtlpProtocol::HttpProtobuf => format!("{}{path}", uri.path().trim_end_matches('/')),
    };
    let path = PathAndQuery::try_from(path).map_err(|_| "has no usable path")?;
    let builder = Uri::builder().scheme(scheme).authority(authority).path_and_query(path);
    builder.build().map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "otlp_tests.rs"]
mod tests;
