//! The router's mesh identity where a control plane brings it: the mesh port of a router, on which nothing is served but the
//! control API. Hides that the roots, by which a control plane is known at first, are a file that may come later.

use crate::certificates::POLL_PERIOD;
use crate::config::Enrolment;
use crate::metrics::{EnrolmentMetrics, Metrics};
use anyhow::Context;
use sandgate_mesh::control::Enrollee;
use sandgate_mesh::control::server::{Control, ControlSettings, Identity};
use sandgate_mesh::credentials::{Credentials, roots_from_pem};
use sandgate_mesh::drain::Draining;
use sandgate_mesh::listener::{self, Newcomer, Newcomers};
use sandgate_mesh::polled::Poller;
use sandgate_mesh::tls::{self, Anchors, HandshakeError, Purpose};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// Connections in the handshake; one more ends the oldest of the address that has the most.
const HANDSHAKES: usize = 64;

/// A mesh port that is bound, and what is served there.
pub(crate) struct EnrolmentListener {
    control: Arc<Control>,
    listener: TcpListener,
    anchors: Anchors,
    newcomers: Newcomers,
    metrics: EnrolmentMetrics,
}

impl EnrolmentListener {
    /// Takes the port, takes up what was kept, and follows the file of the roots. To be called inside a Tokio runtime.
    ///
    /// # Errors
    /// The port is taken, or there is no folder for what is to be kept.
    pub(crate) fn bind(enrolment: &Enrolment, metrics: &Metrics) -> anyhow::Result<Self> {
        let file = enrolment.mesh_trust_anchors_file.clone();
        let (poller, anchors) = Poller::new("trust anchors", vec![file], |files: Vec<Vec<u8>>| {
            roots_from_pem(&files.concat()).map(Arc::unwrap_or_clone)
        });
        // What can't be read is told by the poller, and isn't needed by a router that was enrolled before.
        tokio::spawn(poller.on_reload(metrics.on_cert_reload()).run(POLL_PERIOD));
        let settings = ControlSettings {
            control_planes: enrolment.control_identities.clone(),
            anchors: anchors.clone(),
            state_folder: enrolment.mesh_state_folder.clone(),
        };
        let own = Enrollee::Router {
            identity: enrolment.mesh_identity.clone(),
            pod_uid: enrolment.pod_uid.clone(),
        };
        let identity = Identity::Granted {
            token_file: enrolment.mesh_token_file.clone(),
        };
        Ok(Self {
            control: Arc::new(Control::open(settings, own, identity).context("--mesh-state-folder")?),
            listener: listener::bind(enrolment.mesh_bind_address)?,
            anchors,
            newcomers: Newcomers::new(HANDSHAKES),
            metrics: metrics.enrolment()?,
        })
    }

    /// The identity in force.
    pub(crate) fn credentials(&self) -> Credentials {
        self.control.credentials()
    }

    /// The roots by which a control plane is known to a router without an identity.
    pub(crate) fn anchors(&self) -> Anchors {
        self.anchors.clone()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves control planes until the drain starts.
    pub(crate) async fn serve(self, mut draining: Draining) {
        while let Some((stream, address)) = listener::accept(&self.listener, &mut draining).await {
            let (control, metrics, draining) = (Arc::clone(&self.control), self.metrics.clone(), draining.clone());
            let newcomer = self.newcomers.enter(address.ip());
            tokio::spawn(async move { Box::pin(meet(control, metrics, stream, address, newcomer, draining)).await });
        }
    }
}

/// One connection, from its handshake to its end.
async fn meet(
    control: Arc<Control>,
    metrics: EnrolmentMetrics,
    stream: TcpStream,
    address: SocketAddr,
    mut newcomer: Newcomer,
    mut draining: Draining,
) {
    // Requests are for gates. Without roots nobody can prove to be a control plane.
    let choose = |purpose| {
        (purpose == Purpose::Control)
            .then(|| control.server_tls().ok())
            .flatten()
    };
    let accepted = tokio::select! {
        accepted = tls::accept_mesh(stream, choose) => accepted,
        () = newcomer.displaced() => {
            metrics.handshakes.inc();
            return;
        }
        () = draining.started() => return,
    };
    drop(newcomer);
    match accepted {
        Ok((stream, peer, _)) => control.serve(metrics.control, stream, peer, address, draining).await,
        Err(error) => refused(&metrics, address, &error),
    }
}

fn refused(metrics: &EnrolmentMetrics, address: SocketAddr, error: &HandshakeError) {
    metrics.refused.inc();
    tracing::info!(peer = %address, %error, "handshake refused");
}
