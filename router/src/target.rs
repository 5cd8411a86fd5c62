//! Where a request is sent. Resolution finds it, connections are kept for it.

use crate::limits::Whither;
use sandgate_mesh::identity::ExpectedSandbox;
use std::net::SocketAddr;

/// Where a request is sent, and who must be there. Decided before anything is dialed.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) endpoint: SocketAddr,
    /// `None`: plain HTTP, where no gate is asked for.
    pub(crate) expected: Option<ExpectedSandbox>,
}

impl Target {
    /// Which sandbox is there, however much the name says by which it was found.
    pub(crate) fn whither(&self) -> Whither {
        match &self.expected {
            Some(expected) => Whither::Gate(expected.sandbox.clone()),
            None => Whither::Pod(self.endpoint.ip()),
        }
    }
}
