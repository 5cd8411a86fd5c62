//! The apps behind the gates: demo apps that are started here, or apps that run already.

use crate::cli::{MeshMode, Options};
use crate::demo::{self, DemoFolder};
use crate::policies::{only_ports, rule, snapshot};
use anyhow::Context;
use sandgate_mesh::contract::DEFAULT_APP_PORT;
use sandgate_mesh::policy::model;
use sandgate_mesh::sandbox::{AppPort, SandboxName};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long an app may take to accept the connection that shows it is there.
const APP_TIMEOUT: Duration = Duration::from_secs(2);

/// A sandbox, before it has a gate.
pub(crate) struct Sandbox {
    pub(crate) name: SandboxName,
    pub(crate) ports: Vec<AppPort>,
    /// What its gate enforces unless there is a policy file.
    pub(crate) policy: model::Snapshot,
}

/// The apps: ours, or those that run already.
pub(crate) struct Apps {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) are_demo: bool,
    stop: watch::Sender<bool>,
    running: JoinSet<()>,
}

impl Apps {
    pub(crate) async fn start(options: &Options) -> anyhow::Result<Self> {
        let mut apps = Self {
            sandboxes: Vec::new(),
            are_demo: options.sandboxes.is_empty(),
            stop: watch::channel(false).0,
            running: JoinSet::new(),
        };
        if apps.are_demo {
            let open = options.allow_unauthenticated;
            let methods = ["GET", "HEAD", "POST", "PUT"];
            apps.demo("alpha", DEFAULT_APP_PORT, |port| rule(open, port, &methods, None))
                .await?;
            let paths = Some("/public/*");
            apps.demo("beta", DEFAULT_APP_PORT + 1, |port| rule(open, port, &["GET"], paths))
                .await?;
        }
        for spec in &options.sandboxes {
            for port in &spec.ports {
                check_app(&spec.name, *port, options.mesh).await?;
            }
            apps.sandboxes.push(Sandbox {
                name: spec.name.clone(),
                ports: spec.ports.clone(),
                policy: only_ports(options.allow_unauthenticated, &spec.ports),
            });
        }
        Ok(apps)
    }

    async fn demo(
        &mut self,
        name: &'static str,
        port: u16,
        rule: impl FnOnce(u16) -> model::Rule,
    ) -> anyhow::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| {
            format!(
                "the demo app of sandbox {name} can't listen on 127.0.0.1:{port}; if another program has that port, \
                 end it, or put the gate in front of it with --sandbox NAME={port}"
            )
        })?;
        let files = DemoFolder::create().context("the demo app's temporary folder can't be made")?;
        let mut stopped = self.stop.subscribe();
        self.running.spawn(async move {
            // An error means that nobody is left to stop it: the same.
            let shutdown = async { drop(stopped.wait_for(|stopped| *stopped).await) };
            demo::serve(name, listener, files, shutdown).await;
        });
        let policy = model::Policy {
            name: format!("demo-{name}"),
            rules: vec![rule(port)],
        };
        self.sandboxes.push(Sandbox {
            name: name.parse()?,
            ports: AppPort::new(port).into_iter().collect(),
            policy: snapshot(model::DefaultPolicy::Deny, vec![port], vec![policy]),
        });
        Ok(())
    }

    /// Ends the demo apps, which remove their folders.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.running.join_next().await.is_some() {}
    }
}

/// Looks where the gate will look: on 127.0.0.1, then on `::1`. Without gates the router only has the former.
async fn check_app(name: &SandboxName, port: AppPort, mesh: MeshMode) -> anyhow::Result<()> {
    let connect = |ip: IpAddr| async move {
        let connecting = TcpStream::connect((ip, port.get()));
        matches!(tokio::time::timeout(APP_TIMEOUT, connecting).await, Ok(Ok(_)))
    };
    let found = connect(Ipv4Addr::LOCALHOST.into()).await
        || (mesh == MeshMode::Required && connect(Ipv6Addr::LOCALHOST.into()).await);
    anyhow::ensure!(
        found,
        "nothing answers on 127.0.0.1:{port}, where the app of sandbox {name} should listen; start the app first, or \
         correct --sandbox {name}=…"
    );
    Ok(())
}
