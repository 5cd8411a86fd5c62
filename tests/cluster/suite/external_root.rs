//! The authority is one that somebody else makes: an intermediate under a company's root, in files that are replaced while the
//! injector runs.

use crate::authority::{identity_of, leaf_under};
use crate::enrolment::visits;
use crate::injector::{base64, ca_bundles};
use crate::root_stage::{Stage, load};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use sandbox_injector::config::serve::AuthorityFiles;
use sandgate_cluster_tests::chart::Chart;
use sandgate_cluster_tests::injector::Replica;
use sandgate_cluster_tests::node::RunningGate;
use sandgate_cluster_tests::router::PodApp;
use sandgate_cluster_tests::router_pod::RouterPod;
use sandgate_cluster_tests::{Cluster, process, runner::Test, runner::note, tests, until};
use sandgate_mesh::control::ENROLMENT_PATH;
use sandgate_mesh::credentials::MeshCredentials;
use sandgate_mesh::http2::HttpVersion;
use sandgate_mesh::identity::ExpectedSandbox;
use sandgate_mesh::tls;
use sandgate_tests::control::{ControlPlane, get};
use sandgate_tests::exchange;
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{self, until_ready};
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;

// Webhook configurations are for the whole cluster, and so is the watch of pods.
pub(crate) const TESTS: &[Test] =
    tests![@alone an_intermediate_in_files_is_the_authority_and_is_replaced_when_they_are];

const NAME: &str = "sandgate-authority";
/// The folder that the kubelet would mount.
const MOUNTED: &str = "authority";

/// A company's root, which signs intermediates for more than Sandgate.
struct Company {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Company {
    fn new() -> Self {
        let (key, params) = (
            KeyPair::generate().unwrap(),
            authority("company", BasicConstraints::Unconstrained),
        );
        let certificate = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, certificate }
    }

    /// The certificate of an intermediate, and its key.
    fn intermediate(&self) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let params = authority(NAME, BasicConstraints::Constrained(0));
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }

    /// Has the files hold an intermediate with the chain above it, as cert-manager writes it.
    fn give(&self, folder: &Folder, [certificate, key]: &[String; 2]) {
        let chain = format!("{certificate}{}", self.certificate);
        folder.swap(MOUNTED, &[("tls.crt", &chain), ("tls.key", key)]);
    }
}

fn authority(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A replica that has its authority from the folder.
fn replica(stage: &Stage, folder: &Folder) -> Replica {
    let file = |name: &str| folder.path(MOUNTED).join(name);
    let files = AuthorityFiles {
        certificate: file("tls.crt"),
        key: file("tls.key"),
    };
    stage.replica(|config, _| {
        // Leafs are renewed every five seconds or so.
        config.gate_certificate_lifetime = Duration::from_secs(10);
        assert!(config.authority_files.replace(files).is_some(), "as the chart has it");
    })
}

/// A router as the chart has it, with the roots that are published.
async fn enrolled_router(stage: &Stage) -> RouterPod {
    let own = &stage.system.namespace;
    own.cluster().router_accounts(own).await;
    own.cluster().let_route(own).await;
    let router = own.run_router(&stage.chart.router_pod(own, "sandbox-router-1")).await;
    until("the roots are published", async || {
        router.mount_roots().await;
        match processes::get(router.health, "/readyz").await {
            (200, _) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    router
}

/// Though what he has verifies under the company's root: as a control plane and as a router.
async fn who_has_another_intermediate_is_nobody(
    stage: &Stage,
    foreign: &[String; 2],
    company: &Company,
    (pod, gate): (&Value, &RunningGate),
) {
    let (sandbox, mesh) = (identity_of(pod), (gate.address, 14443).into());
    let (control, signs) = (stage.workload("sandbox-injector"), stage.signs().await);
    // He believes everybody, so that nothing keeps him from asking.
    let bundle = format!("{}{}", company.certificate, signs[0]);
    for (pair, counts) in [(foreign, false), (&signs, true)] {
        let [leaf, key] = leaf_under(&pair[0], &pair[1], &control.to_string(), false);
        for above in ["", company.certificate.as_str()] {
            let chain = format!("{leaf}{}{above}", pair[0]);
            let plane = ControlPlane::with(&control, [&chain, &key, &bundle], mesh, sandbox.clone());
            let answer = plane.send(get(ENROLMENT_PATH)).await;
            assert_eq!(counts, !answer.is_empty(), "{answer}");
        }
        let [leaf, key] = stage.router_leaf(pair);
        let chain = format!("{leaf}{}", pair[0]);
        let pem = [&chain, &key, &bundle].map(String::as_bytes);
        let own = stage.workload("sandbox-router");
        let credentials = MeshCredentials::of_router(pem[0], pem[1], pem[2], &own).unwrap();
        let expected = ExpectedSandbox {
            trust_domain: sandbox.trust_domain.clone(),
            sandbox: sandbox.sandbox.clone(),
            pod_uid: Some(sandbox.pod_uid.clone()),
        };
        let config = tls::router_client_config(HttpVersion::Http1, &credentials, &expected).unwrap();
        let stream = TcpStream::connect(mesh).await.unwrap();
        let stream = tls::connect_mesh(stream, config).await.unwrap().0;
        let request = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        let answer = exchange(stream, request, false).await;
        assert_eq!(counts, !answer.is_empty(), "{answer}");
    }
}

async fn an_intermediate_in_files_is_the_authority_and_is_replaced_when_they_are(cluster: Cluster) {
    let (company, folder) = (Company::new(), Folder::new());
    let [first, second, foreign] = [company.intermediate(), company.intermediate(), company.intermediate()];
    company.give(&folder, &first);
    let chart = Chart::render(&["injector.defaultPolicy=anonymous", "injector.authority.source=secret"]);
    let stage = Stage::with(&cluster, chart).await;
    let replica = replica(&stage, &folder);
    stage.serve_with(&replica).await;
    assert_eq!(stage.signs().await, first);
    let root = base64(&first[0]);
    assert_eq!(
        ca_bundles(&cluster).await,
        [root.as_str(), &root],
        "what stands above it is trusted nowhere"
    );

    let app = PodApp::start("127.0.0.1", "hello").await;
    let team = stage.team.name();
    let (alpha, alpha_gate) = stage.served("alpha", app.port()).await;
    let router = enrolled_router(&stage).await;
    router.until_answered(200, team, "alpha", app.port()).await;
    app.seen();
    who_has_another_intermediate_is_nobody(&stage, &foreign, &company, (&alpha, &alpha_gate)).await;
    assert_eq!(app.seen(), Vec::<String>::new());
    let refused = process::root(&stage.system, &["rotate"]).await.unwrap_err();
    assert!(refused.contains("the root comes from files"), "{refused}");
    let told = stage.root(&["status"]).await;
    assert!(told.contains("It comes from files"), "{told}");

    let mut to_alpha = load(router.http, team, "alpha", app.port());
    to_alpha.goes_on().await;
    let enrolled = replica.metric(&visits("ok", "enrolled")).await;
    company.give(&folder, &second);
    // Everybody knows it before it signs; pods that don't are waited for.
    let told = stage.until_waits_for("switch", &["pods"]).await;
    assert!(
        told.contains("(files)") && told.contains(&format!("\n    {team}/alpha\n")),
        "{told}"
    );
    assert_eq!(stage.signs().await, second);
    let (_, beta) = stage.gate("beta").await;
    let renewed = replica.metric(&visits("ok", "renewed")).await;
    replica.until_metric(&visits("ok", "renewed"), renewed + 3).await;
    to_alpha.goes_on().await;
    let answered = to_alpha.answered();
    to_alpha.stop().await;
    cluster.delete(&alpha).await.unwrap();
    drop(alpha_gate);
    stage.until_step("done").await;
    until_ready(beta.health(), (200, "ok")).await;
    assert_eq!(
        replica.metric(&visits("ok", "enrolled")).await,
        enrolled + 1,
        "beta, and nobody anew"
    );
    note(&format!(
        "an intermediate was replaced by another: {answered} requests answered through a gate, 0 failed"
    ));

    // What was replaced doesn't come back.
    company.give(&folder, &first);
    let failures = "sandgate_injector_failures_total{task=\"authority_files\"}";
    replica.until_metric(failures, 1).await;
    assert_eq!(
        (stage.signs().await, &stage.rotation().await["step"]),
        (second.clone(), &Value::from("done"))
    );
    let root = base64(&second[0]);
    until("the first has left the caBundles", async || {
        let found = ca_bundles(&cluster).await;
        (found == [root.as_str(), &root]).then_some(()).ok_or(found)
    })
    .await;
    replica.stop().await;
}
