use super::*;
use crate::caller::tests::of_kind;
use crate::caller::{CallerKind, Groups};

const REFERENCE: &str = include_str!("../../../../docs/policy-snapshot.md");

/// A snapshot with these `policies` and a deny default.
pub(super) fn with_policies(policies: &str) -> String {
    format!(
        r#"{{"version":1,"generation":{{"epoch":1,"counter":7}},"defaultPolicy":"deny","ports":[8888],"policies":{policies}}}"#
    )
}

/// A snapshot with one policy `p` of one rule.
pub(super) fn with_rule(from: &str, to: &str) -> String {
    with_policies(&format!(r#"[{{"name":"p","rules":[{{"from":{from},"to":{to}}}]}}]"#))
}

pub(super) fn parsed(json: &str) -> PolicySnapshot {
    PolicySnapshot::parse(json.as_bytes()).unwrap_or_else(|error| panic!("{error}: {json}"))
}

pub(super) fn refused(json: &str) -> String {
    match PolicySnapshot::parse(json.as_bytes()) {
        Ok(_) => panic!("accepted: {json}"),
        Err(error) => error.to_string(),
    }
}

pub(super) fn port(number: u16) -> AppPort {
    AppPort::new(number).unwrap()
}

fn groups(names: &[&str]) -> Groups {
    Groups::new(names).unwrap()
}

pub(super) fn user(name: &str, of: &[&str]) -> Caller {
    Caller::User {
        name: name.parse().unwrap(),
        groups: groups(of),
    }
}

fn account(namespace: &str, name: &str, of: &[&str]) -> Caller {
    Caller::ServiceAccount {
        namespace: namespace.parse().unwrap(),
        name: name.parse().unwrap(),
        groups: groups(of),
    }
}

fn spiffe(id: &str) -> Caller {
    Caller::Spiffe(id.parse().unwrap())
}

fn fixed(name: &str) -> Caller {
    Caller::Static {
        name: name.parse().unwrap(),
    }
}

pub(super) fn ask(snapshot: &PolicySnapshot, caller: &Caller, method: &Method, path: &str) -> Verdict {
    snapshot.evaluate(caller, port(8888), method, path)
}

pub(super) fn rule(policy: &str, rule: usize) -> Verdict {
    Verdict::Allowed(Basis::Rule {
        policy: policy.into(),
        rule,
    })
}

#[test]
fn the_example_in_the_reference_means_what_it_says() {
    let (_, example) = REFERENCE.split_once("```json\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let snapshot = parsed(example);
    assert_eq!(snapshot.generation(), Generation { epoch: 1, counter: 7 });
    let runner = account("team-a", "runner", &[]);
    let admin = user("oidc:ann", &["oidc:platform-admins"]);
    let batch = spiffe("spiffe://partner.example/batch/nightly");
    for (caller, method, path, verdict) in [
        (&runner, Method::POST, "/execute", rule("team-a.runners", 0)),
        (&fixed("default"), Method::POST, "/execute", rule("team-a.runners", 0)),
        (&batch, Method::HEAD, "/download/a.txt", rule("team-a.runners", 0)),
        (&runner, Method::GET, "/execute", Verdict::Denied),
        (&runner, Method::GET, "/list", Verdict::Denied),
        (&runner, Method::GET, "/download/a%2Fb", Verdict::AmbiguousPath),
        (&admin, Method::GET, "/download/a%2Fb", rule("team-a.runners", 1)),
        (&Caller::Anonymous, Method::GET, "/status", rule("public-status", 0)),
        (&runner, Method::GET, "/status", rule("public-status", 0)),
        (&Caller::Anonymous, Method::POST, "/execute", Verdict::Denied),
    ] {
        assert_eq!(
            ask(&snapshot, caller, &method, path),
            verdict,
            "{caller} {method} {path}"
        );
    }
    assert_eq!(
        snapshot.evaluate(&runner, port(8080), &Method::POST, "/execute"),
        Verdict::Denied
    );
    assert_eq!(
        snapshot.evaluate(&admin, port(8080), &Method::POST, "/x"),
        rule("team-a.runners", 1)
    );
}

#[test]
fn without_policies_the_default_holds_on_its_ports_only() {
    for (default, anonymous, known) in [
        ("deny", false, false),
        ("authenticated", false, true),
        ("anonymous", true, true),
    ] {
        let snapshot = parsed(&with_policies("[]").replace(r#""deny""#, &format!("{default:?}")));
        for (caller, allowed) in [
            (Caller::Anonymous, anonymous),
            (user("ann", &[]), known),
            (fixed("x"), known),
        ] {
            let expected = if allowed {
                Verdict::Allowed(Basis::Default)
            } else {
                Verdict::Denied
            };
            assert_eq!(
                ask(&snapshot, &caller, &Method::GET, "/a//b"),
                expected,
                "{default} {caller}"
            );
            assert_eq!(
                snapshot.evaluate(&caller, port(8080), &Method::GET, "/"),
                Verdict::Denied,
                "{default} {caller}"
            );
        }
    }
}

#[test]
fn one_policy_ends_the_default_even_without_rules() {
    for policies in [
        r#"[{"name":"shut","rules":[]}]"#,
        r#"[{"name":"p","rules":[{"from":[{"users":["x"]}],"to":[{"ports":[1]}]}]}]"#,
    ] {
        let snapshot = parsed(&with_policies(policies).replace("deny", "anonymous"));
        assert_eq!(ask(&snapshot, &user("ann", &[]), &Method::GET, "/"), Verdict::Denied);
    }
}

#[test]
fn each_list_matches_its_own_kind_of_caller_and_no_other() {
    let callers = [
        Caller::Anonymous,
        fixed("default"),
        Caller::Scoped {
            key_id: "k1".parse().unwrap(),
        },
        Caller::Certificate {
            common_name: "bot".parse().unwrap(),
        },
        account("team-a", "runner", &["devs"]),
        user("ann", &["devs", "ops"]),
        user("team-a/runner", &[]),
        user("devs", &[]),
        user("default", &[]),
        spiffe("spiffe://x/y"),
    ];
    for (from, admitted) in [
        (r#"{"anonymous":true}"#, callers.iter().collect::<Vec<_>>()),
        (r#"{"users":["static:default"]}"#, vec![&callers[1]]),
        (r#"{"users":["scoped:k1"]}"#, vec![&callers[2]]),
        (r#"{"users":["cert:bot"]}"#, vec![&callers[3]]),
        (r#"{"serviceAccounts":["team-a/runner"]}"#, vec![&callers[4]]),
        (r#"{"users":["team-a/runner"]}"#, vec![&callers[6]]),
        (r#"{"groups":["devs"]}"#, vec![&callers[4], &callers[5]]),
        (
            r#"{"groups":["ann","default","static:default","k1","bot","team-a/runner"]}"#,
            vec![],
        ),
        (r#"{"users":["devs"]}"#, vec![&callers[7]]),
        (r#"{"users":["default","k1","bot","runner"]}"#, vec![&callers[8]]),
        (r#"{"users":["ANN","ann ","an"]}"#, vec![]),
        (r#"{"spiffeIDs":["spiffe://x/y"]}"#, vec![&callers[9]]),
        (
            r#"{"groups":["ops"],"users":["scoped:k1"],"anonymous":false}"#,
            vec![&callers[2], &callers[5]],
        ),
    ] {
        let snapshot = parsed(&with_rule(&format!("[{from}]"), r#"[{"ports":[8888]}]"#));
        for caller in &callers {
            let expected = if admitted.contains(&caller) {
                rule("p", 0)
            } else {
                Verdict::Denied
            };
            assert_eq!(ask(&snapshot, caller, &Method::GET, "/"), expected, "{from} {caller}");
        }
    }
}

#[test]
fn users_lists_a_caller_by_the_name_it_is_logged_by_or_refuses_that_name() {
    for kind in CallerKind::ALL {
        let listed = match kind {
            CallerKind::Static | CallerKind::Scoped | CallerKind::Certificate | CallerKind::User => true,
            CallerKind::Anonymous | CallerKind::ServiceAccount | CallerKind::Spiffe => false,
        };
        let from = format!(r#"[{{"users":["{}"]}}]"#, of_kind(*kind));
        let json = with_rule(&from, r#"[{"ports":[8888]}]"#);
        if !listed {
            assert!(refused(&json).contains("users[0]: names no user: use "), "{from}");
            continue;
        }
        let snapshot = parsed(&json);
        for other in CallerKind::ALL {
            let expected = if other == kind { rule("p", 0) } else { Verdict::Denied };
            assert_eq!(
                ask(&snapshot, &of_kind(*other), &Method::GET, "/"),
                expected,
                "{from} {other:?}"
            );
        }
    }
}

#[test]
fn a_spiffe_prefix_ends_on_a_segment_and_excludes_itself() {
    let snapshot = parsed(&with_rule(
        r#"[{"spiffeIDs":["spiffe://x/z/*","spiffe://y/*"]}]"#,
        r#"[{"ports":[8888]}]"#,
    ));
    for (id, admitted) in [
        ("spiffe://x/z/a", true),
        ("spiffe://x/z/a/b", true),
        ("spiffe://y/a", true),
        ("spiffe://x/z", false),
        ("spiffe://x/zz", false),
        ("spiffe://x/zz/a", false),
        ("spiffe://y", false),
        ("spiffe://y.z/a", false),
    ] {
        let verdict = ask(&snapshot, &spiffe(id), &Method::GET, "/");
        assert_eq!(matches!(verdict, Verdict::Allowed(_)), admitted, "{id}");
    }
}

#[test]
fn a_rule_never_joins_one_entrys_caller_with_another_rules_target() {
    let snapshot = parsed(&with_policies(
        r#"[{"name":"p","rules":[{"from":[{"users":["ann"]}],"to":[{"ports":[8888],"methods":["GET"],"paths":["/a"]},
            {"ports":[8888],"methods":["PUT"],"paths":["/b"]}]},{"from":[{"users":["bob"]}],"to":[{"ports":[8888]}]}]}]"#,
    ));
    for (name, method, path, verdict) in [
        ("ann", Method::GET, "/a", rule("p", 0)),
        ("ann", Method::PUT, "/b", rule("p", 0)),
        ("ann", Method::GET, "/b", Verdict::Denied),
        ("ann", Method::PUT, "/a", Verdict::Denied),
        ("ann", Method::HEAD, "/a", Verdict::Denied),
        ("bob", Method::PUT, "/a", rule("p", 1)),
        ("bob", Method::from_bytes(b"get").unwrap(), "/a", rule("p", 1)),
        ("ann", Method::from_bytes(b"get").unwrap(), "/a", Verdict::Denied),
    ] {
        assert_eq!(
            ask(&snapshot, &user(name, &[]), &method, path),
            verdict,
            "{name} {method} {path}"
        );
    }
}

#[test]
fn groups_match_whichever_side_has_more_of_them() {
    let numbered = |count: usize| (0..count).map(|n| format!("g{n:03}")).collect::<Vec<_>>();
    for (theirs, ours) in [(1, 100), (100, 1), (100, 100)] {
        for (extra, admitted) in [("devs", true), ("dev", false)] {
            let mut listed = (0..ours).map(|n| format!("h{n:03}")).collect::<Vec<_>>();
            listed.push("devs".into());
            let mut held = numbered(theirs);
            held.push(extra.into());
            let snapshot = parsed(&with_rule(
                &format!(r#"[{{"groups":{listed:?}}}]"#),
                r#"[{"ports":[8888]}]"#,
            ));
            let held: Vec<&str> = held.iter().map(String::as_str).collect();
            let verdict = ask(&snapshot, &user("ann", &held), &Method::GET, "/");
            assert_eq!(
                matches!(verdict, Verdict::Allowed(_)),
                admitted,
                "{theirs} {ours} {extra}"
            );
        }
    }
}
