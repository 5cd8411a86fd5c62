//! Certificates and roots that are replaced under load: no request fails, and what is presented afterwards is the new
//! one. Router and gate are processes with files.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::{Authority, Issued};
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::identity::ExpectedSandbox;
use sandgate_mesh::pool::LINGER;
use sandgate_mesh::tls;
use sandgate_tests::folder::{Replacing, put};
use sandgate_tests::load::Load;
use sandgate_tests::processes::{Process, ProcessMesh, Programs, get, router_identity, until_ready};
use sandgate_tests::{POD_UID, RecordingApp, TRUST_DOMAIN, exchange, programs, read_until, sandbox, status};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

const PROGRAMS: Programs = programs!();
/// No wait of these tests takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// Every request makes a connection, and so a handshake, of its own.
const NO_KEEPALIVE: &str = "--max-keepalive-connections=0";
const LOADED: &str = "\"message\":\"loaded from changed files\",\"what\":\"mesh credentials\"";
const UNUSABLE: &str = "\"message\":\"changed files are not usable\",\"what\":\"mesh credentials\"";

fn credentials(role: Role, issued: &Issued, bundle: &str) -> MeshCredentials {
    let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
    let trust_domain = TRUST_DOMAIN.parse().unwrap();
    MeshCredentials::from_pem(role, chain, key, bundle.as_bytes(), &trust_domain).unwrap()
}

/// A connection to the gate from a router with a certificate of `authority`.
async fn to_gate(mesh: &ProcessMesh, authority: &Authority, bundle: &str) -> TlsStream<TcpStream> {
    let issued = authority.router(&router_identity()).unwrap();
    let expected = ExpectedSandbox {
        trust_domain: TRUST_DOMAIN.parse().unwrap(),
        sandbox: sandbox("alpha", POD_UID).sandbox,
        pod_uid: Some(POD_UID.parse().unwrap()),
    };
    let config = tls::router_client_config(
        HttpVersion::Http1,
        &credentials(Role::Router, &issued, bundle),
        &expected,
    )
    .unwrap();
    let stream = TcpStream::connect(mesh.mesh).await.unwrap();
    tls::connect_mesh(stream, config).await.unwrap().0
}

/// A gate of the sandbox `spy` that only looks at whom a router shows.
struct Spy(TcpListener);

impl Spy {
    async fn listen() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn endpoint(&self) -> String {
        let address = self.0.local_addr().unwrap();
        format!("--sandbox-endpoint=default/spy={address},uid={POD_UID}")
    }

    /// The leaf that the router at `http` shows to a gate with a certificate of `authority`, if it takes that.
    async fn shown_by_router(
        &self,
        mesh: &ProcessMesh,
        http: SocketAddr,
        authority: &Authority,
        bundle: &str,
    ) -> Option<Vec<u8>> {
        let issued = authority.sidecar(&sandbox("spy", POD_UID)).unwrap();
        let config = tls::sidecar_server_config(&credentials(Role::Sidecar, &issued, bundle)).unwrap();
        let request = mesh.head("GET /", "Connection: close\r\n").replace("alpha", "spy");
        let mut client = TcpStream::connect(http).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let (stream, _) = timeout(PATIENCE, self.0.accept()).await.unwrap().unwrap();
        let (stream, ..) = tls::accept_mesh(stream, |_| Some(config)).await.ok()?;
        Some(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
    }
}

/// Two routers, one that keeps its connections to the gate and one that makes a new one for each request.
struct Scene {
    mesh: ProcessMesh,
    fresh: Process,
    fresh_http: SocketAddr,
    spy: Spy,
    app: RecordingApp,
}

impl Scene {
    async fn start() -> Self {
        let (app, spy) = (RecordingApp::polite().await, Spy::listen().await);
        let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[&spy.endpoint()]).await;
        let (fresh, [fresh_http, ..]) = mesh.another_router(&[NO_KEEPALIVE, &spy.endpoint()]).await;
        Self {
            mesh,
            fresh,
            fresh_http,
            spy,
            app,
        }
    }

    /// Requests through both routers.
    fn load(&self) -> Load {
        let request = |fields: &str| self.mesh.head("GET /", fields);
        Load::start(request, &[self.mesh.http, self.fresh_http])
    }

    /// Waits until all three programs have loaded their files `times` times since their start.
    async fn loaded(&mut self, times: usize) {
        // The gate also says so at its start.
        self.mesh.sidecar.logs(LOADED, times + 1).await;
        self.mesh.router.logs(LOADED, times).await;
        self.fresh.logs(LOADED, times).await;
    }

    /// Gives gate and routers these leafs and this bundle.
    fn put(&self, how: Replacing, sidecar: &Issued, router: &Issued, bundle: &str) {
        put(&self.mesh.folder, "sidecar", how, sidecar, bundle);
        put(&self.mesh.folder, "router", how, router, bundle);
    }

    /// Waits until all three programs have said `times` times that their files can't be used, at last for `reason`, and
    /// fails unless they stay ready.
    async fn unusable(&mut self, times: usize, reason: &str) {
        for process in [&mut self.mesh.sidecar, &mut self.mesh.router, &mut self.fresh] {
            process.logs(UNUSABLE, times).await;
            let log = process.stderr();
            let line = log.lines().rfind(|line| line.contains(UNUSABLE)).unwrap();
            assert!(line.contains(reason), "{line}");
            assert!(line.contains("the previous one stays in force"), "{line}");
        }
        assert_eq!(reloads(self.mesh.metrics, "failure").await, times as u64);
        until_ready(self.mesh.router_health, (200, "ok")).await;
        until_ready(self.mesh.sidecar_health, (200, "ok")).await;
    }

    /// Fails unless these are the leafs that the gate and the routers show.
    async fn assert_shown(&self, sidecar: &Issued, router: &Issued, authority: &Authority, bundle: &str) {
        let stream = to_gate(&self.mesh, authority, bundle).await;
        let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
        assert_eq!(shown.as_ref(), sidecar.chain_der[0], "the gate shows another leaf");
        for http in [self.mesh.http, self.fresh_http] {
            let shown = self.spy.shown_by_router(&self.mesh, http, authority, bundle).await;
            let expected = Some(&router.chain_der[0]);
            assert_eq!(shown.as_ref(), expected, "a router shows another leaf");
        }
    }

    /// Fails if gate or router takes somebody for a peer who has a certificate of `authority`.
    async fn assert_nobody(&self, authority: &Authority, bundle: &str) {
        let stream = to_gate(&self.mesh, authority, bundle).await;
        // The gate would answer 400, for want of a caller.
        let answer = exchange(stream, self.mesh.head("GET /", ""), false).await;
        assert_eq!(answer, "", "the gate answered somebody under a root that is gone");
        for http in [self.mesh.http, self.fresh_http] {
            let shown = self.spy.shown_by_router(&self.mesh, http, authority, bundle).await;
            assert_eq!(shown, None, "a router took a gate under a root that is gone");
        }
    }
}

/// New leafs for the gate and the routers.
fn leafs(authority: &Authority) -> (Issued, Issued) {
    (
        authority.sidecar(&sandbox("alpha", POD_UID)).unwrap(),
        authority.router(&router_identity()).unwrap(),
    )
}

fn with_chain(issued: &Issued, chain: &str) -> Issued {
    Issued {
        chain_pem: chain.into(),
        key_pem: issued.key_pem.clone(),
        chain_der: Vec::new(),
        key_der: Vec::new(),
    }
}

/// How often a router loaded changed files, by outcome.
async fn reloads(metrics: SocketAddr, outcome: &str) -> u64 {
    let (_, text) = get(metrics, "/metrics").await;
    let name = format!("sandbox_router_cert_reloads_total{{outcome=\"{outcome}\"}} ");
    let count = text.lines().find_map(|line| line.strip_prefix(&name));
    count.map_or(0, |count| count.parse().unwrap())
}

/// New leafs of the same authority, then a bundle with a second root, leafs of that one, and at last the first root
/// goes. Each step is in force everywhere before the next begins.
async fn nothing_fails_while_everything_is_replaced(how: Replacing) {
    let mut scene = Scene::start().await;
    let new = Authority::new("sandgate-tests-next").unwrap();
    let old_root = scene.mesh.authority.root_pem().to_owned();
    let both_roots = format!("{old_root}{}", new.root_pem());
    let mut load = scene.load();
    load.goes_on().await;

    let (sidecar, router) = leafs(&scene.mesh.authority);
    scene.put(how, &sidecar, &router, &old_root);
    scene.loaded(1).await;
    load.goes_on().await;
    scene
        .assert_shown(&sidecar, &router, &scene.mesh.authority, &old_root)
        .await;

    scene.put(how, &sidecar, &router, &both_roots);
    scene.loaded(2).await;
    load.goes_on().await;

    let (sidecar, router) = leafs(&new);
    scene.put(how, &sidecar, &router, &both_roots);
    scene.loaded(3).await;
    load.goes_on().await;

    scene.put(how, &sidecar, &router, new.root_pem());
    scene.loaded(4).await;
    load.goes_on().await;
    scene.assert_shown(&sidecar, &router, &new, new.root_pem()).await;
    scene.assert_nobody(&scene.mesh.authority, &both_roots).await;
    load.stop().await;

    assert_eq!(reloads(scene.mesh.metrics, "success").await, 4);
    until_ready(scene.mesh.router_health, (200, "ok")).await;
    until_ready(scene.mesh.sidecar_health, (200, "ok")).await;
    assert!(scene.app.requests().iter().all(|request| request.complete));
}

#[tokio::test]
async fn leafs_and_roots_that_are_swapped_at_once_as_kubelet_does_cost_no_request() {
    nothing_fails_while_everything_is_replaced(Replacing::AtOnce).await;
}

#[tokio::test]
async fn leafs_and_roots_that_are_renamed_one_by_one_cost_no_request() {
    nothing_fails_while_everything_is_replaced(Replacing::OneByOne).await;
}

#[tokio::test]
async fn a_connection_that_was_begun_under_a_root_that_is_gone_serves_its_own_request_only() {
    let mut scene = Scene::start().await;
    let old_root = scene.mesh.authority.root_pem().to_owned();
    let issued = scene.mesh.authority.sidecar(&sandbox("spy", POD_UID)).unwrap();
    let config = tls::sidecar_server_config(&credentials(Role::Sidecar, &issued, &old_root)).unwrap();
    let request = scene.mesh.head("GET /", "").replace("alpha", "spy");
    let mut client = TcpStream::connect(scene.mesh.http).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let (begun, _) = timeout(PATIENCE, scene.spy.0.accept()).await.unwrap().unwrap();

    let new = Authority::new("sandgate-tests-next").unwrap();
    let (sidecar, router) = leafs(&new);
    scene.put(Replacing::AtOnce, &sidecar, &router, new.root_pem());
    scene.loaded(1).await;
    // Its workers have noticed, too.
    tokio::time::sleep(LINGER * 3 / 2).await;

    let accepted = tls::accept_mesh(begun, |_| Some(Arc::clone(&config))).await;
    let (mut begun, ..) = accepted.unwrap();
    read_until(&mut begun, b"\r\n\r\n").await;
    begun
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
        .await
        .unwrap();
    let answer = read_until(&mut client, b"first").await;
    assert_eq!(status(&answer), 200, "{answer}");

    client.write_all(request.as_bytes()).await.unwrap();
    let (next, _) = timeout(PATIENCE, scene.spy.0.accept()).await.unwrap().unwrap();
    let accepted = tls::accept_mesh(next, |_| Some(config)).await;
    assert!(accepted.is_err(), "the old root counts");
    let rest = timeout(PATIENCE, begun.read(&mut [0])).await.unwrap();
    assert!(
        !matches!(rest, Ok(1..)),
        "a second request came over the old connection"
    );
}

#[tokio::test]
async fn bad_certificate_files_are_logged_and_counted_and_the_old_identity_serves_on() {
    let mut scene = Scene::start().await;
    let authority = Authority::new("sandgate-tests-other").unwrap();
    let foreign = authority.root_pem();
    let root = scene.mesh.authority.root_pem().to_owned();
    let (sidecar, router) = leafs(&scene.mesh.authority);
    scene.put(Replacing::AtOnce, &sidecar, &router, &root);
    scene.loaded(1).await;
    let mut load = scene.load();

    // The bundle stays a bad one throughout, so that no mixture of two versions is good.
    let keys = [sidecar.key_pem.as_str(), &router.key_pem];
    let good = [sidecar.chain_pem.as_str(), &router.chain_pem];
    for (times, chains, reason) in [
        (1, good, "certificate chain does not verify under the trust bundle"),
        (
            2,
            ["neither PEM nor anything"; 2],
            "certificate chain holds no certificate",
        ),
        (3, keys, "certificate chain holds no certificate"),
    ] {
        let [sidecar, router] = [with_chain(&sidecar, chains[0]), with_chain(&router, chains[1])];
        scene.put(Replacing::AtOnce, &sidecar, &router, foreign);
        scene.unusable(times, reason).await;
        load.goes_on().await;
    }
    for program in ["sidecar", "router"] {
        std::fs::remove_file(scene.mesh.folder.path(program).join("tls.crt")).unwrap();
    }
    scene.unusable(4, "tls.crt does not exist").await;
    load.goes_on().await;
    let authority = &scene.mesh.authority;
    scene.assert_shown(&sidecar, &router, authority, &root).await;

    let (sidecar, router) = leafs(authority);
    scene.put(Replacing::AtOnce, &sidecar, &router, &root);
    scene.loaded(2).await;
    let authority = &scene.mesh.authority;
    scene.assert_shown(&sidecar, &router, authority, &root).await;
    load.stop().await;
    // Each line of a key but the first and the last is a secret.
    let mut secrets = keys
        .iter()
        .flat_map(|key| key.lines())
        .filter(|line| !line.starts_with('-'));
    let logs = [scene.mesh.sidecar, scene.mesh.router, scene.fresh].map(|process| process.stderr());
    assert!(!secrets.any(|secret| logs.concat().contains(secret)), "{logs:?}");
}
