use super::*;

fn user(name: &str, groups: &[&str]) -> Caller {
    Caller::User {
        name: name.parse().unwrap(),
        groups: Groups::new(groups).unwrap(),
    }
}

fn account(groups: &[&str]) -> Caller {
    Caller::ServiceAccount {
        namespace: "team-a".parse().unwrap(),
        name: "runner".parse().unwrap(),
        groups: Groups::new(groups).unwrap(),
    }
}

/// Caller, the name it is logged by, its assertion.
fn every_kind() -> Vec<(Caller, &'static str, &'static str)> {
    vec![
        (Caller::Anonymous, "anonymous", "v1;anonymous"),
        (
            Caller::Static {
                name: "default".parse().unwrap(),
            },
            "static:default",
            "v1;static;default",
        ),
        (
            Caller::Scoped {
                key_id: "k/1".parse().unwrap(),
            },
            "scoped:k/1",
            "v1;scoped;k%2F1",
        ),
        (
            account(&[]),
            "system:serviceaccount:team-a:runner",
            "v1;serviceaccount;team-a:runner",
        ),
        (
            account(&["system:serviceaccounts", "a;b"]),
            "system:serviceaccount:team-a:runner",
            "v1;serviceaccount;team-a:runner;a%3Bb;system%3Aserviceaccounts",
        ),
        (
            user("oidc:zoë %", &["b", "a", "b"]),
            "oidc:zoë %",
            "v1;user;oidc%3Azo%C3%AB%20%25;a;b",
        ),
        (
            Caller::Spiffe("spiffe://example.org/batch".parse().unwrap()),
            "spiffe://example.org/batch",
            "v1;spiffe;spiffe%3A%2F%2Fexample.org%2Fbatch",
        ),
        (
            Caller::Certificate {
                common_name: "Build Bot".parse().unwrap(),
            },
            "cert:Build Bot",
            "v1;certificate;Build%20Bot",
        ),
    ]
}

/// A caller of this kind. A new kind needs one.
pub(crate) fn of_kind(kind: CallerKind) -> Caller {
    let name = || "some-name".parse().unwrap();
    match kind {
        CallerKind::Anonymous => Caller::Anonymous,
        CallerKind::Static => Caller::Static { name: name() },
        CallerKind::Scoped => Caller::Scoped { key_id: name() },
        CallerKind::ServiceAccount => account(&["a", "b:c"]),
        CallerKind::User => user("ann", &["a", "b:c"]),
        CallerKind::Spiffe => Caller::Spiffe("spiffe://example.org/batch".parse().unwrap()),
        CallerKind::Certificate => Caller::Certificate { common_name: name() },
    }
}

#[test]
fn every_kind_is_spelt_as_the_table_says() {
    for kind in CallerKind::ALL {
        let caller = of_kind(*kind);
        assert_eq!(caller.kind(), *kind);
        let shown = caller.to_string();
        let rest = shown.strip_prefix(kind.prefix());
        assert_eq!(rest.map(|rest| (*kind, rest)), Some(CallerKind::of_name(&shown)));
        let assertion = caller.to_assertion();
        assert!(assertion.as_bytes().starts_with(kind.assertion().as_bytes()));
        assert_eq!(Caller::from_assertion(assertion.as_bytes()), Ok(caller));
    }
}

#[test]
fn no_user_is_named_as_a_caller_of_another_kind_could_be() {
    for kind in CallerKind::ALL {
        let taken = match kind {
            CallerKind::User => vec![],
            // Not a prefix but the whole name.
            CallerKind::Anonymous => vec![kind.prefix().to_owned()],
            _ => ["", "x", "ann", ":"]
                .map(|rest| format!("{}{rest}", kind.prefix()))
                .into(),
        };
        for name in taken.into_iter().chain([of_kind(*kind).to_string()]) {
            let parsed = name.parse::<UserName>();
            if *kind == CallerKind::User {
                assert!(parsed.is_ok(), "{name}");
            } else {
                assert_eq!(parsed, Err(CallerError::Reserved), "{name}");
            }
        }
    }
    let why = CallerError::Reserved.to_string();
    assert!(CallerKind::ALL.iter().all(|kind| why.contains(kind.prefix())), "{why}");
}

#[test]
fn no_prefix_begins_with_that_of_another_kind() {
    for kind in CallerKind::ALL.iter().filter(|kind| **kind != CallerKind::User) {
        let same = |other: &&CallerKind| other.prefix().starts_with(kind.prefix());
        assert_eq!(CallerKind::ALL.iter().filter(same).collect::<Vec<_>>(), [kind]);
    }
}

#[test]
fn a_caller_survives_the_way_to_the_gate() {
    for (caller, name, assertion) in every_kind() {
        assert_eq!(caller.to_string(), name);
        assert_eq!(caller.to_assertion(), assertion);
        assert_eq!(Caller::from_assertion(assertion.as_bytes()), Ok(caller));
    }
}

#[test]
fn only_anonymous_is_anonymous() {
    let anonymous = every_kind()
        .into_iter()
        .filter(|(caller, ..)| caller.is_anonymous())
        .count();
    assert_eq!(anonymous, 1);
}

#[test]
fn a_user_cannot_be_named_like_another_kind() {
    for name in [
        "anonymous",
        "static:default",
        "static:",
        "scoped:k1",
        "cert:Build Bot",
        "spiffe://example.org/batch",
        "system:serviceaccount:team-a:runner",
    ] {
        assert_eq!(name.parse::<UserName>(), Err(CallerError::Reserved), "{name}");
        let forged = format!("v1;user;{}", escaped(name));
        assert_eq!(
            Caller::from_assertion(forged.as_bytes()),
            Err(CallerError::Reserved.into()),
            "{name}"
        );
    }
    for name in ["anonymous2", "statics", "STATIC:x", "system:admin", "kubernetes-admin"] {
        assert!(name.parse::<UserName>().is_ok(), "{name}");
    }
}

#[test]
fn whom_kubernetes_names_is_a_service_account_or_a_user_and_nobody_else() {
    let groups = || Groups::new(["developers"]).unwrap();
    let named = |name: &str| Caller::of_kubernetes(name, groups());
    let account = named("system:serviceaccount:team-a:runner").unwrap();
    assert!(matches!(&account, Caller::ServiceAccount { groups: found, .. } if *found == groups()));
    assert_eq!(account.to_string(), "system:serviceaccount:team-a:runner");
    for name in [
        "alice@example.org",
        "system:admin",
        "system:serviceaccounts",
        "oidc:zoë",
    ] {
        let user = named(name).unwrap();
        assert!(
            matches!(&user, Caller::User { groups: found, .. } if *found == groups()),
            "{name}"
        );
        assert_eq!(user.to_string(), name);
    }
    for name in ["anonymous", "static:default", "scoped:k", "cert:x", "spiffe://a/b"] {
        assert_eq!(named(name), Err(CallerError::Reserved), "{name}");
    }
    for account in [
        "",
        "team-a",
        "team-a:",
        ":runner",
        "Team:runner",
        "team-a:runner:x",
        "team-a:run ner",
    ] {
        let name = format!("system:serviceaccount:{account}");
        assert_eq!(named(&name), Err(CallerError::ServiceAccount), "{name}");
    }
    assert_eq!(named(""), Err(CallerError::Empty));
}

#[test]
fn names_are_bounded_and_hold_no_control_characters() {
    for (name, error) in [
        (String::new(), CallerError::Empty),
        ("x".repeat(257), CallerError::TooLong),
        ("ä".repeat(129), CallerError::TooLong),
        ("a\0".into(), CallerError::ControlCharacter),
        ("a\r\nx-sandgate-caller: v1".into(), CallerError::ControlCharacter),
        ("a\t".into(), CallerError::ControlCharacter),
        ("a\u{7f}".into(), CallerError::ControlCharacter),
        ("a\u{85}".into(), CallerError::ControlCharacter),
    ] {
        assert_eq!(name.parse::<CallerName>(), Err(error), "{name:?}");
        assert_eq!(name.parse::<UserName>(), Err(error), "{name:?}");
        assert_eq!(Groups::new([&name]), Err(error), "{name:?}");
    }
    assert!("x".repeat(256).parse::<CallerName>().is_ok());
}

#[test]
fn too_many_groups_are_an_error_and_never_cut() {
    let numbered = |count: usize| (0..count).map(|n| format!("g{n}"));
    assert!(Groups::new(numbered(128)).is_ok());
    assert_eq!(Groups::new(numbered(129)), Err(CallerError::TooManyGroups));
    let long = |count: usize| (0..count).map(|n| format!("{n:03}{}", "x".repeat(252)));
    assert!(Groups::new(long(28)).is_ok());
    assert_eq!(Groups::new(long(29)), Err(CallerError::GroupsTooLarge));
    let wide = |count: usize| (0..count).map(|n| format!("{n:03}{}", ":".repeat(253)));
    assert_eq!(Groups::new(wide(10)), Err(CallerError::GroupsTooLarge));
}

#[test]
fn the_widest_callers_still_fit_an_assertion() {
    let wide_name = "\u{1F980}".repeat(64);
    let wide_groups: Vec<String> = (0..28).map(|n| format!("{n:03}{}", "x".repeat(252))).collect();
    let label = "x".repeat(63);
    let spiffe = format!("spiffe://x{}", "/a".repeat(1019));
    for caller in [
        Caller::Static {
            name: wide_name.parse().unwrap(),
        },
        Caller::Certificate {
            common_name: wide_name.parse().unwrap(),
        },
        Caller::User {
            name: wide_name.parse().unwrap(),
            groups: Groups::new(&wide_groups).unwrap(),
        },
        Caller::ServiceAccount {
            namespace: label.parse().unwrap(),
            name: label.parse().unwrap(),
            groups: Groups::new(&wide_groups).unwrap(),
        },
        Caller::Spiffe(spiffe.parse().unwrap()),
    ] {
        let assertion = caller.to_assertion();
        assert!(assertion.len() <= MAX_ASSERTION_BYTES, "{}", assertion.len());
        assert_eq!(Caller::from_assertion(assertion.as_bytes()), Ok(caller));
    }
}

#[test]
fn any_other_spelling_of_an_assertion_is_refused() {
    use AssertionError::{Kind, Name, NotCanonical, Version};
    for (value, error) in [
        ("", Version),
        ("v1", Version),
        ("V1;anonymous", Version),
        ("v2;anonymous", Version),
        (" v1;anonymous", Version),
        ("unassertable", Version),
        ("v1;", Kind),
        ("v1;;", Kind),
        ("v1;static", Kind),
        ("v1;root;x", Kind),
        ("v1;Static;default", Kind),
        ("v1;anonymous;", Kind),
        ("v1;anonymous;x", Kind),
        ("v1;static;", CallerError::Empty.into()),
        ("v1;static;default;", NotCanonical),
        ("v1;static;default;devs", NotCanonical),
        ("v1;static;default ", NotCanonical),
        ("v1;static;a b", NotCanonical),
        ("v1;static;a:b", NotCanonical),
        ("v1;static;%64efault", NotCanonical),
        ("v1;scoped;k%2f1", NotCanonical),
        ("v1;scoped;k%2", NotCanonical),
        ("v1;scoped;k%zz", NotCanonical),
        ("v1;scoped;%FF", NotCanonical),
        ("v1;scoped;a%0D%0Ab", CallerError::ControlCharacter.into()),
        ("v1;scoped;a\tb", CallerError::ControlCharacter.into()),
        ("v1;scoped;%00", CallerError::ControlCharacter.into()),
        ("v1;serviceaccount;runner", Name),
        ("v1;serviceaccount;team-a/runner", Name),
        ("v1;serviceaccount;team-a:", Name),
        ("v1;serviceaccount;team-a:run:ner", Name),
        ("v1;serviceaccount;Team:runner", Name),
        ("v1;serviceaccount;team-a%3Arunner", NotCanonical),
        ("v1;serviceaccount;team-a:runner;", CallerError::Empty.into()),
        ("v1;user;ann;b;a", NotCanonical),
        ("v1;user;ann;aa;b", NotCanonical),
        ("v1;user;ann;a;a", NotCanonical),
        ("v1;user;ann;;a", CallerError::Empty.into()),
        ("v1;user;zoë", NotCanonical),
        ("v1;spiffe;example.org", Name),
        ("v1;spiffe;spiffe%3A%2F%2Fexample.org%2F..", Name),
        ("v1;spiffe;spiffe://example.org/a", NotCanonical),
        ("v1;certificate;bot;ops", NotCanonical),
    ] {
        assert_eq!(Caller::from_assertion(value.as_bytes()), Err(error), "{value:?}");
    }
    assert_eq!(Caller::from_assertion(b"v1;static;\xff"), Err(NotCanonical));
}

#[test]
fn an_over_long_assertion_is_refused_before_it_is_read() {
    let many = format!("v1;user;ann{}", ";a".repeat(4096));
    assert_eq!(Caller::from_assertion(many.as_bytes()), Err(AssertionError::TooLong));
    let bounded = format!("v1;user;ann{}", ";a".repeat(4000));
    assert_eq!(
        Caller::from_assertion(bounded.as_bytes()),
        Err(CallerError::TooManyGroups.into())
    );
}

#[test]
fn an_error_never_repeats_what_a_peer_sent() {
    for value in [
        "v1;secret;x",
        "v1;static;secret;",
        "v1;spiffe;secret",
        "v1;user;secret%00",
    ] {
        let error = Caller::from_assertion(value.as_bytes()).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
