//! Callers that take all the connections there can be leave the router enough files to serve those it has.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{ProcessMesh, Programs};
use sandgate_tests::{RecordingApp, programs, read_until, status};
use std::os::unix::fs::PermissionsExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const PROGRAMS: Programs = programs!();

/// Programs whose router starts with 100 open files and may ask for `most`.
fn with_files(folder: &Folder, most: u32) -> Programs {
    let script = folder.path("router");
    let text = format!(
        "#!/bin/sh\nulimit -Sn 100\nulimit -Hn {most}\nexec {} \"$@\"\n",
        PROGRAMS.router
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    Programs {
        router: Box::leak(script.display().to_string().into_boxed_str()),
        ..PROGRAMS
    }
}

async fn assert_served(stream: &mut TcpStream, mesh: &ProcessMesh) {
    stream.write_all(mesh.head("GET /", "").as_bytes()).await.unwrap();
    let answer = read_until(stream, b"hello").await;
    assert_eq!(status(&answer), 200, "{answer}");
}

#[tokio::test]
async fn callers_that_take_every_connection_leave_files_for_those_who_are_served() {
    let (app, folder) = (RecordingApp::polite().await, Folder::new());
    let mut mesh = ProcessMesh::start(with_files(&folder, 400), app.port(), &[]).await;
    mesh.router
        .logs("the limit of open files allows fewer connections", 1)
        .await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", mesh.router.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.matches(" 400 ").count(), 2, "{files}");

    // Both sides of the cap: the first come early enough, the others are more than there can be files.
    let mut early = Vec::new();
    for _ in 0..20 {
        early.push(TcpStream::connect(mesh.http).await.unwrap());
    }
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(TcpStream::connect(mesh.http).await.unwrap());
    }
    for stream in &mut early {
        assert_served(stream, &mesh).await;
    }
    assert_eq!(app.requests().len(), 20);
    assert!(
        !mesh.router.stderr().contains("can't accept"),
        "{}",
        mesh.router.stderr()
    );
}
