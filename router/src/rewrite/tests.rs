use super::*;

const BASE: &str = "/p/team/alpha/8080";

fn mount(base: &str, host: &str) -> Mount {
    let mut mount = Mount::new(base, "8080".parse().unwrap());
    mount.told(&mut [(X_FORWARDED_HOST, host.parse().unwrap())].into_iter().collect());
    mount
}

fn rewritten(mount: &Mount, name: &'static str, value: &str) -> Vec<String> {
    let mut headers: HeaderMap = [(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())]
        .into_iter()
        .collect();
    mount.rewrite(&mut headers);
    headers
        .values()
        .map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap())
        .collect()
}

#[test]
fn a_redirect_to_the_app_stays_below_its_path() {
    let mount = mount(BASE, "Router.example:8443");
    for (app, browser) in [
        ("/", "/p/team/alpha/8080/"),
        ("/login?next=/x#y", "/p/team/alpha/8080/login?next=/x#y"),
        ("/a%2Fb/../c", "/p/team/alpha/8080/a%2Fb/../c"),
        ("/\\evil.example", "/p/team/alpha/8080/\\evil.example"),
        ("/\u{e4}", "/p/team/alpha/8080/\u{e4}"),
        ("/p/team/alpha/80801", "/p/team/alpha/8080/p/team/alpha/80801"),
        ("/p/team/beta/8080/", "/p/team/alpha/8080/p/team/beta/8080/"),
        ("http://127.0.0.1:8080", "/p/team/alpha/8080/"),
        ("http://127.0.0.1:8080/x", "/p/team/alpha/8080/x"),
        ("HTTPS://127.0.0.1:8080?q", "/p/team/alpha/8080/?q"),
        ("//127.0.0.1:8080//x", "/p/team/alpha/8080//x"),
        ("http://127.0.0.1:8080/p/team/alpha/8080/x", "/p/team/alpha/8080/x"),
        (
            "https://router.EXAMPLE:8443/x",
            "https://router.EXAMPLE:8443/p/team/alpha/8080/x",
        ),
        ("//router.example:8443", "//router.example:8443/p/team/alpha/8080/"),
        ("//router.example:8443#y", "//router.example:8443/p/team/alpha/8080/#y"),
    ] {
        for name in ["location", "content-location"] {
            assert_eq!(rewritten(&mount, name, app), [browser], "{app}");
        }
    }
    for stays in [
        "",
        "x",
        "./x",
        "../x",
        "?q",
        "#y",
        "/p/team/alpha/8080",
        "/p/team/alpha/8080/x",
        "/p/team/alpha/8080?q",
        "https://router.example:8443/p/team/alpha/8080/x",
        "https://router.example/x",
        "http://127.0.0.1:80/x",
        "http://127.0.0.1/x",
        "http://127.0.0.1:8080@elsewhere.example/x",
        "http://user@127.0.0.1:8080/x",
        "http://127.0.0.1:8080.example/x",
        "http://localhost:8080/x",
        "http://[::1]:8080/x",
        "//elsewhere.example/x",
        "https:/x",
        "http:",
        "h",
        "mailto:a@b.example",
        "javascript:alert(1)",
    ] {
        assert_eq!(rewritten(&mount, "location", stays), [stays]);
    }
}

#[test]
fn a_port_that_a_scheme_has_anyway_makes_no_other_host() {
    let app = |port: &str| {
        let mut mount = Mount::new(BASE, port.parse().unwrap());
        mount.told(
            &mut [(X_FORWARDED_HOST, HeaderValue::from_static("[fd00::1]"))]
                .into_iter()
                .collect(),
        );
        mount
    };
    for (port, from, to) in [
        ("80", "http://127.0.0.1/x", "/p/team/alpha/8080/x"),
        ("443", "https://127.0.0.1/x", "/p/team/alpha/8080/x"),
        ("80", "https://127.0.0.1:80/x", "/p/team/alpha/8080/x"),
        ("80", "https://127.0.0.1/x", "https://127.0.0.1/x"),
        ("443", "http://127.0.0.1/x", "http://127.0.0.1/x"),
        (
            "80",
            "https://[FD00::1]:443/x",
            "https://[FD00::1]:443/p/team/alpha/8080/x",
        ),
        ("80", "http://[fd00::1]/x", "http://[fd00::1]/p/team/alpha/8080/x"),
        ("80", "http://[fd00::1]:443/x", "http://[fd00::1]:443/x"),
    ] {
        assert_eq!(rewritten(&app(port), "location", from), [to], "{port}");
    }
}

#[test]
fn a_cookie_does_not_grow_with_each_path_that_it_names() {
    let cookie = format!("a=b{}", "; path=/".repeat(5_000));
    let rewritten = rewritten(&mount(BASE, "router.example"), "set-cookie", &cookie);
    assert_eq!(rewritten, ["a=b; Path=/p/team/alpha/8080/"]);
}

#[test]
fn a_cookie_stays_with_the_app_that_set_it() {
    let mount = mount(BASE, "router.example");
    for (app, browser) in [
        ("a=b; Path=/", "a=b; Path=/p/team/alpha/8080/"),
        (
            "a=b;path = /x ; HttpOnly; SameSite=Lax",
            "a=b; Path=/p/team/alpha/8080/x; HttpOnly; SameSite=Lax",
        ),
        ("a=b; PATH=/../beta", "a=b; Path=/p/team/alpha/8080/../beta"),
        (
            "a=b; Path=/p/team/beta/80",
            "a=b; Path=/p/team/alpha/8080/p/team/beta/80",
        ),
        ("a=b; Path=/p/team/alpha/8080/x", "a=b; Path=/p/team/alpha/8080/x"),
        // The last one counts.
        ("a=b; Path=/x; Path=/", "a=b; Path=/p/team/alpha/8080/"),
        // A browser takes the request's path instead of these, and that is the app's.
        ("a=b; Path=/x; Path", "a=b; Path=/p/team/alpha/8080/x"),
        ("a=b; Path=x; Secure", "a=b; Secure"),
        ("a=b; Path=\"/\"", "a=b"),
        ("a=b; Path=", "a=b"),
        ("a=b; Domain=example; Secure", "a=b; Secure"),
        ("a=b; domain =.router.example; Domain=\"x\"; DOMAIN", "a=b"),
        ("Path=/; Domain=/", "Path=/"),
        ("Domain=x; Path=/", "Domain=x; Path=/p/team/alpha/8080/"),
        ("; Path=/", "; Path=/p/team/alpha/8080/"),
        ("a=\"b; Path=/x\"", "a=\"b; Path=/p/team/alpha/8080/x\""),
        (
            "__Host-a=b; Path=/; Secure",
            "__Host-a=b; Path=/p/team/alpha/8080/; Secure",
        ),
    ] {
        assert_eq!(rewritten(&mount, "set-cookie", app), [browser], "{app}");
    }
    for stays in [
        "",
        "a",
        "a=b",
        "a=b; Secure;; X-Path=/; Pathx=/",
        "a=Path=/",
        "a=b; =Path=/; /",
    ] {
        assert_eq!(rewritten(&mount, "set-cookie", stays), [stays]);
    }
}

#[test]
fn a_cookie_without_a_path_stays_with_the_app_also_where_its_root_has_no_slash() {
    let mount = |path| mount(BASE, "router.example").asked_for(path);
    for (app, browser) in [
        ("a=b", "a=b; Path=/p/team/alpha/8080/"),
        ("a=b; Path=x; Secure", "a=b; Secure; Path=/p/team/alpha/8080/"),
        ("a=b; Path; Domain=example", "a=b; Path=/p/team/alpha/8080/"),
        ("a=b; Path=/x", "a=b; Path=/p/team/alpha/8080/x"),
    ] {
        assert_eq!(rewritten(&mount(BASE), "set-cookie", app), [browser], "{app}");
    }
    // Below the root a browser takes a folder of the app's own.
    for path in ["/p/team/alpha/8080/", "/p/team/alpha/8080/x/y"] {
        assert_eq!(rewritten(&mount(path), "set-cookie", "a=b"), ["a=b"], "{path}");
    }
}

#[test]
fn every_line_of_a_header_is_rewritten_whatever_its_bytes() {
    let mut headers = HeaderMap::new();
    headers.append(SET_COOKIE, HeaderValue::from_bytes(b"a=\xff; Path=/\xfe").unwrap());
    headers.append(SET_COOKIE, HeaderValue::from_static("b=c"));
    headers.append(LOCATION, HeaderValue::from_static("/x"));
    headers.append(LOCATION, HeaderValue::from_static("/y"));
    mount(BASE, "router.example").rewrite(&mut headers);
    let lines = |name| {
        headers
            .get_all(name)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        lines(SET_COOKIE),
        [b"a=\xff; Path=/p/team/alpha/8080/\xfe".as_slice(), b"b=c"]
    );
    assert_eq!(lines(LOCATION), [b"/p/team/alpha/8080/x", b"/p/team/alpha/8080/y"]);
}

#[test]
fn no_sandbox_speaks_for_an_origin_that_it_shares() {
    let shared = mount(BASE, "router.example");
    for reach in [
        "/",
        "/p/",
        "/p/team/alpha/8080/../../../",
        "../../",
        "https://router.example/",
        "",
    ] {
        assert_eq!(
            rewritten(&shared, "service-worker-allowed", reach),
            ["/p/team/alpha/8080/"]
        );
    }
    for (name, value) in [
        ("strict-transport-security", "max-age=0"),
        ("alt-svc", "clear"),
        ("clear-site-data", "\"*\""),
        ("nel", "{}"),
        ("report-to", "{}"),
    ] {
        assert_eq!(rewritten(&shared, name, value), [""; 0], "{name}");
    }
}

#[test]
fn on_a_host_of_its_own_only_what_leaves_the_host_is_changed() {
    let own = mount("", "8080-alpha--team.sandboxes.example");
    for (name, app, browser) in [
        ("location", "http://127.0.0.1:8080/x?y", "/x?y"),
        ("location", "http://127.0.0.1:8080", "/"),
        (
            "location",
            "http://127.0.0.1:8080//elsewhere.example",
            "/.//elsewhere.example",
        ),
        (
            "location",
            "//127.0.0.1:8080/\\elsewhere.example",
            "/./\\elsewhere.example",
        ),
        (
            "location",
            "http://127.0.0.1:8080\\elsewhere.example",
            "/./\\elsewhere.example",
        ),
        (
            "location",
            "http://127.0.0.1:8080/\t/elsewhere.example",
            "/./\t/elsewhere.example",
        ),
        ("set-cookie", "a=b; Domain=sandboxes.example; Path=/", "a=b; Path=/"),
    ] {
        assert_eq!(rewritten(&own, name, app), [browser], "{app}");
    }
    for (name, stays) in [
        ("location", "/x"),
        ("location", "//elsewhere.example"),
        // Not `/x`: the scheme may be what the app wants to change.
        ("location", "https://8080-alpha--team.sandboxes.example/x"),
        ("set-cookie", "__Host-a=b; Path=/; Secure"),
        ("set-cookie", "a=b; path=x"),
        ("service-worker-allowed", "/"),
        ("strict-transport-security", "max-age=1"),
        ("clear-site-data", "\"cookies\""),
    ] {
        assert_eq!(rewritten(&own, name, stays), [stays]);
    }
}

#[test]
fn other_headers_are_left_alone() {
    let mount = mount(BASE, "router.example");
    for (name, value) in [
        ("link", "</x>; rel=preload"),
        ("x-path", "/x"),
        ("cookie", "a=b; Path=/"),
    ] {
        assert_eq!(rewritten(&mount, name, value), [value]);
    }
}
