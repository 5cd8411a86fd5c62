//! Routing target -> endpoint and, where the mesh is required, the identity that must answer there.

use crate::config::{Authentication, Config, Mesh, StaticSandbox};
use crate::error::{Bound, RouterError};
use crate::pods::{Found, Known, PodCache};
use crate::routing::{Route, may_be_a_pod};
use crate::target::Target;
use foldhash::HashMap;
use sandgate_mesh::contract::MESH_PORT;
use sandgate_mesh::identity::{ExpectedSandbox, TrustDomain};
use sandgate_mesh::sandbox::{PodUid, SandboxKey, SandboxName};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Look-ups of names that may be under way at once.
const LOOK_UPS: usize = 32;

/// Why there is no target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unresolved {
    #[error("no ready pod of it is known, and its Service's name does not resolve")]
    NoSuchName(#[source] io::Error),
    #[error("no ready pod of it is known, and its Service's name leads to no address that a pod can have")]
    NoPod,
    #[error("looking up its Service's name took too long")]
    TimedOut,
    #[error("no pod of it is known that may have requests now")]
    Unknown,
    #[error("its pod has no gate, and its namespace has opted in; delete the pod, so that it is born with one")]
    Ungated,
    #[error("its pod has no gate; label its namespace sandgate.dev/inject=enabled and recreate it, or use --mesh=auto")]
    NotOptedIn,
    #[error("the address that the client named is a pod's of another namespace")]
    Foreign,
    #[error("the Sandbox of that name is another one than the UID that the token is bound to")]
    Replaced,
    #[error(
        "the token is bound to a Sandbox's UID, which only the pod cache knows: set --cache-enabled, and no --sandbox-endpoint for it"
    )]
    UidUnknown,
}

impl Unresolved {
    /// As metrics and logs name it.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchName(_) => "no-such-name",
            Self::NoPod => "no-pod",
            Self::TimedOut => "timed-out",
            Self::Unknown => "unknown",
            Self::Ungated => "ungated",
            Self::NotOptedIn => "not-opted-in",
            Self::Foreign => "foreign-pod",
            Self::Replaced => "replaced",
            Self::UidUnknown => "uid-unknown",
        }
    }

    /// What the client of `sandbox` is told.
    pub(crate) fn answer(&self, sandbox: &SandboxName) -> RouterError {
        let sandbox = sandbox.clone();
        match self {
            Self::Ungated => RouterError::Ungated(sandbox),
            Self::Foreign => RouterError::ForeignPod(sandbox),
            Self::Replaced | Self::UidUnknown => RouterError::OutOfScope(Bound::Sandbox),
            Self::NoSuchName(_) | Self::NoPod | Self::TimedOut | Self::Unknown | Self::NotOptedIn => {
                RouterError::Unreachable(sandbox)
            }
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
    /// Whether an address that only the client knows may be dialed where nobody proves himself.
    believes_clients: bool,
    known: HashMap<SandboxKey, (StaticSandbox, Arc<Target>)>,
    pods: Option<PodCache>,
    look_ups: Arc<Semaphore>,
}

impl Resolver {
    pub(crate) fn new(config: &Config, pods: Option<PodCache>) -> Self {
        let mut resolver = Self {
            mesh: config.mesh,
            trust_domain: config.trust_domain.clone(),
            cluster_domain: config.cluster_domain.clone(),
            allow_loopback: config.allow_loopback_pod_ip,
            // A token for one sandbox would be a token for all addresses.
            believes_clients: !matches!(config.authentication, Authentication::ScopedToken(_)),
            known: HashMap::default(),
            pods,
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
        let expected = (self.mesh != Mesh::Off).then(|| ExpectedSandbox {
            trust_domain: self.trust_domain.clone(),
            sandbox: sandbox.clone(),
            pod_uid,
        });
        Arc::new(Target { endpoint, expected })
    }

    fn at(&self, route: &Route, ip: IpAddr) -> Arc<Target> {
        let port = if self.mesh == Mesh::Off {
            route.port.get()
        } else {
            MESH_PORT
        };
        self.target(&route.sandbox, SocketAddr::new(ip, port), None)
    }

    /// Straight to the app.
    fn plain(route: &Route, ip: IpAddr) -> Arc<Target> {
        Arc::new(Target {
            endpoint: SocketAddr::new(ip, route.port.get()),
            expected: None,
        })
    }

    /// Forgets where a sandbox was, if that is still believed.
    pub(crate) fn evict(&self, route: &Route, target: &Target) {
        if let Some(pods) = &self.pods {
            pods.evict(&route.sandbox, target.endpoint.ip());
        }
    }

    /// Whether only the client says that somebody is there: the cache knows no pod of that sandbox. Clients remember addresses,
    /// also of pods that are gone.
    pub(crate) fn is_hearsay(&self, route: &Route, target: &Target) -> bool {
        // What the cache knows names its pod too.
        let names_no_pod = |expected: &ExpectedSandbox| expected.pod_uid.is_none();
        self.pods.is_some()
            && !self.known.contains_key(&route.sandbox)
            && route.pod_ip == Some(target.endpoint.ip())
            && target.expected.as_ref().is_some_and(names_no_pod)
    }

    /// Whether an answer from `target` shows that the route's namespace is one: a gate has proven itself, or somebody else than
    /// the client says that a sandbox of it is there.
    pub(crate) fn shows_namespace(&self, route: &Route, target: &Target) -> bool {
        // Where there is a cache, plain HTTP goes nowhere on the client's word.
        target.expected.is_some()
            || self.pods.is_some()
            || self.known.contains_key(&route.sandbox)
            || route.pod_ip != Some(target.endpoint.ip())
    }

    /// How a pod in the cache is reached.
    fn way(&self, route: &Route, pod: Known) -> Result<Arc<Target>, Unresolved> {
        if self.mesh == Mesh::Off {
            return Ok(Self::plain(route, pod.ip));
        }
        match (pod.gate, self.mesh) {
            (Some(gate), _) => Ok(gate),
            (None, _) if pod.opted_in => Err(Unresolved::Ungated),
            (None, Mesh::Auto) => Ok(Self::plain(route, pod.ip)),
            (None, _) => Err(Unresolved::NotOptedIn),
        }
    }

    /// Known sandboxes first, where a hint can't change anything: those that are configured, then the pods in the cache.
    /// Then the hint, unless it leads to another sandbox; then DNS. Neither of these two is believed where a wrong one could
    /// lead to a Service that is no sandbox's: with `--mesh=auto`, nobody proves himself there.
    pub(crate) async fn resolve(&self, route: &Route, wait: Duration) -> Result<Arc<Target>, Unresolved> {
        self.resolve_by(route, route.pod_ip, wait).await
    }

    /// The same where nobody is at the address that the client has named.
    pub(crate) async fn resolve_without_hint(&self, route: &Route, wait: Duration) -> Result<Arc<Target>, Unresolved> {
        self.resolve_by(route, None, wait).await
    }

    /// Where only one Sandbox will do: nobody but the cache knows which one has that name now.
    fn resolve_by_uid(&self, route: &Route) -> Result<Arc<Target>, Unresolved> {
        let knows_it = |_: &&PodCache| !self.known.contains_key(&route.sandbox);
        let pods = self.pods.as_ref().filter(knows_it).ok_or(Unresolved::UidUnknown)?;
        match pods.find(route) {
            Found::Pod(pod) => self.way(route, pod),
            Found::Replaced => Err(Unresolved::Replaced),
            Found::Withheld | Found::Foreign | Found::Misled | Found::Unknown => Err(Unresolved::Unknown),
        }
    }

    async fn resolve_by(&self, route: &Route, hint: Option<IpAddr>, wait: Duration) -> Result<Arc<Target>, Unresolved> {
        if route.uid_is_binding {
            return self.resolve_by_uid(route);
        }
        if let Some((sandbox, target)) = self.known.get(&route.sandbox) {
            return Ok(if self.mesh == Mesh::Off {
                self.at(route, sandbox.ip)
            } else {
                Arc::clone(target)
            });
        }
        let found = self.pods.as_ref().map_or(Found::Unknown, |pods| pods.find(route));
        let hint = match found {
            Found::Pod(pod) => return self.way(route, pod),
            Found::Foreign => return Err(Unresolved::Foreign),
            Found::Withheld => return Err(Unresolved::Unknown),
            Found::Replaced => return Err(Unresolved::Replaced),
            Found::Misled => None,
            // Where nobody proves himself, an address is a sandbox's only if the cache says so.
            Found::Unknown => hint.filter(|_| self.mesh != Mesh::Off || (self.pods.is_none() && self.believes_clients)),
        };
        if self.mesh == Mesh::Auto {
            return Err(Unresolved::Unknown);
        }
        if let Some(ip) = hint {
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

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;
    use sandgate_mesh::sandbox::AppPort;

    const WAIT: Duration = Duration::from_secs(10);

    /// One that knows no sandbox, with a cache or without.
    fn resolver(cache: bool) -> Resolver {
        let trust_domain: TrustDomain = "cluster.local".parse().unwrap();
        let pods = cache.then(|| PodCache::new(trust_domain.clone(), false, &Registry::new()).unwrap());
        Resolver {
            mesh: Mesh::Required,
            trust_domain,
            cluster_domain: "cluster.invalid".into(),
            allow_loopback: false,
            believes_clients: true,
            known: HashMap::default(),
            pods,
            look_ups: Arc::new(Semaphore::new(1)),
        }
    }

    fn route() -> Route {
        Route {
            sandbox: SandboxKey {
                namespace: "team-a".parse().unwrap(),
                name: "alpha".parse().unwrap(),
            },
            port: AppPort::DEFAULT,
            uid: None,
            uid_is_binding: false,
            pod_ip: Some("10.0.0.1".parse().unwrap()),
            timeout: None,
        }
    }

    #[tokio::test]
    async fn an_address_that_only_the_client_knows_is_hearsay_and_can_be_left_out() {
        let (resolver, route) = (resolver(true), route());
        let hinted = resolver.resolve(&route, WAIT).await.unwrap();
        assert_eq!(hinted.endpoint, ([10, 0, 0, 1], MESH_PORT).into());
        assert!(resolver.is_hearsay(&route, &hinted));

        let without = resolver.resolve_without_hint(&route, WAIT).await;
        assert!(matches!(without, Err(Unresolved::NoSuchName(_))), "{without:?}");
    }

    #[tokio::test]
    async fn what_somebody_else_says_is_no_hearsay() {
        let (resolver, route) = (resolver(true), route());
        let here = ([10, 0, 0, 1], MESH_PORT).into();
        let by_cache = resolver.target(&route.sandbox, here, Some("alpha-uid".parse().unwrap()));
        let elsewhere = resolver.target(&route.sandbox, ([10, 0, 0, 2], MESH_PORT).into(), None);
        assert!(!resolver.is_hearsay(&route, &by_cache) && !resolver.is_hearsay(&route, &elsewhere));
    }

    #[tokio::test]
    async fn a_namespace_is_one_unless_only_the_client_says_so() {
        let (with_cache, without, route) = (resolver(true), resolver(false), route());
        let at = |ip: [u8; 4]| Resolver::plain(&route, ip.into());
        let hinted = at([10, 0, 0, 1]);
        assert_eq!(route.pod_ip, Some(hinted.endpoint.ip()));
        assert!(!without.shows_namespace(&route, &hinted));
        assert!(without.shows_namespace(&route, &at([10, 0, 0, 2])), "by DNS");
        assert!(with_cache.shows_namespace(&route, &hinted), "by the cache");
        let gate = without.target(&route.sandbox, hinted.endpoint, None);
        assert!(without.shows_namespace(&route, &gate), "a gate");
    }

    #[tokio::test]
    async fn a_binding_uid_that_nobody_can_check_leads_nowhere() {
        let mut route = route();
        (route.uid, route.uid_is_binding) = (Some("uid".into()), true);
        let without_cache = resolver(false).resolve(&route, WAIT).await;
        assert!(
            matches!(without_cache, Err(Unresolved::UidUnknown)),
            "{without_cache:?}"
        );
        // Neither the hint nor DNS.
        let unknown = resolver(true).resolve(&route, WAIT).await;
        assert!(matches!(unknown, Err(Unresolved::Unknown)), "{unknown:?}");

        let mut configured = resolver(true);
        let sandbox: StaticSandbox = "team-a/alpha=10.0.0.7,uid=uid".parse().unwrap();
        let target = configured.target(&sandbox.key, ([10, 0, 0, 7], MESH_PORT).into(), sandbox.pod_uid.clone());
        configured.known.insert(sandbox.key.clone(), (sandbox, target));
        let configured = configured.resolve(&route, WAIT).await;
        assert!(matches!(configured, Err(Unresolved::UidUnknown)), "{configured:?}");
    }

    #[tokio::test]
    async fn a_binding_uid_leads_to_its_own_sandbox_only() {
        let mut resolver = resolver(true);
        resolver.mesh = Mesh::Off;
        let pods = resolver.pods.as_ref().unwrap();
        pods.hear_of("alpha", "10.0.0.7");
        let found = async |uid: &str| {
            let mut route = route();
            (route.uid, route.uid_is_binding) = (Some(uid.into()), true);
            resolver.resolve(&route, WAIT).await
        };
        let own = found("alpha-sandbox").await.unwrap();
        assert_eq!(own.endpoint, ([10, 0, 0, 7], AppPort::DEFAULT.get()).into());
        let successor = found("another").await.unwrap_err();
        assert!(matches!(successor, Unresolved::Replaced), "{successor:?}");
        let answer = successor.answer(&route().sandbox.name);
        assert_eq!(answer, RouterError::OutOfScope(Bound::Sandbox));
    }

    #[tokio::test]
    async fn a_client_that_may_ask_for_one_sandbox_names_no_address_where_nobody_proves_himself() {
        let route = route();
        let hinted = |believes_clients: bool, mesh: Mesh| {
            let resolver = Resolver {
                mesh,
                believes_clients,
                ..resolver(false)
            };
            let route = route.clone();
            async move {
                resolver
                    .resolve(&route, WAIT)
                    .await
                    .ok()
                    .map(|target| target.endpoint.ip())
            }
        };
        let ip = route.pod_ip;
        assert_eq!(hinted(true, Mesh::Off).await, ip);
        assert_eq!(
            hinted(false, Mesh::Off).await,
            None,
            "only DNS is left, which doesn't know it"
        );
        assert_eq!(
            hinted(false, Mesh::Required).await,
            ip,
            "the gate there proves to be that sandbox or gets nothing"
        );
    }

    #[tokio::test]
    async fn without_a_cache_nothing_is_hearsay() {
        let (resolver, route) = (resolver(false), route());
        let hinted = resolver.resolve(&route, WAIT).await.unwrap();
        assert!(!resolver.is_hearsay(&route, &hinted));
    }
}
