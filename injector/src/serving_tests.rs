use super::*;
use crate::ca_bundle::Trusted;
use crate::rig::{Client, PATIENCE, Rig, certificate, connect};
use crate::testing::settings;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use std::collections::HashSet;
use tokio::time::Instant;

fn issuer(timing: Timing, stored: Option<Stored>) -> Issuer {
    Issuer {
        authority: watch::channel(stored.map(Arc::new)).1,
        names: vec![crate::rig::NAME.parse().unwrap()],
        timing,
        confirmed: Vec::new(),
        served: watch::channel(None).0,
        metrics: Arc::new(Metrics::new().unwrap()),
        current: None,
    }
}

#[test]
fn without_a_root_nothing_is_served() {
    let mut issuer = issuer(Timing::default(), None);
    issuer.check();
    assert!(issuer.served.borrow().is_none());
}

#[test]
fn once_there_is_a_root_something_is_served_and_not_issued_again_at_each_look() {
    let mut issuer = issuer(Timing::default(), Some(Stored::new()));
    issuer.check();
    let first = issuer.served.borrow().clone().unwrap();
    issuer.check();
    assert!(Arc::ptr_eq(&first, issuer.served.borrow().as_ref().unwrap()));
}

/// No timer is part of that: the next look would be in an hour.
#[tokio::test]
async fn a_root_that_is_told_is_served_under_at_once() {
    let timing = Timing {
        retry: Duration::from_secs(3600),
        ..Timing::default()
    };
    let mut issuer = issuer(timing, None);
    let (tell, authority) = watch::channel(None);
    issuer.authority = authority;
    let mut served = issuer.served.subscribe();
    let running = tokio::spawn(issuer.run());
    tokio::task::yield_now().await;
    tell.send_replace(Some(Arc::new(Stored::new())));
    tokio::time::timeout(PATIENCE, served.changed()).await.unwrap().unwrap();
    assert!(served.borrow().is_some());
    running.abort();
}

/// Renews three times under clients that connect anew and one that stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_cost_no_request() {
    let rig = Rig::start(settings()).await;
    // Certificates count whole seconds, so this is what still holds for two of them.
    let timing = Timing {
        lifetime: Duration::from_secs(4),
        check: Duration::from_millis(20),
        ..Timing::default()
    };
    let mut issuer = issuer(timing, Some(Stored::new()));
    issuer.served = rig.serve.clone();
    issuer.check();
    let trusted = issuer.current.as_ref().unwrap().root.clone();
    let renewing = tokio::spawn(issuer.run());
    let request = || {
        Request::post("/mutate")
            .header("content-type", "application/json")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let mut stays = Client::new(connect(rig.address, &trusted, b"http/1.1").await.unwrap(), b"http/1.1").await;
    let (mut seen, started) = (HashSet::new(), Instant::now());
    while seen.len() < 4 {
        assert!(started.elapsed() < 3 * PATIENCE, "{} certificates in time", seen.len());
        let stream = connect(rig.address, &trusted, b"h2")
            .await
            .expect("every handshake succeeds");
        seen.insert(certificate(&stream).to_vec());
        let mut comes = Client::new(stream, b"h2").await;
        comes.send(request()).await.expect("every request is answered");
        stays.send(request()).await.expect("the old connection goes on");
    }
    renewing.abort();
}

#[test]
fn replicas_renew_at_about_half_life_and_not_at_once() {
    let (early, late) = (renewal(SERVING_LIFETIME, 0.0), renewal(SERVING_LIFETIME, 1.0));
    let hours = |duration: Duration| duration.as_secs_f64() / 3600.0;
    assert!(
        (hours(early) - 10.8).abs() < 0.01 && (hours(late) - 13.2).abs() < 0.01,
        "{early:?} {late:?}"
    );
}

#[test]
fn a_process_that_was_paused_renews_at_its_next_look() {
    let mut issuer = issuer(Timing::default(), Some(Stored::new()));
    issuer.check();
    let current = issuer.current.as_mut().unwrap();
    current.renew_at = SystemTime::now() - Duration::from_secs(1);
    let root = current.root.clone();
    assert!(issuer.is_due(&root));
}

#[tokio::test(start_paused = true)]
async fn a_new_root_is_served_under_only_after_api_servers_were_told() {
    let timing = Timing::default();
    let mut issuer = issuer(timing, Some(Stored::new()));
    let (confirm, confirmed) = watch::channel(Confirmed::default());
    let (confirm_other, confirmed_other) = watch::channel(Confirmed::default());
    issuer.confirmed = vec![confirmed, confirmed_other];
    issuer.current = Some(issuer.issue(&Stored::new()).unwrap());
    let new = Stored::new();
    let root = new.authority.root().clone();
    assert!(!issuer.is_due(&root), "nobody was told");
    let trusted = Trusted {
        roots: vec![root.clone()],
        retired: Vec::new(),
    };
    confirm.send_replace(Confirmed::now(trusted.clone()));
    tokio::time::advance(timing.settle).await;
    assert!(!issuer.is_due(&root), "the other configuration doesn't hold it");
    confirm_other.send_replace(Confirmed::now(trusted));
    assert!(!issuer.is_due(&root), "API servers follow with a delay");
    tokio::time::advance(timing.settle).await;
    assert!(issuer.is_due(&root));
}

/// How long after the Secret was written the last replica is served under the new root: it has looked at the Secret just before.
async fn last_served(timing: Timing) -> Duration {
    let next = Stored::new();
    let root = next.authority.root().clone();
    let (tell, authority) = watch::channel(Some(Arc::new(Stored::new())));
    let (confirm, confirmed) = watch::channel(Confirmed::default());
    let issuer = Issuer {
        authority,
        confirmed: vec![confirmed],
        ..issuer(timing, None)
    };
    let mut served = issuer.served.subscribe();
    let running = tokio::spawn(issuer.run());
    served.wait_for(Option::is_some).await.unwrap();
    let written = Instant::now();
    tokio::time::sleep(timing.check).await;
    tell.send_replace(Some(Arc::new(next)));
    confirm.send_replace(Confirmed::now(Trusted {
        roots: vec![root.clone()],
        retired: Vec::new(),
    }));
    let is_new = |served: &Option<Arc<Serving>>| served.as_ref().is_some_and(|served| served.under == Some(root.id()));
    served.wait_for(is_new).await.unwrap();
    running.abort();
    written.elapsed()
}

/// Or API servers would meet a replica that they don't believe: each step is given the time that the slowest takes, however its
/// looks and the settling of API servers compare.
#[tokio::test(start_paused = true)]
async fn no_step_of_a_replacement_is_faster_than_the_last_replica_and_the_last_api_server() {
    let seconds = |check, settle| Timing {
        check: Duration::from_secs(check),
        settle: Duration::from_secs(settle),
        ..Timing::default()
    };
    for timing in [
        Timing::default(),
        seconds(2, 10),
        seconds(7, 10),
        seconds(10, 10),
        seconds(1, 60),
    ] {
        let served = last_served(timing).await;
        assert!(served <= timing.waits().replicas, "{timing:?}: {served:?}");
        let (old, mut leaving) = (Stored::new().authority.root().id(), timing.leaving());
        assert_eq!(leaving.gone(&[old]), []);
        // Who reads the new configuration at once would miss the old root as long as somebody is served under it; and who reads
        // it last may have met the new one only now.
        let needed = served + timing.settle;
        tokio::time::advance(needed.saturating_sub(Duration::from_millis(1))).await;
        assert_eq!(leaving.gone(&[old]), [], "{timing:?}");
        tokio::time::advance(timing.waits().replicas).await;
        assert_eq!(leaving.gone(&[old]), [old], "it does leave");
    }
    // The looks alone wouldn't do.
    let timing = seconds(2, 10);
    assert!(last_served(timing).await > timing.replicas());
}

#[test]
fn a_new_root_does_not_wait_for_longer_than_the_old_certificate_lives() {
    let mut issuer = issuer(Timing::default(), Some(Stored::new()));
    issuer.confirmed = vec![watch::channel(Confirmed::default()).1];
    issuer.current = Some(issuer.issue(&Stored::new()).unwrap());
    issuer.current.as_mut().unwrap().not_after = SystemTime::now() - Duration::from_secs(1);
    assert!(issuer.is_due(Stored::new().authority.root()));
}

#[tokio::test]
async fn files_are_followed_and_bad_ones_keep_the_old_certificate() {
    let folder = std::env::temp_dir().join(format!("sandgate-serving-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (chain, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let metrics = Arc::new(Metrics::new().unwrap());
    assert!(
        from_files(chain.clone(), key.clone(), &metrics).is_err(),
        "there are none yet"
    );
    let write = |stored: &Stored| {
        let issued = stored
            .authority
            .serving(&["a.svc".parse().unwrap()], SERVING_LIFETIME)
            .unwrap();
        std::fs::write(&key, issued.key_pem).unwrap();
        std::fs::write(&chain, issued.chain_pem).unwrap();
    };
    write(&Stored::new());
    let mut served = from_files(chain.clone(), key.clone(), &metrics).unwrap();
    let first = served.borrow_and_update().clone().unwrap();
    assert!(first.valid_at(SystemTime::now()));
    std::fs::write(&chain, "junk").unwrap();
    write(&Stored::new());
    tokio::time::timeout(PATIENCE, served.changed()).await.unwrap().unwrap();
    assert!(!Arc::ptr_eq(&first, served.borrow().as_ref().unwrap()));
    std::fs::remove_dir_all(&folder).unwrap();
}
