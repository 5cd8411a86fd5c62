//! Whoever comes to a gate's control API without being its control plane, and control planes that bring what can't be used: none
//! of it changes anything, none of it gets to the app, and nobody hears the token.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use sandgate_local::authority::{Authority, Issued, LeafSpec, Usage};
use sandgate_mesh::contract::{ALPN_CONTROL, ALPN_MESH_HTTP1};
use sandgate_mesh::control::{ENROLMENT_PATH, IDENTITY_PATH, IdentityGrant, MAX_BODY_BYTES, POLICY_PATH, PolicyPush};
use sandgate_mesh::policy::model::{DefaultPolicy, Generation};
use sandgate_mesh::telemetry::utc;
use sandgate_tests::control::{CONTROL, ControlPlane, get, intrude, intrude_control, put};
use sandgate_tests::enrolled::{REFUSED, Scene, TOKEN};
use sandgate_tests::processes::{ProcessMesh, Programs, metric, router_identity, until_metric, until_ready};
use sandgate_tests::strangers::strangers;
use sandgate_tests::{POD_UID, ROUTER, RecordingApp, assert_detail, exchange, programs, read_until, sandbox, status};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const PROGRAMS: Programs = programs!();
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn what_a_gate_cannot_use_changes_nothing() {
    let scene = Scene::enrolled(PROGRAMS).await;
    let (_router, http) = scene.router(&[]).await;
    let control = &scene.control;
    scene.control.enrol(&scene.authority, 3).await;
    let (csr, shown) = (control.enrolment().await.csr, scene.control.shown().await);
    let good = control.grant(&scene.authority, 3, &csr, |_| {});
    let grant = |change: &dyn Fn(&mut LeafSpec)| control.grant(&scene.authority, 3, &csr, change);
    let other_csr = Scene::start(PROGRAMS).await.control.enrolment().await.csr;
    let now = SystemTime::now();
    let foreign = Authority::new("sandgate-tests").unwrap();
    for (name, code, bad) in [
        ("a lower counter", 409, control.grant(&scene.authority, 2, &csr, |_| {})),
        (
            "a lower epoch",
            409,
            IdentityGrant {
                generation: Generation { epoch: 0, counter: 9 },
                ..good.clone()
            },
        ),
        (
            "for another pod",
            400,
            IdentityGrant {
                pod_uid: "another".parse().unwrap(),
                ..good.clone()
            },
        ),
        (
            "another pod's leaf",
            400,
            grant(&|spec| spec.uris = vec![sandbox("alpha", "another").to_string()]),
        ),
        (
            "another sandbox's leaf",
            400,
            grant(&|spec| spec.uris = vec![sandbox("beta", POD_UID).to_string()]),
        ),
        ("a router's leaf", 400, grant(&|spec| spec.uris = vec![ROUTER.into()])),
        (
            "a leaf for clients",
            400,
            grant(&|spec| spec.usages = vec![Usage::Client]),
        ),
        (
            "another key's",
            400,
            control.grant(&scene.authority, 3, &other_csr, |_| {}),
        ),
        (
            "a leaf of another root",
            400,
            control
                .grant(&foreign, 3, &csr, |_| {})
                .tap(|grant| grant.bundle.clone_from(&good.bundle)),
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
    let push = |change: &dyn Fn(&mut PolicyPush)| {
        let (pod_uid, snapshot) = (POD_UID.parse().unwrap(), scene.policy(3));
        PolicyPush { pod_uid, snapshot }.tap(change)
    };
    for (name, code, bad) in [
        (
            "a lower counter",
            409,
            push(&|push| push.snapshot.generation.counter = 2),
        ),
        (
            "for another pod",
            400,
            push(&|push| push.pod_uid = "another".parse().unwrap()),
        ),
        ("port 0", 400, push(&|push| push.snapshot.ports.push(0))),
        ("another version", 400, push(&|push| push.snapshot.version = 2)),
    ] {
        let mut bad = bad;
        bad.snapshot.default_policy = DefaultPolicy::Deny;
        let answer = control.put(POLICY_PATH, &bad).await;
        assert_eq!(status(&answer), code, "{name}: {answer}");
    }
    scene.app.assert_untouched("a bad push");
    // The old ones are in force, also after a crash, and the key that waited is still good.
    scene.serves(http).await;
    assert_eq!(status(&control.put(IDENTITY_PATH, &good).await), 204);
    assert_ne!(scene.control.shown().await, shown);
    scene.serves(http).await;
    let outcome = |outcome| format!("sandgate_sidecar_enrolments_total{{outcome=\"{outcome}\"}}");
    assert_eq!(metric(scene.health, &outcome("refused")).await.as_deref(), Some("11"));
    assert_eq!(metric(scene.health, &outcome("accepted")).await.as_deref(), Some("3"));
    scene.assert_log_has_no_secret();
}

#[tokio::test]
async fn a_control_plane_cannot_lock_out_those_who_come_later() {
    let scene = Scene::enrolled(PROGRAMS).await;
    let generation = Generation {
        epoch: u64::MAX,
        counter: 0,
    };
    let csr = scene.control.enrolment().await.csr;
    let grant = scene.control.grant(&scene.authority, 1, &csr, |_| {});
    let (pod_uid, snapshot) = (POD_UID.parse().unwrap(), scene.policy(1));
    let answers = [
        scene
            .control
            .put(IDENTITY_PATH, &grant.tap(|grant| grant.generation = generation))
            .await,
        scene
            .control
            .put(
                POLICY_PATH,
                &PolicyPush { pod_uid, snapshot }.tap(|push| push.snapshot.generation = generation),
            )
            .await,
    ];
    for answer in answers {
        assert_eq!(status(&answer), 400, "{answer}");
        assert!(answer.contains("18446744073709551615 is too high"), "{answer}");
    }
    scene.control.enrol(&scene.authority, 2).await;
    scene.control.push(scene.policy(2)).await;
}

/// Changes a value in passing.
trait Tap: Sized {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Tap for IdentityGrant {}
impl Tap for PolicyPush {}

#[tokio::test]
async fn what_is_no_request_of_the_control_api_is_said_and_changes_nothing() {
    let scene = Scene::enrolled(PROGRAMS).await;
    let shown = scene.control.shown().await;
    let large = "x".repeat(MAX_BODY_BYTES + 1);
    let chunked = format!(
        "PUT {POLICY_PATH} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let good = serde_json::to_string(&scene.control.grant(
        &scene.authority,
        1,
        &scene.control.enrolment().await.csr,
        |_| {},
    ));
    let good = good.unwrap();
    let unknown_field = good.replacen('{', "{\"also\":1,", 1);
    for (name, code, request) in [
        ("no such path", 404, get("/control/v1/state")),
        ("the app's path", 404, get("/")),
        ("a path below", 404, get(&format!("{ENROLMENT_PATH}/"))),
        ("no such method", 405, put(ENROLMENT_PATH, "{}")),
        ("reading an identity", 405, get(IDENTITY_PATH)),
        ("reading a policy", 405, get(POLICY_PATH)),
        ("too large", 413, put(IDENTITY_PATH, &large)),
        ("too large in chunks", 413, chunked),
        ("nothing", 400, put(IDENTITY_PATH, "")),
        ("garbage", 400, put(IDENTITY_PATH, "\u{0}\u{1}{[")),
        ("cut", 400, put(IDENTITY_PATH, &good[..good.len() - 1])),
        ("two of them", 400, put(IDENTITY_PATH, format!("{good}{good}"))),
        ("an unknown field", 400, put(IDENTITY_PATH, unknown_field)),
        ("a policy for an identity", 400, put(POLICY_PATH, &good)),
        ("deep", 400, put(POLICY_PATH, "[".repeat(100_000))),
        (
            "two lengths",
            400,
            put(IDENTITY_PATH, &good).replacen("Host:", "Content-Length: 0\r\nHost:", 1),
        ),
        ("no HTTP", 400, "\r\n\r\nnothing\r\n\r\n".into()),
        (
            "CONNECT",
            404,
            "CONNECT app:80 HTTP/1.1\r\nHost: app:80\r\nConnection: close\r\n\r\n".into(),
        ),
    ] {
        let answer = scene.control.send(request).await;
        assert_eq!(status(&answer), code, "{name}: {answer}");
        assert!(answer.contains("\r\n\r\n{\"detail\":\""), "{name}: {answer}");
        assert!(!answer.contains(TOKEN), "{name}: {answer}");
    }
    // A body that stalls ends, too.
    let stalled = put(IDENTITY_PATH, &good);
    let answer = scene.control.send(&stalled[..stalled.len() - 1]).await;
    assert_detail(&answer, 408, "Timed out waiting for the request body.", "stalled");
    assert_eq!(scene.control.shown().await, shown);
    scene.app.assert_untouched("the control API");
    assert_eq!(status(&scene.control.send(put(IDENTITY_PATH, &good)).await), 204);
}

#[tokio::test]
async fn whoever_is_no_control_plane_of_the_gate_learns_nothing() {
    for enrolled in [false, true] {
        let scene = if enrolled {
            Scene::enrolled(PROGRAMS).await
        } else {
            Scene::start(PROGRAMS).await
        };
        let mut count = 0;
        for (name, certificate) in strangers(&scene.authority) {
            let heard = intrude_control(scene.mesh, certificate.as_ref(), &get(ENROLMENT_PATH)).await;
            assert_eq!(heard, "", "{name}");
            count += 1;
            let both = [ALPN_MESH_HTTP1, ALPN_CONTROL];
            let heard = intrude(scene.mesh, &both, certificate.as_ref(), &get(ENROLMENT_PATH)).await;
            assert_eq!(heard, "", "{name}, naming both protocols");
            count += 1;
        }
        until_metric(scene.health, REFUSED, &count.to_string()).await;
        // What the way of requests leads to isn't the control API, whoever asks.
        let router = scene.authority.router(&router_identity()).unwrap();
        for path in [ENROLMENT_PATH, IDENTITY_PATH, POLICY_PATH] {
            let heard = intrude(scene.mesh, &[ALPN_MESH_HTTP1], Some(&router), &get(path)).await;
            assert_eq!(status(&heard), if enrolled { 400 } else { 0 }, "{heard}");
            let heard = intrude(scene.mesh, &[], Some(&router), &get(path)).await;
            assert_eq!(heard, "");
        }
        // The one that may hears it, or none of this would mean anything.
        let answer = scene.control.send(get(ENROLMENT_PATH)).await;
        assert!(status(&answer) == 200 && answer.contains(TOKEN), "{answer}");
        scene.app.assert_untouched("strangers");
        scene.assert_log_has_no_secret();
    }
}

#[tokio::test]
async fn a_control_plane_whose_root_has_left_is_refused_while_the_identity_is_valid() {
    let mut scene = Scene::start(PROGRAMS).await;
    let next = Authority::new("sandgate-tests-next").unwrap();
    let spec = LeafSpec::new("control", CONTROL, Usage::Client);
    let [of_anchors, of_bundle] = [&scene.authority, &next].map(|authority| authority.issue(&spec).unwrap());
    let mesh = scene.mesh;
    let hears = async |control_plane: &Issued| {
        let heard = intrude_control(mesh, Some(control_plane), &get(ENROLMENT_PATH)).await;
        let is_given = status(&heard) == 200 && heard.contains(TOKEN);
        assert!(is_given || heard.is_empty(), "{heard}");
        is_given
    };
    assert!(hears(&of_anchors).await && !hears(&of_bundle).await);
    // Connections from before, one of them in the middle of a policy.
    let [mut idle, mut half] = [scene.control.connect().await.0, scene.control.connect().await.0];
    let (pod_uid, snapshot) = (POD_UID.parse().unwrap(), scene.policy(9));
    let push = put(
        POLICY_PATH,
        serde_json::to_string(&PolicyPush { pod_uid, snapshot }).unwrap(),
    );
    idle.write_all(b"GET /control/v1/nothing HTTP/1.1\r\nHost: gate\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut idle, b"}").await;
    half.write_all(&push.as_bytes()[..push.len() - 1]).await.unwrap();
    // A leaf of the next root, and a bundle that holds no other.
    scene.control.enrol(&next, 1).await;
    let too_late = "The certificate of this connection does not count any more; open another.";
    let answer = exchange(half, &push[push.len() - 1..], false).await;
    assert_detail(&answer, 403, too_late, "a policy that was on its way");
    let answer = exchange(idle, get(ENROLMENT_PATH), false).await;
    assert_detail(&answer, 403, too_late, "a connection from before");
    until_ready(scene.health, (503, "no policy snapshot")).await;
    for crashed in [false, true] {
        if crashed {
            scene.crash().await;
        }
        assert!(!hears(&of_anchors).await, "the root that has left counts");
        assert!(hears(&of_bundle).await);
    }
    let control = ControlPlane::new(&next, mesh, scene.control.sandbox.clone());
    let csr = control.enrolment().await.csr;
    let end = SystemTime::now() + Duration::from_secs(2);
    let grant = control.grant(&next, 2, &csr, |spec| spec.not_after = end);
    assert_eq!(status(&control.put(IDENTITY_PATH, &grant).await), 204);
    until_ready(scene.health, (503, &format!("certificate expired at {}", utc(end)))).await;
    assert!(hears(&of_anchors).await && hears(&of_bundle).await);
    scene.control.enrol(&scene.authority, 3).await;
    assert!(hears(&of_anchors).await && !hears(&of_bundle).await);
    scene.assert_log_has_no_secret();
}

#[tokio::test]
async fn a_control_plane_gets_nothing_to_the_app_even_if_a_policy_names_it() {
    let scene = Scene::enrolled(PROGRAMS).await;
    let port = scene.app.port();
    let mut snapshot = scene.policy(2);
    snapshot.policies = serde_json::from_value(serde_json::json!([
        {"name": "all", "rules": [{"from": [{"spiffeIDs": [CONTROL]}], "to": [{"ports": [port]}]}]},
    ]))
    .unwrap();
    scene.control.push(snapshot).await;
    let issued = scene
        .authority
        .issue(&LeafSpec::new("control", CONTROL, Usage::Client))
        .unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: gate\r\nX-Sandbox-Port: {port}\r\nConnection: close\r\n\r\n");
    let heard = intrude(scene.mesh, &[ALPN_MESH_HTTP1], Some(&issued), &request).await;
    assert_eq!(heard, "");
    let asserting = request.replacen("Host:", "X-Sandgate-Caller: v1;user;alice\r\nHost:", 1);
    let heard = intrude(scene.mesh, &[ALPN_MESH_HTTP1], Some(&issued), &asserting).await;
    assert_eq!(heard, "");
    let heard = intrude_control(scene.mesh, Some(&issued), &request).await;
    assert_eq!(status(&heard), 404, "{heard}");
    scene.app.assert_untouched("a control plane");
    until_metric(scene.health, REFUSED, "2").await;
}

#[tokio::test]
async fn a_gate_with_files_has_no_control_api() {
    let app = RecordingApp::polite().await;
    let mesh = ProcessMesh::start(PROGRAMS, app.port(), &[]).await;
    let issued = mesh
        .authority
        .issue(&LeafSpec::new("control", CONTROL, Usage::Client))
        .unwrap();
    for protocols in [&[ALPN_CONTROL][..], &[ALPN_MESH_HTTP1, ALPN_CONTROL]] {
        let heard = intrude(mesh.mesh, protocols, Some(&issued), &get(ENROLMENT_PATH)).await;
        assert_eq!(heard, "", "{protocols:?}");
    }
    app.assert_untouched("the control API");
}

#[tokio::test]
async fn without_an_identity_nothing_is_said_to_a_router() {
    let scene = Scene::start(PROGRAMS).await;
    let router = scene.authority.router(&router_identity()).unwrap();
    let heard = intrude(scene.mesh, &[ALPN_MESH_HTTP1], Some(&router), &get("/")).await;
    assert_eq!(heard, "");
    let no_identity = "sandgate_sidecar_refused_connections_total{reason=\"no-identity\"}";
    until_metric(scene.health, no_identity, "1").await;
    // Nor to somebody who says nothing: the time for a handshake bounds it.
    let silent = TcpStream::connect(scene.mesh).await.unwrap();
    assert_eq!(exchange(silent, "", false).await, "");
    assert_eq!(
        scene
            .gate
            .stderr()
            .matches("mesh connections are refused until")
            .count(),
        1
    );
    scene.app.assert_untouched("no identity");
}
