//! What isn't this protocol: other ones, silence, and sessions of earlier connections.

use super::*;

#[tokio::test]
async fn a_missing_or_other_alpn_is_refused_at_both_ends() {
    let mesh = Mesh::new();
    for protocols in [vec![], vec![b"http/1.1".to_vec()], vec![b"sandgate-h1/2".to_vec()]] {
        let mut router = ClientConfig::clone(&mesh.router);
        router.alpn_protocols.clone_from(&protocols);
        let refusal = meet(&mesh.gate, &Arc::new(router)).await.0.unwrap_err();
        assert!(matches!(refusal, HandshakeError::Alpn), "{refusal}");
        let mut gate = ServerConfig::clone(&mesh.gate);
        gate.alpn_protocols = protocols;
        let refusal = router_refuses(&Arc::new(gate), &mesh.router).await;
        assert!(matches!(refusal, HandshakeError::Alpn), "{refusal}");
    }
}

/// What the gate answers to `bytes`, and why it refused them.
async fn send_raw(bytes: &[u8]) -> (Vec<u8>, HandshakeError) {
    let mesh = Mesh::new();
    let (mut near, far) = sockets().await;
    near.write_all(bytes).await.unwrap();
    let refusal = accept_requests(far, mesh.gate).await.unwrap_err();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    (answer, refusal)
}

#[tokio::test]
async fn tls_1_2_is_refused_with_protocol_version() {
    let extensions = [
        [0, 0x0a, 0, 4, 0, 2, 0, 0x17].as_slice(), // supported_groups: P-256
        &[0, 0x0b, 0, 2, 1, 0],                    // ec_point_formats: uncompressed
        &[0, 0x0d, 0, 4, 0, 2, 4, 3],              // signature_algorithms: ecdsa_secp256r1_sha256
    ]
    .concat();
    let body = [
        [3, 3].as_slice(),
        &[0x5a; 32],         // random
        &[0],                // no session
        &[0, 2, 0xc0, 0x2b], // ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        &[1, 0],             // no compression
        &[0, u8::try_from(extensions.len()).unwrap()],
        &extensions,
    ]
    .concat();
    let length = u8::try_from(body.len()).unwrap();
    let hello = [[0x16, 3, 1, 0, length + 4].as_slice(), &[1, 0, 0, length], &body].concat();
    let (answer, refusal) = send_raw(&hello).await;
    assert_eq!(
        answer,
        [0x15, 3, 3, 0, 2, 2, 70],
        "a fatal alert, protocol_version; {refusal}"
    );
    assert!(
        matches!(refusal, HandshakeError::Tls(rustls::Error::PeerIncompatible(_))),
        "{refusal}"
    );
}

#[tokio::test]
async fn plaintext_is_refused_and_named() {
    let (_, refusal) = send_raw(b"GET / HTTP/1.1\r\nHost: alpha\r\n\r\n").await;
    assert!(matches!(refusal, HandshakeError::NotTls), "{refusal}");

    let mesh = Mesh::new();
    let (near, mut far) = sockets().await;
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let refusal = connect_mesh(near, mesh.router).await.unwrap_err();
    assert!(matches!(refusal, HandshakeError::NotTls), "{refusal}");
}

#[tokio::test]
async fn a_peer_that_stalls_is_given_up_at_both_ends() {
    let mesh = Mesh::new();
    let ((_quiet, far), (near, _silent)) = (sockets().await, sockets().await);
    let started = Instant::now();
    let (accepted, connected) = tokio::join!(accept_requests(far, mesh.gate), connect_mesh(near, mesh.router));
    assert!(matches!(accepted.unwrap_err(), HandshakeError::TimedOut));
    assert!(matches!(connected.unwrap_err(), HandshakeError::TimedOut));
    assert!((HANDSHAKE_TIMEOUT..2 * HANDSHAKE_TIMEOUT).contains(&started.elapsed()));
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_an_io_error() {
    let mesh = Mesh::new();
    let (near, far) = sockets().await;
    drop(near);
    let refusal = accept_requests(far, mesh.gate).await.unwrap_err();
    assert!(matches!(refusal, HandshakeError::Io(_)), "{refusal}");
}

#[tokio::test]
async fn nothing_is_ever_resumed_even_if_the_peer_would() {
    let mesh = Mesh::new();
    let mut eager_gate = ServerConfig::clone(&mesh.gate);
    eager_gate.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    eager_gate.send_tls13_tickets = 2;
    let mut eager_router = ClientConfig::clone(&mesh.router);
    eager_router.resumption = Resumption::in_memory_sessions(8);
    let (eager_gate, eager_router) = (Arc::new(eager_gate), Arc::new(eager_router));
    assert_eq!(
        second_handshake(&eager_gate, &eager_router).await,
        HandshakeKind::Resumed,
        "two such would"
    );
    assert_eq!(second_handshake(&mesh.gate, &eager_router).await, HandshakeKind::Full);
    assert_eq!(second_handshake(&eager_gate, &mesh.router).await, HandshakeKind::Full);
}

async fn second_handshake(gate: &Arc<ServerConfig>, router: &Arc<ClientConfig>) -> HandshakeKind {
    let mut kind = None;
    for _ in 0..2 {
        let (near, far) = sockets().await;
        let gate = async {
            let (mut stream, _) = accept_requests(far, Arc::clone(gate)).await.unwrap();
            stream.write_u8(7).await.unwrap();
        };
        let router = async {
            let (mut stream, _) = connect_mesh(near, Arc::clone(router)).await.unwrap();
            stream.read_u8().await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        kind = tokio::join!(gate, router).1;
    }
    kind.unwrap()
}
