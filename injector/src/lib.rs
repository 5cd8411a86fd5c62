//! The injector: puts a gate into every sandbox pod of an opted-in namespace, or says why the pod can't be admitted.

mod admin_thread;
pub mod anchors;
pub mod authority;
mod authority_files;
mod authority_keeper;
mod authority_secret;
mod authority_stored;
mod born;
mod ca_bundle;
#[cfg(test)]
mod captured;
pub mod cli;
pub mod config;
pub mod decide;
mod decision_log;
pub mod deny;
mod enrol;
mod existing;
mod https;
mod https_places;
mod inbound;
mod inbound_pool;
mod kubernetes;
mod metrics;
pub mod names;
mod network_policy;
pub mod offline;
pub mod overrides;
pub mod patch;
pub mod pod;
pub mod probes;
pub mod quantity;
pub mod review;
mod review_size;
#[cfg(test)]
mod rig;
mod root_changes;
mod rotation;
mod server;
mod serving;
pub mod settings;
mod shape;
#[cfg(test)]
mod testing;
pub mod validate;
mod webhook;

// The settings of tests are written once, in words that hold in here and outside.
#[cfg(test)]
extern crate self as sandbox_injector;

pub use rotation::Schedule;
pub use server::{Injector, serve};
pub use serving::Timing;
