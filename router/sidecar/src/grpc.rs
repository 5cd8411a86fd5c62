//! The health check of gRPC (`grpc.health.v1.Health/Check`) on one connection. Hides HTTP/2: how it is asked, and which
//! answer means that the server serves.
//!
//! One question with one answer on a connection of its own needs little of HTTP/2 (RFC 9113): fixed frames out, and of
//! what comes back the data, the end, and the two frames that must be acknowledged. Heads are not read: a call that fails
//! has no message, and the message alone says whether the service serves. What the app could make of a loose reading is a wrong
//! word about its own health, which it can have cheaper.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATH: &str = "/grpc.health.v1.Health/Check";
/// The longest name of a service whose length is one byte, here and in the head.
const MAX_TEXT: usize = 127;
/// What a server may send of one frame to a client that didn't allow more, in bytes.
const MAX_PAYLOAD: usize = 16 * 1024;
/// Frames that are read before the answer's end. Servers need about six.
const MAX_FRAMES: usize = 64;
/// The only spelling of `HealthCheckResponse { status: SERVING }`: not compressed, two bytes long, field 1 is 1.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 0x08, 1];

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
/// The connection as a whole.
const CONNECTION: u32 = 0;
/// The one request.
const STREAM: u32 = 1;

/// Why a server isn't known to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotServing {
    #[error("the connection broke, or is not HTTP/2")]
    Broken,
    #[error("the server refused the health check; it may have no health service, or not know the service asked for")]
    Refused,
    #[error("the service is not serving")]
    Health,
}

impl From<io::Error> for NotServing {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

/// Asks the server at the other end whether `service` (empty: the server as a whole) serves. The caller bounds the wait.
pub(crate) async fn check<S>(mut stream: S, authority: &str, service: &str) -> Result<(), NotServing>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let question = question(authority, service).ok_or(NotServing::Broken)?;
    stream.write_all(&question).await?;
    let mut message = Vec::new();
    for _ in 0..MAX_FRAMES {
        let frame = read(&mut stream).await?;
        let acknowledged = frame.flags & ACK != 0;
        match (frame.kind, frame.stream) {
            (DATA, STREAM) => message.extend_from_slice(frame.data()),
            (RST_STREAM, STREAM) => return Err(NotServing::Refused),
            (SETTINGS, CONNECTION) if !acknowledged => stream.write_all(&write(SETTINGS, ACK, CONNECTION, &[])).await?,
            (PING, CONNECTION) if !acknowledged => {
                stream.write_all(&write(PING, ACK, CONNECTION, &frame.payload)).await?;
            }
            _ => {}
        }
        if message.len() > SERVING.len() {
            return Err(NotServing::Health);
        }
        if matches!(frame.kind, DATA | HEADERS) && frame.stream == STREAM && frame.flags & END_STREAM != 0 {
            return match message.as_slice() {
                [] => Err(NotServing::Refused),
                answer if answer == SERVING => Ok(()),
                _ => Err(NotServing::Health),
            };
        }
    }
    Err(NotServing::Broken)
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// The payload without padding.
    fn data(&self) -> &[u8] {
        if self.flags & PADDED == 0 {
            return &self.payload;
        }
        let Some((padding, rest)) = self.payload.split_first() else {
            return &[];
        };
        let length = rest.len().saturating_sub(usize::from(*padding));
        rest.get(..length).unwrap_or_default()
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Frame, NotServing> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
    let length = usize::try_from(u32::from_be_bytes([0, l0, l1, l2])).unwrap_or(usize::MAX);
    if length > MAX_PAYLOAD {
        return Err(NotServing::Broken);
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok(Frame {
        kind,
        flags,
        stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
        payload,
    })
}

fn write(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, l0, l1, l2] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [&[l0, l1, l2, kind, flags, s0, s1, s2, s3], payload].concat()
}

/// Everything that is sent unasked. `None` if a text is too long.
fn question(authority: &str, service: &str) -> Option<Vec<u8>> {
    // Two fields of HPACK's static table, then fields that are spelt out (RFC 7541 sections 6.1 and 6.2.2).
    let mut head = vec![0x83, 0x86]; // :method: POST, :scheme: http
    for (name, value) in [
        (":path", PATH),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "kube-probe/sandgate"),
    ] {
        head.push(0);
        for text in [name, value] {
            head.push(length(text)?);
            head.extend_from_slice(text.as_bytes());
        }
    }
    // gRPC's length of the message, and HealthCheckRequest { service }: a field that is empty isn't written.
    let message = match length(service)? {
        0 => vec![0; 5],
        length => [&[0, 0, 0, 0, length + 2, 0x0a, length], service.as_bytes()].concat(),
    };
    let frames = [
        PREFACE.to_vec(),
        write(SETTINGS, 0, CONNECTION, &[]),
        write(HEADERS, END_HEADERS, STREAM, &head),
        write(DATA, END_STREAM, STREAM, &message),
    ];
    Some(frames.concat())
}

fn length(text: &str) -> Option<u8> {
    u8::try_from(text.len())
        .ok()
        .filter(|length| usize::from(*length) <= MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    /// What is made of a server that sends exactly this, and all that was sent to it.
    async fn asked(answer: &[u8]) -> (Result<(), NotServing>, Vec<u8>) {
        let (client, mut server) = duplex(1024 * 1024);
        server.write_all(answer).await.unwrap();
        server.shutdown().await.unwrap();
        let result = check(client, "127.0.0.1:1", "a.B").await;
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).await.unwrap();
        (result, sent)
    }

    async fn judged(frames: &[Vec<u8>]) -> Result<(), NotServing> {
        asked(&frames.concat()).await.0
    }

    fn trailers() -> Vec<u8> {
        write(HEADERS, END_HEADERS | END_STREAM, STREAM, &[0x88])
    }

    #[tokio::test]
    async fn only_a_whole_answer_that_says_serving_is_one() {
        let (settings, head) = (
            write(SETTINGS, 0, CONNECTION, &[]),
            write(HEADERS, END_HEADERS, STREAM, &[0x88]),
        );
        let answer = |data: &[u8]| [settings.clone(), head.clone(), write(DATA, 0, STREAM, data), trailers()];
        assert_eq!(judged(&answer(&SERVING)).await, Ok(()));
        assert_eq!(judged(&answer(&[0, 0, 0, 0, 2, 8, 2])).await, Err(NotServing::Health));
        assert_eq!(judged(&answer(&[0, 0, 0, 0, 0])).await, Err(NotServing::Health));
        assert_eq!(judged(&answer(&[1, 0, 0, 0, 2, 8, 1])).await, Err(NotServing::Health));
        assert_eq!(
            judged(&answer(&[SERVING, SERVING].concat())).await,
            Err(NotServing::Health)
        );
        assert_eq!(judged(&answer(&[])).await, Err(NotServing::Refused));
        assert_eq!(judged(&[settings.clone(), trailers()]).await, Err(NotServing::Refused));
        let reset = write(RST_STREAM, 0, STREAM, &[0; 4]);
        assert_eq!(judged(&[settings.clone(), reset]).await, Err(NotServing::Refused));
        let unfinished = &answer(&SERVING)[..3];
        assert_eq!(judged(unfinished).await, Err(NotServing::Broken));
        let elsewhere = [write(DATA, END_STREAM, 3, &SERVING), trailers()];
        assert_eq!(judged(&elsewhere).await, Err(NotServing::Refused));
        let in_pieces = [
            write(DATA, PADDED, STREAM, &[&[2], &SERVING[..3], &[0, 0]].concat()),
            write(DATA, END_STREAM, STREAM, &SERVING[3..]),
        ];
        assert_eq!(judged(&in_pieces).await, Ok(()));
    }

    #[tokio::test]
    async fn settings_and_pings_are_acknowledged_and_acknowledgements_are_not() {
        let ping = write(PING, 0, CONNECTION, b"12345678");
        let acks = [
            write(SETTINGS, ACK, CONNECTION, &[]),
            write(PING, ACK, CONNECTION, b"12345678"),
        ]
        .concat();
        let frames = [
            write(SETTINGS, 0, CONNECTION, &[0, 3, 0, 0, 0, 100]),
            ping,
            acks.clone(),
            trailers(),
        ];
        let (_, sent) = asked(&frames.concat()).await;
        assert_eq!(sent, [question("127.0.0.1:1", "a.B").unwrap(), acks].concat());
    }

    #[tokio::test]
    async fn a_server_that_floods_or_speaks_something_else_is_given_up() {
        let pings = vec![write(PING, 0, CONNECTION, &[0; 8]); MAX_FRAMES + 1];
        assert_eq!(judged(&pings).await, Err(NotServing::Broken));
        let data = vec![write(DATA, 0, STREAM, &[0; 1024]); MAX_FRAMES + 1];
        assert_eq!(judged(&data).await, Err(NotServing::Health));
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"",
            b"\0\x40\x01\0\0\0\0\0\x01",
            b"\0\0\x08\x06\0\0\0\0\0",
        ] {
            assert_eq!(asked(other).await.0, Err(NotServing::Broken));
        }
    }

    #[test]
    fn the_question_is_spelt_as_the_protocols_say() {
        let text = question("127.0.0.1:9090", "a.B").unwrap();
        assert!(
            text.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0"),
            "{text:?}"
        );
        assert!(
            text.ends_with(b"\0\0\x0a\0\x01\0\0\0\x01\0\0\0\0\x05\x0a\x03a.B"),
            "{text:?}"
        );
        let whole = question("127.0.0.1:9090", "").unwrap();
        assert!(whole.ends_with(b"\0\0\x05\0\x01\0\0\0\x01\0\0\0\0\0"), "{whole:?}");
        assert!(question("127.0.0.1:9090", &"a".repeat(127)).is_some());
        assert!(question("127.0.0.1:9090", &"a".repeat(128)).is_none());
    }
}
