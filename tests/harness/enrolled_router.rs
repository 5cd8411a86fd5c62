//! A router that a control plane enrols, as a process, and the gate behind it, which has its files.

use crate::control::{CONTROL, ControlPlane};
use crate::enrolled::{TOKEN as POD_TOKEN, assert_no_secret};
use crate::folder::{Folder, Replacing, put as put_files};
use crate::processes::{
    Process, Programs, command, router_flags, router_identity, sidecar_flags, start_gate, until_ready,
};
use crate::{POD_UID, ROUTER, RecordingApp, TOKEN, default_policy, head_to, sandbox, send, status};
use sandgate_local::authority::Authority;
use sandgate_mesh::identity::SandboxIdentity;
use sandgate_mesh::policy::model::DefaultPolicy;
use std::net::SocketAddr;

/// The UID of the router's pod.
pub const ROUTER_POD_UID: &str = "5f0c1a52-router";
/// Why a router isn't ready that nobody can have brought an identity yet.
pub const NO_ANCHORS: &str = "no identity, and no roots yet by which to know who brings it";
/// What a router logs that has taken its roots from their file.
pub const ANCHORS_LOADED: &str = "\"message\":\"loaded from changed files\",\"what\":\"trust anchors\"";
/// Connections to the router's mesh port of no control plane.
pub const REFUSED: &str = "sandbox_router_refused_control_connections_total{reason=\"control\"}";

/// An app behind a gate, and a router that a control plane enrols.
pub struct RouterScene {
    programs: Programs,
    flags: Vec<String>,
    /// The router's roots, token and state, and the files of the gate.
    pub folder: Folder,
    /// Everybody's certificates are from here.
    pub authority: Authority,
    /// The app behind the gate.
    pub app: RecordingApp,
    /// The gate.
    pub gate: Process,
    gate_mesh: SocketAddr,
    /// The router.
    pub router: Process,
    /// Where it serves clients.
    pub http: SocketAddr,
    /// Its health port.
    pub health: SocketAddr,
    /// Its metrics.
    pub metrics: SocketAddr,
    /// Where control planes dial it.
    pub mesh: SocketAddr,
    /// Its control plane.
    pub control: ControlPlane,
}

/// The router's pod.
pub fn router_pod() -> SandboxIdentity {
    sandbox("sandbox-router-1", ROUTER_POD_UID)
}

impl RouterScene {
    /// A router that has never been enrolled and knows no root yet.
    pub async fn born(programs: Programs, flags: &[&str]) -> Self {
        let (folder, authority) = (Folder::new(), Authority::new("sandgate-tests").unwrap());
        std::fs::create_dir(folder.path("state")).unwrap();
        folder.rename_over("token", POD_TOKEN);
        let app = RecordingApp::polite().await;
        let issued = authority.sidecar(&sandbox("alpha", POD_UID)).unwrap();
        put_files(&folder, "sidecar", Replacing::AtOnce, &issued, authority.root_pem());
        let policy = default_policy(DefaultPolicy::Authenticated, vec![app.port()]);
        folder.rename_over("policy.json", serde_json::to_vec(&policy).unwrap());
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (gate, gate_mesh, health) = start_gate(command(programs.sidecar, sidecar_flags(&folder, anywhere))).await;
        until_ready(health, (200, "ok")).await;
        let flags: Vec<_> = flags.iter().copied().map(String::from).collect();
        let (router, [http, metrics, health, mesh]) = start(programs, &folder, gate_mesh, anywhere, &flags).await;
        let control = ControlPlane::new(&authority, mesh, router_pod()).of_router(router_identity());
        Self {
            programs,
            flags,
            folder,
            authority,
            app,
            gate,
            gate_mesh,
            router,
            http,
            health,
            metrics,
            mesh,
            control,
        }
    }

    /// The same with the roots, which were there when it started or came soon afterwards.
    pub async fn start(programs: Programs, flags: &[&str]) -> Self {
        let scene = Self::born(programs, flags).await;
        scene.folder.rename_over("roots.crt", scene.authority.root_pem());
        until_ready(scene.health, (503, "no identity")).await;
        scene
    }

    /// A router that is enrolled.
    pub async fn enrolled(programs: Programs, flags: &[&str]) -> Self {
        let scene = Self::start(programs, flags).await;
        scene.control.enrol(&scene.authority, 1).await;
        until_ready(scene.health, (200, "ok")).await;
        scene
    }

    /// Kills the router and starts it again where control planes dial it.
    pub async fn crash(&mut self) {
        self.router.kill().await;
        let (router, [http, metrics, health, _]) =
            start(self.programs, &self.folder, self.gate_mesh, self.mesh, &self.flags).await;
        (self.router, self.http, self.metrics, self.health) = (router, http, metrics, health);
    }

    /// A request gets through the router and the gate to the app.
    pub async fn serves(&self) {
        let answer = send(self.http, head_to(self.app.port(), "GET /hello HTTP/1.1", "")).await;
        assert_eq!(status(&answer), 200, "{answer}{}", self.router.stderr());
        assert!(self.app.take_only_request().head.starts_with("GET /hello HTTP/1.1\r\n"));
    }

    /// Fails unless neither the pod's token nor a key is in the router's log.
    pub fn assert_log_has_no_secret(&self) {
        assert_no_secret(&self.folder, &self.router.stderr());
    }
}

/// A router as the chart starts it, but for its addresses and folders; where it serves clients, its metrics, its health port
/// and its mesh port.
async fn start(
    programs: Programs,
    folder: &Folder,
    gate: SocketAddr,
    mesh: SocketAddr,
    more: &[String],
) -> (Process, [SocketAddr; 4]) {
    let path = |name| folder.path(name).display().to_string();
    let mut flags = router_flags(folder, gate);
    flags.retain(|flag| !flag.starts_with("--mesh-"));
    flags.extend([
        format!("--mesh-identity={ROUTER}"),
        format!("--control-identity={CONTROL}"),
        format!("--mesh-trust-anchors-file={}", path("roots.crt")),
        format!("--mesh-token-file={}", path("token")),
        format!("--mesh-state-folder={}", path("state")),
        format!("--mesh-bind-address={mesh}"),
    ]);
    flags.extend_from_slice(more);
    let mut command = command(programs.router, flags);
    command
        .env("ROUTER_AUTH_TOKEN", TOKEN)
        .env("SANDGATE_POD_UID", ROUTER_POD_UID);
    let mut router = Process::start(command);
    let addresses = router.listens(["http", "metrics", "health", "mesh"]).await;
    (router, addresses.map(|address| address.parse().unwrap()))
}
