//! What RFC 9113 calls malformed, frame by frame, as a client of no library would send it: the stream or the connection ends
//! as the RFC says, the app hears nothing, and other connections are served.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_tests::http2::{Ended, PREFACE, block, frame, provoke};
use sandgate_tests::{Mesh, PATIENCE, RecordingApp, TOKEN, exchange_without_end, send, status};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WHOLE: u8 = END_STREAM | END_HEADERS;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

const LINE: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "front.example"),
    (":path", "/"),
];

/// The header block of a request that would reach the app, with `more` behind it.
fn request(port: u16, more: &[(&str, &str)]) -> Vec<u8> {
    with_line(&LINE, port, more)
}

fn with_line(line: &[(&str, &str)], port: u16, more: &[(&str, &str)]) -> Vec<u8> {
    let (token, port) = (format!("Bearer {TOKEN}"), port.to_string());
    let routing = [
        ("authorization", token.as_str()),
        ("x-sandbox-id", "alpha"),
        ("x-sandbox-port", &port),
    ];
    block(&[line, &routing, more].concat())
}

async fn assert_still_serves(mesh: &Mesh) {
    mesh.app.forget();
    assert_eq!(status(&mesh.send(mesh.head("GET / HTTP/1.1", "")).await), 200);
    mesh.app.forget();
}

/// Sends each, and fails unless it ends its stream, or its connection, with that code. Where RFC 9113 has a stream end, it lets
/// the connection end, too (section 5.4.2); and `PROTOCOL_ERROR` stands for every code that says more (section 7).
async fn assert_refused(mesh: &Mesh, cases: Vec<(&str, Vec<u8>, Ended)>) {
    let mut others = Vec::new();
    for (name, bytes, expected) in cases {
        let ended = provoke(mesh.router, &bytes).await;
        let with_connection = match expected {
            Ended::Stream(code) => Ended::Connection(code),
            other => other,
        };
        if ![expected, with_connection, Ended::Connection(PROTOCOL_ERROR)].contains(&ended) {
            others.push(format!("{name}: {ended:?}, not {expected:?}"));
        }
        mesh.app.assert_untouched(name);
    }
    assert!(others.is_empty(), "{others:#?}");
    assert_still_serves(mesh).await;
}

#[tokio::test]
async fn malformed_heads_end_their_stream() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let port = mesh.ports.app;
    let without = |name: &str| -> Vec<(&str, &str)> { LINE.into_iter().filter(|(found, _)| *found != name).collect() };
    let replaced = |name: &str, value: &'static str| -> Vec<(&str, &str)> {
        let replace = |(found, old)| (found, if found == name { value } else { old });
        LINE.into_iter().map(replace).collect()
    };
    let mut cases = Vec::new();
    for (name, more) in [
        ("a name in capitals", &[("X-Upper", "a")][..]),
        ("Connection", &[("connection", "close")]),
        ("Keep-Alive", &[("keep-alive", "timeout=5")]),
        ("Proxy-Connection", &[("proxy-connection", "close")]),
        ("Transfer-Encoding", &[("transfer-encoding", "chunked")]),
        ("Upgrade", &[("upgrade", "websocket")]),
        ("TE other than trailers", &[("te", "gzip")]),
        ("a pseudo-header behind the others", &[(":path", "/other")]),
        ("a second path", &[("x-a", "b"), (":path", "/")]),
        ("an unknown pseudo-header", &[(":unknown", "a")]),
        ("a status in a request", &[(":status", "200")]),
        ("a line feed in a value", &[("x-a", "b\nc: d")]),
        ("a NUL in a value", &[("x-a", "b\0c")]),
        ("a space in a name", &[("x a", "b")]),
        ("an empty name", &[("", "b")]),
        ("a length of letters", &[("content-length", "two")]),
        ("a signed length", &[("content-length", "+2")]),
        ("two lengths", &[("content-length", "1"), ("content-length", "2")]),
        ("a length without a body", &[("content-length", "5")]),
    ] {
        cases.push((name, request(port, more)));
    }
    for (name, line) in [
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("an empty path", replaced(":path", "")),
        ("a malformed authority", replaced(":authority", "a b")),
        ("a method of two words", replaced(":method", "GET /")),
        ("a path with a space", replaced(":path", "/a b HTTP/1.1")),
        (
            "a protocol without CONNECT",
            [&LINE[..], &[(":protocol", "websocket")]].concat(),
        ),
    ] {
        cases.push((name, with_line(&line, port, &[])));
    }
    let cases = cases.into_iter().map(|(name, block)| {
        let bytes = frame(HEADERS, WHOLE, 1, &block);
        (name, bytes, Ended::Stream(PROTOCOL_ERROR))
    });
    assert_refused(&mesh, cases.collect()).await;
}

#[tokio::test]
async fn frames_out_of_place_end_their_connection() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    // What is a request here has no token: it is nobody's.
    let nobody = block(&LINE);
    let open = frame(HEADERS, END_HEADERS, 1, &nobody);
    let begun = frame(HEADERS, END_STREAM, 1, &nobody[..9]);
    let protocol = Ended::Connection(PROTOCOL_ERROR);
    let size = Ended::Connection(FRAME_SIZE_ERROR);
    assert_refused(
        &mesh,
        vec![
            ("an even stream", frame(HEADERS, WHOLE, 2, &nobody), protocol),
            ("no stream", frame(HEADERS, WHOLE, 0, &nobody), protocol),
            ("DATA on no stream", frame(DATA, 0, 0, b"x"), protocol),
            ("DATA on an idle stream", frame(DATA, 0, 1, b"x"), protocol),
            (
                "RST_STREAM on an idle stream",
                frame(RST_STREAM, 0, 1, &[0; 4]),
                protocol,
            ),
            ("RST_STREAM on no stream", frame(RST_STREAM, 0, 0, &[0; 4]), protocol),
            (
                "RST_STREAM of three bytes",
                [open.clone(), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
                size,
            ),
            (
                "WINDOW_UPDATE on an idle stream",
                frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
                protocol,
            ),
            (
                "WINDOW_UPDATE of nothing",
                frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
                protocol,
            ),
            (
                "WINDOW_UPDATE of three bytes",
                frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
                size,
            ),
            (
                "a window over 2^31-1",
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                Ended::Connection(FLOW_CONTROL_ERROR),
            ),
            (
                "PUSH_PROMISE",
                [open.clone(), frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])].concat(),
                protocol,
            ),
            (
                "CONTINUATION of nothing",
                frame(CONTINUATION, END_HEADERS, 1, &nobody),
                protocol,
            ),
            (
                "PING within a head",
                [begun.clone(), frame(PING, 0, 0, &[0; 8])].concat(),
                protocol,
            ),
            (
                "another stream within a head",
                [begun, frame(HEADERS, WHOLE, 3, &nobody)].concat(),
                protocol,
            ),
            (
                "DATA of 16,385 bytes",
                [open.clone(), frame(DATA, 0, 1, &[0; 16_385])].concat(),
                size,
            ),
            ("HEADERS of 16,385 bytes", frame(HEADERS, WHOLE, 1, &[0; 16_385]), size),
            (
                "padding longer than the frame",
                [open, frame(DATA, PADDED, 1, &[9, 0, 0])].concat(),
                protocol,
            ),
            (
                "an index of no table",
                frame(HEADERS, WHOLE, 1, &[0xff, 0xff, 0x7f]),
                Ended::Connection(COMPRESSION_ERROR),
            ),
            (
                "a block that breaks off",
                frame(HEADERS, WHOLE, 1, &[0, 5, b'a']),
                Ended::Connection(COMPRESSION_ERROR),
            ),
            (
                "PRIORITY of four bytes",
                frame(PRIORITY, 0, 1, &[0; 4]),
                Ended::Stream(FRAME_SIZE_ERROR),
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn malformed_pings_and_settings_end_their_connection() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let protocol = Ended::Connection(PROTOCOL_ERROR);
    let size = Ended::Connection(FRAME_SIZE_ERROR);
    assert_refused(
        &mesh,
        vec![
            ("PING of seven bytes", frame(PING, 0, 0, &[0; 7]), size),
            ("PING on a stream", frame(PING, 0, 1, &[0; 8]), protocol),
            ("SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5]), size),
            ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), protocol),
            (
                "an acknowledgement with settings",
                frame(SETTINGS, ACK, 0, &[0, 3, 0, 0, 0, 1]),
                size,
            ),
            ("ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), protocol),
            (
                "INITIAL_WINDOW_SIZE of 2^31",
                frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
                Ended::Connection(FLOW_CONTROL_ERROR),
            ),
            (
                "MAX_FRAME_SIZE of 1",
                frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]),
                protocol,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_stream_that_has_ended_takes_nothing_more() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let nobody = block(&LINE);
    // Ended by its client, and not answered yet or just answered: what follows at once is judged first.
    let begun = |stream| frame(HEADERS, WHOLE, stream, &nobody);
    for (name, bytes) in [
        ("HEADERS", [begun(1), frame(HEADERS, WHOLE, 1, &nobody)].concat()),
        ("DATA", [begun(1), frame(DATA, END_STREAM, 1, b"x")].concat()),
        ("an earlier stream", [begun(5), begun(3)].concat()),
    ] {
        let ended = provoke(mesh.router, &bytes).await;
        let as_the_rfc_says = [
            Ended::Stream(STREAM_CLOSED),
            Ended::Connection(STREAM_CLOSED),
            Ended::Connection(PROTOCOL_ERROR),
        ];
        assert!(as_the_rfc_says.contains(&ended), "{name}: {ended:?}");
        mesh.app.assert_untouched(name);
    }
    assert_still_serves(&mesh).await;
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_was_said_is_never_whole_to_the_app() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for (name, length, body) in [("shorter", "5", &b"abc"[..]), ("longer", "2", b"abc")] {
        let head = frame(
            HEADERS,
            END_HEADERS,
            1,
            &request(mesh.ports.app, &[("content-length", length)]),
        );
        let ended = provoke(mesh.router, &[head, frame(DATA, END_STREAM, 1, body)].concat()).await;
        let refused = [Ended::Stream(PROTOCOL_ERROR), Ended::Answered];
        assert!(refused.contains(&ended), "{name}: {ended:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(mesh.app.requests().iter().all(|request| !request.complete), "{name}");
        mesh.app.forget();
    }
    assert_still_serves(&mesh).await;
}

#[tokio::test]
async fn floods_end_their_own_connection_at_most() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let nobody = block(&LINE);
    let endless = [
        frame(HEADERS, END_STREAM, 1, &nobody),
        frame(CONTINUATION, 0, 1, &block(&[("x-a", "b")])).repeat(20_000),
    ];
    let empty = [
        frame(HEADERS, END_STREAM, 1, &nobody),
        frame(CONTINUATION, 0, 1, &[]).repeat(100_000),
    ];
    let calm = Ended::Connection(ENHANCE_YOUR_CALM);
    for (name, bytes, ends) in [
        (
            "CONTINUATIONs",
            endless.concat(),
            &[calm, Ended::Connection(PROTOCOL_ERROR)],
        ),
        (
            "empty CONTINUATIONs",
            empty.concat(),
            &[calm, Ended::Connection(PROTOCOL_ERROR)],
        ),
    ] {
        let ended = provoke(mesh.router, &bytes).await;
        assert!(ends.contains(&ended), "{name}: {ended:?}");
        mesh.app.assert_untouched(name);
        assert_still_serves(&mesh).await;
    }
}

#[tokio::test]
async fn who_asks_without_listening_is_not_answered_without_end() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for (name, asks) in [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
    ] {
        let mut stream = TcpStream::connect(mesh.router).await.unwrap();
        stream
            .write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())
            .await
            .unwrap();
        let asks = asks.repeat(1000);
        // Its own answers fill the socket, and then nothing more is read: writing comes to a halt.
        let halted = async {
            loop {
                if timeout(Duration::from_secs(1), stream.write_all(&asks)).await.is_err() {
                    break;
                }
            }
        };
        timeout(6 * PATIENCE, halted)
            .await
            .unwrap_or_else(|_| panic!("{name}: taken without end"));
        assert_still_serves(&mesh).await;
    }
}

#[tokio::test]
async fn a_head_far_over_the_limit_is_431_or_the_end() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let large = request(mesh.ports.app, &[("x-a", &"b".repeat(80 * 1024))]);
    let mut pieces = large.chunks(16 * 1024).peekable();
    let mut bytes = frame(HEADERS, END_STREAM, 1, pieces.next().unwrap());
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_some() { 0 } else { END_HEADERS };
        bytes.extend(frame(CONTINUATION, flags, 1, piece));
    }
    let ended = provoke(mesh.router, &bytes).await;
    let refused = [Ended::Answered, Ended::Connection(ENHANCE_YOUR_CALM)];
    assert!(refused.contains(&ended), "{ended:?}");
    mesh.app.assert_untouched("too large");
    assert_still_serves(&mesh).await;
}

#[tokio::test]
async fn other_prefaces_and_stalled_ones_are_no_request() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let other = [&PREFACE[..20], b"XXXX"].concat();
    assert_eq!(status(&send(mesh.router, other).await), 400);
    let router = mesh.run_router(&["--request-head-timeout=1s"]);
    let stalled = send(router, &PREFACE[..23]).await;
    assert_eq!(status(&stalled), 400, "{stalled}");
    // A preface without the settings that must follow is nobody's, and lasts no longer than an idle connection.
    let router = mesh.run_router(&["--idle-timeout=1s"]);
    let mut bare = TcpStream::connect(router).await.unwrap();
    bare.write_all(PREFACE).await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, bare.read_to_end(&mut rest)).await.unwrap().unwrap();
    mesh.app.assert_untouched("no request");
    let stream = TcpStream::connect(mesh.router).await.unwrap();
    let garbage = exchange_without_end(stream, PREFACE, [0xff; 1000], Duration::ZERO).await;
    assert!(!garbage.contains("HTTP/1.1"));
    assert_still_serves(&mesh).await;
}
