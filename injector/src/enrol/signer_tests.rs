use super::*;
use crate::authority_stored::Stored;
use crate::enrol::evidence::Sandbox;
use crate::enrol::namespaces::Change;
use crate::settings::IdentitySource;
use crate::shape::SHAPES;
use crate::testing::{anchors, injected, sandbox_with, settings};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SignatureAlgorithm};
use sandgate_mesh::identity::{ExtendedKeyUsage, PeerId};

const HOUR: Duration = Duration::from_secs(3600);

/// What a kubelet asks for.
pub(in crate::enrol) fn request() -> RequestObject {
    request_with(&json!({}))
}

pub(in crate::enrol) fn request_with(change: &Value) -> RequestObject {
    request_for(&PKCS_ECDSA_P256_SHA256, change)
}

fn request_for(algorithm: &'static SignatureAlgorithm, change: &Value) -> RequestObject {
    let mut params = CertificateParams::default();
    // Nothing that it says counts.
    params.distinguished_name.push(DnType::CommonName, "sandgate-authority");
    let csr = params
        .serialize_request(&KeyPair::generate_for(algorithm).unwrap())
        .unwrap();
    let mut request = json!({
        "metadata": {"name": "req-1", "namespace": "team-a", "uid": "r-1"},
        "spec": {
            "signerName": "sandgate.dev/gate",
            "podName": "box", "podUID": "pod-1",
            "serviceAccountName": "runner", "serviceAccountUID": "s-1",
            "nodeName": "node-1", "nodeUID": "n-1",
            "maxExpirationSeconds": 7_862_400,
            "stubPKCS10Request": ByteString(csr.der().to_vec()),
        },
    });
    json_patch::merge(&mut request, change);
    serde_json::from_value(request).unwrap()
}

fn asked_with(change: &Value) -> Asked {
    Asked::of(&request_with(change)).unwrap()
}

fn asked() -> Asked {
    asked_with(&json!({}))
}

fn by_kubelet() -> Settings {
    Settings {
        identity_source: IdentitySource::PodCertificates,
        ..settings()
    }
}

/// The Sandbox's pod as it is stored while its kubelet waits for the certificate.
fn pod_of(settings: &Settings) -> Value {
    let owner = json!({
        "apiVersion": "agents.x-k8s.io/v1beta1", "kind": "Sandbox", "name": "box", "uid": "sandbox-1", "controller": true,
    });
    let mut pod = injected(
        settings,
        &sandbox_with(&json!({"metadata": {"ownerReferences": [owner]}})),
    );
    let stored = json!({
        "metadata": {"namespace": "team-a", "uid": "pod-1"},
        "spec": {"serviceAccountName": "runner", "nodeName": "node-1"},
        "status": {"phase": "Pending"},
    });
    json_patch::merge(&mut pod, &stored);
    pod
}

fn pod_with(change: &Value) -> Value {
    let mut pod = pod_of(&by_kubelet());
    json_patch::merge(&mut pod, change);
    pod
}

fn sandbox() -> Sandbox {
    sandbox_of("sandbox-1")
}

fn sandbox_of(uid: &str) -> Sandbox {
    Sandbox {
        uid: uid.into(),
        is_being_deleted: false,
    }
}

fn signer_with(settings: Settings) -> Signer {
    let client = crate::rig::unreachable();
    let opted_in = OptedIn::default();
    opted_in.note(Change::In("team-a".parse().unwrap())).unwrap();
    Signer {
        evidence: Evidence::new(client.clone()),
        client,
        settings,
        shapes: SHAPES,
        authority: watch::channel(Some(Arc::new(Stored::new()))).1,
        anchors: watch::channel(Some(Arc::new(anchors()))).1,
        opted_in,
        shown: Shown::default(),
        lifetime: 24 * HOUR,
    }
}

fn verified(signer: &Signer, asked: &Asked, pod: &Value, sandbox: Option<&Sandbox>) -> Result<Verified, Refusal> {
    let candidate = signer.candidate(asked, Some(pod)).map_err(|error| match error {
        Unanswered::Refused(refusal) => refusal,
        other => panic!("{other}"),
    })?;
    candidate.verify_request(&asked.account, sandbox, &signer.opted_in)
}

fn refused(asked: &Asked, pod: &Value, sandbox: Option<&Sandbox>) -> Refusal {
    verified(&signer_with(by_kubelet()), asked, pod, sandbox).expect_err("refused")
}

#[tokio::test]
async fn a_kubelet_gets_a_servers_certificate_for_the_gate_of_its_pod_as_the_api_server_wants_it() {
    let signer = signer_with(by_kubelet());
    let pod = pod_of(&by_kubelet());
    for (most, life) in [(7_862_400, 24 * HOUR + BACKDATED), (7200, 2 * HOUR)] {
        let asked = asked_with(&json!({"spec": {"maxExpirationSeconds": most}}));
        let verified = verified(&signer, &asked, &pod, Some(&sandbox())).unwrap();
        let granted = signer.sign(&asked, &verified).unwrap();
        let leaf = CertificateDer::from_pem_slice(granted.chain_pem.as_bytes()).unwrap();
        let identity = PeerId::from_leaf(&leaf, ExtendedKeyUsage::ServerAuth).unwrap();
        assert_eq!(
            identity.to_string(),
            "spiffe://cluster.local/ns/team-a/sandbox/box/pod/pod-1"
        );
        for random in [0.0, 1.0] {
            let status = issued(&granted, random).unwrap();
            let [begin, renew, end] = [status.not_before, status.begin_refresh_at, status.not_after]
                .map(|time| SystemTime::from(time.unwrap().0));
            let between = |from, to: SystemTime| to.duration_since(from).unwrap();
            // A second is lost where the clock is between two.
            let second = Duration::from_secs(1);
            assert!(
                between(begin, end) <= life && between(begin, end) + second >= life,
                "{most}"
            );
            assert!(between(begin, renew) + second >= life / 2, "{most}");
            assert!(between(renew, end) >= Duration::from_secs(600), "{most}");
        }
    }
}

#[tokio::test]
async fn what_can_never_be_right_is_denied() {
    let (pod, sandbox) = (pod_of(&by_kubelet()), sandbox());
    for (change, refusal) in [
        (json!({"spec": {"podUID": "pod-2"}}), Refusal::PodReplaced),
        (
            json!({"spec": {"serviceAccountName": "other"}}),
            Refusal::RequestAccount,
        ),
        (json!({"spec": {"nodeName": "node-2"}}), Refusal::RequestNode),
    ] {
        assert_eq!(refused(&asked_with(&change), &pod, Some(&sandbox)), refusal, "{change}");
        assert!(is_final(&refusal), "{refusal}");
    }
    let asked = asked();
    for (change, word) in [
        (
            json!({"metadata": {"labels": {"sandgate.dev/injected": null}}}),
            "not_injected",
        ),
        (json!({"metadata": {"ownerReferences": null}}), "no_owner"),
    ] {
        let refusal = refused(&asked, &pod_with(&change), Some(&sandbox));
        assert_eq!((refusal.as_str(), is_final(&refusal)), (word, true), "{change}");
    }
    // Another replica may know more of roots and settings than this one, and another release of what is refused.
    for change in [
        json!({"spec": {"hostNetwork": true}}),
        json!({"spec": {"initContainers": null}}),
    ] {
        let refusal = refused(&asked, &pod_with(&change), Some(&sandbox));
        assert_eq!((refusal.as_str(), is_final(&refusal)), ("shape", false), "{change}");
    }
    // A volume of the app's that holds the same.
    let mut thief = pod.clone();
    let stolen = pod["spec"]["volumes"].as_array().unwrap().iter();
    let mut stolen = stolen
        .clone()
        .find(|volume| volume["name"] == "sandgate-identity")
        .unwrap()
        .clone();
    stolen["name"] = "mine".into();
    thief["spec"]["volumes"].as_array_mut().unwrap().push(stolen);
    assert_eq!(refused(&asked, &thief, Some(&sandbox)).as_str(), "shape");
    // The control plane brings its gate another one.
    let enrolled = pod_of(&settings());
    let refusal = refused(&asked, &enrolled, Some(&sandbox));
    assert!(refusal == Refusal::RequestUnexpected && is_final(&refusal));
}

#[tokio::test]
async fn what_may_be_right_later_is_left_open() {
    let (asked, pod) = (asked(), pod_of(&by_kubelet()));
    let going = pod_with(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    for (pod, sandbox, refusal) in [
        (&going, Some(sandbox()), Refusal::PodGone),
        (&pod, None, Refusal::OwnerGone),
        (&pod, Some(sandbox_of("sandbox-2")), Refusal::OwnerGone),
    ] {
        assert_eq!(refused(&asked, pod, sandbox.as_ref()), refusal);
        assert!(!is_final(&refusal), "{refusal}");
    }
    let signer = signer_with(by_kubelet());
    let out = Change::Out("team-a".parse().unwrap());
    signer.opted_in.note(out).unwrap();
    let refusal = verified(&signer, &asked, &pod, Some(&sandbox())).unwrap_err();
    assert!(refusal == Refusal::NotOptedIn && !is_final(&refusal));
    // The operator accepts it again, perhaps.
    let mut other = pod.clone();
    other["spec"]["initContainers"][0]["image"] = "sandgate/sidecar:0".into();
    let refusal = refused(&asked, &other, Some(&sandbox()));
    assert!(refusal.as_str() == "image" && !is_final(&refusal));
}

#[tokio::test]
async fn gates_that_run_are_renewed_whatever_new_ones_get() {
    let asked = asked();
    // The operator has gone back to enrolment, and to another image.
    let today = Settings {
        image: "sandgate/sidecar:2".parse().unwrap(),
        ..settings()
    };
    let signer = signer_with(today);
    let pod = pod_of(&by_kubelet());
    let refusal = verified(&signer, &asked, &pod, Some(&sandbox())).unwrap_err();
    assert_eq!(refusal.as_str(), "image", "it hasn't shown anything yet");
    // Whoever may write a pod's status can say that it runs.
    let status = json!([{"name": "sandgate", "containerID": "containerd://1", "image": "", "imageID": "", "ready": true, "restartCount": 0}]);
    let said = pod_with(&json!({"status": {"phase": "Running", "initContainerStatuses": status}}));
    let refusal = verified(&signer, &asked, &said, Some(&sandbox())).unwrap_err();
    assert_eq!(refusal.as_str(), "image", "it is said to run");
    signer.shown.note(&asked.pod_uid);
    verified(&signer, &asked, &pod, Some(&sandbox())).unwrap();
}

#[tokio::test]
async fn another_kind_of_key_is_refused_by_name() {
    let signer = signer_with(by_kubelet());
    let asked = Asked::of(&request_for(&PKCS_ECDSA_P384_SHA384, &json!({}))).unwrap();
    let verified = verified(&signer, &asked, &pod_of(&by_kubelet()), Some(&sandbox())).unwrap();
    let error = signer.sign(&asked, &verified).unwrap_err();
    assert!(matches!(error, Unanswered::Sign(SignError::Request(_))), "{error}");
}

#[test]
fn words_become_reasons_as_kubernetes_has_them() {
    assert_eq!(camel("request_account"), "RequestAccount");
    assert_eq!(camel("UnsupportedKeyType"), "UnsupportedKeyType");
}
