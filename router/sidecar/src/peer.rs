//! Whom a mesh connection comes from, and for whom it may speak. Hides how a router's assertions are read.

use crate::error::GateError;
use http::{HeaderValue, Request};
use sandgate_mesh::caller::Caller;
use sandgate_mesh::contract::X_SANDGATE_CALLER;
use sandgate_mesh::headers::{detached, only};
use sandgate_mesh::identity::PeerId;
use sandgate_mesh::listener::ConnectionSlot;
use sandgate_mesh::tls::MeshPeer;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// The other end of a mesh connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) ip: IpAddr,
    /// Until when its leaf proves that it is who it is.
    until: SystemTime,
    /// Its place among the connections: held for as long as anything of it lasts, tunnels too.
    _slot: ConnectionSlot,
    /// The peer as a caller, unless it is a router, which speaks for others.
    pub(crate) direct: Option<Arc<Caller>>,
    last: Mutex<Option<(HeaderValue, Arc<Caller>)>>,
}

impl Peer {
    pub(crate) fn new(peer: MeshPeer, is_router: bool, ip: IpAddr, slot: ConnectionSlot) -> Self {
        let direct = (!is_router).then(|| Arc::new(Caller::Spiffe(peer.id.to_spiffe_id())));
        Self {
            id: peer.id,
            ip,
            until: peer.until,
            _slot: slot,
            direct,
            last: Mutex::new(None),
        }
    }

    /// How long what it proved still holds; `None` if it no longer does.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.until.duration_since(SystemTime::now()).ok()
    }

    /// Whether it speaks for others.
    pub(crate) fn is_router(&self) -> bool {
        self.direct.is_none()
    }

    /// Who calls: whom a router asserts, or the peer itself. An assertion by anybody but a router is an attack.
    pub(crate) fn caller<B>(&self, request: &Request<B>) -> Result<Arc<Caller>, GateError> {
        let assertion = only(request.headers(), &X_SANDGATE_CALLER).map_err(|_| GateError::RepeatedAssertion)?;
        match (&self.direct, assertion) {
            (Some(_), Some(_)) => Err(GateError::NotARouter),
            (Some(direct), None) => Ok(Arc::clone(direct)),
            (None, None) => Err(GateError::NoAssertion),
            (None, Some(assertion)) => self.asserted(assertion).ok_or(GateError::Assertion),
        }
    }

    // Routers send the same few callers again and again over one connection.
    fn asserted(&self, assertion: &HeaderValue) -> Option<Arc<Caller>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, caller)) = last.as_ref().filter(|(value, _)| value == assertion) {
            return Some(Arc::clone(caller));
        }
        let caller = Arc::new(Caller::from_assertion(assertion.as_bytes()).ok()?);
        *last = Some((detached(assertion), Arc::clone(&caller)));
        Some(caller)
    }
}
