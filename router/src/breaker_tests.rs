use super::*;
use sandgate_mesh::identity::ExpectedSandbox;
use sandgate_mesh::sandbox::SandboxKey;
use tokio::time::advance;

const FAILURES: u32 = 3;
const WINDOW: Duration = Duration::from_secs(30);
const OPEN: Duration = Duration::from_secs(2);

fn breakers() -> Breakers {
    let settings = BreakerSettings {
        failures: NonZeroU32::new(FAILURES).unwrap(),
        window: WINDOW,
        open_time: OPEN,
    };
    Breakers::new(settings, Metrics::new().unwrap().breakers().unwrap())
}

fn plain(last: u8) -> Arc<Target> {
    Arc::new(Target {
        endpoint: ([10, 0, 0, last], 14443).into(),
        expected: None,
    })
}

/// The sandbox `alpha` in a pod of this UID.
fn pod(last: u8, uid: &str) -> Arc<Target> {
    Arc::new(Target {
        endpoint: ([10, 0, 0, last], 14443).into(),
        expected: Some(ExpectedSandbox {
            trust_domain: "cluster.local".parse().unwrap(),
            sandbox: SandboxKey {
                namespace: "team-a".parse().unwrap(),
                name: "alpha".parse().unwrap(),
            },
            pod_uid: Some(uid.parse().unwrap()),
        }),
    })
}

fn fails(breakers: &Breakers, target: &Arc<Target>, times: u32) {
    for _ in 0..times {
        breakers.dial(target).unwrap().found(Dialed::Nobody);
    }
}

fn is_refused(breakers: &Breakers, target: &Arc<Target>) -> bool {
    let dial = breakers.dial(target);
    dial.is_err()
}

#[tokio::test(start_paused = true)]
async fn after_so_many_failures_in_a_row_requests_are_refused_and_counted() {
    let (breakers, host) = (breakers(), plain(1));
    fails(&breakers, &host, FAILURES - 1);
    assert!(!is_refused(&breakers, &host) && !breakers.is_open(&host));
    fails(&breakers, &host, 1);
    for _ in 0..5 {
        assert!(is_refused(&breakers, &host) && breakers.is_open(&host));
    }
    assert_eq!((breakers.metrics.open.get(), breakers.metrics.refused.get()), (1, 5));
    assert!(!is_refused(&breakers, &plain(2)), "another host");
}

#[tokio::test(start_paused = true)]
async fn somebody_in_between_a_refusal_included_starts_the_count_again() {
    let (breakers, host) = (breakers(), plain(1));
    for _ in 0..10 {
        fails(&breakers, &host, FAILURES - 1);
        breakers.dial(&host).unwrap().found(Dialed::Somebody);
    }
    assert!(!is_refused(&breakers, &host));
    assert!(breakers.hosts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn failures_longer_apart_than_the_window_are_not_in_a_row() {
    let (breakers, host) = (breakers(), plain(1));
    for _ in 0..5 {
        fails(&breakers, &host, FAILURES - 1);
        advance(WINDOW + Duration::from_millis(1)).await;
    }
    assert!(!is_refused(&breakers, &host));
    breakers.sweep();
    assert!(breakers.hosts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_says_nothing_of_the_host_counts_for_nothing() {
    let (breakers, host) = (breakers(), plain(1));
    for _ in 0..10 {
        breakers.dial(&host).unwrap().found(Dialed::Unknown);
        // A client that went away.
        drop(breakers.dial(&host).unwrap());
    }
    assert!(!is_refused(&breakers, &host));
    fails(&breakers, &host, FAILURES - 1);
    breakers.dial(&host).unwrap().found(Dialed::Unknown);
    fails(&breakers, &host, 1);
    assert!(is_refused(&breakers, &host));
}

#[tokio::test(start_paused = true)]
async fn after_a_while_one_tries_and_what_it_finds_holds_for_all() {
    let (breakers, host) = (breakers(), plain(1));
    fails(&breakers, &host, FAILURES);
    for _ in 0..3 {
        advance(Duration::from_millis(1_999)).await;
        assert!(is_refused(&breakers, &host));
        advance(Duration::from_millis(1)).await;
        let probe = breakers.dial(&host).unwrap();
        for _ in 0..5 {
            assert!(is_refused(&breakers, &host), "one is enough");
        }
        advance(OPEN * 2).await;
        breakers.sweep();
        assert!(is_refused(&breakers, &host), "it takes its time");
        probe.found(Dialed::Nobody);
        assert_eq!(breakers.metrics.open.get(), 1);
    }
    advance(OPEN).await;
    breakers.dial(&host).unwrap().found(Dialed::Somebody);
    assert!(!is_refused(&breakers, &host));
    assert_eq!(breakers.metrics.open.get(), 0);
    // As if nothing had been.
    fails(&breakers, &host, FAILURES - 1);
    assert!(!is_refused(&breakers, &host));
}

#[tokio::test(start_paused = true)]
async fn when_the_one_that_tries_goes_away_the_next_one_tries() {
    let (breakers, host) = (breakers(), plain(1));
    fails(&breakers, &host, FAILURES);
    advance(OPEN).await;
    for _ in 0..3 {
        let probe = breakers.dial(&host).unwrap();
        assert!(is_refused(&breakers, &host));
        drop(probe);
    }
    breakers.dial(&host).unwrap().found(Dialed::Somebody);
    assert!(!is_refused(&breakers, &host));
}

#[tokio::test(start_paused = true)]
async fn dials_that_were_under_way_when_it_opened_prolong_nothing() {
    let (breakers, host) = (breakers(), plain(1));
    let late: Vec<_> = (0..20).map(|_| breakers.dial(&host).unwrap()).collect();
    fails(&breakers, &host, FAILURES);
    advance(OPEN).await;
    let probe = breakers.dial(&host).unwrap();
    for late in late {
        late.found(Dialed::Nobody);
    }
    assert!(is_refused(&breakers, &host), "another probe beside the first");
    probe.found(Dialed::Somebody);
    assert!(!is_refused(&breakers, &host));
    assert_eq!(breakers.metrics.open.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_sandboxs_next_pod_is_another_host_even_at_the_same_address() {
    let breakers = breakers();
    let gone = pod(1, "first");
    fails(&breakers, &gone, FAILURES);
    assert!(is_refused(&breakers, &gone) && is_refused(&breakers, &pod(1, "first")));
    for next in [pod(1, "second"), pod(2, "first"), plain(1)] {
        assert!(!is_refused(&breakers, &next), "{next:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_nobody_asks_for_is_forgotten_and_memory_has_an_end() {
    let breakers = breakers();
    let host = |number: usize| {
        Arc::new(Target {
            endpoint: ([10, 0, 0, 1], u16::try_from(number).unwrap()).into(),
            expected: None,
        })
    };
    for number in 0..HOSTS * 2 {
        fails(&breakers, &host(number), FAILURES);
    }
    assert_eq!(breakers.hosts().len(), HOSTS);
    assert_eq!(usize::try_from(breakers.metrics.open.get()).unwrap(), HOSTS);
    // Where there is no room, everybody dials.
    assert!(is_refused(&breakers, &host(0)) && !is_refused(&breakers, &host(HOSTS * 2 - 1)));
    advance(OPEN + WINDOW + Duration::from_millis(1)).await;
    fails(&breakers, &host(HOSTS * 2), FAILURES);
    assert_eq!((breakers.hosts().len(), breakers.metrics.open.get()), (1, 1));
    advance(OPEN + WINDOW + Duration::from_millis(1)).await;
    breakers.sweep();
    assert_eq!((breakers.hosts().len(), breakers.metrics.open.get()), (0, 0));
}
