//! Long exchanges through the whole mesh: WebSockets, events, uploads and trailers arrive as they were sent, and nothing
//! of one request shows up in another.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::{SinkExt, StreamExt};
use sandgate_tests::websocket::{self, Socket, next};
use sandgate_tests::{Mesh, RecordingApp, Step, TOKEN, ok, read_until, status};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};

/// No step of an exchange takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// An app that sends every text and binary message back, and closes with 4001 when it is told `close`.
async fn echo(stream: TcpStream) {
    let mut socket = accept_async(stream).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let answer = match &message {
            Message::Text(text) if text.as_str() == "close" => Message::Close(Some(CloseFrame {
                code: CloseCode::Library(4001),
                reason: "as you wish".into(),
            })),
            Message::Text(_) | Message::Binary(_) => message,
            _ => continue,
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

async fn connect(mesh: &Mesh) -> Socket {
    websocket::connect(mesh.router, mesh.ports.app).await
}

#[tokio::test]
async fn a_websocket_carries_text_binary_fragments_and_pings() {
    let mesh = Mesh::open(RecordingApp::serving(echo).await).await;
    let mut socket = connect(&mesh).await;
    for message in [
        Message::text("grüße"),
        Message::text(""),
        Message::binary(vec![0, 255, 13, 10, 13, 10]),
        Message::binary(vec![7; 3 << 20]),
    ] {
        socket.send(message.clone()).await.unwrap();
        assert!(next(&mut socket).await == message, "a message came back changed");
    }

    // Three fragments, and a ping between them, as RFC 6455 section 5.4 allows.
    let fragment = |text: &str, kind, last| Message::Frame(Frame::message(text.to_owned(), OpCode::Data(kind), last));
    socket.send(fragment("one ", Data::Text, false)).await.unwrap();
    socket.send(Message::Ping("in between".into())).await.unwrap();
    socket.send(fragment("two ", Data::Continue, false)).await.unwrap();
    socket.send(fragment("three", Data::Continue, true)).await.unwrap();
    assert_eq!(next(&mut socket).await, Message::Pong("in between".into()));
    assert_eq!(next(&mut socket).await, Message::text("one two three"));
}

#[tokio::test]
async fn a_websockets_close_code_and_reason_arrive_from_either_side() {
    let (report, mut reported) = mpsc::unbounded_channel();
    let app = RecordingApp::serving(move |stream| {
        let report = report.clone();
        async move {
            let mut socket = accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Close(frame) = message {
                    report.send(frame).unwrap();
                }
            }
        }
    });
    let mesh = Mesh::open(app.await).await;
    let mut socket = connect(&mesh).await;
    let goodbye = CloseFrame {
        code: CloseCode::Normal,
        reason: "done here".into(),
    };
    socket.close(Some(goodbye.clone())).await.unwrap();
    let seen = timeout(PATIENCE, reported.recv()).await.unwrap().unwrap();
    assert_eq!(seen, Some(goodbye.clone()));
    assert_eq!(next(&mut socket).await, Message::Close(Some(goodbye)));
    assert!(timeout(PATIENCE, socket.next()).await.unwrap().is_none());

    let mesh = Mesh::open(RecordingApp::serving(echo).await).await;
    let mut socket = connect(&mesh).await;
    socket.send(Message::text("close")).await.unwrap();
    let Message::Close(Some(frame)) = next(&mut socket).await else {
        panic!("no close frame")
    };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4001, "as you wish"));
    assert!(timeout(PATIENCE, socket.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn each_event_arrives_before_the_next_one_is_sent() {
    let (confirm, confirmed) = mpsc::unbounded_channel::<()>();
    let confirmed = Arc::new(Mutex::new(confirmed));
    let app = RecordingApp::serving(move |mut stream| {
        let confirmed = Arc::clone(&confirmed);
        async move {
            read_until(&mut stream, b"\r\n\r\n").await;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for number in 0..5 {
                let event = format!("data: {number}\n\n");
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                stream.write_all(chunk.as_bytes()).await.unwrap();
                // The next one waits until the client has this one: whoever buffers, hangs.
                confirmed.lock().await.recv().await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    });
    let mesh = Mesh::open(app.await).await;
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    let head = mesh.head("GET /events HTTP/1.1", "Accept: text/event-stream\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, b"\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.contains("\r\ncontent-type: text/event-stream\r\n"), "{head}");
    for number in 0..5 {
        read_until(&mut stream, format!("data: {number}\n\n\r\n").as_bytes()).await;
        confirm.send(()).unwrap();
    }
    assert_eq!(read_until(&mut stream, b"0\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test]
async fn an_upload_and_its_answer_move_at_the_same_time() {
    let app = RecordingApp::serving(|mut stream| async move {
        read_until(&mut stream, b"\r\n\r\n").await;
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for number in 0..5 {
            read_until(&mut stream, format!("up{number}\r\n").as_bytes()).await;
            stream
                .write_all(format!("5\r\ndown{number}\r\n").as_bytes())
                .await
                .unwrap();
        }
        read_until(&mut stream, b"0\r\n\r\n").await;
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    });
    let mesh = Mesh::open(app.await).await;
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    let head = mesh.head("POST /both HTTP/1.1", "Transfer-Encoding: chunked\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(status(&read_until(&mut stream, b"\r\n\r\n").await), 200);
    for number in 0..5 {
        stream
            .write_all(format!("3\r\nup{number}\r\n").as_bytes())
            .await
            .unwrap();
        read_until(&mut stream, format!("down{number}\r\n").as_bytes()).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut stream, b"0\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test]
async fn trailers_pass_both_ways_without_what_may_not_trail() {
    let answer = "HTTP/1.1 200 OK\r\nTrailer: X-Sum, X-Sandgate-Outcome\r\nTransfer-Encoding: chunked\r\n\r\n\
                  2\r\nhi\r\n0\r\nX-Sum: 42\r\nX-Sandgate-Outcome: denied\r\nSet-Cookie: a=b\r\n\r\n";
    let mesh = Mesh::open(RecordingApp::answering(Step::Close(answer.into())).await).await;
    let request = mesh
        .head(
            "POST /t HTTP/1.1",
            "TE: trailers\r\nTrailer: X-Check, Authorization\r\nTransfer-Encoding: chunked\r\n",
        )
        .replace("Connection: close", "Connection: close, TE")
        + "2\r\nup\r\n0\r\nX-Check: 7\r\nX-Sandgate-Caller: v1;static;root\r\nAuthorization: Bearer x\r\n\r\n";
    let response = mesh.send(request).await.to_ascii_lowercase();
    assert!(response.contains("\r\ntrailer: x-sum\r\n"), "{response}");
    assert!(response.ends_with("2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n"), "{response}");
    let request = mesh.app.only_request();
    let head = request.head.to_ascii_lowercase();
    assert!(
        head.contains("\r\nte: trailers\r\n") && head.contains("\r\ntrailer: x-check\r\n"),
        "{head}"
    );
    let body = String::from_utf8(request.body).unwrap().to_ascii_lowercase();
    assert!(body.ends_with("2\r\nup\r\n0\r\nx-check: 7\r\n\r\n"), "{body}");
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_before_it_sends_the_body() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let mut stream = TcpStream::connect(mesh.router).await.unwrap();
    let head = mesh.head("PUT /file HTTP/1.1", "Expect: 100-continue\r\nContent-Length: 4\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(status(&read_until(&mut stream, b"\r\n\r\n").await), 100);
    stream.write_all(b"body").await.unwrap();
    assert_eq!(status(&read_until(&mut stream, b"hello").await), 200);
    let request = mesh.app.only_request();
    assert!(
        !request.head.to_ascii_lowercase().contains("expect"),
        "{}",
        request.head
    );
    assert_eq!(request.body, b"body");

    // Who is refused is told so at once, and need not send the body.
    let refused = head.replace(TOKEN, "wrong");
    assert_eq!(status(&mesh.send(refused).await), 401);
    assert_eq!(mesh.app.requests().len(), 1);
}

#[tokio::test]
async fn answers_that_have_no_body_end_with_their_head() {
    for (line, answer, code) in [
        (
            "HEAD / HTTP/1.1",
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            200,
        ),
        ("DELETE / HTTP/1.1", "HTTP/1.1 204 No Content\r\n\r\n", 204),
        (
            "GET / HTTP/1.1",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n",
            304,
        ),
    ] {
        let mesh = Mesh::open(RecordingApp::answering(Step::Answer(answer.into())).await).await;
        let response = mesh.send(mesh.head(line, "")).await;
        assert_eq!(status(&response), code, "{response}");
        assert!(response.ends_with("\r\n\r\n"), "{response}");
        assert_eq!(response.contains("content-length: 1000"), code == 200, "{response}");
    }
}

/// Sends a request over a kept connection and returns the answer's body, which the app made of the request.
async fn ask(stream: &mut TcpStream, port: u16, number: usize) -> String {
    let body = format!("body-{number}-").repeat(1 + number * 7 % 400);
    let head = format!(
        "POST /{number} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nX-Sandbox-ID: alpha\r\n\
         X-Sandbox-Port: {port}\r\nX-Number: {number}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_until(stream, b"\r\n\r\n").await.to_ascii_lowercase();
    assert_eq!(status(&head.replace("http/1.1", "HTTP/1.1")), 200, "{head}");
    let length = head
        .split("content-length: ")
        .nth(1)
        .unwrap()
        .split("\r\n")
        .next()
        .unwrap();
    let mut answer = vec![0; length.parse().unwrap()];
    timeout(PATIENCE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(
        answer,
        format!("/{number} {number} {body}"),
        "an answer for another request"
    );
    answer
}

#[tokio::test]
async fn two_hundred_parallel_requests_each_get_their_own_answer() {
    let app = RecordingApp::start(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Step::Wait;
        };
        let head = head.to_ascii_lowercase();
        let value = |name: &str| {
            head.split(name)
                .nth(1)
                .unwrap()
                .split("\r\n")
                .next()
                .unwrap()
                .to_owned()
        };
        if body.len() < value("content-length: ").parse().unwrap() {
            return Step::Wait;
        }
        let path = head.split(' ').nth(1).unwrap();
        Step::Answer(ok(&format!("{path} {} {body}", value("x-number: "))))
    });
    let mesh = Mesh::open(app.await).await;
    let (router, port) = (mesh.router, mesh.ports.app);
    let clients = (0..200).map(|client| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(router).await.unwrap();
            // Over the same connection again, and once over a new one.
            ask(&mut stream, port, client).await;
            ask(&mut stream, port, client + 1000).await;
            let mut stream = TcpStream::connect(router).await.unwrap();
            ask(&mut stream, port, client + 2000).await;
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert_eq!(mesh.app.requests().len(), 600);
}
