use super::*;
use std::time::Duration;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn name() -> CookieName {
    "tok".parse().unwrap()
}

fn lines(header: &http::HeaderName, values: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(header, HeaderValue::from_str(value).unwrap());
    }
    headers
}

#[test]
fn a_name_that_is_none_is_refused() {
    for good in ["a", "sandgate_token", "__Host-x", "a!#$%&'*+-.^_`|~9"] {
        assert!(good.parse::<CookieName>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "a b",
        "a=b",
        "a;b",
        "a,b",
        "\"a\"",
        "a\t",
        "\u{e4}",
        "a/b",
        &"a".repeat(65),
    ] {
        assert_eq!(bad.parse::<CookieName>(), Err(CookieNameError::NotAName), "{bad}");
    }
}

#[test]
fn prefixes_bind_a_cookie_in_any_case() {
    for (text, to_host, to_tls) in [
        ("__Host-a", true, true),
        ("__host-a", true, true),
        ("__Host-Http-a", true, true),
        ("__Secure-a", false, true),
        ("__SECURE-a", false, true),
        ("__Http-a", false, true),
        ("__Hosta", false, false),
        ("a__Host-", false, false),
        ("_", false, false),
    ] {
        let name: CookieName = text.parse().unwrap();
        assert_eq!(
            (name.is_bound_to_host(), name.is_bound_to_tls()),
            (to_host, to_tls),
            "{text}"
        );
    }
}

#[test]
fn the_cookie_is_taken_out_of_a_request_and_every_other_byte_stays() {
    for (sent, values, left) in [
        (&["tok=a"][..], &["a"][..], &[][..]),
        (&["b=1; tok=a; c=2"], &["a"], &["b=1; c=2"]),
        (&["tok=a; b=\"x y\";c ;; d==1 "], &["a"], &["b=\"x y\";c ;; d==1 "]),
        (&["b=1;tok=a"], &["a"], &["b=1"]),
        (&["b=1", "tok=a", "c=2; tok = d"], &["a", "d"], &["b=1", "c=2"]),
        (&["tok=a; tok=b"], &["a", "b"], &[]),
        (&["tok"], &[""], &[]),
        (&["tok=\"a\""], &["\"a\""], &[]),
        (&["tok=a=b"], &["a=b"], &[]),
        // A cookie without a name is sent as its value.
        (&["=tok=a; == tok=b"], &["a", "b"], &[]),
        (
            &["Tok=a; xtok=b; tokx=c; t=tok=d; \"tok\"=e"],
            &[],
            &["Tok=a; xtok=b; tokx=c; t=tok=d; \"tok\"=e"],
        ),
    ] {
        let mut headers = lines(&COOKIE, sent);
        let taken = take(&mut headers, &name());
        let values: Vec<_> = values.iter().map(|value| value.as_bytes().to_vec()).collect();
        assert_eq!(taken, values, "{sent:?}");
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), left, "{sent:?}");
    }
}

#[test]
fn no_spelling_sets_the_cookie_and_others_are_set_in_their_order() {
    for own in [
        "tok=a",
        "TOK=a; Path=/; Domain=example",
        " tok =a",
        "\ttok\t=a; HttpOnly",
        "tok",
        "tok;",
        "=tok=a",
        " = tok=a",
        "==tOk",
        "tok=",
    ] {
        let mut headers = lines(&SET_COOKIE, &["a=1", own, "b=tok=1", own, "tokx=1"]);
        disown(&mut headers, &name());
        let left: Vec<_> = headers.get_all(SET_COOKIE).iter().collect();
        assert_eq!(left, ["a=1", "b=tok=1", "tokx=1"], "{own}");
    }
}

fn set(token: &str, secure: bool, same_site: SameSite) -> Option<String> {
    let value = name().can_hold(token.as_bytes())?;
    let cookie = name().to_set(&value, "/p/a/b/80", secure, same_site, NOW + Duration::from_secs(100))?;
    Some(cookie.to_str().unwrap().to_owned())
}

#[test]
fn a_cookie_is_for_the_app_alone_and_out_of_reach_of_scripts() {
    for (secure, same_site, expected) in [
        (
            true,
            SameSite::Lax,
            "tok=t; Path=/p/a/b/80; HttpOnly; SameSite=Lax; Secure",
        ),
        (
            true,
            SameSite::None,
            "tok=t; Path=/p/a/b/80; HttpOnly; SameSite=None; Secure",
        ),
        (
            false,
            SameSite::Strict,
            "tok=t; Path=/p/a/b/80; HttpOnly; SameSite=Strict",
        ),
    ] {
        assert_eq!(set("t", secure, same_site).as_deref(), Some(expected));
    }
}

#[test]
fn a_cookie_lasts_as_long_as_its_token() {
    let claims = |json: &str| BASE64URL_NOPAD.encode(json.as_bytes());
    for (json, age) in [
        (r#"{"exp":160}"#, Some("60")),
        (r#"{"ns":"a","name":"b","exp":101}"#, Some("1")),
        (r#"{"exp":160.5}"#, None),
        (r#"{"exp":"160"}"#, None),
        (r#"{"exp":-1}"#, None),
        ("{}", None),
        ("160", None),
    ] {
        for token in [
            format!("v1.{}.mac", claims(json)),
            format!("v2.key.{}.sig", claims(json)),
            format!("e30.{}.sig", claims(json)),
        ] {
            let cookie = set(&token, true, SameSite::Lax).unwrap();
            assert_eq!(cookie.split_once("; Max-Age=").map(|(_, age)| age), age, "{cookie}");
        }
    }
    for end in [0, 99, 100] {
        let token = format!("v1.{}.mac", claims(&format!(r#"{{"exp":{end}}}"#)));
        assert_eq!(set(&token, true, SameSite::Lax), None, "{end}");
    }
}

#[test]
fn what_a_browser_would_not_send_back_as_it_is_becomes_no_cookie() {
    for token in [
        "",
        "a b",
        "a;Path=/",
        "a,b",
        "a\"b",
        "a\\b",
        "a\tb",
        "\u{e4}",
        &"a".repeat(LONGEST - 2),
    ] {
        assert_eq!(set(token, true, SameSite::Lax), None, "{token}");
    }
    assert!(set(&"a".repeat(LONGEST - 3), true, SameSite::Lax).is_some());
}
