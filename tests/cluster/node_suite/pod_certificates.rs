//! The second way to an identity: the kubelet asks for a Pod Certificate, the injector signs it, and the gate finds it in a
//! volume. The same from end to end as where gates are enrolled.

use crate::install::{release, rolled_out};
use crate::pods::{Running, app, router, start_sandbox, stored, team, until_answered};
use sandgate_cluster_tests::kubectl::exec;
use sandgate_cluster_tests::router::ask;
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, Namespace, tests, until};
use sandgate_mesh::credentials::Validity;
use sandgate_mesh::identity::{ExtendedKeyUsage, PeerId};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

pub(crate) const TESTS: &[Test] = tests![@alone a_sandbox_whose_gate_has_a_pod_certificate_answers];

/// What is counted here is the router's view of a pod: it hears of readiness as everybody does.
const SOON: Duration = Duration::from_secs(5);

async fn a_sandbox_whose_gate_has_a_pod_certificate_answers(cluster: Cluster) {
    let found = tokio::task::spawn_local({
        let cluster = cluster.clone();
        async move { by_pod_certificate(&cluster).await }
    });
    let found = found.await;
    // Whatever was found: other tests have the release as it was.
    choose(
        &cluster,
        &[
            "injection.identitySource=enrolment",
            "injector.signPodCertificates=false",
        ],
    )
    .await;
    found.expect("what must be so with Pod Certificates");
}

async fn choose(cluster: &Cluster, values: &[&'static str]) {
    release(values).await;
    rolled_out(cluster, "sandgate-injector").await;
}

async fn by_pod_certificate(cluster: &Cluster) {
    let team = team(cluster).await;
    let enrolled = start_sandbox(&team, "enrolled").await;
    assert_eq!(volumes(&team, "enrolled").await, ["sandgate-state", "sandgate-token"]);

    choose(cluster, &["injection.identitySource=pod-certificates"]).await;
    let started = Instant::now();
    let pod = start_sandbox(&team, "certified").await;
    let ready = started.elapsed();
    let answered = until_answered(&team, "certified", &pod).await;
    note(&format!(
        "Ready {:.1} s after it was created, answered {:.2} s later",
        ready.as_secs_f64(),
        answered.as_secs_f64()
    ));
    assert!(answered < SOON, "{answered:?}");
    assert_eq!(
        volumes(&team, "certified").await,
        ["sandgate-identity", "sandgate-state"]
    );
    // The gate is what answers: a port that the pod doesn't declare is refused by name.
    let (status, body) = ask(router(cluster).await, team.name(), "certified", 9999, "").await;
    assert_eq!(status, 403, "{body}");
    is_the_pods_own(&team, &pod).await;
    out_of_the_apps_reach(&team, &pod).await;
    for_nobody_else(cluster, &team, &pod).await;
    // Gates that were born before go on.
    until_answered(&team, "enrolled", &enrolled).await;

    // And the other way round.
    choose(cluster, &["injector.signPodCertificates=true"]).await;
    let after = start_sandbox(&team, "after").await;
    assert_eq!(volumes(&team, "after").await, ["sandgate-state", "sandgate-token"]);
    for (name, pod) in [("after", &after), ("certified", &pod), ("enrolled", &enrolled)] {
        until_answered(&team, name, pod).await;
    }
}

/// The names of a pod's volumes that are the gate's.
async fn volumes(team: &Namespace, name: &str) -> Vec<String> {
    let pod = stored(team, name).await.unwrap();
    let volumes = pod["spec"]["volumes"].as_array().unwrap().iter();
    let names = volumes.filter_map(|volume| volume["name"].as_str()).map(str::to_owned);
    let mut names: Vec<_> = names.filter(|name| name.starts_with("sandgate-")).collect();
    names.sort();
    names
}

/// The requests for certificates in a namespace.
async fn requests(team: &Namespace) -> Vec<Value> {
    let path = format!(
        "/apis/certificates.k8s.io/v1/namespaces/{}/podcertificaterequests",
        team.name()
    );
    let listed = team
        .cluster()
        .send(http::Request::get(path).body(Vec::new()).unwrap())
        .await;
    listed.unwrap()["items"].as_array().cloned().unwrap_or_default()
}

/// The certificate that was given for a pod is a server's with the pod's identity and no other, and lives as long as the release
/// says.
async fn is_the_pods_own(team: &Namespace, pod: &Running) {
    let requests = requests(team).await;
    let own: Vec<_> = requests
        .iter()
        .filter(|request| request["spec"]["podUID"] == *pod.uid)
        .collect();
    let [request] = own.as_slice() else {
        panic!("{requests:?}")
    };
    assert_eq!(request["spec"]["signerName"], "sandgate.dev/gate");
    assert_eq!(request["status"]["conditions"][0]["type"], "Issued", "{request}");
    let chain = request["status"]["certificateChain"].as_str().unwrap();
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    let identity = PeerId::from_leaf(&leaf, ExtendedKeyUsage::ServerAuth).unwrap();
    let expected = format!(
        "spiffe://cluster.local/ns/{}/sandbox/certified/pod/{}",
        team.name(),
        pod.uid
    );
    assert_eq!(identity.to_string(), expected);
    assert!(
        PeerId::from_leaf(&leaf, ExtendedKeyUsage::ClientAuth).is_err(),
        "it is a client's, too"
    );
    let validity = Validity::of(&leaf).unwrap();
    let life = validity.not_after.duration_since(validity.not_before).unwrap();
    assert_eq!(life, Duration::from_secs(24 * 3600 + 60));
}

/// The app finds neither key nor certificate.
async fn out_of_the_apps_reach(team: &Namespace, pod: &Running) {
    const LOOK: &str = "import os\n\
        for folder, _, files in os.walk('/'):\n \
         for file in files:\n  \
          if file in ('credentials.pem', 'roots.pem', 'policy.json'): print(os.path.join(folder, file))";
    let found = exec(team.name(), &pod.name, "app", &["python3", "-c", LOOK]).await;
    assert_eq!(found, "", "the app reaches the gate's files");
}

/// Nobody gets such a certificate for an app: not by a volume of a pod, nor by asking as a kubelet would.
async fn for_nobody_else(cluster: &Cluster, team: &Namespace, pod: &Running) {
    let mut spec = app();
    let certificate =
        json!({"signerName": "sandgate.dev/gate", "keyType": "ECDSAP256", "credentialBundlePath": "mine.pem"});
    spec["volumes"] = json!([{"name": "mine", "projected": {"sources": [{"podCertificate": certificate}]}}]);
    let thief = json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": "thief", "labels": {"sandgate.dev/inject": "enabled"}},
    });
    let told = team.refused(&thief).await;
    assert!(told.contains("podCertificate.signerName"), "{told}");

    let mut forged = requests(team).await.remove(0);
    forged["apiVersion"] = "certificates.k8s.io/v1".into();
    forged["kind"] = "PodCertificateRequest".into();
    forged["metadata"] = json!({"name": "forged", "namespace": team.name()});
    forged.as_object_mut().unwrap().remove("status");
    let told = team.refused(&forged).await;
    assert!(told.contains("only kubelets get one"), "{told}");

    // A pod without a gate, in a namespace that gates are none of: its kubelet asks, and the injector refuses.
    let elsewhere = cluster.namespace(&[]).await;
    let ungated = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ungated"}, "spec": spec});
    elsewhere.admitted(&ungated).await;
    let denied = until("the injector has answered", async || {
        let found = requests(&elsewhere).await;
        let conditions = found.first().map(|request| request["status"]["conditions"].clone());
        let answered = conditions.filter(Value::is_array);
        answered.ok_or(found)
    })
    .await;
    assert_eq!(
        (&denied[0]["type"], &denied[0]["reason"]),
        (&json!("Denied"), &json!("NotInjected"))
    );
    until_answered(team, "certified", pod).await;
}
