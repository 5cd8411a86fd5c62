use super::*;

const OWN: OwnPorts = OwnPorts {
    mesh: 14443,
    health: 14480,
};

/// Everything in it that a caller must not learn contains `secret`.
const SNAPSHOT: &str = r#"{"version":1,"generation":{"epoch":1,"counter":1},"defaultPolicy":"deny","ports":[8888],
    "policies":[{"name":"secret-policy","rules":[{"from":[{"users":["secret-user"],"groups":["secret-group"]}],
    "to":[{"ports":[8888,14443,14480],"methods":["GET"],"paths":["/secret/*"]}]}]}]}"#;

fn caller(name: &str) -> Arc<Caller> {
    Arc::new(Caller::User {
        name: name.parse().unwrap(),
        groups: sandgate_mesh::caller::Groups::default(),
    })
}

fn decide(snapshot: Option<&PolicySnapshot>, name: &str, port: u16, path: &str) -> Result<Permit, Denied> {
    let request = RequestFacts {
        direct: false,
        port: AppPort::new(port).unwrap(),
        method: &Method::GET,
        path,
    };
    authorize(&caller(name), &request, snapshot, &OWN)
}

fn snapshot() -> PolicySnapshot {
    PolicySnapshot::parse(SNAPSHOT.as_bytes()).unwrap()
}

#[test]
fn a_permit_carries_the_port_the_caller_and_what_allowed_it() {
    let permit = decide(Some(&snapshot()), "secret-user", 8888, "/secret/a").unwrap();
    assert_eq!(permit.port().get(), 8888);
    assert_eq!(
        *permit.basis(),
        Basis::Rule {
            policy: "secret-policy".into(),
            rule: 0
        }
    );
    let (port, spent_by) = permit.spend();
    assert_eq!((port.get(), spent_by), (8888, caller("secret-user")));
}

#[test]
fn each_refusal_has_its_reason() {
    let snapshot = snapshot();
    for (name, port, path, denied) in [
        ("secret-user", 8888, "/other", Denied::Policy),
        ("secret-user", 8080, "/secret/a", Denied::Policy),
        ("bob", 8888, "/secret/a", Denied::Policy),
        ("bob", 8888, "/secret/../a", Denied::Policy),
        ("secret-user", 8888, "/secret/../a", Denied::AmbiguousPath),
    ] {
        assert_eq!(
            decide(Some(&snapshot), name, port, path).unwrap_err(),
            denied,
            "{name} {port} {path}"
        );
    }
}

#[test]
fn nothing_is_allowed_without_a_snapshot() {
    assert_eq!(
        decide(None, "secret-user", 8888, "/secret/a").unwrap_err(),
        Denied::NoSnapshot
    );
}

#[test]
fn our_own_ports_are_out_of_reach_even_if_a_policy_lists_them() {
    for port in [14443, 14480] {
        assert_eq!(
            decide(Some(&snapshot()), "secret-user", port, "/secret/a").unwrap_err(),
            Denied::OwnPort
        );
        assert_eq!(decide(None, "secret-user", port, "/").unwrap_err(), Denied::OwnPort);
        assert_eq!(LoopbackPort::new(AppPort::new(port).unwrap(), &OWN), None);
    }
    assert_eq!(LoopbackPort::new(AppPort::DEFAULT, &OWN).unwrap().get(), 8888);
}

#[test]
fn what_the_audit_line_says_of_a_refusal_is_not_the_policys_content() {
    for denied in [
        Denied::NoSnapshot,
        Denied::OwnPort,
        Denied::Policy,
        Denied::AmbiguousPath,
    ] {
        let text = denied.to_string();
        assert!(!text.contains("secret") && !text.contains("8888"), "{text}");
    }
}

#[test]
fn the_default_policy_is_no_way_around_the_router() {
    let json = r#"{"version":1,"generation":{"epoch":1,"counter":1},"defaultPolicy":"anonymous","ports":[8888],"policies":[]}"#;
    let snapshot = PolicySnapshot::parse(json.as_bytes()).unwrap();
    let decide = |direct| {
        let port = AppPort::new(8888).unwrap();
        let request = RequestFacts {
            direct,
            port,
            method: &Method::GET,
            path: "/",
        };
        authorize(&Arc::new(Caller::Anonymous), &request, Some(&snapshot), &OWN)
    };
    assert!(decide(false).is_ok());
    assert_eq!(decide(true).unwrap_err(), Denied::Policy);
}
