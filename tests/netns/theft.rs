//! What a gate keeps on disk, to somebody who runs as another user. That takes several users, so it takes root.

use crate::network::{Network, ip, said, sidecar};
use sandgate_tests::enrolled::Scene;
use sandgate_tests::processes::Programs;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub(crate) const TESTS: &[crate::Test] = crate::tests![no_other_user_reads_what_a_gate_keeps];

/// Whom gates run as in pods.
const GATE_USER: u32 = 2102;

fn cat(path: &std::path::Path, user: u32) -> std::process::Output {
    let read = Command::new("cat").arg(path).uid(user).gid(user).output();
    read.unwrap_or_else(|error| {
        panic!("this test starts processes as other users, so run tests/netns/run as root: {error}")
    })
}

fn no_other_user_reads_what_a_gate_keeps(_: &Network) {
    // The gate and its control plane are in this program's own namespace, which is new.
    ip(&["link", "set", "lo", "up"]);
    let program: &'static str = sidecar().display().to_string().leak();
    let programs = Programs {
        router: "",
        sidecar: program,
        local: "",
        app: "",
        thief: "",
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let scene = runtime.block_on(Scene::enrolled_as(programs, GATE_USER));
    for file in ["state/identity.json", "state/policy.json"] {
        let path = scene.folder.path(file);
        for user in [1000, 65534, GATE_USER + 1] {
            let read = cat(&path, user);
            assert!(!read.status.success() && read.stdout.is_empty(), "{file}, user {user}");
            assert!(
                said(&read).contains("Permission denied"),
                "{file}, user {user}: {}",
                said(&read)
            );
        }
        // It is there to be read: the gate does.
        assert!(cat(&path, GATE_USER).status.success(), "{file}");
    }
}
