//! Routing target -> endpoint and, where the mesh is required, the identity that must answer there.

use crate::config::{Config, Mesh, StaticSandbox};
use crate::routing::{Route, may_be_a_pod};
use foldhash::HashMap;
use sandgate_mesh::contract::MESH_PORT;
use sandgate_mesh::identity::{ExpectedSandbox, TrustDomain};
use sandgate_mesh::sandbox::{PodUid, SandboxKey};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Look-ups of names that may be under way at once.
const LOOK_UPS: usize = 32;

/// Where a request is sent, and who must be there. Decided before anything is dialed.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) endpoint: SocketAddr,
    /// `None`: plain HTTP, where no gate is asked for.
    pub(crate) expected: Option<ExpectedSandbox>,
}

/// Why there is no target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("it is not configured, and its Service's name does not resolve")]
    NoSuchName(#[source] io::Error),
    #[error("it is not configured, and its Service's name leads to no address that a pod can have")]
    NoPod,
    #[error("looking up its Service's name took too long")]
    TimedOut,
}

impl Unresolved {
    /// As metrics and logs name it.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchName(_) => "no-such-name",
            Self::NoPod => "no-pod",
            Self::TimedOut => "timed-out",
        }
    }
}

/// Finds targets.
#[derive(Debug)]
pub(crate) struct Resolver {
    mesh: Mesh,
    trust_domain: TrustDomain,
    cluster_domain: String,
    allow_loopback: bool,
    known: HashMap<SandboxKey, (StaticSandbox, Arc<Target>)>,
    look_ups: Arc<Semaphore>,
}

impl Resolver {
    pub(crate) fn new(config: &Config) -> Self {
        let mut resolver = Self {
            mesh: config.mesh,
            trust_domain: config.trust_domain.clone(),
            cluster_domain: config.cluster_domain.clone(),
            allow_loopback: config.allow_loopback_pod_ip,
            known: HashMap::default(),
            look_ups: Arc::new(Semaphore::new(LOOK_UPS)),
        };
        for sandbox in &config.sandboxes {
            let endpoint = SocketAddr::new(sandbox.ip, sandbox.mesh_port);
            let target = resolver.target(&sandbox.key, endpoint, sandbox.pod_uid.clone());
            resolver.known.insert(sandbox.key.clone(), (sandbox.clone(), target));
        }
        resolver
    }

    fn target(&self, sandbox: &SandboxKey, endpoint: SocketAddr, pod_uid: Option<PodUid>) -> Arc<Target> {
        let expected = (self.mesh == Mesh::Required).then(|| ExpectedSandbox {
            trust_domain: self.trust_domain.clone(),
            sandbox: sandbox.clone(),
            pod_uid,
        });
        Arc::new(Target { endpoint, expected })
    }

    fn at(&self, route: &Route, ip: IpAddr) -> Arc<Target> {
        let port = if self.mesh == Mesh::Required {
            MESH_PORT
        } else {
            route.port.get()
        };
        self.target(&route.sandbox, SocketAddr::new(ip, port), None)
    }

    /// Known sandboxes first, where a hint can't change anything; then the hint; then DNS.
    pub(crate) async fn resolve(&self, route: &Route, wait: Duration) -> Result<Arc<Target>, Unresolved> {
        if let Some((sandbox, target)) = self.known.get(&route.sandbox) {
            return Ok(if self.mesh == Mesh::Required {
                Arc::clone(target)
            } else {
                self.at(route, sandbox.ip)
            });
        }
        if let Some(ip) = route.pod_ip {
            return Ok(self.at(route, ip));
        }
        // Boxed: only this way needs the room.
        Box::pin(self.look_up(route, wait)).await
    }

    async fn look_up(&self, route: &Route, wait: Duration) -> Result<Arc<Target>, Unresolved> {
        let SandboxKey { namespace, name } = &route.sandbox;
        let host = format!("{name}.{namespace}.svc.{}.", self.cluster_domain.trim_end_matches('.'));
        let port = route.port.get();
        let look_up = async {
            // A look-up that nobody waits for any more goes on, and keeps its place: the system can't end it.
            let place = Arc::clone(&self.look_ups).acquire_owned().await;
            let place = place.map_err(io::Error::other)?;
            let found = tokio::task::spawn_blocking(move || {
                let found = (host, port).to_socket_addrs();
                drop(place);
                found
            });
            found.await.map_err(io::Error::other)?
        };
        // A name must not lead where a hint may not.
        let ip = tokio::time::timeout(wait, look_up)
            .await
            .map_err(|_| Unresolved::TimedOut)?
            .map_err(Unresolved::NoSuchName)?
            .map(|address| address.ip().to_canonical())
            .find(|ip| may_be_a_pod(*ip, self.allow_loopback))
            .ok_or(Unresolved::NoPod)?;
        Ok(self.at(route, ip))
    }
}
