//! Whoever comes to a router's mesh port without being its control plane, and control planes that bring what can't be used:
//! none of it changes anything, none of it gets to a gate or an app, and nobody hears the token.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::{Authority, LeafSpec, Usage};
use sandgate_mesh::contract::{ALPN_CONTROL, ALPN_MESH_HTTP1};
use sandgate_mesh::control::{ENROLMENT_PATH, IDENTITY_PATH, IdentityGrant, MAX_BODY_BYTES, POLICY_PATH};
use sandgate_mesh::policy::model::Generation;
use sandgate_tests::control::{CONTROL, ControlPlane, get, intrude, put};
use sandgate_tests::enrolled::TOKEN;
use sandgate_tests::enrolled_router::{ANCHORS_LOADED, REFUSED, RouterScene, router_pod};
use sandgate_tests::processes::{Programs, metric, router_identity, until_metric, until_ready};
use sandgate_tests::strangers::strangers;
use sandgate_tests::{POD_UID, ROUTER, WORKLOAD, head_to, programs, sandbox, status};
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;

const PROGRAMS: Programs = programs!();
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_a_router_cannot_use_changes_nothing() {
    let scene = RouterScene::enrolled(PROGRAMS, &[]).await;
    let control = &scene.control;
    control.enrol(&scene.authority, 3).await;
    let (csr, shown) = (control.enrolment().await.csr, scene.control.shown().await);
    let good = control.grant(&scene.authority, 3, &csr, |_| {});
    let grant = |change: &dyn Fn(&mut LeafSpec)| control.grant(&scene.authority, 3, &csr, change);
    let other_csr = RouterScene::start(PROGRAMS, &[]).await.control.enrolment().await.csr;
    let (now, foreign) = (SystemTime::now(), Authority::new("sandgate-tests").unwrap());
    let generation = |epoch, counter| IdentityGrant {
        generation: Generation { epoch, counter },
        ..good.clone()
    };
    for (name, code, bad) in [
        ("a lower counter", 409, generation(1, 2)),
        ("a lower epoch", 409, generation(0, 9)),
        ("an epoch that would lock out all others", 400, generation(u64::MAX, 0)),
        (
            "for another pod",
            400,
            IdentityGrant {
                pod_uid: "another".parse().unwrap(),
                ..good.clone()
            },
        ),
        (
            "a gate's leaf",
            400,
            grant(&|spec| {
                (spec.uris, spec.usages) = (vec![sandbox("alpha", POD_UID).to_string()], vec![Usage::Server]);
            }),
        ),
        (
            "another workload's",
            400,
            grant(&|spec| spec.uris = vec![WORKLOAD.into()]),
        ),
        (
            "the control plane's own",
            400,
            grant(&|spec| spec.uris = vec![CONTROL.into()]),
        ),
        (
            "a leaf for servers",
            400,
            grant(&|spec| spec.usages = vec![Usage::Server]),
        ),
        (
            "another key's",
            400,
            control.grant(&scene.authority, 3, &other_csr, |_| {}),
        ),
        (
            "a leaf of another root",
            400,
            IdentityGrant {
                bundle: good.bundle.clone(),
                ..control.grant(&foreign, 3, &csr, |_| {})
            },
        ),
        (
            "ended",
            400,
            grant(&|spec| (spec.not_before, spec.not_after) = (now - 2 * HOUR, now - HOUR)),
        ),
        ("to come", 400, grant(&|spec| spec.not_before = now + HOUR)),
    ] {
        let answer = control.put(IDENTITY_PATH, &bad).await;
        assert_eq!(status(&answer), code, "{name}: {answer}");
        assert!(answer.contains("{\"detail\":\""), "{name}: {answer}");
        assert_eq!(scene.control.shown().await, shown, "{name}");
    }
    scene.serves().await;
    // The key that waited is still good.
    assert_eq!(status(&control.put(IDENTITY_PATH, &good).await), 204);
    assert_ne!(scene.control.shown().await, shown);
    scene.serves().await;
    let outcome = |outcome| format!("sandbox_router_enrolments_total{{outcome=\"{outcome}\"}}");
    let counted = async |name| metric(scene.metrics, &outcome(name)).await;
    assert_eq!(counted("refused").await.as_deref(), Some("12"));
    assert_eq!(counted("accepted").await.as_deref(), Some("3"));
    scene.assert_log_has_no_secret();
}

#[tokio::test]
async fn what_is_no_request_of_a_routers_control_api_is_said_and_changes_nothing() {
    let scene = RouterScene::enrolled(PROGRAMS, &[]).await;
    let shown = scene.control.shown().await;
    let csr = scene.control.enrolment().await.csr;
    let good = serde_json::to_string(&scene.control.grant(&scene.authority, 1, &csr, |_| {})).unwrap();
    let large = "x".repeat(MAX_BODY_BYTES + 1);
    for (name, code, request) in [
        // Policies are for gates.
        ("a policy", 404, put(POLICY_PATH, "{}")),
        ("a policy's path", 404, get(POLICY_PATH)),
        (
            "a request for an app",
            404,
            head_to(scene.app.port(), "GET / HTTP/1.1", ""),
        ),
        ("no such path", 404, get("/")),
        ("no such method", 405, put(ENROLMENT_PATH, "{}")),
        ("reading an identity", 405, get(IDENTITY_PATH)),
        ("too large", 413, put(IDENTITY_PATH, &large)),
        ("garbage", 400, put(IDENTITY_PATH, "\u{0}\u{1}{[")),
        ("cut", 400, put(IDENTITY_PATH, &good[..good.len() - 1])),
        (
            "an unknown field",
            400,
            put(IDENTITY_PATH, good.replacen('{', "{\"also\":1,", 1)),
        ),
        (
            "two lengths",
            400,
            put(IDENTITY_PATH, &good).replacen("Host:", "Content-Length: 0\r\nHost:", 1),
        ),
    ] {
        let answer = scene.control.send(request).await;
        assert_eq!(status(&answer), code, "{name}: {answer}");
        assert!(answer.contains("\r\n\r\n{\"detail\":\""), "{name}: {answer}");
        assert!(!answer.contains(TOKEN), "{name}: {answer}");
    }
    assert_eq!(scene.control.shown().await, shown);
    scene.app.assert_untouched("the control API");
    assert_eq!(status(&scene.control.send(put(IDENTITY_PATH, &good)).await), 204);
}

#[tokio::test]
async fn whoever_is_no_control_plane_of_the_router_learns_nothing() {
    for enrolled in [false, true] {
        let scene = if enrolled {
            RouterScene::enrolled(PROGRAMS, &[]).await
        } else {
            RouterScene::start(PROGRAMS, &[]).await
        };
        let mut count = 0;
        for (name, certificate) in strangers(&scene.authority) {
            let heard = intrude(scene.mesh, &[ALPN_CONTROL], certificate.as_ref(), &get(ENROLMENT_PATH)).await;
            assert_eq!(heard, "", "{name}, enrolled: {enrolled}");
            count += 1;
        }
        // The right certificate for anything but the control API: there are no requests here, whoever asks.
        let request = head_to(scene.app.port(), "GET / HTTP/1.1", "");
        for identity in [CONTROL, ROUTER] {
            let spec = LeafSpec::new("control", identity, Usage::Client);
            let issued = scene.authority.issue(&spec).unwrap();
            for protocols in [&[ALPN_MESH_HTTP1][..], &[b"http/1.1"], &[]] {
                let heard = intrude(scene.mesh, protocols, Some(&issued), &request).await;
                assert_eq!(heard, "", "{protocols:?}, enrolled: {enrolled}");
                count += 1;
            }
        }
        until_metric(scene.metrics, REFUSED, &count.to_string()).await;
        scene.app.assert_untouched("the router's mesh port");
        scene.control.enrolment().await;
    }
}

/// Whoever could change the published roots poses as the control plane to no router that has an identity.
#[tokio::test]
async fn roots_that_are_published_count_for_nothing_beside_a_valid_identity() {
    let mut scene = RouterScene::enrolled(PROGRAMS, &[]).await;
    let thief = Authority::new("sandgate-tests").unwrap();
    scene.folder.rename_over("roots.crt", thief.root_pem());
    scene.router.logs(ANCHORS_LOADED, 2).await;
    let control = ControlPlane::new(&thief, scene.mesh, router_pod()).of_router(router_identity());
    assert_eq!(control.send(get(ENROLMENT_PATH)).await, "");
    scene.crash().await;
    until_ready(scene.health, (200, "ok")).await;
    assert_eq!(control.send(get(ENROLMENT_PATH)).await, "");
    scene.control.enrol(&scene.authority, 2).await;
    scene.serves().await;
}

#[tokio::test]
async fn connections_that_prove_nothing_keep_no_control_plane_out() {
    let scene = RouterScene::start(PROGRAMS, &[]).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(scene.mesh).await.unwrap());
    }
    scene.control.enrol(&scene.authority, 1).await;
    until_ready(scene.health, (200, "ok")).await;
    scene.serves().await;
    let displaced = "sandbox_router_refused_control_connections_total{reason=\"handshakes\"}";
    assert!(metric(scene.metrics, displaced).await.is_some_and(|count| count != "0"));
}
