//! Gates that get their identity and their policy from a control plane, as processes: what they do for theirs, in their
//! lives and after them.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::Authority;
use sandgate_mesh::control::{ENROLMENT_PATH, IDENTITY_PATH, IdentityGrant, bundle_digest};
use sandgate_mesh::telemetry::utc;
use sandgate_mesh::tls::{DialedStanding, NotEnrolled};
use sandgate_tests::control::{ControlPlane, get};
use sandgate_tests::enrolled::{REFUSED, Scene, TOKEN};
use sandgate_tests::folder::{Replacing, put as put_files};
use sandgate_tests::load::Load;
use sandgate_tests::processes::{self, Programs, router_identity, until_metric, until_ready};
use sandgate_tests::{POD_UID, assert_detail, head_to, programs, send, status};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;

const PROGRAMS: Programs = programs!();

#[tokio::test]
async fn a_gate_is_enrolled_serves_and_needs_nobody_after_a_crash() {
    let mut scene = Scene::start(PROGRAMS).await;
    let control = &scene.control;
    let (_, standing) = control.connect().await;
    assert!(
        matches!(standing, DialedStanding::Unproven(NotEnrolled::Unverified(_))),
        "{standing:?}"
    );
    let enrolment = control.enrolment().await;
    assert_eq!((enrolment.token.as_str(), enrolment.pod_uid.as_str()), (TOKEN, POD_UID));
    assert_eq!(enrolment.policy_digest, None);
    assert_eq!(control.enrolment().await, enrolment, "it waits");
    assert_eq!(scene.kept(), ["ports.lock"], "a key that proves nothing");
    // The kubelet renews tokens.
    scene.folder.rename_over("token", format!("{TOKEN}.2"));
    assert_eq!(control.enrolment().await.token, format!("{TOKEN}.2"));

    let grant = control.grant(&scene.authority, 1, &enrolment.csr, |_| {});
    let answer = control.put(IDENTITY_PATH, &grant).await;
    assert_eq!(status(&answer), 204, "{answer}");
    until_ready(scene.health, (503, "no policy snapshot")).await;
    control.push(scene.policy(1)).await;
    until_ready(scene.health, (200, "ok")).await;
    assert_eq!(scene.kept(), ["identity.json", "policy.json", "ports.lock"]);
    for file in ["state/identity.json", "state/policy.json"] {
        let mode = std::fs::metadata(scene.folder.path(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let (_router, http) = scene.router(&[]).await;
    scene.serves(http).await;

    let shown = scene.control.shown().await;
    let digest = scene.control.enrolment().await.policy_digest;
    assert!(digest.is_some());
    scene.crash().await;
    until_ready(scene.health, (200, "ok")).await;
    scene.serves(http).await;
    assert_eq!(scene.control.shown().await, shown);
    assert!(scene.control.finds_it_enrolled().await);
    let enrolment = scene.control.enrolment().await;
    assert_eq!((enrolment.floor.counter, enrolment.policy_digest), (1, digest));
    scene.assert_log_has_no_secret();
}

#[tokio::test]
async fn renewals_and_new_roots_cost_no_request() {
    let scene = Scene::enrolled(PROGRAMS).await;
    let (mut keeping, kept) = scene.router(&[]).await;
    let (mut fresh_ones, fresh) = scene.router(&["--max-keepalive-connections=0"]).await;
    let port = scene.app.port();
    let request = |fields: &str| {
        head_to(port, "GET / HTTP/1.1", fields).replacen("Connection: close\r\n", "", usize::from(fields.is_empty()))
    };
    let mut load = Load::start(request, &[kept, fresh]);
    load.goes_on().await;
    let mut shown = vec![scene.control.shown().await];
    for counter in 2..5 {
        scene.control.enrol(&scene.authority, counter).await;
        load.goes_on().await;
        let now = scene.control.shown().await;
        assert!(!shown.contains(&now), "the gate shows an old leaf");
        shown.push(now);
    }
    // A bundle with the next root first, then leafs of that one, and at last the first root goes.
    let next = Authority::new("sandgate-tests-next").unwrap();
    let both = format!("{}{}", scene.authority.root_pem(), next.root_pem());
    let with_both = |grant: IdentityGrant| IdentityGrant {
        bundle: both.clone(),
        ..grant
    };
    let enrolment = scene.control.enrolment().await;
    let grant = with_both(scene.control.grant(&scene.authority, 5, &enrolment.csr, |_| {}));
    assert_eq!(status(&scene.control.put(IDENTITY_PATH, &grant).await), 204);
    load.goes_on().await;
    let router = next.router(&router_identity()).unwrap();
    put_files(&scene.folder, "router", Replacing::AtOnce, &router, &both);
    for router in [&mut keeping, &mut fresh_ones] {
        router
            .logs(
                "\"message\":\"loaded from changed files\",\"what\":\"mesh credentials\"",
                1,
            )
            .await;
    }
    load.goes_on().await;
    // Whose control plane the gate believes by its bundle: its anchors don't hold that root.
    let control = ControlPlane::new(&next, scene.mesh, scene.control.sandbox.clone());
    let enrolment = control.enrolment().await;
    let grant = with_both(control.grant(&next, 6, &enrolment.csr, |_| {}));
    assert_eq!(status(&control.put(IDENTITY_PATH, &grant).await), 204);
    load.goes_on().await;
    assert!(control.finds_it_enrolled().await);
    let grant = IdentityGrant {
        bundle: next.root_pem().into(),
        ..grant
    };
    assert_eq!(status(&control.put(IDENTITY_PATH, &grant).await), 204);
    assert_eq!(control.enrolment().await.bundle_digest, bundle_digest(next.root_pem()));
    load.goes_on().await;
    assert_eq!(
        scene.control.send(get(ENROLMENT_PATH)).await,
        "",
        "the root that has left counts"
    );
    assert!(control.finds_it_enrolled().await);
    load.stop().await;
}

#[tokio::test]
async fn a_gate_whose_identity_has_ended_refuses_requests_and_is_enrolled_again() {
    let mut scene = Scene::start(PROGRAMS).await;
    let csr = scene.control.enrolment().await.csr;
    let end = SystemTime::now() + Duration::from_secs(5);
    let grant = scene
        .control
        .grant(&scene.authority, 1, &csr, |spec| spec.not_after = end);
    assert_eq!(status(&scene.control.put(IDENTITY_PATH, &grant).await), 204);
    scene.control.push(scene.policy(1)).await;
    until_ready(scene.health, (200, "ok")).await;
    let (_router, http) = scene.router(&["--upstream-max-retries=0"]).await;
    let expired = format!("certificate expired at {}", utc(end));
    until_ready(scene.health, (503, &expired)).await;
    for crashed in [false, true] {
        if crashed {
            scene.crash().await;
            until_ready(scene.health, (503, &expired)).await;
        }
        let answer = send(http, head_to(scene.app.port(), "GET / HTTP/1.1", "")).await;
        assert!(matches!(status(&answer), 502 | 503), "{answer}");
        scene.app.assert_untouched("after its end");
        assert!(!scene.control.finds_it_enrolled().await);
    }
    scene.control.enrol(&scene.authority, 1).await;
    until_ready(scene.health, (200, "ok")).await;
    scene.serves(http).await;
}

#[tokio::test]
async fn a_control_plane_that_is_gone_keeps_out_none_that_took_its_place() {
    let scene = Scene::start(PROGRAMS).await;
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(scene.control.connect().await.0);
    }
    // It serves as well as any: the oldest made room.
    assert_eq!(status(&scene.control.send(get(ENROLMENT_PATH)).await), 200);
    let closed = tokio::time::timeout(Duration::from_secs(10), open[0].read(&mut [0])).await;
    assert!(!matches!(closed.unwrap(), Ok(1..)));
    until_metric(scene.health, REFUSED, "2").await;
}

#[tokio::test]
async fn a_damaged_state_is_told_of_and_the_gate_waits_for_its_control_plane() {
    let mut scene = Scene::enrolled(PROGRAMS).await;
    let (_router, http) = scene.router(&[]).await;
    scene.serves(http).await;
    for (file, reason) in [("identity.json", "no identity"), ("policy.json", "no policy snapshot")] {
        scene.gate.kill().await;
        let path = scene.folder.path("state").join(file);
        let kept = std::fs::read(&path).unwrap();
        std::fs::write(&path, &kept[..kept.len() / 2]).unwrap();
        scene.restart().await;
        until_ready(scene.health, (503, reason)).await;
        scene.gate.logs("what was kept can't be used", 1).await;
        let answer = send(http, head_to(scene.app.port(), "GET / HTTP/1.1", "")).await;
        assert!(matches!(status(&answer), 502 | 503), "{answer}");
        scene.app.assert_untouched(file);
        scene.control.enrol(&scene.authority, 1).await;
        scene.control.push(scene.policy(1)).await;
        until_ready(scene.health, (200, "ok")).await;
        scene.serves(http).await;
        scene.assert_log_has_no_secret();
    }
}

#[tokio::test]
async fn a_gate_that_cannot_read_its_token_says_so_and_takes_it_when_it_is_there() {
    let mut scene = Scene::start(PROGRAMS).await;
    std::fs::remove_file(scene.folder.path("token")).unwrap();
    let answer = scene.control.send(get(ENROLMENT_PATH)).await;
    assert_detail(&answer, 503, "the token can't be read", "no token");
    scene.gate.logs("/token: ", 1).await;
    scene.folder.rename_over("token", TOKEN);
    assert_eq!(scene.control.enrolment().await.token, TOKEN);
}

#[tokio::test]
async fn a_gate_whose_clock_is_behind_says_so_and_is_ready_when_an_identity_counts() {
    let scene = Scene::start(PROGRAMS).await;
    let control = &scene.control;
    let start = SystemTime::now() + Duration::from_secs(3600);
    let refused = control.grant(&scene.authority, 1, &control.enrolment().await.csr, |spec| {
        spec.not_before = start;
    });
    let answer = control.put(IDENTITY_PATH, &refused).await;
    let detail = format!(
        "the identity can't be used: certificate not valid before {}; compare the clocks",
        utc(start)
    );
    assert_detail(&answer, 400, &detail, "put");
    let (status, text) = processes::get(scene.health, "/readyz").await;
    let expected = format!(
        "no identity; one came and was refused: certificate not valid before {}",
        utc(start)
    );
    assert!(
        status == 503 && text.starts_with(&expected) && text.contains("the clock here says 20"),
        "{text}"
    );
    assert!(
        scene.gate.stderr().contains("compare the clocks"),
        "{}",
        scene.gate.stderr()
    );
    // What tells the control plane how far the clock is away.
    let answer = control.send(get(ENROLMENT_PATH)).await;
    assert!(answer.to_ascii_lowercase().contains("\r\ndate: "), "{answer}");

    control.enrol(&scene.authority, 2).await;
    control.push(scene.policy(3)).await;
    until_ready(scene.health, (200, "ok")).await;
}
