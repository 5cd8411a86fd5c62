//! A gate that a control plane enrols, as a process, and what is around it.

use crate::control::{CONTROL, ControlPlane};
use crate::folder::{Folder, Replacing, put as put_files};
use crate::processes::{
    Process, Programs, command, for_others, router_identity, start_gate, start_router, until_ready,
};
use crate::{POD_UID, ROUTER, RecordingApp, default_policy, head_to, sandbox, send, status};
use sandgate_local::authority::Authority;
use sandgate_mesh::contract::TRUST_ANCHORS_VARIABLE;
use sandgate_mesh::policy::model::{DefaultPolicy, Generation, Snapshot};
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What proves to the control plane in which pod the gate is. Nobody else may ever see it.
pub const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.only-for-the-control-plane.c2lnbmF0dXJl";
/// The volume in which a kubelet brings an identity.
pub const IDENTITY: &str = "identity";
/// Connections that are none for the gate's control API.
pub const REFUSED: &str = "sandgate_sidecar_refused_connections_total{reason=\"control\"}";
/// An app behind a gate that a control plane enrols.
pub struct Scene {
    programs: Programs,
    /// Whom the gate runs as, if not as this process.
    user: Option<u32>,
    /// Whether a kubelet brings its identity, and its control plane the policy only.
    by_kubelet: bool,
    /// Its token, its state, and the files of routers.
    pub folder: Folder,
    /// Everybody's certificates are from here.
    pub authority: Authority,
    /// The app behind it.
    pub app: RecordingApp,
    /// The gate.
    pub gate: Process,
    /// Its mesh port.
    pub mesh: SocketAddr,
    /// Its health port.
    pub health: SocketAddr,
    /// Its control plane.
    pub control: ControlPlane,
}

impl Scene {
    /// A gate that has never been enrolled.
    pub async fn start(programs: Programs) -> Self {
        Self::start_by(programs, None, false).await
    }

    /// A gate whose identity the kubelet is still to bring, in the volume [`IDENTITY`].
    pub async fn start_by_kubelet(programs: Programs) -> Self {
        Self::start_by(programs, None, true).await
    }

    /// A gate that runs as another user, which takes root, and is enrolled and has a policy.
    pub async fn enrolled_as(programs: Programs, user: u32) -> Self {
        Self::start_by(programs, Some(user), false).await.with_all().await
    }

    async fn start_by(programs: Programs, user: Option<u32>, by_kubelet: bool) -> Self {
        let (folder, authority) = (Folder::new(), Authority::new("sandgate-tests").unwrap());
        std::fs::create_dir(folder.path("state")).unwrap();
        // As the kubelet makes it: whoever is in the container writes there.
        std::fs::set_permissions(folder.path("state"), Permissions::from_mode(0o777)).unwrap();
        folder.rename_over("token", TOKEN);
        let app = RecordingApp::polite().await;
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (gate, mesh, health) =
            start_gate(gate_command(programs, user, by_kubelet, &folder, &authority, anywhere)).await;
        until_ready(health, (503, "no identity")).await;
        let control = ControlPlane::new(&authority, mesh, sandbox("alpha", POD_UID));
        Self {
            programs,
            user,
            by_kubelet,
            folder,
            authority,
            app,
            gate,
            mesh,
            health,
            control,
        }
    }

    /// A gate that is enrolled and has a policy.
    pub async fn enrolled(programs: Programs) -> Self {
        Self::start(programs).await.with_all().await
    }

    async fn with_all(self) -> Self {
        self.control.enrol(&self.authority, 1).await;
        self.control.push(self.policy(1)).await;
        until_ready(self.health, (200, "ok")).await;
        self
    }

    /// Lets everybody with a credential use the app's port.
    pub fn policy(&self, counter: u64) -> Snapshot {
        let mut snapshot = default_policy(DefaultPolicy::Authenticated, vec![self.app.port()]);
        snapshot.generation = Generation { epoch: 1, counter };
        snapshot
    }

    /// Kills the gate and starts it again where it was.
    pub async fn crash(&mut self) {
        self.gate.kill().await;
        self.restart().await;
    }

    /// Starts it again where it was.
    pub async fn restart(&mut self) {
        let (user, by_kubelet) = (self.user, self.by_kubelet);
        let command = gate_command(
            self.programs,
            user,
            by_kubelet,
            &self.folder,
            &self.authority,
            self.mesh,
        );
        (self.gate, self.mesh, self.health) = start_gate(command).await;
    }

    /// A router in front of the gate.
    pub async fn router(&self, flags: &[&str]) -> (Process, SocketAddr) {
        let issued = self.authority.router(&router_identity()).unwrap();
        let root = self.authority.root_pem();
        put_files(&self.folder, "router", Replacing::AtOnce, &issued, root);
        let flags: Vec<_> = flags.iter().copied().map(String::from).collect();
        let (process, [http, _, health]) = start_router(self.programs, &self.folder, self.mesh, &flags).await;
        until_ready(health, (200, "ok")).await;
        (process, http)
    }

    /// A request gets through this router and the gate to the app.
    pub async fn serves(&self, router: SocketAddr) {
        let answer = send(router, head_to(self.app.port(), "GET /hello HTTP/1.1", "")).await;
        assert_eq!(status(&answer), 200, "{answer}{}", self.gate.stderr());
        assert!(self.app.take_only_request().head.starts_with("GET /hello HTTP/1.1\r\n"));
    }

    /// The names of the files that the gate keeps.
    pub fn kept(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder.path("state")).unwrap();
        let mut names: Vec<_> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    /// Fails unless neither the token nor a key is in the gate's log.
    pub fn assert_log_has_no_secret(&self) {
        assert_no_secret(&self.folder, &self.gate.stderr());
    }
}

/// Fails if the token, or a key that is kept in the folder's state, is in this log.
pub(crate) fn assert_no_secret(folder: &Folder, log: &str) {
    assert!(!log.contains(TOKEN) && !log.contains("PRIVATE KEY"), "{log}");
    let kept = std::fs::read_to_string(folder.path("state/identity.json")).unwrap_or_default();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap_or_default();
    let key = kept["key"].as_str().unwrap_or_default();
    assert!(!key.lines().any(|line| log.contains(line)), "{log}");
}

/// A gate of `default/alpha` as the injector starts it, but for its addresses and folders.
fn gate_command(
    programs: Programs,
    user: Option<u32>,
    by_kubelet: bool,
    folder: &Folder,
    authority: &Authority,
    mesh: SocketAddr,
) -> Command {
    let program = match user {
        Some(_) => for_others(folder, programs.sidecar),
        None => programs.sidecar.into(),
    };
    let mut command = command(
        &program,
        [
            format!("--mesh-bind-address={mesh}"),
            "--health-bind-address=127.0.0.1:0".into(),
            format!("--router-identity={ROUTER}"),
            format!("--control-identity={CONTROL}"),
            format!("--state-folder={}", folder.path("state").display()),
        ],
    );
    let file = |flag: &str, name: &str| format!("--{flag}={}", folder.path(name).display());
    if by_kubelet {
        command.arg(file("credential-bundle-file", &format!("{IDENTITY}/credentials.pem")));
        command.arg(file("trust-bundle-file", &format!("{IDENTITY}/roots.pem")));
    } else {
        command.arg(file("token-file", "token"));
    }
    command
        .env("SANDGATE_NAMESPACE", "default")
        .env("SANDGATE_SANDBOX", "alpha")
        .env("SANDGATE_POD_UID", POD_UID)
        .env(TRUST_ANCHORS_VARIABLE, authority.root_pem());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command
}
