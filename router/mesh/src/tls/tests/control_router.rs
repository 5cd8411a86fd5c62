//! Handshakes of a router's control API: what a router has proven to the control plane that dialed it, by a leaf that is for
//! clients.

use super::control::Scene;
use super::*;
use tokio::sync::watch;

/// What a control plane makes of a router that holds this identity.
async fn dial(scene: &Scene, identity: Option<&MeshCredentials>, dialed: &Dialed) -> DialedStanding {
    let (near, far) = sockets().await;
    let config = control_server_config(&scene.trust, identity, SystemTime::now()).unwrap();
    let control_plane = scene.control_plane();
    let (accepted, connected) = tokio::join!(
        accept_mesh(far, |purpose| (purpose == Purpose::Control).then_some(config)),
        connect_control(near, &control_plane, dialed),
    );
    accepted.unwrap();
    connected.unwrap().1
}

fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.trust.role = Role::Router;
    scene
}

#[tokio::test]
async fn a_router_has_proven_to_be_enrolled_by_its_own_leaf_only() {
    let (scene, stranger) = (scene(), Scene::new());
    let router = Dialed::Router(ROUTER.parse().unwrap());
    let identity = |authority: &Authority, change: &dyn Fn(&mut LeafSpec)| {
        let mut spec = LeafSpec::new("router", ROUTER, Usage::Client);
        change(&mut spec);
        credentials(Role::Router, &authority.issue(&spec).unwrap(), authority)
    };
    let own = identity(&scene.authority, &|_| {});
    let standing = dial(&scene, Some(&own), &router).await;
    let until = own.validity().not_after;
    assert_eq!(standing, DialedStanding::Enrolled { until });

    let other = identity(&scene.authority, &|spec| {
        spec.uris = vec![ROUTER.replace("/sa/", "/sa/other-")];
    });
    for (name, identity, rejected) in [
        ("without an identity", None, false),
        ("another workload's", Some(&other), true),
    ] {
        match dial(&scene, identity, &router).await {
            DialedStanding::Unproven(NotEnrolled::Identity(PeerRejected::OtherRouter { .. })) => {
                assert!(rejected, "{name}");
            }
            DialedStanding::Unproven(NotEnrolled::Unverified(_)) => assert!(!rejected, "{name}"),
            found => panic!("{name}: {found:?}"),
        }
    }
    // Under another authority's root it presents a leaf that nobody can verify.
    let (near, far) = sockets().await;
    let leaf = identity(&stranger.authority, &|_| {});
    let stand_in = ControlTrust {
        stand_in: Arc::clone(leaf.certified_key()),
        ..scene.trust.clone()
    };
    let config = control_server_config(&stand_in, None, SystemTime::now()).unwrap();
    let control_plane = scene.control_plane();
    let (_, connected) = tokio::join!(
        accept_mesh(far, |_| Some(config)),
        connect_control(near, &control_plane, &router)
    );
    let standing = connected.unwrap().1;
    assert!(
        matches!(standing, DialedStanding::Unproven(NotEnrolled::Unverified(_))),
        "{standing:?}"
    );
}

/// Neither end's kind of leaf counts for the other's.
#[tokio::test]
async fn a_gates_leaf_is_no_routers_and_a_routers_is_no_gates() {
    let scene = Scene::new();
    let gate = scene.authority.issue(&LeafSpec::new("gate", SANDBOX, Usage::Server));
    let gate = credentials(Role::Sidecar, &gate.unwrap(), &scene.authority);
    let router = Dialed::Router(ROUTER.parse().unwrap());
    let standing = dial(&scene, Some(&gate), &router).await;
    assert!(matches!(standing, DialedStanding::Unproven(_)), "{standing:?}");

    let scene = self::scene();
    let router = scene.authority.issue(&LeafSpec::new("router", ROUTER, Usage::Client));
    let router = credentials(Role::Router, &router.unwrap(), &scene.authority);
    let standing = dial(&scene, Some(&router), &expected(SANDBOX).into()).await;
    assert!(matches!(standing, DialedStanding::Unproven(_)), "{standing:?}");
    // And each serves with its own kind only.
    let refused = control_server_config(&scene.trust, Some(&gate), SystemTime::now());
    assert!(matches!(refused, Err(TlsError::WrongRole { .. })));
}

#[tokio::test]
async fn without_a_root_nobody_is_served_until_there_is_one() {
    let mut scene = scene();
    let (believe, anchors) = watch::channel(None);
    let roots = std::mem::replace(&mut scene.trust.anchors, anchors);
    let made = |scene: &Scene| control_server_config(&scene.trust, None, SystemTime::now());
    assert!(matches!(made(&scene), Err(TlsError::Verifier(_))));
    believe.send_replace(roots.borrow().clone());
    assert!(made(&scene).is_ok());
}
