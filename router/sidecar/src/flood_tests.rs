use crate::authority::{Authority, LeafSpec, Usage};
use crate::*;
use sandgate_mesh::credentials::Role;
use sandgate_mesh::drain;
use std::io::ErrorKind;
use tokio::io::AsyncReadExt;

const PATIENCE: Duration = Duration::from_secs(10);

/// A gate with room for so many handshakes.
fn gate(handshakes: usize) -> Arc<Gate> {
    let authority = Authority::new("mesh").unwrap();
    let name = "spiffe://cluster.local/ns/team-a/sandbox/alpha/pod/u1";
    let issued = authority.issue(&LeafSpec::new("gate", name, Usage::Server)).unwrap();
    let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
    let (bundle, domain) = (authority.root_pem().as_bytes(), "cluster.local".parse().unwrap());
    let credentials = MeshCredentials::from_pem(Role::Sidecar, chain, key, bundle, &domain).unwrap();
    let PeerId::Sandbox(own) = name.parse().unwrap() else {
        panic!("{name}");
    };
    let settings = Settings {
        sandbox: own.sandbox,
        pod_uid: own.pod_uid,
        routers: vec![],
        own_ports: OwnPorts { mesh: 1, health: 2 },
        caps: Caps {
            handshakes,
            ..Caps::default()
        },
        framing: Arc::default(),
        proxy_timeout: PATIENCE,
        audit: false,
    };
    let (_, credentials) = watch::channel(Some(Arc::new(credentials)));
    Gate::new(settings, credentials, watch::channel(None).1).unwrap()
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "this is a client")]
async fn a_flood_of_handshakes_from_one_address_ends_none_of_another() {
    let (gate, (_drain, draining)) = (gate(4), drain::channel());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut clients = Vec::new();
    for from in ["10.0.0.1:1"].into_iter().chain(["10.0.0.2:1"; 8]) {
        clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let (stream, _) = listener.accept().await.unwrap();
        gate.meet(stream, from.parse().unwrap(), &draining);
    }
    let mut ended = clients.split_off(1);
    let waiting = ended.split_off(5);
    for mut client in ended {
        let end = tokio::time::timeout(PATIENCE, client.read(&mut [0])).await;
        assert!(!matches!(end.expect("the flood keeps its places"), Ok(1..)));
    }
    for client in clients.iter().chain(&waiting) {
        let error = client.try_read(&mut [0]).expect_err("a handshake was ended");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}
