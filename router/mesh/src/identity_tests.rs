use super::*;

#[test]
fn identities_survive_a_round_trip() {
    for text in [
        "spiffe://cluster.local/ns/team-a/sandbox/alpha/pod/8f1c",
        "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router",
        "spiffe://example.org/batch/nightly",
        "spiffe://example.org",
    ] {
        assert_eq!(text.parse::<PeerId>().unwrap().to_string(), text);
    }
}

#[test]
fn a_malformed_spiffe_id_identifies_nobody() {
    for text in [
        "",
        "spiffe://",
        "SPIFFE://cluster.local/ns/a/sa/b",
        "https://cluster.local/ns/a/sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://Cluster.local/ns/a/sa/b",
        "spiffe://cluster.local:1/ns/a/sa/b",
        "spiffe://u@cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b/",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe://cluster.local/ns/../sa/b",
        "spiffe://cluster.local/ns/a%2fb/sa/b",
        "spiffe://cluster.local/ns/a/sa/b?x",
        "spiffe://cluster.local/ns/a/sa/b#x",
        "spiffe://cluster.local/ns/A/sa/b",
        "spiffe://cluster.local/ns/a/sandbox/b",
        "spiffe://cluster.local/ns/a/sandbox/b/pod/",
        "spiffe://cluster.local/ns/a/sandbox/b/pod/c/d",
        "spiffe://cluster.local/ns/a/sa/b\0",
    ] {
        assert!(text.parse::<PeerId>().is_err(), "{text:?}");
    }
    assert!(format!("spiffe://a/{}", "x".repeat(2048)).parse::<PeerId>().is_err());
}

#[test]
fn an_expected_sandbox_admits_exactly_that_one() {
    let expected = ExpectedSandbox {
        trust_domain: "cluster.local".parse().unwrap(),
        sandbox: SandboxKey {
            namespace: "a".parse().unwrap(),
            name: "b".parse().unwrap(),
        },
        pod_uid: Some("u1".parse().unwrap()),
    };
    let admits = |text: &str| expected.admits(&text.parse().unwrap());
    assert!(admits("spiffe://cluster.local/ns/a/sandbox/b/pod/u1"));
    for other in [
        "spiffe://cluster.local/ns/a/sandbox/b/pod/u2",
        "spiffe://cluster.local/ns/a/sandbox/c/pod/u1",
        "spiffe://cluster.local/ns/c/sandbox/b/pod/u1",
        "spiffe://other.local/ns/a/sandbox/b/pod/u1",
        "spiffe://cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/b",
    ] {
        assert!(!admits(other), "{other}");
    }
    let any_uid = ExpectedSandbox {
        pod_uid: None,
        ..expected
    };
    assert!(any_uid.admits(&"spiffe://cluster.local/ns/a/sandbox/b/pod/u2".parse().unwrap()));
}
