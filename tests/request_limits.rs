//! What one caller and one sandbox may have of the router: who is one too many is told so, everybody else is served, and the
//! app sees only what was let in.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use futures_util::future::join_all;
use sandgate_mesh::policy::model::DefaultPolicy;
use sandgate_tests::api_server::{ApiServer, user};
use sandgate_tests::processes::get;
use sandgate_tests::websocket::{connect_raw, handshake};
use sandgate_tests::{
    Mesh, PATIENCE, POD_UID, RecordingApp, TOKEN, assert_detail, default_policy, field, ok, read_until, send, status,
    until,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

const CALLER_AT_ONCE: &str = "Too many concurrent requests from this caller (limit: 1).";
const SANDBOX_AT_ONCE: &str = "Too many concurrent requests to sandbox alpha (limit: 1).";
const ONE_EACH: &str = "--max-concurrent-requests-per-caller=1";

/// An app that answers as its path says, and counts what it was asked.
struct App {
    recording: RecordingApp,
    asked: Arc<AtomicUsize>,
    /// Those who are held are answered when it is true.
    release: watch::Sender<bool>,
}

impl App {
    async fn start() -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let (release, told) = watch::channel(false);
        let count = Arc::clone(&asked);
        let recording = RecordingApp::serving(move |stream| serve(stream, Arc::clone(&count), told.clone())).await;
        Self {
            recording,
            asked,
            release,
        }
    }

    /// How many requests have come, since it was last asked.
    fn asked(counter: &AtomicUsize) -> usize {
        counter.swap(0, Ordering::SeqCst)
    }
}

/// A 200 on a connection that isn't used again.
fn answer(body: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
    format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A name that no resolver asks a server for: its last label is too long.
fn nowhere() -> String {
    format!("--cluster-domain={}", "x".repeat(64))
}

async fn serve(mut stream: TcpStream, asked: Arc<AtomicUsize>, mut told: watch::Receiver<bool>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    asked.fetch_add(1, Ordering::SeqCst);
    let (head, mut rest) = (String::from_utf8(head).unwrap(), Vec::new());
    let answer = match head.split(' ').nth(1).unwrap() {
        "/socket" => b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            .to_vec(),
        "/break" => return,
        "/cut" => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel".to_vec(),
        "/begin" => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun".to_vec(),
        "/hold" => {
            tokio::select! {
                _ = told.wait_for(|released| *released) => answer("held"),
                _ = stream.read_to_end(&mut rest) => return,
            }
        }
        _ => answer("hello"),
    };
    let _ = stream.write_all(&answer).await;
    if !head.contains(" /cut ") {
        let _ = stream.read_to_end(&mut rest).await;
    }
}

/// A request that holds its place, once the app has it.
async fn held(router: SocketAddr, mesh: &Mesh, asked: &AtomicUsize) -> TcpStream {
    let mut stream = TcpStream::connect(router).await.unwrap();
    stream
        .write_all(mesh.head("GET /hold HTTP/1.1", "").as_bytes())
        .await
        .unwrap();
    until("the app is asked", || asked.load(Ordering::SeqCst) > 0).await;
    assert_eq!(App::asked(asked), 1);
    stream
}

/// Asks until somebody is let in: that a client has gone, the router learns in its own time.
async fn admitted_again(router: SocketAddr, request: &str) {
    let admitted = async {
        while status(&send(router, request).await) == 429 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, admitted).await.expect("no place was freed");
}

/// What the router counted over a limit.
async fn limited(metrics: SocketAddr, limit: &str) -> usize {
    let (_, text) = get(metrics, "/metrics").await;
    let name = format!("sandbox_router_limited_requests_total{{limit=\"{limit}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
}

#[tokio::test]
async fn a_callers_rate_lets_a_burst_through_and_says_when_to_come_again() {
    const BURST: usize = 3;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let flags = [
        "--workers=3",
        "--max-requests-per-second-per-caller=1",
        "--request-burst-per-caller=3",
    ];
    let router = mesh.bind_router("default/alpha", POD_UID, &flags);
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(std::future::pending()));
    let began = Instant::now();
    let answers = join_all((0..200).map(|_| send(http, mesh.head("GET /page HTTP/1.1", "")))).await;
    let admitted = answers.iter().filter(|answer| status(answer) == 200).count();
    let most = BURST + usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    assert!((BURST..=most).contains(&admitted), "{admitted} of {most}");
    let text = "Too many requests per second from this caller (limit: 1).";
    for refused in answers.iter().filter(|answer| status(answer) != 200) {
        assert_detail(refused, 429, text, "over the rate");
        assert_eq!(field(refused, "retry-after"), ["1"]);
    }
    assert_eq!(mesh.app.requests().len(), admitted, "the app saw what was refused");
    assert_eq!(limited(metrics, "caller-rate").await, 200 - admitted);
    // Who comes when he was told to is let in.
    for _ in 0..2 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(status(&send(http, mesh.head("GET /page HTTP/1.1", "")).await), 200);
    }
}

#[tokio::test]
async fn a_callers_place_is_free_again_however_its_request_ends() {
    let App {
        recording,
        asked,
        release: _release,
    } = App::start().await;
    let mesh = Mesh::open(recording).await;
    let nowhere = nowhere();
    for flags in [&[ONE_EACH][..], &[ONE_EACH, "--mesh=off"]] {
        let router = mesh.run_router(&[flags, &[nowhere.as_str()]].concat());
        let get = |path: &str, fields: &str| mesh.head(&format!("GET {path} HTTP/1.1"), fields);
        // Ends that are over when their answer has come.
        for (request, code) in [
            (get("/", ""), 200),
            (get("/break", ""), 502),
            (get("/hold", "X-Sandbox-Timeout: 0.3\r\n"), 504),
            (get("/", "").replace("ID: alpha", "ID: Alpha"), 400),
            (get("/", "").replace("ID: alpha", "ID: nobody"), 502),
            (get("/cut", ""), 200),
        ] {
            let answer = send(router, &request).await;
            assert_eq!(status(&answer), code, "{flags:?} {request}: {answer}");
            admitted_again(router, &get("/", "")).await;
        }
        App::asked(&asked);
        // The client goes away: before the answer, in the middle of it, and in a tunnel.
        drop(held(router, &mesh, &asked).await);
        admitted_again(router, &get("/", "")).await;
        let mut stream = TcpStream::connect(router).await.unwrap();
        stream.write_all(get("/begin", "").as_bytes()).await.unwrap();
        read_until(&mut stream, b"begun").await;
        assert_detail(&send(router, get("/", "")).await, 429, CALLER_AT_ONCE, "half an answer");
        drop(stream);
        admitted_again(router, &get("/", "")).await;
        let (tunnel, _) = connect_raw(router, mesh.ports.app, "").await;
        assert_detail(&send(router, get("/", "")).await, 429, CALLER_AT_ONCE, "a tunnel");
        let another = handshake(mesh.ports.app, "Connection: close\r\n");
        assert_detail(&send(router, another).await, 429, CALLER_AT_ONCE, "another tunnel");
        drop(tunnel);
        admitted_again(router, &get("/", "")).await;
        App::asked(&asked);
    }
}

#[tokio::test]
async fn over_the_limit_is_429_over_all_workers_and_the_app_is_not_asked() {
    let App {
        recording,
        asked,
        release,
    } = App::start().await;
    let mesh = Mesh::open(recording).await;
    let router = mesh.bind_router(
        "default/alpha",
        POD_UID,
        &["--workers=3", "--max-concurrent-requests-per-caller=2"],
    );
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(std::future::pending()));
    let mut held = [held(http, &mesh, &asked).await, held(http, &mesh, &asked).await];
    let text = "Too many concurrent requests from this caller (limit: 2).";
    let upload = mesh.head("POST /hold HTTP/1.1", "Content-Length: 600000\r\n") + &"u".repeat(600_000);
    for request in [
        mesh.head("GET / HTTP/1.1", ""),
        upload,
        handshake(mesh.ports.app, "Connection: close\r\n"),
    ] {
        for _ in 0..5 {
            let answer = send(http, &request).await;
            assert_detail(&answer, 429, text, "over the limit");
            assert_eq!(field(&answer, "retry-after"), ["1"]);
        }
    }
    assert_eq!(App::asked(&asked), 0, "the app was asked");
    assert_eq!(limited(metrics, "caller-concurrency").await, 15);
    // Who isn't known isn't counted, and hears nothing of limits.
    let unknown = mesh.head("GET / HTTP/1.1", "").replace(TOKEN, "wrong");
    assert_eq!(status(&send(http, unknown).await), 401);
    release.send_replace(true);
    for stream in &mut held {
        assert_eq!(status(&read_until(stream, b"held").await), 200);
    }
    let answers = join_all((0..2).map(|_| send(http, mesh.head("GET /hold HTTP/1.1", "")))).await;
    assert!(answers.iter().all(|answer| status(answer) == 200), "{answers:?}");
}

#[tokio::test]
async fn callers_share_nothing_and_one_is_one_whatever_he_changes() {
    let App {
        recording,
        asked,
        release: _release,
    } = App::start().await;
    let mesh = Mesh::open(recording).await;
    // Several tokens of one user, with other groups in each.
    let api_server = ApiServer::answering(|review| {
        let token = review["spec"]["token"].as_str().unwrap();
        user(token.split('-').next().unwrap(), &[token])
    });
    let api_server = api_server.await;
    let kubeconfig = api_server.flag();
    let router = mesh.run_router(&["--auth-token=", "--authz-mode=tokenreview", &kubeconfig, ONE_EACH]);
    let get = |token: &str| mesh.head("GET / HTTP/1.1", "").replace(TOKEN, token);
    let mut stream = TcpStream::connect(router).await.unwrap();
    let hold = get("alice-1").replace("GET / ", "GET /hold ");
    stream.write_all(hold.as_bytes()).await.unwrap();
    until("the app is asked", || asked.load(Ordering::SeqCst) == 1).await;
    for token in ["alice-1", "alice-2", "alice-3"] {
        let request = get(token).replace("Host:", "X-Forwarded-For: 192.0.2.9\r\nHost:");
        assert_detail(&send(router, request).await, 429, CALLER_AT_ONCE, token);
    }
    assert_eq!(status(&send(router, get("bob-1")).await), 200);
    assert_eq!(App::asked(&asked), 2);
}

#[tokio::test]
async fn callers_without_a_name_are_the_addresses_that_trusted_proxies_saw() {
    let App {
        recording,
        asked,
        release: _release,
    } = App::start().await;
    let mesh = Mesh::start(recording, |ports| {
        default_policy(DefaultPolicy::Anonymous, vec![ports.app])
    })
    .await;
    let flags = [
        "--auth-token=",
        "--authz-mode=allow-all",
        ONE_EACH,
        "--trusted-proxy-cidrs=127.0.0.0/8,10.0.0.0/8",
    ];
    let router = mesh.run_router(&flags);
    let get = |path: &str, hops: &str| {
        let fields = format!("X-Forwarded-For: {hops}\r\n");
        mesh.head(&format!("GET {path} HTTP/1.1"), &fields)
    };
    let mut stream = TcpStream::connect(router).await.unwrap();
    stream.write_all(get("/hold", "192.0.2.1").as_bytes()).await.unwrap();
    until("the app is asked", || asked.load(Ordering::SeqCst) == 1).await;
    for claimed in ["192.0.2.1", "203.0.113.9, 192.0.2.1", "192.0.2.1, 10.0.0.7"] {
        assert_detail(&send(router, get("/", claimed)).await, 429, CALLER_AT_ONCE, claimed);
    }
    assert_eq!(status(&send(router, get("/", "192.0.2.2")).await), 200);
    // From anybody else the header counts for nothing.
    let wary = mesh.run_router(&flags[..3]);
    App::asked(&asked);
    let mut other = TcpStream::connect(wary).await.unwrap();
    other.write_all(get("/hold", "192.0.2.1").as_bytes()).await.unwrap();
    until("the app is asked", || asked.load(Ordering::SeqCst) == 1).await;
    assert_detail(&send(wary, get("/", "192.0.2.2")).await, 429, CALLER_AT_ONCE, "made up");
    assert_eq!(App::asked(&asked), 1);
}

#[tokio::test]
async fn a_sandboxs_limit_holds_for_all_callers_together_and_for_no_other_sandbox() {
    let App {
        recording,
        asked,
        release: _release,
    } = App::start().await;
    let mesh = Mesh::open(recording).await;
    let api_server = ApiServer::answering(|review| user(review["spec"]["token"].as_str().unwrap(), &[])).await;
    let (kubeconfig, nowhere) = (api_server.flag(), nowhere());
    let flags = [
        "--auth-token=",
        "--authz-mode=tokenreview",
        &kubeconfig,
        "--max-concurrent-requests-per-sandbox=1",
        "--workers=2",
        &nowhere,
    ];
    let router = mesh.bind_router("default/alpha", POD_UID, &flags);
    let (http, metrics) = (router.http_address(), router.metrics_address());
    tokio::spawn(router.run(std::future::pending()));
    let request = |line: &str, token: &str| mesh.head(line, "").replace(TOKEN, token);
    let mut stream = TcpStream::connect(http).await.unwrap();
    stream
        .write_all(request("GET /hold HTTP/1.1", "alice").as_bytes())
        .await
        .unwrap();
    until("the app is asked", || asked.load(Ordering::SeqCst) == 1).await;
    let upload = mesh
        .head("POST / HTTP/1.1", "Content-Length: 600000\r\n")
        .replace(TOKEN, "bob");
    for request in [
        request("GET / HTTP/1.1", "alice"),
        request("GET / HTTP/1.1", "bob"),
        upload + &"u".repeat(600_000),
    ] {
        let answer = send(http, request).await;
        assert_detail(&answer, 429, SANDBOX_AT_ONCE, "over the sandbox's limit");
        assert_eq!(field(&answer, "retry-after"), ["1"]);
    }
    // A sandbox that nobody finds has no limit: names can be made up.
    for _ in 0..3 {
        let nobody = request("GET / HTTP/1.1", "bob").replace("ID: alpha", "ID: nobody");
        assert_eq!(status(&send(http, nobody).await), 502);
    }
    assert_eq!(App::asked(&asked), 1, "the app was asked");
    assert_eq!(limited(metrics, "sandbox-concurrency").await, 3);
    drop(stream);
    admitted_again(http, &request("GET / HTTP/1.1", "bob")).await;
}

#[tokio::test]
async fn without_gates_a_sandbox_is_its_address_whatever_it_is_called() {
    let App {
        recording,
        asked,
        release: _release,
    } = App::start().await;
    let mesh = Mesh::open(recording).await;
    // Another sandbox at another address, on the same port.
    let other = TcpListener::bind(("127.0.0.2", mesh.ports.app)).await.unwrap();
    let other = RecordingApp::answering_at(other, sandgate_tests::Step::Answer(ok("hello")));
    let flags = [
        "--mesh=off",
        "--allow-loopback-pod-ip",
        "--sandbox-endpoint=default/beta=127.0.0.2",
        "--max-concurrent-requests-per-sandbox=1",
    ];
    let router = mesh.run_router(&flags);
    let _held = held(router, &mesh, &asked).await;
    let called = |name: &str| {
        mesh.head("GET / HTTP/1.1", "X-Sandbox-Pod-IP: 127.0.0.1\r\n")
            .replace("ID: alpha", name)
    };
    for name in ["alpha", "gamma", "delta"] {
        let text = format!("Too many concurrent requests to sandbox {name} (limit: 1).");
        let answer = send(router, called(&format!("ID: {name}"))).await;
        assert_detail(&answer, 429, &text, name);
    }
    assert_eq!(status(&send(router, called("ID: beta")).await), 200);
    assert_eq!((App::asked(&asked), other.requests().len()), (0, 1));
}

#[tokio::test]
async fn a_sandboxs_rate_is_one_for_all_its_callers() {
    const BURST: usize = 2;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let api_server = ApiServer::answering(|review| user(review["spec"]["token"].as_str().unwrap(), &[])).await;
    let kubeconfig = api_server.flag();
    let router = mesh.run_router(&[
        "--auth-token=",
        "--authz-mode=tokenreview",
        &kubeconfig,
        "--max-requests-per-second-per-sandbox=1",
        "--request-burst-per-sandbox=2",
    ]);
    let began = Instant::now();
    // No more than may be reviewed at once.
    let answers = join_all((0..30).map(|number| {
        let request = mesh
            .head("GET / HTTP/1.1", "")
            .replace(TOKEN, &format!("caller-{number}"));
        send(router, request)
    }));
    let answers = answers.await;
    let admitted = answers.iter().filter(|answer| status(answer) == 200).count();
    let most = BURST + usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    assert!((BURST..=most).contains(&admitted), "{admitted} of {most}");
    let text = "Too many requests per second to sandbox alpha (limit: 1).";
    for refused in answers.iter().filter(|answer| status(answer) != 200) {
        assert_detail(refused, 429, text, "over the rate");
        assert_eq!(field(refused, "retry-after"), ["1"]);
    }
    assert_eq!(mesh.app.requests().len(), admitted, "the app saw what was refused");
}

#[tokio::test]
async fn without_limits_nobody_is_refused() {
    let App {
        recording,
        asked,
        release,
    } = App::start().await;
    let mesh = Mesh::open(recording).await;
    let router = mesh.run_router(&["--max-concurrent-requests-per-caller=0"]);
    let requests: Vec<_> = (0..100)
        .map(|_| tokio::spawn(send(router, mesh.head("GET /hold HTTP/1.1", ""))))
        .collect();
    until("all are under way", || asked.load(Ordering::SeqCst) == 100).await;
    release.send_replace(true);
    for answer in join_all(requests).await {
        assert_eq!(status(&answer.unwrap()), 200);
    }
}
