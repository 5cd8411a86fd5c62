use super::*;
use crate::authority::NewRoot;
use crate::captured::Captured;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhook;
use kube::api::ObjectMeta;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

fn root() -> Root {
    Root::from_pem(NewRoot::generate().unwrap().certificate_pem.as_bytes()).unwrap()
}

/// A bundle of these roots.
fn bundle(roots: &[&Root]) -> String {
    pem(&roots.iter().map(|root| root.der()).collect::<Vec<_>>())
}

fn foreign() -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "somebody-else");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn trusted(roots: &[&Root]) -> Trusted {
    Trusted {
        roots: roots.iter().map(|root| (*root).clone()).collect(),
        retired: Vec::new(),
    }
}

fn after(bundle: &str, roots: &[&Root]) -> Option<String> {
    corrected(bundle.as_bytes(), &trusted(roots), SystemTime::now())
}

#[test]
fn an_empty_bundle_gets_every_root() {
    let (current, next) = (root(), root());
    assert_eq!(after("", &[&current, &next]), Some(bundle(&[&current, &next])));
}

#[test]
fn an_older_root_that_is_still_valid_stays_beside_a_new_one() {
    let (old, new) = (root(), root());
    assert_eq!(after(&bundle(&[&old]), &[&new]), Some(bundle(&[&old, &new])));
}

#[test]
fn a_root_that_was_retired_goes_and_comes_back_with_nobody() {
    let (old, new) = (root(), root());
    let told = Trusted {
        retired: vec![old.id()],
        ..trusted(&[&new])
    };
    let after = |bundle: &str| corrected(bundle.as_bytes(), &told, SystemTime::now());
    assert_eq!(after(&bundle(&[&old, &new])), Some(bundle(&[&new])));
    assert_eq!(after(&bundle(&[&new])), None);
    let confirmed = Confirmed::now(told.clone());
    assert!(confirmed.is_rid_of(&[old.id()]) && !confirmed.is_rid_of(&[old.id(), new.id()]));
    assert!(!Confirmed::default().is_rid_of(&[]), "nobody has looked");
}

#[test]
fn replicas_that_know_different_roots_do_not_undo_each_other() {
    let (mine, yours) = (root(), root());
    let both = after(&bundle(&[&mine]), &[&yours]).unwrap();
    assert_eq!(after(&both, &[&mine]), None);
    assert_eq!(after(&both, &[&yours]), None);
    assert_eq!(after(&bundle(&[&yours, &mine]), &[&mine]), None, "order means nothing");
}

#[test]
fn an_expired_root_goes() {
    let (old, new) = (root(), root());
    let later = old.not_after() + Duration::from_secs(1);
    let both = bundle(&[&old, &new]);
    let corrected = corrected(both.as_bytes(), &Trusted::default(), later).unwrap();
    assert_eq!(corrected, "", "both are as old");
}

#[test]
fn certificates_of_others_and_what_is_no_certificate_go() {
    let mine = root();
    let right = Some(bundle(&[&mine]));
    for wrong in [
        foreign(),
        format!("{}{}", foreign(), bundle(&[&mine])),
        "junk".to_owned(),
        format!("{}-----BEGIN CERTIFICATE-----\n!\n", bundle(&[&mine])),
    ] {
        assert_eq!(after(&wrong, &[&mine]), right, "{wrong}");
    }
}

/// A configuration with these bundles.
fn configuration(bundles: &[Option<String>]) -> MutatingWebhookConfiguration {
    let webhook = |bundle: &Option<String>| MutatingWebhook {
        name: "w".into(),
        client_config: WebhookClientConfig {
            ca_bundle: bundle.clone().map(|bundle| ByteString(bundle.into_bytes())),
            ..WebhookClientConfig::default()
        },
        ..MutatingWebhook::default()
    };
    MutatingWebhookConfiguration {
        metadata: ObjectMeta {
            resource_version: Some("7".into()),
            ..ObjectMeta::default()
        },
        webhooks: Some(bundles.iter().map(webhook).collect()),
    }
}

#[test]
fn only_bundles_that_are_wrong_are_touched_and_only_in_the_version_that_was_seen() {
    let mine = root();
    let found = configuration(&[Some(bundle(&[&mine])), None, Some("junk".into())]);
    let patch = correction(&found, &trusted(&[&mine]), SystemTime::now()).unwrap();
    let patch = serde_json::to_value(&patch).unwrap();
    let encoded = STANDARD.encode(bundle(&[&mine]));
    let expected = serde_json::json!([
        {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
        {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": encoded},
        {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": encoded},
    ]);
    assert_eq!(patch, expected);
}

#[test]
fn a_configuration_that_is_right_or_empty_is_left_alone() {
    let mine = root();
    for found in [configuration(&[Some(bundle(&[&mine]))]), configuration(&[])] {
        assert_eq!(correction(&found, &trusted(&[&mine]), SystemTime::now()), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_counts_as_known_only_after_it_was_there_for_a_while() {
    let (mine, other) = (root(), root());
    let settle = Duration::from_secs(10);
    assert!(!Confirmed::default().holds(&mine.id(), Duration::ZERO));
    let confirmed = Confirmed::now(trusted(&[&mine]));
    assert!(!confirmed.holds(&mine.id(), settle));
    tokio::time::advance(settle).await;
    assert!(confirmed.holds(&mine.id(), settle));
    assert!(!confirmed.holds(&other.id(), Duration::ZERO));
}

#[tokio::test]
async fn a_configuration_that_is_not_there_is_warned_of_once_and_counted_each_time() {
    let bundle = CaBundle {
        client: crate::rig::unreachable(),
        name: "sandgate-injector".into(),
        trusted: watch::channel(Trusted::default()).1,
        confirmed: watch::channel(Confirmed::default()).0,
        metrics: Arc::new(Metrics::new().unwrap()),
        resync: Duration::from_secs(60),
    };
    let series = |name: &str| {
        let families = bundle.metrics.registry.gather();
        let family = families.iter().find(|family| family.name() == name)?;
        let metric = &family.get_metric()[0];
        Some((
            metric.get_label()[0].value().to_owned(),
            metric.get_gauge().get_value(),
            metric.get_counter().get_value(),
        ))
    };
    let there = || series("sandgate_injector_webhook_configurations").map(|(kind, there, _)| (kind, there));
    let tell = |before, now| Captured::of(|| bundle.tell::<MutatingWebhookConfiguration>(before, now));
    let kind = "MutatingWebhookConfiguration".to_owned();

    assert!(
        tell(None, None).is_empty() && there().is_none(),
        "nobody has looked yet"
    );
    assert!(tell(None, Some(true)).is_empty());
    assert_eq!(there(), Some((kind.clone(), 1.0)));
    let warned = tell(Some(true), Some(false));
    assert!(
        warned.len() == 1 && warned[0].contains("name=\"sandgate-injector\""),
        "{warned:?}"
    );
    assert_eq!(there(), Some((kind, 0.0)));
    assert!(tell(Some(false), Some(false)).is_empty(), "told already");
    assert_eq!(tell(None, Some(false)).len(), 1, "none at the start");
    let (task, _, failures) = series("sandgate_injector_failures_total").unwrap();
    assert_eq!((task.as_str(), failures), ("ca_bundle", 3.0));
}
