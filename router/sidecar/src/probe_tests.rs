use super::*;
use std::future::Future;
use std::pin::Pin;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const OWN: OwnPorts = OwnPorts {
    mesh: 14443,
    health: 14480,
};

fn declared(kind: &str, handler: &str, port: u16) -> AppProbes {
    let json = format!(
        r#"{{"version":1,"probes":[{{"container":"app","kind":"{kind}","timeoutSeconds":5,"{handler}":{{"port":{port}}}}}]}}"#
    );
    json.parse().unwrap()
}

/// The app's listener, and what runs its only probe.
async fn app(
    kind: &str,
) -> (
    TcpListener,
    impl Fn() -> Pin<Box<dyn Future<Output = ProbeAnswer> + Send>>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let runner = runner(&declared(kind, "httpGet", port), &OWN, &Arc::default()).unwrap();
    let path = format!("/app-probe/app/{kind}");
    (listener, move || runner(&path).unwrap())
}

/// Takes the next connection and answers the request on it.
async fn answer_once(listener: &TcpListener, answer: &str) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut request).await.unwrap() > 0);
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
}

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const BAD: &str = "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn whoever_asks_during_a_run_or_just_after_it_shares_its_result() {
    let (listener, probe) = app("readinessProbe").await;
    let mut askers: JoinSet<_> = (0..20).map(|_| probe()).collect();
    answer_once(&listener, BAD).await;
    while let Some(answer) = askers.join_next().await {
        assert_eq!(answer.unwrap(), ProbeAnswer::Failure);
    }
    assert_eq!(probe().await, ProbeAnswer::Failure);
    // Nobody else came: the next to come is the one that is answered well.
    tokio::time::advance(REST).await;
    let (answer, ()) = tokio::join!(probe(), answer_once(&listener, GOOD));
    assert_eq!(answer, ProbeAnswer::Success);
}

#[tokio::test(start_paused = true)]
async fn a_run_goes_on_when_who_asked_for_it_has_gone() {
    let (listener, probe) = app("livenessProbe").await;
    let mut first = probe();
    assert!(timeout(Duration::ZERO, &mut first).await.is_err());
    drop(first);
    let (answer, ()) = tokio::join!(probe(), answer_once(&listener, GOOD));
    assert_eq!(answer, ProbeAnswer::Success);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_never_answers_has_failed_after_the_declared_time() {
    for (kind, expected) in [
        ("startupProbe", ProbeAnswer::Failure),
        ("preStop", ProbeAnswer::NoAnswer),
    ] {
        let (_listener, probe) = app(kind).await;
        let started = Instant::now();
        assert_eq!(probe().await, expected);
        assert_eq!(started.elapsed().as_secs(), 5);
    }
}

#[tokio::test]
async fn only_what_was_declared_is_run() {
    let runner = runner(&declared("readinessProbe", "tcpSocket", 1), &OWN, &Arc::default()).unwrap();
    assert!(runner("/app-probe/app/readinessProbe").is_some());
    for other in [
        "/app-probe/app/livenessProbe",
        "/app-probe/app",
        "/app-probe/",
        "/app-probe/app/readinessProbe/",
        "",
    ] {
        assert!(runner(other).is_none(), "{other}");
    }
}

#[test]
fn a_probe_of_the_gates_own_ports_is_refused_at_the_start() {
    let own = OwnPorts { mesh: 80, health: 81 };
    for port in [80, 81] {
        let error = runner(&declared("readinessProbe", "tcpSocket", port), &own, &Arc::default())
            .err()
            .unwrap();
        let wanted = format!("app probe /app-probe/app/readinessProbe: port {port} is the gate's own");
        assert_eq!(error.to_string(), wanted);
    }
}
