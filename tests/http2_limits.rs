//! Each limit of a router's HTTP/2 at its boundary, by a client of no library: what is within it is served, and one more is not.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::http2::{Ended, PREFACE, block, frame, provoke, provoke_until};
use sandgate_tests::{Mesh, PATIENCE, RecordingApp, Step, TOKEN, status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
/// `END_STREAM` and `END_HEADERS`.
const WHOLE: u8 = 5;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

const LINE: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "front.example"),
    (":path", "/"),
];

/// The ID of a client's stream.
fn id(number: u32) -> u32 {
    2 * number + 1
}

/// A request of nobody, which is answered by the router itself.
fn nobody(number: u32) -> Vec<u8> {
    frame(HEADERS, WHOLE, id(number), &block(&LINE))
}

/// A request for the app.
fn known(mesh: &Mesh, number: u32) -> Vec<u8> {
    let (token, port) = (format!("Bearer {TOKEN}"), mesh.ports.app.to_string());
    let routing = [
        ("authorization", token.as_str()),
        ("x-sandbox-id", "alpha"),
        ("x-sandbox-port", &port),
    ];
    frame(HEADERS, WHOLE, id(number), &block(&[&LINE[..], &routing].concat()))
}

fn reset(number: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id(number), &[0, 0, 0, 8])
}

async fn assert_still_serves(mesh: &Mesh) {
    assert_eq!(
        status(&mesh.send(mesh.head("GET / HTTP/1.1", "").replace(TOKEN, "wrong")).await),
        401
    );
}

#[tokio::test]
async fn the_limits_that_a_client_is_told_of_are_those_of_the_documents() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    let start = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    stream.write_all(&start).await.unwrap();
    let (mut settings, mut window) = (Vec::new(), None);
    while settings.is_empty() || window.is_none() {
        let mut head = [0; 9];
        timeout(PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        timeout(PATIENCE, stream.read_exact(&mut payload))
            .await
            .unwrap()
            .unwrap();
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        match (head[3], head[4]) {
            (SETTINGS, 0) => settings = payload.chunks(6).map(|one| (one[1], number(&one[2..]))).collect(),
            (WINDOW_UPDATE, _) => window = Some(65_535 + number(&payload)),
            _ => {}
        }
    }
    settings.sort_unstable();
    // RFC 9113 section 6.5.2. A frame's length is the least that it allows, and so not said; the last is RFC 8441's.
    let header_list = 60 * 1024 + 100 * 32 + 8 * 1024;
    let expected = [(3, 100), (4, 128 * 1024), (6, header_list), (8, 1)];
    settings.retain(|setting| *setting != (5, 16 * 1024));
    assert_eq!(settings, expected);
    assert_eq!(window, Some(100 * 128 * 1024));
}

#[tokio::test]
async fn a_hundred_streams_are_open_at_once_and_one_more_is_refused_by_itself() {
    let mesh = Mesh::open(RecordingApp::start(|_| Step::Wait).await).await;
    let open = |count| (0..count).flat_map(|number| known(&mesh, number)).collect::<Vec<u8>>();
    assert_eq!(provoke(mesh.router, &open(101)).await, Ended::Stream(REFUSED_STREAM));
    // One that is given up makes room.
    let replaced = [open(100), reset(0), nobody(100)].concat();
    assert_eq!(provoke(mesh.router, &replaced).await, Ended::Answered);
    assert_still_serves(&mesh).await;
}

#[tokio::test]
async fn twenty_streams_may_be_reset_before_they_were_looked_at_and_one_more_ends_the_connection() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let resets = |count| (0..count).flat_map(|number| [known(&mesh, number), reset(number)].concat());
    for count in [21, 40] {
        let bytes: Vec<u8> = resets(count).collect();
        let ends = provoke_until(mesh.router, &bytes, |_| false).await;
        assert_eq!(
            ends.last(),
            Some(&Ended::Connection(ENHANCE_YOUR_CALM)),
            "{count}: {ends:?}"
        );
    }
    let bytes: Vec<u8> = resets(20).chain(nobody(20)).collect();
    assert_eq!(provoke(mesh.router, &bytes).await, Ended::Answered);
    assert_still_serves(&mesh).await;
}

#[tokio::test]
async fn a_hundred_and_twenty_eight_streams_may_be_malformed_and_one_more_ends_the_connection() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let malformed = block(&[&LINE[..], &[("connection", "close")]].concat());
    let malformed = |count| (0..count).flat_map(move |number| frame(HEADERS, WHOLE, id(number), &malformed));
    let of_itself = Ended::Stream(PROTOCOL_ERROR);
    let is_answer = |ended| ended == Ended::Answered;

    let bytes: Vec<u8> = malformed.clone()(128).chain(nobody(128)).collect();
    let ends = provoke_until(mesh.router, &bytes, is_answer).await;
    assert_eq!(ends, [vec![of_itself; 128], vec![Ended::Answered]].concat());
    let bytes: Vec<u8> = malformed(129).chain(nobody(129)).collect();
    let ends = provoke_until(mesh.router, &bytes, is_answer).await;
    assert_eq!(ends.last(), Some(&Ended::Connection(ENHANCE_YOUR_CALM)), "{ends:?}");
    mesh.app.assert_untouched("malformed");
    assert_still_serves(&mesh).await;
}
