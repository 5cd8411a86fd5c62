use super::super::seen::tests::{object, pod};
use super::super::seen::{Pod, Sighting, seen as sighting};
use super::*;
use sandgate_mesh::contract::{GATE_CONTAINER, INJECTED, INJECTED_LABEL, WARM_POOL_LABEL};
use serde_json::json;

fn seen(name: &str, ip: &str, change: impl FnOnce(&mut serde_json::Value)) -> Pod {
    let mut pod = pod(name, ip);
    change(&mut pod);
    match sighting(&object(&pod)) {
        Some(Sighting::Running(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

fn plain(name: &str, ip: &str) -> Pod {
    seen(name, ip, |_| {})
}

fn gated(name: &str, ip: &str) -> Pod {
    seen(name, ip, |pod| {
        pod["metadata"]["labels"][INJECTED_LABEL] = INJECTED.into();
        pod["spec"]["initContainers"] = json!([{"name": GATE_CONTAINER, "image": "gate"}]);
    })
}

fn pooled(name: &str, ip: &str) -> Pod {
    seen(name, ip, |pod| {
        pod["metadata"]["labels"][WARM_POOL_LABEL] = "pool".into();
    })
}

fn table(pods: impl IntoIterator<Item = Pod>) -> Table {
    let mut table = Table::new("cluster.local".parse().unwrap(), false);
    table.replace_pods(pods.into_iter().map(Sighting::Running).collect());
    table
}

fn route(namespace: &str, name: &str, uid: Option<&str>, ip: Option<&str>) -> Route {
    Route {
        sandbox: SandboxKey {
            namespace: namespace.parse().unwrap(),
            name: name.parse().unwrap(),
        },
        port: sandgate_mesh::sandbox::AppPort::DEFAULT,
        uid: uid.map(Into::into),
        uid_is_binding: false,
        pod_ip: ip.map(|ip| ip.parse().unwrap()),
        timeout: None,
    }
}

fn ip(found: &Found) -> Option<String> {
    match found {
        Found::Pod(known) => Some(known.ip.to_string()),
        _ => None,
    }
}

#[test]
fn what_is_known_of_a_sandbox_beats_every_hint() {
    let table = table([plain("alpha", "10.0.0.1"), plain("beta", "10.0.0.2")]);
    for (uid, hint) in [
        (None, None),
        (Some("stale"), None),
        (None, Some("10.0.0.2")),
        (None, Some("10.9.9.9")),
    ] {
        let found = table.find(&route("team-a", "alpha", uid, hint));
        assert_eq!(ip(&found).as_deref(), Some("10.0.0.1"), "{uid:?} {hint:?}");
    }
}

#[test]
fn a_hint_leads_to_nobody_elses_pod() {
    let table = table([plain("alpha", "10.0.0.1")]);
    let find = |namespace, name, hint| table.find(&route(namespace, name, None, Some(hint)));
    assert_eq!(find("team-b", "alpha", "10.0.0.1"), Found::Foreign);
    assert_eq!(find("team-a", "gone", "10.0.0.1"), Found::Misled);
    assert_eq!(find("team-a", "gone", "10.0.0.9"), Found::Unknown);
}

#[test]
fn an_unclaimed_pod_is_found_by_its_uid_only() {
    let table = table([pooled("warm", "10.0.0.1")]);
    // Nor by a hint, or by DNS where there is a Service.
    for hint in [None, Some("10.0.0.1"), Some("10.9.9.9")] {
        assert_eq!(table.find(&route("team-a", "warm", None, hint)), Found::Withheld);
        assert_eq!(
            table.find(&route("team-a", "warm", Some("other"), hint)),
            Found::Withheld
        );
    }
    let found = table.find(&route("team-a", "warm", Some("warm-sandbox"), None));
    assert_eq!(ip(&found).as_deref(), Some("10.0.0.1"));
    assert_eq!(
        table.find(&route("team-b", "warm", Some("warm-sandbox"), None)),
        Found::Unknown
    );
}

#[test]
fn a_binding_uid_finds_the_one_sandbox_and_no_successor_of_its_name() {
    let table = table([plain("alpha", "10.0.0.1"), pooled("warm", "10.0.0.2")]);
    let find = |name: &str, uid: &str| {
        let mut route = route("team-a", name, Some(uid), Some("10.9.9.9"));
        route.uid_is_binding = true;
        table.find(&route)
    };
    assert_eq!(ip(&find("alpha", "alpha-sandbox")).as_deref(), Some("10.0.0.1"));
    assert_eq!(ip(&find("warm", "warm-sandbox")).as_deref(), Some("10.0.0.2"));
    for other in ["", "warm-sandbox", "alpha", "alpha-uid", "ALPHA-SANDBOX"] {
        assert_eq!(find("alpha", other), Found::Replaced, "{other}");
    }
    assert_eq!(find("gone", "alpha-sandbox"), Found::Unknown);
}

#[test]
fn the_identity_that_must_answer_is_that_pods() {
    let mut table = table([gated("alpha", "10.0.0.1"), plain("beta", "10.0.0.2")]);
    table.replace_opted_in(HashSet::from_iter(["team-a".parse().unwrap()]));
    let Found::Pod(known) = table.find(&route("team-a", "alpha", None, None)) else {
        panic!("not found");
    };
    let gate = known.gate.unwrap();
    assert_eq!(gate.endpoint.to_string(), "10.0.0.1:14443");
    let expected = gate.expected.as_ref().unwrap().to_string();
    assert_eq!(expected, "spiffe://cluster.local/ns/team-a/sandbox/alpha/pod/alpha-uid");
    let Found::Pod(known) = table.find(&route("team-a", "beta", None, None)) else {
        panic!("not found");
    };
    assert!(known.gate.is_none() && known.opted_in);
    table.opted_in("team-a".parse().unwrap(), false);
    let Found::Pod(known) = table.find(&route("team-a", "beta", None, None)) else {
        panic!("not found");
    };
    assert!(!known.opted_in);
}

#[test]
fn a_namespace_that_is_not_known_yet_counts_as_opted_in() {
    let mut table = table([plain("alpha", "10.0.0.1")]);
    let opted_in = |table: &Table| match table.find(&route("team-a", "alpha", None, None)) {
        Found::Pod(known) => known.opted_in,
        other => panic!("{other:?}"),
    };
    assert!(opted_in(&table));
    table.replace_opted_in(HashSet::default());
    assert!(!opted_in(&table));
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_stays_away_for_a_while_and_only_if_it_is_still_there() {
    let mut table = table([plain("alpha", "10.0.0.1")]);
    let key = route("team-a", "alpha", None, None).sandbox;
    assert!(!table.evict(&key, [10, 0, 0, 9].into()));
    assert!(table.evict(&key, [10, 0, 0, 1].into()));
    assert!(!table.evict(&key, [10, 0, 0, 1].into()), "once is enough");
    assert_eq!(
        table.find(&route("team-a", "alpha", None, Some("10.0.0.1"))),
        Found::Withheld
    );
    // Nobody else gets it meanwhile.
    assert_eq!(
        table.find(&route("team-b", "x", None, Some("10.0.0.1"))),
        Found::Foreign
    );
    tokio::time::advance(EVICTED).await;
    assert!(ip(&table.find(&route("team-a", "alpha", None, None))).is_some());
    assert!(table.evict(&key, [10, 0, 0, 1].into()));
    table.see(Sighting::Running(plain("alpha", "10.0.0.1")));
    assert!(
        ip(&table.find(&route("team-a", "alpha", None, None))).is_some(),
        "the API server spoke of it"
    );
}

fn unready(pod: Pod) -> Pod {
    Pod { ready: false, ..pod }
}

#[test]
fn a_gated_pod_that_was_ready_keeps_its_requests_while_it_is_not() {
    let found = |table: &Table| ip(&table.find(&route("team-a", "alpha", None, None))).is_some();
    let mut table = table([gated("alpha", "10.0.0.1")]);
    table.see(Sighting::Running(unready(gated("alpha", "10.0.0.1"))));
    assert!(found(&table));
    table.replace_pods(vec![Sighting::Running(unready(gated("alpha", "10.0.0.1")))]);
    assert!(found(&table), "a new list says the same");
    // It has to be that very pod, where it was.
    table.see(Sighting::Running(unready(gated("alpha", "10.0.0.2"))));
    assert!(!found(&table));
    table.see(Sighting::Running(gated("alpha", "10.0.0.1")));
    let another = Pod {
        uid: "another-uid".parse().unwrap(),
        ..unready(gated("alpha", "10.0.0.1"))
    };
    table.see(Sighting::Running(another.clone()));
    assert!(!found(&table));
    table.see(Sighting::Running(gated("alpha", "10.0.0.1")));
    table.replace_pods(vec![Sighting::Running(another)]);
    assert!(!found(&table));
}

#[test]
fn a_pod_that_was_never_ready_or_has_no_gate_gets_no_requests_before_it_is() {
    let found = |table: &Table| ip(&table.find(&route("team-a", "alpha", None, None))).is_some();
    let mut table = table([unready(gated("alpha", "10.0.0.1"))]);
    assert!(!found(&table));
    table.see(Sighting::Running(unready(gated("alpha", "10.0.0.1"))));
    assert!(!found(&table));
    table.see(Sighting::Running(plain("alpha", "10.0.0.1")));
    assert!(found(&table));
    table.see(Sighting::Running(unready(plain("alpha", "10.0.0.1"))));
    assert!(!found(&table));
}

/// The next pod may have the address before it is known that the last one is gone.
#[test]
fn an_address_belongs_to_who_got_it_last() {
    let mut table = table([plain("alpha", "10.0.0.1")]);
    table.see(Sighting::Running(plain("beta", "10.0.0.1")));
    table.remove(&route("team-a", "alpha", None, None).sandbox);
    assert_eq!(
        table.find(&route("team-b", "x", None, Some("10.0.0.1"))),
        Found::Foreign
    );
    table.see(Sighting::Running(plain("beta", "10.0.0.2")));
    assert_eq!(
        table.find(&route("team-b", "x", None, Some("10.0.0.1"))),
        Found::Unknown
    );
    assert_eq!(table.len(), 1);
}

#[test]
fn what_can_be_no_pods_address_is_nobodys() {
    let mut table = table([
        plain("alpha", "127.0.0.1"),
        plain("beta", "169.254.169.254"),
        plain("gamma", "10.0.0.3"),
    ]);
    assert_eq!(table.len(), 1);
    table.see(Sighting::Running(plain("gamma", "127.0.0.1")));
    assert_eq!(table.len(), 0);
    assert_eq!(table.find(&route("team-a", "gamma", None, None)), Found::Withheld);
}

/// Nothing leads to it: no hint, and no Service of that name, behind which it may be.
#[test]
fn a_name_that_somebody_else_has_leads_nowhere_until_it_is_free() {
    let mut table = table([plain("alpha", "10.0.0.1")]);
    let alpha = |hint| route("team-a", "alpha", None, hint);
    let key = alpha(None).sandbox;
    table.see(Sighting::Unfit(key.clone()));
    for hint in [None, Some("10.0.0.1"), Some("10.9.9.9")] {
        assert_eq!(table.find(&alpha(hint)), Found::Withheld, "{hint:?}");
    }
    assert_eq!(table.len(), 0);
    table.see(Sighting::Running(plain("alpha", "10.0.0.2")));
    assert_eq!(ip(&table.find(&alpha(None))).as_deref(), Some("10.0.0.2"));
    table.see(Sighting::Unfit(key.clone()));
    table.remove(&key);
    assert_eq!(table.find(&alpha(None)), Found::Unknown);
    table.see(Sighting::Unfit(key));
    table.replace_pods(Vec::new());
    assert_eq!(table.find(&alpha(None)), Found::Unknown);
}

/// Whoever has the key of its former pod may answer at the address that a client remembers, or behind a Service.
#[test]
fn a_sandbox_whose_own_pod_is_not_ready_is_looked_for_nowhere_else() {
    let mut table = table([plain("alpha", "10.0.0.1")]);
    let alpha = |hint| route("team-a", "alpha", None, hint);
    let key = alpha(None).sandbox;
    table.remove(&key);
    for sighting in [
        Sighting::Waiting(key.clone()),
        Sighting::Running(seen("alpha", "10.0.0.2", |pod| {
            pod["status"]["conditions"][0]["status"] = "False".into();
        })),
    ] {
        table.see(sighting);
        for hint in [None, Some("10.0.0.1"), Some("10.0.0.2"), Some("10.9.9.9")] {
            assert_eq!(table.find(&alpha(hint)), Found::Withheld, "{hint:?}");
        }
    }
    table.see(Sighting::Running(plain("alpha", "10.0.0.2")));
    assert_eq!(ip(&table.find(&alpha(None))).as_deref(), Some("10.0.0.2"));
    table.see(Sighting::Waiting(key.clone()));
    table.remove(&key);
    assert_eq!(table.find(&alpha(None)), Found::Unknown);
}

#[test]
fn nothing_is_complete_before_both_lists_are() {
    let mut table = Table::new("cluster.local".parse().unwrap(), false);
    assert!(!table.is_complete());
    table.replace_pods(Vec::new());
    assert!(!table.is_complete());
    table.replace_opted_in(HashSet::default());
    assert!(table.is_complete());
}
