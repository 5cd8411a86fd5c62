use super::super::{Config, ConfigError};
use super::*;

const TOKEN: &str = "--auth-token=t";
const COOKIE: &str = "--authz-cookie-name=tok";
const BY_PATH: &str = "--path-routing-prefix=/p";
const BY_HOST: &str = "--host-routing-domain=sandboxes.example";

fn read(flags: &[&str]) -> Result<Config, ConfigError> {
    Config::from_args(flags.iter().map(Into::into).collect())
}

fn said(flags: &[&str]) -> Vec<String> {
    match read(flags) {
        Err(ConfigError::Settings { problems, .. }) => problems,
        other => panic!("{flags:?}: {other:?}"),
    }
}

#[test]
fn they_are_off_by_default() {
    assert_eq!(read(&[TOKEN, BY_PATH]).unwrap().browser, None);
    assert_eq!(read(&[TOKEN, BY_PATH, "--authz-cookie-name="]).unwrap().browser, None);
}

#[test]
fn what_is_given_is_taken_and_the_rest_is_strict() {
    let defaults = read(&[TOKEN, BY_PATH, COOKIE]).unwrap().browser.unwrap();
    let expected = BrowserCredentials {
        cookie: "tok".parse().unwrap(),
        parameter: None,
        same_site: SameSite::Lax,
        secure: true,
        allowed_origins: Vec::new(),
    };
    assert_eq!(defaults, expected);
    let given = read(&[
        TOKEN,
        BY_HOST,
        "-authz-cookie-name",
        "tok",
        "-authz-cookie-query-param=token",
        "-authz-cookie-samesite=Strict",
        "-authz-cookie-insecure",
        "-authz-cookie-allowed-origins=https://a.example, http://localhost:3000,",
    ]);
    let expected = BrowserCredentials {
        parameter: Some("token".parse().unwrap()),
        same_site: SameSite::Strict,
        secure: false,
        allowed_origins: ["https://a.example", "http://localhost:3000"]
            .map(|origin| origin.parse().unwrap())
            .into(),
        ..expected
    };
    assert_eq!(given.unwrap().browser, Some(expected));
}

#[test]
fn what_no_browser_would_do_is_refused_in_a_sentence() {
    for (flags, expected) in [
        (
            &[TOKEN, COOKIE][..],
            "--authz-cookie-name counts only where a URL leads to an app",
        ),
        (
            &[BY_PATH, COOKIE, "--authz-mode=allow-all"],
            "--authz-cookie-name is for tokens, and --authz-mode=allow-all asks for none",
        ),
        (
            &[BY_PATH, COOKIE, "--auth-token=a;b"],
            "--authz-cookie-name: no cookie can hold the token that is set",
        ),
        (
            &[TOKEN, BY_PATH, "--authz-cookie-name=__Host-t"],
            "--authz-cookie-name: browsers take a cookie named __Host-t only for a whole host",
        ),
        (
            &[TOKEN, BY_HOST, BY_PATH, "--authz-cookie-name=__host-t"],
            "--authz-cookie-name: browsers take a cookie named __host-t only for a whole host",
        ),
        (
            &[
                TOKEN,
                BY_HOST,
                "--authz-cookie-name=__Host-t",
                "--authz-cookie-insecure",
            ],
            "--authz-cookie-name: browsers take a cookie named __Host-t over TLS only",
        ),
        (
            &[
                TOKEN,
                BY_PATH,
                "--authz-cookie-name=__secure-t",
                "--authz-cookie-insecure",
            ],
            "--authz-cookie-name: browsers take a cookie named __secure-t over TLS only",
        ),
        (
            &[
                TOKEN,
                BY_PATH,
                COOKIE,
                "--authz-cookie-samesite=none",
                "--authz-cookie-insecure",
            ],
            "--authz-cookie-samesite=none: browsers take such a cookie over TLS only",
        ),
        (
            &[TOKEN, BY_PATH, "--authz-cookie-name=a b"],
            "--authz-cookie-name: \"a b\" must be a cookie's name",
        ),
        (
            &[TOKEN, BY_PATH, COOKIE, "--authz-cookie-query-param=a b"],
            "--authz-cookie-query-param: \"a b\" must be letters",
        ),
        (
            &[
                TOKEN,
                BY_PATH,
                COOKIE,
                "--authz-cookie-allowed-origins=https://a.example/",
            ],
            "--authz-cookie-allowed-origins: \"https://a.example/\" is no origin as browsers write it",
        ),
        (
            &[TOKEN, "--authz-cookie-query-param=t"],
            "--authz-cookie-query-param needs --authz-cookie-name",
        ),
        (
            &[TOKEN, "--authz-cookie-samesite=lax"],
            "--authz-cookie-samesite needs --authz-cookie-name",
        ),
        (
            &[TOKEN, "--authz-cookie-insecure"],
            "--authz-cookie-insecure needs --authz-cookie-name",
        ),
        (
            &[TOKEN, "--authz-cookie-allowed-origins=https://a.example"],
            "--authz-cookie-allowed-origins needs --authz-cookie-name",
        ),
    ] {
        let problems = said(flags);
        assert!(
            problems.len() == 1 && problems[0].starts_with(expected),
            "{flags:?}: {problems:?}"
        );
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let problems = said(&[
        "--authz-mode=allow-all",
        "--authz-cookie-name=__Secure-t",
        "--authz-cookie-insecure",
        "--authz-cookie-samesite=none",
        "--authz-cookie-allowed-origins=null,*",
    ]);
    assert_eq!(problems.len(), 6, "{problems:?}");
}

#[test]
fn what_opens_more_than_it_seems_to_is_warned_of() {
    let warned = |flags: &[&str], part: &str| {
        let warnings = read(&[flags, &[TOKEN]].concat()).unwrap().warnings;
        warnings.iter().any(|warning| warning.starts_with(part))
    };
    let parameter = "--authz-cookie-query-param=token";
    for (flags, part, expected) in [
        (&[BY_PATH, COOKIE, parameter][..], "--authz-cookie-query-param", true),
        (&[BY_PATH, COOKIE], "--authz-cookie-query-param", false),
        (&[BY_HOST, COOKIE], "--authz-cookie-name", true),
        (&[BY_HOST, "--authz-cookie-name=__Host-t"], "--authz-cookie-name", false),
        (&[BY_PATH, COOKIE], "--authz-cookie-name", false),
        (
            &[BY_PATH, COOKIE, "--authz-cookie-insecure"],
            "--authz-cookie-insecure",
            true,
        ),
        (&[BY_PATH, COOKIE], "--authz-cookie-insecure", false),
    ] {
        assert_eq!(warned(flags, part), expected, "{flags:?}");
    }
    let scoped = [
        "--authz-mode=scoped-token",
        "--authz-scoped-token-secret-file=s",
        BY_PATH,
        COOKIE,
        parameter,
    ];
    assert_eq!(read(&scoped).unwrap().warnings, Vec::<String>::new());
}
