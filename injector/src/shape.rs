//! The gate's parts in a pod: containers, volumes, label, annotation; and whether parts that are there already are they.
//!
//! What a gate consists of has a version. Pods outlive the release that they were born under, so a shape that was released
//! stays here as it was, beside the one that new pods get.

use crate::names::{
    AWAIT_PORTS_ARGUMENT, BUNDLE_ENTRY, CONTAINER, CREDENTIALS_ENTRY, HEALTH_PORT_NAME, IDENTITY_VOLUME,
    LOCKDOWN_ARGUMENT, LOCKDOWN_CONTAINER, MESH_PORT_NAME, PROGRAM, SIGNER, STATE_PATH, STATE_VOLUME, TOKEN_AUDIENCE,
    TOKEN_PATH, TOKEN_VOLUME, TRUST_BUNDLE, UID,
};
use crate::overrides::{MEMORY_LIMIT, Overrides};
use crate::pod::items;
use crate::probes;
use crate::quantity::Memory;
use crate::settings::{IdentitySource, Image, Resources, Settings};
use sandgate_mesh::contract::{
    APP_PROBES_VARIABLE, HEALTH_PORT, MESH_PORT, NAMESPACE_VARIABLE, POD_UID_VARIABLE, SANDBOX_VARIABLE,
    TRUST_ANCHORS_VARIABLE,
};
use sandgate_mesh::probe::model::Declaration;
use serde_json::{Map, Value, json};

/// Lifetime of the gate's token in seconds; the kubelet renews it in time.
const TOKEN_SECONDS: u64 = 3600;
/// The shortest lifetime that the API server allows.
const TOKEN_SECONDS_MIN: u64 = 600;
/// The longest life of a Pod Certificate that may be asked for, in seconds, the API server's limit: the signer gives shorter ones.
pub(crate) const CERTIFICATE_SECONDS: u32 = 91 * 24 * 3600;
/// Mode of projected files, the API server's default: 0644.
const FILE_MODE: u32 = 0o644;

/// How the containers of a shape are made.
type Containers = fn(&Settings, &Image, &str, &Overrides, &[Declaration]) -> Vec<Value>;

/// One version of what a gate consists of.
#[derive(Debug)]
pub(crate) struct Shape {
    /// What [`SHAPE_ANNOTATION`](crate::names::SHAPE_ANNOTATION) says of it.
    pub(crate) version: &'static str,
    /// Its containers in the order in which they come first in the pod, from the roots in PEM, among others.
    pub(crate) containers: Containers,
    /// Its volumes.
    pub(crate) volumes: fn(&Settings) -> Vec<Value>,
}

/// The shapes that a release knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shapes {
    current: &'static Shape,
    former: &'static [&'static Shape],
}

/// Those that this release knows: when the current one changes, the one before becomes a former one, and the last two at least
/// stay. Gates of shape 1 were to find identity and policy in files; none of them was ever enrolled.
pub(crate) const SHAPES: Shapes = Shapes {
    current: &SHAPE_3,
    former: &[&SHAPE_2],
};

/// The next container waits for a hook that ends as soon as the gate's ports are bound.
pub(crate) const SHAPE_3: Shape = Shape {
    version: "3",
    containers: |settings, image, anchors, overrides, app_probes| {
        containers(settings, image, anchors, overrides, app_probes, start_hook())
    },
    volumes,
};

/// It waited for a probe of them, which a kubelet makes once a second. The gate gets its identity and its policy from the
/// control plane.
pub(crate) const SHAPE_2: Shape = Shape {
    version: "2",
    containers: |settings, image, anchors, overrides, app_probes| {
        containers(settings, image, anchors, overrides, app_probes, startup_probe())
    },
    volumes,
};

/// What the pod's next container waits for, as a field of the gate's.
type Start = (&'static str, Value);

/// The kubelet starts nothing else in a pod while this runs; if it fails, the gate is started anew.
fn start_hook() -> Start {
    let state = format!("--state-folder={STATE_PATH}");
    let command = json!([PROGRAM, AWAIT_PORTS_ARGUMENT, state]);
    ("lifecycle", json!({"postStart": {"exec": {"command": command}}}))
}

fn startup_probe() -> Start {
    ("startupProbe", probe("/healthz", 1, 60))
}

impl Shapes {
    /// The one that new pods get.
    pub(crate) const fn current(self) -> &'static Shape {
        self.current
    }

    /// The one that a running pod says it was born with, if it is known.
    pub(crate) fn find(self, version: &str) -> Option<&'static Shape> {
        let mut known = std::iter::once(self.current).chain(self.former.iter().copied());
        known.find(|shape| shape.version == version)
    }

    /// Those of another release.
    #[cfg(test)]
    pub(crate) const fn of(current: &'static Shape, former: &'static [&'static Shape]) -> Self {
        Self { current, former }
    }
}

fn containers(
    settings: &Settings,
    image: &Image,
    anchors: &str,
    overrides: &Overrides,
    app_probes: &[Declaration],
    start: Start,
) -> Vec<Value> {
    let mut containers = Vec::new();
    if settings.lockdown.is_some() {
        containers.push(lockdown(settings, image, overrides));
    }
    containers.push(gate(settings, image, anchors, overrides, app_probes, start));
    containers
}

/// The gate: a native sidecar, first of all, so that no process of the app can bind its ports before it.
fn gate(
    settings: &Settings,
    image: &Image,
    anchors: &str,
    overrides: &Overrides,
    app_probes: &[Declaration],
    (start, starts): Start,
) -> Value {
    let mut environment = vec![
        from_field(NAMESPACE_VARIABLE, "metadata.namespace"),
        from_field(SANDBOX_VARIABLE, "metadata.name"),
        from_field(POD_UID_VARIABLE, "metadata.uid"),
        json!({"name": TRUST_ANCHORS_VARIABLE, "value": anchors}),
    ];
    environment.extend(probes::text(app_probes).map(|text| json!({"name": APP_PROBES_VARIABLE, "value": text})));
    json!({
        "name": CONTAINER,
        "image": image.as_str(),
        "imagePullPolicy": settings.image_pull_policy.as_str(),
        "command": [PROGRAM],
        "args": arguments(settings, overrides),
        "env": environment,
        "ports": [
            {"name": MESH_PORT_NAME, "containerPort": MESH_PORT, "protocol": "TCP"},
            {"name": HEALTH_PORT_NAME, "containerPort": HEALTH_PORT, "protocol": "TCP"},
        ],
        "resources": resources(&overrides.resources),
        "restartPolicy": "Always",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": UID,
            "runAsNonRoot": true,
            "runAsUser": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        // Bound ports let the next container start; an identity and a policy make the pod ready.
        start: starts,
        "readinessProbe": probe("/readyz", 2, 2),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            identity_mount(settings),
            {"name": STATE_VOLUME, "mountPath": STATE_PATH},
        ],
    })
}

fn arguments(settings: &Settings, overrides: &Overrides) -> Vec<String> {
    let routers = settings.router_identities.iter();
    let mut arguments: Vec<_> = routers.map(|router| format!("--router-identity={router}")).collect();
    arguments.extend([
        format!("--control-identity={}", settings.control_identity),
        format!("--trust-domain={}", settings.trust_domain),
        format!("--state-folder={STATE_PATH}"),
    ]);
    if settings.identity_source == IdentitySource::PodCertificates {
        arguments.extend([
            format!("--credential-bundle-file={TOKEN_PATH}/{CREDENTIALS_ENTRY}"),
            format!("--trust-bundle-file={TOKEN_PATH}/{BUNDLE_ENTRY}"),
        ]);
    }
    arguments.extend([
        // Last, since the admission policy takes the last argument for it.
        format!("--log-level={}", overrides.log_level),
    ]);
    arguments
}

/// Closes the pod's network and exits. Added capabilities take effect for UID 0 only.
fn lockdown(settings: &Settings, image: &Image, overrides: &Overrides) -> Value {
    json!({
        "name": LOCKDOWN_CONTAINER,
        "image": image.as_str(),
        "imagePullPolicy": settings.image_pull_policy.as_str(),
        "command": [PROGRAM],
        "args": [LOCKDOWN_ARGUMENT, format!("--mesh-port={MESH_PORT}"), format!("--health-port={HEALTH_PORT}")],
        "resources": resources(&overrides.resources),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        // Only so that the API server adds no token of its own here.
        "volumeMounts": [identity_mount(settings)],
    })
}

/// At the path where the API server would otherwise mount a token that opens its API.
fn identity_mount(settings: &Settings) -> Value {
    let volume = match settings.identity_source {
        IdentitySource::Enrolment => TOKEN_VOLUME,
        IdentitySource::PodCertificates => IDENTITY_VOLUME,
    };
    json!({"name": volume, "mountPath": TOKEN_PATH, "readOnly": true})
}

fn from_field(name: &str, field: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": field}}})
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": HEALTH_PORT, "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": period,
        "successThreshold": 1,
        "failureThreshold": failures,
    })
}

fn resources(resources: &Resources) -> Value {
    let mut limits = Map::new();
    if let Some(cpu) = resources.cpu_limit {
        limits.insert("cpu".to_owned(), cpu.to_string().into());
    }
    limits.insert("memory".to_owned(), resources.memory_limit.to_string().into());
    let (cpu, memory) = (resources.cpu_request.to_string(), resources.memory_request.to_string());
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": limits})
}

fn volumes(settings: &Settings) -> Vec<Value> {
    let (name, sources) = match settings.identity_source {
        IdentitySource::Enrolment => {
            let token = json!({"audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"});
            (TOKEN_VOLUME, json!([{"serviceAccountToken": token}]))
        }
        IdentitySource::PodCertificates => {
            let certificate = json!({
                "signerName": SIGNER,
                "keyType": "ECDSAP256",
                "maxExpirationSeconds": CERTIFICATE_SECONDS,
                "credentialBundlePath": CREDENTIALS_ENTRY,
            });
            let roots = json!({"name": TRUST_BUNDLE, "path": BUNDLE_ENTRY});
            (
                IDENTITY_VOLUME,
                json!([{"podCertificate": certificate}, {"clusterTrustBundle": roots}]),
            )
        }
    };
    vec![
        json!({"name": name, "projected": {"defaultMode": FILE_MODE, "sources": sources}}),
        json!({"name": STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}}),
    ]
}

/// The first field in which a part that is there differs from the expected one, as its path within the part.
///
/// The API server fills in defaults, and other admission may set most resources and have the image pulled at every start:
/// those don't count.
pub(crate) fn difference(expected: &Value, actual: &Value) -> Option<String> {
    compare(expected, actual, "", "")
}

/// `field` is for messages; `pattern` is the same without places in lists.
fn compare(expected: &Value, actual: &Value, field: &str, pattern: &str) -> Option<String> {
    match (expected, actual) {
        (Value::Object(expected), Value::Object(actual)) => {
            let names = expected
                .keys()
                .chain(actual.keys().filter(|name| !expected.contains_key(*name)));
            names.into_iter().find_map(|name| {
                let (field, pattern) = (member(field, name), member(pattern, name));
                match (expected.get(name), actual.get(name).filter(|value| !value.is_null())) {
                    (expected, Some(actual)) if may_be(&pattern, expected, actual) => None,
                    (_, None) if may_be_absent(&pattern) => None,
                    (Some(expected), Some(actual)) => compare(expected, actual, &field, &pattern),
                    (None, None) => None,
                    (Some(_), None) | (None, Some(_)) => Some(field),
                }
            })
        }
        (Value::Array(expected), Value::Array(actual)) => {
            let pattern = format!("{pattern}[]");
            let pairs = expected.iter().zip(actual).enumerate();
            let differs = |(index, (expected, actual)): (usize, (&Value, &Value))| {
                compare(expected, actual, &format!("{field}[{index}]"), &pattern)
            };
            let longer = || (expected.len() != actual.len()).then(|| field.to_owned());
            pairs.into_iter().find_map(differs).or_else(longer)
        }
        _ => (expected != actual).then(|| field.to_owned()),
    }
}

fn member(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// Whether a field may hold this value although another one, or none, was injected.
fn may_be(pattern: &str, injected: Option<&Value>, value: &Value) -> bool {
    let one_of = |words: &[&str]| value.as_str().is_some_and(|word| words.contains(&word));
    match pattern {
        "imagePullPolicy" => one_of(&["Always"]),
        "terminationMessagePath" => one_of(&["/dev/termination-log"]),
        "terminationMessagePolicy" => one_of(&["File", "FallbackToLogsOnError"]),
        "resources.limits.memory" => {
            let amount = |value: &Value| value.as_str().and_then(|text| text.parse::<Memory>().ok());
            amount(value).is_some_and(|limit| MEMORY_LIMIT.contains(&limit) || injected.and_then(amount) == Some(limit))
        }
        // A LimitRange fills these in. However little CPU a gate gets, it goes on holding its ports.
        "resources.limits.cpu"
        | "resources.limits.ephemeral-storage"
        | "resources.requests.cpu"
        | "resources.requests.ephemeral-storage"
        | "resources.requests.memory" => true,
        // Some releases fill it in with what it means when it is absent.
        "resizePolicy" => {
            items(Some(value)).all(|(_, policy)| policy.get("restartPolicy") == Some(&json!("NotRequired")))
        }
        "securityContext.procMount" => one_of(&["Default"]),
        "startupProbe.httpGet.protocol" | "readinessProbe.httpGet.protocol" => one_of(&["HTTP1"]),
        "projected.sources[].serviceAccountToken.expirationSeconds" => value
            .as_u64()
            .is_some_and(|seconds| (TOKEN_SECONDS_MIN..=TOKEN_SECONDS + 60).contains(&seconds)),
        _ => false,
    }
}

/// Whether a field may be missing although it was injected.
fn may_be_absent(pattern: &str) -> bool {
    matches!(
        pattern,
        "imagePullPolicy"
            | "terminationMessagePolicy"
            | "resources.limits.cpu"
            | "resources.requests"
            | "resources.requests.cpu"
            | "resources.requests.memory"
    )
}
