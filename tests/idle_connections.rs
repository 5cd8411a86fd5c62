//! Ten thousand clients that connect and say nothing. The only test of its process, whose memory and open files it counts.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::processes::open_files_at_hand;
use sandgate_tests::{Mesh, RecordingApp, exchange, status};
use tokio::net::TcpStream;

/// Lets this process open as many files as it may, and says how many connections to itself that is enough for.
fn connections_at_hand() -> usize {
    (open_files_at_hand().saturating_sub(500) / 2).min(10_000)
}

/// This process's resident memory in kB.
fn resident_kilobytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn ten_thousand_connections_that_say_nothing_cost_little_and_hold_up_nobody() {
    let count = connections_at_hand();
    assert!(count >= 1000, "{count} connections: raise the limit of open files");
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let head = mesh.head("GET / HTTP/1.1", "");
    assert_eq!(status(&mesh.send(&head).await), 200);
    let before = resident_kilobytes();
    let mut silent = Vec::with_capacity(count);
    for _ in 0..count {
        // Only the socket: what a client of Tokio's has besides would be measured, too.
        silent.push(TcpStream::connect(mesh.router).await.unwrap().into_std().unwrap());
    }
    // Connections are taken up in their order: when this one is answered, all of those are open.
    assert_eq!(status(&mesh.send(&head).await), 200);
    let grown = resident_kilobytes().saturating_sub(before);
    assert!(grown / 16 < count, "{grown} kB for {count} connections");
    // None of them was closed to make room.
    for stream in [silent.remove(0), silent.pop().unwrap()] {
        let stream = TcpStream::from_std(stream).unwrap();
        assert_eq!(status(&exchange(stream, &head, false).await), 200);
    }
    assert_eq!(mesh.app.requests().len(), 4);
}
