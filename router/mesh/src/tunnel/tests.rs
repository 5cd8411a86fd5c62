use super::*;
use crate::drain::{self, Drain};
use std::future::pending;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, WriteHalf, duplex, join as join_io, repeat, sink, split};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const UNLIMITED: TunnelLimits = TunnelLimits {
    idle: Duration::ZERO,
    lifetime: Duration::ZERO,
    message: 0,
};

/// A tunnel between a client and an app.
struct Joined {
    client: DuplexStream,
    app: DuplexStream,
    tunnel: JoinHandle<Ended>,
    drain: Drain,
}

fn joined_with(protocol: Protocol, limits: TunnelLimits, room: usize) -> Joined {
    let ((client, a), (b, app)) = (duplex(room), duplex(room));
    let (drain, draining) = drain::channel();
    Joined {
        client,
        app,
        tunnel: tokio::spawn(join(a, b, protocol, limits, draining, pending())),
        drain,
    }
}

fn websocket(limits: TunnelLimits) -> Joined {
    joined_with(Protocol::WebSocket, limits, 1 << 16)
}

/// A frame without a mask, or with one of zeros, under which a payload looks like itself.
fn frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(mask | u8::try_from(short).unwrap()),
        medium @ 126..=0xffff => {
            frame.push(mask | 0x7e);
            frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(mask | 0x7f);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend([0; 4]);
    }
    frame.extend(payload);
    frame
}

/// The close frame that `bytes` are, from a client if it is masked: its code and reason.
fn close_of(bytes: &[u8]) -> (bool, u16, String) {
    assert_eq!(bytes[0], 0x88, "no close frame: {bytes:?}");
    let (masked, length) = (bytes[1] & 0x80 != 0, usize::from(bytes[1] & 0x7f));
    let (key, payload) = bytes[2..].split_at(if masked { 4 } else { 0 });
    assert_eq!(payload.len(), length, "more than a close frame: {bytes:?}");
    let key = if masked { key } else { &[0] };
    let payload: Vec<u8> = payload
        .iter()
        .zip(key.iter().cycle())
        .map(|(byte, key)| byte ^ key)
        .collect();
    let code = u16::from_be_bytes([payload[0], payload[1]]);
    (masked, code, String::from_utf8(payload[2..].to_vec()).unwrap())
}

/// Everything that comes until the tunnel closes this side.
async fn rest_of(stream: &mut DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn read(stream: &mut DuplexStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn bytes_pass_both_ways_and_half_closes_too() {
    let (question, answer) = (frame(0x81, true, b"question"), frame(0x81, false, b"late answer"));
    for protocol in [Protocol::Other, Protocol::WebSocket] {
        let mut joined = joined_with(protocol, TunnelLimits::default(), 64);
        joined.client.write_all(&question).await.unwrap();
        joined.client.shutdown().await.unwrap();
        assert_eq!(rest_of(&mut joined.app).await, question);
        joined.app.write_all(&answer).await.unwrap();
        drop(joined.app);
        assert_eq!(rest_of(&mut joined.client).await, answer);
        let ended = Ended {
            end: TunnelEnd::Closed,
            up: 14,
            down: 13,
        };
        assert_eq!(joined.tunnel.await.unwrap(), ended);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_and_age_cut_what_is_no_websocket() {
    for (idle, lifetime, end) in [(60, 0, TunnelEnd::Idle), (0, 60, TunnelEnd::Lifetime)] {
        let limits = TunnelLimits {
            idle: Duration::from_secs(idle),
            lifetime: Duration::from_secs(lifetime),
            message: 0,
        };
        let mut joined = joined_with(Protocol::Other, limits, 64);
        assert_eq!(joined.tunnel.await.unwrap().end, end);
        assert_eq!(rest_of(&mut joined.client).await, b"");
        assert_eq!(rest_of(&mut joined.app).await, b"");
    }
}

#[tokio::test(start_paused = true)]
async fn any_byte_puts_off_the_end_for_silence_and_none_that_for_age() {
    let limits = TunnelLimits {
        idle: Duration::from_secs(60),
        lifetime: Duration::from_secs(300),
        message: 0,
    };
    let mut joined = websocket(limits);
    let started = Instant::now();
    for _ in 0..5 {
        sleep(Duration::from_secs(50)).await;
        joined.app.write_all(&frame(0x89, false, b"")).await.unwrap();
        assert!(!joined.tunnel.is_finished());
    }
    assert_eq!(joined.tunnel.await.unwrap().end, TunnelEnd::Lifetime);
    assert!(started.elapsed() >= Duration::from_secs(300));
}

#[tokio::test(start_paused = true)]
async fn both_sides_of_a_websocket_are_told_why_it_ends_and_their_answers_are_awaited() {
    for (idle, lifetime, end, reason) in [
        (60, 0, TunnelEnd::Idle, "idle timeout exceeded"),
        (0, 60, TunnelEnd::Lifetime, "max lifetime exceeded"),
        (0, 0, TunnelEnd::Drain, "shutting down"),
    ] {
        let limits = TunnelLimits {
            idle: Duration::from_secs(idle),
            lifetime: Duration::from_secs(lifetime),
            message: 0,
        };
        let mut joined = websocket(limits);
        joined.client.write_all(&frame(0x81, true, b"hello")).await.unwrap();
        read(&mut joined.app, 11).await;
        if end == TunnelEnd::Drain {
            joined.drain.start();
        }
        let told = (1001, reason.to_owned());
        let (masked, code, reason) = close_of(&read(&mut joined.client, 4 + reason.len()).await);
        assert_eq!((masked, (code, reason)), (false, told.clone()));
        let (masked, code, reason) = close_of(&read(&mut joined.app, 8 + told.1.len()).await);
        assert_eq!((masked, (code, reason)), (true, told));

        // What a side still says before its close is no longer passed, but heard.
        joined.app.write_all(&frame(0x81, false, b"too late")).await.unwrap();
        joined.app.write_all(&frame(0x88, false, b"")).await.unwrap();
        joined
            .client
            .write_all(&frame(0x88, true, b"\x03\xe9")[..5])
            .await
            .unwrap();
        tokio::task::yield_now().await;
        assert!(!joined.tunnel.is_finished(), "the client's close is not all there");
        joined.client.write_all(&[0, 3, 0xe9]).await.unwrap();
        assert_eq!(rest_of(&mut joined.client).await, b"");
        assert_eq!(rest_of(&mut joined.app).await, b"");
        let ended = Ended { end, up: 11, down: 0 };
        assert_eq!(joined.tunnel.await.unwrap(), ended);
    }
}

#[tokio::test(start_paused = true)]
async fn peers_that_do_not_answer_a_close_hold_a_drain_up_for_seconds_only() {
    let half = &frame(0x82, true, b"half")[..8];
    let flood = frame(0x82, false, &vec![0; 1 << 20]);
    for (said_up, said_down) in [(&b""[..], &b""[..]), (half, b""), (b"", &flood), (half, &flood)] {
        let joined = websocket(UNLIMITED);
        let (mut client, mut app) = (split(joined.client), split(joined.app));
        client.1.write_all(said_up).await.unwrap();
        let said_down = said_down.to_vec();
        // Nobody reads it: it never is all said.
        tokio::spawn(async move { app.1.write_all(&said_down).await });
        let mut at_app = vec![0; said_up.len()];
        app.0.read_exact(&mut at_app).await.unwrap();
        let started = Instant::now();
        assert!(joined.drain.finish(Duration::from_secs(30)).await);
        assert!(started.elapsed() <= REST_OF_FRAME + CLOSES + SHUTDOWN + Duration::from_millis(10));
        // Who is in the middle of a frame gets no bytes of ours for the rest of it.
        let mut told = Vec::new();
        app.0.read_to_end(&mut told).await.unwrap();
        assert_eq!(told.is_empty(), !said_up.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_comes_behind_the_frame_under_way() {
    let mut joined = websocket(UNLIMITED);
    let message = frame(0x82, true, b"whole");
    joined.client.write_all(&message[..7]).await.unwrap();
    assert_eq!(read(&mut joined.app, 7).await, message[..7]);
    joined.drain.start();
    sleep(REST_OF_FRAME / 2).await;
    // And a frame behind it, which nobody asked for any more.
    joined.client.write_all(&message[7..]).await.unwrap();
    joined.client.write_all(&frame(0x82, true, b"next")).await.unwrap();
    joined.client.write_all(&frame(0x88, true, b"")).await.unwrap();
    joined.app.write_all(&frame(0x88, false, b"")).await.unwrap();
    let seen = rest_of(&mut joined.app).await;
    assert_eq!(seen[..4], message[7..]);
    assert_eq!(close_of(&seen[4..]), (true, 1001, "shutting down".to_owned()));
    let ended = joined.tunnel.await.unwrap();
    assert_eq!((ended.end, ended.up), (TunnelEnd::Drain, 11));
}

#[tokio::test(start_paused = true)]
async fn a_side_that_has_had_a_close_gets_no_second_one() {
    let mut joined = websocket(UNLIMITED);
    let goodbye = frame(0x88, true, b"\x03\xe8");
    joined.client.write_all(&goodbye).await.unwrap();
    assert_eq!(read(&mut joined.app, goodbye.len()).await, goodbye);
    joined.drain.start();
    assert_eq!(rest_of(&mut joined.app).await, b"");
    assert_eq!(close_of(&rest_of(&mut joined.client).await).1, 1001);
    assert_eq!(joined.tunnel.await.unwrap().end, TunnelEnd::Drain);
}

#[tokio::test]
async fn a_flood_puts_off_neither_the_other_sides_bytes_nor_the_end() {
    let patience = Duration::from_secs(20);
    for is_up in [true, false] {
        for lifetime in [Duration::ZERO, Duration::from_millis(50)] {
            let limits = TunnelLimits { lifetime, ..UNLIMITED };
            let ((mut says, said), (takes, mut hears)) = (duplex(64), duplex(64));
            // One side always has more to say, and the other always takes it.
            let (flood, other) = (join_io(repeat(0), takes), join_io(said, sink()));
            let (_drain, draining) = drain::channel();
            let tunnel = tokio::spawn(async move {
                if is_up {
                    join(flood, other, Protocol::Other, limits, draining, pending()).await
                } else {
                    join(other, flood, Protocol::Other, limits, draining, pending()).await
                }
            });
            if lifetime.is_zero() {
                says.write_all(b"in between").await.unwrap();
                let passed = timeout(patience, read(&mut hears, 10)).await;
                assert_eq!(passed.expect("the flood won"), b"in between");
                tunnel.abort();
            } else {
                let ended = timeout(patience, tunnel).await.expect("the flood won").unwrap();
                assert_eq!(ended.end, TunnelEnd::Lifetime);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_be_what_is_no_websocket() {
    let mut joined = joined_with(Protocol::Other, UNLIMITED, 64);
    joined.drain.start();
    sleep(Duration::from_secs(60)).await;
    joined.client.write_all(b"still here").await.unwrap();
    assert_eq!(read(&mut joined.app, 10).await, b"still here");
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_message_over_the_limit_passes_and_both_sides_are_told() {
    let limits = TunnelLimits {
        message: 100,
        ..UNLIMITED
    };
    let fits = frame(0x82, true, &[7; 100]);
    for too_big in [
        frame(0x82, true, &[7; 101]),
        frame(0x82, true, &vec![7; 70_000])[..14].to_vec(),
        [0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0].to_vec(),
    ] {
        for cut in 1..14 {
            let mut joined = websocket(limits);
            joined.client.write_all(&fits).await.unwrap();
            joined
                .client
                .write_all(&too_big[..cut.min(too_big.len())])
                .await
                .unwrap();
            assert_eq!(read(&mut joined.app, fits.len()).await, fits);
            let _ = joined.client.write_all(&too_big[cut.min(too_big.len())..]).await;
            assert_eq!(
                close_of(&rest_of(&mut joined.app).await),
                (true, 1009, "message too big".to_owned()),
                "{cut} of {too_big:?}"
            );
            assert_eq!(
                close_of(&rest_of(&mut joined.client).await),
                (false, 1009, "message too big".to_owned())
            );
            let ended = joined.tunnel.await.unwrap();
            assert_eq!((ended.end, ended.up), (TunnelEnd::TooBig, fits.len() as u64));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_frame_does_not_pass_and_both_sides_are_told() {
    let mut joined = websocket(UNLIMITED);
    let ping = frame(0x89, false, &[0; 126]);
    joined.app.write_all(&ping).await.unwrap();
    assert_eq!(
        close_of(&rest_of(&mut joined.client).await),
        (false, 1002, "malformed frame".to_owned())
    );
    assert_eq!(close_of(&rest_of(&mut joined.app).await).1, 1002);
    assert_eq!(joined.tunnel.await.unwrap().end, TunnelEnd::Malformed);
}

/// Frames that pass, of every size of header.
fn frames(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.usize(..20) {
        let control = random.bool();
        let kind = if control {
            0x88 | random.u8(1..8)
        } else {
            random.u8(..8)
        };
        let first = kind | random.u8(..16) << 4;
        let length = match random.u8(..4) {
            _ if control => random.usize(..=125),
            0 => random.usize(..=125),
            1 => random.usize(126..2000),
            2 => random.usize(65_530..65_545),
            _ => 0,
        };
        let payload: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        bytes.extend(frame(first, random.bool(), &payload));
    }
    bytes
}

async fn trickle(mut to: WriteHalf<DuplexStream>, bytes: Vec<u8>, mut random: fastrand::Rng) {
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let most = if random.bool() { 20 } else { 40_000 };
        let (now, later) = rest.split_at(random.usize(1..=most).min(rest.len()));
        if to.write_all(now).await.is_err() {
            return;
        }
        rest = later;
    }
    let _ = to.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_bytes_that_pass_are_the_bytes_that_came_however_they_are_cut() {
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let room = [13, 1000, 1 << 17][random.usize(..3)];
        let (up, down) = (frames(&mut random), frames(&mut random));
        let is_malformed = random.bool();
        // If it isn't, a header that never is complete.
        let tail = if is_malformed {
            frame(0x89, true, &[0; 200])
        } else {
            vec![0x82, 127, 0, 0]
        };
        let joined = joined_with(Protocol::WebSocket, UNLIMITED, room);
        let ((mut client, client_to), (mut app, app_to)) = (split(joined.client), split(joined.app));
        tokio::spawn(trickle(client_to, [&up[..], &tail].concat(), random.fork()));
        tokio::spawn(trickle(app_to, down.clone(), random.fork()));
        let (mut at_app, mut at_client) = (Vec::new(), Vec::new());
        let reading = (app.read_to_end(&mut at_app), client.read_to_end(&mut at_client));
        let (app_read, client_read) = tokio::join!(reading.0, reading.1);
        app_read.and(client_read).unwrap();
        let ended = joined.tunnel.await.unwrap();
        if is_malformed {
            assert_eq!(ended.end, TunnelEnd::Malformed, "{seed}");
            assert!(at_app.starts_with(&up), "{seed}");
            assert_eq!(close_of(&at_app[up.len()..]).1, 1002, "{seed}");
        } else {
            assert_eq!(ended.end, TunnelEnd::Closed, "{seed}");
            assert!(at_app == [up, tail].concat() && at_client == down, "{seed}");
        }
    }
}
