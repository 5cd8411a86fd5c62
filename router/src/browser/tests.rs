use super::*;
use crate::config::Config;
use crate::routing::LastDestination;
use http::header::COOKIE;

fn browser() -> BrowserCredentials {
    BrowserCredentials {
        cookie: "tok".parse().unwrap(),
        parameter: Some("token".parse().unwrap()),
        same_site: SameSite::Lax,
        secure: true,
        allowed_origins: Vec::new(),
    }
}

struct Taken {
    request: Request<()>,
    way: Result<Way, RouterError>,
    outcome: Result<(), RouterError>,
}

fn take(line: (&str, &str), headers: &[(&'static str, &str)]) -> Taken {
    let mut request = Request::builder().method(line.0).uri(line.1);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(()).unwrap();
    let args = [
        "--auth-token=t",
        "--path-routing-prefix=/p",
        "--host-routing-domain=sandboxes.example",
    ];
    let config = Config::from_args(args.map(Into::into).into()).unwrap();
    let mut way = Way::find(
        config.url_routing.as_ref(),
        false,
        &LastDestination::default(),
        &request,
    );
    let outcome = browser().take(&mut request, &mut way);
    Taken { request, way, outcome }
}

impl Taken {
    fn credential(&self) -> Option<&str> {
        let values = self.request.headers().get_all(AUTHORIZATION);
        assert!(values.iter().count() <= 1);
        values.iter().next().map(|value| value.to_str().unwrap())
    }

    fn path(&self) -> String {
        self.way.as_ref().unwrap().rest.as_ref().unwrap().to_string()
    }

    fn mount(&self) -> &Mount {
        self.way.as_ref().unwrap().mount.as_deref().unwrap()
    }

    /// Names and values that the app's answer leads to.
    fn answered(&self, app: &[(&'static str, &str)]) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in app {
            headers.append(*name, value.parse().unwrap());
        }
        browser().answer(Some(self.mount()), &mut headers);
        let text = |(name, value): (&http::HeaderName, &HeaderValue)| {
            (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
        };
        headers.iter().map(text).collect()
    }
}

const PAGE: &str = "/p/a/b/80/x";

#[test]
fn authorization_counts_before_the_address_and_the_address_before_the_cookie() {
    let (header, cookie) = (("authorization", "Bearer h"), ("cookie", "a=1; tok=c"));
    let in_address = format!("{PAGE}?q&token=q%2B");
    for (address, headers, expected) in [
        (&*in_address, &[header, cookie][..], Some("Bearer h")),
        (&in_address, &[cookie], Some("Bearer q+")),
        (PAGE, &[cookie], Some("Bearer c")),
        (PAGE, &[], None),
    ] {
        let taken = take(("GET", address), headers);
        assert_eq!(
            (&taken.outcome, taken.credential()),
            (&Ok(()), expected),
            "{address} {headers:?}"
        );
        if headers.contains(&cookie) {
            assert_eq!(taken.request.headers()[COOKIE], "a=1");
        }
        if address.contains('?') {
            assert_eq!(taken.path(), "/x?q");
        }
    }
}

#[test]
fn what_occurs_twice_is_no_credential_unless_something_before_it_counts() {
    for (address, headers) in [
        ("?token=a&token=a", &[][..]),
        ("?token=a&t%6fken=b", &[("cookie", "tok=c")]),
        ("", &[("cookie", "tok=a; tok=a")]),
        ("", &[("cookie", "tok=a"), ("cookie", "tok=b")]),
        ("", &[("cookie", "tok=a; =tok=b")]),
    ] {
        let taken = take(("GET", &format!("{PAGE}{address}")), headers);
        assert_eq!(taken.outcome, Err(RouterError::NoCredential), "{address} {headers:?}");
        assert_eq!(taken.credential(), None);
    }
    let all = take(
        ("GET", &format!("{PAGE}?token=a&token=b")),
        &[("authorization", "Bearer h"), ("cookie", "tok=a; tok=b")],
    );
    assert_eq!(
        (&all.outcome, all.credential(), all.path()),
        (&Ok(()), Some("Bearer h"), "/x".into())
    );
}

#[test]
fn by_routing_headers_neither_counts_and_the_query_is_the_apps() {
    let headers = [("x-sandbox-id", "b"), ("cookie", "tok=c; a=1")];
    let taken = take(("GET", "/x?token=q"), &headers);
    assert_eq!((&taken.outcome, taken.credential()), (&Ok(()), None));
    assert!(taken.way.unwrap().rest.is_none());
    // The cookie is the router's own wherever it comes.
    assert_eq!(taken.request.headers()[COOKIE], "a=1");
}

#[test]
fn a_token_that_is_no_header_is_no_token() {
    for token in ["%0d%0aX-Evil:%201", "%00", "a%7f"] {
        let taken = take(("GET", &format!("{PAGE}?token={token}")), &[]);
        assert_eq!(
            (taken.outcome.clone(), taken.credential()),
            (Err(RouterError::BadCredential), None)
        );
    }
}

#[test]
fn under_a_host_the_parameter_goes_too() {
    let taken = take(("GET", "/x?token=q&r=%2F"), &[("host", "80-b--a.sandboxes.example")]);
    assert_eq!(
        (taken.credential(), taken.path()),
        (Some("Bearer q"), "/x?r=%2F".into())
    );
    let answer = taken.answered(&[]);
    let cookie = "tok=q; Path=/; HttpOnly; SameSite=Lax; Secure";
    assert!(answer.contains(&("set-cookie".into(), cookie.into())), "{answer:?}");
}

#[test]
fn a_page_that_is_opened_with_a_token_gets_the_cookie_and_tells_no_other_page_of_it() {
    let taken = take(("GET", &format!("{PAGE}?token=q")), &[]);
    let app = [
        ("set-cookie", "a=1"),
        ("set-cookie", "TOK=evil"),
        ("referrer-policy", "unsafe-url"),
        ("cache-control", "public"),
    ];
    let mut answer = taken.answered(&app);
    answer.sort_unstable();
    let expected = [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("set-cookie", "a=1"),
        ("set-cookie", "tok=q; Path=/p/a/b/80; HttpOnly; SameSite=Lax; Secure"),
    ];
    assert_eq!(
        answer,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
}

#[test]
fn only_who_opens_a_page_with_the_token_that_counts_gets_the_cookie() {
    let address = format!("{PAGE}?token=q");
    for (method, address, headers) in [
        ("POST", &*address, &[][..]),
        ("HEAD", &address, &[]),
        ("GET", &address, &[("upgrade", "websocket")]),
        ("GET", &address, &[("authorization", "Bearer h")]),
        ("GET", PAGE, &[("cookie", "tok=c")]),
        ("GET", PAGE, &[]),
    ] {
        let answer = take((method, address), headers).answered(&[("set-cookie", "tok=evil")]);
        assert!(
            !answer.iter().any(|(name, _)| name == "set-cookie"),
            "{method} {headers:?}: {answer:?}"
        );
    }
}

#[test]
fn what_a_cookie_opened_is_for_no_shared_cache_unless_the_app_says_so() {
    let taken = take(("GET", PAGE), &[("cookie", "tok=c")]);
    for (app, expected) in [
        (&[][..], &["private"][..]),
        (&["max-age=60"], &["max-age=60", "private"]),
        (
            &["no-cache, max-age=1", "must-understand"],
            &["no-cache, max-age=1", "must-understand", "private"],
        ),
        (&["Public, max-age=60"], &["Public, max-age=60"]),
        (&["max-age=60", "s-maxage=1"], &["max-age=60", "s-maxage=1"]),
        (&["must-revalidate"], &["must-revalidate"]),
        (&["private=\"x\""], &["private=\"x\""]),
        (&["no-store"], &["no-store"]),
    ] {
        let app: Vec<_> = app.iter().map(|value| ("cache-control", *value)).collect();
        let answer = taken.answered(&app);
        let values: Vec<_> = answer.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, expected, "{app:?}");
    }
    let others = take(("GET", PAGE), &[("authorization", "Bearer h")]).answered(&[]);
    assert_eq!(others, []);
}
