//! May this caller do this here? Pure: (caller, request, snapshot) in, a [`Permit`] or a [`Denied`] out. Hides how a
//! permission is made: whoever holds one has been through here.

use http::Method;
use sandgate_mesh::caller::Caller;
use sandgate_mesh::policy::{Basis, PolicySnapshot, Verdict};
use sandgate_mesh::probe::AppProbe;
use sandgate_mesh::sandbox::AppPort;
use std::sync::Arc;

/// The ports this gate itself listens on. Through them a caller would come back to the gate as a loopback peer.
#[derive(Debug, Clone, Copy)]
pub struct OwnPorts {
    /// The mTLS port.
    pub mesh: u16,
    /// The health and metrics port.
    pub health: u16,
}

impl OwnPorts {
    fn contain(self, port: AppPort) -> bool {
        [self.mesh, self.health].contains(&port.get())
    }
}

/// A port on loopback that isn't one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoopbackPort(AppPort);

impl LoopbackPort {
    /// The app's port; `None` for one of our own.
    pub fn new(port: AppPort, own: &OwnPorts) -> Option<Self> {
        (!own.contain(port)).then_some(Self(port))
    }

    /// The port's number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

/// The permission to dial one loopback port for one request of one caller. The dialer demands it, and takes it.
///
/// Only [`authorize`] makes one, and it is spent with the connection that it was made for:
/// ```
/// use sandbox_sidecar::authorize::Permit;
/// use sandbox_sidecar::dial::Door;
/// use sandgate_mesh::http2::HttpVersion;
/// async fn spend(door: &Door, permit: Permit, deadline: tokio::time::Instant) {
///     let opened = door.open(permit, HttpVersion::Http1, deadline).await;
/// }
/// ```
/// It can't be spent twice,
/// ```compile_fail,E0382
/// use sandbox_sidecar::authorize::Permit;
/// use sandbox_sidecar::dial::Door;
/// use sandgate_mesh::http2::HttpVersion;
/// async fn spend(door: &Door, permit: Permit, deadline: tokio::time::Instant) {
///     let opened = door.open(permit, HttpVersion::Http1, deadline).await;
///     let opened_again = door.open(permit, HttpVersion::Http1, deadline).await;
/// }
/// ```
/// kept for another request,
/// ```compile_fail,E0277
/// use sandbox_sidecar::authorize::Permit;
/// fn keep(permit: &Permit) -> Permit {
///     Permit::clone(permit)
/// }
/// ```
/// forged,
/// ```compile_fail,E0451
/// use sandbox_sidecar::authorize::{LoopbackPort, Permit};
/// use sandgate_mesh::caller::Caller;
/// use std::sync::Arc;
/// fn forge(port: LoopbackPort, caller: Arc<Caller>) -> Permit {
///     Permit { port, caller, basis: sandgate_mesh::policy::Basis::Default }
/// }
/// ```
/// nor handed on to another caller.
/// ```compile_fail,E0616
/// use sandbox_sidecar::authorize::Permit;
/// use sandgate_mesh::caller::Caller;
/// use std::sync::Arc;
/// fn hand_on(permit: &mut Permit, to: Arc<Caller>) {
///     permit.caller = to;
/// }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Permit {
    port: LoopbackPort,
    caller: Arc<Caller>,
    basis: Basis,
}

impl Permit {
    /// Where to dial.
    pub const fn port(&self) -> LoopbackPort {
        self.port
    }

    /// What allowed it, for the audit line.
    pub const fn basis(&self) -> &Basis {
        &self.basis
    }

    /// Gives it up for where it leads, and on whose behalf.
    pub(crate) fn spend(self) -> (LoopbackPort, Arc<Caller>) {
        (self.port, self.caller)
    }
}

/// The standing permission to dial the port of one of the app's probes, again and again. The dialer demands it.
///
/// Only [`authorize_probe`] makes one, of a probe that was declared:
/// ```
/// use sandbox_sidecar::authorize::ProbePermit;
/// fn lead(permit: &ProbePermit) -> u16 {
///     permit.port().get()
/// }
/// ```
/// It can't be forged,
/// ```compile_fail,E0451
/// use sandbox_sidecar::authorize::{LoopbackPort, ProbePermit};
/// fn forge(port: LoopbackPort) -> ProbePermit {
///     ProbePermit { port }
/// }
/// ```
/// nor copied.
/// ```compile_fail,E0277
/// use sandbox_sidecar::authorize::ProbePermit;
/// fn copy(permit: &ProbePermit) -> ProbePermit {
///     ProbePermit::clone(permit)
/// }
/// ```
#[derive(Debug)]
#[must_use]
pub struct ProbePermit {
    port: LoopbackPort,
}

impl ProbePermit {
    /// Where to dial.
    pub const fn port(&self) -> LoopbackPort {
        self.port
    }
}

/// What a decision depends on, besides the caller.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Whether the caller is the peer itself. Such a caller must be let in by a rule: the default, made for callers that
    /// a router authenticated, is no leave to go around it.
    pub direct: bool,
    /// The app port asked for.
    pub port: AppPort,
    /// The method.
    pub method: &'a Method,
    /// The path, without query, in exactly the bytes that will be forwarded.
    pub path: &'a str,
}

/// Why a request is refused. `Display` is for the audit line; the caller is told less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no snapshot in force yet.
    #[error("no policy snapshot in force")]
    NoSnapshot,
    /// One of the gate's own ports was asked for.
    #[error("the gate's own port")]
    OwnPort,
    /// The snapshot doesn't allow it.
    #[error("no policy rule allows it")]
    Policy,
    /// A rule would need the path, and programs read that in different ways.
    #[error("a policy rule needs the path, which is ambiguous")]
    AmbiguousPath,
}

/// Decides one request by the snapshot in force; `None` stands for none yet.
///
/// # Errors
/// See [`Denied`]. Nothing is allowed without a snapshot, and the gate's own ports are never allowed.
pub fn authorize(
    caller: &Arc<Caller>,
    request: &RequestFacts<'_>,
    snapshot: Option<&PolicySnapshot>,
    own: &OwnPorts,
) -> Result<Permit, Denied> {
    let port = LoopbackPort::new(request.port, own).ok_or(Denied::OwnPort)?;
    let snapshot = snapshot.ok_or(Denied::NoSnapshot)?;
    match snapshot.evaluate(caller, request.port, request.method, request.path) {
        Verdict::Allowed(Basis::Default) if request.direct => Err(Denied::Policy),
        Verdict::Allowed(basis) => Ok(Permit {
            port,
            caller: Arc::clone(caller),
            basis,
        }),
        Verdict::Denied => Err(Denied::Policy),
        Verdict::AmbiguousPath => Err(Denied::AmbiguousPath),
    }
}

/// Decides about a probe that was declared for the app. `None` if it leads to one of the gate's own ports.
pub fn authorize_probe(probe: &AppProbe, own: &OwnPorts) -> Option<ProbePermit> {
    LoopbackPort::new(probe.port, own).map(|port| ProbePermit { port })
}

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
