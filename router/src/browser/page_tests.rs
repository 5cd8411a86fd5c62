use super::*;
use crate::browser::{BrowserCredentials, SameSite};
use crate::rewrite::{Presented, Visit};
use sandgate_mesh::contract::X_FORWARDED_HOST;

fn mount(host: &str, presented: Presented) -> Mount {
    let mut mount = Mount::new("/p/a/b/80", "80".parse().unwrap());
    mount.visit = Visit {
        presented,
        ..Visit::default()
    };
    mount.told(&mut [(X_FORWARDED_HOST, host.parse().unwrap())].into_iter().collect());
    mount
}

fn browser() -> BrowserCredentials {
    BrowserCredentials {
        cookie: "tok".parse().unwrap(),
        parameter: None,
        same_site: SameSite::Lax,
        secure: true,
        allowed_origins: vec!["https://ide.example".parse().unwrap()],
    }
}

/// What becomes of a request with these headers; `None` where nobody looks at them.
fn judged(
    method: &str,
    switches: bool,
    presented: Presented,
    headers: &[(&'static str, &str)],
) -> Option<Result<(), RouterError>> {
    let mount = mount("router.example", presented);
    let mut request = Request::builder().method(method);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let page = Page::behind(&request.body(()).unwrap(), &mount, switches, false)?;
    Some(page.may_act(&mount, Some(&browser())))
}

const OWN: (&str, &str) = ("origin", "https://router.example");
const LISTED: (&str, &str) = ("origin", "https://ide.example");

fn site(value: &'static str) -> (&'static str, &'static str) {
    ("sec-fetch-site", value)
}

#[test]
fn a_cookie_changes_something_only_for_a_page_of_its_own_or_a_listed_origin() {
    for headers in [
        &[OWN][..],
        &[OWN, site("same-origin")],
        &[("origin", "https://router.example:443")],
        &[("origin", "https://Router.EXAMPLE")],
        &[LISTED],
        &[LISTED, site("cross-site")],
        &[site("same-origin")],
        &[site("none")],
    ] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "INVENTED", "get"] {
            let may = judged(method, false, Presented::InCookie, headers);
            assert_eq!(may, Some(Ok(())), "{method} {headers:?}");
        }
        let may = judged("GET", true, Presented::InCookie, headers);
        assert_eq!(may, Some(Ok(())), "{headers:?}");
    }
    for headers in [
        &[][..],
        &[("origin", "null")],
        &[("origin", "")],
        &[("origin", "https://evil.example")],
        &[("origin", "https://router.example.evil.example")],
        &[("origin", "https://evil.router.example")],
        &[("origin", "https://evilrouter.example")],
        &[("origin", "https://router.example:8443")],
        &[("origin", "https://router.example/")],
        &[("origin", "https://router.example@evil.example")],
        &[("origin", "ftp://router.example")],
        &[("origin", "router.example")],
        &[("origin", "https://router.example https://evil.example")],
        &[("origin", "http://ide.example")],
        &[("origin", "https://ide.example:443")],
        &[("origin", "https://IDE.example")],
        &[("origin", "https://x.ide.example")],
        &[OWN, OWN],
        &[LISTED, OWN],
        // Another scheme's page, or a browser that was led astray.
        &[OWN, site("cross-site")],
        &[OWN, site("same-site")],
        &[OWN, site("same-origin"), site("cross-site")],
        &[("origin", "null"), site("same-origin")],
        &[site("same-site")],
        &[site("cross-site")],
        &[site("")],
        &[site("Same-Origin")],
        &[site("same-origin"), site("same-origin")],
    ] {
        let refused = Some(Err(RouterError::ForeignPage));
        assert_eq!(
            judged("POST", false, Presented::InCookie, headers),
            refused,
            "{headers:?}"
        );
        assert_eq!(
            judged("GET", true, Presented::InCookie, headers),
            refused,
            "{headers:?}"
        );
    }
}

#[test]
fn nobody_asks_where_a_request_comes_from_that_only_reads_or_has_a_credential_of_its_own() {
    let foreign = [("origin", "https://evil.example"), site("cross-site")];
    for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
        assert_eq!(judged(method, false, Presented::InCookie, &foreign), None, "{method}");
    }
    for presented in [Presented::Otherwise, Presented::InAddress] {
        assert_eq!(judged("POST", false, presented, &foreign), None, "{presented:?}");
    }
}

#[test]
fn an_upgrade_without_a_cookie_may_lack_an_origin_but_have_no_foreign_one() {
    for presented in [Presented::Otherwise, Presented::InAddress] {
        for headers in [&[][..], &[OWN], &[LISTED], &[site("cross-site")]] {
            assert_eq!(judged("GET", true, presented, headers), Some(Ok(())), "{headers:?}");
        }
        for headers in [
            &[("origin", "https://evil.example")][..],
            &[("origin", "null")],
            &[OWN, OWN],
        ] {
            let refused = Some(Err(RouterError::ForeignOrigin));
            assert_eq!(judged("GET", true, presented, headers), refused, "{headers:?}");
        }
    }
}

#[test]
fn an_origin_that_no_browser_writes_is_refused() {
    for good in [
        "https://ide.example",
        "http://localhost:3000",
        "https://a_b.example:444",
        "http://127.0.0.1",
        "http://ide.example:443",
        "https://[fd00::1]:8443",
    ] {
        assert_eq!(good.parse::<Origin>().map(|origin| origin.to_string()), Ok(good.into()));
    }
    for bad in [
        "",
        "*",
        "null",
        "ide.example",
        "https://",
        "https://ide.example/",
        "https://ide.example/x",
        "https://ide.example?",
        "https://IDE.example",
        "HTTPS://ide.example",
        "https://ide.example:443",
        "http://ide.example:80",
        "https://ide.example:",
        "https://ide.example:08443",
        "https://ide.example:99999",
        "https://*.example",
        "https://me@ide.example",
        "https://ide.example https://b.example",
        "ws://ide.example",
        "https://[FD00::1]",
        "https://\u{e4}.example",
    ] {
        assert_eq!(bad.parse::<Origin>(), Err(OriginError::NotAnOrigin), "{bad}");
    }
}

/// A browser shows a client certificate whoever asks. Others than browsers have one, too, and say nothing of pages.
#[test]
fn a_certificate_changes_something_for_no_page_of_another_origin() {
    let mount = mount("router.example", Presented::Otherwise);
    let judged = |method: &str, headers: &[(&'static str, &str)]| {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let page = Page::behind(&request.body(()).unwrap(), &mount, false, true)?;
        Some(page.may_act(&mount, Some(&browser())))
    };
    let foreign = ("origin", "https://8888-evil--a.router.example");
    for method in ["POST", "DELETE", "INVENTED"] {
        assert_eq!(judged(method, &[foreign]), Some(Err(RouterError::ForeignPage)));
        assert_eq!(judged(method, &[OWN, foreign]), Some(Err(RouterError::ForeignPage)));
        for allowed in [&[][..], &[OWN], &[LISTED]] {
            assert_eq!(judged(method, allowed), Some(Ok(())), "{allowed:?}");
        }
        // Whoever has a token and sends it can't be made to.
        assert!(judged(method, &[foreign, ("authorization", "Bearer x")]).is_none());
    }
    assert!(judged("GET", &[foreign]).is_none());
}
