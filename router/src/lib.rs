//! The router: authenticates callers and forwards each request to that sandbox's own gate, over mTLS and only if the
//! gate proves to be exactly that sandbox. A drop-in for agent-sandbox's `sandbox-router`.
//!
//! `request` is the way of a request, top to bottom.

mod acceptor;
mod access;
mod api_server;
mod authenticate;
mod authorize;
mod breaker;
mod browser;
mod certificates;
pub mod cli;
mod client;
pub mod config;
mod connections;
mod enrolment;
mod error;
mod forward;
mod limits;
mod metrics;
mod otlp;
mod outbound;
mod outcomes;
mod pods;
mod proof;
mod request;
mod resolve;
mod reviews;
mod rewrite;
mod routing;
mod scope;
mod server;
mod target;
mod tunnels;
mod upgrades;
mod worker;

pub use error::{Bound, RouterError};
pub use limits::LimitReached;
pub use routing::{HostDomain, NamedApp, PathPrefix, Route};
pub use server::Router;
