//! What a gate has, in a thief's hands: a copied key and certificate open no door, and stand for nobody but the pod that they
//! were copied from. docs/security-model.md lists the drills.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::Issued;
use sandgate_mesh::contract::{ALPN_CONTROL, ALPN_MESH_HTTP1};
use sandgate_mesh::control::{ENROLMENT_PATH, IDENTITY_PATH, POLICY_PATH, PolicyPush};
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::tls;
use sandgate_tests::control::{get, intrude, put};
use sandgate_tests::enrolled::{REFUSED, Scene};
use sandgate_tests::front::{Front, everybody};
use sandgate_tests::impostor::impostor;
use sandgate_tests::processes::{Process, Programs, command, router_flags, until_metric, until_ready};
use sandgate_tests::{POD_UID, TOKEN, head_to, programs, sandbox, send, status};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

const PROGRAMS: Programs = programs!();
/// The pod that has the sandbox's name next.
const NEXT_POD: &str = "11111111-2222-4333-8444-555555555555";

/// Key, certificate and bundle as an enrolled gate keeps them.
struct Loot {
    issued: Issued,
    bundle: String,
}

impl Loot {
    fn of(scene: &Scene) -> Self {
        let kept = std::fs::read_to_string(scene.folder.path("state/identity.json")).unwrap();
        let kept: Value = serde_json::from_str(&kept).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (chain_pem, key_pem) = (text(&kept["grant"]["chain"]), text(&kept["key"]));
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).map(|der| der.unwrap().to_vec());
        let key = PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes()).unwrap();
        Self {
            issued: Issued {
                chain_der: chain.collect(),
                key_der: key.secret_pkcs8_der().to_vec(),
                chain_pem,
                key_pem,
            },
            bundle: text(&kept["grant"]["bundle"]),
        }
    }

    /// How the gate itself would serve with it.
    fn serving(&self) -> Arc<ServerConfig> {
        let own = sandbox("alpha", POD_UID);
        let [chain, key, bundle] = [&self.issued.chain_pem, &self.issued.key_pem, &self.bundle].map(String::as_bytes);
        let credentials = MeshCredentials::from_pem(Role::Sidecar, chain, key, bundle, &own.trust_domain);
        Arc::new(ServerConfig::clone(
            &tls::sidecar_server_config(&credentials.unwrap()).unwrap(),
        ))
    }
}

#[tokio::test]
async fn a_copied_identity_opens_no_gate_as_a_client() {
    let scene = Scene::enrolled(PROGRAMS).await;
    let loot = Loot::of(&scene);
    let policy = PolicyPush {
        pod_uid: POD_UID.parse().unwrap(),
        snapshot: scene.policy(9),
    };
    let policy = put(POLICY_PATH, serde_json::to_string(&policy).unwrap());
    let grant = put(IDENTITY_PATH, "{}");
    let caller = "X-Sandgate-Caller: v1;user;alice\r\n";
    let request = head_to(scene.app.port(), "GET / HTTP/1.1", caller).replace("X-Sandbox-ID: alpha\r\n", "");
    let mut refused = 0;
    for (protocols, bytes) in [
        (&[ALPN_MESH_HTTP1][..], request.as_str()),
        (&[ALPN_CONTROL], &get(ENROLMENT_PATH)),
        (&[ALPN_CONTROL], &policy),
        (&[ALPN_CONTROL], &grant),
        (&[ALPN_MESH_HTTP1, ALPN_CONTROL], &get(ENROLMENT_PATH)),
        (&[], &request),
    ] {
        let heard = intrude(scene.mesh, protocols, Some(&loot.issued), bytes).await;
        assert_eq!(heard, "", "{protocols:?}");
        refused += usize::from(protocols.contains(&ALPN_CONTROL));
    }
    until_metric(scene.health, REFUSED, &refused.to_string()).await;
    scene.app.assert_untouched("a copied identity");
    // The gate goes on as before.
    let (_router, http) = scene.router(&[]).await;
    scene.serves(http).await;
}

/// Not even at a router that was told to believe the mesh's own roots for its clients.
#[tokio::test]
async fn a_copied_identity_opens_no_router_as_a_client() {
    let front = Front::start("required", everybody).await;
    let loot = front.authority.sidecar(&sandbox("alpha", POD_UID)).unwrap();
    let request = front.mesh.head("GET / HTTP/1.1", "");
    assert_eq!(front.send(Some(&loot), &request).await, "");
    front.mesh.app.assert_untouched("a copied identity");
}

/// A router that expects these gates, each as its flag names it, and nobody else.
async fn router(scene: &Scene, endpoints: &[String]) -> (Process, SocketAddr) {
    // Writes the router's own files.
    drop(scene.router(&[]).await);
    let mut flags = router_flags(&scene.folder, scene.mesh);
    flags.retain(|flag| !flag.starts_with("--sandbox-endpoint="));
    flags.push("--upstream-max-retries=0".into());
    flags.extend(
        endpoints
            .iter()
            .map(|endpoint| format!("--sandbox-endpoint={endpoint}")),
    );
    let mut command = command(PROGRAMS.router, flags);
    command.env("ROUTER_AUTH_TOKEN", TOKEN);
    let mut process = Process::start(command);
    let [http, health] = process
        .listens(["http", "health"])
        .await
        .map(|address| address.parse().unwrap());
    until_ready(health, (200, "ok")).await;
    (process, http)
}

#[tokio::test]
async fn a_copied_identity_stands_for_no_other_pod() {
    let scene = Scene::enrolled(PROGRAMS).await;
    let loot = Loot::of(&scene);
    let (thief, heard) = impostor(Some(loot.serving())).await;
    let endpoints = [
        format!("default/alpha={thief},uid={NEXT_POD}"),
        format!("default/beta={thief},uid={POD_UID}"),
        format!("default/gamma={thief}"),
        format!("team-b/alpha={thief},uid={POD_UID}"),
    ];
    let (_router, http) = router(&scene, &endpoints).await;
    let ask = async |http: SocketAddr, namespace: &str, name: &str| {
        let request = head_to(
            8888,
            "GET /secret HTTP/1.1",
            &format!("X-Sandbox-Namespace: {namespace}\r\n"),
        );
        send(
            http,
            request.replace("X-Sandbox-ID: alpha", &format!("X-Sandbox-ID: {name}")),
        )
        .await
    };
    for (namespace, name) in [
        ("default", "alpha"),
        ("default", "beta"),
        ("default", "gamma"),
        ("team-b", "alpha"),
    ] {
        let answer = ask(http, namespace, name).await;
        assert_eq!(status(&answer), 502, "{namespace}/{name}: {answer}");
        assert_eq!(heard.lock().unwrap().len(), 0, "{namespace}/{name}");
    }
    scene.app.assert_untouched("a thief's router");
    // What it is worth: the thief stands for the pod that he has robbed already.
    let (_router, http) = router(&scene, &[format!("default/alpha={thief},uid={POD_UID}")]).await;
    let answer = ask(http, "default", "alpha").await;
    assert!(status(&answer) == 200 && answer.ends_with("impostor"), "{answer}");
    assert!(heard.lock().unwrap().starts_with(b"GET /secret HTTP/1.1\r\n"));
}
