//! What Sandgate's programs must agree on.
//!
//! The router, the sidecar and the control plane share these pieces and nothing else: who somebody is
//! ([`identity`], [`caller`]), how that is proven ([`tls`], [`credentials`], [`standing`], [`scoped_token`]), what is allowed ([`policy`]), how
//! a gate comes to both and a router to an identity ([`control`]), how bytes are framed ([`framing`]), moved ([`exchange`], [`tunnel`]) and traced ([`trace_context`]), and how a
//! process starts, reports and ends ([`command_line`], [`admin`], [`probe`], [`drain`], [`metrics`], [`telemetry`],
//! [`process`]).

pub mod admin;
pub mod body;
pub mod caller;
pub mod command_line;
pub mod contract;
pub mod control;
pub mod credentials;
pub mod drain;
pub mod duration;
pub mod exchange;
pub mod framing;
pub mod headers;
pub mod http2;
pub mod identity;
pub mod listener;
pub mod memory;
pub mod metrics;
pub mod outcome;
pub mod overflow;
pub mod policy;
pub mod polled;
pub mod pool;
pub mod probe;
pub mod process;
pub mod sandbox;
pub mod scoped_token;
pub mod serve;
pub mod standing;
pub mod telemetry;
pub mod tls;
pub mod trace_context;
pub mod tunnel;

#[cfg(test)]
extern crate self as sandgate_mesh;
// Tests of TLS need certificates; the one authority that issues them outside a cluster is sandgate-local's.
#[cfg(test)]
#[path = "../../../deploy/local/src/authority.rs"]
pub mod authority;
