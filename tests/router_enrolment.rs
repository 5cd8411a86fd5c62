//! Routers that get their identity from a control plane, as processes: what they do for theirs, in their lives and after
//! them.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::Authority;
use sandgate_mesh::control::{ENROLMENT_PATH, IDENTITY_PATH, IdentityGrant, bundle_digest};
use sandgate_mesh::telemetry::utc;
use sandgate_mesh::tls::{ControlDialError, DialedStanding, HandshakeError, NotEnrolled};
use sandgate_tests::control::{ControlPlane, get};
use sandgate_tests::enrolled::TOKEN;
use sandgate_tests::enrolled_router::{ANCHORS_LOADED, NO_ANCHORS, ROUTER_POD_UID, RouterScene, router_pod};
use sandgate_tests::folder::{Replacing, put as put_files};
use sandgate_tests::load::Load;
use sandgate_tests::processes::{Programs, metric, router_identity, until_ready};
use sandgate_tests::{POD_UID, assert_detail, head_to, programs, sandbox, send, status};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

const PROGRAMS: Programs = programs!();
const NO_IDENTITY: &str = "The router has no valid identity.";

#[tokio::test]
async fn a_router_is_enrolled_serves_and_needs_nobody_after_a_crash() {
    let mut scene = RouterScene::born(PROGRAMS, &[]).await;
    until_ready(scene.health, (503, NO_ANCHORS)).await;
    // While it knows no root, anybody could say to be its control plane.
    let refused = scene.control.try_connect().await.err().unwrap();
    let unserved = matches!(refused, ControlDialError::Handshake(HandshakeError::Io(_)));
    assert!(unserved, "{refused}");
    let answer = send(scene.http, head_to(scene.app.port(), "GET / HTTP/1.1", "")).await;
    assert_detail(&answer, 503, NO_IDENTITY, "before its identity");

    scene.folder.rename_over("roots.crt", scene.authority.root_pem());
    until_ready(scene.health, (503, "no identity")).await;
    let control = &scene.control;
    let (_, standing) = control.connect().await;
    assert!(
        matches!(standing, DialedStanding::Unproven(NotEnrolled::Unverified(_))),
        "{standing:?}"
    );
    let enrolment = control.enrolment().await;
    assert_eq!(
        (enrolment.token.as_str(), enrolment.pod_uid.as_str()),
        (TOKEN, ROUTER_POD_UID)
    );
    assert_eq!((&enrolment.policy_digest, &enrolment.bundle_digest), (&None, &None));
    assert_eq!(control.enrolment().await, enrolment, "it waits");
    // The kubelet renews tokens.
    scene.folder.rename_over("token", format!("{TOKEN}.2"));
    assert_eq!(control.enrolment().await.token, format!("{TOKEN}.2"));
    let kept = || std::fs::read_dir(scene.folder.path("state")).unwrap().count();
    assert_eq!(kept(), 0, "a key that proves nothing");

    let grant = control.grant(&scene.authority, 1, &enrolment.csr, |_| {});
    let answer = control.put(IDENTITY_PATH, &grant).await;
    assert_eq!(status(&answer), 204, "{answer}");
    until_ready(scene.health, (200, "ok")).await;
    assert_eq!(kept(), 1);
    let file = std::fs::metadata(scene.folder.path("state/identity.json")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    scene.serves().await;
    assert!(control.finds_it_enrolled().await);
    let accepted = "sandbox_router_enrolments_total{outcome=\"accepted\"}";
    assert_eq!(metric(scene.metrics, accepted).await.as_deref(), Some("1"));

    // It starts again with what it has kept, and that is all it needs: the roots may have gone meanwhile.
    let shown = scene.control.shown().await;
    std::fs::remove_file(scene.folder.path("roots.crt")).unwrap();
    scene.crash().await;
    until_ready(scene.health, (200, "ok")).await;
    scene.serves().await;
    assert_eq!(scene.control.shown().await, shown);
    let enrolment = scene.control.enrolment().await;
    assert_eq!(enrolment.floor.counter, 1);
    assert_eq!(enrolment.bundle_digest, bundle_digest(scene.authority.root_pem()));
    scene.assert_log_has_no_secret();
}

#[tokio::test]
async fn renewals_and_new_roots_cost_no_request() {
    for flags in [&[][..], &["--max-keepalive-connections=0"]] {
        let mut scene = RouterScene::enrolled(PROGRAMS, flags).await;
        let port = scene.app.port();
        let request = |fields: &str| {
            let head = head_to(port, "GET / HTTP/1.1", fields);
            head.replacen("Connection: close\r\n", "", usize::from(fields.is_empty()))
        };
        let mut load = Load::start(request, &[scene.http]);
        load.goes_on().await;
        let mut shown = vec![scene.control.shown().await];
        for counter in 2..5 {
            scene.control.enrol(&scene.authority, counter).await;
            load.goes_on().await;
            let now = scene.control.shown().await;
            assert!(!shown.contains(&now), "the router shows an old leaf");
            shown.push(now);
        }
        // Bundles with the next root first, then leafs of that one, and at last the first root goes.
        let next = Authority::new("sandgate-tests-next").unwrap();
        let both = format!("{}{}", scene.authority.root_pem(), next.root_pem());
        let enrolment = scene.control.enrolment().await;
        let grant = IdentityGrant {
            bundle: both.clone(),
            ..scene.control.grant(&scene.authority, 5, &enrolment.csr, |_| {})
        };
        assert_eq!(status(&scene.control.put(IDENTITY_PATH, &grant).await), 204);
        load.goes_on().await;
        let gate = next.sidecar(&sandbox("alpha", POD_UID)).unwrap();
        put_files(&scene.folder, "sidecar", Replacing::AtOnce, &gate, &both);
        let loaded = "\"message\":\"loaded from changed files\",\"what\":\"mesh credentials\"";
        scene.gate.logs(loaded, 2).await;
        load.goes_on().await;
        // Whose control plane the router believes by its bundle: its anchors don't hold that root.
        let control = ControlPlane::new(&next, scene.mesh, router_pod()).of_router(router_identity());
        let enrolment = control.enrolment().await;
        let grant = IdentityGrant {
            bundle: both.clone(),
            ..control.grant(&next, 6, &enrolment.csr, |_| {})
        };
        assert_eq!(status(&control.put(IDENTITY_PATH, &grant).await), 204);
        load.goes_on().await;
        assert!(control.finds_it_enrolled().await);
        let grant = IdentityGrant {
            bundle: next.root_pem().into(),
            ..grant
        };
        assert_eq!(status(&control.put(IDENTITY_PATH, &grant).await), 204);
        load.goes_on().await;
        let gone = scene.control.send(get(ENROLMENT_PATH)).await;
        assert_eq!(gone, "", "the root that has left counts");
        assert!(control.finds_it_enrolled().await);
        load.stop().await;
    }
}

#[tokio::test]
async fn a_router_whose_identity_has_ended_dials_nobody_and_is_enrolled_again() {
    let mut scene = RouterScene::start(PROGRAMS, &[]).await;
    let csr = scene.control.enrolment().await.csr;
    let end = SystemTime::now() + Duration::from_secs(4);
    let short = |spec: &mut sandgate_local::authority::LeafSpec| spec.not_after = end;
    let grant = scene.control.grant(&scene.authority, 1, &csr, short);
    assert_eq!(status(&scene.control.put(IDENTITY_PATH, &grant).await), 204);
    until_ready(scene.health, (200, "ok")).await;
    scene.serves().await;
    let expired = format!("certificate expired at {}", utc(end));
    until_ready(scene.health, (503, &expired)).await;
    for crashed in [false, true] {
        if crashed {
            scene.crash().await;
            until_ready(scene.health, (503, &expired)).await;
        }
        let answer = send(scene.http, head_to(scene.app.port(), "GET / HTTP/1.1", "")).await;
        assert_detail(&answer, 503, NO_IDENTITY, "after its end");
        scene.app.assert_untouched("after its end");
        assert!(!scene.control.finds_it_enrolled().await);
    }
    scene.control.enrol(&scene.authority, 1).await;
    until_ready(scene.health, (200, "ok")).await;
    scene.serves().await;
}

/// The roots are followed as a kubelet changes them, and what can't be read changes nothing.
#[tokio::test]
async fn a_router_without_an_identity_follows_the_roots_that_are_published() {
    let mut scene = RouterScene::start(PROGRAMS, &[]).await;
    let next = Authority::new("sandgate-tests-next").unwrap();
    let control = ControlPlane::new(&next, scene.mesh, router_pod()).of_router(router_identity());
    assert_eq!(control.send(get(ENROLMENT_PATH)).await, "");
    scene
        .folder
        .rename_over("roots.crt", "-----BEGIN CERTIFICATE-----\nnone\n");
    scene.router.logs("changed files are not usable", 1).await;
    scene.control.enrolment().await;
    scene.folder.rename_over("roots.crt", next.root_pem());
    scene.router.logs(ANCHORS_LOADED, 2).await;
    control.enrolment().await;
    assert_eq!(scene.control.send(get(ENROLMENT_PATH)).await, "");
}

#[tokio::test]
async fn a_damaged_state_is_told_of_and_the_router_waits_for_its_control_plane() {
    let mut scene = RouterScene::enrolled(PROGRAMS, &[]).await;
    let path = scene.folder.path("state/identity.json");
    let kept = std::fs::read(&path).unwrap();
    // Half of it; and what another pod has kept, as if the folder had been handed on.
    let other = String::from_utf8(kept.clone()).unwrap();
    let other = other.replace(ROUTER_POD_UID, "another-pod");
    for damaged in [kept[..kept.len() / 2].to_vec(), other.into_bytes()] {
        std::fs::write(&path, damaged).unwrap();
        scene.crash().await;
        until_ready(scene.health, (503, "no identity")).await;
        scene.router.logs("what was kept can't be used", 1).await;
        let answer = send(scene.http, head_to(scene.app.port(), "GET / HTTP/1.1", "")).await;
        assert_detail(&answer, 503, NO_IDENTITY, "a damaged state");
        scene.app.assert_untouched("a damaged state");
        scene.control.enrol(&scene.authority, 1).await;
        until_ready(scene.health, (200, "ok")).await;
        scene.serves().await;
        scene.assert_log_has_no_secret();
    }
}

#[tokio::test]
async fn a_router_without_a_place_for_its_state_does_not_start() {
    let scene = RouterScene::start(PROGRAMS, &[]).await;
    let mut flags = vec!["--authz-mode=allow-all".to_owned()];
    for flag in [
        "http-bind-address",
        "metrics-bind-address",
        "health-probe-bind-address",
        "mesh-bind-address",
    ] {
        flags.push(format!("--{flag}=127.0.0.1:0"));
    }
    flags.push("--mesh-identity=spiffe://cluster.local/ns/a/sa/r".into());
    flags.push("--control-identity=spiffe://cluster.local/ns/a/sa/c".into());
    flags.push("--pod-uid=u1".into());
    for (flag, name) in [
        ("trust-anchors-file", "roots.crt"),
        ("token-file", "token"),
        ("state-folder", "nowhere"),
    ] {
        flags.push(format!("--mesh-{flag}={}", scene.folder.path(name).display()));
    }
    let left = sandgate_tests::processes::Process::start(sandgate_tests::processes::command(PROGRAMS.router, flags));
    let left = left.ended().await;
    assert_eq!(left.code, Some(1), "{}", left.stderr);
    assert!(
        left.stderr.contains("--mesh-state-folder") && left.stderr.contains("nowhere"),
        "{}",
        left.stderr
    );
}
