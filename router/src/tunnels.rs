//! A request that switches protocols: from its 101 to the end of the tunnel.

use crate::access::Record;
use crate::client::Client;
use crate::error::RouterError;
use crate::forward::{Errand, UNANSWERED, id_text};
use crate::metrics::{Metrics, Reason};
use crate::target::Target;
use crate::upgrades::UpgradeSlot;
use http::Response;
use http::header::HeaderValue;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use sandgate_mesh::framing::PassThrough;
use sandgate_mesh::headers::{Upgrade, cross_hop, detached};
use sandgate_mesh::pool::Lease;
use sandgate_mesh::sandbox::SandboxKey;
use sandgate_mesh::telemetry::chain;
use sandgate_mesh::tunnel::{Ended, Protocol, TunnelLimits, join_upgraded};
use std::sync::Arc;

/// Two connections that have switched protocols.
pub(crate) struct Tunnel {
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    protocol: Protocol,
    /// The client's place among its upgraded connections, until the tunnel ends.
    slot: Option<UpgradeSlot>,
    lease: Lease<Arc<Target>>,
    sandbox: SandboxKey,
    request_id: Option<HeaderValue>,
    /// Kept until the end: the client's connection is in use.
    switch: PassThrough,
}

impl Tunnel {
    /// Makes one of what the client `asked` for and the sandbox answered with 101, and the answer that opens it.
    ///
    /// # Errors
    /// Nobody asked for what the sandbox switches to; or the client has sent more than it asked with.
    pub(crate) fn dig(
        metrics: &Metrics,
        errand: Errand<'_>,
        asked: Option<(OnUpgrade, Upgrade)>,
        switch: PassThrough,
        slot: Option<UpgradeSlot>,
        lease: Lease<Arc<Target>>,
        mut response: Response<Incoming>,
    ) -> Result<(Response<()>, Self), RouterError> {
        let sandbox = &errand.route.sandbox;
        let Some((downstream, upgrade)) = asked.filter(|(_, upgrade)| upgrade.is_answered_by(response.headers()))
        else {
            let reason = Reason::Other;
            tracing::info!(
                target: UNANSWERED, %sandbox, request_id = errand.id(), reason = reason.as_str(),
                "protocols were switched as nobody asked"
            );
            metrics.error(&sandbox.namespace, reason);
            return Err(RouterError::Broken(sandbox.name.clone()));
        };
        if !switch.open() {
            return Err(RouterError::EarlyBytes);
        }
        let tunnel = Self {
            downstream,
            upstream: hyper::upgrade::on(&mut response),
            protocol: upgrade.protocol(),
            slot,
            lease,
            sandbox: sandbox.clone(),
            request_id: errand.request_id.map(detached),
            switch,
        };
        cross_hop(response.headers_mut(), Some(&upgrade));
        Ok((response.map(|_| ()), tunnel))
    }

    /// Joins the two until one of them ends. The request lasts as long, and so does the client's place.
    pub(crate) async fn run(
        self,
        client: Arc<Client>,
        limits: TunnelLimits,
        metrics: Arc<Metrics>,
        mut record: Record,
    ) {
        let Self {
            downstream,
            upstream,
            protocol,
            slot,
            lease,
            sandbox,
            request_id,
            switch,
        } = self;
        let (request_id, span) = (id_text(request_id.as_ref()), record.log_span());
        metrics.open_tunnels.inc();
        let draining = client.draining.clone();
        let ended = join_upgraded(
            downstream,
            upstream,
            lease,
            protocol,
            limits,
            draining,
            client.withdrawn(),
        )
        .await;
        metrics.open_tunnels.dec();
        metrics.tunnel_ended(ended.as_ref().ok().map(|ended| ended.end));
        let _entered = span.enter();
        match ended {
            Ok(Ended { end, up, down }) => {
                record.bytes_in(up);
                record.bytes_out(down);
                tracing::info!(%sandbox, request_id, end = end.as_str(), up, down, "the tunnel ended");
            }
            Err(error) => tracing::info!(%sandbox, request_id, error = chain(&error), "the tunnel did not open"),
        }
        drop((slot, switch));
    }
}
