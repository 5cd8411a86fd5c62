use super::*;

fn parse(args: &[&str]) -> Result<Config, ConfigError> {
    Config::from_args(args.iter().map(OsString::from).collect())
}

#[test]
fn starting_without_a_decision_about_callers_is_refused_and_names_the_choices() {
    let text = parse(&["--mesh=off"]).unwrap_err().to_string();
    for choice in [
        "ROUTER_AUTH_TOKEN",
        "--authz-mode=tokenreview",
        "--authz-mode=allow-all",
        "ALLOW_UNAUTHENTICATED_ROUTER",
    ] {
        assert!(text.contains(choice), "{text}");
    }
}

#[test]
fn flags_are_accepted_as_go_accepts_them() {
    let config = parse(&[
        "-authz-mode=allow-all",
        "-http-bind-address",
        ":9",
        "--access-log=false",
        "-proxy-timeout=1m30s",
    ]);
    let config = config.unwrap();
    assert_eq!(config.http.unwrap().port(), 9);
    assert!(!config.access_log);
    assert_eq!(config.proxy_timeout, Duration::from_secs(90));
}

/// The flags of the Go router with its defaults, but for `response-header-timeout`: 30 s there would end slow commands.
const GO_FLAGS: &[(&str, &[&str])] = &[
    ("http-bind-address", &[":8080"]),
    ("https-bind-address", &[""]),
    ("metrics-bind-address", &[":9090"]),
    ("health-probe-bind-address", &[":8081"]),
    ("tls-cert-file", &[]),
    ("tls-key-file", &[]),
    ("tls-client-ca-file", &[]),
    ("mtls-mode", &["off"]),
    ("cluster-domain", &["cluster.local"]),
    ("proxy-timeout", &["180s"]),
    ("response-header-timeout", &["0s"]),
    ("shutdown-timeout", &["30s"]),
    ("max-request-body-bytes", &["0"]),
    ("allow-loopback-pod-ip", &["false"]),
    ("upstream-max-retries", &["3"]),
    ("upstream-retry-initial-delay", &["200ms"]),
    ("upstream-retry-max-delay", &["800ms"]),
    ("authz-mode", &[]),
    ("authz-tokenreview-ttl", &[]),
    ("authz-tokenreview-cache-size", &[]),
    ("authz-tokenreview-require-token", &["false"]),
    ("authz-tokenreview-audiences", &[]),
    ("authz-scoped-token-secret-file", &[]),
    ("cache-enabled", &["false"]),
    ("cache-namespace", &[""]),
    ("kubeconfig", &[]),
    ("enable-tracing", &[]),
    ("enable-otel-metrics", &[]),
    ("access-log", &["true"]),
    ("config", &[]),
];

#[test]
fn every_flag_of_the_go_router_exists_and_has_its_default() {
    let command = command();
    for (flag, default) in GO_FLAGS {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag));
        let arg = arg.unwrap_or_else(|| panic!("--{flag} is missing"));
        assert_eq!(arg.get_default_values(), *default, "--{flag}");
    }
}

#[test]
fn booleans_are_spelled_as_in_go() {
    let read =
        |flag: &str| parse(&["--authz-mode=allow-all", flag]).map(|config| (config.access_log, config.cache.is_some()));
    for (flag, expected) in [
        ("-access-log", (true, false)),
        ("-access-log=F", (false, false)),
        ("--access-log=0", (false, false)),
        ("--access-log=FALSE", (false, false)),
        ("--cache-enabled", (true, true)),
        ("--cache-enabled=1", (true, true)),
        ("-cache-enabled=T", (true, true)),
        ("-cache-enabled=True", (true, true)),
    ] {
        assert_eq!(read(flag).unwrap(), expected, "{flag}");
    }
    for bad in [
        "--access-log=yes",
        "--access-log=tRUE",
        "--cache-enabled=",
        "--cache-enabled=2",
    ] {
        assert_eq!(read(bad).unwrap_err().exit_code(), 64, "{bad}");
    }
}

#[test]
fn empty_texts_are_as_if_the_flag_were_not_there() {
    let config = parse(&[
        "--authz-mode=allow-all",
        "--tls-cert-file=",
        "--tls-key-file",
        "",
        "--tls-client-ca-file=",
        "--kubeconfig=",
        "--cache-namespace=",
        "--https-bind-address=",
        "--trusted-proxy-cidrs=",
        "--config=",
    ]);
    let config = config.unwrap();
    assert!(config.https.is_none() && config.cache.is_none() && config.trusted_proxies.is_empty());
    let error = parse(&["--authz-mode=allow-all", "--cluster-domain="]).unwrap_err();
    assert!(error.to_string().contains("must not be empty"), "{error}");
}

#[test]
fn all_problems_are_reported_together() {
    let error = parse(&["--mtls-mode=required", "--mesh-cert-file=x"]).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    let ConfigError::Settings { problems, .. } = error else {
        panic!()
    };
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[test]
fn bad_values_are_reported_together_with_all_other_problems() {
    let error = parse(&[
        "--proxy-timeout=soon",
        "--trust-domain",
        "A B",
        "--mesh=maybe",
        "--access-log=perhaps",
        "--mtls-mode=required",
    ]);
    let error = error.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    let text = error.to_string();
    for expected in [
        "  - invalid value 'soon' for '--proxy-timeout <PROXY_TIMEOUT>': \"soon\" is not a duration",
        "  - invalid value 'A B' for '--trust-domain <TRUST_DOMAIN>'",
        "  - invalid value 'maybe' for '--mesh <MESH>' [possible values: required, auto, off]",
        "  - invalid value 'perhaps' for '--access-log [<ACCESS_LOG>]'",
        "  - nothing says who may call",
        "  - --mtls-mode needs the HTTPS listener",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert_eq!(parse(&["--mesh=maybe", "--nonsense"]).unwrap_err().exit_code(), 2);
    assert_eq!(parse(&["--mesh=maybe", "--help"]).unwrap_err().exit_code(), 0);
    assert_eq!(parse(&["--mesh"]).unwrap_err().exit_code(), 2);
}

#[test]
fn a_mode_that_there_is_not_is_no_missing_decision() {
    let error = parse(&["--authz-mode=foo"]).unwrap_err();
    let ConfigError::Settings { problems, .. } = error else {
        panic!()
    };
    assert!(
        matches!(&problems[..], [one] if one.starts_with("invalid value 'foo' for '--authz-mode <AUTHZ_MODE>'")),
        "{problems:?}"
    );
}

#[test]
fn only_a_program_without_an_embedder_needs_the_files_of_its_identity() {
    let args = || vec!["--authz-mode=allow-all".into()];
    assert!(Config::from_args(args()).is_ok());
    let error = Config::of_program(args()).unwrap_err();
    assert!(error.to_string().contains("--mesh-cert-file"), "{error}");
    let args = [args(), vec!["--mesh=off".into()]].concat();
    assert!(Config::of_program(args).is_ok());
}

#[test]
fn caps_of_framing_are_what_the_flags_say_and_are_checked() {
    let config = parse(&["--authz-mode=allow-all", "--max-request-headers=7"]).unwrap();
    assert_eq!(config.framing.headers, 7);
    let error = parse(&["--authz-mode=allow-all", "--max-request-headers=0"]).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("--max-request-headers is 0"), "{error}");
}

#[test]
fn files_of_the_https_listener_are_refused_where_there_is_none() {
    let files = ["--tls-cert-file=c", "--tls-key-file=k", "--tls-client-ca-file=a"];
    let error = parse(&[&files[..], &["--authz-mode=allow-all"]].concat()).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    let text = error.to_string();
    for file in files {
        let flag = file.split('=').next().unwrap();
        let sentence = format!("  - {flag} needs the HTTPS listener: set --https-bind-address");
        assert!(text.contains(&sentence), "{sentence}\n{text}");
    }
    let listener = ["--authz-mode=allow-all", "--https-bind-address=:8443"];
    assert!(parse(&[&files[..], &listener].concat()).unwrap().https.is_some());
}

#[test]
fn either_listener_may_be_left_out_but_not_both() {
    let tls = ["--authz-mode=allow-all", "--tls-cert-file=c", "--tls-key-file=k"];
    let config = parse(&[&tls[..], &["--http-bind-address=", "--https-bind-address=:8443"]].concat()).unwrap();
    assert!(config.http.is_none() && config.https.is_some());
    let error = parse(&["--authz-mode=allow-all", "--http-bind-address="]).unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(
        error
            .to_string()
            .contains("  - nothing would be served: set --http-bind-address or --https-"),
        "{error}"
    );
}

#[test]
fn what_is_for_the_pod_cache_is_refused_without_it() {
    for (flag, named) in [
        ("--mesh=auto", "--mesh=auto"),
        ("--cache-namespace=a", "--cache-namespace"),
    ] {
        let error = parse(&["--authz-mode=allow-all", flag]).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        let sentence = format!("  - {named} needs the pod cache: set --cache-enabled");
        assert!(error.to_string().contains(&sentence), "{error}");
        assert!(parse(&["--authz-mode=allow-all", "--cache-enabled", flag]).is_ok());
    }
    let error = parse(&["--authz-mode=allow-all", "--cache-enabled", "--cache-namespace=A"]).unwrap_err();
    assert!(error.to_string().contains("--cache-namespace: "), "{error}");
    let cache = |args: &[&str]| parse(&[&["--authz-mode=allow-all"], args].concat()).unwrap().cache;
    assert_eq!(cache(&[]), None);
    assert_eq!(cache(&["--cache-enabled=false"]), None);
    assert_eq!(
        cache(&["--cache-enabled", "--cache-namespace="]),
        Some(Source::default())
    );
}

#[test]
fn a_time_limit_of_nothing_is_refused() {
    for zero in ["--proxy-timeout=0", "--proxy-timeout=0s"] {
        let error = parse(&["--authz-mode=allow-all", zero]).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(error.to_string().contains("must be above 0"), "{error}");
    }
}

#[test]
fn urls_that_lead_to_sandboxes_are_off_unless_a_flag_says_otherwise() {
    let urls = |flags: &[&str]| {
        let config = parse(&[&["--authz-mode=allow-all"], flags].concat());
        config
            .map(|config| config.url_routing)
            .map_err(|error| error.to_string())
    };
    assert_eq!(urls(&[]), Ok(None));
    assert_eq!(urls(&["--path-routing-prefix=", "--host-routing-domain", ""]), Ok(None));
    let (path, host) = ("/p".parse().ok(), "sandboxes.example".parse().ok());
    let both = Some(UrlRouting {
        path: path.clone(),
        host: host.clone(),
    });
    assert_eq!(
        urls(&["-path-routing-prefix", "/p", "--host-routing-domain=Sandboxes.example"]),
        Ok(both)
    );
    assert_eq!(
        urls(&["--path-routing-prefix=/p"]),
        Ok(Some(UrlRouting { path, host: None }))
    );
    assert_eq!(
        urls(&["--host-routing-domain=sandboxes.example"]),
        Ok(Some(UrlRouting { path: None, host }))
    );

    let text = urls(&["--path-routing-prefix=/p/", "--host-routing-domain=*.example"]).unwrap_err();
    for sentence in [
        "  - --path-routing-prefix: \"/p/\" must not end with \"/\"",
        "  - --host-routing-domain: \"*.example\" must be a DNS name",
    ] {
        assert!(text.contains(sentence), "{sentence}\n{text}");
    }
}
