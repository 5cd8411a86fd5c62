//! May this caller do this here? Pure: (caller, request, snapshot) in, a [`Permit`] or a [`Denied`] out.

use http::{Method, StatusCode};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::policy::{Basis, PolicySnapshot, Verdict};
use sandgate_mesh::sandbox::{AppPort, SandboxName};

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

/// The permission to dial one loopback port for one request. The dialer demands it.
///
/// Only [`authorize`] makes one:
/// ```
/// use sandbox_sidecar::authorize::{LoopbackPort, Permit};
/// fn spend(permit: Permit) -> LoopbackPort {
///     permit.port()
/// }
/// ```
/// It can't be forged,
/// ```compile_fail,E0451
/// use sandbox_sidecar::authorize::{LoopbackPort, Permit};
/// fn forge(port: LoopbackPort) -> Permit {
///     Permit { port, basis: sandgate_mesh::policy::Basis::Default }
/// }
/// ```
/// nor kept for another request.
/// ```compile_fail,E0599
/// use sandbox_sidecar::authorize::{LoopbackPort, Permit};
/// fn keep(permit: &Permit) -> Permit {
///     Permit::clone(permit)
/// }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Permit {
    port: LoopbackPort,
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

/// Why a request is refused. `Display` is for the audit line, [`Denied::detail`] for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no snapshot in force yet, or it went stale.
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

impl Denied {
    /// The HTTP status. What policy refuses is never a 5xx: clients would try again.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::NoSnapshot => StatusCode::SERVICE_UNAVAILABLE,
            Self::OwnPort | Self::Policy => StatusCode::FORBIDDEN,
            Self::AmbiguousPath => StatusCode::BAD_REQUEST,
        }
    }

    /// What the caller is told: which layer refused, never what the policy holds.
    pub fn detail(self, sandbox: &SandboxName) -> String {
        match self {
            Self::NoSnapshot => format!("Sandbox gate is not ready: {sandbox}"),
            Self::OwnPort | Self::Policy => format!("Refused by the sandbox policy of {sandbox}."),
            Self::AmbiguousPath => format!(
                "Ambiguous path: the sandbox policy of {sandbox} needs one without empty or dot segments, `;`, `\\` and \
                 encoded separators."
            ),
        }
    }
}

/// Decides one request by the snapshot in force; `None` stands for none yet, or a stale one.
///
/// # Errors
/// See [`Denied`]. Nothing is allowed without a snapshot, and the gate's own ports are never allowed.
pub fn authorize(
    caller: &Caller,
    request: &RequestFacts<'_>,
    snapshot: Option<&PolicySnapshot>,
    own: &OwnPorts,
) -> Result<Permit, Denied> {
    let port = LoopbackPort::new(request.port, own).ok_or(Denied::OwnPort)?;
    let snapshot = snapshot.ok_or(Denied::NoSnapshot)?;
    match snapshot.evaluate(caller, request.port, request.method, request.path) {
        Verdict::Allowed(Basis::Default) if request.direct => Err(Denied::Policy),
        Verdict::Allowed(basis) => Ok(Permit { port, basis }),
        Verdict::Denied => Err(Denied::Policy),
        Verdict::AmbiguousPath => Err(Denied::AmbiguousPath),
    }
}

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
