use super::tests::{ask, parsed, port, refused, rule, user, with_policies, with_rule};
use super::*;

/// Each reads as `/admin` or as something unclear to some program, though it starts like `/public/`.
#[rustfmt::skip]
const AMBIGUOUS: &[&str] = &[
    "", "*", "public", "public/a", "http://h/public/", "//", "//public/", "/public//admin", "/public//",
    "/public/./a", "/public/.", "/public/..", "/public/../admin", "/public/a/../../admin", "/public/%2e%2e/admin",
    "/public/%2E%2E/admin", "/public/.%2e/admin", "/public/%2E./admin", "/public/%2e", "/public/%2e/", "/./public/",
    "/../public/", "/public/..%2fadmin", "/public/..%2Fadmin", "/public/a%2fb", "/public/a%2Fb", "/public/..%5cadmin",
    "/public/..%5Cadmin", "/public/..\\admin", "/public\\a", "/public/a%00", "/public/%00/a",
    "/public/%252e%252e/admin", "/public/a%25", "/public/a#b", "/public/..;/admin", "/public/a;b=c", "/;/public/",
    "/public/a?b", "/public/a%", "/public/a%2", "/public/%zz", "/public/%2g", "/public/%+2", "/public/% 2",
    "/public/a b", "/public/a\tb", "/public/a\0", "/public/é", "/public/\u{ff0e}\u{ff0e}/admin",
    "/public/.%0a./admin", "/public/%0D%0Aa", "/public/%7f", "/public/%c0%ae%c0%ae/admin", "/public/%C1%9c",
    "/public/%e0%80%ae", "/public/%F0%80%80%AE", "/public/%2e%2e",
];

#[test]
fn path_patterns_match_exactly_or_below_a_segment() {
    for (pattern, path, matches) in [
        ("/a", "/a", true),
        ("/a", "/a/", false),
        ("/a", "/ab", false),
        ("/a", "/A", false),
        ("/a", "/%61", false),
        ("/a/", "/a/", true),
        ("/a/", "/a/b", false),
        ("/a/*", "/a/", true),
        ("/a/*", "/a/b", true),
        ("/a/*", "/a/b/c%20d.txt", true),
        ("/a/*", "/a/...", true),
        ("/a/*", "/a/.b", true),
        ("/a/*", "/a/b..", true),
        ("/a/*", "/a/*", true),
        ("/a/*", "/a/%C3%A9|[x]", true),
        ("/a/*", "/a", false),
        ("/a/*", "/ab/c", false),
        ("/*", "/", true),
        ("/*", "/a/b/", true),
        ("/", "/", true),
        ("/", "/a", false),
        ("/caf%C3%A9", "/caf%C3%A9", true),
        ("/caf%C3%A9", "/caf%c3%a9", false),
    ] {
        let snapshot = parsed(&with_rule(
            r#"[{"anonymous":true}]"#,
            &format!(r#"[{{"ports":[8888],"paths":["{pattern}"]}}]"#),
        ));
        let expected = if matches { rule("p", 0) } else { Verdict::Denied };
        assert_eq!(
            ask(&snapshot, &Caller::Anonymous, &Method::GET, path),
            expected,
            "{pattern} {path}"
        );
    }
}

#[test]
fn an_ambiguous_path_matches_no_path_rule() {
    let with_paths = parsed(&with_rule(
        r#"[{"users":["ann"]}]"#,
        r#"[{"ports":[8888],"methods":["GET"],"paths":["/public/*","/*","/public"]}]"#,
    ));
    let any_path = parsed(&with_rule(r#"[{"users":["ann"]}]"#, r#"[{"ports":[8888]}]"#));
    let ann = user("ann", &[]);
    for path in AMBIGUOUS {
        assert_eq!(
            ask(&with_paths, &ann, &Method::GET, path),
            Verdict::AmbiguousPath,
            "{path:?}"
        );
        assert_eq!(ask(&any_path, &ann, &Method::GET, path), rule("p", 0), "{path:?}");
        // Where the path isn't what stands in the way, it is a plain refusal.
        assert_eq!(ask(&with_paths, &ann, &Method::PUT, path), Verdict::Denied, "{path:?}");
        assert_eq!(
            ask(&with_paths, &user("bob", &[]), &Method::GET, path),
            Verdict::Denied,
            "{path:?}"
        );
        assert_eq!(
            with_paths.evaluate(&ann, port(80), &Method::GET, path),
            Verdict::Denied,
            "{path:?}"
        );
    }
}

#[test]
fn a_rule_without_paths_is_found_after_one_with_paths() {
    let snapshot = parsed(&with_policies(
        r#"[{"name":"a","rules":[{"from":[{"users":["ann"]}],"to":[{"ports":[8888],"paths":["/*"]},{"ports":[8888],"methods":["PUT"]}]}]},
            {"name":"b","rules":[{"from":[{"anonymous":true}],"to":[{"ports":[8888],"methods":["DELETE"]}]}]}]"#,
    ));
    let ann = user("ann", &[]);
    assert_eq!(ask(&snapshot, &ann, &Method::PUT, "/a%2Fb"), rule("a", 0));
    assert_eq!(ask(&snapshot, &ann, &Method::DELETE, "/a%2Fb"), rule("b", 0));
    assert_eq!(ask(&snapshot, &ann, &Method::GET, "/a%2Fb"), Verdict::AmbiguousPath);
}

#[test]
fn no_path_pattern_can_itself_be_ambiguous() {
    for pattern in AMBIGUOUS
        .iter()
        .filter(|pattern| !pattern.contains(['\\', '\t', '\0']))
        .copied()
        .chain([
            "/a*",
            "/*/a",
            "/a/**",
            "/a/*/",
            "*/",
            "/%2a/../*",
            "/a//*",
            "/a/../*",
            "//*",
            "a/*",
        ])
    {
        let error = refused(&with_rule(
            r#"[{"anonymous":true}]"#,
            &format!(r#"[{{"ports":[8888],"paths":["/ok","{pattern}"]}}]"#),
        ));
        assert!(
            error.contains("policies[0].rules[0].to[0].paths[1]: "),
            "{pattern:?}: {error}"
        );
    }
}
