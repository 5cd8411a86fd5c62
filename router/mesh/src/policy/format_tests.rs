use super::tests::{parsed, refused, with_policies, with_rule};
use super::*;
use std::fmt::Write;

#[test]
fn whatever_the_format_does_not_define_is_refused() {
    let good = with_rule(
        r#"[{"users":["ann"],"anonymous":false}]"#,
        r#"[{"ports":[8888],"methods":["GET"],"paths":["/a"]}]"#,
    );
    parsed(&good);
    for (find, replace) in [
        // Unknown fields, at each level.
        (r#"{"version":1"#, r#"{"mode":"Audit","version":1"#),
        (r#""epoch":1"#, r#""epoch":1,"uid":"x""#),
        (r#""name":"p""#, r#""name":"p","deny":true"#),
        (r#""from":"#, r#""except":[],"from":"#),
        (r#""users":"#, r#""ipBlocks":["10.0.0.0/8"],"users":"#),
        (r#""users":"#, r#""spiffeIds":["spiffe://x/y"],"users":"#),
        (r#""users":"#, r#""Users":["bob"],"users":"#),
        (r#""methods":"#, r#""hosts":["a"],"methods":"#),
        // Fields twice, at each level.
        (r#"{"version":1"#, r#"{"version":1,"version":1"#),
        (r#""epoch":1"#, r#""epoch":1,"epoch":1"#),
        (
            r#""defaultPolicy":"deny""#,
            r#""defaultPolicy":"deny","defaultPolicy":"anonymous""#,
        ),
        (r#""name":"p""#, r#""name":"p","name":"q""#),
        (r#""to":["#, r#""to":[{"ports":[1]}],"to":["#),
        (r#""users":"#, r#""users":["bob"],"users":"#),
        (r#""anonymous":false"#, r#""anonymous":false,"anonymous":true"#),
        (r#""methods":"#, r#""methods":["PUT"],"methods":"#),
        (r#""paths":"#, r#""paths":["/b"],"paths":"#),
        // Missing fields.
        (r#""version":1,"#, ""),
        (r#","counter":7"#, ""),
        (r#""defaultPolicy":"deny","#, ""),
        (r#""ports":[8888],"policies""#, r#""policies""#),
        (r#""name":"p","#, ""),
        (r#""ports":[8888],"methods""#, r#""methods""#),
        // Values of another type or range.
        (r#""version":1"#, r#""version":"1""#),
        (r#""version":1"#, r#""version":1.0"#),
        (r#""counter":7"#, r#""counter":-7"#),
        (r#""counter":7"#, r#""counter":18446744073709551616"#),
        (r#""deny""#, r#""Deny""#),
        (r#""deny""#, r#""allow""#),
        (r#""ports":[8888]"#, r#""ports":[65536]"#),
        (r#""ports":[8888]"#, r#""ports":["8888"]"#),
        (r#""ports":[8888]"#, r#""ports":8888"#),
        (r#"["ann"]"#, "null"),
        (r#"["ann"]"#, "[null]"),
        (r#"["GET"]"#, "null"),
        (r#"["GET"]"#, r#""GET""#),
        (r#"["/a"]"#, "null"),
        ("false", "null"),
        ("false", "0"),
        (r#""name":"p""#, r#""name":null"#),
    ] {
        let bad = good.replacen(find, replace, 1);
        assert_ne!(bad, good, "{find} isn't in the snapshot");
        let error = refused(&bad);
        assert!(error.contains(" at line 1 column "), "{replace}: {error}");
    }
}

#[test]
fn a_document_that_is_not_exactly_one_snapshot_is_refused() {
    let good = with_policies("[]");
    let deep = "[".repeat(100_000);
    for bad in [
        String::new(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        format!("{good}x"),
        format!("{good}{good}"),
        format!("{good}\0"),
        format!("\u{feff}{good}"),
        good.replace('"', "'"),
        good.replace("[]", "[],"),
        good.replace("[]", &deep),
        format!("{}{}", deep, "]".repeat(100_000)),
        good.replace("deny", "de\u{0}ny"),
    ] {
        refused(&bad);
    }
    let mut not_utf8 = good.clone().into_bytes();
    not_utf8.insert(2, 0xff);
    assert!(PolicySnapshot::parse(&not_utf8).is_err());
    let padded = |size: usize| format!("{good}{}", " ".repeat(size - good.len()));
    parsed(&padded(MAX_SNAPSHOT_BYTES));
    assert!(refused(&padded(MAX_SNAPSHOT_BYTES + 1)).contains("more than 1 MiB"));
}

#[test]
fn another_version_is_named_even_if_its_fields_are_unknown() {
    let version_2 = with_policies("[]").replace(r#""version":1"#, r#""version":2"#);
    for bad in [
        version_2.clone(),
        version_2.replace("ports", "targets"),
        r#"{"version":2}"#.into(),
    ] {
        assert_eq!(
            refused(&bad),
            "policy snapshot has version 2, this release reads version 1"
        );
    }
    assert!(refused(&version_2.replace(":2", ":0")).contains("version 0"));
}

#[test]
fn a_value_that_cannot_be_enforced_is_refused_with_its_place() {
    let good = with_rule(
        r#"[{"users":["ann"]},{"serviceAccounts":["a/b"],"groups":["g"],"spiffeIDs":["spiffe://x/y"]}]"#,
        r#"[{"ports":[8888],"methods":["GET"],"paths":["/a"]}]"#,
    );
    parsed(&good);
    let long = format!("{:?}", "x".repeat(257));
    for (find, replace, place) in [
        (r#""ports":[8888]"#, r#""ports":[]"#, "ports"),
        (r#""ports":[8888]"#, r#""ports":[1,0]"#, "ports[1]"),
        (r#""name":"p""#, r#""name":"""#, "policies[0].name"),
        (r#""name":"p""#, r#""name":"a\nb""#, "policies[0].name"),
        (r#""name":"p""#, &format!(r#""name":{long}"#), "policies[0].name"),
        (r#"[{"users":["ann"]},"#, "[{},", "policies[0].rules[0].from[0]"),
        (
            r#"{"users":["ann"]}"#,
            r#"{"anonymous":false}"#,
            "policies[0].rules[0].from[0]",
        ),
        (r#"["ann"]"#, "[]", "policies[0].rules[0].from[0].users"),
        (r#"["ann"]"#, r#"["ann",""]"#, "policies[0].rules[0].from[0].users[1]"),
        (r#""ann""#, &long, "policies[0].rules[0].from[0].users[0]"),
        (r#""ann""#, r#""a\u0000""#, "policies[0].rules[0].from[0].users[0]"),
        (r#""ann""#, r#""static:""#, "policies[0].rules[0].from[0].users[0]"),
        (r#""ann""#, r#""anonymous""#, "policies[0].rules[0].from[0].users[0]"),
        (r#""ann""#, r#""spiffe://x/y""#, "policies[0].rules[0].from[0].users[0]"),
        (
            r#""ann""#,
            r#""system:serviceaccount:a:b""#,
            "policies[0].rules[0].from[0].users[0]",
        ),
        (r#""a/b""#, r#""ab""#, "policies[0].rules[0].from[1].serviceAccounts[0]"),
        (
            r#""a/b""#,
            r#""a/*""#,
            "policies[0].rules[0].from[1].serviceAccounts[0]",
        ),
        (
            r#""a/b""#,
            r#""a/b/c""#,
            "policies[0].rules[0].from[1].serviceAccounts[0]",
        ),
        (r#"["a/b"]"#, "[]", "policies[0].rules[0].from[1].serviceAccounts"),
        (r#"["g"]"#, "[]", "policies[0].rules[0].from[1].groups"),
        (r#""g""#, &long, "policies[0].rules[0].from[1].groups[0]"),
        (
            r#""spiffe://x/y""#,
            r#""spiffe://*""#,
            "policies[0].rules[0].from[1].spiffeIDs[0]",
        ),
        (
            r#""spiffe://x/y""#,
            r#""spiffe://x/y*""#,
            "policies[0].rules[0].from[1].spiffeIDs[0]",
        ),
        (
            r#""spiffe://x/y""#,
            r#""spiffe://x/*/y""#,
            "policies[0].rules[0].from[1].spiffeIDs[0]",
        ),
        (
            r#""spiffe://x/y""#,
            r#""spiffe://x/y/""#,
            "policies[0].rules[0].from[1].spiffeIDs[0]",
        ),
        (
            r#""spiffe://x/y""#,
            r#""*""#,
            "policies[0].rules[0].from[1].spiffeIDs[0]",
        ),
        (r#"["GET"]"#, "[]", "policies[0].rules[0].to[0].methods"),
        (r#""GET""#, r#""get""#, "policies[0].rules[0].to[0].methods[0]"),
        (r#""GET""#, r#""*""#, "policies[0].rules[0].to[0].methods[0]"),
        (r#""GET""#, r#""G T""#, "policies[0].rules[0].to[0].methods[0]"),
        (r#""GET""#, r#""""#, "policies[0].rules[0].to[0].methods[0]"),
        (r#"["/a"]"#, "[]", "policies[0].rules[0].to[0].paths"),
        (
            r#""/a""#,
            &format!(r#""/{}""#, "x".repeat(1024)),
            "policies[0].rules[0].to[0].paths[0]",
        ),
    ] {
        let bad = good.replacen(find, replace, 1);
        let error = refused(&bad);
        assert!(
            error.starts_with(&format!("policy snapshot: {place}: ")),
            "{replace}: {error}"
        );
    }
    assert!(refused(&with_rule("[]", r#"[{"ports":[1]}]"#)).contains("policies[0].rules[0].from: "));
    assert!(refused(&with_rule(r#"[{"anonymous":true}]"#, "[]")).contains("policies[0].rules[0].to: "));
    let twice = with_policies(r#"[{"name":"p","rules":[]},{"name":"p","rules":[]}]"#);
    assert!(
        refused(&twice).contains("policies[1].name: another policy"),
        "{}",
        refused(&twice)
    );
}

/// Writes a snapshot with a list of so many items.
type Build<'a> = &'a dyn Fn(usize) -> String;

#[test]
fn every_list_is_bounded() {
    let list = |count: usize, item: &dyn Fn(usize) -> String| {
        let mut text = String::from("[");
        for index in 0..count {
            write!(text, "{}{}", if index == 0 { "" } else { "," }, item(index)).unwrap();
        }
        text + "]"
    };
    let anyone = r#"[{"anonymous":true}]"#;
    let to = r#"[{"ports":[1]}]"#;
    let quoted = |index: usize| format!(r#""/n{index}""#);
    let build: [(&str, usize, Build<'_>); 8] = [
        ("policies", 256, &|n| {
            with_policies(&list(n, &|i| format!(r#"{{"name":"p{i}","rules":[]}}"#)))
        }),
        ("rules", 64, &|n| {
            let rules = list(n, &|_| format!(r#"{{"from":{anyone},"to":{to}}}"#));
            with_policies(&format!(r#"[{{"name":"p","rules":{rules}}}]"#))
        }),
        ("from", 64, &|n| {
            with_rule(&list(n, &|_| r#"{"anonymous":true}"#.into()), to)
        }),
        ("to", 64, &|n| {
            with_rule(anyone, &list(n, &|_| r#"{"ports":[1]}"#.into()))
        }),
        ("users", 256, &|n| {
            with_rule(&format!(r#"[{{"users":{}}}]"#, list(n, &quoted)), to)
        }),
        ("groups", 256, &|n| {
            with_rule(&format!(r#"[{{"groups":{}}}]"#, list(n, &quoted)), to)
        }),
        ("to[0].ports", 256, &|n| {
            with_rule(
                anyone,
                &format!(r#"[{{"ports":{}}}]"#, list(n, &|i| (i + 1).to_string())),
            )
        }),
        ("paths", 256, &|n| {
            with_rule(anyone, &format!(r#"[{{"ports":[1],"paths":{}}}]"#, list(n, &quoted)))
        }),
    ];
    for (field, most, snapshot) in build {
        parsed(&snapshot(most));
        let error = refused(&snapshot(most + 1));
        assert!(
            error.contains(&format!("{field}: has {} items, more than {most}", most + 1)),
            "{error}"
        );
    }
}

#[test]
fn what_we_write_is_what_we_read() {
    let written = model::Snapshot {
        version: model::VERSION,
        generation: Generation { epoch: 2, counter: 3 },
        default_policy: DefaultPolicy::Authenticated,
        ports: vec![8888],
        policies: vec![model::Policy {
            name: "p".into(),
            rules: vec![model::Rule {
                from: vec![model::Source {
                    spiffe_ids: Some(vec!["spiffe://x/*".into()]),
                    service_accounts: Some(vec!["a/b".into()]),
                    ..model::Source::default()
                }],
                to: vec![model::Target {
                    ports: vec![1],
                    methods: None,
                    paths: Some(vec!["/*".into()]),
                }],
            }],
        }],
    };
    let json = serde_json::to_string(&written).unwrap();
    assert!(json.contains("spiffeIDs") && json.contains("serviceAccounts"), "{json}");
    assert!(!json.contains("null") && !json.contains("anonymous"), "{json}");
    assert_eq!(serde_json::from_str::<model::Snapshot>(&json).unwrap(), written);
    assert_eq!(parsed(&json).generation(), written.generation);
}

#[test]
fn generations_are_ordered_by_epoch_then_counter() {
    let generation = |epoch, counter| Generation { epoch, counter };
    assert!(generation(2, 0) > generation(1, 9));
    assert!(generation(1, 9) > generation(1, 8));
}
