//! The whole mesh on one machine: real TLS, real policies, real sockets, no Kubernetes.
//!
//! [`authority`] and [`demo`] are of use to tests by themselves; [`cli`] and [`mesh`] are the program `sandgate-local`.

mod apps;
pub mod authority;
pub mod cli;
pub mod demo;
mod gates;
pub mod mesh;
mod policies;
mod scene;
