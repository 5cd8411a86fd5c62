use super::HostDomainError::{Address, NotADomain};
use super::*;

fn domain() -> HostDomain {
    "Sandboxes.Example".parse().unwrap()
}

fn parse(host: &str) -> Result<Option<NamedApp>, RouterError> {
    domain().parse(host.as_bytes())
}

/// The label that leads to an app, by the documentation.
fn label(NamedApp { sandbox, port }: &NamedApp) -> String {
    format!("{port}-{}--{}", sandbox.name, sandbox.namespace)
}

#[test]
fn a_domain_is_a_dns_name() {
    for good in [
        "sandboxes.example",
        "localhost",
        "a",
        "A.b-c.d9",
        "9.a",
        &"x".repeat(63),
    ] {
        assert!(good.parse::<HostDomain>().is_ok(), "{good}");
    }
    let long = [["x"; 95].join("."), ["x"; 96].join(".")];
    assert!(long[0].parse::<HostDomain>().is_ok());
    for (bad, error) in [
        ("", NotADomain),
        (".", NotADomain),
        (".a", NotADomain),
        ("a.", NotADomain),
        ("a..b", NotADomain),
        ("*.a", NotADomain),
        ("a:80", NotADomain),
        ("https://a", NotADomain),
        ("a/b", NotADomain),
        ("a_b", NotADomain),
        ("-a", NotADomain),
        ("[::1]", NotADomain),
        ("\u{e4}.example", NotADomain),
        (&long[1], NotADomain),
        ("127.0.0.1", Address),
        ("example.0", Address),
    ] {
        assert_eq!(bad.parse::<HostDomain>(), Err(error), "{bad}");
    }
}

#[test]
fn a_host_under_the_domain_names_an_app_however_it_is_written() {
    let id = "x".repeat(53);
    let long = format!("1-{id}--{}", "n".repeat(6));
    assert_eq!(long.len(), LONGEST_LABEL);
    for (label, expected) in [
        ("8888-alpha--default", "default/alpha:8888"),
        ("80-a-b--c-d", "c-d/a-b:80"),
        ("80-a--b--c", "c/a--b:80"),
        ("80-80-80--80", "80/80-80:80"),
        ("65535-0--0", "0/0:65535"),
        (&long, &format!("nnnnnn/{id}:1")),
    ] {
        for host in [
            format!("{label}.sandboxes.example"),
            format!("{label}.SANDBOXES.example").to_ascii_uppercase(),
            format!("{label}.sandboxes.example."),
            format!("{label}.sandboxes.example:8080"),
            format!("{label}.sandboxes.example.:"),
        ] {
            let place = parse(&host).unwrap().unwrap();
            assert_eq!(format!("{}:{}", place.sandbox, place.port), expected, "{host}");
        }
    }
}

#[test]
fn a_host_beside_the_domain_is_for_the_path_or_the_headers() {
    for host in [
        "",
        "sandboxes.example",
        "SANDBOXES.EXAMPLE.:80",
        "80-a--b",
        "80-a--b.example",
        "80-a--bsandboxes.example",
        "80-a--b.sandboxes.example.org",
        "80-a--b.sandboxes.example..",
        "127.0.0.1:8080",
        "[::1]",
        "[::1]:8080",
        "[fd00::1%25eth0]:80",
        "::1",
        "80-a--b.sandboxes%2eexample",
        "sandboxes.example:80-a--b.sandboxes.example",
    ] {
        assert_eq!(parse(host), Ok(None), "{host}");
    }
    assert_eq!(domain().parse(b"\xff.example"), Ok(None));
}

#[test]
fn a_host_under_the_domain_that_names_no_app_is_refused() {
    let long = format!("1-{}--{}", "x".repeat(54), "n".repeat(6));
    for label in [
        "",
        "www",
        "a--b",
        "80",
        "80-",
        "80-a",
        "80-a-b",
        "80--b",
        "80---b",
        "80-a--",
        "80-a---b",
        "80-a----b",
        "80--a--b",
        "80-a--b-",
        "0-a--b",
        "080-a--b",
        "+80-a--b",
        "65536-a--b",
        "-80-a--b",
        "80-a--b.x",
        "x.80-a--b",
        "80-a_b--c",
        "user@80-a--b",
        "user:word@80-a--b",
        "@80-a--b",
        "80-a--b ",
        " 80-a--b",
        "80-a--\u{e4}",
        "80-a--b%2e",
        "xn--a--b",
        &long,
    ] {
        let host = format!("{label}.sandboxes.example");
        assert_eq!(parse(&host), Err(MALFORMED), "{host}");
    }
    for port in [":http", ":-1", ":80:81", ":80/", ": 80", ":8O"] {
        let host = format!("80-a--b.sandboxes.example{port}");
        assert_eq!(parse(&host), Err(MALFORMED), "{host}");
    }
    assert_eq!(domain().parse(b"80-a--\xff.sandboxes.example"), Err(MALFORMED));
}

#[test]
fn target_and_header_must_not_name_different_apps() {
    let find = |target: &str, host: Option<&str>| {
        let mut headers = HeaderMap::new();
        headers.extend(host.map(|host| (HOST, host.parse().unwrap())));
        domain().find(&target.parse().unwrap(), &headers)
    };
    let (one, same, other) = (
        "80-a--b.sandboxes.example",
        "80-A--B.sandboxes.example.:80",
        "80-a--c.sandboxes.example",
    );
    let place = parse(one).unwrap();
    for (target, host, expected) in [
        ("/", None, Ok(None)),
        ("/", Some(one), Ok(place.clone())),
        ("http://80-a--b.sandboxes.example/", None, Ok(place.clone())),
        ("http://80-a--b.sandboxes.example/", Some(same), Ok(place)),
        ("http://80-a--b.sandboxes.example/", Some(other), Err(TWO_HOSTS)),
        ("http://80-a--b.sandboxes.example/", Some("elsewhere"), Err(TWO_HOSTS)),
        (
            "http://80-a--b.sandboxes.example/",
            Some("www.sandboxes.example"),
            Err(MALFORMED),
        ),
        ("http://elsewhere/", Some(one), Err(TWO_HOSTS)),
        ("http://elsewhere/", Some("nowhere"), Ok(None)),
        ("http://u:p@80-a--b.sandboxes.example/", Some(one), Err(MALFORMED)),
    ] {
        assert_eq!(find(target, host), expected, "{target} {host:?}");
    }
}

/// Every text of at most `length` characters out of `alphabet`.
fn texts(alphabet: &[u8], length: u32) -> impl Iterator<Item = String> {
    let base = alphabet.len();
    (0..=length).flat_map(move |length| {
        (0..base.pow(length)).map(move |mut number| {
            let mut digit = || {
                let digit = number % base;
                number /= base;
                char::from(alphabet[digit])
            };
            (0..length).map(|_| digit()).collect()
        })
    })
}

#[test]
fn a_label_is_taken_exactly_if_it_is_an_apps_own_and_leads_back_to_that_app() {
    let mut taken = 0;
    for text in texts(b"-a01.", 8) {
        if let Some(place) = place(&text) {
            taken += 1;
            assert_eq!(label(&place), text, "another app's label, or a second one of the same");
        }
    }
    assert!(taken > 400, "{taken}");
}

#[test]
fn every_app_whose_namespace_has_no_double_hyphen_has_a_label_and_no_other_has() {
    let names: Vec<String> = texts(b"-a0", 5)
        .filter(|text| text.parse::<sandgate_mesh::sandbox::SandboxName>().is_ok())
        .collect();
    assert!(names.iter().any(|name| name.contains("--")));
    for name in &names {
        for namespace in &names {
            let app = NamedApp {
                sandbox: SandboxKey {
                    namespace: namespace.parse().unwrap(),
                    name: name.parse().unwrap(),
                },
                port: "10".parse().unwrap(),
            };
            let read = place(&label(&app));
            if namespace.contains("--") {
                assert_ne!(read, Some(app));
            } else {
                assert_eq!(read, Some(app));
            }
        }
    }
}
