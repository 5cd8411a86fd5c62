//! What a worker thread has for its requests.

use crate::authenticate::Authenticator;
use crate::authorize::AccessReviews;
use crate::config::Config;
use crate::forward::Forwarder;
use crate::limits::RequestCounts;
use crate::metrics::Metrics;
use crate::otlp::Tracer;
use crate::resolve::Resolver;
use crate::upgrades::UpgradeCount;
use sandgate_mesh::framing::Limits;
use sandgate_mesh::memory::MemoryBudget;
use sandgate_mesh::telemetry::LineLog;
use std::sync::Arc;

/// What one worker thread needs to serve requests.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    pub(crate) framing: Arc<Limits>,
    pub(crate) authenticator: Arc<Authenticator>,
    /// Who may connect where, if the API server is asked.
    pub(crate) access_reviews: Option<Arc<AccessReviews>>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) forwarder: Forwarder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access: Option<LineLog>,
    pub(crate) memory: MemoryBudget,
    /// Of all workers; `None` where there is no limit.
    pub(crate) upgrades: Option<Arc<UpgradeCount>>,
    /// What traces requests, if any are.
    pub(crate) tracer: Option<Arc<Tracer>>,
    /// Of all workers; `None` where neither callers nor sandboxes are limited.
    pub(crate) limits: Option<Arc<RequestCounts>>,
}
