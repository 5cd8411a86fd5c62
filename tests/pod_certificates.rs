//! A gate whose identity its kubelet brings in a volume, as a process: what it does for it, in its life and after it.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use sandgate_mesh::control::{IDENTITY_PATH, IdentityGrant, bundle_digest};
use sandgate_mesh::policy::model::Generation;
use sandgate_mesh::telemetry::utc;
use sandgate_tests::enrolled::{IDENTITY, Scene};
use sandgate_tests::processes::{Programs, until_ready};
use sandgate_tests::{POD_UID, programs, sandbox, status};
use std::time::{Duration, SystemTime};

const PROGRAMS: Programs = programs!();

/// A leaf for the gate, as `change` leaves it.
fn issued(scene: &Scene, change: impl FnOnce(&mut LeafSpec)) -> Issued {
    let mut spec = LeafSpec::new("gate", scene.control.sandbox.to_string(), Usage::Server);
    change(&mut spec);
    scene.authority.issue(&spec).unwrap()
}

/// Puts it into the volume as a kubelet does.
fn bring(scene: &Scene, issued: &Issued, roots: &str) {
    let both = format!("{}{}", issued.key_pem, issued.chain_pem);
    scene
        .folder
        .swap(IDENTITY, &[("credentials.pem", &both), ("roots.pem", roots)]);
}

/// Returns when the gate shows another leaf than this one.
async fn until_renewed(scene: &Scene, before: &[u8]) {
    while scene.control.shown().await == before {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_gate_serves_with_what_its_kubelet_brings_and_takes_no_identity_from_anybody_else() {
    let mut scene = Scene::start_by_kubelet(PROGRAMS).await;
    let root = scene.authority.root_pem().to_owned();
    bring(&scene, &issued(&scene, |_| {}), &root);
    until_ready(scene.health, (503, "no policy snapshot")).await;
    let told = scene.control.enrolment().await;
    assert_eq!((told.csr.as_str(), told.token.as_str()), ("", ""));
    assert_eq!(told.bundle_digest, bundle_digest(&root));
    scene.control.push(scene.policy(1)).await;
    until_ready(scene.health, (200, "ok")).await;
    let (_router, http) = scene.router(&[]).await;
    scene.serves(http).await;

    let grant = IdentityGrant {
        pod_uid: POD_UID.parse().unwrap(),
        generation: Generation { epoch: 1, counter: 2 },
        chain: issued(&scene, |_| {}).chain_pem,
        bundle: root.clone(),
    };
    let before = scene.control.shown().await;
    let answer = scene.control.put(IDENTITY_PATH, &grant).await;
    assert_eq!(status(&answer), 400, "{answer}");
    // Another pod's does nothing, and another root beside the one comes with the next.
    let other = sandbox("beta", POD_UID).to_string();
    bring(&scene, &issued(&scene, |spec| spec.uris = vec![other]), &root);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.control.shown().await, before);
    let both = format!("{root}{}", Authority::new("next").unwrap().root_pem());
    bring(&scene, &issued(&scene, |_| {}), &both);
    until_renewed(&scene, &before).await;
    assert_eq!(scene.control.enrolment().await.bundle_digest, bundle_digest(&both));
    scene.serves(http).await;

    // What it keeps itself is its policy: its crash needs nobody.
    scene.crash().await;
    until_ready(scene.health, (200, "ok")).await;
    scene.serves(http).await;
    assert_eq!(scene.kept(), ["policy.json", "ports.lock"]);
    assert!(!scene.gate.stderr().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn a_gate_whose_certificate_has_ended_refuses_until_its_kubelet_brings_another() {
    let scene = Scene::start_by_kubelet(PROGRAMS).await;
    let root = scene.authority.root_pem().to_owned();
    let end = SystemTime::now() + Duration::from_secs(5);
    bring(&scene, &issued(&scene, |spec| spec.not_after = end), &root);
    until_ready(scene.health, (503, "no policy snapshot")).await;
    scene.control.push(scene.policy(1)).await;
    let expired = format!("certificate expired at {}", utc(end));
    until_ready(scene.health, (503, &expired)).await;
    assert!(!scene.control.finds_it_enrolled().await);
    bring(&scene, &issued(&scene, |_| {}), &root);
    until_ready(scene.health, (200, "ok")).await;
    let (_router, http) = scene.router(&[]).await;
    scene.serves(http).await;
}
