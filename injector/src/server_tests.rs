use super::*;
use crate::rig::PATIENCE;
use sandgate_mesh::policy::model::DefaultPolicy;
use tokio::sync::mpsc;

#[tokio::test(start_paused = true)]
async fn a_background_task_that_panics_starts_again_and_ends_with_the_process() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let (drain, draining) = drain::channel();
    let (started, mut starts) = mpsc::unbounded_channel();
    keep_running("certificate", &metrics, draining, move || {
        let started = started.clone();
        async move {
            started.send(()).unwrap();
            panic!("a defect");
        }
    });
    for _ in 0..3 {
        tokio::time::timeout(PATIENCE, starts.recv()).await.unwrap().unwrap();
    }
    assert!(drain.finish(PATIENCE).await);
    assert_eq!(starts.recv().await, None);
}

#[test]
fn a_replica_is_ready_with_a_certificate_and_a_root_for_gates_until_it_is_told_to_end() {
    let (serve, served) = watch::channel(None);
    let (give, anchors) = watch::channel(None);
    let (leave, _) = drain::channel();
    let ready = readiness(&served, &anchors, leave.state());
    let metrics = Metrics::new().unwrap();
    metrics.follow_readiness(Arc::clone(&ready)).unwrap();
    let scraped = || {
        let families = metrics.registry.gather();
        let ready = families
            .iter()
            .find(|family| family.name() == "sandgate_injector_ready");
        ready.map(|family| family.get_metric()[0].get_gauge().get_value())
    };
    assert_eq!(ready().unwrap_err(), "no valid serving certificate");
    assert_eq!(scraped(), Some(0.0));
    let stored = crate::authority_stored::Stored::new();
    let issued = stored.authority.serving(&["a.svc".parse().unwrap()], PATIENCE).unwrap();
    let (chain, key) = (issued.chain_pem.as_bytes(), issued.key_pem.as_bytes());
    let credentials = sandgate_mesh::credentials::FrontCredentials::from_pem(chain, key).unwrap();
    serve.send_replace(Some(Arc::new(
        crate::serving::Serving::new(&credentials, None).unwrap(),
    )));
    assert_eq!(ready().unwrap_err(), "no root certificate for gates");
    give.send_replace(Some(Arc::new(Anchors::of(&stored.roots).unwrap())));
    assert!(ready().is_ok());
    assert_eq!(scraped(), Some(1.0));
    leave.start();
    assert_eq!(ready().unwrap_err(), "draining");
    assert_eq!(scraped(), Some(0.0));
}

#[tokio::test]
async fn nothing_that_waits_for_the_api_server_holds_up_the_end() {
    let config = Config {
        settings: crate::testing::settings(),
        webhook: ([127, 0, 0, 1], 0).into(),
        admin: ([127, 0, 0, 1], 0).into(),
        certificate: CertificateSource::Issued {
            names: vec!["a.svc".parse().unwrap()],
            manage_ca_bundle: true,
        },
        authority_secret: "sandgate-authority".into(),
        authority_files: None,
        roots_config_map: "sandgate-roots".into(),
        schedule: crate::rotation::Schedule {
            max_age: None,
            routers_follow_within: None,
        },
        default_policy: DefaultPolicy::Deny,
        gate_certificate_lifetime: PATIENCE,
        signs_pod_certificates: false,
        webhook_configuration: "sandgate-injector".into(),
        restrict_connect: false,
        network_policy: true,
        drain_delay: Duration::ZERO,
        shutdown_timeout: 10 * PATIENCE,
        log_level: "info".into(),
    };
    let log = LineLog::to(std::io::sink()).unwrap();
    let injector = Injector::bind(config, crate::rig::unreachable(), Timing::default(), log).unwrap();
    let running = injector.run(tokio::task::yield_now());
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}
