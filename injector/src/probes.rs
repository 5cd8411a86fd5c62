//! The app's own probes where the pod's network is locked down. The kubelet's calls would be dropped like anybody
//! else's, so each handler that opens a connection is rewritten to the gate's health port, and the gate is told what was
//! declared, in an environment variable. [`sandgate_mesh::probe`] has the format and the paths.

use crate::deny::{Denial, Denials, DenyReason};
use crate::existing::is_named_ours;
use crate::pod::{self, Container, ContainerList, Pod, at, items, text_at};
use json_patch::{AddOperation, PatchOperation, RemoveOperation, ReplaceOperation};
use sandgate_mesh::contract::{APP_PROBES_VARIABLE, HEALTH_PORT};
use sandgate_mesh::probe::model::{Declaration, Declarations, Grpc, Header, HttpGet, Kind, Scheme, TcpSocket, VERSION};
use sandgate_mesh::probe::{AppProbes, check, path};
use sandgate_mesh::sandbox::ContainerName;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Where a container's handlers are.
pub(crate) const HANDLER_PLACES: [(&[&str], Kind); 5] = [
    (&["livenessProbe"], Kind::LivenessProbe),
    (&["readinessProbe"], Kind::ReadinessProbe),
    (&["startupProbe"], Kind::StartupProbe),
    (&["lifecycle", "postStart"], Kind::PostStart),
    (&["lifecycle", "preStop"], Kind::PreStop),
];

/// How long a hook after the start may take in seconds; Kubernetes sets no limit.
const POST_START_SECONDS: u64 = 300;
/// How long a pod has to end, unless it says otherwise.
const GRACE_SECONDS: u64 = 30;
/// The longest time that the format can say.
const MAX_SECONDS: u64 = 3600;

/// A place as messages name fields.
pub(crate) fn joined(place: &[&str]) -> String {
    place.join(".")
}

/// A handler as a pod declares it. A field that isn't known here might change what is called.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Declared {
    port: Value,
    path: Option<String>,
    scheme: Option<Scheme>,
    http_headers: Option<Vec<Header>>,
    service: Option<String>,
    /// Refused elsewhere unless it is empty.
    #[serde(rename = "host")]
    _host: Option<String>,
    protocol: Option<String>,
}

/// The handlers of a pod that open connections.
///
/// # Errors
/// Those that the gate can't run in the kubelet's place.
pub fn declared(pod: Pod<'_>) -> Result<Vec<Declaration>, Denials> {
    let (mut declarations, mut denials) = (Vec::new(), Vec::new());
    for (container, place, kind) in places(pod) {
        let Some((handler_kind, handler)) = connecting(container, place, kind) else {
            continue;
        };
        let field = |rest: &str| container.field(&format!("{}.{rest}", joined(place)));
        let declaration = declaration(pod, container, (place, kind), (handler_kind, handler));
        match declaration.map_err(|why| (field(handler_kind), why)) {
            Ok(declaration) => match check(&declaration) {
                Ok(_) => declarations.push(declaration),
                Err(flaw) if flaw.field == "container" => denials.push(refused(container.field("name"), flaw.problem)),
                Err(flaw) => denials.push(refused(field(&flaw.field), flaw.problem)),
            },
            Err((field, why)) => denials.push(refused(field, why)),
        }
    }
    if denials.is_empty()
        && let Err(error) = text(&declarations).unwrap_or_default().parse::<AppProbes>()
        && !declarations.is_empty()
    {
        denials.push(refused("spec.containers".to_owned(), error.to_string()));
    }
    Denials::of(denials).map_or(Ok(declarations), Err)
}

fn refused(field: String, why: String) -> Denial {
    Denial {
        reason: DenyReason::Probe,
        field,
        why,
        fix: "change it, or use an exec probe: under lockdown the gate runs the others in the kubelet's place"
            .to_owned(),
    }
}

/// The value of the gate's environment variable; `None` if there is nothing to run.
pub(crate) fn text(probes: &[Declaration]) -> Option<String> {
    let probes = (!probes.is_empty()).then(|| probes.to_vec())?;
    let json = serde_json::to_string(&Declarations {
        version: VERSION,
        probes,
    });
    // Kubernetes expands $(NAME) in variables. A dollar sign can only be inside a string here, where JSON has another
    // spelling for it.
    Some(json.ok()?.replace('$', "\\u0024"))
}

/// The place and value of that variable in a container.
pub(crate) fn variable(gate: &Value) -> Option<(usize, &str)> {
    pod::variable(gate, APP_PROBES_VARIABLE)
}

/// The operations that send the kubelet's calls to the gate.
pub(crate) fn rewrites(pod: Pod<'_>) -> Vec<PatchOperation> {
    let mut operations = Vec::new();
    for (container, place, kind) in places(pod) {
        let (Some((handler_kind, handler)), Some(value)) =
            (connecting(container, place, kind), rewritten(container.name(), kind))
        else {
            continue;
        };
        if handler_kind == "httpGet" && is_rewritten(handler, container.name(), kind) {
            continue;
        }
        let pointer = |last| container.pointer(&[place, &[last]].concat());
        if handler_kind == "httpGet" {
            let path = pointer("httpGet");
            operations.push(PatchOperation::Replace(ReplaceOperation { path, value }));
        } else {
            let path = pointer(handler_kind);
            operations.push(PatchOperation::Remove(RemoveOperation { path }));
            let path = pointer("httpGet");
            operations.push(PatchOperation::Add(AddOperation { path, value }));
        }
    }
    operations
}

/// Puts declared handlers back where they were rewritten, if the gate would take what was declared. That bounds what has
/// to be gone through here, too.
pub(crate) fn restore(pod: &mut Value, text: &str) {
    if text.parse::<AppProbes>().is_err() {
        return;
    }
    let Ok(Declarations { probes, .. }) = serde_json::from_str(text) else {
        return;
    };
    let mut of_containers: HashMap<&str, Vec<&Declaration>> = HashMap::new();
    for probe in &probes {
        of_containers.entry(&probe.container).or_default().push(probe);
    }
    for list in ContainerList::ALL {
        let containers = pod.pointer_mut(&format!("/spec/{}", list.name()));
        for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
            let declared = text_at(container, &["name"]).and_then(|name| of_containers.get(name));
            for probe in declared.into_iter().flatten() {
                restore_one(container, probe);
            }
        }
    }
}

fn restore_one(container: &mut Value, probe: &Declaration) {
    let Some((place, kind)) = HANDLER_PLACES.into_iter().find(|(_, kind)| *kind == probe.kind) else {
        return;
    };
    let parent = container.pointer_mut(&format!("/{}", place.join("/")));
    let Some(parent) = parent.and_then(Value::as_object_mut) else {
        return;
    };
    let handler = parent.get("httpGet");
    if handler.is_some_and(|handler| is_rewritten(handler, &probe.container, kind)) {
        parent.remove("httpGet");
        parent.extend(handler_of(probe));
    }
}

/// What a pod's author wrote, from what the gate was told.
fn handler_of(probe: &Declaration) -> Map<String, Value> {
    let mut fields = serde_json::to_value(probe).ok().and_then(|value| match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    let fields = fields.iter_mut().flat_map(std::mem::take);
    fields
        .filter(|(name, _)| matches!(name.as_str(), "httpGet" | "tcpSocket" | "grpc"))
        .map(|(name, mut handler)| {
            if let Some(handler) = handler.as_object_mut()
                && let Some(port) = handler.remove("portName")
            {
                handler.insert("port".to_owned(), port);
            }
            (name, handler)
        })
        .collect()
}

/// Every place for a handler in containers that aren't the gate's.
fn places(pod: Pod<'_>) -> impl Iterator<Item = (Container<'_>, &'static [&'static str], Kind)> {
    pod.containers()
        .filter(|container| !is_named_ours(*container))
        .flat_map(|container| HANDLER_PLACES.map(|(place, kind)| (container, place, kind)))
}

/// The handler at a place, if it opens a connection. As a hook the kubelet runs no other such kind than httpGet.
fn connecting<'a>(container: Container<'a>, place: &[&str], kind: Kind) -> Option<(&'static str, &'a Value)> {
    let parent = container.at(place)?;
    let kinds: &[&str] = if kind.is_hook() {
        &["httpGet"]
    } else {
        &["httpGet", "tcpSocket", "grpc"]
    };
    kinds.iter().find_map(|kind| Some((*kind, at(parent, &[kind])?)))
}

/// How long a probe or hook may take in seconds.
fn timeout(pod: Pod<'_>, container: Container<'_>, place: &[&str], kind: Kind) -> u32 {
    let number = |value: Option<&Value>| {
        value
            .and_then(Value::as_i64)
            .map(|seconds| seconds.max(0).unsigned_abs())
    };
    let seconds = match kind {
        Kind::PostStart => POST_START_SECONDS,
        Kind::PreStop => number(pod.at(&["spec", "terminationGracePeriodSeconds"])).unwrap_or(GRACE_SECONDS),
        _ => number(container.at(place).and_then(|probe| at(probe, &["timeoutSeconds"]))).unwrap_or(1),
    };
    u32::try_from(seconds.clamp(1, MAX_SECONDS)).unwrap_or(1)
}

fn declaration(
    pod: Pod<'_>,
    container: Container<'_>,
    (place, kind): (&[&str], Kind),
    (handler_kind, handler): (&str, &Value),
) -> Result<Declaration, String> {
    let declared = Declared::deserialize(handler).map_err(|error| error.to_string())?;
    if declared.protocol.is_some_and(|protocol| protocol != "HTTP1") {
        return Err("only HTTP/1.1 is probed".to_owned());
    }
    let (port, port_name) = port(container, &declared.port)?;
    let mut declaration = Declaration {
        container: container.name().to_owned(),
        kind,
        timeout_seconds: timeout(pod, container, place, kind),
        http_get: None,
        tcp_socket: None,
        grpc: None,
    };
    match handler_kind {
        "httpGet" => {
            declaration.http_get = Some(HttpGet {
                path: declared.path,
                port,
                port_name,
                scheme: declared.scheme,
                http_headers: declared.http_headers,
            });
        }
        "tcpSocket" => declaration.tcp_socket = Some(TcpSocket { port, port_name }),
        _ => {
            declaration.grpc = Some(Grpc {
                port,
                service: declared.service,
            });
        }
    }
    Ok(declaration)
}

/// A port by number; or by a name that this container gave it, with that name. Digits in a text are a number too.
fn port(container: Container<'_>, port: &Value) -> Result<(u16, Option<String>), String> {
    let name = port.as_str();
    let number = match name {
        Some(name) => items(container.at(&["ports"]))
            .find(|(_, port)| text_at(port, &["name"]) == Some(name))
            .and_then(|(_, port)| at(port, &["containerPort"])?.as_u64())
            .or_else(|| name.parse().ok()),
        None => port.as_u64(),
    };
    let number = number.and_then(|number| u16::try_from(number).ok());
    let number = number.ok_or("its port is neither a number nor the name of a port of this container")?;
    Ok((number, name.map(str::to_owned)))
}

/// `None` for a container whose name the API server refuses.
fn rewritten(container: &str, kind: Kind) -> Option<Value> {
    let container: ContainerName = container.parse().ok()?;
    Some(json!({"path": path(&container, kind), "port": HEALTH_PORT, "scheme": "HTTP"}))
}

/// Whether a handler is what [`rewritten`] makes, before or after the API server's defaults.
fn is_rewritten(handler: &Value, container: &str, kind: Kind) -> bool {
    let Some(mut handler) = handler.as_object().cloned() else {
        return false;
    };
    if handler.get("protocol").is_some_and(|protocol| protocol == "HTTP1") {
        handler.remove("protocol");
    }
    rewritten(container, kind).is_some_and(|rewritten| rewritten == Value::Object(handler))
}

#[cfg(test)]
#[path = "probes_tests.rs"]
mod tests;
