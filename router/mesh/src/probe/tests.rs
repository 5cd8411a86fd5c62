use super::*;
use serde_json::{Value, json};

/// What one declaration means, or the field that is wrong and how.
fn checked(declaration: &Value) -> Result<AppProbe, String> {
    let document = json!({"version": 1, "probes": [declaration]}).to_string();
    match document.parse::<AppProbes>() {
        Ok(AppProbes(mut probes)) => Ok(probes.remove(0)),
        Err(AppProbesError::Invalid { place: 0, flaw }) => Err(flaw.to_string()),
        Err(other) => Err(other.to_string()),
    }
}

fn http(get: &Value) -> Result<AppProbe, String> {
    checked(&json!({"container": "app", "kind": "readinessProbe", "timeoutSeconds": 1, "httpGet": get}))
}

fn target(get: &Value) -> String {
    match http(get).unwrap().action {
        Action::HttpGet { target, .. } => target.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_probe_has_a_path_of_its_own() {
    let document = r#"{"version":1,"probes":[
        {"container":"app","kind":"readinessProbe","timeoutSeconds":1,"httpGet":{"port":8080,"portName":"http"}},
        {"container":"app","kind":"livenessProbe","timeoutSeconds":2,"tcpSocket":{"port":8080}},
        {"container":"db-1","kind":"readinessProbe","timeoutSeconds":3600,"tcpSocket":{"port":5432}},
        {"container":"app","kind":"preStop","timeoutSeconds":30,"httpGet":{"path":"/stop","port":8080,"scheme":"HTTP"}}]}"#;
    let probes: AppProbes = document.parse().unwrap();
    let found: Vec<_> = probes
        .iter()
        .map(|probe| (probe.path(), probe.port.get(), probe.timeout.as_secs()))
        .collect();
    assert_eq!(
        found,
        [
            ("/app-probe/app/readinessProbe".into(), 8080, 1),
            ("/app-probe/app/livenessProbe".into(), 8080, 2),
            ("/app-probe/db-1/readinessProbe".into(), 5432, 3600),
            ("/app-probe/app/preStop".into(), 8080, 30),
        ]
    );
    let twice = document.replace("livenessProbe", "readinessProbe");
    let error = twice.parse::<AppProbes>().unwrap_err().to_string();
    assert_eq!(error, "app probe 1: kind: is declared twice for this container");
}

#[test]
fn what_is_written_is_what_was_read() {
    let text = r#"{"version":1,"probes":[{"container":"app","kind":"startupProbe","timeoutSeconds":1,"httpGet":{"path":"/","port":1,"portName":"web","scheme":"HTTP","httpHeaders":[{"name":"a","value":"b"}]}},{"container":"app","kind":"postStart","timeoutSeconds":1,"httpGet":{"port":1}}]}"#;
    let declarations: Declarations = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&declarations).unwrap(), text);
}

#[test]
fn nothing_unknown_doubled_or_null_is_skipped() {
    let good = r#"{"version":1,"probes":[{"container":"app","kind":"readinessProbe","timeoutSeconds":1,"httpGet":{"port":80}}]}"#;
    assert!(good.parse::<AppProbes>().is_ok());
    for (from, to) in [
        (r#""version":1"#, r#""version":1,"more":1"#),
        (r#""port":80"#, r#""port":80,"host":"10.0.0.1""#),
        (r#""port":80"#, r#""port":80,"port":81"#),
        (r#""port":80"#, r#""port":80,"path":null"#),
        (r#""port":80"#, r#""port":"http""#),
        (r#""port":80"#, r#""port":80,"scheme":"http""#),
        (
            r#""port":80"#,
            r#""port":80,"httpHeaders":[{"name":"a","value":"b","more":"c"}]"#,
        ),
        (r#""port":80"#, r#""port":65616"#),
        (r#""readinessProbe""#, r#""readyProbe""#),
        (r#""timeoutSeconds":1,"#, ""),
        (r#""container":"app","#, ""),
        (
            r#""httpGet":{"port":80}"#,
            r#""httpGet":{"port":80},"exec":{"command":["a"]}"#,
        ),
        (r#""httpGet":{"port":80}"#, r#""httpGet":{"port":80},"tcpSocket":null"#),
        ("}]}", "}]} "),
        ("}]}", "}]}{}"),
    ] {
        let changed = good.replacen(from, to, 1);
        assert_ne!(changed, good);
        assert_eq!(changed.parse::<AppProbes>().is_ok(), to == "}]} ", "{changed}");
    }
    let error = good
        .replace(r#""version":1"#, r#""version":2"#)
        .parse::<AppProbes>()
        .unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
    let error = format!("{good}{}", " ".repeat(MAX_BYTES))
        .parse::<AppProbes>()
        .unwrap_err();
    assert!(matches!(error, AppProbesError::TooLarge(_)));
}

#[test]
fn a_path_is_sent_as_the_kubelet_would_send_it_or_refused() {
    assert_eq!(target(&json!({"port": 1})), "/");
    assert_eq!(target(&json!({"port": 1, "path": ""})), "/");
    assert_eq!(target(&json!({"port": 1, "path": "healthz"})), "/healthz");
    assert_eq!(
        target(&json!({"port": 1, "path": "/a%20b/../?x=1&y=//"})),
        "/a%20b/../?x=1&y=//"
    );
    let long = format!("/{}", "a".repeat(MAX_PATH));
    for bad in ["/a b", "/a#b", "/a\r\nHost: b", "/\u{7f}", "/ä", "/a\t", &long] {
        let error = http(&json!({"port": 1, "path": bad})).unwrap_err();
        assert!(error.starts_with("httpGet.path: must be a path"), "{bad:?}: {error}");
    }
    // Never another authority: what looks like one is a path.
    assert_eq!(
        target(&json!({"port": 1, "path": "http://10.0.0.1/"})),
        "/http://10.0.0.1/"
    );
    assert_eq!(target(&json!({"port": 1, "path": "//10.0.0.1/"})), "//10.0.0.1/");
}

#[test]
fn the_gates_own_ports_are_never_probed() {
    for (port, wanted) in [(0, "from 1 to 65535"), (14443, "gate's own"), (14480, "gate's own")] {
        for handler in ["httpGet", "tcpSocket"] {
            let mut declaration = json!({"container": "app", "kind": "livenessProbe", "timeoutSeconds": 1});
            declaration[handler] = json!({"port": port});
            let error = checked(&declaration).unwrap_err();
            assert!(error.starts_with(&format!("{handler}.port: ")), "{error}");
            assert!(error.contains(wanted), "{error}");
        }
    }
}

#[test]
fn declared_headers_are_kept_but_for_those_that_frame_carry_or_are_ours() {
    let with = |headers: Value| http(&json!({"port": 1, "httpHeaders": headers}));
    let good =
        json!([{"name": "Host", "value": "app.example"}, {"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}]);
    let Action::HttpGet { headers, .. } = with(good).unwrap().action else {
        panic!()
    };
    assert_eq!(headers[HOST], "app.example");
    assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    for name in [
        "Connection",
        "Content-Length",
        "Transfer-Encoding",
        "Upgrade",
        "Expect",
        "TE",
        "Trailer",
        "Keep-Alive",
        "Proxy-Connection",
        "X-Sandgate-Caller",
        "X-Sandbox-Port",
        "",
        "a b",
        "a:",
    ] {
        let error = with(json!([{"name": "X", "value": "1"}, {"name": name, "value": "1"}])).unwrap_err();
        assert!(error.starts_with("httpGet.httpHeaders[1].name: "), "{name}: {error}");
    }
    let error = with(json!([{"name": "X", "value": "a\r\nHost: b"}])).unwrap_err();
    assert!(error.starts_with("httpGet.httpHeaders[0].value: "), "{error}");
    let error = with(json!([{"name": "Host", "value": "a"}, {"name": "host", "value": "b"}])).unwrap_err();
    assert!(error.contains("second time"), "{error}");
    let many = vec![json!({"name": "X", "value": "1"}); MAX_HEADERS + 1];
    let error = with(many.into()).unwrap_err();
    assert!(error.contains("33 items"), "{error}");
}

#[test]
fn a_declaration_does_one_thing_in_a_bounded_time() {
    let declaration = |change: &dyn Fn(&mut Value)| {
        let mut declaration =
            json!({"container": "app", "kind": "livenessProbe", "timeoutSeconds": 1, "tcpSocket": {"port": 80}});
        change(&mut declaration);
        checked(&declaration).map(|_| ())
    };
    assert_eq!(declaration(&|_| ()), Ok(()));
    for (change, wanted) in [
        (
            &(|d: &mut Value| d["timeoutSeconds"] = 0.into()) as &dyn Fn(&mut Value),
            "timeoutSeconds: must be 1 to 3600",
        ),
        (
            &|d| d["timeoutSeconds"] = 3601.into(),
            "timeoutSeconds: must be 1 to 3600",
        ),
        (
            &|d| d["container"] = "../app".into(),
            "container: must be a DNS-1123 label",
        ),
        (
            &|d| d["httpGet"] = json!({"port": 80}),
            "livenessProbe: must be exactly one of",
        ),
        (
            &|d| drop(d.as_object_mut().unwrap().remove("tcpSocket")),
            "livenessProbe: must be exactly one of",
        ),
        (
            &|d| d["kind"] = "preStop".into(),
            "tcpSocket: does nothing in a lifecycle hook",
        ),
    ] {
        let error = declaration(change).unwrap_err();
        assert!(error.starts_with(wanted), "{error}");
    }
}
