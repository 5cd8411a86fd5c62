//! The root is replaced step by step, whoever is killed meanwhile, and nobody notices but those who try to go on with the old
//! one.

use crate::authority::{identity_of, leaf_under};
use crate::enrolment::{LEADER, visits};
use crate::injector::{base64, ca_bundles, secret};
use crate::root_stage::{ByHand, Doomed, Stage, load};
use crate::trust_anchors::by_hand;
use sandgate_cluster_tests::node::RunningGate;
use sandgate_cluster_tests::router::{PodApp, RunningRouter};
use sandgate_cluster_tests::{Cluster, process, runner::Test, runner::note, tests, until};
use sandgate_mesh::control::ENROLMENT_PATH;
use sandgate_mesh::credentials::{MeshCredentials, Role};
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::identity::ExpectedSandbox;
use sandgate_mesh::tls;
use sandgate_tests::control::{ControlPlane, get};
use sandgate_tests::processes::{self, until_ready};
use sandgate_tests::{exchange, status};
use serde_json::Value;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

// Webhook configurations are for the whole cluster, and so is the watch of pods.
pub(crate) const TESTS: &[Test] = tests![
    @alone a_root_is_replaced_under_load_and_no_request_fails,
    @alone leaders_that_are_killed_at_any_moment_end_with_one_root_and_every_gate_ready,
    @alone a_gate_that_knows_the_old_root_only_is_enrolled_and_named_until_its_pod_is_gone,
    @alone a_root_whose_key_has_leaked_goes_at_once_and_pods_that_know_no_other_are_named,
    @alone a_root_is_replaced_by_itself_when_it_is_old_enough,
];

const OF_ANOTHER_DAY: &str = "spec.initContainers[0].env[3].value: the control plane's roots of another day";

async fn a_root_is_replaced_under_load_and_no_request_fails(cluster: Cluster) {
    // Leafs of gates are renewed every five seconds or so.
    let (stage, replica) = Stage::start(&cluster, Duration::from_secs(10)).await;
    let (by_hand, app) = (
        ByHand::start(&cluster, &stage).await,
        PodApp::start("127.0.0.1", "hello").await,
    );
    let old = stage.signs().await;
    let team = stage.team.name();
    let (alpha, alpha_gate) = stage.served("alpha", app.port()).await;
    by_hand.router.until_answered(200, team, "alpha", app.port()).await;
    let mut to_alpha = load(by_hand.router.http, team, "alpha", app.port());
    to_alpha.goes_on().await;

    stage.root(&["rotate"]).await;
    stage.until_given(2).await;
    let (beta, beta_gate) = stage.served("beta", app.port()).await;
    by_hand.router.until_answered(200, team, "beta", app.port()).await;
    let mut to_beta = load(by_hand.router.http, team, "beta", app.port());
    stage.until_waits_for("distribute", &["confirmation"]).await;
    let new = [
        stage.stored("next.crt").await.unwrap(),
        stage.stored("next.key").await.unwrap(),
    ];
    let both = format!("{}{}", old[0], new[0]);
    by_hand.give(&stage, &old, &both).await;
    stage.root(&["confirm"]).await;

    let told = stage.until_waits_for("switch", &["pods", "confirmation"]).await;
    assert!(told.contains(&format!("\n    {team}/alpha\n")), "{told}");
    assert!(!told.contains("/beta"), "it was born with both: {told}");
    assert_eq!(stage.signs().await, new);
    by_hand.give(&stage, &new, &both).await;
    stage.root(&["confirm"]).await;
    let renewed = replica.metric(&visits("ok", "renewed")).await;
    replica.until_metric(&visits("ok", "renewed"), renewed + 4).await;
    to_alpha.goes_on().await;
    to_beta.goes_on().await;
    assert_eq!(stage.rotation().await["step"], "switch", "alpha would be left alone");
    let alphas = to_alpha.answered();
    to_alpha.stop().await;
    cluster.delete(&alpha).await.unwrap();
    drop(alpha_gate);

    stage.until_step("done").await;
    by_hand.give(&stage, &new, &new[0]).await;
    let renewed = replica.metric(&visits("ok", "renewed")).await;
    replica.until_metric(&visits("ok", "renewed"), renewed + 1).await;
    to_beta.goes_on().await;
    let betas = to_beta.answered();
    to_beta.stop().await;
    let renewals = replica.metric(&visits("ok", "renewed")).await;
    note(&format!(
        "a whole replacement of the root: {alphas} and {betas} requests answered through two gates, 0 failed, {renewals} renewals"
    ));
    for entry in ["next.crt", "next.key", "previous.crt", "previous.key"] {
        assert_eq!(stage.stored(entry).await, None, "{entry}");
    }
    let root = base64(&new[0]);
    assert_eq!(ca_bundles(&cluster).await, [root.as_str(), &root]);
    stage.until_given(1).await;
    assert_eq!(
        replica.metric(&visits("ok", "enrolled")).await,
        2,
        "nobody had to begin anew"
    );
    replica.stop().await;
    who_has_the_old_key_is_nobody(&stage, &by_hand.router, [&old, &new], (&beta, beta_gate), &app).await;
}

/// As a control plane, as a router and as a gate.
async fn who_has_the_old_key_is_nobody(
    stage: &Stage,
    router: &RunningRouter,
    [old, new]: [&[String; 2]; 2],
    (pod, gate): (&Value, RunningGate),
    app: &PodApp,
) {
    let (sandbox, mesh) = (identity_of(pod), (gate.address, 14443).into());
    let control = stage.workload("sandbox-injector");
    let both = format!("{}{}", old[0], new[0]);
    app.seen();
    for (signs, counts) in [(new, true), (old, false)] {
        let [chain, key] = leaf_under(&signs[0], &signs[1], &control.to_string(), false);
        let pem = [chain.as_str(), &key, &both];
        let answer = ControlPlane::with(&control, pem, mesh, sandbox.clone())
            .send(get(ENROLMENT_PATH))
            .await;
        assert_eq!(counts, !answer.is_empty(), "{answer}");

        let [chain, key] = stage.router_leaf(signs);
        let (domain, pem) = (&sandbox.trust_domain, [&chain, &key, &both].map(String::as_bytes));
        let credentials = MeshCredentials::from_pem(Role::Router, pem[0], pem[1], pem[2], domain).unwrap();
        let expected = ExpectedSandbox {
            trust_domain: domain.clone(),
            sandbox: sandbox.sandbox.clone(),
            pod_uid: Some(sandbox.pod_uid.clone()),
        };
        let config = tls::router_client_config(HttpVersion::Http1, &credentials, &expected).unwrap();
        let stream = TcpStream::connect(mesh).await.unwrap();
        let stream = tls::connect_mesh(stream, config).await.unwrap().0;
        let answer = exchange(
            stream,
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
            false,
        )
        .await;
        // For want of a caller, from whoever is a router.
        assert_eq!(answer.is_empty(), !counts, "{answer}");
        assert!(!counts || status(&answer) == 400, "{answer}");
    }
    // In the gate's place.
    let address = gate.address;
    drop(gate);
    for (signs, counts) in [(old, false), (new, true)] {
        let [chain, key] = leaf_under(&signs[0], &signs[1], &sandbox.to_string(), true);
        let pem = [&chain, &key, &both].map(String::as_bytes);
        let credentials = MeshCredentials::of_gate(pem[0], pem[1], pem[2], &sandbox).unwrap();
        let config = tls::sidecar_server_config(&credentials).unwrap();
        let listener = TcpListener::bind((address, 14443)).await.unwrap();
        let accepted = async {
            let (stream, _) = listener.accept().await.unwrap();
            tls::accept_mesh(stream, |_| Some(config)).await.is_ok()
        };
        let (namespace, name) = (sandbox.sandbox.namespace.as_str(), sandbox.sandbox.name.as_str());
        let asked = router.ask(namespace, name, app.port(), "");
        tokio::select! {
            accepted = accepted => assert_eq!(accepted, counts, "a router shows a request to whoever it believes"),
            (status, _) = asked => assert_eq!((status, counts), (502, false)),
        }
    }
    assert_eq!(app.seen(), Vec::<String>::new());
}

async fn leaders_that_are_killed_at_any_moment_end_with_one_root_and_every_gate_ready(cluster: Cluster) {
    let (stage, replica) = Stage::start(&cluster, Duration::from_secs(120)).await;
    let old = stage.signs().await;
    stage.root(&["rotate"]).await;
    stage.until_given(2).await;
    let (_, alpha) = stage.gate("alpha").await;
    let (_, beta) = stage.gate("beta").await;
    replica.stop().await;
    let watching = async {
        loop {
            for gate in [&alpha, &beta] {
                let (status, text) = processes::get(gate.health(), "/readyz").await;
                assert_eq!(status, 200, "{text}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut killed = 0;
    let mut killing = async || {
        for (step, next) in [("distribute", "switch"), ("switch", "retire"), ("retire", "done")] {
            // In the middle of a step, and right after it has written the next.
            let doomed = Doomed::start(&stage);
            doomed.replica.until_metric(LEADER, 1).await;
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..1000))).await;
            doomed.kill();
            killed += 1;
            assert_eq!(stage.rotation().await["step"], step);
            let doomed = Doomed::start(&stage);
            stage.until_step(next).await;
            doomed.kill();
            killed += 1;
        }
    };
    tokio::select! {
        () = watching => {}
        () = killing() => {}
    }
    let [new, _] = stage.signs().await;
    assert_ne!(new, old[0]);
    // Nothing is left to do: whoever comes now finds every gate under the new root and leaves it alone.
    let last = stage.replica(|config, _| config.gate_certificate_lifetime = Duration::from_secs(120));
    last.until_metric("sandgate_injector_gates{state=\"enrolled\"}", 2)
        .await;
    until("no gate is behind", async || {
        match last.metric("sandgate_injector_gates_behind{state=\"enrolled\"}").await {
            0 => Ok(()),
            behind => Err(behind),
        }
    })
    .await;
    for word in ["enrolled", "renewed"] {
        assert_eq!(last.metric(&visits("ok", word)).await, 0, "{word}");
    }
    let root = base64(&new);
    until("the old root has left the caBundles", async || {
        let found = ca_bundles(&cluster).await;
        (found == [root.as_str(), &root]).then_some(()).ok_or(found)
    })
    .await;
    note(&format!(
        "a replacement of the root went through {killed} killed leaders; two gates were ready all the time"
    ));
    last.stop().await;
}

async fn a_gate_that_knows_the_old_root_only_is_enrolled_and_named_until_its_pod_is_gone(cluster: Cluster) {
    let (stage, replica) = Stage::start(&cluster, Duration::from_secs(3600)).await;
    let (old_pod, mut old) = stage.gate("old").await;
    stage.root(&["rotate"]).await;
    let refused = process::root(&stage.system, &["rotate"]).await.unwrap_err();
    assert!(
        refused.contains("under way already, in the step distribute"),
        "{refused}"
    );
    stage.until_given(2).await;
    let (_, mut both) = stage.gate("both").await;
    stage.until_waits_for("distribute", &["confirmation"]).await;
    stage.root(&["confirm"]).await;
    stage.until_waits_for("switch", &["pods", "confirmation"]).await;
    stage.root(&["confirm"]).await;
    let told = stage.until_waits_for("switch", &["pods"]).await;
    let team = stage.team.name();
    assert!(
        told.contains("  pods (1): ") && told.contains(&format!("\n    {team}/old\n")),
        "{told}"
    );
    let blockers = "sandgate_injector_root_rotation_blockers{reason=\"pods\"}";
    assert_eq!(replica.metric(blockers).await, 1);
    assert_eq!(
        replica.metric("sandgate_injector_root_rotation{step=\"switch\"}").await,
        1
    );

    // Whoever writes pods gets no other like it, with which the replacement would never end.
    let copy = by_hand(&old_pod, "copy");
    stage.team.until_refused(&copy, OF_ANOTHER_DAY).await;

    // Its node is started again while the new root signs: it knows the control plane by the old one only.
    let enrolled = replica.metric(&visits("ok", "enrolled")).await;
    for gate in [&mut old, &mut both] {
        stage.team.reboot(gate).await;
    }
    replica.until_metric(&visits("ok", "enrolled"), enrolled + 2).await;
    for gate in [&old, &both] {
        until_ready(gate.health(), (200, "ok")).await;
    }
    assert_eq!(stage.rotation().await["step"], "switch");
    cluster.delete(&old_pod).await.unwrap();
    drop(old);
    stage.until_step("done").await;
    let refused = stage.team.refused(&copy).await;
    assert!(refused.contains(OF_ANOTHER_DAY), "{refused}");
    // One that was born with both is enrolled again, though nobody trusts the old one any more.
    stage.team.reboot(&mut both).await;
    replica.until_metric(&visits("ok", "enrolled"), enrolled + 3).await;
    until_ready(both.health(), (200, "ok")).await;
    let told = stage.root(&["status"]).await;
    assert!(told.starts_with("The root was replaced (command)"), "{told}");
    until("there is nothing to tell any more", async || {
        let secret = cluster.get(&secret(&stage.system)).await.unwrap();
        let told = secret["metadata"]["annotations"]
            .get("sandgate.dev/root-rotation")
            .cloned();
        told.map_or(Ok(()), Err)
    })
    .await;
    replica.stop().await;
}

async fn a_root_whose_key_has_leaked_goes_at_once_and_pods_that_know_no_other_are_named(cluster: Cluster) {
    let (stage, replica) = Stage::start(&cluster, Duration::from_secs(3600)).await;
    let (pod, gate) = stage.gate("alpha").await;
    // In the middle of a replacement: whoever had the one key could read the other.
    stage.root(&["rotate"]).await;
    stage.until_given(2).await;
    let [old, _] = stage.signs().await;
    let next = stage.stored("next.crt").await.unwrap();
    stage.root(&["rotate", "--leaked"]).await;
    let [new, _] = stage.signs().await;
    assert!(new != old && new != next);
    stage.until_given(1).await;
    let told = stage.until_waits_for("retire", &["gates", "pods"]).await;
    assert_eq!(
        told.matches(&format!("\n    {}/alpha\n", stage.team.name())).count(),
        2,
        "{told}"
    );
    let root = base64(&new);
    assert_eq!(ca_bundles(&cluster).await, [root.as_str(), &root]);
    cluster.delete(&pod).await.unwrap();
    drop(gate);
    stage.until_step("done").await;
    stage.gate("beta").await;
    replica.stop().await;
}

async fn a_root_is_replaced_by_itself_when_it_is_old_enough(cluster: Cluster) {
    let (stage, young) = Stage::start(&cluster, Duration::from_secs(3600)).await;
    let [old, _] = stage.signs().await;
    assert_eq!(stage.rotation().await, Value::Null, "it isn't, by far");
    young.stop().await;
    let replica = stage.replica(|config, _| {
        config.schedule.max_age = Some(Duration::from_secs(1));
        config.schedule.routers_follow_within = Some(Duration::from_secs(1));
    });
    stage.until_step("distribute").await;
    assert_eq!(stage.rotation().await["cause"], "age");
    stage.until_step("retire").await;
    assert_ne!(stage.signs().await[0], old);
    replica.stop().await;
}
