//! The guards with hyper behind them: what the service sees, what the peer is answered, and when connections end.

use super::Peer;
use crate::framing::{Limits, PassThrough, RequestGuard, ResponseGuard, judge_request_bytes, refusal, violation};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep, timeout};

/// What the service was asked, in order. A refused request is its violation, a body error the one found in it.
type Seen = Arc<Mutex<Vec<String>>>;

/// Answers with what it writes down. `/slow` takes an hour, `/upgrade` echoes in capitals.
async fn serve(request: Request<Incoming>, pass: PassThrough, seen: Seen) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = |status: StatusCode, text: String| {
        seen.lock().unwrap().push(text.clone());
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        Ok(response)
    };
    if let Some(violation) = refusal(&request) {
        return answer(violation.status(), format!("{violation:?}"));
    }
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/slow" => sleep(Duration::from_secs(3600)).await,
        "/upgrade" if !pass.open() => return answer(StatusCode::BAD_REQUEST, path),
        "/upgrade" => {
            tokio::spawn(async move {
                let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                let mut text = [0; 5];
                io.read_exact(&mut text).await.unwrap();
                io.write_all(&text.to_ascii_uppercase()).await.unwrap();
                io.shutdown().await.unwrap();
            });
            return answer(StatusCode::SWITCHING_PROTOCOLS, path);
        }
        _ => {}
    }
    match request.into_body().collect().await {
        Ok(body) => answer(
            StatusCode::OK,
            format!("{path} {}", String::from_utf8_lossy(&body.to_bytes())),
        ),
        Err(error) => answer(
            StatusCode::BAD_REQUEST,
            format!("{path} {:?}", violation(&error).unwrap()),
        ),
    }
}

/// Serves one end of a connection, and returns the other end.
fn connect(limits: &Limits) -> (DuplexStream, Seen) {
    let (client, server) = duplex(1 << 20);
    let seen = Seen::default();
    let (guard, pass) = RequestGuard::new(server, Arc::new(limits.clone()));
    let written = Arc::clone(&seen);
    let service = service_fn(move |request| serve(request, pass.clone(), Arc::clone(&written)));
    tokio::spawn(
        limits
            .server_builder()
            .serve_connection(TokioIo::new(guard), service)
            .with_upgrades(),
    );
    (client, seen)
}

/// Sends the bytes, and returns what was answered until the server closed, and what the service saw.
async fn exchange(bytes: &[u8]) -> (String, Vec<String>) {
    let (mut client, seen) = connect(&Limits::default());
    client.write_all(bytes).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    (answer, seen)
}

#[tokio::test(start_paused = true)]
async fn a_smuggled_request_never_reaches_the_service() {
    let attack = "POST /front HTTP/1.1\r\nHost: a\r\nContent-Length: 43\r\nTransfer-Encoding: chunked\r\n\r\n\
                  0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let (answer, seen) = exchange(attack.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(answer.ends_with("BothFramings"), "{answer}");
    assert_eq!(seen, ["BothFramings"]);
}

#[tokio::test(start_paused = true)]
async fn requests_before_a_bad_one_are_answered_first() {
    let stream = "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n\
                  GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\nHost: a\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\n\r\n";
    let (answer, seen) = exchange(stream.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 3, "{answer}");
    assert_eq!(seen, ["/1 hi", "/slow ", "BareLineFeed"]);
}

#[tokio::test(start_paused = true)]
async fn a_bad_chunk_is_a_body_error_and_the_connection_ends() {
    let stream = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0;\x01\r\n\r\n\
                  GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let (answer, seen) = exchange(stream.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert_eq!(seen, ["/c ChunkExtension"]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_answered_to_a_peer_that_keeps_sending() {
    let flood = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}", "a".repeat(200_000));
    let (answer, seen) = exchange(flood.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(seen, ["HeadTooLarge"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_answered_408_on_time() {
    let (mut client, seen) = connect(&Limits::default());
    sleep(Duration::from_secs(60)).await;
    let started = Instant::now();
    for byte in b"\r\nGET / HTTP/1.1\r\n" {
        client.write_all(&[*byte]).await.unwrap();
        sleep(Duration::from_millis(500)).await;
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    // The clock starts with the G, or with the CR of an empty line that isn't complete yet.
    assert!(
        started.elapsed() <= Duration::from_millis(11_500),
        "{:?}",
        started.elapsed()
    );
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert_eq!(*seen.lock().unwrap(), ["SlowHead"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_request_is_never_cut() {
    let (mut client, seen) = connect(&Limits::default());
    client
        .write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 15];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    client
        .write_all(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
        .await
        .unwrap();
    sleep(Duration::from_secs(3600)).await;
    client.write_all(b"b").await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(*seen.lock().unwrap(), ["/slow ", "/slow ab"]);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_came_before_the_101_are_not_lost() {
    let (mut client, _) = connect(&Limits::default());
    client
        .write_all(b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nxy\r")
        .await
        .unwrap();
    sleep(Duration::from_secs(300)).await;
    client.write_all(b"\n\0\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.ends_with("XY\r\n\0"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn hyper_takes_the_largest_messages_that_the_guard_takes() {
    let limits = Limits {
        headers: 200,
        ..Limits::default()
    };
    let fields = |size: usize| format!("{}A: {}\r\n", "B: c\r\n".repeat(198), "a".repeat(size - 198 * 6 - 5));
    let start = "POST /big HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n";
    let trailers = format!("0\r\n{}\r\n", fields(limits.head_bytes - 2));
    let start = format!(
        "{start}{}\r\n",
        fields(limits.head_bytes - start.len() - 2).replacen("B: c\r\n", "", 1)
    );
    assert_eq!(start.len(), limits.head_bytes - "B: c\r\n".len());
    let (mut client, seen) = connect(&limits);
    client
        .write_all(format!("{start}{trailers}{start}{trailers}").as_bytes())
        .await
        .unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(*seen.lock().unwrap(), ["/big ", "/big "]);
}

#[tokio::test(start_paused = true)]
async fn a_violation_is_found_in_the_error_of_hypers_client() {
    let (mut app, io) = duplex(1024);
    let (guard, expect) = ResponseGuard::new(io, Arc::default());
    let (mut sender, connection) = Limits::default()
        .client_builder()
        .handshake(TokioIo::new(guard))
        .await
        .unwrap();
    tokio::spawn(connection);
    for (answer, why) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", None),
        ("HTTP/1.1 200 OK\nA: b\r\n\r\n", Some("BareLineFeed")),
    ] {
        sender.ready().await.unwrap();
        expect.arm();
        let response = sender.send_request(Request::new(Empty::<Bytes>::new()));
        app.read_buf(&mut Vec::new()).await.unwrap();
        app.write_all(answer.as_bytes()).await.unwrap();
        let error = response.await.err();
        assert_eq!(
            error
                .map(|error| format!("{:?}", violation(&error).unwrap()))
                .as_deref(),
            why
        );
    }
    assert!(sender.ready().await.is_err());
}

/// Small changes to valid streams: whatever the guard then accepts, hyper must divide into the same requests.
#[tokio::test(start_paused = true)]
async fn hyper_reads_what_the_guard_accepts_the_same_way() {
    const PATCHES: [&str; 16] = [
        "\r",
        "\n",
        "\r\n",
        " ",
        "\t",
        ":",
        "0",
        "5",
        "\0",
        ";",
        ",",
        "chunked",
        "\r\n\r\n",
        "GET / HTTP/1.1\r\n",
        "A: b\r\n",
        "\x7f",
    ];
    let seed = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
                POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nC: d\r\n\r\n\
                GET /3 HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut random = 0x9e37_79b9_u32;
    let mut below = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random as usize % bound
    };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..4_000 {
        let mut stream = seed.to_owned();
        for _ in 0..=below(2) {
            let at = below(stream.len());
            let removed = below(3).min(stream.len() - at);
            stream.replace_range(at..at + removed, PATCHES[below(PATCHES.len())]);
        }
        let requests = requests_that_hyper_reads(stream.as_bytes()).await;
        match judge_request_bytes(stream.as_bytes()) {
            Ok(count) if requests.iter().all(|version| *version == Version::HTTP_11) => {
                assert_eq!(requests.len(), count, "{stream:?}");
                accepted += 1;
            }
            // hyper closes behind a request in HTTP/1.0.
            Ok(count) => assert!(requests.len() <= count, "{stream:?}"),
            Err(_) => refused += 1,
        }
    }
    assert!(
        accepted > 200 && refused > 200,
        "{accepted} accepted, {refused} refused"
    );
}

/// The complete requests that reach a service behind a guard.
async fn requests_that_hyper_reads(stream: &[u8]) -> Vec<Version> {
    let requests = Mutex::new(Vec::new());
    let (guard, _) = RequestGuard::new(Peer::sends([stream]).then_falls_silent(), Arc::default());
    let service = service_fn(|request: Request<Incoming>| async {
        let (refused, version) = (refusal(&request).is_some(), request.version());
        if request.into_body().collect().await.is_ok() && !refused {
            requests.lock().unwrap().push(version);
        }
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let connection = Limits::default()
        .server_builder()
        .serve_connection(TokioIo::new(guard), service);
    // Errors and a connection that waits for more are both fine here: what counts is what the service saw.
    let _ = timeout(Duration::from_secs(1), connection).await;
    requests.into_inner().unwrap()
}
