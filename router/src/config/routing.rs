//! The URLs that lead to an app without routing headers, as flags.

use super::spelling::unless_empty;
use crate::routing::UrlRouting;
use clap::Args;

/// The flags.
#[derive(Debug, Args)]
pub(super) struct RoutingFlags {
    /// Path under which requests are routed by their path, for browsers: <prefix>/<namespace>/<id>/<port>/...; empty for
    /// none. Everything under it is claimed: what names no sandbox there is refused, whatever its headers say. All
    /// sandboxes share one origin in a browser; where that matters, use --host-routing-domain.
    #[arg(long, value_name = "PREFIX", default_value = "", help_heading = "Routing by URL")]
    path_routing_prefix: String,
    /// Domain under which requests are routed by their host, for browsers: <port>-<id>--<namespace>.<domain>, an origin for
    /// each app; empty for none. It needs a wildcard DNS record and certificate.
    #[arg(long, value_name = "DOMAIN", default_value = "", help_heading = "Routing by URL")]
    host_routing_domain: String,
}

impl RoutingFlags {
    /// What the flags say, if either is set.
    pub(super) fn url_routing(&self, problems: &mut Vec<String>) -> Option<UrlRouting> {
        let path = unless_empty("--path-routing-prefix", &self.path_routing_prefix, problems);
        let host = unless_empty("--host-routing-domain", &self.host_routing_domain, problems);
        (path.is_some() || host.is_some()).then_some(UrlRouting { path, host })
    }
}
