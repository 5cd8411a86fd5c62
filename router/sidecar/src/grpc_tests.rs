use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// A frame of stream `stream` (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, l0, l1, l2] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[l0, l1, l2, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// What is made of a server that sends exactly this as soon as it has been asked, and then goes.
async fn asked(answer: &[u8]) -> Result<(), NotServing> {
    let (client, mut server) = duplex(1024 * 1024);
    let answering = async {
        let mut sent = Vec::new();
        while !sent.ends_with(b"a.B") {
            assert!(server.read_buf(&mut sent).await.unwrap() > 0);
        }
        server.write_all(answer).await.unwrap();
        server.shutdown().await.unwrap();
        // A client that has read all this may have gone, too.
        let _ = server.read_to_end(&mut sent).await;
    };
    let limits = Arc::default();
    let asking = check(client, &limits, ("127.0.0.1:1", "a.B"), Duration::from_secs(5));
    tokio::join!(asking, answering).0
}

async fn judged(frames: &[Vec<u8>]) -> Result<(), NotServing> {
    asked(&frames.concat()).await
}

fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

/// `:status: 200`, from HPACK's static table.
fn head() -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &[0x88])
}

fn trailers() -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0\x0bgrpc-status\x010")
}

#[tokio::test]
async fn only_a_whole_answer_that_says_serving_is_one() {
    let answer = |data: &[u8]| [settings(), head(), frame(DATA, 0, 1, data), trailers()];
    assert_eq!(judged(&answer(&SERVING)).await, Ok(()));
    for other in [
        &[0, 0, 0, 0, 2, 8, 2][..],
        &[0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 2, 8, 1],
        &[SERVING, SERVING].concat(),
    ] {
        assert_eq!(judged(&answer(other)).await, Err(NotServing::Health), "{other:?}");
    }
    assert_eq!(judged(&answer(&[])).await, Err(NotServing::Refused));
    let head_alone = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88]);
    assert_eq!(judged(&[settings(), head_alone]).await, Err(NotServing::Refused));
    let reset = frame(RST_STREAM, 0, 1, &[0, 0, 0, 7]);
    assert_eq!(judged(&[settings(), reset.clone()]).await, Err(NotServing::Refused));
    assert_eq!(judged(&[settings(), head(), reset]).await, Err(NotServing::Refused));
    let unfinished = &answer(&SERVING)[..3];
    assert_eq!(judged(unfinished).await, Err(NotServing::Broken));
    let elsewhere = frame(DATA, END_STREAM, 3, &SERVING);
    assert_eq!(judged(&[settings(), elsewhere]).await, Err(NotServing::Broken));
    let in_pieces = [
        settings(),
        head(),
        frame(DATA, PADDED, 1, &[&[2], &SERVING[..3], &[0, 0]].concat()),
        frame(DATA, END_STREAM, 1, &SERVING[3..]),
    ];
    assert_eq!(judged(&in_pieces).await, Ok(()));
}

#[tokio::test]
async fn a_server_that_floods_or_speaks_something_else_is_given_up() {
    let flood = |frames: Vec<u8>| [settings(), head(), frames.repeat(1000)];
    let pings = flood(frame(PING, 0, 0, &[0; 8]));
    assert_eq!(judged(&pings).await, Err(NotServing::Broken));
    let data = flood(frame(DATA, 0, 1, &[0; 10]));
    assert_eq!(judged(&data).await, Err(NotServing::Health));
    let heads = [settings(), frame(HEADERS, END_HEADERS, 1, b"\x08\x03103").repeat(1000)];
    assert_eq!(judged(&heads).await, Err(NotServing::Broken));
    for other in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"",
        b"\0\x40\x01\0\0\0\0\0\x01",
        b"\0\0\x08\x06\0\0\0\0\0",
    ] {
        assert_eq!(asked(other).await, Err(NotServing::Broken), "{other:?}");
    }
}

#[test]
fn the_question_is_spelt_as_the_protocols_say() {
    assert_eq!(message("a.B").unwrap(), &b"\0\0\0\0\x05\x0a\x03a.B"[..]);
    assert_eq!(message("").unwrap(), &[0; 5][..]);
    assert!(message(&"a".repeat(127)).is_some());
    assert!(message(&"a".repeat(128)).is_none());
    let question = question("127.0.0.1:9090", "a.B").unwrap();
    assert_eq!((question.method(), question.uri().path()), (&Method::POST, PATH));
    for (name, value) in [
        ("host", "127.0.0.1:9090"),
        ("content-type", "application/grpc"),
        ("user-agent", "kube-probe/sandgate"),
    ] {
        assert_eq!(question.headers()[name], value);
    }
}
