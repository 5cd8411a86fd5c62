//! The gate's process, its memory, its files and its sockets: what a process beside it gets of them. In a pod there are walls
//! between the two that aren't here: another user, other processes and other files to see. So this is the last line.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use rustix::process::geteuid;
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{Process, ProcessMesh, Programs, command, for_others, sidecar_flags, until_ready};
use sandgate_tests::{RecordingApp, exchange, programs, status};
use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use tokio::net::{TcpSocket, TcpStream};

const PROGRAMS: Programs = programs!();

/// The user that gates run as in pods. Root sees everything of its own processes, so a test that runs as root starts the
/// gate as this one.
const GATE_USER: u32 = 2102;

/// A gate in the place of `mesh`'s own, and the user it runs as.
async fn start_gate(mesh: &mut ProcessMesh) -> (Process, u32) {
    mesh.sidecar.kill().await;
    let user = geteuid().as_raw();
    let user = if user == 0 { GATE_USER } else { user };
    let flags = sidecar_flags(&mesh.folder, mesh.mesh);
    let mut gate = Process::start(command_of(&mesh.folder, PROGRAMS.sidecar, user, &flags));
    let [health] = gate.listens(["health"]).await;
    mesh.sidecar_health.set_port(health.parse().unwrap());
    until_ready(mesh.sidecar_health, (200, "ok")).await;
    (gate, user)
}

/// A program as this user runs it, who is this process's own unless that is root's.
fn command_of(folder: &Folder, program: &str, user: u32, arguments: &[String]) -> Command {
    let mut command = command(&for_others(folder, program), arguments);
    if geteuid().is_root() {
        command.uid(user).gid(user);
    }
    command
}

/// What a thief got who runs as this user, and what was denied to him: in words, each once.
async fn thief(folder: &Folder, user: u32, victim: &Process) -> [Vec<String>; 2] {
    let tries = Process::start(command_of(folder, PROGRAMS.thief, user, &[victim.pid().to_string()]));
    let left = tries.ended().await;
    assert_eq!(left.code, Some(0), "{left:?}");
    [" got", " denied"].map(|outcome| {
        let mut ways: Vec<_> = left
            .stdout
            .lines()
            .filter_map(|line| line.strip_suffix(outcome))
            .map(String::from)
            .collect();
        ways.sort_unstable();
        ways.dedup();
        ways
    })
}

#[tokio::test]
async fn the_app_gets_nothing_of_the_gates_memory_environment_or_open_files() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let (gate, user) = start_gate(&mut mesh).await;
    // Of another user's process, and of one of the gate's own user, which no container of the pod may be. Who isn't root
    // can try the latter only, which is the harder to keep out.
    let thieves = if geteuid().is_root() {
        vec![user, 1000, 65534]
    } else {
        vec![user]
    };
    for thief_user in thieves {
        let [got, denied] = thief(&mesh.folder, thief_user, &gate).await;
        assert_eq!(got, Vec::<String>::new(), "user {thief_user}");
        for way in ["mem", "environ", "maps", "auxv", "exe", "root", "files below its root"] {
            assert!(
                denied.iter().any(|denied| denied == way),
                "user {thief_user}, {way}: {denied:?}"
            );
        }
    }
    // The thief can do it: to a process of the same user that doesn't keep others out.
    let arguments = ["60".to_owned()];
    let victim = Process::start(command_of(&mesh.folder, "/bin/sleep", user, &arguments));
    let [got, _] = thief(&mesh.folder, user, &victim).await;
    for way in ["environ", "maps", "exe", "root"] {
        assert!(got.iter().any(|got| got == way), "{way}: {got:?}");
    }
    let request = mesh.head("GET /", "Connection: close\r\n");
    let answer = exchange(TcpStream::connect(mesh.http).await.unwrap(), request, false).await;
    assert_eq!(status(&answer), 200, "{answer}");
}

/// They are the gate's for as long as it runs: no second socket gets a part of its connections.
#[tokio::test]
async fn no_other_process_listens_on_the_gates_ports_beside_it() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let (_gate, _) = start_gate(&mut mesh).await;
    for port in [mesh.mesh.port(), mesh.sidecar_health.port()] {
        for address in [
            SocketAddr::from(([127, 0, 0, 1], port)),
            SocketAddr::from(([0, 0, 0, 0], port)),
        ] {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.set_reuseport(true).unwrap();
            let taken = socket.bind(address).and_then(|()| socket.listen(1).map(drop));
            assert_eq!(taken.unwrap_err().kind(), ErrorKind::AddrInUse, "{address}");
        }
    }
}

#[tokio::test]
async fn the_gates_memory_cannot_be_read_by_its_own_user_and_is_never_dumped() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let (gate, user) = start_gate(&mut mesh).await;
    let file = |name: &str| format!("/proc/{}/{name}", gate.pid());
    let status = std::fs::read_to_string(file("status")).unwrap();
    assert!(status.contains(&format!("\nUid:\t{user}\t{user}\t")), "{status}");
    // The kernel gives the files of a process that must not be dumped to root, and so keeps its own user out.
    for name in ["mem", "environ", "maps", "auxv"] {
        assert_eq!(std::fs::metadata(file(name)).unwrap().uid(), 0, "{name}");
        if !geteuid().is_root() {
            let error = std::fs::read(file(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{name}");
        }
    }
    let limits = std::fs::read_to_string(file("limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
    let core: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(core, ["0", "0", "bytes"]);
}

/// The rows of one of the kernel's tables of sockets, as words, without the headline.
fn sockets(table: &str) -> Vec<Vec<String>> {
    // A machine without IPv6 lacks the tables of it.
    let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let words = |line: &str| line.split_whitespace().map(String::from).collect();
    text.lines().skip(1).map(words).collect()
}

#[tokio::test]
async fn the_gate_listens_on_its_two_ports_and_on_nothing_else_and_talks_to_loopback_only() {
    let app = RecordingApp::polite().await;
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let (gate, _) = start_gate(&mut mesh).await;
    let request = mesh.head("GET /", "Connection: close\r\n");
    let answer = exchange(TcpStream::connect(mesh.http).await.unwrap(), request, false).await;
    assert_eq!(status(&answer), 200, "{answer}");
    let open = match std::fs::read_dir(format!("/proc/{}/fd", gate.pid())) {
        // Only root may look: that is the promise of the test before, and all that others can see of this one.
        Err(error) if !geteuid().is_root() => return assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        found => found.unwrap(),
    };
    let inodes: HashSet<String> = open
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();

    let (mut listening, mut others) = (HashSet::new(), 0);
    for row in ["tcp", "tcp6"].into_iter().flat_map(sockets) {
        let (local, remote, state, inode) = (&row[1], &row[2], &row[3], &row[9]);
        if !inodes.contains(inode) {
            continue;
        }
        // 127.0.0.1 as the kernel writes it on machines whose lowest byte comes first, and on others.
        assert!(
            local.starts_with("0100007F:") || local.starts_with("7F000001:"),
            "{row:?}"
        );
        if state == "0A" {
            listening.insert(u16::from_str_radix(local.split(':').nth(1).unwrap(), 16).unwrap());
        } else {
            assert_eq!(local.split(':').next(), remote.split(':').next(), "{row:?}");
            others += 1;
        }
    }
    assert_eq!(listening, HashSet::from([mesh.mesh.port(), mesh.sidecar_health.port()]));
    assert!(
        others >= 2,
        "the connections from the router and to the app were not seen"
    );
    for row in ["udp", "udp6", "udplite", "raw", "raw6"].into_iter().flat_map(sockets) {
        assert!(!inodes.contains(&row[9]), "{row:?}");
    }
    for row in sockets("packet") {
        assert!(!inodes.contains(&row[8]), "{row:?}");
    }
    // Neither a path nor a name without one (`@`): such sockets can be reached by whoever shares the network.
    for row in sockets("unix").into_iter().filter(|row| inodes.contains(&row[6])) {
        assert_eq!(row.get(7), None, "{row:?}");
    }
}
