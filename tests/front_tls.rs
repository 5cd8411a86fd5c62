//! The router's own HTTPS listener: whom it shows itself as, whom it takes a client for, and how both change while it
//! runs.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::{Authority, LeafSpec, Usage};
use sandgate_mesh::policy::model::{Snapshot, Source};
use sandgate_tests::front::{Front, NAME, client, config, everybody, server};
use sandgate_tests::processes::until_metric;
use sandgate_tests::{Mesh, Ports, TOKEN, field, read_until, rule, send, status, tls_1_2_hello};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, ClientConnection};

/// A policy that admits these and nobody else.
fn only(source: Source) -> impl FnOnce(Ports) -> Snapshot {
    |ports| rule(source, ports.app, &[], &[])
}

fn user(name: &str) -> Source {
    Source {
        users: Some(vec![name.into()]),
        ..Source::default()
    }
}

/// Uses a connection that stays open.
async fn assert_served(stream: &mut TlsStream<TcpStream>, mesh: &Mesh) {
    let head = mesh.head("GET / HTTP/1.1", "").replace("Connection: close\r\n", "");
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(stream, b"hello").await;
    assert_eq!(status(&answer), 200, "{answer}");
}

#[tokio::test]
async fn a_request_over_https_arrives_and_its_app_is_told_so_whatever_the_client_says() {
    let front = Front::open("off").await;
    let head = front.mesh.head("GET /page HTTP/1.1", "X-Forwarded-Proto: http\r\n");
    let response = front.send(None, &head).await;
    assert_eq!(status(&response), 200, "{response}");
    let arrived = front.mesh.app.take_only_request().head;
    assert!(arrived.starts_with("GET /page HTTP/1.1\r\n"), "{arrived}");
    assert_eq!(field(&arrived, "x-forwarded-proto"), ["https"], "{arrived}");
    // The plain listener goes on beside it, and can't be made to say the same.
    let head = head.replace("X-Forwarded-Proto: http\r\n", "X-Forwarded-Proto: https\r\n");
    assert_eq!(status(&send(front.http, head).await), 200);
    let arrived = front.mesh.app.take_only_request().head;
    assert_eq!(field(&arrived, "x-forwarded-proto"), ["http"], "{arrived}");
}

#[tokio::test]
async fn a_router_without_a_plain_listener_serves_https_alone() {
    let flags = ["--http-bind-address=", "--auth-token=", "--authz-mode=allow-all"];
    let front = Front::start_with("off", &flags, everybody).await;
    assert_eq!((front.http.port(), front.status(None).await), (0, 200));
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_to_new_clients_and_costs_those_that_are_there_nothing() {
    let front = Front::open("off").await;
    let mut old = front.connect(&front.authority, None).await.unwrap();
    assert_served(&mut old, &front.mesh).await;
    let successor = Authority::new("successor").unwrap();
    let mut leaf = LeafSpec::new("front", "", Usage::Server);
    (leaf.uris, leaf.dns) = (vec![], vec![NAME.into()]);
    leaf.not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let issued = successor.issue(&leaf).unwrap();
    assert!(front.connect(&successor, None).await.is_err());
    // One file after the other: between them the two don't fit together, and the old ones serve on.
    front.folder.rename_over("tls.key", &issued.key_pem);
    front.reloads("failure", 1).await;
    front.connect(&front.authority, None).await.unwrap();
    front.folder.rename_over("tls.crt", &issued.chain_pem);
    front.reloads("success", 1).await;
    until_metric(
        front.metrics,
        "sandbox_router_https_certificate_not_after_seconds",
        "4000000000",
    )
    .await;
    let mut new = front.connect(&successor, None).await.unwrap();
    assert!(front.connect(&front.authority, None).await.is_err());
    assert_served(&mut new, &front.mesh).await;
    assert_served(&mut old, &front.mesh).await;
    assert_eq!(front.mesh.app.requests().len(), 3);
}

#[tokio::test]
async fn files_that_cannot_be_used_change_nothing() {
    let front = Front::open("required").await;
    let alice = client(&front.authority, "alice", &[]);
    let foreign = server(&Authority::new("other").unwrap()).chain_pem;
    let (chain, bundle) = (front.folder.path("tls.crt"), front.authority.root_pem());
    let chain = std::fs::read_to_string(chain).unwrap();
    let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let mut failures = 0;
    for (file, good, bad) in [
        (
            "tls.crt",
            chain.as_str(),
            ["", empty, &chain[..chain.len() / 2], &foreign],
        ),
        (
            "clients.crt",
            bundle,
            ["", empty, &bundle[..bundle.len() / 2], "no certificate\n"],
        ),
    ] {
        for bad in bad {
            front.folder.rename_over(file, bad);
            failures += 1;
            front.reloads("failure", failures).await;
            let found = (front.status(Some(&alice)).await, front.status(None).await);
            assert_eq!(found, (200, 0), "{file}: {bad:?}");
        }
        std::fs::remove_file(front.folder.path(file)).unwrap();
        failures += 1;
        front.reloads("failure", failures).await;
        assert_eq!(
            (front.status(Some(&alice)).await, front.status(None).await),
            (200, 0),
            "no {file}"
        );
        front.folder.rename_over(file, good);
        front.reloads("success", failures / 5).await;
    }
}

#[tokio::test]
async fn a_client_is_the_caller_that_its_certificate_names_and_no_other() {
    let id = "spiffe://partner.example/ns/a/sa/alice";
    let spiffe = Source {
        spiffe_ids: Some(vec![id.into()]),
        ..Source::default()
    };
    for mode in ["optional", "required"] {
        let by_name = Front::start(mode, only(user("cert:alice"))).await;
        let by_id = Front::start(mode, only(spiffe.clone())).await;
        for (common_name, uris, named, identified) in [
            ("alice", vec![], 200, 403),
            ("alice", vec!["https://partner.example/alice"], 200, 403),
            ("Alice", vec![], 403, 403),
            ("alice ", vec![], 403, 403),
            ("cert:alice", vec![], 403, 403),
            ("bob", vec![], 403, 403),
            ("bob", vec![id], 403, 200),
            ("alice", vec![id], 403, 200),
            (id, vec![], 403, 403),
            ("alice", vec!["spiffe://partner.example/ns/a/sa/alice2"], 403, 403),
            ("static:alice", vec!["spiffe://partner.example/ns/a/sa"], 403, 403),
        ] {
            for (front, expected) in [(&by_name, named), (&by_id, identified)] {
                let leaf = client(&front.authority, common_name, &uris);
                let found = front.status(Some(&leaf)).await;
                assert_eq!(found, expected, "{mode}: {common_name:?}, {uris:?}");
            }
        }
        for front in [by_name, by_id] {
            let nobody = if mode == "optional" { 403 } else { 0 };
            assert_eq!(front.status(None).await, nobody, "{mode}: no certificate");
            let served = front.mesh.app.requests().len();
            assert_eq!(served, 2, "{mode}");
        }
    }
}

#[tokio::test]
async fn a_connection_lasts_no_longer_than_what_its_client_has_proven() {
    let front = Front::open("required").await;
    let mut leaf = LeafSpec::new("alice", "", Usage::Client);
    (leaf.uris, leaf.not_after) = (vec![], SystemTime::now() + Duration::from_secs(8));
    let issued = front.authority.issue(&leaf).unwrap();
    let mut stream = front.connect(&front.authority, Some(&issued)).await.unwrap();
    assert_served(&mut stream, &front.mesh).await;
    // By itself, and long before a connection is idle for too long.
    let ended = timeout(Duration::from_secs(60), stream.read(&mut [0])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(SystemTime::now() > leaf.not_after - Duration::from_secs(1), "too early");
    assert_eq!(front.mesh.app.requests().len(), 1);
}

#[tokio::test]
async fn a_certificate_that_was_not_asked_for_makes_nobody_a_caller() {
    let front = Front::start("off", only(user("cert:alice"))).await;
    let alice = client(&front.authority, "alice", &[]);
    assert_eq!((front.status(Some(&alice)).await, front.status(None).await), (403, 403));
    front.mesh.app.assert_untouched("mode off");
}

#[tokio::test]
async fn certificates_that_do_not_verify_or_name_nobody_are_refused_and_never_anonymous() {
    for mode in ["optional", "required"] {
        // Even where everybody may do everything.
        let front = Front::open(mode).await;
        let own = &front.authority;
        let stranger = Authority::new("front").unwrap();
        let good = LeafSpec {
            uris: vec![],
            ..LeafSpec::new("alice", "", Usage::Client)
        };
        let issue = |change: &dyn Fn(&mut LeafSpec)| {
            let mut leaf = good.clone();
            change(&mut leaf);
            own.issue(&leaf).unwrap()
        };
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        for (name, leaf) in [
            ("another authority of that name", client(&stranger, "alice", &[])),
            ("for servers", issue(&|leaf| leaf.usages = vec![Usage::Server])),
            (
                "expired",
                issue(&|leaf| (leaf.not_before, leaf.not_after) = (now - 2 * hour, now - hour)),
            ),
            ("not yet valid", issue(&|leaf| leaf.not_before = now + hour)),
            ("no name", issue(&|leaf| leaf.common_name = String::new())),
            ("a long name", issue(&|leaf| leaf.common_name = "a".repeat(65))),
            (
                "a name of two lines",
                issue(&|leaf| leaf.common_name = "alice\nbob".into()),
            ),
            (
                "two SPIFFE IDs",
                client(own, "alice", &["spiffe://a.example/b", "spiffe://a.example/c"]),
            ),
            (
                "a SPIFFE ID and more",
                client(own, "alice", &["spiffe://a.example/b", "https://a.example"]),
            ),
            (
                "a malformed SPIFFE ID",
                client(own, "alice", &["spiffe://a.example/../b"]),
            ),
            (
                "a SPIFFE ID in capitals",
                client(own, "alice", &["SPIFFE://a.example/b"]),
            ),
        ] {
            assert_eq!(front.status(Some(&leaf)).await, 0, "{mode}: {name}");
            front.mesh.app.assert_untouched(name);
        }
        assert_eq!(front.status(Some(&issue(&|_| {}))).await, 200, "{mode}");
    }
}

#[tokio::test]
async fn a_certificate_is_no_token_where_tokens_are_asked_for() {
    let front = Front::start_with("required", &[], everybody).await;
    let alice = client(&front.authority, "alice", &[]);
    let head = front.mesh.head("GET / HTTP/1.1", "");
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let response = front.send(Some(&alice), head.replace(&token, "")).await;
    assert_eq!(status(&response), 401, "{response}");
    front.mesh.app.assert_untouched("no token");
    assert_eq!(status(&front.send(Some(&alice), head).await), 200);
}

#[tokio::test]
async fn other_protocols_and_stalled_handshakes_on_the_https_port_get_no_answer_and_hold_up_nobody() {
    let front = Front::open("off").await;
    let name = NAME.try_into().unwrap();
    let mut hello = Vec::new();
    let mut half_client = ClientConnection::new(config(&front.authority, None), name).unwrap();
    half_client.write_tls(&mut hello).unwrap();
    let mut stalled = Vec::new();
    for bytes in [&b""[..], &hello[..1], &hello[..hello.len() / 2], &hello] {
        for _ in 0..100 {
            let mut stream = TcpStream::connect(front.https).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stalled.push(stream);
        }
    }
    let plain = front.mesh.head("GET / HTTP/1.1", "");
    for (name, bytes) in [
        ("TLS 1.2", tls_1_2_hello()),
        ("plain HTTP", plain.clone().into_bytes()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("garbage", vec![0xff; 70_000]),
    ] {
        let response = send(front.https, bytes).await;
        assert!(!response.contains("HTTP/"), "{name}: {response:?}");
        if name == "TLS 1.2" {
            assert_eq!(
                response.as_bytes(),
                [0x15, 3, 3, 0, 2, 2, 70],
                "no alert protocol_version"
            );
        }
    }
    let mut config = ClientConfig::clone(&config(&front.authority, None));
    config.alpn_protocols = vec![b"h3".to_vec()];
    let stream = TcpStream::connect(front.https).await.unwrap();
    let connected = TlsConnector::from(Arc::new(config))
        .connect(NAME.try_into().unwrap(), stream)
        .await;
    assert!(connected.is_err(), "another protocol was agreed on");
    front.mesh.app.assert_untouched("no HTTPS");
    assert_eq!(status(&front.send(None, plain).await), 200);
    // TLS on the plain port is no request either.
    assert_eq!(status(&send(front.http, hello).await), 400);
    assert_eq!(front.mesh.app.requests().len(), 1);
    drop(stalled);
}
