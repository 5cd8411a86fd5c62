//! The probes and hooks of a sandbox's containers that its gate runs for the kubelet.
//!
//! Where lockdown closes the app's ports, the kubelet can't reach them either. So the injector points these probes at the
//! gate's health port and hands the gate what the pod's author declared; the gate runs that over loopback. [`model`] is
//! the written form, [`AppProbes`] the checked one. The injector checks with [`check`] what it is about to write, so that
//! a pod which the gate would refuse is never admitted.

pub mod model;
#[cfg(test)]
mod tests;

use crate::contract::{APP_PROBE_PREFIX, HEALTH_PORT, MESH_PORT, OWN_HEADER_PREFIX, ROUTING_HEADER_PREFIX};
use crate::headers::is_hop_by_hop;
use crate::sandbox::{AppPort, ContainerName};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use model::{Declaration, Declarations, Grpc, Header, HttpGet, Kind, Scheme};
use std::collections::HashSet;
use std::str::FromStr;
use std::time::Duration;

/// Longest JSON, in bytes. Linux takes twice that in one variable.
const MAX_BYTES: usize = 64 * 1024;
/// Most probes and hooks of one pod.
const MAX_PROBES: usize = 256;
/// Longest path with query, in bytes.
const MAX_PATH: usize = 2048;
/// Most declared header fields.
const MAX_HEADERS: usize = 32;
/// Longest name of a gRPC service, in bytes.
const MAX_SERVICE: usize = 127;
/// Longest time that one may take, in seconds.
const MAX_SECONDS: u32 = 3600;

/// What is wrong with a declaration, and in which of its fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Flaw {
    /// For example `httpGet.httpHeaders[1].name`.
    pub field: String,
    /// What is wrong there, and what to do about it.
    pub problem: String,
}

/// Why declarations are refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum AppProbesError {
    /// Too long.
    #[error("the app's probes take {0} bytes, more than 64 KiB")]
    TooLarge(usize),
    /// Not JSON, or not the format's fields.
    #[error("the app's probes aren't JSON of the version 1 format: {0}")]
    Format(#[from] serde_json::Error),
    /// Written for another release.
    #[error("the app's probes have version {0}, this release reads version 1")]
    Version(u32),
    /// More than a pod has.
    #[error("there are {0} app probes, more than 256")]
    TooMany(usize),
    /// One of them can't be run.
    #[error("app probe {place}: {flaw}")]
    Invalid {
        /// Its place in the list, from 0.
        place: usize,
        /// Why.
        flaw: Flaw,
    },
}

/// A probe or hook that can be run.
#[derive(Debug, Clone)]
pub struct AppProbe {
    /// Whose it is.
    pub container: ContainerName,
    /// Which one.
    pub kind: Kind,
    /// How long it may take.
    pub timeout: Duration,
    /// The app's port.
    pub port: AppPort,
    /// What is done there.
    pub action: Action,
}

/// What a probe does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Sends a GET.
    HttpGet {
        /// In origin form.
        target: PathAndQuery,
        /// What was declared. It says nothing about framing, hops or us.
        headers: HeaderMap,
    },
    /// Connects.
    TcpSocket,
    /// Asks for the health of a gRPC service, or of the server if this is empty.
    Grpc {
        /// At most 127 bytes.
        service: String,
    },
}

impl AppProbe {
    /// Where on the gate's health port it is run.
    pub fn path(&self) -> String {
        path(&self.container, self.kind)
    }
}

/// Where on the gate's health port a container's probe or hook is run.
pub fn path(container: &ContainerName, kind: Kind) -> String {
    format!("{APP_PROBE_PREFIX}{container}/{kind}")
}

/// All that one gate runs, each under a path of its own.
#[derive(Debug, Clone, Default)]
pub struct AppProbes(Vec<AppProbe>);

impl AppProbes {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &AppProbe> {
        self.0.iter()
    }
}

impl FromStr for AppProbes {
    type Err = AppProbesError;

    /// Reads [`Declarations`]. All of them count, or none.
    fn from_str(json: &str) -> Result<Self, AppProbesError> {
        if json.len() > MAX_BYTES {
            return Err(AppProbesError::TooLarge(json.len()));
        }
        let Declarations { version, probes } = serde_json::from_str(json)?;
        if version != model::VERSION {
            return Err(AppProbesError::Version(version));
        }
        if probes.len() > MAX_PROBES {
            return Err(AppProbesError::TooMany(probes.len()));
        }
        let (mut paths, mut checked) = (HashSet::new(), Vec::new());
        for (place, declaration) in probes.iter().enumerate() {
            let probe = check(declaration).map_err(|flaw| AppProbesError::Invalid { place, flaw })?;
            if !paths.insert(probe.path()) {
                let flaw = flaw("kind", "is declared twice for this container");
                return Err(AppProbesError::Invalid { place, flaw });
            }
            checked.push(probe);
        }
        Ok(Self(checked))
    }
}

fn flaw(field: impl Into<String>, problem: impl Into<String>) -> Flaw {
    Flaw {
        field: field.into(),
        problem: problem.into(),
    }
}

/// The probe that a declaration means.
///
/// # Errors
/// It can't be run as the kubelet would run it, or must not be.
pub fn check(declaration: &Declaration) -> Result<AppProbe, Flaw> {
    let Declaration {
        container,
        kind,
        timeout_seconds,
        http_get,
        tcp_socket,
        grpc,
    } = declaration;
    let container = container
        .parse()
        .map_err(|error: crate::sandbox::NameError| flaw("container", error.to_string()))?;
    if !(1..=MAX_SECONDS).contains(timeout_seconds) {
        return Err(flaw("timeoutSeconds", format!("must be 1 to {MAX_SECONDS}")));
    }
    let (port, action) = match (http_get, tcp_socket, grpc) {
        (Some(get), None, None) => (port("httpGet", get.port)?, http_action(get)?),
        (None, Some(_), None) if kind.is_hook() => {
            return Err(flaw("tcpSocket", "does nothing in a lifecycle hook; remove it"));
        }
        (None, Some(socket), None) => (port("tcpSocket", socket.port)?, Action::TcpSocket),
        (None, None, Some(_)) if kind.is_hook() => return Err(flaw("grpc", "is no lifecycle hook; remove it")),
        (None, None, Some(grpc)) => (port("grpc", grpc.port)?, grpc_action(grpc)?),
        _ => {
            return Err(flaw(
                kind.as_str(),
                "must be exactly one of httpGet, tcpSocket and grpc",
            ));
        }
    };
    Ok(AppProbe {
        container,
        kind: *kind,
        timeout: Duration::from_secs((*timeout_seconds).into()),
        port,
        action,
    })
}

/// Only what follows could tell the gate to ask itself.
fn port(field: &str, port: u16) -> Result<AppPort, Flaw> {
    let place = || format!("{field}.port");
    match AppPort::new(port) {
        None => Err(flaw(place(), "must be a port number from 1 to 65535")),
        Some(_) if [MESH_PORT, HEALTH_PORT].contains(&port) => Err(flaw(place(), "is one of the gate's own ports")),
        Some(port) => Ok(port),
    }
}

fn http_action(get: &HttpGet) -> Result<Action, Flaw> {
    if get.scheme == Some(Scheme::Https) {
        let problem = "HTTPS is not probed under lockdown; use HTTP, tcpSocket or exec";
        return Err(flaw("httpGet.scheme", problem));
    }
    let path = get.path.as_deref().unwrap_or_default();
    // As the kubelet completes it.
    let slash = if path.starts_with('/') { "" } else { "/" };
    let target = format!("{slash}{path}");
    // A fragment isn't sent, and `PathAndQuery` drops it without a word.
    let readable = target.len() <= MAX_PATH && target.is_ascii() && !target.contains('#');
    let target = PathAndQuery::from_str(&target).ok().filter(|_| readable).ok_or_else(|| {
        let problem = "must be a path with an optional query of at most 2048 ASCII characters, without `#` and with \
                       spaces and the like percent-encoded";
        flaw("httpGet.path", problem)
    })?;
    let declared = get.http_headers.as_deref().unwrap_or_default();
    if declared.len() > MAX_HEADERS {
        let problem = format!("has {} items, more than {MAX_HEADERS}", declared.len());
        return Err(flaw("httpGet.httpHeaders", problem));
    }
    let mut headers = HeaderMap::new();
    for (place, header) in declared.iter().enumerate() {
        let (name, value) =
            field(header).map_err(|(part, problem)| flaw(format!("httpGet.httpHeaders[{place}].{part}"), problem))?;
        if name == HOST && headers.contains_key(HOST) {
            let problem = "says Host a second time; servers differ in which they take";
            return Err(flaw(format!("httpGet.httpHeaders[{place}].name"), problem));
        }
        headers.append(name, value);
    }
    Ok(Action::HttpGet { target, headers })
}

fn grpc_action(grpc: &Grpc) -> Result<Action, Flaw> {
    let service = grpc.service.clone().unwrap_or_default();
    if service.len() > MAX_SERVICE {
        return Err(flaw("grpc.service", format!("must be at most {MAX_SERVICE} bytes")));
    }
    Ok(Action::Grpc { service })
}

/// A header field, or which half of it is wrong, and how.
fn field(header: &Header) -> Result<(HeaderName, HeaderValue), (&'static str, &'static str)> {
    let name = HeaderName::from_bytes(header.name.as_bytes());
    let name = name.map_err(|_| ("name", "is not a header field's name"))?;
    if is_hop_by_hop(&name) || [CONTENT_LENGTH, EXPECT].contains(&name) {
        return Err((
            "name",
            "would set how the probe's request is framed or carried; remove it",
        ));
    }
    if [OWN_HEADER_PREFIX, ROUTING_HEADER_PREFIX]
        .iter()
        .any(|prefix| name.as_str().starts_with(prefix))
    {
        return Err(("name", "is Sandgate's own; remove it"));
    }
    let value = HeaderValue::from_str(&header.value);
    Ok((
        name,
        value.map_err(|_| ("value", "must be visible ASCII characters and spaces"))?,
    ))
}
