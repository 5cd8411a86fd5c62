//! What the program does besides serving, as subcommands: each is done once and ends.

use crate::held_ports;
use crate::lockdown::{OpenPorts, lock_down};
use clap::Subcommand;
use sandgate_mesh::duration;
use sandgate_mesh::sandbox::AppPort;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(super) enum Once {
    /// Closes the pod's network from outside, but for the gate's ports, and ends. Needs `CAP_NET_ADMIN`.
    Lockdown {
        /// The gate's mTLS port, which stays open.
        #[arg(long, default_value = "14443")]
        mesh_port: AppPort,
        /// The gate's health and metrics port, which stays open.
        #[arg(long, default_value = "14480")]
        health_port: AppPort,
    },
    /// Waits until the gate with this state folder holds its ports. For the kubelet to run beside it, before it starts the
    /// pod's next container.
    AwaitPorts {
        /// The gate's --state-folder.
        #[arg(long)]
        state_folder: PathBuf,
        /// How long to wait before that has failed.
        #[arg(long, default_value = "60s", value_parser = duration::parse)]
        timeout: Duration,
    },
}

impl Once {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Lockdown { mesh_port, health_port } => lockdown(mesh_port, health_port),
            Self::AwaitPorts { state_folder, timeout } => Ok(held_ports::wait(&state_folder, timeout)?),
        }
    }
}

fn lockdown(mesh: AppPort, health: AppPort) -> anyhow::Result<()> {
    lock_down(OpenPorts { mesh, health })?;
    tracing::info!(
        mesh = mesh.get(),
        health = health.get(),
        "locked down: no other port can be reached"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Task;
    use super::super::tests::read;
    use super::*;

    #[test]
    fn lockdown_takes_its_own_flags_and_none_of_the_gates() {
        let ports = |args: &[&str]| match read(args) {
            Ok(Task::Once(Once::Lockdown { mesh_port, health_port })) => (mesh_port.get(), health_port.get()),
            other => panic!("{other:?}"),
        };
        assert_eq!(ports(&["lockdown"]), (14443, 14480));
        assert_eq!(ports(&["lockdown", "--mesh-port=1", "--health-port=2"]), (1, 2));
        for bad in [
            &["lockdown", "--sandbox=a"][..],
            &["lockdown", "now"],
            &["--sandbox=a", "lockdown"],
            &["open-up"],
        ] {
            assert_eq!(read(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        let error = read(&["lockdown", "--mesh-port=0", "--health-port", "x"]).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        let text = error.to_string();
        assert!(text.contains("--mesh-port") && text.contains("--health-port"), "{text}");
    }

    #[test]
    fn await_ports_takes_its_own_flags_and_none_of_the_gates() {
        let flags = |args: &[&str]| match read(args) {
            Ok(Task::Once(Once::AwaitPorts { state_folder, timeout })) => (state_folder, timeout.as_secs()),
            other => panic!("{other:?}"),
        };
        let folder = PathBuf::from("/a");
        assert_eq!(flags(&["await-ports", "--state-folder=/a"]), (folder.clone(), 60));
        let timeout = flags(&["await-ports", "--state-folder=/a", "--timeout=2m"]);
        assert_eq!(timeout, (folder, 120));
        for bad in [
            &["await-ports"][..],
            &["await-ports", "--state-folder=/a", "--mesh-port=1"],
        ] {
            assert_eq!(read(bad).unwrap_err().exit_code(), 2, "{bad:?}");
        }
        let error = read(&["await-ports", "--state-folder=/a", "--timeout=soon"]).unwrap_err();
        assert_eq!(error.exit_code(), 64);
    }
}
