//! Names on the wire and in pods: header names, ports, ALPN identifiers and environment variables that clients, manifests
//! and all programs rely on.

use http::HeaderName;
use std::time::Duration;

/// Names the sandbox a request is for. Required.
pub const X_SANDBOX_ID: HeaderName = HeaderName::from_static("x-sandbox-id");
/// Names the sandbox's namespace. Absent or empty means [`DEFAULT_NAMESPACE`].
pub const X_SANDBOX_NAMESPACE: HeaderName = HeaderName::from_static("x-sandbox-namespace");
/// Names the app's port. Absent or empty means [`DEFAULT_APP_PORT`]. Also carries the port from router to sidecar.
pub const X_SANDBOX_PORT: HeaderName = HeaderName::from_static("x-sandbox-port");
/// A hint: the pod address that the client read from the API server.
pub const X_SANDBOX_POD_IP: HeaderName = HeaderName::from_static("x-sandbox-pod-ip");
/// A hint: the Sandbox object's UID.
pub const X_SANDBOX_UID: HeaderName = HeaderName::from_static("x-sandbox-uid");
/// The caller's own time limit in seconds. It can only shorten the configured one.
pub const X_SANDBOX_TIMEOUT: HeaderName = HeaderName::from_static("x-sandbox-timeout");
/// Every routing header starts so, and none of them reaches the app.
pub const ROUTING_HEADER_PREFIX: &str = "x-sandbox-";

/// Carries the router's [`Caller`](crate::caller::Caller) assertion to the sidecar. Stripped at both edges.
pub const X_SANDGATE_CALLER: HeaderName = HeaderName::from_static("x-sandgate-caller");
/// Carries the sidecar's [`Outcome`](crate::outcome::Outcome) back to the router. Stripped at both edges.
pub const X_SANDGATE_OUTCOME: HeaderName = HeaderName::from_static("x-sandgate-outcome");
/// With it the router asks for the gate's span: see [`crate::trace_context`]. Stripped at both edges.
pub const X_SANDGATE_TRACE: HeaderName = HeaderName::from_static("x-sandgate-trace");
/// Carries the gate's [`GateSpan`](crate::trace_context::GateSpan) back to the router that asked. Stripped at both edges.
pub const X_SANDGATE_SPAN: HeaderName = HeaderName::from_static("x-sandgate-span");
/// Every header of our own starts so, and none crosses an edge in either direction.
pub const OWN_HEADER_PREFIX: &str = "x-sandgate-";

/// `X-Forwarded-For`: the addresses a request came through, nearest last.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Host`: the `Host` the client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `X-Forwarded-Proto`: `http` or `https`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Correlates a request across client, router, sidecar and app.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors add to W3C Trace Context.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Namespace of a request that names none.
pub const DEFAULT_NAMESPACE: &str = "default";
/// App port of a request that names none.
pub const DEFAULT_APP_PORT: u16 = 8888;
/// The sidecar's mTLS port: below the ephemeral range, clear of the ports sandboxes and service meshes use.
pub const MESH_PORT: u16 = 14443;
/// The sidecar's health and metrics port.
pub const HEALTH_PORT: u16 = 14480;
/// Paths on the health port at which the gate runs the app's own probes: see [`crate::probe`].
pub const APP_PROBE_PREFIX: &str = "/app-probe/";
/// The gate's environment variable with the namespace of its sandbox.
pub const NAMESPACE_VARIABLE: &str = "SANDGATE_NAMESPACE";
/// The gate's environment variable with the name of its sandbox.
pub const SANDBOX_VARIABLE: &str = "SANDGATE_SANDBOX";
/// The gate's environment variable with the UID of its pod.
pub const POD_UID_VARIABLE: &str = "SANDGATE_POD_UID";
/// The gate's environment variable with the app's probes: [`Declarations`](crate::probe::model::Declarations) as JSON.
pub const APP_PROBES_VARIABLE: &str = "SANDGATE_APP_PROBES";
/// The gate's environment variable with the roots, PEM, under which it believes a control plane before it has an identity.
pub const TRUST_ANCHORS_VARIABLE: &str = "SANDGATE_TRUST_ANCHORS";
/// Namespace label that opts a namespace in, and pod label that opts in a pod of another sandbox system.
pub const INJECT_LABEL: &str = "sandgate.dev/inject";
/// The value of [`INJECT_LABEL`] that opts in.
pub const ENABLED: &str = "enabled";
/// The label of a pod that has a gate.
pub const INJECTED_LABEL: &str = "sandgate.dev/injected";
/// The value of [`INJECTED_LABEL`].
pub const INJECTED: &str = "true";
/// The gate's container in a pod.
pub const GATE_CONTAINER: &str = "sandgate";
/// The label that agent-sandbox puts on every sandbox pod.
pub const SANDBOX_HASH_LABEL: &str = "agents.x-k8s.io/sandbox-name-hash";
/// The label that agent-sandbox puts on a pod of a warm pool until a claim adopts it.
pub const WARM_POOL_LABEL: &str = "agents.x-k8s.io/warm-pool-sandbox";
/// Trust domain when none is configured.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// ALPN of proxied HTTP/1.1 requests on the mesh port.
pub const ALPN_MESH_HTTP1: &[u8] = b"sandgate-h1/1";
/// ALPN of proxied HTTP/2 requests on the mesh port.
pub const ALPN_MESH_HTTP2: &[u8] = b"sandgate-h2/1";
/// ALPN of the control API on the mesh port: see [`crate::control`].
pub const ALPN_CONTROL: &[u8] = b"sandgate-control/1";
/// ALPN of HTTP/1.1 on the router's own TLS listener (RFC 7301).
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
/// ALPN of HTTP/2 on the router's and the injector's TLS listeners (RFC 9113).
pub const ALPN_HTTP2: &[u8] = b"h2";

/// How long a TLS handshake may take before the connection is closed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest a single connection attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait for a response head and for each silence between body chunks, unless configured.
pub const DEFAULT_PROXY_TIMEOUT: Duration = Duration::from_secs(180);
